"""Read JSON and JSON lines into batches of records, each with its exact text and first line number.

JSON lines are streamed. Any other JSON is held in memory while it is read (`json_shapes.py` finds its rows). A list of
turns is a record too: it is read, and written back, as `{"messages": [...]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO

from foreknow.errors import InputError
from foreknow.io import batches
from foreknow.io.batches import BATCH, Record, RecordBatch
from foreknow.io.data_file import DataFile
from foreknow.io.encodings import not_utf8
from foreknow.io.json_shapes import (
    TABLES,
    JsonShape,
    decode,
    is_turns,
    pieces,
    shape_of,
    skip,
    table_records,
    table_text,
)
from foreknow.io.json_text import TooDeep, loads
from foreknow.io.quoting import quoted


def _json_kind(value: object) -> str:
    """The type of a JSON value, in words for the user."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _to_batches(part: DataFile, pieces: Iterable[tuple[int, str, object]]) -> Iterator[RecordBatch]:
    """Group (line, text, value) triples into batches. Raises InputError unless each is an object or a list of turns."""
    records: list[Record] = []
    lines: list[int] = []
    texts: list[str] = []
    size = 0
    for line, text, value in pieces:
        if is_turns(value):
            text, value = _turns_as_record(text, value)  # noqa: PLW2901
        if not isinstance(value, dict):
            raise InputError(
                f"{part.where}:{line}: found {_json_kind(value)}, expected an object such as "
                '{"question": "...", "answer": "..."}.'
            )
        records.append(value)
        lines.append(line)
        texts.append(text)
        size += len(text)
        if len(records) == BATCH or size >= batches.LARGEST_BATCH:
            yield RecordBatch(records, lines=lines, texts=texts)
            records, lines, texts, size = [], [], [], 0
    if records:
        yield RecordBatch(records, lines=lines, texts=texts)


def _turns_as_record(text: str, turns: object) -> tuple[str, dict[str, object]]:
    """Wrap a list of turns in an object, to which labels can be added."""
    return f'{{"messages": {text}}}', {"messages": turns}


