"""Write a data file back in its own format with columns added: JSON objects keep their text, tables their cells."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import IO

import polars as pl

from foreknow.errors import InputError
from foreknow.io.arrow import ArrowKind, arrow_kind, write_arrow
from foreknow.io.batches import Record, RecordBatch
from foreknow.io.compression import compressed_writer
from foreknow.io.csv_dialect import default_dialect
from foreknow.io.csv_escape import escape_formula
from foreknow.io.csv_table import TableWriter
from foreknow.io.data_file import ARROW, DataFile, on_disk, suffixes
from foreknow.io.dataset_folders import sidecar
from foreknow.io.json_text import dumps, encodable
from foreknow.io.readers import read_part
from foreknow.io.sources import Source


@dataclass(frozen=True)
class Change:
    """How an output differs from its input. `added`: new columns, with a line for each record of the input.

    `selection`: for each record, whether it is written (None: all are). `edited`: a function from a record and its
    number to the record to write, or None to leave it unchanged.
    """

    added: pl.DataFrame
    selection: pl.Series | None = None
    edited: Callable[[Record, int], Record | None] | None = None

    def of(self, first: int, count: int) -> tuple[pl.DataFrame, list[bool]]:
        """The added columns of `count` rows from `first`, and which of these rows are written."""
        selection = [True] * count if self.selection is None else self.selection.slice(first, count).to_list()
        return self.added.slice(first, count), selection

    def edit(self, record: Record, row: int) -> Record | None:
        """The record to write instead of this one, or None to keep it."""
        return None if self.edited is None else self.edited(record, row)


def write_parts(source: Source, change: Change, path: Path) -> None:
    """Write every row of every part under `path`: one file, a folder of files, or a zip of them, as it was."""
    first = 0
    schemas: dict[str, pl.Schema | None] = {}
    if source.kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part, name in zip(source.parts, _archive_names(source.parts), strict=True):
                with archive.open(_zip_info(name), "w", force_zip64=True) as out:
                    first, schemas[_folder_of(part.name)] = _write_part(part, out, change, first)
            for name, content in source.sidecars:
                archive.writestr(_zip_info(name), sidecar(name, content(), schemas.get(_folder_of(name))))
        return
    for part in source.parts:
        target = path / part.name if source.kind == "folder" else path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            first, schemas[_folder_of(part.name)] = _write_part(part, out, change, first)
    for name, content in source.sidecars:
        (path / name).write_bytes(sidecar(name, content(), schemas.get(_folder_of(name))))


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _zip_info(name: str) -> zipfile.ZipInfo:
    """Metadata of an archive member, with a fixed date so that equal content gives equal bytes."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _archive_names(parts: Sequence[DataFile]) -> list[str]:
    """Names for the parts in an archive. None of them leads out of the folder into which it is unpacked.

    The names sort in the order of the parts; if they would not, each part goes into a numbered folder.
    """
    names: list[str] = []
    for part in parts:
        pieces = [re.sub(r"[:\\]", "_", piece) for piece in part.name.split("/") if piece not in ("", ".")]
        names.append("/".join("__" if piece == ".." else piece for piece in pieces))
    if names != sorted(set(names)):
        width = len(str(len(names)))
        return [f"{number:0{width}}/{name}" for number, name in enumerate(names)]
    return names


def write_joined(parts: Sequence[DataFile], change: Change, path: Path, name: str) -> None:
    """Write the kept rows of all parts into one file, `path`, which is to be called `name`.

    Its suffix says the format, which must be that of the parts: JSON and JSONL are one format, as are CSV and
    TSV, Parquet and Arrow. JSON that wraps its rows is written as an array of them, or a row a line. Raises
    InputError where formats differ.
    """
    suffix, packing = suffixes(name)
    for part in parts:
        if _family(part.suffix) != _family(suffix):
            raise InputError(f"{name}: expected a name that ends in {part.suffix}, the format of {part.name}.")
    first = 0
    frames = []
    with path.open("wb") as out, compressed_writer(out, packing) as stream:
        same = parts[0].suffix == suffix
        tables = TableWriter(stream, name, suffix, part_of=True, dialect=None if same else default_dialect(suffix))
        writer = _Writer(stream, suffix, tables, whole=False)
        for part in parts:
            for batch in read_part(part):
                frames.append(writer.write(part, batch, change, first))
                first += len(batch.records)
        writer.close()
        if suffix == ".parquet" or suffix in ARROW:
            frame = pl.concat([frame for frame in frames if frame is not None], how="diagonal_relaxed")
            if suffix == ".parquet":
                frame.write_parquet(stream)
            else:
                write_arrow(frame, stream, _arrow_kind(parts[0]))


