"""Formats: a data file -> batches of records, and the same file written back with columns added.

Files are streamed, `BATCH` records at a time; only a JSON array is held as a whole, for as long as it is read.
Written back, JSON objects keep their very text, and tables their cells.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from foreknow.errors import InputError
from foreknow.files.cells import inert
from foreknow.files.jsontext import TooDeep, check_depth, dumps, encodable, loads
from foreknow.files.quoting import quoted
from foreknow.files.sources import Part, Source, on_disk, packed_for_writing, suffixes

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
    `texts`: JSON objects as they stand. `frame`: Parquet rows as they are.
    """

    records: list[Record]
    first: int = 0
    lines: Sequence[int] = ()
    texts: Sequence[str] = ()
    frame: pl.DataFrame | None = None


@dataclass(frozen=True)
class Change:
    """What an output changes: `added` columns (a line for each row of the input, by number), `kept` rows
    (by number; None: all), `edited`: record and row number -> the record to write, or None to leave it."""

    added: pl.DataFrame
    kept: pl.Series | None = None
    edited: Callable[[Record, int], Record | None] | None = None

    def of(self, first: int, count: int) -> tuple[pl.DataFrame, list[bool]]:
        """The added columns of `count` rows from `first`, and which of these rows are kept."""
        kept = [True] * count if self.kept is None else self.kept.slice(first, count).to_list()
        return self.added.slice(first, count), kept

    def edit(self, record: Record, row: int) -> Record | None:
        """The record to write in its place, if any."""
        return None if self.edited is None else self.edited(record, row)


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


def write_parts(source: Source, change: Change, path: Path) -> None:
    """Write every row of every part under `path`: one file, a folder of files, or a zip of them, as it was."""
    if source.kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            first = 0
            for part, name in zip(source.parts, _inside(source.parts), strict=True):
                # a fixed date: the same content gives the same bytes
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(info, "w", force_zip64=True) as out:
                    first = _write_part(part, out, change, first)
        return
    first = 0
    for part in source.parts:
        target = path / part.name if source.kind == "folder" else path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            first = _write_part(part, out, change, first)


def _inside(parts: Sequence[Part]) -> list[str]:
    """The parts' names, none of which leads out of the folder that an archive of them is unpacked into.

    They sort as the parts do: where they would not, each stands in a numbered folder.
    """
    found: list[str] = []
    for part in parts:
        pieces = [re.sub(r"[:\\]", "_", piece) for piece in part.name.split("/") if piece not in ("", ".")]
        found.append("/".join("__" if piece == ".." else piece for piece in pieces))
    if found != sorted(set(found)):
        width = len(str(len(found)))
        return [f"{number:0{width}}/{name}" for number, name in enumerate(found)]
    return found


def write_joined(parts: Sequence[Part], change: Change, path: Path, name: str) -> None:
    """Write the kept rows of all parts into one file, `path`, which is to be called `name`.

    Its suffix says the format, which must be that of the parts: JSON and JSONL are one format, as are CSV and
    TSV. Raises InputError where they differ.
    """
    suffix, packing = suffixes(name)
    for part in parts:
        if _family(part.suffix) != _family(suffix):
            raise InputError(f"{name}: expected a name that ends in {part.suffix}, the format of {part.name}.")
    first = 0
    frames = []
    with path.open("wb") as out, packed_for_writing(out, packing) as stream:
        writer = _Writer(stream, suffix, _newline(parts[0]))
        for part in parts:
            for batch in read_part(part):
                frames.append(writer.write(batch, change, first))
                first += len(batch.records)
        writer.close()
        if suffix == ".parquet":
            pl.concat([frame for frame in frames if frame is not None], how="diagonal_relaxed").write_parquet(stream)


def _family(suffix: str) -> str:
    return {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "table", ".tsv": "table"}.get(suffix, suffix)


def object_text(record: Record) -> str:
    """A record as JSON text."""
    return dumps(record)


def cell_text(value: object) -> str:
    """A value as text that UTF-8 can hold: a text as it is, any other as JSON."""
    return encodable(value) if isinstance(value, str) else dumps(value)


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
        raise _not_utf8(part) from None
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
            raise _not_utf8(part) from None
        if piece:
            yield number, piece, _loads(part.where, piece, number)


