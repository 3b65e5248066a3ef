"""Summarises the short facts that rows contain (`foreknow.stages.audit.short_facts`).

Its functions have no side effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.stages.audit.short_facts import ROLL_UP

WORST_SHOWN: Final = 10


@dataclass(frozen=True)
class ShortFactRow:
    """One short fact, its category (None if it could not be labelled) and the model's answer."""

    question: str
    answer: str
    category: str | None
    model_answer: str | None


@dataclass(frozen=True)
class RowWithFacts:
    """A row, the number of its facts that have a category, and those of them that are Unknown."""

    row: int
    question: str
    facts: int
    unknown: tuple[ShortFactRow, ...]


@dataclass(frozen=True)
class ShortFacts:
    """The short facts of an audit in sum.

    `facts`: their number. `rows_with_facts`: rows that contain any. `counts`: facts of each category. `rows`: rows for
    each word of `ROLL_UP`. `worst`: the rows with the highest share of Unknown facts.
    """

    facts: int
    rows_with_facts: int
    counts: tuple[int, ...]
    rows: Mapping[str, int]
    worst: tuple[RowWithFacts, ...]

    @property
    def labelled(self) -> int:
        """Facts that have a category."""
        return sum(self.counts)

    @property
    def unknown(self) -> int:
        """Facts that are Unknown."""
        return self.counts[-1]

    @property
    def shares(self) -> list[float]:
        """The share of each category among the labelled facts; zeros if there are none."""
        return [count / max(self.labelled, 1) for count in self.counts]


def short_facts(rows: pl.DataFrame, facts: pl.DataFrame | None) -> ShortFacts | None:
    """Summarise the facts (`Audit.facts`) of a frame of rows (`category_lines.complete`); None if there are none."""
    if facts is None or facts.is_empty():
        return None
    row_counts = dict(rows["facts_category"].fill_null(ROLL_UP[0]).value_counts().iter_rows())
    return ShortFacts(
        facts=facts.height,
        rows_with_facts=facts["parent"].n_unique(),
        counts=tuple(int((facts["category"] == name).sum()) for name in CATEGORIES),
        rows={word: int(row_counts.get(word, 0)) for word in ROLL_UP},
        worst=_worst(rows, facts),
    )


def by_parent(facts: pl.DataFrame | None) -> dict[int, list[ShortFactRow]]:
    """The facts of each row, in their order."""
    facts_by_row: dict[int, list[ShortFactRow]] = {}
    if facts is not None:
        columns = ("parent", "question", "answer", "category", "model_answer")
        for parent, *rest in facts.sort("parent", "fact").select(columns).iter_rows():
            facts_by_row.setdefault(parent, []).append(ShortFactRow(*rest))
    return facts_by_row


def _worst(rows: pl.DataFrame, facts: pl.DataFrame) -> tuple[RowWithFacts, ...]:
    """The rows with the highest share of Unknown facts; of equal shares, those with more facts first."""
    order = pl.struct(-pl.col("unknown_facts"), -pl.col("n_facts"), "row")
    worst = rows.filter(pl.col("unknown_facts") > 0).sort(order).head(WORST_SHOWN)
    own = by_parent(facts.filter(pl.col("parent").is_in(worst["row"].implode())))
    return tuple(
        RowWithFacts(row, question, n, tuple(fact for fact in own.get(row, ()) if fact.category == UNKNOWN))
        for row, question, n in worst.select("row", "question", "n_facts").iter_rows()
    )