def _family(suffix: str) -> str:
    known = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "table", ".tsv": "table"}
    return "frame" if suffix == ".parquet" or suffix in ARROW else known.get(suffix, suffix)


def _arrow_kind(part: DataFile) -> ArrowKind:
    """Whether to write an Arrow file or stream: the kind of the part, or a stream (as `datasets`) for other formats."""
    if part.suffix not in ARROW:
        return "stream"
    with part.open() as stream:
        return arrow_kind(stream.read(8))


def object_text(record: Record) -> str:
    """A record as JSON text."""
    return dumps(record)


def cell_text(value: object) -> str:
    """A value as text that UTF-8 can encode: a text unchanged, any other value as JSON."""
    return encodable(value) if isinstance(value, str) else dumps(value)


def _write_part(part: DataFile, out: IO[bytes], change: Change, first: int) -> tuple[int, pl.Schema | None]:
    """Write one part; return the number of the row after its last, and the schema if it is an Arrow file."""
    with compressed_writer(out, part.packing) as stream:
        if part.suffix == ".parquet":
            return _write_parquet(part, stream, change, first), None
        writer = _Writer(stream, part.suffix, TableWriter(stream, part.where, part.suffix), whole=True)
        frames = []
        for batch in read_part(part):
            frames.append(writer.write(part, batch, change, first))
            first += len(batch.records)
        writer.close()
        if part.suffix not in ARROW:
            return first, None
        frame = pl.concat([frame for frame in frames if frame is not None]) if frames else pl.DataFrame()
        if frames:
            write_arrow(frame, stream, _arrow_kind(part))
    return first, frame.schema


def _write_parquet(part: DataFile, stream: IO[bytes], change: Change, first: int) -> int:
    """Write all rows with the added columns, without holding the file in memory."""
    with on_disk(part) as path, tempfile.NamedTemporaryFile(prefix="foreknow-", suffix=".parquet") as out:
        if path.stat().st_size == 0:
            return first
        scan = pl.scan_parquet(path, glob=False)
        count = int(scan.select(pl.len()).collect().item())
        beside = change.added.slice(first, count).lazy()
        pl.concat([scan, beside], how="horizontal").sink_parquet(out.name)
        shutil.copyfileobj(out, stream)
    return first + count


ANSWER_SUFFIX = "model_answer"
"""The column of a model's answer, which can be any text."""


