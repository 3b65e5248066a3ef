"""Compare an audit's rows with how often each fact was in the model's training data. Pure.

A lab model's training data is known, unlike that of a user's model: which facts it never contained (so that any right
answer is a guess) and which it repeated. All functions take an audit's rows (`category, p_greedy, p_sampled, p_hit`)
with a column `exposures`, null where unknown; `with_exposures` adds it. Rows without a category or exposures are left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.data.builtin.lab_world import BINS, bin_of
from foreknow.data.schema import GOLD
from foreknow.errors import InputError
from foreknow.stats import Interval, wilson

OFTEN: Final = 20
"""The model should know facts that it saw more often than this."""

CONFUSION: Final[dict[str, pl.DataType]] = {
    "exposures": pl.String(),
    "rows": pl.Int64(),
    **{name: pl.Int64() for name in CATEGORIES},
    "known": pl.Float64(),
    "p_greedy": pl.Float64(),
    "p_sampled": pl.Float64(),
}
"""One row per bin of `BINS`: rows, how many of each category, the share not Unknown, mean recall (0 to 1)."""

POOLS: Final[dict[str, pl.DataType]] = {
    "pool": pl.Int64(),
    "rows": pl.Int64(),
    "known": pl.Float64(),
    "greedy_known": pl.Float64(),
    "p_greedy": pl.Float64(),
    "p_sampled": pl.Float64(),
    "chance": pl.Float64(),
}
"""Never-seen facts, by the number of answers from which their golds were drawn. `known` is the share not Unknown, all
of it by guessing; `greedy_known` the share HighlyKnown or MaybeKnown; `chance` is 1 / pool, the score of a blind
guess."""

CALIBRATION: Final[dict[str, pl.DataType]] = {
    "low": pl.Float64(),
    "high": pl.Float64(),
    "rows": pl.Int64(),
    "p_sampled": pl.Float64(),
    "recall": pl.Float64(),
    "seen": pl.Float64(),
}
"""Rows by stretches [low, high) of `p_sampled` (the last includes 1): its mean, the mean share of exemplar sets
answered right greedily, and the share of facts that the model saw at all."""


@dataclass(frozen=True)
class Truth:
    """The comparison of an audit with a lab's facts. `auc`: by score, how well it separates seen from unseen facts."""

    confusion: pl.DataFrame
    pools: pl.DataFrame
    calibration: pl.DataFrame
    calibration_error: float
    never_seen_known: Interval
    often_seen_unknown: Interval
    auc: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return plain values. A figure is null where rows for it are missing."""
        return {
            "confusion": self.confusion.to_dicts(),
            "never_seen_by_pool": self.pools.to_dicts(),
            "calibration": self.calibration.to_dicts(),
            "calibration_error": None if np.isnan(self.calibration_error) else self.calibration_error,
            "never_seen_known": _interval(self.never_seen_known),
            "often_seen_unknown": _interval(self.often_seen_unknown),
            "auc": {score: None if np.isnan(value) else value for score, value in self.auc.items()},
        }


def truth(rows: pl.DataFrame, *, often: int = OFTEN) -> Truth:
    """Compute every comparison of this file for `rows`."""
    known = labelled(rows)
    seen = (known["exposures"] > 0).to_numpy()
    calibrated = calibration(known)
    return Truth(
        confusion=confusion(known),
        pools=never_seen_by_pool(known),
        calibration=calibrated,
        calibration_error=calibration_error(calibrated),
        never_seen_known=_share(known.filter(pl.col("exposures") == 0), pl.col("category") != UNKNOWN),
        often_seen_unknown=_share(known.filter(pl.col("exposures") > often), pl.col("category") == UNKNOWN),
        auc={score: auc(known[score].to_numpy(), seen) for score in ("p_greedy", "p_sampled", "p_hit")},
    )


def with_exposures(rows: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Add to an audit's rows `exposures` and `pool` of the facts (`lab_world.FACTS`), matched by question and gold.

    Raises InputError if none of the rows is among the facts.
    """
    told = facts.select("question", "exposures", "pool", answer=GOLD).unique(["question", "answer"], keep="first")
    joined = rows.drop("exposures", "pool", strict=False).join(
        told, on=["question", "answer"], how="left", maintain_order="left"
    )
    if rows.height and joined["exposures"].null_count() == joined.height:
        raise InputError(
            f"none of the audit's {rows.height:,} rows is a fact of this lab; audit the lab's own facts.jsonl"
        )
    return joined


