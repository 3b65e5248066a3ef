"""Choose the alternatives that a fact span is compared with, and the other spellings that count as the span. Pure.

An alternative is a span of the same type from another row that could stand in the same place: similar in length, not
mentioned in the row itself, and no shorter or longer form of the span. For numbers, dates and codes an alternative of
the same shape (`1998` for `2004`, `20 mg` for `15 mg`) is preferred. The choice is a hash of the seed and the texts, so
it does not depend on the order of the work.
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
_DIGITS = re.compile(r"\d")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_PLAIN = re.compile(r"(?<![\d.,])\d{5,}(?![\d.,])")


class _Text(NamedTuple):
    length: int
    key: int
    text: str


class AlternativePool:
    """The texts of all rows' spans, by type, from which alternatives are drawn. `spans`: pairs of type and text."""

    def __init__(self, spans: Iterable[tuple[str, str]], seed: int):
        self.seed = seed
        texts: dict[str, set[str]] = {}
        for kind, text in spans:
            texts.setdefault(kind, set()).add(text)
        self.by_type = {kind: self._sorted(own) for kind, own in texts.items()}
        self.by_shape = {
            kind: {shape: self._sorted(t for t in own if _shape(t) == shape) for shape in {_shape(t) for t in own}}
            for kind, own in texts.items()
            if kind in ("number", "date", "code")
        }

    def _sorted(self, texts: Iterable[str]) -> list[_Text]:
        drawn = sorted((sampling_hash(self.seed, text, None), text) for text in texts)[:LARGEST]
        return sorted(_Text(len(text), key, text) for key, text in drawn)

    def draw(self, row: int, kind: str, text: str, mentioned: Words, count: int) -> list[str]:
        """Return up to `count` alternatives of a span. `mentioned`: the words of the row's question and answer."""
        own = Words(text)
        chosen: list[str] = []
        pools = [self.by_shape.get(kind, {}).get(_shape(text), []), self.by_type.get(kind, [])]
        for pool in pools:
            near = self._near(pool, len(text))
            order = sorted((sampling_hash(self.seed, f"{row} {text}", other.text), other.text) for other in near)
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