class _Writer:
    """Writes batches in one format. Rows of Parquet and Arrow are returned instead, as their writers need all rows.

    `whole`: every row is written, and what stands around the rows of a JSON text is written too.
    """

    def __init__(self, out: IO[bytes], suffix: str, tables: TableWriter, *, whole: bool):
        self.out, self.suffix, self.tables, self.whole = out, suffix, tables, whole
        self.begun = self.wrapped = False
        self.json_table: tuple[Callable[[Sequence[Record]], str], list[Record]] | None = None

    def write(self, part: DataFile, batch: RecordBatch, change: Change, first: int) -> pl.DataFrame | None:
        """Write a batch of a part, whose first record has the number `first`."""
        added, selection = change.of(first, len(batch.records))
        edits = [change.edit(record, first + n) if selection[n] else None for n, record in enumerate(batch.records)]
        if batch.frame is not None:
            return (
                _with_edits(batch.frame, batch.records, edits)
                .hstack(added)
                .filter(pl.Series(selection, dtype=pl.Boolean))
            )
        if batch.table is not None:
            rows = [
                (text, record) if new is None else ("", new)
                for text, record, new in zip(batch.texts, batch.records, edits, strict=True)
            ]
            if more := {key for new in edits if new is not None for key in new if key not in batch.records[0]}:
                raise InputError(
                    f"{part.where}: a table has no room for the marks of single turns ({', '.join(sorted(more))}); "
                    "save the input as .jsonl, and audit that"
                )
            texts = [name for name in added.columns if name.endswith(ANSWER_SUFFIX)]
            escaped = {name: [escape_formula(value) for value in added[name].to_list()] for name in texts}
            columns = {
                name: list(compress(escaped.get(name, added[name].to_list()), selection)) for name in added.columns
            }
            self.tables.write(batch.table, list(compress(rows, selection)), columns)
        elif self.whole and batch.json_table is not None:
            self.json_table = self.json_table or (batch.json_table, [])
            self.json_table[1].extend(added.iter_rows(named=True))
        elif self.whole and (batch.gaps or batch.tail):
            self.wrapped = True
            labels = added.iter_rows(named=True)
            pieces = [gap + _splice(text, row) for gap, text, row in zip(batch.gaps, batch.texts, labels, strict=True)]
            self.out.write(("".join(pieces) + batch.tail).encode("utf-8", "backslashreplace"))
        else:
            record_texts = (
                batch.texts if batch.texts and not batch.around else [object_text(record) for record in batch.records]
            )
            texts = [text if new is None else object_text(new) for text, new in zip(record_texts, edits, strict=True)]
            lines = zip(texts, added.iter_rows(named=True), selection, strict=True)
            self._objects([_splice(text, row) for text, row, keep in lines if keep])
        return None

    def close(self) -> None:
        """Write the end of the file."""
        self.tables.close()
        if self.json_table is not None:
            self.out.write(self.json_table[0](self.json_table[1]).encode("utf-8", "backslashreplace"))
        elif self.suffix == ".json" and not self.wrapped:
            self.out.write(b"\n]\n" if self.begun else b"[]\n")

    def _objects(self, texts: list[str]) -> None:
        if not texts:
            return
        array = self.suffix == ".json"
        body = (",\n" if array else "\n").join(texts)
        head = "" if not array else ",\n" if self.begun else "[\n"
        self.out.write(f"{head}{body}{'' if array else chr(10)}".encode())
        self.begun = True


def _with_edits(frame: pl.DataFrame, records: Sequence[Record], edits: Sequence[Record | None]) -> pl.DataFrame:
    """The frame with the edited records; columns that no edit changes keep their values and types."""
    pairs = [(old, old if new is None else new) for old, new in zip(records, edits, strict=True)]
    for name in dict.fromkeys(key for _, new in pairs for key in new if key not in frame.schema):
        frame = frame.with_columns(pl.Series(name, [new.get(name) for _, new in pairs]))
    for name, dtype in frame.schema.items():
        if any(name not in old for old, _ in pairs):
            continue
        if any(old[name] is not new[name] for old, new in pairs):
            frame = frame.with_columns(_typed_column(name, [new[name] for _, new in pairs], dtype))
    return frame


def _typed_column(name: str, values: list[object], dtype: pl.DataType) -> pl.Series:
    """Values as a column of this type, or of texts where it cannot hold them: a refusal among numbers.

    A list of objects that have got new keys gets their fields.
    """
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        known = {field.name for field in dtype.inner.fields}
        turns = [turn for value in values if isinstance(value, list) for turn in value if isinstance(turn, dict)]
        new = {key: turn[key] for turn in turns for key in turn if key not in known}
        more = [pl.Field(key, pl.Series([sample]).dtype) for key, sample in new.items()]
        dtype = pl.List(pl.Struct([*dtype.inner.fields, *more])) if more else dtype
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
    """Add fields before the closing brace of a JSON object's text; the rest of the text is unchanged."""
    extra = dumps(added)[1:-1]
    body = text[:-1].rstrip()
    comma = "" if body == "{" or not extra else ", "
    return f"{body}{comma}{extra}}}"
