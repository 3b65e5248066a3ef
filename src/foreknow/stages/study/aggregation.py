"""Gather a study's evaluations at its points, over seeds, with intervals, for every table of the study. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES, KNOWN
from foreknow.stages.study import paired
from foreknow.stats import wilson

EARLY: Final = "early_stop"
LATE: Final = "convergence"
POINTS: Final = (EARLY, LATE)
REFUSED: Final = "test_refused"
ALL: Final = "all"
ALL_KNOWN: Final = "Known"
"""A category that we add to the paper's: its three Known categories together."""
TRAINED_ON: Final = {"shares": "D", "known": "D_Known", "idk": "D_IDK"}
"""The name of each kind of variant in the tables."""


def with_known(results: pl.DataFrame) -> pl.DataFrame:
    """Add to the results the category Known, which sums the three Known categories."""
    key = [name for name in results.columns if name not in ("category", "rows", "correct")]
    known = (
        results.filter(pl.col("category").is_in(KNOWN))
        .group_by(key, maintain_order=True)
        .agg(pl.col("rows", "correct").sum())
        .with_columns(category=pl.lit(ALL_KNOWN))
    )
    return pl.concat([results, known.select(results.columns)])


def at_points(results: pl.DataFrame, fixed_epochs: Iterable[int] = ()) -> pl.DataFrame:
    """Return the evaluations at EARLY_STOP, at each fixed epoch that was reached, and at CONVERGENCE (`point`)."""
    chosen = [(EARLY, pl.col("early_stop"))]
    chosen += [(f"epoch {epoch}", pl.col("epoch") == epoch) for epoch in sorted(set(fixed_epochs))]
    chosen += [(LATE, pl.col("convergence"))]
    return pl.concat([results.filter(which).with_columns(point=pl.lit(name)) for name, which in chosen])


def over_seeds(points: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the EM of set `name`: its mean, smallest and largest value over seeds, in the order of the points."""
    share = pl.col("correct") / pl.col("rows")
    key = ["variant", "kind", "share", "trained", "point", "category"]
    return (
        points.filter((pl.col("set") == name) & (pl.col("rows") > 0))
        .group_by(key, maintain_order=True)
        .agg(
            epoch=pl.col("epoch").mean(),
            seeds=pl.col("seed").n_unique().cast(pl.Int64),
            rows=pl.col("rows").mean().round().cast(pl.Int64),
            em=share.mean(),
            seed_min=share.min(),
            seed_max=share.max(),
        )
    )


def intervals_of(outcomes: pl.DataFrame, seed: int = 0, sets: Iterable[str] = ("test", "ood")) -> pl.DataFrame:
    """Return ci_low and ci_high for each variant, point, set and category, from a bootstrap of rows and seeds.

    Categories are those that the base model has.
    """
    lines: list[tuple[Any, ...]] = []
    of = outcomes.filter(pl.col("set").is_in(list(sets)))
    for (variant, point, name), part in of.group_by("variant", "point", "set", maintain_order=True):
        for category in (ALL, ALL_KNOWN, *CATEGORIES):
            rows = part.filter(_of_category(category))
            if rows.height:
                found = paired.resampled(paired.stack([rows]), lambda total: total[..., 0], seed=seed)
                lines.append((variant, point, name, category, max(found.low, 0.0), min(found.high, 1.0)))
    text, number = pl.String(), pl.Float64()
    schema = {"variant": text, "point": text, "set": text, "category": text, "ci_low": number, "ci_high": number}
    return pl.DataFrame(lines, schema=schema, orient="row")


def _of_category(category: str) -> pl.Expr:
    if category == ALL:
        return pl.lit(True)
    return pl.col("category").is_in(KNOWN) if category == ALL_KNOWN else pl.col("category") == category


def with_intervals(found: pl.DataFrame, intervals: pl.DataFrame, name: str) -> pl.DataFrame:
    """Add ci_low, ci_high and interval to `found`: over rows and seeds where `intervals` has them, else Wilson's."""
    key = ["variant", "point", "category"]
    joined = found.join(intervals.filter(pl.col("set") == name).drop("set"), on=key, how="left", maintain_order="left")
    wilsons = [wilson(round(em * rows), rows) for em, rows in joined.select("em", "rows").iter_rows()]
    known = pl.col("ci_low").is_not_null()
    return joined.with_columns(
        interval=pl.when(known).then(pl.lit("rows and seeds")).otherwise(pl.lit("rows")),
        ci_low=pl.coalesce("ci_low", pl.Series([one.low for one in wilsons], dtype=pl.Float64)),
        ci_high=pl.coalesce("ci_high", pl.Series([one.high for one in wilsons], dtype=pl.Float64)),
    )


def trained_on() -> pl.Expr:
    """Return an expression that names the column `kind` as in `TRAINED_ON`."""
    return pl.col("kind").replace_strict(TRAINED_ON, default=None, return_dtype=pl.String)
