"""Formats: a data file -> batches of records (`writing.py`: back again).

Files are streamed, `BATCH` records at a time; only JSON that is not a row a line is held as a whole, for as long as it
is read. A list of turns is a record too: it is read, and comes back, as `{"messages": [...]}`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import polars as pl

from foreknow.errors import InputError
from foreknow.files.arrow import read_arrow
from foreknow.files.cells import shortest_floats
from foreknow.files.encodings import not_utf8
from foreknow.files.json_shapes import (
    TABLES,
    Shape,
    decode,
    is_turns,
    pieces,
    shape_of,
    skip,
    table_records,
    table_text,
)
from foreknow.files.jsontext import TooDeep, check_depth, loads
from foreknow.files.quoting import quoted
from foreknow.files.sources import ARROW, Part, on_disk
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

    `first`: the first one's place in the part. `lines`: the 1-based line each begins at (empty for Parquet and Arrow).
    `texts`: JSON objects, or rows of the `table`, as they stand. `frame`: Parquet or Arrow rows as they are. `gaps`: of
    JSON that wraps its rows, the text before each, and `tail` the text after the last. `around`: the records have
    fields from around them, which their texts lack. `json_table`: of a JSON table, what writes it with columns added.
    """

    records: list[Record]
    first: int = 0
    lines: Sequence[int] = ()
    texts: Sequence[str] = ()
    frame: pl.DataFrame | None = None
    table: Table | None = None
    gaps: Sequence[str] = ()
    tail: str = ""
    around: bool = False
    json_table: Callable[[Sequence[Record]], str] | None = None
    note: str = ""
    """What the file is, for the user to read, where that is not plain."""


def read_part(part: Part) -> Iterator[Batch]:
    """A part's records in order; everything that cannot be read is an InputError naming the part and line."""
    if part.suffix == ".parquet":
        yield from _read_parquet(part)
    elif part.suffix in ARROW:
        yield from _read_arrow(part)
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
    """(line, text, value) triples as batches; every value must be an object, or a list of turns."""
    records: list[Record] = []
    lines: list[int] = []
    texts: list[str] = []
    size = 0
    for line, text, value in pieces:
        if is_turns(value):
            text, value = _as_chat(text, value)  # noqa: PLW2901
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


def _as_chat(text: str, turns: object) -> tuple[str, dict[str, object]]:
    """A list of turns as an object that has a place for labels."""
    return f'{{"messages": {text}}}', {"messages": turns}


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
    start = skip(text, 0)
    if text[start : start + 1] == "{":
        yield from _objects(part, text, start)
    else:
        yield from _batched(part, _array_pieces(part.where, text))


def _objects(part: Part, text: str, start: int) -> Iterator[Batch]:
    """The rows of a JSON object, or of several objects one behind the other."""
    value, end = _decoded(part.where, text, start)
    rest = skip(text, end)
    if rest < len(text):
        yield from _gapped(part, text, _stream_pieces(part.where, text, start), "objects one behind the other")
        return
    shape = shape_of(value)  # type: ignore[arg-type]
    if shape.name == "unknown":
        raise InputError(
            f"{part.where}: found an object, expected an array of objects, or an object with one list of them; "
            f"{shape.fault}. Write the rows you want into a file of their own."
        )
    if shape.name in TABLES:
        yield from _table_batches(part, value, shape)  # type: ignore[arg-type]
        return
    del value
    try:
        found = ((piece.start, piece.end, piece.value, piece.around) for piece in pieces(text, start, shape))
        yield from _gapped(part, text, found, shape.reason)
    except TooDeep as error:
        raise InputError(f"{part.where}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{part.where}: {error}.") from error


