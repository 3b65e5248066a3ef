"""Long texts -> the parts of them that a page shows. Pure; nothing here knows HTML.

Places in a text are characters, start and end (exclusive), as in `surprisal.LONG`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

WHOLE: Final = 600
"""Characters up to which an answer is shown whole; of a longer one, its beginning and what stands around the marks."""
BEGINNING: Final = 240
AROUND: Final = 60
SENTENCE: Final = 80
"""Characters of a sentence on either side of the words that are shown in it, at most."""
LONGEST_MARK: Final = 160
GAP: Final = " … "

Place = tuple[int, int]

_END: Final = re.compile("[.!?…]+[\"'”’)\\]]*\\s+|[。！？]|\n+")
_EDGE: Final = 20
"""So far a cut moves to fall between words."""


class InSentence(NamedTuple):
    """Words and what stands around them in their sentence."""

    before: str
    words: str
    after: str


def marked(text: str, marks: Iterable[Place], whole: int = WHOLE) -> list[str]:
    """The text in pieces, plain and marked in turn, beginning with a plain one: pieces 1, 3, ... are the marks.

    Texts of at most `whole` characters come back complete. Marks that overlap an earlier one, or lie outside
    the text, are left out.
    """
    places = _disjoint(marks, len(text))
    windows = [(0, len(text))] if len(text) <= whole else _windows(text, places)
    pieces = [""]
    for at, (start, end) in enumerate(windows):
        pieces[-1] += GAP if at else ""
        plain = start
        for first, last in (place for place in places if start <= place[0] and place[1] <= end):
            pieces[-1] += text[plain:first]
            pieces += [_cut(text[first:last]), ""]
            plain = last
        pieces[-1] += text[plain:end]
    if windows and windows[-1][1] < len(text):
        pieces[-1] += GAP.rstrip()
    return pieces


def in_sentence(text: str, start: int, end: int, most: int = SENTENCE) -> InSentence:
    """The characters `start` to `end` within their sentence, of which at most `most` characters on either side."""
    first = max(0, start - 4 * most)
    for stop in _END.finditer(text, first, start):
        first = stop.end()
    sentence_end = _END.search(text, end, end + 4 * most)
    last = sentence_end.end() if sentence_end else min(len(text), end + 4 * most)
    before, after = text[first:start].lstrip(), text[end:last].rstrip()
    if len(before) > most:
        before = f"…{before[_next_blank(before, len(before) - most) :]}"
    if len(after) > most:
        after = f"{after[: _last_blank(after, most)]} …"
    return InSentence(before, _cut(text[start:end]), after)


def _disjoint(marks: Iterable[Place], length: int) -> list[Place]:
    places: list[Place] = []
    for start, end in sorted(marks):
        if 0 <= start < end <= length and (not places or places[-1][1] <= start):
            places.append((start, end))
    return places


def _windows(text: str, places: Sequence[Place]) -> list[Place]:
    """The beginning and the surroundings of each mark, joined where they meet."""
    surroundings = [(0, _last_blank(text, BEGINNING))]
    for start, end in places:
        first = max(0, start - AROUND)
        surroundings.append(
            (min(start, _next_blank(text, first) if first else 0), max(end, _last_blank(text, end + AROUND)))
        )
    windows: list[Place] = []
    for start, end in sorted(surroundings):
        if windows and start <= windows[-1][1] + len(GAP):
            windows[-1] = (windows[-1][0], max(windows[-1][1], end))
        else:
            windows.append((start, end))
    return windows


def _next_blank(text: str, at: int) -> int:
    """The first place from `at` on that lies between words, if it is near."""
    blank = re.compile(r"(?<=\s)").search(text, at, at + _EDGE)
    return blank.start() if blank else at


def _last_blank(text: str, at: int) -> int:
    """The last place up to `at` that lies between words, if it is near; the end of a text that ends before."""
    if at >= len(text):
        return len(text)
    blanks = [m.start() for m in re.finditer(r"\s", text[at - _EDGE : at])]
    return at - _EDGE + blanks[-1] if blanks else at


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_MARK else words[: LONGEST_MARK - 1] + "…"
