"""JSON that is not an array of rows: one object that wraps its rows, a table by columns, or concatenated objects.

    wrapped     {"data": [{...}, {...}]}, at any depth; the rows may be lists of turns
    splits      {"train": [{...}], "test": [{...}]}: the keys become the rows' `split`
    server      {"rows": [{"row": {...}}]}, as the data sets server of the hub replies
    squad       {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}, SQuAD's own file
    by-id       {"id1": {...}, "id2": {...}}, pandas' orient="index" too
    columns     {"question": [...], "answer": [...]}, pandas' orient="list"
    by-column   {"question": {"0": ...}, "answer": {"0": ...}}, pandas' own default
    split-table {"columns": [...], "data": [[...], ...]}, pandas' orient="split"
    row         one row

Rows and the text around them keep their exact text; tables are written anew. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from foreknow.io.json_text import check_depth, dumps, loads

Json = Any
TABLES: Final = ("columns", "by-column", "split-table")
"""Shapes in which the values of a row are in several places of the text."""
_WRAPPERS: Final = frozenset(
    {
        *("data", "rows", "records", "items", "examples", "instances", "entries", "samples", "dataset", "results"),
        *("list", "questions", "qa", "qas", "qa_pairs", "pairs", "question_answers", "documents", "dialogs"),
        *("dialogues", "chats", "train_data", "test_data"),
    }
)
_ASK_KEYS: Final = frozenset(
    {
        *("question", "questions", "query", "prompt", "prompts", "input", "inputs", "instruction", "text", "messages"),
        *("user", "human", "subject", "q", "question_text", "problem"),
    }
)
_ROW_KEYS: Final = _ASK_KEYS - {"questions", "prompts"} | frozenset(
    {
        *("conversations", "conversation", "dialog", "dialogue", "chat", "turns", "answer", "answers", "output"),
        *("response", "responses", "completion", "completions", "target", "chosen", "rejected", "relation", "object"),
        *("assistant", "bot", "a", "choices", "facts", "annotations"),
    }
)
"""Keys of rows: an object with one of them is a row and does not wrap rows."""
_CHAT_KEYS: Final = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
_META: Final = frozenset(
    ["features", "columns", "index", "schema", "splits", "licenses", "license", "metadata", "info"]
)
_SPLIT = re.compile(r"(train|dev|validation|valid|val|test|eval)(?![a-z])", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonShape(NamedTuple):
    """What an object is: its name, the keys of its rows, and why it is not read where it is `unknown`.

    `above`: the keys that lead to the object of that shape, where it stands in others.
    """

    name: str
    keys: tuple[str, ...] = ()
    fault: str = ""
    above: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The shape in words, for the user; empty for a single row."""
        under = ".".join((*self.above, *(self.keys if self.name == "wrapped" else ())))
        return {
            "wrapped": f"the rows stand under {under!r}",
            "splits": "a list of rows for each split",
            "server": "rows of the data sets server",
            "squad": "SQuAD's own file, a row a question",
            "by-id": f"an object of rows by their ids{f' under {under!r}' if under else ''}",
            "columns": "a table by columns",
            "by-column": "a table by columns and rows",
            "split-table": "a table of columns and data",
        }.get(self.name, "")


class Piece(NamedTuple):
    """A row in a JSON text: its offsets, its value, and the fields that objects around it add to it."""

    start: int
    end: int
    value: Json
    around: Mapping[str, Json] = {}


