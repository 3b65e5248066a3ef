"""File formats: a data file -> records, and the same file written back with columns added.

What was read is kept as it stands (JSON objects as their text, tables as frames), so that the annotated
file holds every original row in order with its fields untouched.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from foreknow.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
Record = Mapping[str, object]


@dataclass(frozen=True)
class Source:
    """A file as it was read: JSON objects as `texts`, a table as `frame`; `lines` are 1-based."""

    path: Path
    suffix: str
    columns: tuple[str, ...]
    texts: tuple[str, ...] = ()
    frame: pl.DataFrame | None = None
    lines: tuple[int, ...] = ()
    newline: str = "\n"

    def where(self, row: int) -> str:
        """`file:line` of a row where the format has lines, else `file: row N`, counted from 0."""
        return f"{self.path}:{self.lines[row]}" if self.lines else f"{self.path}: row {row}"


def read_source(path: Path) -> tuple[Source, list[Record]]:
    """Read a data file by its suffix; everything that cannot be read is an InputError."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file ({' '.join(SUFFIXES)}).")
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path, or quote it if it has spaces.")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown suffix {suffix!r}, expected one of {' '.join(SUFFIXES)}.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if suffix == ".parquet":
        source, records = _read_parquet(path, raw)
    elif suffix in (".csv", ".tsv"):
        source, records = _read_table(path, suffix, _decode(path, raw))
    else:
        source, records = _read_json(path, suffix, _decode(path, raw))
    if not records:
        raise InputError(f"{path} is empty: found no rows, expected at least one.")
    return source, records


def write_source(source: Source, added: pl.DataFrame, path: Path) -> None:
    """Write the file back with the columns of `added` (one row per original row) at the end of every row."""
    if source.suffix == ".parquet" and source.frame is not None:
        out = io.BytesIO()
        source.frame.hstack(added).write_parquet(out)
        content = out.getvalue()
    elif source.frame is not None:
        content = _table_bytes(source, source.frame, added)
    else:
        texts = [_splice(text, row) for text, row in zip(source.texts, added.iter_rows(named=True), strict=True)]
        body = "[\n" + ",\n".join(texts) + "\n]" if source.suffix == ".json" else "\n".join(texts)
        content = f"{body}\n".encode()
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def object_texts(records: Sequence[Record]) -> tuple[str, ...]:
    """Records as JSON texts, for a source that was never a file."""
    return tuple(json.dumps(record, ensure_ascii=False) for record in records)


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bom = len(raw) - len(raw.removeprefix(b"\xef\xbb\xbf"))
        at = error.start + bom
        line = raw.count(b"\n", 0, at) + 1
        column = at - raw.rfind(b"\n", 0, at)
        raise InputError(
            f"{path}:{line}: not UTF-8: found byte 0x{raw[at]:02x} at byte {column} of the line. "
            "Save the file as UTF-8."
        ) from error


def _read_json(path: Path, suffix: str, text: str) -> tuple[Source, list[Record]]:
    pieces = _array_pieces(path, text) if suffix == ".json" else _line_pieces(path, text)
    for line, _, value in pieces:
        if not isinstance(value, dict):
            raise InputError(
                f"{path}:{line}: found {json_kind(value)}, expected an object such as "
                '{"question": "...", "answer": "..."}.'
            )
    records: list[Record] = [value for _, _, value in pieces if isinstance(value, dict)]
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    source = Source(
        path,
        suffix,
        columns,
        texts=tuple(piece[1] for piece in pieces),
        lines=tuple(piece[0] for piece in pieces),
    )
    return source, records


def _line_pieces(path: Path, text: str) -> list[tuple[int, str, object]]:
    """(line, text, value) of every line that is not blank. Only "\\n" ends a line: JSON may hold U+2028."""
    pieces = []
    for number, line in enumerate(text.split("\n"), start=1):
        piece = line.strip(" \t\r")
        if piece:
            pieces.append((number, piece, _loads(path, piece, number)))
    return pieces


def _loads(path: Path, piece: str, line: int) -> object:
    try:
        return json.loads(piece)
    except json.JSONDecodeError as error:
        raise _broken(path, line, error, piece) from error
    except RecursionError as error:
        raise InputError(f"{path}:{line}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{path}:{line}: not readable as JSON ({error}).") from error