def _table_batches(part: Part, value: Mapping[str, object], shape: Shape) -> Iterator[Batch]:
    try:
        records: list[Record] = [*table_records(value, shape)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{part.where}: {shape.reason}, which cannot be read ({error}).") from error

    def write(added: Sequence[Record]) -> str:
        return table_text(value, shape, added)

    for at in range(0, max(len(records), 1), BATCH):
        yield Batch(records[at : at + BATCH], at, json_table=write, note=shape.reason)


def _stream_pieces(where: str, text: str, at: int) -> Iterator[tuple[int, int, object, Mapping[str, object]]]:
    while at < len(text):
        value, end = _decoded(where, text, at)
        yield at, end, value, {}
        at = skip(text, end)


def _decoded(where: str, text: str, at: int) -> tuple[object, int]:
    try:
        return decode(text, at)
    except json.JSONDecodeError as error:
        raise _broken(where, error.lineno, error, text) from error
    except (RecursionError, TooDeep) as error:
        raise InputError(f"{where}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON ({error}).") from error


def _gapped(
    part: Part, text: str, found: Iterable[tuple[int, int, object, Mapping[str, object]]], note: str
) -> Iterator[Batch]:
    """(start, end, value, fields around) of rows in a text, as batches that hold the text between them too."""
    batch, end, line, counted, first = Batch([], texts=[], lines=[], gaps=[], note=note), 0, 1, 0, 0
    for start, stop, value, around in found:
        line, counted = line + text.count("\n", counted, start), start
        own = text[start:stop]
        if is_turns(value):
            own, value = _as_chat(own, value)  # noqa: PLW2901
        if not isinstance(value, dict):
            raise InputError(f"{part.where}:{line}: found {json_kind(value)}, expected an object, which is a row.")
        if len(batch.records) == BATCH:
            yield batch
            first += BATCH
            batch = Batch([], first, texts=[], lines=[], gaps=[])
        batch.records.append({**around, **value})
        batch.texts.append(own)  # type: ignore[attr-defined]
        batch.lines.append(line)  # type: ignore[attr-defined]
        batch.gaps.append(text[end:start])  # type: ignore[attr-defined]
        batch = batch._replace(around=batch.around or bool(around))
        end = stop
    yield batch._replace(tail=text[end:])


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
        head = text[at:].split("\n", maxsplit=1)[0][:60]
        value = _loads(name, text.strip(" \t\r\n"), 1) if not re.match(r"\w+[,\t;]", head) else None
        table = " If it is a table, name it .csv." if value is None else ""
        raise InputError(
            f"{name}: found {json_kind(value) if value is not None else quoted(head)}, expected an array of objects: "
            f"[{{...}}, {{...}}]. One object a line goes into a .jsonl file.{table}"
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
    return InputError(
        f"{name}:{line}: broken JSON at column {error.colno}: {error.msg}; {found}.{_dialect(text, error.pos)}"
    )


def _dialect(text: str, at: int) -> str:
    """What to do where the fault is that of another spelling: Python's, JSON5's, a table's."""
    before, near = text[max(0, at - 40) : at].rstrip(), text[at : at + 8]
    if near[:1] in ("}", "]") and (before.endswith(",") or text[at - 1 : at] == ","):
        return " JSON allows no comma before a closing bracket: take it away."
    if near[:1] == "'" or near.startswith(("None", "True", "False")):
        return " This is how Python prints a value: write rows with json.dumps."
    if near.startswith(("//", "/*", "#")):
        return " JSON allows no comments: take them away."
    return " JSON allows no key without quotes." if before.endswith(("{", ",")) and near[:1].isalpha() else ""


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
def _reading_table(part: Part, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _PARQUET_FAULTS as error:
        first = str(error).split("\n", maxsplit=1)[0][:200]
        raise InputError(f"{part.where}: not a readable {kind} file ({first}).") from error


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
        with _reading_table(part, "Parquet"):
            scan = pl.scan_parquet(path, glob=False)
            count = _rows_of(scan)
        for start in range(0, max(count, 1), BATCH * 8):
            with _reading_table(part, "Parquet"):
                frame = scan.slice(start, BATCH * 8).collect()
                records: list[Record] = list(shortest_floats(frame).iter_rows(named=True))
            yield Batch(records, start, frame=frame)


def _read_arrow(part: Part) -> Iterator[Batch]:
    start = 0
    with on_disk(part) as path:
        if path.stat().st_size == 0:
            return
        with _reading_table(part, "Arrow"):
            for frame in read_arrow(path, BATCH * 8):
                records: list[Record] = list(shortest_floats(frame).iter_rows(named=True))
                yield Batch(records, start, frame=frame)
                start += frame.height