def _too_long(part: Part, line: int) -> InputError:
    return InputError(f"{part.where}:{line}: longer than {LONGEST_LINE >> 20} MiB, expected one row a line.")


def _not_utf8(part: Part) -> InputError:
    """Where the first byte stands that is not UTF-8: the part is read again for it."""
    with part.open() as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return InputError(
                    f"{part.where}:{number}: not UTF-8: found byte 0x{line[error.start]:02x} at byte "
                    f"{error.start + 1} of the line. Save the file as UTF-8."
                )
    return InputError(f"{part.where}: not UTF-8. Save the file as UTF-8.")


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
    kind = part.suffix[1:].upper()
    with part.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = csv.reader(_table_lines(part, text), delimiter=_delimiter(part.suffix), strict=True)
        header: list[str] | None = None
        while True:
            records: list[Record] = []
            lines: list[int] = []
            begins, size = reader.line_num + 1, 0
            limit = csv.field_size_limit(LONGEST_LINE)  # the module's own limit is 128 KiB a cell
            try:
                for cells in reader:
                    line, begins = begins, reader.line_num + 1
                    if not cells:
                        continue
                    if header is None:
                        header = cells
                        _check_header(part, header)
                        continue
                    if len(cells) != len(header):
                        raise InputError(
                            f"{part.where}:{line}: found {len(cells)} cells, expected {len(header)} as in the "
                            "header. Quote cells that hold the separator."
                        )
                    records.append(dict(zip(header, cells, strict=True)))
                    lines.append(line)
                    size += sum(map(len, cells))
                    if len(records) == BATCH or size >= LARGEST_BATCH:
                        break
            except csv.Error as error:
                raise InputError(f"{part.where}:{begins}: broken {kind} row: {error}.") from error
            except UnicodeDecodeError:
                raise _not_utf8(part) from None
            finally:
                csv.field_size_limit(limit)
            if not records:
                break
            yield Batch(records, lines=lines)
        text.detach()


def _table_lines(part: Part, text: io.TextIOWrapper) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), start=1):
        if len(line) == LONGEST_LINE:
            raise _too_long(part, number)
        yield line


def _check_header(part: Part, header: list[str]) -> None:
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"{part.where}:1: the column {quoted(twice)} stands in the header twice. Rename one of them.")


def _delimiter(suffix: str) -> str:
    return "\t" if suffix == ".tsv" else ","


def _newline(part: Part) -> str:
    """How the part's first line ends."""
    if part.suffix not in (".csv", ".tsv"):
        return "\n"
    with part.open() as stream:
        return "\r\n" if stream.readline(LONGEST_LINE).endswith(b"\r\n") else "\n"


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
                records: list[Record] = list(frame.iter_rows(named=True))
            yield Batch(records, start, frame=frame)


def _write_part(part: Part, out: IO[bytes], change: Change, first: int) -> int:
    """Write one part; returns the number of the row after its last."""
    with packed_for_writing(out, part.packing) as stream:
        if part.suffix == ".parquet":
            return _write_parquet(part, stream, change, first)
        writer = _Writer(stream, part.suffix, _newline(part))
        for batch in read_part(part):
            writer.write(batch, change, first)
            first += len(batch.records)
        writer.close()
    return first


def _write_parquet(part: Part, stream: IO[bytes], change: Change, first: int) -> int:
    """All rows, the added columns beside their own, without holding the file in memory."""
    with on_disk(part) as path, tempfile.NamedTemporaryFile(prefix="foreknow-", suffix=".parquet") as out:
        if path.stat().st_size == 0:
            return first
        scan = pl.scan_parquet(path, glob=False)
        count = int(scan.select(pl.len()).collect().item())
        beside = change.added.slice(first, count).lazy()
        pl.concat([scan, beside], how="horizontal").sink_parquet(out.name)
        shutil.copyfileobj(out, stream)
    return first + count


SAID = "model_answer"
"""The label that holds what a model said, which can be anything."""


class _Lines(NamedTuple):
    """What a csv.writer writes to: it hands over a line at a time."""

    write: Callable[[str], None]


