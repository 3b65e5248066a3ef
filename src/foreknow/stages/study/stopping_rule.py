"""When a study that adds seeds may stop: group-sequential looks that keep the error rate of a single test. Pure.

A study that looks after every seed and stops at the first look with a verdict would be wrong more often than one that
looks once. So each look has its own, stricter level. The levels spend the error of 5 % over the looks as Lan and DeMets
(Biometrika 70, 1983) propose, with their spending function that resembles the bounds of O'Brien and Fleming: next to
nothing at first, nearly all at the end. The bounds come from integrating the density of the test statistic over the
looks (Armitage, McPherson and Rowe, 1969; Jennison and Turnbull, 1999, chapter 19).

The bounds hold for normal estimates whose error shrinks with every seed. Here the rows are the same at every look, so
where rows matter more the looks agree more than the bounds suppose. Where seeds matter more, Student's t with one
degree of freedom less than there are seeds takes the normal's place (`ContrastPart.at`), and looks at so few seeds
still go wrong a little more often than planned, so that `SPENT` is below 5 %. `benchmarks/stopping_rule.py` counts the
false verdicts of simulated studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALPHA: Final = 0.05
SPENT: Final = 0.04
"""The error that is spent over the looks."""
FEWEST_SEEDS: Final = 3
"""The first look; with two seeds the error from seeds has one degree of freedom."""
_GRID: Final = 1201
_WIDEST: Final = 8.0
"""The bounds are sought below this many standard errors."""

Array = NDArray[np.float64]


class Look(NamedTuple):
    """A look at a study: after how many seeds, and the confidence level of its intervals (0 to 1)."""

    seeds: int
    level: float


def looks(first: int, most: int, alpha: float = SPENT) -> tuple[Look, ...]:
    """Return the looks of a study that begins with `first` seeds and has `most` at the end.

    Raises ValueError if there are fewer than `FEWEST_SEEDS` seeds at the first look, or fewer at the end than then.
    """
    from scipy.special import ndtr

    if not FEWEST_SEEDS <= first <= most:
        raise ValueError(f"looks from {first} to {most} seeds; expected at least {FEWEST_SEEDS}, and rising")
    seeds = range(first, most + 1)
    bounds = boundaries([n / most for n in seeds], alpha)
    return tuple(Look(n, 1 - 2 * float(ndtr(-bound))) for n, bound in zip(seeds, bounds, strict=True))


def boundaries(fractions: Sequence[float], alpha: float = ALPHA) -> tuple[float, ...]:
    """Return the two-sided bound of each look, in standard errors.

    `fractions`: the share of the whole information that each look has, rising to 1 at most.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    end = float(ndtri(1 - alpha / 4))  # each side spends half of alpha
    walk, bounds, spent = _Walk(0.0, np.zeros(1), np.ones(1)), [], 0.0
    for fraction in fractions:
        budget = 4 * float(ndtr(-end / fraction**0.5)) - spent
        bound = _WIDEST
        if walk.leaving(_WIDEST, fraction) < budget:
            bound = float(brentq(partial(_excess, walk, fraction, budget), 0.5, _WIDEST))
        bounds.append(bound)
        walk, spent = walk.inside(bound, fraction), spent + budget
    return tuple(bounds)


class _Walk(NamedTuple):
    """A random walk that has not left its bounds: its time, and its density at the points of a grid (or one point)."""

    time: float
    grid: Array
    density: Array

    def leaving(self, bound: float, time: float) -> float:
        """Return the chance of staying inside so far and being outside `bound` (standard errors) at `time`."""
        from scipy.special import ndtr

        edge, step = bound * time**0.5, (time - self.time) ** 0.5
        tails = ndtr((self.grid - edge) / step) + ndtr((-edge - self.grid) / step)
        return float(self._over_grid(tails))

    def inside(self, bound: float, time: float) -> _Walk:
        """Return the walk at `time`, without what is outside `bound` then."""
        edge, step = bound * time**0.5, (time - self.time) ** 0.5
        grid = np.linspace(-edge, edge, _GRID)
        z = (grid[:, None] - self.grid[None, :]) / step
        return _Walk(time, grid, self._over_grid(np.exp(-0.5 * z * z) / (step * (2 * np.pi) ** 0.5)))

    def _over_grid(self, values: Array) -> Array:
        weighted = values * self.density
        whole = weighted[..., 0] if len(self.grid) == 1 else np.trapezoid(weighted, self.grid, axis=-1)
        return np.asarray(whole, dtype=np.float64)


def _excess(walk: _Walk, time: float, budget: float, bound: float) -> float:
    return walk.leaving(bound, time) - budget


def level_of(settings: Mapping[str, Any]) -> float:
    """Return the confidence level (0 to 1) of a study's intervals, from its settings as `config.yaml` has them."""
    if settings.get("until") is None:
        return 1 - ALPHA
    plan = {look.seeds: look.level for look in looks(FEWEST_SEEDS, int(settings["most_seeds"]))}
    return plan.get(int(settings["seeds"]), 1 - ALPHA)
