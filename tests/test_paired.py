"""Paired tests: SciPy as the oracle, the null kept at its level, intervals that cover, and what cannot be compared."""

from __future__ import annotations

from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_rel

from foreknow.errors import InputError
from foreknow.stages.study.paired import Stack, difference, mcnemar, parts, resampled, stack


def outcomes(values: np.ndarray, seeds: list[int] | None = None, groups: int = 4) -> pl.DataFrame:
    """Lines of a variant at a point from seeds x rows."""
    count, rows = values.shape
    return pl.DataFrame(
        {
            "seed": np.repeat(seeds or list(range(count)), rows),
            "row": np.tile(np.arange(rows), count),
            "group": [f"P{n % groups}" for n in range(rows)] * count,
            "correct": values.astype(bool).ravel(),
        }
    )


def drawn(generator: np.random.Generator, seeds: int, rows: int, by_seed: float, effect: float = 0.0) -> np.ndarray:
    """Two variants x seeds x rows: rows of unlike difficulty, runs with a level of their own."""
    hardness = generator.normal(0, 1.5, rows) + generator.normal(0, 0.5, (2, 1, rows))
    level = generator.normal(0, by_seed, (2, seeds, 1)) + np.array([0, effect])[:, None, None]
    return generator.random((2, seeds, rows)) < 1 / (1 + np.exp(-(hardness + level)))


def pair(seed: int, seeds: int = 1, rows: int = 400, by_seed: float = 0.0, effect: float = 0.0) -> list[pl.DataFrame]:
    return [outcomes(one) for one in drawn(np.random.default_rng(seed), seeds, rows, by_seed, effect)]


def test_one_shuffle_of_the_papers_test_is_scipys_paired_t_test() -> None:
    first, second = pair(0, rows=1037, effect=0.3)
    order = np.random.default_rng(5).permuted(np.arange(1037)[None], axis=1)[0]
    a, b = (
        [part.mean() for part in np.array_split(frame["correct"].to_numpy()[order], 100)] for frame in (first, second)
    )
    assert parts(first, second, shuffles=1, seed=5).p == pytest.approx(ttest_rel(a, b).pvalue)


def test_the_papers_test_gives_the_middle_of_its_shuffles() -> None:
    found = parts(*pair(1, rows=1000, effect=0.2))
    assert found.low < found.p < found.high
    assert found == parts(*pair(1, rows=1000, effect=0.2))


def test_the_papers_test_wants_a_row_a_part() -> None:
    with pytest.raises(InputError, match="99 rows cannot be cut into 100 parts"):
        parts(*pair(0, rows=99))
    one = outcomes(np.eye(10)[:1])
    assert parts(one, one, cut=10).p == 1
    assert parts(outcomes(np.zeros((1, 10))), outcomes(np.ones((1, 10))), cut=10).p == 0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_differ(found: list[tuple[bool, bool]]) -> None:
    first, second = (outcomes(np.array([[line[i] for line in found]])) for i in (0, 1))
    told = mcnemar(first, second)
    assert told.first_only == found.count((True, False))
    assert told.second_only == found.count((False, True))
    differ = told.first_only + told.second_only
    tail = sum(comb(differ, k) for k in range(min(told.first_only, told.second_only) + 1))
    assert told.p == pytest.approx(min(1.0, 2 * tail / 2**differ))


def test_mcnemar_is_for_one_seed() -> None:
    with pytest.raises(InputError, match="2 seeds"):
        mcnemar(*pair(0, seeds=2))


@pytest.mark.parametrize("test", ["parts", "mcnemar", "difference"])
def test_without_a_difference_one_test_in_twenty_is_significant(test: str) -> None:
    values = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        level = generator.random((1, 400))
        first, second = (outcomes(generator.random((1, 400)) < level) for _ in range(2))
        if test == "parts":
            values.append(parts(first, second, shuffles=20).p)
        elif test == "mcnemar":
            values.append(mcnemar(first, second).p)
        else:
            values.append(difference(first, second, draws=200).p())
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.08


@pytest.mark.parametrize(("seeds", "by_seed", "least"), [(3, 0.0, 0.94), (3, 0.2, 0.88), (5, 0.2, 0.92)])
def test_the_interval_covers_other_rows_and_other_seeds(seeds: int, by_seed: float, least: float) -> None:
    times, inside, rows_alone = 200, 0, 0
    for seed in range(times):
        both = drawn(np.random.default_rng(seed), seeds, 400, by_seed).astype(float)
        found = resampled(Stack(both, np.arange(400) % 4, tuple(range(seeds))), second_less_first, draws=200)
        inside += found.low <= 0 <= found.high
        rows_alone += ttest_1samp((both[1] - both[0]).mean(axis=0), 0).pvalue > 0.05
    assert inside / times >= least
    assert by_seed == 0 or rows_alone < inside - 0.1 * times


