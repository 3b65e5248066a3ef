"""Reads and writes JSON that every later step can handle: limited nesting, and texts that UTF-8 can encode. Pure."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 200
"""The most levels of arrays and objects that are read. Python's own limit depends on how deep its calls already are."""


class TooDeep(ValueError):
    """Raised for a text that nests deeper than `DEEPEST`."""


def loads(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, or nests too deep (TooDeep)."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise TooDeep("nested too deeply") from None
    check_depth(text, value)
    return value


def check_depth(text: str, value: object) -> None:
    """Raise TooDeep if the value of the JSON text `text` nests deeper than `DEEPEST`."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for each in level if isinstance(each, dict | list) for inner in _inside(each)]
        if not level:
            return
    raise TooDeep("nested too deeply")


def dumps(value: object) -> str:
    """A value as JSON text. Half of a surrogate pair, which UTF-8 cannot encode, is written as an escape."""
    return encodable(json.dumps(value, ensure_ascii=False, default=str))


def encodable(text: str) -> str:
    """The text with lone halves of surrogate pairs as JSON escapes, so that UTF-8 can encode it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _inside(value: dict[str, object] | list[object]) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value