def is_turns(value: Json) -> bool:
    """Whether a value is a list of turns, each with its speaker."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and isinstance(turn.get("role", turn.get("from")), str) for turn in value)


def wraps(value: Json) -> bool:
    """Whether the only line of a JSONL file is certainly an object that wraps rows, and not a row."""
    if not isinstance(value, dict):
        return False
    shape = shape_of(value)
    if shape.name == "columns":
        return any(key.lower() in _ASK_KEYS for key in value)
    known = shape.keys and (shape.keys[-1].lower() in _WRAPPERS or _SPLIT.match(shape.keys[-1]))
    return shape.name in ("splits", "server", "squad", "split-table") or (shape.name == "wrapped" and bool(known))


def shape_of(value: Mapping[str, Json]) -> JsonShape:
    """The shape of one JSON object."""
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and inner}
    rows = {key: inner for key, inner in lists.items() if _wraps_rows(key, inner)}
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return JsonShape("split-table", ("data",))
    if _is_table(value):
        return JsonShape("columns")
    if "data" in rows and any("paragraphs" in row for row in rows["data"] if isinstance(row, dict)):
        return JsonShape("squad", ("data",))
    if "rows" in rows and all(isinstance(row, dict) and isinstance(row.get("row"), dict) for row in rows["rows"]):
        return JsonShape("server", ("rows",))
    objects = all(isinstance(inner, dict) for inner in value.values())
    if not objects and any(key.lower() in _ROW_KEYS for key in value if key not in rows):
        return JsonShape("row")
    if rows and all(map(_SPLIT.match, rows)):
        others = [key for key, inner in value.items() if key not in rows and _SPLIT.match(key) and inner]
        if others:  # without them, their rows would be lost silently
            first = next(iter(rows))
            return JsonShape("unknown", (), f"the split {others[0]!r} holds no rows such as those of {first!r}")
        return JsonShape("splits", tuple(rows))
    known = [key for key in rows if key.lower() in _WRAPPERS or _SPLIT.match(key)]
    if len(known) == 1 or len(rows) == 1:
        return JsonShape("wrapped", (*known, *rows)[:1])
    if rows:
        return JsonShape("unknown", (), f"it holds several, under {', '.join(map(repr, list(rows)[:6]))}")
    if value and all(isinstance(inner, list) and not is_turns(inner) for inner in value.values()):
        return JsonShape("unknown", (), "it holds no rows")
    return _shape_of_objects(value)


def _wraps_rows(key: str, listed: Sequence[Json]) -> bool:
    """Whether a list under this key may be a file's rows: objects under a name that no row has, or whole chats."""
    if key.lower() in _META:
        return False
    if all(is_turns(row.get("messages") if isinstance(row, dict) else row) for row in listed):
        return True
    return key.lower() not in _ROW_KEYS and _holds_rows(listed)


def _shape_of_objects(value: Mapping[str, Json]) -> JsonShape:
    inner = {key: each for key, each in value.items() if isinstance(each, dict) and each}
    if not inner:
        chats = [key for key, each in value.items() if is_turns(each)]
        return JsonShape("by-id") if chats and len(chats) == len(value) else JsonShape("row")
    if len(inner) == len(value):
        if all(map(_SPLIT.match, inner)) and len(inner) > 1:
            return JsonShape("unknown", (), f"it holds an object for each of the splits {', '.join(map(repr, inner))}")
        first = set(next(iter(inner.values())))
        same = all(set(each) == first for each in inner.values())
        scalars = not any(isinstance(cell, dict) for each in inner.values() for cell in each.values())
        named = any(key.lower() in _ROW_KEYS for key in inner)
        if same and len(inner) > 1 and scalars and (named or all(key.isdecimal() for key in first)):
            return JsonShape("by-column")
        if not named and len(set.intersection(*map(set, inner.values()))) > 0 and (len(inner) > 1 or _is_row(inner)):
            return JsonShape("by-id")
    if len(inner) == 1 and not any(key.lower() in _ROW_KEYS for key in inner):
        key, only = next(iter(inner.items()))
        shape = shape_of(only)
        if shape.name not in ("row", "unknown"):
            return shape._replace(above=(key, *shape.above))
    return JsonShape("row")


def _is_row(inner: Mapping[str, Mapping[str, Json]]) -> bool:
    return all(any(key.lower() in _ROW_KEYS for key in each) for each in inner.values())


def _is_table(value: Mapping[str, Json]) -> bool:
    """Whether all values are lists of the same length, and none holds rows or turns."""
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if len(lists) < 2 or len(lists) != len(value) or len({len(inner) for inner in lists}) > 1 or not lists[0]:
        return False
    if any(isinstance(turn, int) for turn in value.get("labelled_turns") or ()):
        return False  # the other lists are labels of one row
    chats = [inner for key, inner in value.items() if key.lower() in _CHAT_KEYS]
    one_chat = any(not all(isinstance(each, list) for each in inner) for inner in chats)
    return not one_chat and not any(map(is_turns, lists)) and not all(map(_holds_rows, lists))


def _holds_rows(listed: Sequence[Json]) -> bool:
    objects = all(isinstance(row, dict) for row in listed) and not is_turns(listed)
    return objects or all(map(is_turns, listed))