def read_json(part: DataFile) -> Iterator[RecordBatch]:
    """Yield the records of a JSON or JSON lines file in order. Raises InputError, naming the line."""
    with part.open() as stream:
        if part.suffix != ".json":
            yield from _to_batches(part, _line_pieces(part, stream))
            return
        raw = stream.read(batches.LONGEST_ARRAY + 1)
    if len(raw) > batches.LONGEST_ARRAY:
        raise InputError(
            f"{part.where}: longer than {batches.LONGEST_ARRAY >> 20} MiB unpacked, which is too much for one JSON "
            "array. Write one object a line, as .jsonl."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise not_utf8(part, batches.LONGEST_LINE) from None
    del raw
    start = skip(text, 0)
    if text[start : start + 1] == "{":
        yield from _object_batches(part, text, start)
    else:
        yield from _to_batches(part, _array_pieces(part.where, text))


def _object_batches(part: DataFile, text: str, start: int) -> Iterator[RecordBatch]:
    """Yield the rows of a JSON object, or of several concatenated objects."""
    value, end = _decode(part.where, text, start)
    rest = skip(text, end)
    if rest < len(text):
        yield from _batches_with_gaps(
            part, text, _stream_pieces(part.where, text, start), "objects one behind the other"
        )
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
        rows = ((piece.start, piece.end, piece.value, piece.around) for piece in pieces(text, start, shape))
        yield from _batches_with_gaps(part, text, rows, shape.reason)
    except TooDeep as error:
        raise InputError(f"{part.where}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{part.where}: {error}.") from error


def _table_batches(part: DataFile, value: Mapping[str, object], shape: JsonShape) -> Iterator[RecordBatch]:
    try:
        records: list[Record] = [*table_records(value, shape)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{part.where}: {shape.reason}, which cannot be read ({error}).") from error

    def write(added: Sequence[Record]) -> str:
        return table_text(value, shape, added)

    for at in range(0, max(len(records), 1), BATCH):
        yield RecordBatch(records[at : at + BATCH], at, json_table=write, note=shape.reason)


def _stream_pieces(where: str, text: str, at: int) -> Iterator[tuple[int, int, object, Mapping[str, object]]]:
    while at < len(text):
        value, end = _decode(where, text, at)
        yield at, end, value, {}
        at = skip(text, end)


def _decode(where: str, text: str, at: int) -> tuple[object, int]:
    try:
        return decode(text, at)
    except json.JSONDecodeError as error:
        raise _json_error(where, error.lineno, error, text) from error
    except (RecursionError, TooDeep) as error:
        raise InputError(f"{where}:{_line_of(text, at)}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{where}:{_line_of(text, at)}: not readable as JSON ({error}).") from error


def _line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _batches_with_gaps(
    part: DataFile, text: str, rows: Iterable[tuple[int, int, object, Mapping[str, object]]], note: str
) -> Iterator[RecordBatch]:
    """Group a text's rows (start, end, value, fields around) into batches that also hold the text between them."""
    batch, end, line, counted, first = RecordBatch([], texts=[], lines=[], gaps=[], note=note), 0, 1, 0, 0
    for start, stop, value, around in rows:
        line, counted = line + text.count("\n", counted, start), start
        row_text = text[start:stop]
        if is_turns(value):
            row_text, value = _turns_as_record(row_text, value)  # noqa: PLW2901
        if not isinstance(value, dict):
            raise InputError(f"{part.where}:{line}: found {_json_kind(value)}, expected an object, which is a row.")
        if len(batch.records) == BATCH:
            yield batch
            first += BATCH
            batch = RecordBatch([], first, texts=[], lines=[], gaps=[])
        batch.records.append({**around, **value})
        batch.texts.append(row_text)  # type: ignore[attr-defined]
        batch.lines.append(line)  # type: ignore[attr-defined]
        batch.gaps.append(text[end:start])  # type: ignore[attr-defined]
        batch = batch._replace(around=batch.around or bool(around))
        end = stop
    yield batch._replace(tail=text[end:])


def _line_pieces(part: DataFile, stream: IO[bytes]) -> Iterator[tuple[int, str, object]]:
    """Yield (line, text, value) of every line that is not blank. Only "\\n" ends a line: JSON may hold U+2028."""
    for number, line in enumerate(iter(lambda: stream.readline(batches.LONGEST_LINE), b""), start=1):
        if len(line) == batches.LONGEST_LINE:
            raise _line_too_long(part, number)
        try:
            piece = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
        except UnicodeDecodeError:
            raise not_utf8(part, batches.LONGEST_LINE) from None
        if not piece:
            continue
        try:
            value = _load_line(part.where, piece, number)
        except InputError as error:
            raise InputError(f"{error}{_more_broken_lines(stream, number)}") from error
        yield number, piece, value


def _more_broken_lines(stream: IO[bytes], line: int, named: int = 5, most: int = 1_000_000) -> str:
    """Return a sentence that counts the broken lines after a first one, of the next `most`, and names some of them."""
    broken = []
    rest = islice(iter(lambda: stream.readline(batches.LONGEST_LINE), b""), most)
    for number, raw in enumerate(rest, start=line + 1):
        try:
            if text := raw.decode("utf-8").strip(" \t\r\n"):
                loads(text)
        except ValueError:
            broken.append(number)
    if not broken:
        return ""
    lines = ", ".join(map(str, broken[:named])) + (" and on" if len(broken) > named else "")
    return f" {len(broken):,} more line{'s' if len(broken) > 1 else ''} cannot be read as JSON: {lines}."


def _line_too_long(part: DataFile, line: int) -> InputError:
    return InputError(f"{part.where}:{line}: longer than {batches.LONGEST_LINE >> 20} MiB, expected one row a line.")


def _load_line(name: str, piece: str, line: int) -> object:
    try:
        return loads(piece)
    except json.JSONDecodeError as error:
        raise _json_error(name, line, error, piece) from error
    except TooDeep as error:
        raise InputError(f"{name}:{line}: nested too deeply to be read as JSON.") from error
    except ValueError as error:
        raise InputError(f"{name}:{line}: not readable as JSON ({error}).") from error


def _array_pieces(name: str, text: str) -> Iterator[tuple[int, str, object]]:
    """Yield (line, text, value) of every element of a JSON array, with the text unchanged."""
    at, line, counted = skip(text, 0), 1, 0
    if at == len(text):
        return
    if text[at] != "[":
        head = text[at:].split("\n", maxsplit=1)[0][:60]
        value = _load_line(name, text.strip(" \t\r\n"), 1) if not re.match(r"\w+[,\t;]", head) else None
        table = " If it is a table, name it .csv." if value is None else ""
        raise InputError(
            f"{name}: found {_json_kind(value) if value is not None else quoted(head)}, expected an array of objects: "
            f"[{{...}}, {{...}}]. One object a line goes into a .jsonl file.{table}"
        )
    at = skip(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, end = _decode(name, text, at)
        yield line, text[at:end], value
        at = skip(text, end)
        if text[at : at + 1] == ",":
            at = skip(text, at + 1)
        elif text[at : at + 1] != "]":
            fault = json.JSONDecodeError("Expecting ',' or ']' after an element", text, at)
            raise _json_error(name, fault.lineno, fault, text)
    if skip(text, at + 1) != len(text):
        fault = json.JSONDecodeError("Extra data after the array", text, skip(text, at + 1))
        raise _json_error(name, fault.lineno, fault, text)


def _json_error(name: str, line: int, error: json.JSONDecodeError, text: str) -> InputError:
    next_text = text[error.pos : error.pos + 30].split("\n", maxsplit=1)[0]
    found_text = f"found {next_text!r}" if next_text else "the text ends"
    return InputError(
        f"{name}:{line}: broken JSON at column {error.colno}: {error.msg}; {found_text}.{_json_hint(text, error.pos)}"
    )


def _json_hint(text: str, at: int) -> str:
    """What to do if the text is not JSON but Python, JSON5 or a table."""
    before, near = text[max(0, at - 40) : at].rstrip(), text[at : at + 8]
    if near[:1] in ("}", "]") and (before.endswith(",") or text[at - 1 : at] == ","):
        return " JSON allows no comma before a closing bracket: take it away."
    if near[:1] == "'" or near.startswith(("None", "True", "False")):
        return " This is how Python prints a value: write rows with json.dumps."
    if near.startswith(("//", "/*", "#")):
        return " JSON allows no comments: take them away."
    return " JSON allows no key without quotes." if before.endswith(("{", ",")) and near[:1].isalpha() else ""
