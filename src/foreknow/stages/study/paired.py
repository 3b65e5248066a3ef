"""Test which of two sets of outcomes on the same rows answers more rows right. Pure.

There are three tests, for three questions:

parts        The paper's test (section 4) shuffles the rows, cuts them into 100 parts and compares the accuracies of
             the parts by a paired t-test. Its p depends on the shuffle, so the result is the median over 200
             shuffles. It covers the choice of rows only.
mcnemar      An exact test for one seed: of the rows on which the two differ, are half right in each? It covers the
             choice of rows only.
difference   A bootstrap of rows and seeds: what if other rows of the same groups, and other seeds, had been drawn?

Differences are second - first, as shares. Frames come from `outcomes.parquet` of a study, filtered to one variant and
point, with the columns seed, set, row, group, correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from foreknow import stats
from foreknow.errors import InputError
from foreknow.stats import SMALL_STRATUM, wilson

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""A function from totals (..., quantities), each a sum over rows divided by the number of rows, to figures (...)."""

PARTS: Final = 100
SHUFFLES: Final = 200
DRAWS: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, standard error and degrees of freedom, and the number of seeds and rows behind it.

    `of_seeds` is the share (0 to 1) of the squared error that comes from seeds and that more seeds would make smaller;
    the rest comes from rows. With one seed, the interval does not include differences between seeds.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    seeds: int
    rows: int
    of_seeds: float

    def p(self, reference: float = 0.0) -> float:
        """Return the two-sided p of the hypothesis that the true figure is `reference`."""
        from scipy.special import stdtr

        away = abs(self.value - reference)
        return float(2 * stdtr(self.df, -(away / self.se))) if self.se > 0 else float(away == 0)


class Parts(NamedTuple):
    """The result of the paper's test: the difference, and the median, smallest and largest p over shuffles."""

    difference: float
    p: float
    low: float
    high: float


class McNemar(NamedTuple):
    """The numbers of rows that only the first, and only the second, answers right, and the exact two-sided p."""

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True, eq=False)
class Stack:
    """Outcomes of the same rows in several quantities: quantities x seeds x rows, and each row's group as a number."""

    values: Array
    groups: NDArray[np.int64]
    seeds: tuple[int, ...]


def stack(frames: Sequence[pl.DataFrame]) -> Stack:
    """Stack frames, one quantity each, over the seeds that all have. Raises InputError if their rows differ."""
    parts = [frame.sort("row").partition_by("seed", as_dict=True) for frame in frames]
    seeds = sorted(set.intersection(*(set(part) for part in parts))) if parts else []
    if not seeds:
        raise InputError("outcomes: no seed is in all of the runs compared; expected the same seeds in each")
    first = parts[0][seeds[0]]
    for part in parts:
        for seed in seeds:
            if not part[seed]["row"].equals(first["row"]):
                raise InputError(
                    f"outcomes: seed {seed[0]} has {part[seed].height:,} rows, others {first.height:,}, or others' "
                    "rows; paired tests need the same rows in each"
                )
    values = np.array([[part[seed]["correct"].to_numpy() for seed in seeds] for part in parts], dtype=np.float64)
    groups = np.unique(first["group"].fill_null("").to_numpy(), return_inverse=True)[1].astype(np.int64)
    return Stack(values, groups, tuple(int(str(seed[0])) for seed in seeds))


def parts(
    first: pl.DataFrame, second: pl.DataFrame, *, cut: int = PARTS, shuffles: int = SHUFFLES, seed: int = 0
) -> Parts:
    """Run the paper's test of difference. Over several seeds, a row counts with its mean. p is 1 where no row differs.

    Raises InputError for fewer rows than parts.
    """
    from scipy.special import stdtr

    both = stack([first, second])
    away = (both.values[1] - both.values[0]).mean(axis=0)
    if len(away) < cut:
        raise InputError(f"outcomes: {len(away):,} rows cannot be cut into {cut} parts; expected at least {cut}")
    starts = np.array([len(part) for part in np.array_split(away, cut)]).cumsum()
    sizes = np.diff(starts, prepend=0)
    shuffled = np.random.default_rng(seed).permuted(np.broadcast_to(away, (shuffles, len(away))), axis=1)
    means = np.add.reduceat(shuffled, starts - sizes, axis=1) / sizes
    error = means.std(axis=1, ddof=1) / cut**0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(means.mean(axis=1) == 0, 0.0, np.abs(means.mean(axis=1)) / error)
    p = 2 * stdtr(cut - 1, -size)
    return Parts(float(away.mean()), float(np.median(p)), float(p.min()), float(p.max()))