def _array_pieces(path: Path, text: str) -> list[tuple[int, str, object]]:
    """(line, text, value) of every element of a JSON array, the text exactly as it stands in the file."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        match = space.match(text, at)
        return match.end() if match else at

    at, line, counted = skip(0), 1, 0
    pieces: list[tuple[int, str, object]] = []
    if at == len(text):
        return pieces
    if text[at] != "[":
        value = _loads(path, text.strip(" \t\r\n"), 1)
        raise InputError(
            f"{path}: found {json_kind(value)}, expected an array of objects: [{{...}}, {{...}}]. "
            "One object a line goes into a .jsonl file."
        )
    at = skip(at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, error, text) from error
        except RecursionError as error:
            raise InputError(f"{path}:{line}: nested too deeply to be read as JSON.") from error
        except ValueError as error:
            raise InputError(f"{path}:{line}: not readable as JSON ({error}).") from error
        pieces.append((line, text[at:end], value))
        at = skip(end)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            fault = json.JSONDecodeError("Expecting ',' or ']' after an element", text, at)
            raise _broken(path, fault.lineno, fault, text)
    if skip(at + 1) != len(text):
        fault = json.JSONDecodeError("Extra data after the array", text, skip(at + 1))
        raise _broken(path, fault.lineno, fault, text)
    return pieces


def _broken(path: Path, line: int, error: json.JSONDecodeError, text: str) -> InputError:
    near = text[error.pos : error.pos + 30].split("\n", maxsplit=1)[0]
    found = f"found {near!r}" if near else "the text ends"
    return InputError(f"{path}:{line}: broken JSON at column {error.colno}: {error.msg}; {found}.")


def json_kind(value: object) -> str:
    """What a JSON value is, in the words of a user."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _splice(text: str, added: Record) -> str:
    """A JSON object's text with fields added before its closing brace; all that stood there stays."""
    extra = json.dumps(added, ensure_ascii=False)[1:-1]
    body = text[:-1].rstrip()
    comma = "" if body == "{" or not extra else ", "
    return f"{body}{comma}{extra}}}"


def _read_table(path: Path, suffix: str, text: str) -> tuple[Source, list[Record]]:
    """CSV or TSV with every cell as text, exactly as it stands."""
    limit = csv.field_size_limit(max(len(text), 131_072) + 1)  # the module's own limit is 128 KiB a cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(suffix), strict=True)
    rows, lines, begins = [], [], 1
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
                lines.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{begins}: broken {suffix[1:].upper()} row: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    header = rows[0] if rows else []
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"{path}:1: the column {twice!r} stands in the header twice. Rename one of them.")
    for cells, line in zip(rows, lines, strict=True):
        if len(cells) != len(header):
            raise InputError(
                f"{path}:{line}: found {len(cells)} cells, expected {len(header)} as in the header. "
                "Quote cells that hold the separator."
            )
    frame = pl.DataFrame(rows[1:], schema=dict.fromkeys(header, pl.String), orient="row")
    newline = "\r\n" if "\r\n" in text[: text.find("\n") + 1] else "\n"
    source = Source(path, suffix, tuple(header), frame=frame, lines=tuple(lines[1:]), newline=newline)
    return source, [dict(zip(header, cells, strict=True)) for cells in rows[1:]]


def _delimiter(suffix: str) -> str:
    return "\t" if suffix == ".tsv" else ","


def _table_bytes(source: Source, frame: pl.DataFrame, added: pl.DataFrame) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=_delimiter(source.suffix), lineterminator=source.newline)
    writer.writerow([*frame.columns, *added.columns])
    for cells, labels in zip(frame.iter_rows(), added.iter_rows(), strict=True):
        writer.writerow([*cells, *map(_cell, labels)])
    return out.getvalue().encode()


def _cell(value: object) -> object:
    """A value as a CSV cell: a list as JSON, null as an empty cell."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else value


def _read_parquet(path: Path, raw: bytes) -> tuple[Source, list[Record]]:
    if not raw:
        raise InputError(f"{path} is empty: found no rows, expected at least one.")
    try:
        frame = pl.read_parquet(io.BytesIO(raw))
    except pl.exceptions.PolarsError as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise InputError(f"{path}: not a readable Parquet file ({first}).") from error
    records: list[Record] = list(frame.iter_rows(named=True))
    return Source(path, ".parquet", tuple(frame.columns), frame=frame), records
