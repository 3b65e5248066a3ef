"""Finds the most surprising spans of a long answer, from its tokens' log-probabilities. Pure.

A long answer gets no SliCK category, as the paper's label needs an answer that can be matched letter by letter. It
gets the spans that the model expects least instead. A word's surprisal is -log p summed over its tokens, in nats.
Its score is the surprisal minus the mean of the answer's words plus one standard deviation, provided that its tokens
are less likely than the answer's average token. A span is the run of words with the largest total score. Words are
compared, not tokens: only the first piece of a rare name is surprising, so by mean log-probability a name would
always rank behind a single odd word.
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
"""The maximum number of spans of one answer."""
WIDEST: Final = 12
"""The maximum number of words of one span."""
LEAST: Final = 1.0
"""The minimum score of a span, in nats. An answer of even surprisal has no span."""

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
them, from the first, are scored. `logprob`: their mean log-probability after the question, in nats per token;
`logprob_alone`: the same after the prompt with an empty question. `spans`: see `surprising_spans`."""

_ABSURD: Final = 1e6
"""Log-probabilities this far from 0, or not finite, are invalid."""

Offsets = tuple[int, int]
"""A token's characters in a text: start and end (exclusive)."""

_RUN: Final = re.compile(r"\S+")
# scripts written without blanks: Thai to Khmer, kana, Han
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)


class Span(NamedTuple):
    """A run of words: its text, its characters in the answer, mean log-probability in nats per token, token count."""

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


def surprising_spans(answer: str, offsets: Sequence[Offsets], logprobs: Sequence[float]) -> list[Span]:
    """Return the most surprising spans of `answer`: at most MOST, disjoint, the most surprising first.

    `offsets` and `logprobs` (nats) have one entry per token, from the answer's first. Words without tokens (the
    answer was scored in part) are in no span. The list is empty where no words stand out or a log-probability is
    not finite.
    """
    if not all(abs(p) < _ABSURD for p in logprobs):
        return []
    words = _words(answer, offsets, len(logprobs))
    scores = _scores(words, logprobs)
    free = [True] * len(words)
    spans: list[Span] = []
    while len(spans) < MOST and (best := _best(scores, free)) is not None:
        first, last = best
        free[first:last] = [False] * (last - first)
        start, end = words[first].start, words[last - 1].end
        tokens = [-logprobs[t] for word in words[first:last] for t in word.tokens]
        spans.append(Span(answer[start:end], start, end, -math.fsum(tokens) / len(tokens), len(tokens)))
    return spans


def offsets_of(pieces: Sequence[str], answer: str) -> list[Offsets]:
    """Return the offsets of tokens in `answer`, from their decoded texts, for tokenizers that give no offsets.

    A piece that is not found shortly after the previous one (half a character, say) gets an empty range.
    """
    offsets = []
    position = 0
    for piece in pieces:
        text = piece.strip()
        start = answer.find(text, position, position + len(piece) + 8) if text else -1
        if start < 0:
            offsets.append((position, position))
            continue
        position = start + len(text)
        offsets.append((start, position))
    return offsets


def _words(answer: str, offsets: Sequence[Offsets], count: int) -> list[_Word]:
    """Return the answer's words in order. Each of the first `count` tokens belongs to the first word it overlaps.

    A word is a run of non-blank characters; scripts written without blanks are split at their tokens.
    """
    starts = {start for start, _ in offsets if 0 < start < len(answer)}
    cuts = {start for start in starts if _UNSPACED.search(answer, start - 1, start + 1)}
    words = []
    for run in _RUN.finditer(answer):
        bounds = [run.start(), *sorted(c for c in cuts if run.start() < c < run.end()), run.end()]
        words += [
            word for start, end in pairwise(bounds) if (word := _without_punctuation(answer, start, end)) is not None
        ]
    ends = [word.end for word in words]
    for token, (start, end) in enumerate(offsets[:count]):
        index = bisect_right(ends, start)
        if index < len(words) and words[index].start < end:
            words[index].tokens.append(token)
    return words


def _without_punctuation(answer: str, start: int, end: int) -> _Word | None:
    """Return the word without the punctuation at its edges; None if it has no letter or digit."""
    if not any(c.isalnum() for c in answer[start:end]):
        return None
    while unicodedata.category(answer[start])[0] == "P":
        start += 1
    while unicodedata.category(answer[end - 1])[0] == "P":
        end -= 1
    return _Word(start, end, [])


def _scores(words: Sequence[_Word], logprobs: Sequence[float]) -> list[float]:
    """Return each word's surprisal in nats, minus the mean word's plus one standard deviation; negative below that bar.

    A word whose tokens are each likely counts as zero surprisal, however many they are. A word without tokens
    scores -inf, so that it is in no run.
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
    """Return the run of free words with the largest score: first and last (exclusive).

    Of runs with the same score, the shortest is taken, then the first.
    """
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
