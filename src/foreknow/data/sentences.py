"""Splits a text into sentences, without a library and for any language that ends sentences with marks. Pure.

A sentence ends at `.`, `!`, `?` or an ellipsis before a blank, at a full stop of Chinese or Japanese, and at a line
break. A full stop does not end one where it may belong to the word: after a listed abbreviation, a single letter
(`J. Smith`), a word with full stops inside (`U.S.`, `e.g.`), a number of one or two digits (`1. Open`, `3. Mai`), and
before a small letter. Where the rule is in doubt, it keeps two sentences together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

Place = tuple[int, int]
"""Characters of a text: start and end (exclusive)."""

_END: Final = re.compile("([.!?…]+)[\"'”’»)\\]]*\\s+|[。！？]+[」』”）]*\\s*|[^\\S\\n]*\\n\\s*")
_WORD: Final = re.compile(r"\S+$")
_LISTED: Final = (
    "adm al approx art av ave bd blvd bros ca cap capt cf ch co col corp dept dir dr ed eds eq est etc ex fig figs ft "
    "gen gov hon hr inc incl jr kap lit lt ltd max messrs min mme mlle mr mrs ms mt no nos nr op orig p par pp prof "
    "pt rd ref rep resp rev rs sec sen sgt sr st str ste tel univ vol vols vs jan feb mar apr jun jul aug sep sept oct "
    "nov dec bl bzw dvs evtl geb ggf inkl kl mag mfl mm osv resp s sid sog tr usw vgl"
)
_ABBREVIATIONS: Final = frozenset(_LISTED.split())


def sentences(text: str) -> list[Place]:
    """Return the places of the sentences, each with the blanks behind it; together they cover the whole text."""
    places, start = [], 0
    for end in _END.finditer(text):
        if end.end() < len(text) and text[start : end.end()].strip() and _is_end(text, start, end):
            places.append((start, end.end()))
            start = end.end()
    return [*places, (start, len(text))] if start < len(text) else places


def without_breaks_inside(places: Iterable[Place], whole: Iterable[Place]) -> list[Place]:
    """Join neighbouring sentences where the border between them lies inside one of the places `whole`."""
    joined: list[Place] = []
    borders = sorted(whole)
    for start, end in places:
        if joined and any(first < start < last for first, last in borders):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def without_sentences(text: str, places: Iterable[Place], cut: Iterable[Place]) -> str:
    """Return the text of the sentences `places` without those of `cut`.

    A paragraph that ended with a sentence that is cut still ends.
    """
    return rest_and_moves(text, places, cut)[0]


def rest_and_moves(text: str, places: Iterable[Place], cut: Iterable[Place]) -> tuple[str, dict[Place, int]]:
    """Return `without_sentences`, and for each sentence that stays how many characters it moves to the left."""
    gone = set(cut)
    pieces: list[str] = []
    kept: list[Place] = []
    for start, end in places:
        piece = text[start:end]
        if (start, end) not in gone:
            pieces.append(piece)
            kept.append((start, end))
        elif pieces and "\n" in _blanks_at_end(piece) and "\n" not in _blanks_at_end(pieces[-1]):
            pieces[-1] = pieces[-1].rstrip() + _blanks_at_end(piece)
    rest = "".join(pieces)
    starts = accumulate(map(len, pieces), initial=-(len(rest) - len(rest.lstrip())))
    return rest.strip(), {place: place[0] - start for place, start in zip(kept, starts, strict=False)}


def _blanks_at_end(text: str) -> str:
    return text[len(text.rstrip()) :]


def _is_end(text: str, start: int, end: re.Match[str]) -> bool:
    """Return whether a mark ends the sentence that began at `start`."""
    if "\n" in end.group() or end.group(1) is None:
        return True
    following = text[end.end()]
    if following.islower():
        return False
    if end.group(1) != ".":
        return True
    word = _WORD.search(text, start, end.start())
    bare = word.group().lstrip("\"'“‘«([").casefold() if word else ""
    if bare in _ABBREVIATIONS or (len(bare) == 1 and bare.isalpha()) or "." in bare.strip("."):
        return bool(re.fullmatch(r"[\d.,]*\d[\d.,]{2,}\d*", bare)) and not bare.isalpha()
    return not re.fullmatch(r"\d{1,2}", bare)
