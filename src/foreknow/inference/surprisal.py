"""The most surprising spans of a long answer, from its tokens' log-probabilities. Pure.

A long answer gets no SliCK category: the paper's label needs an answer that can be matched letter by letter.
What can be shown instead is where the model's expectation fails most. A word's surprisal is -log p summed
over its tokens, in nats. It counts for what it has above the mean of the answer's words by more than one
standard deviation, provided that its tokens are less likely than the answer's on average. A span is the run
of words that counts for most. Words are compared, not tokens: of a rare name only the first piece surprises,
and by its mean a name would always stand behind a single odd word.
"""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import polars as pl

MOST: Final = 3
"""Spans of one answer, at most."""
WIDEST: Final = 12
"""Words of one span, at most."""
LEAST: Final = 1.0
"""Nats by which a span must stand out; an even answer has no span."""

LONG: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "answer_tokens": pl.Int64(),
    "scored_tokens": pl.Int64(),
    "logprob": pl.Float64(),
    "logprob_alone": pl.Float64(),
    "spans": pl.List(
        pl.Struct(
            {
                "text": pl.String(),
                "start": pl.Int64(),
                "end": pl.Int64(),
                "logprob": pl.Float64(),
                "tokens": pl.Int64(),
            }
        )
    ),
}
"""One line per long answer (`loglikelihood.LongScorer`). `answer_tokens`: its length; `scored_tokens`: how many of
them, from its beginning, the figures speak of. `logprob`: their mean log-probability behind the question, in
nats a token; `logprob_alone`: the same behind the prompt with an empty question. `spans`: see `surprising`."""

_ABSURD: Final = 1e6
"""No log-probability is so far from 0; neither are those that are not finite."""

Offsets = tuple[int, int]
"""The characters a token stands for: start, and end (exclusive)."""

_RUN: Final = re.compile(r"\S+")
# scripts written without blanks: Thai to Khmer, kana, Han
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)


class Span(NamedTuple):
    """A run of words of an answer: its text, its characters, mean log-probability in nats a token, tokens."""

    text: str
    start: int
    end: int
    logprob: float
    tokens: int


class _Word(NamedTuple):
    """A word without the punctuation at its edges, and the indices of its tokens."""

    start: int
    end: int
    tokens: list[int]


def surprising(answer: str, offsets: Sequence[Offsets], logprobs: Sequence[float]) -> list[Span]:
    """The spans of `answer` that surprise most: at most MOST, disjoint, the most surprising first.

    `offsets` and `logprobs` (nats) go by token, from the answer's first. Words that no token stands for (an
    answer scored in part) are in no span. Where nothing sticks out, or a log-probability is not finite, there
    is none.
    """
    if not all(abs(p) < _ABSURD for p in logprobs):
        return []
    words = _words(answer, offsets, len(logprobs))
    scores = _scores(words, logprobs)
    free = [True] * len(words)
    found: list[Span] = []
    while len(found) < MOST and (best := _best(scores, free)) is not None:
        first, last = best
        free[first:last] = [False] * (last - first)
        start, end = words[first].start, words[last - 1].end
        tokens = [-logprobs[t] for word in words[first:last] for t in word.tokens]
        found.append(Span(answer[start:end], start, end, -math.fsum(tokens) / len(tokens), len(tokens)))
    return found


def offsets_of(pieces: Sequence[str], answer: str) -> list[Offsets]:
    """Where tokens stand in `answer`, from their decoded texts: for tokenizers that do not tell.

    A piece that cannot be found close behind the one before (half a character, say) stands for no character.
    """
    found = []
    at = 0
    for piece in pieces:
        text = piece.strip()
        start = answer.find(text, at, at + len(piece) + 8) if text else -1
        if start < 0:
            found.append((at, at))
            continue
        at = start + len(text)
        found.append((start, at))
    return found


def _words(answer: str, offsets: Sequence[Offsets], count: int) -> list[_Word]:
    """The answer's words in order. Of the first `count` tokens each is the word's whose characters it touches first.

    Words are runs of characters that are no blanks; scripts written without blanks are cut at their tokens.
    """
    starts = {start for start, _ in offsets if 0 < start < len(answer)}
    cuts = {start for start in starts if _UNSPACED.search(answer, start - 1, start + 1)}
    words = []
    for run in _RUN.finditer(answer):
        bounds = [run.start(), *sorted(c for c in cuts if run.start() < c < run.end()), run.end()]
        words += [word for start, end in pairwise(bounds) if (word := _bare(answer, start, end)) is not None]
    ends = [word.end for word in words]
    for token, (start, end) in enumerate(offsets[:count]):
        at = bisect_right(ends, start)
        if at < len(words) and words[at].start < end:
            words[at].tokens.append(token)
    return words


def _bare(answer: str, start: int, end: int) -> _Word | None:
    """A run without the punctuation at its edges; None where no letter or digit is in it."""
    if not any(c.isalnum() for c in answer[start:end]):
        return None
    while unicodedata.category(answer[start])[0] == "P":
        start += 1
    while unicodedata.category(answer[end - 1])[0] == "P":
        end -= 1
    return _Word(start, end, [])


def _scores(words: Sequence[_Word], logprobs: Sequence[float]) -> list[float]:
    """What each word has above the mean word by more than one standard deviation, in nats (below: negative).

    A word of many tokens that are likely one by one counts as one that says nothing; one without tokens is in
    no run.
    """
    surprisals = [-math.fsum(logprobs[t] for t in word.tokens) for word in words]
    scored = [s for s, word in zip(surprisals, words, strict=True) if word.tokens]
    if not scored:
        return [-math.inf] * len(words)
    bar = statistics.fmean(scored) + statistics.pstdev(scored)
    token = -statistics.fmean(logprobs)
    return [
        -math.inf if not word.tokens else s - bar if s > token * len(word.tokens) else -bar
        for s, word in zip(surprisals, words, strict=True)
    ]


def _best(scores: Sequence[float], free: Sequence[bool]) -> tuple[int, int] | None:
    """The run of free words that scores most, as first and last (exclusive); of equals the shortest, then the first."""
    best: tuple[float, int, int] | None = None
    for first in range(len(scores)):
        total = 0.0
        for last in range(first, min(first + WIDEST, len(scores))):
            if not free[last]:
                break
            total += scores[last]
            if total >= LEAST and (best is None or (-total, last - first, first) < best):
                best = (-total, last - first, first)
    return None if best is None else (best[2], best[2] + best[1] + 1)
