"""Choose the alternatives that a fact span is compared with, and the other spellings that count as the span. Pure.

An alternative is a span of the same type from another row that could stand in the same place: similar in length, not
mentioned in the row itself, and no shorter or longer form of the span. For numbers, dates and codes an alternative of
the same shape (`1998` for `2004`, `20 mg` for `15 mg`) comes first; then one with the same two words before it, or the
same one (`was born in`), as far as there are some. Among those, the choice is a hash of the seed and the texts, so it
does not depend on the order of the work.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

from foreknow.data.schema import sampling_hash
from foreknow.data.spans.finder import Words

LARGEST: Final = 4096
"""The most texts of one type in a pool."""
NEAR: Final = 64
"""How many texts of similar length are considered for one span."""
_LAST_WORDS = re.compile(r"(?:\w+\W+)?\w+\W*\Z")
_DIGITS = re.compile(r"\d")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_PLAIN = re.compile(r"(?<![\d.,])\d{5,}(?![\d.,])")


class _Text(NamedTuple):
    length: int
    key: int
    text: str


class SpanMention(NamedTuple):
    """A span's type and text, and the text before it."""

    type: str
    text: str
    before: str


class AlternativePool:
    """The texts of all rows' spans, from which alternatives are drawn."""

    def __init__(self, spans: Iterable[SpanMention], seed: int):
        self.seed = seed
        texts: dict[tuple[str, str], set[str]] = {}
        for span in spans:
            for likeness in _likenesses(span):
                texts.setdefault((span.type, likeness), set()).add(span.text)
        self.pools = {likeness: self._sorted(own) for likeness, own in texts.items()}

    def _sorted(self, texts: Iterable[str]) -> list[_Text]:
        drawn = sorted((sampling_hash(self.seed, text, None), text) for text in texts)[:LARGEST]
        return sorted(_Text(len(text), key, text) for key, text in drawn)

    def draw(self, row: int, span: SpanMention, mentioned: Words, count: int) -> list[str]:
        """Return up to `count` alternatives of a span. `mentioned`: the words of the row's question and answer."""
        own = Words(span.text)
        chosen: list[str] = []
        for likeness in _likenesses(span):
            near = self._near(self.pools.get((span.type, likeness), []), len(span.text))
            order = sorted((sampling_hash(self.seed, f"{row} {span.text}", other.text), other.text) for other in near)
            for _, other in order:
                if len(chosen) == count:
                    return chosen
                words = Words(other)
                form = own.mentions(words) or words.mentions(own)
                if other not in chosen and words.words and not form and not mentioned.mentions(words):
                    chosen.append(other)
        return chosen

    def _near(self, pool: list[_Text], length: int) -> list[_Text]:
        """Return the NEAR texts of the pool whose lengths are nearest."""
        low = high = bisect_left(pool, (length,))
        while high - low < NEAR and (low > 0 or high < len(pool)):
            below = length - pool[low - 1].length if low > 0 else None
            above = pool[high].length - length if high < len(pool) else None
            if above is None or (below is not None and below <= above):
                low -= 1
            else:
                high += 1
        return pool[low:high]


def _likenesses(span: SpanMention) -> list[str]:
    """Return what a span may have in common with its alternatives, the closest likeness first, none last."""
    before = _LAST_WORDS.search(span.before)
    words = re.findall(r"\w+", before.group().casefold()) if before else []
    by_words = [f"words {' '.join(words[-2:])}", f"words {words[-1]}"] if words else []
    by_shape = [f"shape {_shape(span.text)}"] if span.type in ("number", "date", "code") else []
    return [*by_shape, *by_words, ""]


def _shape(text: str) -> str:
    return _DIGITS.sub("9", text) if any(c.isdigit() for c in text) else ""


def variants(text: str, kind: str, begins_sentence: bool) -> list[str]:
    """Return other spellings that count as the span.

    A number with commas between its thousands may be written without, and the other way round; a term may begin with
    a capital or not. At the start of a sentence nothing else may: there the capital is a matter of form.
    """
    others = []
    if kind in ("number", "own"):
        others.append(_GROUPED.sub(lambda match: match.group().replace(",", ""), text))
        others.append(
            _PLAIN.sub(lambda match: f"{int(match.group()):,}" if match.group()[0] != "0" else match.group(), text)
        )
    if kind == "term" and not begins_sentence and text[0].isalpha():
        others.append((text[0].lower() if text[0].isupper() else text[0].upper()) + text[1:])
    return [other for other in dict.fromkeys(others) if other != text]
