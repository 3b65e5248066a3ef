"""Lists and objects as Python and NumPy print them, which is how pandas writes them into a cell -> their values. Pure.

    ['Paris', 'Paname']     {'text': ['Paris'], 'answer_start': [3]}
    ['Paris' 'Paname']      {'text': array(['Paris'], dtype=object), 'answer_start': array([3])}

Python reads two texts side by side as one: here they are two, as NumPy means them.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Final

LONGEST: Final = 1 << 18
"""Characters of a text that is looked at."""
_ARRAY = re.compile(r"\barray\(|,\s*dtype=[\w.<>'|]+\s*(?=\))|\)")
_VALUES: Final = (tokenize.STRING, tokenize.NUMBER)


def python_value(text: str) -> object:
    """The list or object that a text spells as Python or NumPy prints it; None where it spells neither."""
    if len(text) > LONGEST or text.lstrip()[:1] not in ("[", "{") or "'" not in text:
        return None
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(_without_arrays(text)).readline))
        parts: list[str] = []
        before: tokenize.TokenInfo | None = None
        for token in tokens:
            if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER):
                continue
            side_by_side = token.type in _VALUES or token.string in ("[", "{")
            if before is not None and side_by_side and (before.type in _VALUES or before.string in ("]", "}")):
                parts.append(",")
            parts.append(token.string)
            before = token
        value = ast.literal_eval(" ".join(parts))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, tokenize.TokenError, IndentationError):
        return None
    return value if isinstance(value, list | dict) else None


def _without_arrays(text: str) -> str:
    """The text without the words around NumPy's lists. Only where there are some: a text may hold any bracket."""
    return _ARRAY.sub("", text) if "array([" in text else text