def pieces(text: str, start: int, shape: JsonShape) -> Iterator[Piece]:
    """The rows of the object that begins at `start`, in order, for every shape that is no table."""
    if shape.name == "row":
        value, end = decode(text, start)
        yield Piece(start, end, value)
        return
    at = start
    for key in shape.above:
        at = members(text, at)[key][0]
    if shape.name == "splits":
        values = members(text, at)
        for key in shape.keys:
            yield from (Piece(a, b, value, {"split": key}) for a, b, value in elements(text, values[key][0]))
        return
    for key in shape.keys:
        at = members(text, at)[key][0]
    if shape.name == "by-id":
        yield from (Piece(a, b, value) for a, b, value in members(text, at).values() if _is_row_value(value))
    elif shape.name == "server":
        for a, _, _ in elements(text, at):
            inner = members(text, a)
            if cut := inner.get("truncated_cells", (0, 0, None))[2]:
                raise ValueError(
                    f"the data sets server cut the cells {', '.join(map(str, cut))[:80]} of a row: "
                    "fetch the data set's Parquet files"
                )
            yield Piece(*inner["row"])
    elif shape.name == "squad":
        yield from _squad_pieces(text, at)
    else:
        yield from (Piece(a, b, value) for a, b, value in elements(text, at))


def _is_row_value(value: Json) -> bool:
    return isinstance(value, dict) or is_turns(value)


def _squad_pieces(text: str, at: int) -> Iterator[Piece]:
    for a, _, article in elements(text, at):
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            continue
        title = {"title": article["title"]} if isinstance(article.get("title"), str) else {}
        for b, _, paragraph in elements(text, members(text, a)["paragraphs"][0]):
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                continue
            around = {**title, "context": paragraph.get("context")}
            for c, d, value in elements(text, members(text, b)["qas"][0]):
                yield Piece(c, d, value, around)


def table_records(value: Mapping[str, Json], shape: JsonShape) -> list[dict[str, Json]]:
    """The rows of a table. Raises ValueError for a row of other length than the columns, or a name that comes twice."""
    value = _value_at(value, shape.above)
    if shape.name == "columns":
        names = list(value)
        return [dict(zip(names, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if shape.name == "by-column":
        keys = list(next(iter(value.values())))
        return [{name: column[key] for name, column in value.items()} for key in keys]
    names = [str(name) for name in value["columns"]]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(f"the column {twice!r} stands in `columns` twice; rename one of them")
    rows = []
    for number, row in enumerate(value["data"]):
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(names)} as in `columns`")
        rows.append(dict(zip(names, row, strict=True)))
    return rows


def _value_at(value: Mapping[str, Json], keys: Sequence[str]) -> Mapping[str, Json]:
    for key in keys:
        value = value[key]
    return value


def table_text(value: Mapping[str, Json], shape: JsonShape, added: Sequence[Mapping[str, Json]]) -> str:
    """Return the table with columns added, as JSON text; `added` has one item for each row."""
    if shape.above:
        inner = loads(table_text(_value_at(value, shape.above), shape._replace(above=()), added))
        for key, outer in reversed([(key, _value_at(value, shape.above[:at])) for at, key in enumerate(shape.above)]):
            inner = {**outer, key: inner}
        return dumps(inner) + "\n"
    names = list(added[0]) if added else []
    columns = {name: [line[name] for line in added] for name in names}
    columns_out: dict[str, Json]
    if shape.name == "columns":
        columns_out = {**value, **columns}
    elif shape.name == "by-column":
        keys = list(next(iter(value.values())))
        columns_out = {**value, **{name: dict(zip(keys, cells, strict=True)) for name, cells in columns.items()}}
    else:
        rows = value["data"]
        columns_out = {
            **value,
            "columns": [*value["columns"], *names],
            "data": [[*row, *line.values()] for row, line in zip(rows, added, strict=True)],
        }
    return "{" + ",\n".join(f"{dumps(key)}: {dumps(cells)}" for key, cells in columns_out.items()) + "}\n"


def decode(text: str, at: int) -> tuple[Json, int]:
    """The value that begins at offset `at`, and the offset of its end. Raises JSONDecodeError, TooDeep."""
    value, end = _DECODER.raw_decode(text, at)
    check_depth(text[at:end], value)
    return value, end


def skip(text: str, at: int) -> int:
    """The offset of the first character at or after `at` that is not a blank."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def members(text: str, at: int) -> dict[str, tuple[int, int, Json]]:
    """The values of the object that begins at offset `at`, by key, with their offsets. The text must be valid."""
    values: dict[str, tuple[int, int, Json]] = {}
    at = skip(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = skip(text, skip(text, at) + 1)
        value, at = _DECODER.raw_decode(text, start)
        values[key] = (start, at, value)
        at = skip(text, at)
        if text[at] == ",":
            at = skip(text, at + 1)
    return values


def elements(text: str, at: int) -> Iterator[tuple[int, int, Json]]:
    """The elements of the array that begins at offset `at`, with their offsets. The text must be valid."""
    at = skip(text, at + 1)
    while text[at] != "]":
        value, end = _DECODER.raw_decode(text, at)
        yield at, end, value
        at = skip(text, end)
        if text[at] == ",":
            at = skip(text, at + 1)
