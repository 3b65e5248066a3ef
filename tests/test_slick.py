"""SliCK labels against a plain reference, at their boundaries, and what must hold between budgets."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, KNOWN, MAYBE_KNOWN, UNKNOWN, WEAKLY_KNOWN
from foreknow.inference.slick import PROBES, expected_shares, label, relabel, shares

Set = tuple[bool, float, float]
"""One exemplar set of a row: greedy right, probability of a right sample, width of its interval."""


def probes(rows: list[list[Set]]) -> pl.DataFrame:
    lines = [
        {
            "row": row,
            "exemplar_set": j,
            "greedy_correct": greedy,
            "greedy_lenient": greedy or p > 0.9,
            "p_correct": p,
            "p_correct_upper": min(1.0, p + width),
            "p_lenient": min(1.0, p * 1.5),
            "p_lenient_upper": min(1.0, p * 1.5 + width),
            "expansions": 0,
            "replaced_shots": [],
        }
        for row, sets in enumerate(rows)
        for j, (greedy, p, width) in enumerate(sets)
    ]
    return pl.DataFrame(lines, schema=PROBES)


def reference(greedy: list[bool], hit: float) -> str:
    if all(greedy):
        return HIGHLY_KNOWN
    if any(greedy):
        return MAYBE_KNOWN
    return WEAKLY_KNOWN if hit >= 0.5 else UNKNOWN


def hit_of(p: list[float], samples: int) -> float:
    return 1 - math.prod((1 - one) ** samples for one in p)


probability = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]), st.floats(0, 0.02))
one_set = st.tuples(st.sampled_from([False, False, False, True]), probability, st.floats(0, 0.05))
tables = st.lists(st.lists(one_set, min_size=1, max_size=6), min_size=1, max_size=6)


def only(frame: pl.DataFrame) -> dict[str, Any]:
    assert frame.height == 1
    return frame.row(0, named=True)


@settings(deadline=None, max_examples=150)
@given(tables, st.integers(1, 32), st.booleans(), st.booleans())
def test_labels_agree_with_the_definition(rows: list[list[Set]], samples: int, lenient: bool, sampled: bool) -> None:
    frame = probes(rows)
    found = label(frame, samples=samples, lenient=lenient, sampled=sampled)
    assert found["row"].to_list() == list(range(len(rows)))
    for row, line in enumerate(found.iter_rows(named=True)):
        of = frame.filter(row=row)
        low = of["p_lenient" if lenient else "p_correct"].to_list()
        high = of["p_lenient_upper" if lenient else "p_correct_upper"].to_list()
        greedy = of["greedy_lenient" if lenient else "greedy_correct"].to_list()

        def hit(p: list[float]) -> float:
            return float(any(p)) if sampled else hit_of(p, samples)

        assert line["p_greedy"] == pytest.approx(sum(greedy) / len(greedy))
        assert line["p_sampled"] == pytest.approx(sum(low) / len(low))
        assert line["p_sampled_width"] == pytest.approx((sum(high) - sum(low)) / len(low), abs=1e-12)
        assert line["p_hit"] == pytest.approx(hit(low), abs=1e-9)
        assert line["p_hit_upper"] == pytest.approx(hit(high), abs=1e-9)
        assert line["p_hit"] <= line["p_hit_upper"] + 1e-12
        assert line["p_hit_lenient"] == pytest.approx(hit(of["p_lenient"].to_list()), abs=1e-9)
        if abs(line["p_hit"] - 0.5) > 1e-9:
            assert line["category"] == reference(greedy, hit(low))
        if abs(line["p_hit_lenient"] - 0.5) > 1e-9:
            wide = reference(of["greedy_lenient"].to_list(), hit(of["p_lenient"].to_list()))
            assert line["category_lenient"] == wide
        undecided = not any(greedy) and line["p_hit"] < 0.5 <= line["p_hit_upper"]
        assert line["undecided"] is undecided
    if lenient:
        assert found["category"].to_list() == found["category_lenient"].to_list()


@pytest.mark.parametrize(
    ("sets", "category"),
    [
        ([(True, 0.0, 0.0)] * 10, HIGHLY_KNOWN),
        ([(True, 1.0, 0.0)] * 3, HIGHLY_KNOWN),
        ([(True, 1.0, 0.0)] * 9 + [(False, 1.0, 0.0)], MAYBE_KNOWN),
        ([(True, 1.0, 0.0)] * 99 + [(False, 1.0, 0.0)], MAYBE_KNOWN),
        ([(False, 0.0, 0.0)] * 9 + [(True, 0.0, 0.0)], MAYBE_KNOWN),
        ([(False, 1.0, 0.0)] + [(False, 0.0, 0.0)] * 9, WEAKLY_KNOWN),
        ([(False, 0.0044, 0.0)] * 10, WEAKLY_KNOWN),
        ([(False, 0.0043, 0.0)] * 10, UNKNOWN),
        ([(False, 0.0, 0.0)] * 10, UNKNOWN),
        ([(False, 0.0, 1.0)] * 10, UNKNOWN),
    ],
)
def test_boundaries(sets: list[Set], category: str) -> None:
    assert only(label(probes([sets]), samples=16))["category"] == category


def test_p_hit_of_one_half_is_weakly_known() -> None:
    line = only(label(probes([[(False, 0.5, 0.0)]]), samples=1))
    assert (line["p_hit"], line["category"], line["undecided"]) == (0.5, WEAKLY_KNOWN, False)
    line = only(label(probes([[(False, 0.49, 0.02)]]), samples=1))
    assert (line["category"], line["undecided"]) == (UNKNOWN, True)
    line = only(label(probes([[(True, 0.49, 0.02)]]), samples=1))
    assert (line["category"], line["undecided"]) == (HIGHLY_KNOWN, False)


def test_samples_really_drawn_are_counted_not_projected() -> None:
    frame = probes([[(False, 1 / 16, 0.0), (False, 0.0, 0.0)], [(False, 0.0, 0.0)] * 2])
    assert label(frame, samples=16, sampled=True)["p_hit"].to_list() == [1, 0]
    assert label(frame, samples=16, sampled=True)["category"].to_list() == [WEAKLY_KNOWN, UNKNOWN]


def test_probabilities_a_rounding_error_out_of_range_do_no_harm() -> None:
    line = only(label(probes([[(False, 1.0 + 1e-12, 0.0), (False, -1e-18, 0.0)]]), samples=16))
    assert (line["p_hit"], line["category"]) == (1.0, WEAKLY_KNOWN)


def test_a_row_that_was_not_probed_has_no_category() -> None:
    frame = probes([[(True, 0.9, 0.0)], [(True, 0.9, 0.0)]]).with_columns(
        pl.when(pl.col("row") == 0).then(pl.col(c)).alias(c) for c in PROBES if c.startswith(("greedy", "p_"))
    )
    found = label(frame, samples=16)
    assert found["category"].to_list() == [HIGHLY_KNOWN, None]
    assert found["category_lenient"].to_list() == [HIGHLY_KNOWN, None]
    assert found["p_greedy"].to_list() == [1, None]
    assert label(probes([]), samples=16).height == 0


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(1, 32), st.integers(1, 6))
def test_relabelling_is_labelling_the_first_sets(rows: list[list[Set]], samples: int, sets: int) -> None:
    frame = probes(rows)
    fewer = label(probes([row[:sets] for row in rows]), samples=samples)
    assert relabel(frame, sets=sets, samples=samples).equals(fewer)
    assert (
        label(frame.sample(fraction=1, shuffle=True, seed=1).sort("row"), samples=samples)["category"].to_list()
        == label(frame, samples=samples)["category"].to_list()
    )


@settings(deadline=None, max_examples=100)
@given(tables, st.integers(1, 32), st.data())
def test_a_better_model_never_knows_a_row_less(rows: list[list[Set]], samples: int, data: st.DataObject) -> None:
    better = []
    for row in rows:
        line = []
        for greedy, p, width in row:
            up = min(1.0, p + data.draw(st.floats(0, 0.3)))
            line.append((greedy or data.draw(st.booleans()), up, width))
        better.append(line)
    was, now = label(probes(rows), samples=samples), label(probes(better), samples=samples)
    assert (now["p_hit"] >= was["p_hit"] - 1e-12).all()
    for before, after in zip(was.iter_rows(named=True), now.iter_rows(named=True), strict=True):
        if after["p_hit"] >= before["p_hit"]:
            assert CATEGORIES.index(after["category"]) <= CATEGORIES.index(before["category"])
    more = label(probes(rows), samples=samples + 1)
    for before, after in zip(was.iter_rows(named=True), more.iter_rows(named=True), strict=True):
        if abs(after["p_hit"] - 0.5) > 1e-9:
            assert CATEGORIES.index(after["category"]) <= CATEGORIES.index(before["category"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*CATEGORIES, None]), max_size=20))
def test_shares_name_all_four_and_sum_to_one(categories: list[str | None]) -> None:
    found = shares(pl.Series(categories, dtype=pl.String))
    labelled = [c for c in categories if c is not None]
    assert tuple(found) == CATEGORIES
    assert sum(found.values()) == pytest.approx(1 if labelled else 0)
    assert all(found[c] == labelled.count(c) / max(len(labelled), 1) for c in CATEGORIES)


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(1, 32))
def test_expected_shares_count_p_hit(rows: list[list[Set]], samples: int) -> None:
    found = label(probes(rows), samples=samples)
    expected = expected_shares(found)
    silent = [hit_of([p for _, p, _ in row], samples) for row in rows if not any(g for g, _, _ in row)]
    assert tuple(expected) == CATEGORIES
    assert sum(expected.values()) == pytest.approx(1)
    assert all(-1e-12 <= share <= 1 + 1e-12 for share in expected.values())
    assert expected[WEAKLY_KNOWN] == pytest.approx(sum(silent) / len(rows), abs=1e-9)
    assert expected[UNKNOWN] == pytest.approx(sum(1 - p for p in silent) / len(rows), abs=1e-9)
    for category in (HIGHLY_KNOWN, MAYBE_KNOWN):
        assert expected[category] == shares(found["category"])[category]


def test_expected_shares_leave_out_rows_without_a_category() -> None:
    rows = pl.DataFrame(
        {"category": [UNKNOWN, None, HIGHLY_KNOWN], "p_greedy": [0.0, None, 1.0], "p_hit": [0.25, None, 1.0]}
    )
    assert expected_shares(rows) == {HIGHLY_KNOWN: 0.5, MAYBE_KNOWN: 0, WEAKLY_KNOWN: 0.125, UNKNOWN: 0.375}
    assert expected_shares(rows.clear()) == dict.fromkeys(CATEGORIES, 0.0)
    assert KNOWN == (HIGHLY_KNOWN, MAYBE_KNOWN, WEAKLY_KNOWN)