def mcnemar(first: pl.DataFrame, second: pl.DataFrame) -> McNemar:
    """Run the exact McNemar test of one seed. Raises InputError for several: their rows are not independent."""
    both = stack([first, second])
    if len(both.seeds) > 1:
        raise InputError(f"outcomes: {len(both.seeds)} seeds, McNemar's test is for one; use `difference`")
    a, b = both.values[:, 0] > 0.5
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_first, only_second, stats.mcnemar(only_first, only_second))


def difference(first: pl.DataFrame, second: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Estimate the accuracy of the second minus that of the first, over rows and seeds."""
    return resampled(stack([first, second]), lambda total: total[..., 1] - total[..., 0], draws=draws, seed=seed)


def resampled(outcomes: Stack, statistic: Statistic, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Compute `statistic` of the quantities' means, with its interval from a bootstrap of rows and seeds.

    A draw resamples rows within each group (groups of under five rows together), and seeds; all quantities use the
    same rows and seeds. The changes due to rows and due to seeds are added; the latter are multiplied by
    sqrt(S / (S - 1)), since S seeds vary less about their own mean. The interval is the value +- Student's t times the
    draws' standard deviation, with Satterthwaite degrees of freedom: percentiles over so few seeds are too narrow.
    Where no draw differs, the error is that of Wilson's interval of 0 in that number of rows.

    Noise of one row in one run counts both with the rows and with the seeds, so the interval is wide where seeds
    hardly matter: 95 % intervals covered 97 to 99 % of simulated differences with 3 to 8 seeds. Where seeds matter more
    than rows, they covered 86 % with 2 seeds, 92 % with 3 and 96 % with 5.
    """
    from scipy.special import stdtrit

    generator = np.random.default_rng(seed)
    count, rows = outcomes.values.shape[1:]
    by_seed = outcomes.values.mean(axis=2).T
    value = float(statistic(by_seed.mean(axis=0)))
    of_rows = statistic(_rows_anew(outcomes, draws, generator)) - value
    weights = generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
    seeds_move = (statistic(weights @ by_seed) - value) * (count / max(count - 1, 1)) ** 0.5
    moved = (of_rows + seeds_move)[np.isfinite(of_rows + seeds_move)]
    se = float(moved.std(ddof=1)) if len(moved) > 1 else 0.0
    if se < 1e-12:
        se = wilson(0, rows).high / 1.96
    variances = [float(np.nanvar(of_rows)), float(np.nanvar(seeds_move))]
    spread = variances[0] ** 2 / max(rows - 1, 1) + variances[1] ** 2 / max(count - 1, 1)
    df = sum(variances) ** 2 / spread if spread > 0 else float(max(rows - 1, 1))
    half = float(stdtrit(df, 0.5 + LEVEL / 2)) * se
    of_seeds = variances[1] / sum(variances) if sum(variances) > 0 else 0.0
    return Estimate(value, value - half, value + half, se, df, count, rows, of_seeds)


def _rows_anew(outcomes: Stack, draws: int, generator: np.random.Generator) -> Array:
    """Return means of the quantities over all seeds (draws x quantities), with rows resampled within each group.

    Rows of a group with the same values are interchangeable, so this draws their counts instead of the rows.
    """
    means = outcomes.values.mean(axis=1).T
    sizes = np.bincount(outcomes.groups)
    pooled = np.where(sizes[outcomes.groups] < SMALL_STRATUM, -1, outcomes.groups)
    total = np.zeros((draws, means.shape[1]))
    for group in np.unique(pooled):
        kinds, counts = np.unique(means[pooled == group], axis=0, return_counts=True)
        total += generator.multinomial(counts.sum(), counts / counts.sum(), size=draws) @ kinds
    return total / len(means)
