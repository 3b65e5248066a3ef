"""Intervals and spreads: they agree with theory, depend on nothing but their inputs, and are never empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from foreknow.stats import Interval, loses, mcnemar, share_intervals, spread, wilson

tables = st.lists(
    st.lists(st.integers(0, 40), min_size=4, max_size=4), min_size=1, max_size=12
).filter(lambda t: sum(map(sum, t)) > 0)  # fmt: skip


def test_wilson_has_the_published_values() -> None:
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20) == Interval(0, 0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(20, 20).high == 1
    assert wilson(0, 0) == Interval(0, 0, 1)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 1, 0.0, 0.7934506856227626),
        (1, 2, 0.09453120573423074, 0.9054687942657693),
        (4, 5, 0.37553462976252544, 0.9637758913675698),
        (6, 20, 0.1454772448676043, 0.5189728183535234),
        (118, 119, 0.9539321145669225, 0.9985150569599105),
        (87, 263, 0.2767294820962907, 0.38973913791000253),
        (5240, 10481, 0.4903817563127304, 0.5095228679008138),
        (333333, 1000000, 0.33240970614283905, 0.3342575743410766),
    ],
)
def test_wilson_has_the_values_of_its_formula(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == Interval(hits / total, pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


@given(st.integers(1, 3000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_holds_the_share_and_mirrors(drawn: tuple[int, int]) -> None:
    hits, total = drawn
    found, mirrored = wilson(hits, total), wilson(total - hits, total)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)
    # the ends solve (p - share)^2 = z^2 p (1 - p) / total
    for end in (found.low, found.high):
        assert (end - found.value) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / total, abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (2, 8, 0.109375),
        (19, 108, 2.654707540430395e-16),
        (33, 34, 0.9999999999999665),
        (500, 700, 8.535366081031472e-09),
    ],
)
def test_mcnemar_has_the_values_of_its_formula(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(p, rel=1e-9)


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_both_are_those_of_scipys_binomial_test(lost: int, won: int, level: float) -> None:
    assume(lost + won)
    expected = binomtest(lost, lost + won)
    assert mcnemar(lost, won) == pytest.approx(expected.pvalue, rel=1e-9)
    ends = expected.proportion_ci(level, method="wilson")
    assert wilson(lost, lost + won, level=level) == Interval(
        lost / (lost + won), pytest.approx(ends.low, abs=1e-12), pytest.approx(ends.high, abs=1e-12)
    )


@given(tables)
def test_intervals_hold_their_shares_and_stay_within_bounds(table: list[list[int]]) -> None:
    found = share_intervals(table, draws=200)
    total = sum(map(sum, table))
    for column, interval in enumerate(found):
        assert interval.value == pytest.approx(sum(line[column] for line in table) / total)
        assert 0 <= interval.low <= interval.high <= 1
        assert interval.low < interval.high or interval.value not in (0, 1)
    assert sum(i.value for i in found) == pytest.approx(1)


def test_one_group_agrees_with_the_normal_approximation() -> None:
    found = share_intervals([[400, 600]], draws=20_000)[0]
    half = 1.96 * (0.4 * 0.6 / 1000) ** 0.5
    assert found.low == pytest.approx(0.4 - half, abs=0.003)
    assert found.high == pytest.approx(0.4 + half, abs=0.003)


def test_rows_are_resampled_within_their_group() -> None:
    apart = share_intervals([[100, 0], [0, 100]])[0]
    mixed = share_intervals([[50, 50], [50, 50]])[0]
    assert apart.high - apart.low == 0
    assert mixed.high - mixed.low > 0.1


def test_groups_of_one_row_still_vary() -> None:
    rows = np.eye(2, dtype=int)[[0, 1] * 50]
    found = share_intervals(rows)[0]
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05, abs=0.03)


def test_the_seed_decides() -> None:
    table = [[30, 20, 10, 40]]
    assert share_intervals(table, seed=3) == share_intervals(table, seed=3)
    assert share_intervals(table, seed=3) != share_intervals(table, seed=4)


def test_empty_groups_change_nothing() -> None:
    assert share_intervals([[30, 70], [0, 0]]) == share_intervals([[30, 70]])


def test_a_flat_list_is_refused() -> None:
    with pytest.raises(ValueError, match="groups x categories; found 1"):
        share_intervals([1, 2, 3])


def test_spread() -> None:
    found = spread([0.2, 0.4, 0.6])
    assert (found.low, found.high) == (0.2, 0.6)
    assert found.mean == pytest.approx(0.4)
    assert found.sd == pytest.approx(0.2)
    assert spread([0.5]).sd == 0
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_crosses() -> None:
    assert Interval(0.3, 0.2, 0.4).crosses(0.25)
    assert not Interval(0.3, 0.25, 0.4).crosses(0.25)


@pytest.mark.parametrize(
    ("lost", "won", "expected"), [(6, 0, True), (5, 0, False), (0, 6, False), (10, 2, True), (8, 4, False)]
)
def test_rows_are_lost_by_more_than_chance(lost: int, won: int, expected: bool) -> None:
    before = [True] * lost + [False] * won + [True, False]
    now = [False] * lost + [True] * won + [True, False]
    assert loses(before, now) is expected
    assert loses(before, before) is False
