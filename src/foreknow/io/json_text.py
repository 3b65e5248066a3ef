"""JSON text that can be written back: not nested beyond what every later step can follow, every text in UTF-8. Pure."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 200
"""Levels of arrays and objects that are read. Python's own limit depends on how deep its calls already are."""


class TooDeep(ValueError):
    """A text nests deeper than `DEEPEST`."""


def loads(text: str) -> Any:
    """The value that the text spells; ValueError where it spells none, or nests too deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise TooDeep("nested too deeply") from None
    check_depth(text, value)
    return value


def check_depth(text: str, value: object) -> None:
    """Raise TooDeep unless the value, which `text` spells, nests no deeper than `DEEPEST`."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for each in level if isinstance(each, dict | list) for inner in _inside(each)]
        if not level:
            return
    raise TooDeep("nested too deeply")


def dumps(value: object) -> str:
    """A value as JSON text. Half a surrogate pair, which JSON can spell and UTF-8 cannot, stays spelled."""
    return encodable(json.dumps(value, ensure_ascii=False, default=str))


def encodable(text: str) -> str:
    """The text with each half of a surrogate pair spelled as JSON does, so that UTF-8 can hold it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _inside(value: dict[str, object] | list[object]) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value
