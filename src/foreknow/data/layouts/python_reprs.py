"""Lists and objects that a cell spells, as JSON or as Python and NumPy print them (pandas writes them so). Pure.

    ['Paris', 'Paname']     {'text': ['Paris'], 'answer_start': [3]}
    ['Paris' 'Paname']      {'text': array(['Paris'], dtype=object), 'answer_start': array([3])}

Python reads two texts side by side as one: here they are two, as NumPy means them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from typing import Final

from foreknow.io.json_text import loads

LONGEST: Final = 1 << 18
"""Characters of a text that is looked at."""
_VALUES: Final = (tokenize.STRING, tokenize.NUMBER)


def decode_object(value: object) -> object:
    """What a cell spells as an object or a list, as JSON or as Python prints it; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        decoded = loads(value)
    except ValueError:
        decoded = parse_python_repr(value)
    return decoded if isinstance(decoded, dict | list) else value


def decode_list(value: object) -> object:
    """What a cell spells as a list, as JSON (`["Paris", "paris"]`) or as Python prints it; any other value as it is."""
    decoded = decode_object(value)
    return decoded if isinstance(decoded, list) else value


def parse_python_repr(text: str) -> object:
    """The list or object that a text spells as Python or NumPy prints it; None where it spells neither."""
    if len(text) > LONGEST or text.lstrip()[:1] not in ("[", "{") or "'" not in text:
        return None
    try:
        parts: list[str] = []
        before: tokenize.TokenInfo | None = None
        for token in _without_arrays(tokenize.generate_tokens(io.StringIO(text).readline)):
            if token.string == "...":
                return None  # NumPy has cut the list while it printed it
            side_by_side = token.type in _VALUES or token.string in ("[", "{")
            if before is not None and side_by_side and (before.type in _VALUES or before.string in ("]", "}")):
                parts.append(",")
            parts.append(token.string)
            before = token
        value = ast.literal_eval(" ".join(parts))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, tokenize.TokenError, IndentationError):
        return None
    return value if isinstance(value, list | dict) else None


def _without_arrays(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """The tokens without line ends, and without `array(`, `, dtype=...` and `)` around NumPy's lists.

    A bracket inside a text is part of that text's token, so it stays.
    """
    code_tokens = [t for t in tokens if t.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)]
    opened: list[bool] = []  # for each open bracket, whether `array` stands before it
    in_dtype = False
    for at, token in enumerate(code_tokens):
        after = code_tokens[at + 1].string if at + 1 < len(code_tokens) else ""
        in_array = bool(opened) and opened[-1]
        if token.string == "array" and after == "(":
            continue
        if token.string in ("(", "[", "{"):
            opened.append(token.string == "(" and at > 0 and code_tokens[at - 1].string == "array")
            if opened[-1]:
                continue
        elif token.string in (")", "]", "}") and opened:
            opened.pop()
            if in_array:
                in_dtype = False
                continue
        elif in_array and token.string == "," and after == "dtype":
            in_dtype = True
        if not in_dtype:
            yield token