class _Writer:
    """Writes batches as one format; Parquet rows are handed back, for its writer wants them all."""

    def __init__(self, out: IO[bytes], suffix: str, newline: str):
        self.out, self.suffix, self.newline = out, suffix, newline
        self.begun = False

    def write(self, batch: Batch, change: Change, first: int) -> pl.DataFrame | None:
        """Write a batch whose first row has the number `first`."""
        added, kept = change.of(first, len(batch.records))
        edits = [change.edit(record, first + n) if kept[n] else None for n, record in enumerate(batch.records)]
        if batch.frame is not None:
            return _edited(batch.frame, batch.records, edits).hstack(added).filter(pl.Series(kept, dtype=pl.Boolean))
        if batch.texts:
            texts = [text if new is None else object_text(new) for text, new in zip(batch.texts, edits, strict=True)]
            lines = zip(texts, added.iter_rows(named=True), kept, strict=True)
            self._objects([_splice(text, row) for text, row, keep in lines if keep])
        else:
            records = [record if new is None else new for record, new in zip(batch.records, edits, strict=True)]
            rows = zip(records, added.iter_rows(), kept, strict=True)
            header = [*batch.records[0], *added.columns]
            said = [name.endswith(SAID) for name in added.columns]
            self._cells(header, [[*record.values(), *_inert(labels, said)] for record, labels, keep in rows if keep])
        return None

    def close(self) -> None:
        """End the file."""
        if self.suffix == ".json":
            self.out.write(b"\n]\n" if self.begun else b"[]\n")

    def _objects(self, texts: list[str]) -> None:
        if not texts:
            return
        array = self.suffix == ".json"
        body = (",\n" if array else "\n").join(texts)
        head = "" if not array else ",\n" if self.begun else "[\n"
        self.out.write(f"{head}{body}{'' if array else chr(10)}".encode())
        self.begun = True

    def _cells(self, header: list[str], rows: list[list[object]]) -> None:
        lines: list[str] = []
        # this writer quotes no line break that its own line end does not hold
        writer = csv.writer(_Lines(lines.append), delimiter=_delimiter(self.suffix), lineterminator="\r\n")
        if not self.begun:
            writer.writerow(header)
        writer.writerows([_cell(value) for value in cells] for cells in rows)
        self.out.write("".join(line[:-2] + self.newline for line in lines).encode())
        self.begun = True


def _edited(frame: pl.DataFrame, records: Sequence[Record], edits: Sequence[Record | None]) -> pl.DataFrame:
    """The frame with the edited records in it; columns that no edit changes stay as they are."""
    pairs = [(old, old if new is None else new) for old, new in zip(records, edits, strict=True)]
    for name, dtype in frame.schema.items():
        if any(old[name] is not new[name] for old, new in pairs):
            frame = frame.with_columns(_typed(name, [new[name] for _, new in pairs], dtype))
    return frame


def _typed(name: str, values: list[object], dtype: pl.DataType) -> pl.Series:
    """Values as a column of this type, or of texts where it cannot hold them: a refusal among numbers."""
    try:
        return pl.Series(name, values, dtype=dtype)
    except (TypeError, pl.exceptions.PolarsError):
        pass
    if isinstance(dtype, pl.List | pl.Array):
        lists = [list(map(_text_or_null, value)) if isinstance(value, list) else None for value in values]
        return pl.Series(name, lists, dtype=pl.List(pl.String))
    return pl.Series(name, list(map(_text_or_null, values)), dtype=pl.String)


def _text_or_null(value: object) -> str | None:
    return None if value is None else cell_text(value)


def _splice(text: str, added: Record) -> str:
    """A JSON object's text with fields added before its closing brace; all that stood there stays."""
    extra = dumps(added)[1:-1]
    body = text[:-1].rstrip()
    comma = "" if body == "{" or not extra else ", "
    return f"{body}{comma}{extra}}}"


def _inert(labels: Sequence[object], said: Sequence[bool]) -> list[object]:
    """Labels in which no spreadsheet takes what a model said for a formula: an apostrophe stands before it.

    Numbers are left as they are, and so are the user's own cells.
    """
    return [inert(value) if words else value for value, words in zip(labels, said, strict=True)]


def _cell(value: object) -> object:
    """A value as a CSV cell: a list as JSON, null as an empty cell."""
    if isinstance(value, list | dict):
        return dumps(value)
    return str(value).lower() if isinstance(value, bool) else value
