"""Summarises the rows with long answers: how expected their wording is, and which words are least so.

Its functions have no side effects. All figures are log-probabilities (nats per token, `surprisal.LONG`); the page
shows them as chances: a mean of -2.77 is a chance of 1 in 16 for the next token. They measure how much the model
expects a wording, and do not measure knowledge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import polars as pl

from foreknow.stages.audit.verdict.excerpts import InSentence, in_sentence

LONG: Final = "long_answer"
SPANS_SHOWN: Final = 20
ROWS_SHOWN: Final = 5
FEW: Final = 8
"""With fewer scored rows than this the page draws no histogram."""
MOST_BINS: Final = 16


@dataclass(frozen=True)
class QuestionEffect:
    """A row, and the mean log-probability (nats per token) of its answer with the question and without (`alone`)."""

    row: int
    question: str
    logprob: float
    alone: float

    @property
    def times(self) -> float:
        """How many times likelier a token of the answer is with the question than without."""
        return times(self.logprob, self.alone)


@dataclass(frozen=True)
class Words:
    """Words that the model expects least, in their sentence.

    `row`: the row they are from. `rows`: how many rows have the same words. `tokens`: their number of tokens.
    `logprob`: mean nats per token.
    """

    row: int
    rows: int
    sentence: InSentence
    tokens: int
    logprob: float


@dataclass(frozen=True)
class ExpectationBin:
    """The number of rows whose mean chance per token is between 1 in 2**low and 1 in 2**high.

    `with_question`: counted by the chance after the question. `without_question`: by the chance without it.
    """

    low: float
    high: float
    with_question: int
    without_question: int


@dataclass(frozen=True)
class LongAnswers:
    """What the page shows of the rows with long answers.

    `rows`: their number. `tokens`: the median length. `logprob`, `alone`: mean nats per token over the `scored` rows,
    with the question and without. `cut`: rows of which only the first `cut_at` tokens or fewer are scored. `helps`:
    lowest, median and highest factor by which a question makes a token likelier. `least`, `most`: the rows whose
    question helps least and most.
    """

    rows: int
    scored: int
    tokens: float | None
    logprob: float | None
    alone: float | None
    cut: int
    cut_at: int
    helps: tuple[float, float, float] | None
    least: tuple[QuestionEffect, ...]
    most: tuple[QuestionEffect, ...]
    bins: tuple[ExpectationBin, ...]
    words: tuple[Words, ...]


def long_answers(rows: pl.DataFrame) -> LongAnswers | None:
    """Summarise the long answers of a frame of rows (`category_lines.complete`); None if there are none."""
    long = rows.filter(pl.col("flags").list.contains(LONG))
    if long.is_empty():
        return None
    scored = long.filter(pl.col("logprob").is_finite(), pl.col("logprob_alone").is_finite())
    effects = _question_effects(scored)
    # the first token of a text has no score, so one missing token does not count as a cut
    cut = scored.filter(pl.col("scored_tokens") < pl.col("answer_tokens") - 1)
    few = min(ROWS_SHOWN, len(effects) // 2)
    return LongAnswers(
        rows=long.height,
        scored=scored.height,
        tokens=_number(long["answer_tokens"].median()),
        logprob=_number(scored["logprob"].mean()),
        alone=_number(scored["logprob_alone"].mean()),
        cut=cut.height,
        cut_at=int(_number(cut["scored_tokens"].max()) or 0),
        helps=(effects[0].times, _middle([e.times for e in effects]), effects[-1].times) if effects else None,
        least=tuple(effects[:few]),
        most=tuple(reversed(effects[len(effects) - few :])),
        bins=expectation_bins(scored),
        words=least_expected(scored),
    )


def expectation_bins(scored: pl.DataFrame) -> tuple[ExpectationBin, ...]:
    """Count the rows by the mean chance per token of their answers, in steps of half a doubling or more.

    `scored`: rows with finite `logprob` and `logprob_alone`. Empty for fewer than `FEW` rows.
    """
    if scored.height < FEW:
        return ()
    doublings = [(scored[name] / -math.log(2)).to_list() for name in ("logprob", "logprob_alone")]
    low, high = min(map(min, doublings)), max(map(max, doublings))
    step = 0.5
    while high // step - low // step >= MOST_BINS:
        step *= 2
    return tuple(
        ExpectationBin(k * step, (k + 1) * step, *(sum(x // step == k for x in values) for values in doublings))
        for k in range(int(low // step), int(high // step) + 1)
    )


def least_expected(scored: pl.DataFrame, most: int = SPANS_SHOWN) -> tuple[Words, ...]:
    """The least expected words of all rows, those with the lowest total log-probability first.

    Words that several rows have are listed once.
    """
    spans = (
        scored.select("row", "answer", "spans").explode("spans", empty_as_null=True).drop_nulls("spans").unnest("spans")
    )
    rarest = (
        spans.with_columns(whole=pl.col("logprob") * pl.col("tokens"))
        .sort("whole", "row", "start")
        .with_columns(rows=pl.col("row").n_unique().over("text"))
        .unique("text", keep="first", maintain_order=True)
        .head(most)
    )
    return tuple(
        Words(s["row"], s["rows"], in_sentence(s["answer"], s["start"], s["end"]), s["tokens"], s["logprob"])
        for s in rarest.iter_rows(named=True)
    )


def times(logprob: float, alone: float) -> float:
    """How many times likelier a token is with the question than without."""
    return math.exp(max(-50.0, min(logprob - alone, 50.0)))


def _question_effects(scored: pl.DataFrame) -> list[QuestionEffect]:
    """The rows ordered by how much their question helps, least first."""
    lines = [QuestionEffect(*line) for line in scored.select("row", "question", "logprob", "logprob_alone").iter_rows()]
    return sorted(lines, key=lambda line: (line.times, line.row))


def _middle(values: list[float]) -> float:
    """The median of sorted factors; the geometric mean of the middle two if their number is even."""
    return math.sqrt(values[(len(values) - 1) // 2] * values[len(values) // 2])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
