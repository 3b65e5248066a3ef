"""Rows with long answers -> what is said of them: how expected their wording is, and where it is least so. Pure.

All figures are log-probabilities (nats a token, `surprisal.LONG`) put into words: a mean of -2.77 is 1 chance in 16
for the next token. They measure expectation of a wording, never knowledge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import polars as pl

from foreknow.report.excerpts import InSentence, in_sentence

LONG: Final = "long_answer"
SPANS_SHOWN: Final = 20
ROWS_SHOWN: Final = 5
FEW: Final = 8
"""Fewer scored rows than this are listed, not drawn."""
MOST_BINS: Final = 16


@dataclass(frozen=True)
class QuestionEffect:
    """A row and how much its question helps: mean log-probabilities with and without it, and their factor."""

    row: int
    question: str
    logprob: float
    alone: float

    @property
    def times(self) -> float:
        """How many times likelier a token is behind the question."""
        return times(self.logprob, self.alone)


@dataclass(frozen=True)
class Words:
    """Least expected words in their sentence; `rows`: how many rows have the same ones; `logprob`: nats a token."""

    row: int
    rows: int
    sentence: InSentence
    tokens: int
    logprob: float


@dataclass(frozen=True)
class ExpectationBin:
    """Rows whose mean log-probability lies between 1 in 2**low and 1 in 2**high, with their question and without."""

    low: float
    high: float
    with_question: int
    without_question: int


@dataclass(frozen=True)
class LongAnswers:
    """What is known of the rows with long answers.

    `tokens`: the median length. `logprob`, `alone`: means over the `scored` rows. `cut`: rows of which only the
    first `cut_at` tokens or fewer are scored. `helps`: lowest, median and highest factor by which a question helps.
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
    """Everything the page says of long answers, from the frame of rows (`tables.complete`); None without any."""
    long = rows.filter(pl.col("flags").list.contains(LONG))
    if long.is_empty():
        return None
    scored = long.filter(pl.col("logprob").is_finite(), pl.col("logprob_alone").is_finite())
    effects = _question_effects(scored)
    # one token goes unscored where an answer begins its text, and no reader misses it
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
    """Rows by how expected their answers are, in steps of half a doubling or more; nothing for a few rows."""
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
    """The least expected words of all rows, the least probable as a whole first; the same words are shown once."""
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


def one_in(logprob: float) -> str:
    """A mean log-probability as a chance that can be said: 1 in 16."""
    if -logprob >= math.log(1e9):
        return "less than 1 in a billion"
    choices = math.exp(-logprob)
    if choices < 9.95:
        return f"1 in {choices:.1f}"
    if choices < 999.5:
        return f"1 in {choices:.0f}"
    rounded = float(f"{choices:.2g}")
    return f"1 in {rounded:,.0f}" if rounded < 1e6 else f"1 in {rounded / 1e6:g} million"


def times(logprob: float, alone: float) -> float:
    """How many times likelier a token is with the question than without."""
    return math.exp(max(-50.0, min(logprob - alone, 50.0)))


def factor(value: float) -> str:
    """How many times likelier, in as many digits as it deserves: 1.5, 12, 0.98."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


def _question_effects(scored: pl.DataFrame) -> list[QuestionEffect]:
    """The rows by how much their question helps, least first."""
    lines = [QuestionEffect(*line) for line in scored.select("row", "question", "logprob", "logprob_alone").iter_rows()]
    return sorted(lines, key=lambda line: (line.times, line.row))


def _middle(values: list[float]) -> float:
    return math.sqrt(values[(len(values) - 1) // 2] * values[len(values) // 2])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
