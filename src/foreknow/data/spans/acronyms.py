"""Tell whether an acronym follows from words that stand before it: `MSA` after `Multiple System Atrophy`. Pure.

Whoever has read the words can spell the acronym, so it is no fact of its own: it counts as mentioned with them. The
words must follow each other in the text; words of up to `SMALL` letters in lower case (`of`, `and the`) may be left
out. Up to `FEW` letters agree by chance too often (three of them with 13 % of texts of 1,000 words): there every word
must have a capital, or the acronym must follow them directly, as in `multiple sclerosis (MS)`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final, NamedTuple

_ACRONYM = re.compile(r"(?:[A-ZÀ-ÖØ-Þ]{2,6}s?|(?:[A-Z]\.){2,6})\Z")
_WORD = re.compile(r"[^\W\d_]+")
SMALL: Final = 3
"""The most letters of a word in lower case that an acronym may leave out."""
FEW: Final = 3
"""The most letters of an acronym whose words must all have a capital, unless it follows them directly."""


def is_acronym(text: str) -> bool:
    """Return whether a span is two to six capitals: `NIH`, `TIAs`, `U.S.`."""
    return _ACRONYM.match(text) is not None


class _Letters(NamedTuple):
    """Some words of a text: their places, their first letters in lower case, and `C` for a capital, else a point."""

    starts: list[int]
    first: str
    capitals: str

    def ends_with(self, letters: str, end: int) -> bool:
        """Return whether the last words of the text before character `end` begin with `letters`."""
        return self.first.endswith(letters, 0, bisect_left(self.starts, end))

    def have(self, letters: str, end: int) -> bool:
        """Return whether words of the text before character `end` begin with `letters`; `FEW` need capitals."""
        words = bisect_left(self.starts, end)
        at = self.first.find(letters, 0, words)
        while at >= 0 and len(letters) <= FEW and "." in self.capitals[at : at + len(letters)]:
            at = self.first.find(letters, at + 1, words)
        return at >= 0


class Initials:
    """The first letters of a text's words, with and without its small words."""

    def __init__(self, text: str):
        self.length = len(text)
        every = [(match.start(), match.group()) for match in _WORD.finditer(text)]
        large = [(at, word) for at, word in every if len(word) > SMALL or not word.islower()]
        self.parts = [
            _Letters(
                [at for at, _ in words],
                "".join(word[0].lower()[0] for _, word in words),
                "".join("C" if word[0].isupper() else "." for _, word in words),
            )
            for words in (large, every)
        ]

    def spell(self, acronym: str) -> bool:
        """Return whether the words of an acronym stand anywhere in this text."""
        return any(part.have(_letters(acronym), self.length) for part in self.parts)

    def spell_before(self, acronym: str, end: int) -> bool:
        """Return whether the words of an acronym stand in this text before character `end`, where the acronym is."""
        letters = _letters(acronym)
        return any(part.have(letters, end) or part.ends_with(letters, end) for part in self.parts)


def _letters(acronym: str) -> str:
    return acronym.rstrip("s").replace(".", "").lower()