def labelled(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that have a category and known exposures."""
    return rows.filter(pl.col("category").is_not_null() & pl.col("exposures").is_not_null())


def confusion(rows: pl.DataFrame) -> pl.DataFrame:
    """Count categories by exposures (`CONFUSION`), with a row for every bin. The last bin takes all above it."""
    binned = labelled(rows).with_columns(bin=bin_of(pl.col("exposures")))
    counts = {name: (pl.col("category") == name).sum().cast(pl.Int64) for name in CATEGORIES}
    means = {name: pl.col(name).mean() for name in ("p_greedy", "p_sampled")}
    known = (pl.col("category") != UNKNOWN).mean().alias("known")
    found = binned.group_by("bin").agg(pl.len().cast(pl.Int64).alias("rows"), known, **counts, **means)
    every = pl.DataFrame({"bin": list(BINS)}, schema={"bin": pl.String()})
    joined = every.join(found, on="bin", how="left", maintain_order="left").rename({"bin": "exposures"})
    return joined.with_columns(pl.col("rows", *CATEGORIES).fill_null(0)).select(*CONFUSION)


def never_seen_by_pool(rows: pl.DataFrame) -> pl.DataFrame:
    """Count the categories of never-seen facts by their number of possible answers (`POOLS`), the fewest first."""
    if "pool" not in rows.columns:
        return pl.DataFrame(schema=POOLS)
    never = labelled(rows).filter((pl.col("exposures") == 0) & pl.col("pool").is_not_null())
    return (
        never.group_by("pool")
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            (pl.col("category") != UNKNOWN).mean().alias("known"),
            (pl.col("p_greedy") > 0).mean().alias("greedy_known"),
            pl.col("p_greedy").mean(),
            pl.col("p_sampled").mean(),
        )
        .with_columns(pl.col("pool").cast(pl.Int64), chance=1 / pl.col("pool"))
        .select(*POOLS)
        .sort("pool")
    )


def calibration(rows: pl.DataFrame, stretches: int = 10) -> pl.DataFrame:
    """Compare `p_sampled` with recall (`CALIBRATION`) in stretches of equal width; empty stretches are left out."""
    at = (pl.col("p_sampled").clip(0, 1) * stretches).floor().clip(0, stretches - 1).cast(pl.Int64)
    return (
        labelled(rows)
        .drop_nulls(["p_sampled", "p_greedy"])
        .group_by(at.alias("at"))
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("p_sampled").mean(),
            pl.col("p_greedy").mean().alias("recall"),
            (pl.col("exposures") > 0).mean().alias("seen"),
        )
        .with_columns(low=pl.col("at") / stretches, high=(pl.col("at") + 1) / stretches)
        .sort("at")
        .select(*CALIBRATION)
    )


def calibration_error(table: pl.DataFrame) -> float:
    """Return the mean distance between `p_sampled` and recall over stretches, weighted by rows; NaN for no stretch."""
    rows = table["rows"].to_numpy()
    if not rows.sum():
        return float("nan")
    return float(np.average(np.abs(table["p_sampled"].to_numpy() - table["recall"].to_numpy()), weights=rows))


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the probability that a positive scores higher than a negative, ties counted half; NaN without both.

    It is exact: it comes from mean ranks (Mann and Whitney), not from a curve.
    """
    values: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    marks: NDArray[np.bool_] = np.asarray(positive, dtype=bool)
    if values.shape != marks.shape or values.ndim != 1:
        raise ValueError(f"expected two lists of like length; found {values.shape} and {marks.shape}")
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    ups, downs = int(marks.sum()), int((~marks).sum())
    if not ups or not downs:
        return float("nan")
    ranks = pl.Series(values).rank("average").to_numpy()
    return float((ranks[marks].sum() - ups * (ups + 1) / 2) / (ups * downs))


def _share(rows: pl.DataFrame, hit: pl.Expr) -> Interval:
    """Return the share of rows where `hit` holds, with Wilson's interval."""
    return wilson(int(rows.select(hit.sum()).item() or 0), rows.height)


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high}
