"""Formats: a data file -> batches of records (`writing.py`: back again).

Files are streamed, `BATCH` records at a time; only a JSON array is held as a whole, for as long as it is read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import polars as pl

from foreknow.errors import InputError
from foreknow.files.cells import shortest_floats
from foreknow.files.encodings import not_utf8
from foreknow.files.jsontext import TooDeep, check_depth, loads
from foreknow.files.sources import Part, on_disk
from foreknow.files.tables import Row, Table, read_table

Record = Mapping[str, object]
BATCH = 8192
LARGEST_BATCH = 2**25
"""A batch of fewer records ends where their texts have so many characters."""
LONGEST_LINE = 2**25
"""A line (CSV: a cell too) of more characters is an error: as values it can take thirty times its size in memory."""
LONGEST_ARRAY = 2**30
"""A JSON array, which is read as a whole, of more bytes is an error: a few packed KiB can unpack to it."""


class Batch(NamedTuple):
    """Records of a part, with what writing them back needs.

    `first`: the first one's place in the part. `lines`: the 1-based line each begins at (empty for Parquet).
    `texts`: JSON objects, or rows of the `table`, as they stand. `frame`: Parquet rows as they are.
    """

    records: list[Record]
    first: int = 0
    lines: Sequence[int] = ()
    texts: Sequence[str] = ()
    frame: pl.DataFrame | None = None
    table: Table | None = None


def read_part(part: Part) -> Iterator[Batch]:
    """A part's records in order; everything that cannot be read is an InputError naming the part and line."""
    if part.suffix == ".parquet":
        yield from _read_parquet(part)
    elif part.suffix in (".csv", ".tsv"):
        yield from _read_table(part)
    else:
        yield from _read_json(part)


def where(part: Part, batch: Batch, at: int) -> str:
    """`file:line` of a record where the format has lines, else `file: row N`, counted from 0 in the part."""
    return f"{part.where}:{batch.lines[at]}" if batch.lines else f"{part.where}: row {batch.first + at}"


def json_kind(value: object) -> str:
    """What a JSON value is, in the words of a user."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _batched(part: Part, pieces: Iterable[tuple[int, str, object]]) -> Iterator[Batch]:
    """(line, text, value) triples as batches; every value must be an object."""
    records: list[Record] = []
    lines: list[int] = []
    texts: list[str] = []
    size = 0
    for line, text, value in pieces:
        if not isinstance(value, dict):
            raise InputError(
                f"{part.where}:{line}: found {json_kind(value)}, expected an object such as "
                '{"question": "...", "answer": "..."}.'
            )
        records.append(value)
        lines.append(line)
        texts.append(text)
        size += len(text)
        if len(records) == BATCH or size >= LARGEST_BATCH:
            yield Batch(records, lines=lines, texts=texts)
            records, lines, texts, size = [], [], [], 0
    if records:
        yield Batch(records, lines=lines, texts=texts)


def _read_json(part: Part) -> Iterator[Batch]:
    with part.open() as stream:
        if part.suffix != ".json":
            yield from _batched(part, _line_pieces(part, stream))
            return
        raw = stream.read(LONGEST_ARRAY + 1)
    if len(raw) > LONGEST_ARRAY:
        raise InputError(
            f"{part.where}: longer than {LONGEST_ARRAY >> 20} MiB unpacked, which is too much for one JSON array. "
            "Write one object a line, as .jsonl."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise not_utf8(part, LONGEST_LINE) from None
    del raw
    yield from _batched(part, _array_pieces(part.where, text))


def _line_pieces(part: Part, stream: IO[bytes]) -> Iterator[tuple[int, str, object]]:
    """(line, text, value) of every line that is not blank. Only "\\n" ends a line: JSON may hold U+2028."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
        if len(line) == LONGEST_LINE:
            raise _too_long(part, number)
        try:
            piece = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
        except UnicodeDecodeError:
            raise not_utf8(part, LONGEST_LINE) from None
        if piece:
            yield number, piece, _loads(part.where, piece, number)


def _too_long(part: Part, line: int) -> InputError:
    return InputError(f"{part.where}:{line}: longer than {LONGEST_LINE >> 20} MiB, expected one row a line.")


