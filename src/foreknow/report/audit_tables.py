"""This module computes the lines of the audit page's tables from the audit's data frames.

Its functions have no side effects and write no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.inference.surprisal import LONG
from foreknow.stages.audit.short_facts import FACT_COUNTS
from foreknow.stats import Interval, Spread, share_intervals, spread

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

BINS = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Inner edges of the bins of P_Correct: decades near 0, where Unknown borders on WeaklyKnown; even steps above."""
BIN_NAMES = (
    "below 0.0001",
    "0.0001 – 0.001",
    "0.001 – 0.01",
    "0.01 – 0.1",
    "0.1 – 0.3",
    "0.3 – 0.5",
    "0.5 – 0.7",
    "0.7 – 0.9",
    "0.9 – 1",
)

FIFTHS = ("least popular fifth", "second", "middle", "fourth", "most popular fifth")
MIN_POPULARITY_ROWS = 25
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


@dataclass(frozen=True)
class Carrier:
    """An answer that several Unknown rows have."""

    answer: str
    rows: int
    share: float
    groups: tuple[str, ...]


@dataclass(frozen=True)
class BinLine:
    """Rows of one category whose P_Correct falls into one bin."""

    place: int
    bin: str
    category: str
    rows: int


@dataclass(frozen=True)
class PopularityLine:
    """Known share in one fifth of popularity, ranked within each group."""

    fifth: str
    rows: int
    known: Interval


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


def exemplar_spread(probes: pl.DataFrame) -> Spread | None:
    """The spread, over exemplar sets, of the share of rows that greedy decoding answers right."""
    shares = probes.group_by("exemplar_set").agg(pl.col("greedy_correct").mean()).sort("exemplar_set")
    values = shares["greedy_correct"].drop_nulls().to_list()
    return spread(values) if values else None


def carriers(rows: pl.DataFrame, limit: int = 10) -> tuple[Carrier, ...]:
    """The answers that at least two Unknown rows have, most frequent first."""
    unknown = rows.filter(pl.col("category") == "Unknown", pl.col("answer").is_not_null())
    table = (
        unknown.group_by("answer", "group")
        .len()
        .sort(["len", "group"], descending=[True, False])
        .group_by("answer", maintain_order=True)
        .agg(pl.col("len").sum().alias("rows"), pl.col("group").alias("groups"))
        .filter(pl.col("rows") > 1)
        .sort(["rows", "answer"], descending=[True, False])
        .head(limit)
    )
    return tuple(
        Carrier(answer, count, count / len(unknown), tuple(groups)) for answer, count, groups in table.iter_rows()
    )


def probability_bins(rows: pl.DataFrame) -> tuple[BinLine, ...]:
    """The number of rows for each bin of P_Correct and each category; empty bins are included."""
    known = rows.filter(pl.col("category").is_not_null(), pl.col("p_sampled").is_not_null())
    if known.is_empty():
        return ()
    places = np.searchsorted(np.array(BINS), known["p_sampled"].to_numpy(), side="right")
    labels = known["category"].to_numpy()
    return tuple(
        BinLine(place, name, category, int(((places == place) & (labels == category)).sum()))
        for place, name in enumerate(BIN_NAMES)
        for category in CATEGORIES
    )


def with_fifths(rows: pl.DataFrame) -> pl.DataFrame:
    """The labelled rows that have a popularity, with two more columns: `fifth` and `known`.

    `fifth` is 0 to 4 by rank within the row's group; tied rows share their mean rank.
    """
    rank = pl.col("popularity").rank("average").over("group")
    size = pl.len().over("group")
    return (
        rows.filter(pl.col("popularity").is_not_null(), pl.col("category").is_not_null())
        .filter(pl.col("popularity").n_unique().over("group") >= len(FIFTHS))
        .with_columns(
            ((rank - 0.5) / size * len(FIFTHS)).floor().clip(0, 4).cast(pl.Int64).alias("fifth"),
            (pl.col("category") != "Unknown").alias("known"),
        )
    )


def popularity_lines(rows: pl.DataFrame, seed: int) -> tuple[PopularityLine, ...]:
    """The Known share in each fifth of popularity over all groups; empty if too few rows have a popularity."""
    ranked = with_fifths(rows)
    if len(ranked) < MIN_POPULARITY_ROWS:
        return ()
    lines = []
    for place, name in enumerate(FIFTHS):
        table = (
            ranked.filter(pl.col("fifth") == place)
            .group_by("group")
            .agg(pl.col("known").sum().alias("known"), (~pl.col("known")).sum().alias("unknown"))
            .sort("group")
        )
        if len(table):
            known = share_intervals(table.select("known", "unknown").to_numpy(), seed=seed)[0]
            lines.append(PopularityLine(name, int(table.select("known", "unknown").to_numpy().sum()), known))
    return tuple(lines)


def popularity_by_group(rows: pl.DataFrame, limit: int = 24) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
    """The Known share in each fifth of popularity for the largest groups; None for a fifth without rows."""
    ranked = with_fifths(rows)
    sizes = ranked.group_by("group").len().sort(["len", "group"], descending=[True, False]).head(limit)
    shares = {(g, f): s for g, f, s in ranked.group_by("group", "fifth").agg(pl.col("known").mean()).iter_rows()}
    return tuple((g, tuple(shares.get((g, f)) for f in range(len(FIFTHS)))) for g in sizes["group"])
