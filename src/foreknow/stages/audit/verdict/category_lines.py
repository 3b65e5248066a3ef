"""Counts an audit's rows by category and by relation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.inference.surprisal import LONG
from foreknow.stages.audit.short_facts import FACT_COUNTS
from foreknow.stats import Interval, share_intervals

ROW_SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "group": pl.String(),
    "relation": pl.String(),
    "subject": pl.String(),
    "split": pl.String(),
    "question": pl.String(),
    "answer": pl.String(),
    "answers": pl.List(pl.String()),
    "p_greedy": pl.Float64(),
    "p_greedy_lenient": pl.Float64(),
    "p_sampled": pl.Float64(),
    "p_sampled_width": pl.Float64(),
    "p_hit": pl.Float64(),
    "p_hit_upper": pl.Float64(),
    "category": pl.String(),
    "category_lenient": pl.String(),
    "model_answer": pl.String(),
    "popularity": pl.Float64(),
    "flags": pl.List(pl.String()),
    **LONG,
    **FACT_COUNTS,
}
RELATION_ALARM = 0.95
"""The page flags a relation with at least this Unknown share: a relation that is all Unknown harms training more
than the number of its rows suggests."""
ALARM_ROWS = 5
"""The page flags such a relation only if it has at least this many labelled rows."""
FLOOR_NOTABLE = 0.2
"""If always giving the most frequent answer scores at least this share in a relation, the relation is checked for
answers that are right only because they are that answer."""
USUAL_ANSWER = 0.9
"""Such a relation is flagged if at least this share of its greedily right rows have the most frequent answer."""


@dataclass(frozen=True)
class CategoryLine:
    """One category: its rows among all labelled rows, its share, and its expected and lenient shares."""

    name: str
    rows: int
    share: Interval
    expected: float | None
    lenient: float | None


@dataclass(frozen=True)
class RelationLine:
    """One group: its shares, and `floor`, the score of always giving its most frequent answer."""

    index: int
    name: str
    rows: int
    counts: tuple[int, ...]
    unknown: Interval
    greedy: float | None
    floor: float | None
    floor_answer: str | None
    alarm: bool
    usual: bool

    @property
    def shares(self) -> tuple[float, ...]:
        """The four shares, in the order of CATEGORIES."""
        return tuple(c / self.rows for c in self.counts)


def complete(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with every column of `ROW_SCHEMA`.

    Columns that are missing are added as nulls, NaN becomes null, and a null in `group` or `flags` becomes empty.
    """
    missing = [pl.lit(None, dtype=t).alias(c) for c, t in ROW_SCHEMA.items() if c not in rows.columns]
    frame = rows.with_columns(missing).select(pl.col(c).cast(t) for c, t in ROW_SCHEMA.items())
    return frame.with_columns(
        pl.col(pl.Float64).fill_nan(None), pl.col("group").fill_null(""), pl.col("flags").fill_null([])
    )


def counts_by_group(rows: pl.DataFrame) -> dict[str, tuple[int, ...]]:
    """The number of labelled rows of each category, for each group."""
    table = (
        rows.filter(pl.col("category").is_not_null())
        .group_by("group")
        .agg((pl.col("category") == c).sum().alias(c) for c in CATEGORIES)
        .sort("group")
    )
    return {line[0]: tuple(line[1:]) for line in table.iter_rows()}


def category_lines(rows: pl.DataFrame, expected: dict[str, Any] | None, seed: int) -> tuple[CategoryLine, ...]:
    """The four categories with their intervals, expected shares, and shares under lenient matching."""
    counts = counts_by_group(rows)
    if not counts:
        return ()
    table = np.array(list(counts.values()))
    lenient_labels = rows["category_lenient"].drop_nulls()
    lenient: dict[str, int] | None = (
        {c: int((lenient_labels == c).sum()) for c in CATEGORIES} if len(lenient_labels) else None
    )
    return tuple(
        CategoryLine(
            name=name,
            rows=int(table[:, place].sum()),
            share=interval,
            expected=None if expected is None else expected.get(name),
            lenient=None if lenient is None else lenient[name] / len(lenient_labels),
        )
        for place, (name, interval) in enumerate(zip(CATEGORIES, share_intervals(table, seed=seed), strict=True))
    )


def relation_lines(
    rows: pl.DataFrame, floors: dict[str, Any], groups: Sequence[str], seed: int
) -> tuple[RelationLine, ...]:
    """One line per group with labelled rows, highest Unknown share first."""
    greedy = dict(rows.group_by("group").agg(pl.col("p_greedy").mean()).iter_rows())
    right = rows.filter(pl.col("category").is_in(CATEGORIES[:2]))
    place = {name: index for index, name in enumerate(groups)}
    lines = []
    for name, counts in counts_by_group(rows).items():
        floor = floors.get(name) or {}
        score, accuracy, size = floor.get("floor"), greedy.get(name), sum(counts)
        unknown = share_intervals([counts], seed=seed)[CATEGORIES.index("Unknown")]
        answer = pl.lit(floor.get("answer"), pl.String)
        usual = right.filter(pl.col("group") == name, pl.col("answer") == answer)
        lines.append(
            RelationLine(
                index=place[name],
                name=name,
                rows=size,
                counts=counts,
                unknown=unknown,
                greedy=accuracy,
                floor=score,
                floor_answer=floor.get("answer"),
                alarm=unknown.value >= RELATION_ALARM and size >= ALARM_ROWS,
                usual=score is not None
                and score >= FLOOR_NOTABLE
                and counts[0] + counts[1] >= ALARM_ROWS
                and len(usual) >= USUAL_ANSWER * (counts[0] + counts[1]),
            )
        )
    return tuple(sorted(lines, key=lambda line: (-line.unknown.value, -line.rows, line.name)))
