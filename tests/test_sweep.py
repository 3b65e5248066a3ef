"""The sweep against counting row by row, and what must hold between thresholds, budgets and scores."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.categories import UNKNOWN
from foreknow.inference import slick
from foreknow.stages.study.score_sweep import BUDGETS, SWEEP, at_point, compare, curve, em_at, point

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)


def scores_of(values: list[float | None]) -> pl.DataFrame:
    return pl.DataFrame({"row": range(len(values)), "score": values}, schema={"row": pl.Int64(), "score": pl.Float64()})


def outcomes_of(right: list[bool], seeds: int = 1) -> pl.DataFrame:
    lines = [(row, won) for _ in range(seeds) for row, won in enumerate(right)]
    return pl.DataFrame(lines, schema={"row": pl.Int64(), "correct": pl.Boolean()}, orient="row")


rows = st.lists(
    st.tuples(st.one_of(st.none(), st.just(float("nan")), st.sampled_from(LEVELS)), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(rows, st.integers(1, 3))
def test_every_threshold_counts_the_rows_at_or_below_it(lines: list[tuple[float | None, bool]], seeds: int) -> None:
    found = curve("p", "s", scores_of([s for s, _ in lines]), outcomes_of([r for _, r in lines], seeds))
    assert dict(found.schema) == SWEEP
    scored = [(s, r) for s, r in lines if s is not None and not math.isnan(s)]
    assert found["threshold"].to_list() == sorted({s for s, _ in scored})
    for line in found.to_dicts():
        called = [r for s, r in scored if s <= line["threshold"]]
        assert (line["rows"], line["correct"]) == (len(called) * seeds, sum(called) * seeds)
        assert line["share"] == pytest.approx(len(called) / len(scored))
        assert line["em"] == pytest.approx(sum(called) / len(called))
    if scored:
        assert found["share"][-1] == 1


@given(rows)
def test_only_the_order_of_a_score_matters(lines: list[tuple[float | None, bool]]) -> None:
    outcomes = outcomes_of([r for _, r in lines])
    plain = curve("p", "", scores_of([s for s, _ in lines]), outcomes)
    bent = curve("p", "", scores_of([None if s is None else s**3 * 7 - 2 for s, _ in lines]), outcomes)
    assert plain.drop("threshold").equals(bent.drop("threshold"))


@given(rows, st.floats(0.01, 1))
def test_em_between_two_thresholds_is_that_of_ties_at_random(
    lines: list[tuple[float | None, bool]], share: float
) -> None:
    scored = [(s, r) for s, r in lines if s is not None and not math.isnan(s)]
    found = curve("p", "", scores_of([s for s, _ in lines]), outcomes_of([r for _, r in lines]))
    if not scored:
        assert em_at(found, share) is None
        return
    for line in found.to_dicts():  # at a threshold: its own
        assert em_at(found, line["share"]) == pytest.approx(line["em"])
    # each row called Unknown with its probability, tie by tie
    left, expected = share * len(scored), 0.0
    for level in LEVELS:
        tied = [r for s, r in scored if s == level]
        taken = min(left, len(tied))
        expected += taken * sum(tied) / len(tied) if tied else 0.0
        left -= taken
    assert em_at(found, share) == pytest.approx(expected / (share * len(scored)), abs=1e-6)
    assert em_at(found, 0.0) is None


def test_a_better_score_has_the_lower_curve() -> None:
    right = [False] * 5 + [True] * 5
    good = curve("good", "", scores_of([float(i) for i in range(10)]), outcomes_of(right))
    bad = curve("bad", "", scores_of([float(-i) for i in range(10)]), outcomes_of(right))
    flat = curve("flat", "", scores_of([1.0] * 10), outcomes_of(right))
    assert [em_at(c, 0.3) for c in (good, flat, bad)] == pytest.approx([0.0, 0.5, 1.0])
    assert em_at(good, 0.6) == pytest.approx(1 / 6)


def test_a_label_is_one_point_without_a_threshold() -> None:
    unknown = pl.DataFrame({"row": [0, 1, 2, 3, 4], "unknown": [True, True, False, False, None]})
    (line,) = point("SliCK", "", unknown, outcomes_of([True, False, True, True, True])).to_dicts()
    assert (line["threshold"], line["share"], line["em"], line["rows"], line["correct"]) == (None, 0.5, 0.5, 2, 1)
    nobody = unknown.with_columns(unknown=pl.lit(False))
    (line,) = point("SliCK", "", nobody, outcomes_of([True] * 5)).to_dicts()
    assert (line["share"], line["em"], line["rows"]) == (0, None, 0)


def probes_of(p: list[list[tuple[bool, float]]]) -> pl.DataFrame:
    lines = [
        {
            "row": row, "exemplar_set": j, "greedy_correct": greedy, "greedy_lenient": greedy, "p_correct": q,
            "p_correct_upper": q, "p_lenient": q, "p_lenient_upper": q, "expansions": 0, "replaced_shots": [],
        }
        for row, sets in enumerate(p)
        for j, (greedy, q) in enumerate(sets)
    ]  # fmt: skip
    return pl.DataFrame(lines, schema=slick.PROBES)


some = st.lists(
    st.tuples(
        st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.001, 0.01, 0.3])), min_size=2, max_size=2),
        st.booleans(),
        st.one_of(st.none(), st.sampled_from(LEVELS)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(some)
def test_all_scores_speak_of_the_same_rows(
    lines: list[tuple[list[tuple[bool, float]], bool, float | None]],
) -> None:
    probes = probes_of([sets for sets, _, _ in lines])
    outcomes = outcomes_of([right for _, right, _ in lines], seeds=2)
    p_true = scores_of([score for _, _, score in lines])
    found = compare(outcomes, probes, {"p_true": p_true}, budgets=((2, 16), (1, 16), (2, 1), (3, 16)))
    kept = [row for row, (_, _, score) in enumerate(lines) if score is not None]
    budgets = {"2 sets x 16 samples", "1 sets x 16 samples", "2 sets x 1 samples"}
    assert set(found.filter(pl.col("score") != "p_true")["setting"]) == budgets
    for (_, _), one in found.filter(pl.col("score") != "SliCK").group_by("score", "setting"):
        if kept:
            assert one.sort("share")["rows"][-1] == 2 * len(kept)
    for sets, samples in ((2, 16), (1, 16), (2, 1)):
        labels = slick.relabel(probes, sets=sets, samples=samples)
        unknown = [r for r in labels.filter(pl.col("category") == UNKNOWN)["row"] if r in kept]
        chosen = (pl.col("score") == "SliCK") & (pl.col("setting") == f"{sets} sets x {samples} samples")
        (line,) = found.filter(chosen).to_dicts()
        assert line["rows"] == 2 * len(unknown)
        assert line["correct"] == 2 * sum(lines[r][1] for r in unknown)
        # the label is the p_hit curve cut at one half
        curved = found.filter((pl.col("score") == "p_hit") & (pl.col("setting") == line["setting"]))
        below = curved.filter(pl.col("threshold") < 0.5)
        assert (below["rows"].max() or 0) == line["rows"]


def test_the_first_budget_is_the_paper_s() -> None:
    assert BUDGETS[0] == (10, 16)
    p = probes_of([[(False, 0.01)] * 10, [(False, 0.0)] * 10])
    found = compare(outcomes_of([True, False]), p, {})
    assert found.filter(pl.col("score") == "SliCK").height == len(BUDGETS)
    # with one set of one sample even a row hit four times in five is called Unknown
    by_setting = dict(found.filter(pl.col("score") == "SliCK").select("setting", "share").rows())
    assert by_setting["10 sets x 16 samples"] == 0.5
    assert by_setting["1 sets x 16 samples"] == 1.0


def test_outcomes_of_one_variant_point_and_set() -> None:
    columns = ("variant", "seed", "point", "set", "row", "correct")
    lines = [
        ("natural", 0, "convergence", "test", 0, True),
        ("natural", 1, "convergence", "test", 0, False),
        ("natural", 0, "early_stop", "test", 0, True),
        ("natural", 0, "convergence", "dev", 0, True),
        ("unknown-50", 0, "convergence", "test", 0, True),
    ]
    outcomes = pl.DataFrame(lines, schema=columns, orient="row")
    assert at_point(outcomes).rows() == [(0, True), (0, False)]
    assert at_point(outcomes, point="early_stop").rows() == [(0, True)]
