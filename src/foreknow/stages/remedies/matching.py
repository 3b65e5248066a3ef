"""Compares recipes at the same share of new facts learnt, with intervals over rows and seeds. Pure.

Recipes learn at different speeds, so each is read off its own curve where it has learnt the share asked for: by a
straight line between the last point below it and the first one at or above it. A recipe that never gets there is not
compared at this share.

What is kept of the known rows has an interval (95 %) that counts two sources of chance: other rows might have been
watched, and other seeds drawn. The variance is the sum of that of the rows' means over seeds, divided by the rows, and
that of the seeds' means over rows, divided by the seeds; its degrees of freedom are Satterthwaite's (1946). With one
seed only the rows count. Of each recipe the rate with the most kept is taken; it is chosen on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, variance
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.stages.remedies.points import POINTS

TARGETS: Final = (0.5, 0.8, 0.9, 0.95)
"""The shares of the new facts learnt at which recipes are compared."""
TARGET: Final = 0.9
"""The share that the recommendation is made at."""
MEASURES: Final = tuple(
    name for name in POINTS if name not in ("recipe", "rate", "seed", "at", "learnt", "known_before")
)
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Reading:
    """A curve read at a share of new facts learnt: between points `low` and `high`, `part` (0 to 1) of the way."""

    low: float
    high: float
    part: float
    values: Mapping[str, float | None]


class Estimate(NamedTuple):
    """A mean with its 95 % interval; the ends are None if they cannot be computed."""

    value: float
    low: float | None
    high: float | None


def read_at(curve: pl.DataFrame, target: float) -> Reading | None:
    """Read a curve (`POINTS` of one recipe, rate and seed, by `at`) at a share of new facts learnt.

    Returns None if the curve does not reach the share, or begins above it.
    """
    lines = curve.sort("at").to_dicts()
    if not lines or lines[0]["learnt"] > target:
        return None
    for before, after in pairwise(lines):
        if after["learnt"] >= target:
            step = after["learnt"] - before["learnt"]
            part = (target - before["learnt"]) / step if step > 0 else 1.0
            values = {name: _between(before[name], after[name], part) for name in MEASURES}
            return Reading(before["at"], after["at"], part, values)
    return None


def _between(low: float | None, high: float | None, part: float) -> float | None:
    if high is None or low is None:
        return high
    return low + part * (high - low)


def kept_rows(outcomes: pl.DataFrame, rows: Sequence[int], reading: Reading) -> list[float]:
    """Return for each of `rows` how far it is kept where the curve is read: 0, 1, or between two points in part.

    `outcomes`: those of the curve (`points.OUTCOMES`). Before training (point 0) every row is right.
    """
    ends = []
    for at in (reading.low, reading.high):
        own = dict(outcomes.filter(pl.col("at") == at).select("row", "correct").iter_rows())
        ends.append([float(own.get(row, at == 0.0)) for row in rows])
    return [low + reading.part * (high - low) for low, high in zip(*ends, strict=True)]


def estimate(table: Sequence[Sequence[float]], level: float = LEVEL) -> Estimate:
    """Return the mean of a table of seeds by rows with its interval; see the top of this file."""
    from scipy.special import stdtrit  # keeps scipy out

    seeds, rows = len(table), len(table[0]) if table else 0
    if not rows:
        return Estimate(math.nan, None, None)
    by_row = [fmean(column) for column in zip(*table, strict=True)]
    by_seed = [fmean(line) for line in table]
    mean = fmean(by_row)
    if rows < 2:
        return Estimate(mean, None, None)
    parts = [(variance(by_row) / rows, rows - 1)]
    if seeds > 1:
        parts.append((variance(by_seed) / seeds, seeds - 1))
    total = sum(part for part, _ in parts)
    if total == 0:
        return Estimate(mean, mean, mean)
    freedom = total**2 / sum(part**2 / count for part, count in parts)
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total)
    return Estimate(mean, mean - half, mean + half)


class Matched(NamedTuple):
    """A recipe at one share of new facts learnt, at the rate with the most known rows kept.

    `seeds`: how many of all `of_seeds` seeds reach the share. `kept`: rows of known. `table`: seeds by rows, kept.
    `seed_numbers`: the seeds of the table's lines. `rows`: the numbers of the rows of its columns. `measures`: means
    over seeds of `MEASURES`.
    """

    recipe: str
    target: float
    rate: float
    seeds: int
    of_seeds: int
    kept: Estimate
    table: tuple[tuple[float, ...], ...]
    seed_numbers: tuple[int, ...]
    rows: tuple[int, ...]
    measures: Mapping[str, float | None]


def match_recipe(points: pl.DataFrame, outcomes: pl.DataFrame, target: float) -> Matched | None:
    """Read one recipe's curves at a share of new facts learnt; None if no curve reaches it.

    `points`, `outcomes`: those of the recipe, of all rates and seeds. A rate that more seeds reach the share with comes
    before one with more rows kept.
    """
    rows = outcomes["row"].unique().sort().to_list()
    best: Matched | None = None
    for (rate,), of_rate in points.group_by("rate", maintain_order=True):
        readings: list[tuple[int, Reading]] = []
        for (seed,), curve in of_rate.sort("seed", "at").group_by("seed", maintain_order=True):
            reading = read_at(curve, target)
            if reading is not None:
                readings.append((int(seed), reading))
        if not readings:
            continue
        own = outcomes.filter(pl.col("rate") == rate)
        table = tuple(tuple(kept_rows(own.filter(pl.col("seed") == seed), rows, reading)) for seed, reading in readings)
        measures = {name: _mean([reading.values[name] for _, reading in readings]) for name in MEASURES}
        matched = Matched(
            str(points["recipe"][0]),
            target,
            float(rate),
            len(readings),
            of_rate["seed"].n_unique(),
            estimate(table),
            table,
            tuple(seed for seed, _ in readings),
            tuple(rows),
            measures,
        )
        if best is None or (matched.seeds, matched.kept.value) > (best.seeds, best.kept.value):
            best = matched
    return best


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def difference(first: Matched, second: Matched, level: float = LEVEL) -> Estimate | None:
    """Return how much more `first` keeps than `second`: the same rows, the same seeds; None without a common seed."""
    common = [seed for seed in first.seed_numbers if seed in second.seed_numbers]
    if not common:
        return None
    table = [
        [
            a - b
            for a, b in zip(
                first.table[first.seed_numbers.index(seed)],
                second.table[second.seed_numbers.index(seed)],
                strict=True,
            )
        ]
        for seed in common
    ]
    return estimate(table, level)


def at_end(points: pl.DataFrame) -> dict[str, Any]:
    """Return where a recipe's curves end, at its rate with the most known rows kept at the end: rate, learnt, known."""
    ends = points.sort("at").group_by("rate", "seed", maintain_order=True).last()
    by_rate = ends.group_by("rate").agg(pl.col("learnt").mean(), pl.col("known_kept").mean(), pl.len().alias("seeds"))
    best = by_rate.sort("known_kept", "rate").tail(1).to_dicts()[0]
    return {key: best[key] for key in ("rate", "learnt", "known_kept", "seeds")}
