"""Intervals and spreads for shares of rows. Pure; the same seed gives the same numbers.

There are two kinds of uncertainty. The *bootstrap* estimates how much a share varies between samples of rows of the
same groups. The *spread* is how much it varies with the exemplars in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
LEVEL = 0.95
CHANCE = 0.05
"""A difference with p below this is more than chance allows."""
SMALL_STRATUM = 5
"""Groups with fewer rows are resampled together, as a group of one row never varies."""


@dataclass(frozen=True)
class Interval:
    """A share and the ends of its interval, all between 0 and 1."""

    value: float
    low: float
    high: float

    def crosses(self, threshold: float) -> bool:
        """Whether the threshold lies strictly inside the interval."""
        return self.low < threshold < self.high


@dataclass(frozen=True)
class Spread:
    """How much one figure varies between repetitions, such as the exemplar sets of an audit."""

    values: tuple[float, ...]
    low: float
    high: float
    mean: float
    sd: float


@cache
def wilson(hits: int, total: int, *, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share; unlike the bootstrap interval, it has a width at 0 % and 100 %."""
    if total <= 0:
        return Interval(0.0, 0.0, 1.0)
    share, z = hits / total, NormalDist().inv_cdf((1 + level) / 2)
    width = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / width
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / width
    return Interval(share, 0.0 if hits == 0 else middle - half, 1.0 if hits == total else middle + half)


def share_intervals(
    counts: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[Interval, ...]:
    """Bootstrap interval of each column's share, with rows resampled within each group.

    `counts` is groups x categories, the number of rows of each kind. Resampling a group's rows with replacement is a
    multinomial draw, so the rows themselves are not needed. Wilson's interval replaces the bootstrap where that cannot
    vary (a share of 0 or 1, or fewer than five rows in all).
    """
    table: NDArray[np.int64] = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2:
        raise ValueError(f"counts must be groups x categories; found {table.ndim} dimensions")
    hits = table.sum(axis=0)
    total = int(hits.sum())
    if total < SMALL_STRATUM:
        return tuple(wilson(int(h), total, level=level) for h in hits)
    strata = _pool_small(table)
    sizes = strata.sum(axis=1)
    generator = np.random.default_rng(seed)
    resamples = generator.multinomial(sizes, strata / sizes[:, None], size=(draws, len(strata)))
    tail = (1 - level) / 2
    low, high = np.quantile(resamples.sum(axis=1) / total, [tail, 1 - tail], axis=0)
    return tuple(
        wilson(int(h), total, level=level) if h in (0, total) else Interval(int(h) / total, float(a), float(b))
        for h, a, b in zip(hits, low, high, strict=True)
    )


def _pool_small(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups that have rows, with all small groups added into one."""
    sizes = table.sum(axis=1)
    small = table[(sizes > 0) & (sizes < SMALL_STRATUM)]
    large = table[sizes >= SMALL_STRATUM]
    return np.vstack([large, small.sum(axis=0, keepdims=True)]) if len(small) else large


def spread(values: Sequence[float]) -> Spread:
    """Lowest, highest, mean and sample standard deviation (0 for a single value)."""
    if not values:
        raise ValueError("spread needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Spread(tuple(map(float, array)), float(array.min()), float(array.max()), float(array.mean()), deviation)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of a split at least this uneven, if a changed row is equally likely lost or won."""
    if lost + won == 0:
        return 1.0
    from scipy.special import bdtr  # keeps scipy out; scipy.stats would take over a second to import

    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def loses(before: Sequence[bool], now: Sequence[bool], level: float = CHANCE) -> bool:
    """Whether more of the same rows are lost than won, and by more than chance allows (`mcnemar` below `level`)."""
    pairs = list(zip(before, now, strict=True))
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return lost > won and mcnemar(lost, won) < level
