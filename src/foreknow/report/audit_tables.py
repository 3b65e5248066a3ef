"""This module computes the lines of the audit page's tables from the audit's data frames.

Its functions have no side effects and write no HTML.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.stats import Interval, Spread, share_intervals, spread

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
