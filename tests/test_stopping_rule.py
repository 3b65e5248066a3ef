"""Looks at a study that grows: the bounds are the published ones, and false verdicts stay rare."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from foreknow.stages.study.claims import verdict
from foreknow.stages.study.contrasts import ContrastPart, Evidence
from foreknow.stages.study.stopping_rule import boundaries, looks


@pytest.mark.parametrize(
    ("fractions", "published"),
    [
        # Reboussin et al. (Controlled Clinical Trials 21, 2000): O'Brien-Fleming spending, two-sided 0.05
        ((0.2, 0.4, 0.6, 0.8, 1.0), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((0.5, 1.0), (2.9626, 1.9686)),
        ((1.0,), (1.9600,)),
    ],
)
def test_bounds_are_the_published_ones(fractions: tuple[float, ...], published: tuple[float, ...]) -> None:
    assert boundaries(fractions) == pytest.approx(published, abs=2e-3)


@given(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=5, unique_by=lambda x: round(x, 2)))
def test_walks_cross_any_bounds_as_often_as_was_spent(fractions: list[float]) -> None:
    fractions = sorted(fractions)
    bounds = np.array(boundaries(fractions))
    steps = np.diff([0.0, *fractions]) ** 0.5
    walks = (np.random.default_rng(0).normal(size=(200_000, len(steps))) * steps).cumsum(axis=1)
    crossed = (np.abs(walks) / np.array(fractions) ** 0.5 > bounds).any(axis=1).mean()
    spent = 4 * ndtr(-2.241402727604947 / fractions[-1] ** 0.5)
    assert crossed == pytest.approx(spent, abs=0.002)


def test_levels_fall_towards_the_last_look() -> None:
    plan = looks(3, 8)
    assert [look.seeds for look in plan] == [3, 4, 5, 6, 7, 8]
    assert all(a.level > b.level > 0.95 for a, b in pairwise(plan))
    with pytest.raises(ValueError, match="expected at least 3"):
        looks(2, 8)


def test_an_interval_at_another_level_keeps_its_figure_and_the_usual_level_changes_nothing() -> None:
    part = ContrastPart("d", 0.03, 0.01, 0.06, 0.01, 0.01, 0.0, True, 9.0, 0.5)
    same, wide = part.at(0.95), part.at(0.999)
    assert (same.low, same.high) == pytest.approx((part.low, part.high))
    assert wide.low < part.low < part.value == wide.value < part.high < wide.high
    assert verdict(Evidence((part,), 5).at(0.95).parts) == "holds"
    assert verdict(Evidence((part,), 5).at(0.9999).parts) == "not decided"


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("stopping_rule")


@pytest.mark.parametrize("move", [0.0, 0.05])
def test_studies_of_nothing_are_seldom_decided(simulation: Any, move: float) -> None:
    """Of 150 studies at 5 % at most 15 are expected (99.4 %); looking at 95 % each time decides more."""
    rng, plan, naive, ruled = np.random.default_rng(7), looks(3, 7), 0, 0
    for _ in range(150):
        values = simulation.outcomes(rng, 7, 150, move)
        parts = [simulation.part_of(values[:, : look.seeds], 150) for look in plan]
        naive += any(part.verdict != "not decided" for part in parts)
        ruled += any(
            part.at(look.level, look.seeds).verdict != "not decided" for look, part in zip(plan, parts, strict=True)
        )
    assert ruled <= 15
    assert ruled <= naive