def _loads(name: str, piece: str, line: int) -> object:
    try:
        return loads(piece)
    except json.JSONDecodeError as error:
        raise _broken(name, line, error, piece) from error
    except TooDeep as error:
        raise InputError(f"{name}:{line}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{name}:{line}: not readable as JSON ({error}).") from error


def _array_pieces(name: str, text: str) -> Iterator[tuple[int, str, object]]:
    """(line, text, value) of every element of a JSON array, the text exactly as it stands in the file."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        match = space.match(text, at)
        return match.end() if match else at

    at, line, counted = skip(0), 1, 0
    if at == len(text):
        return
    if text[at] != "[":
        value = _loads(name, text.strip(" \t\r\n"), 1)
        raise InputError(
            f"{name}: found {json_kind(value)}, expected an array of objects: [{{...}}, {{...}}]. "
            "One object a line goes into a .jsonl file."
        )
    at = skip(at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
            check_depth(text[at:end], value)
        except json.JSONDecodeError as error:
            raise _broken(name, error.lineno, error, text) from error
        except (RecursionError, TooDeep) as error:
            raise InputError(f"{name}:{line}: nested too deeply to be read as JSON.") from error
        except ValueError as error:
            raise InputError(f"{name}:{line}: not readable as JSON ({error}).") from error
        yield line, text[at:end], value
        at = skip(end)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            fault = json.JSONDecodeError("Expecting ',' or ']' after an element", text, at)
            raise _broken(name, fault.lineno, fault, text)
    if skip(at + 1) != len(text):
        fault = json.JSONDecodeError("Extra data after the array", text, skip(at + 1))
        raise _broken(name, fault.lineno, fault, text)


def _broken(name: str, line: int, error: json.JSONDecodeError, text: str) -> InputError:
    near = text[error.pos : error.pos + 30].split("\n", maxsplit=1)[0]
    found = f"found {near!r}" if near else "the text ends"
    return InputError(f"{name}:{line}: broken JSON at column {error.colno}: {error.msg}; {found}.")


def _read_table(part: Part) -> Iterator[Batch]:
    """CSV or TSV with every cell as text, exactly as it stands."""
    table: Table | None = None
    rows: list[Row] = []
    size, given = 0, False
    for item in read_table(part, LONGEST_LINE):
        if isinstance(item, Table):
            table = item
            continue
        rows.append(item)
        size += len(item.text)
        if len(rows) == BATCH or size >= LARGEST_BATCH:
            yield _table_batch(rows, table)
            rows, size, given = [], 0, True
    if rows or not given:
        yield _table_batch(rows, table)


def _table_batch(rows: Sequence[Row], table: Table | None) -> Batch:
    return Batch([row.record for row in rows], lines=[r.line for r in rows], texts=[r.text for r in rows], table=table)


_PARQUET_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OverflowError)


@contextlib.contextmanager
def _reading_parquet(part: Part) -> Iterator[None]:
    try:
        yield
    except _PARQUET_FAULTS as error:
        first = str(error).split("\n", maxsplit=1)[0][:200]
        raise InputError(f"{part.where}: not a readable Parquet file ({first}).") from error


def _rows_of(scan: pl.LazyFrame) -> int:
    """The rows of a Parquet file. Raises ValueError where its footer counts others than its row groups hold.

    Polars takes the footer's word where it counts rows or takes a part of them, not where it reads a whole column.
    """
    count = int(scan.select(pl.len()).collect().item())
    held = int(scan.select(pl.nth(0).is_null().count()).collect().item()) if count else 0
    if held != count:
        raise ValueError(f"its footer counts {count:,} rows, its row groups hold {held:,}")
    return count


def _read_parquet(part: Part) -> Iterator[Batch]:
    with on_disk(part) as path:
        if path.stat().st_size == 0:
            return
        with _reading_parquet(part):
            scan = pl.scan_parquet(path, glob=False)
            count = _rows_of(scan)
        for start in range(0, max(count, 1), BATCH * 8):
            with _reading_parquet(part):
                frame = scan.slice(start, BATCH * 8).collect()
                records: list[Record] = list(shortest_floats(frame).iter_rows(named=True))
            yield Batch(records, start, frame=frame)