def second_less_first(total: np.ndarray) -> np.ndarray:
    return np.asarray(total[..., 1] - total[..., 0])


def test_with_one_seed_the_error_is_that_of_the_rows() -> None:
    first, second = pair(3, rows=800, effect=0.4)
    found = difference(first, second, draws=4000)
    away = second["correct"].cast(pl.Float64) - first["correct"].cast(pl.Float64)
    assert found.value == pytest.approx(away.mean())
    assert found.se == pytest.approx(away.std() / 800**0.5, rel=0.05)  # type: ignore[operator]
    assert found.low < found.value < found.high
    assert (found.seeds, found.rows) == (1, 800)
    assert found.p() == pytest.approx(ttest_1samp(away.to_numpy(), 0).pvalue, rel=0.5)


def test_rows_are_drawn_within_their_group() -> None:
    """Groups that differ from one another, and are alike inside, leave nothing to chance but a floor."""
    first = outcomes(np.zeros((1, 400)))
    second = outcomes(np.array([[n % 4 == 0 for n in range(400)]]))
    assert difference(first, second).se == pytest.approx(0.0095 / 1.96, abs=1e-3)
    assert difference(first.with_columns(group=pl.lit("all")), second).se > 0.02


def test_seeds_widen_the_interval() -> None:
    base = np.random.default_rng(0).random((1, 600)) < 0.5
    better = base.copy()
    better[:, :60] = True
    steady = difference(outcomes(np.repeat(base, 4, axis=0)), outcomes(np.repeat(better, 4, axis=0)))
    mixed = difference(outcomes(np.repeat(base, 4, axis=0)), outcomes(np.vstack([better, base, better, base])))
    assert mixed.value == pytest.approx(steady.value / 2)
    assert mixed.high - mixed.low > 2 * (steady.high - steady.low)


def test_the_error_of_seeds_is_that_of_their_mean() -> None:
    better = np.repeat(np.array([[0], [1], [0], [1]]), 50, axis=1)
    found = difference(outcomes(np.zeros((4, 50))), outcomes(better), draws=20_000)
    assert found.value == 0.5
    assert found.se == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2, rel=0.03)
    assert found.df == pytest.approx(3)


def test_no_difference_at_all_still_leaves_doubt() -> None:
    one = pair(0)[0]
    found = difference(one, one)
    assert found.value == 0
    assert found.p() == 1
    assert found.high == -found.low == pytest.approx(0.0095, abs=5e-4)


def test_a_large_difference_is_found_and_p_agrees_with_the_interval() -> None:
    found = difference(*pair(4, seeds=3, rows=600, effect=1.0))
    assert found.p() < 0.01
    assert found.low > 0
    assert found.p(found.low) == pytest.approx(0.05)
    assert found.p(found.high) == pytest.approx(0.05)


def test_only_seeds_that_both_have_are_compared() -> None:
    values = np.random.default_rng(0).random((3, 50)) < 0.5
    found = stack([outcomes(values, [0, 1, 2]), outcomes(values, [5, 1, 2])])
    assert found.seeds == (1, 2)
    assert np.array_equal(found.values[0], values[1:])
    with pytest.raises(InputError, match="no seed is in all"):
        difference(outcomes(values, [0, 1, 2]), outcomes(values, [3, 4, 5]))


def test_other_rows_are_refused_and_their_order_does_not_matter() -> None:
    first, second = pair(0, seeds=2, rows=60)
    with pytest.raises(InputError, match="seed 1 has 59 rows, others 60"):
        difference(first, second.filter(~((pl.col("seed") == 1) & (pl.col("row") == 7))))
    assert difference(first, second.sample(fraction=1, shuffle=True, seed=1)) == difference(first, second)


def test_the_seed_of_the_bootstrap_decides() -> None:
    both = pair(0, seeds=2)
    assert difference(*both, seed=1) == difference(*both, seed=1)
    assert difference(*both, seed=1) != difference(*both, seed=2)


def test_a_ratio_moves_with_its_rows() -> None:
    """Accuracy when answering: right over answered, a statistic that is no mean of rows."""
    generator = np.random.default_rng(0)
    answered = generator.random((1, 1000)) < 0.6
    right = answered & (generator.random((1, 1000)) < 0.5)
    both = stack([outcomes(right), outcomes(answered)])
    found = resampled(both, lambda total: total[..., 0] / total[..., 1])
    share = right.sum() / answered.sum()
    assert found.value == pytest.approx(share)
    assert found.se == pytest.approx((share * (1 - share) / answered.sum()) ** 0.5, rel=0.1)
