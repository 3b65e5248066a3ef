"""Format untrusted text for a message or a terminal. Pure."""

from __future__ import annotations

import re

_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_JOINERS = "\u200c\u200d"


def quoted(value: object, most: int = 80) -> str:
    """The `repr` of a value with control characters escaped, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    """A text without characters that control a terminal; joiners, which Persian, Hindi and emoji need, stay."""
    return "".join(c if c.isprintable() or c in _JOINERS else "\ufffd" for c in text)


def isolate_bidi(text: str) -> str:
    """Isolate a right-to-left text (Unicode FSI and PDI) so that it does not reorder the text beside it."""
    return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.search(text) else text
