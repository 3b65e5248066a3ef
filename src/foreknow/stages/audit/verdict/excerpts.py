"""Cuts long texts down to the parts that a page shows.

Its functions have no side effects and write no HTML. A place in a text is a pair of character positions, start and
end (exclusive), as in `surprisal.LONG`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

WHOLE: Final = 600
"""An answer of at most this many characters is shown whole; of a longer one the page shows the beginning and the
surroundings of the marks."""
BEGINNING: Final = 240
AROUND: Final = 60
SENTENCE: Final = 80
"""The page shows at most this many characters of a sentence before and after the marked words."""
LONGEST_MARK: Final = 160
GAP: Final = " … "

Place = tuple[int, int]

_END: Final = re.compile("[.!?…]+[\"'”’)\\]]*\\s+|[。！？]|\n+")
_EDGE: Final = 20
"""A cut moves by at most this many characters to fall between words."""


class InSentence(NamedTuple):
    """Words, and the text before and after them in their sentence."""

    before: str
    words: str
    after: str


def marked(text: str, marks: Iterable[Place], whole: int = WHOLE) -> list[str]:
    """Split the text into pieces, plain and marked in turn, starting with a plain one: pieces 1, 3, ... are the marks.

    A text of at most `whole` characters comes back complete. A mark that overlaps an earlier one, or lies outside the
    text, is left out.
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
    """The characters `start` to `end` of the text, with at most `most` characters of their sentence on either side."""
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
    """The marks in order, without those that overlap an earlier one or lie outside a text of this length."""
    places: list[Place] = []
    for start, end in sorted(marks):
        if 0 <= start < end <= length and (not places or places[-1][1] <= start):
            places.append((start, end))
    return places


def _windows(text: str, places: Sequence[Place]) -> list[Place]:
    """The beginning of the text and the surroundings of each mark; windows that meet are joined."""
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
    """The first position from `at` on that lies between words, if it is within `_EDGE` characters; else `at`."""
    blank = re.compile(r"(?<=\s)").search(text, at, at + _EDGE)
    return blank.start() if blank else at


def _last_blank(text: str, at: int) -> int:
    """The last position up to `at` that lies between words, if it is within `_EDGE` characters; else `at`.

    If the text ends before `at`, its length.
    """
    if at >= len(text):
        return len(text)
    blanks = [m.start() for m in re.finditer(r"\s", text[at - _EDGE : at])]
    return at - _EDGE + blanks[-1] if blanks else at


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_MARK else words[: LONGEST_MARK - 1] + "…"
