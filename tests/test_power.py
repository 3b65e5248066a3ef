"""What a larger study could decide: simulated pilots, and the figures behind the sentence."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from foreknow.stages.study.contrasts import ContrastPart, Evidence
from foreknow.stages.study.paired import Stack, resampled
from foreknow.stages.study.power import detectable, power, rows_to_detect, seeds_to_detect


def part_of(value: float, se: float, of_seeds: float, reference: float = 0.0) -> ContrastPart:
    return ContrastPart("part", value, value - 2 * se, value + 2 * se, se, 0.5, reference, True, 20.0, of_seeds)


def test_seeds_shrink_their_part_of_the_error_and_no_other() -> None:
    only_rows, only_seeds = part_of(0.02, 0.01, 0.0), part_of(0.02, 0.01, 1.0)
    assert detectable(only_rows, 3, 3) == pytest.approx(detectable(only_rows, 3, 30)) == pytest.approx(0.028, abs=2e-4)
    assert detectable(only_rows, 3, 3, rows=4.0) == pytest.approx(0.014, abs=1e-4)
    assert detectable(only_seeds, 3, 300) == pytest.approx(0.0028, abs=1e-4)
    assert detectable(only_seeds, 3, 3) > 0.028  # Student's t with two degrees of freedom is wider


def test_the_seeds_and_rows_that_it_names_are_the_fewest_that_detect_the_figure() -> None:
    near = part_of(0.02, 0.01, 0.8)
    needed = seeds_to_detect(near, 3)
    assert needed is not None
    assert detectable(near, 3, needed) <= 0.02 < detectable(near, 3, needed - 1)
    stuck = part_of(0.02, 0.01, 0.1)
    assert seeds_to_detect(stuck, 3) is None
    times = rows_to_detect(stuck, 3)
    assert times is not None
    assert detectable(stuck, 3, 50, times) <= 0.02 < detectable(stuck, 3, 50, times / 1.25)
    assert rows_to_detect(part_of(0.0, 0.01, 0.5), 3) is None


def test_every_part_has_a_sentence_and_a_claim_without_runs_its_reason() -> None:
    found = {
        1: Evidence((part_of(-0.1, 0.01, 0.5), part_of(0.02, 0.01, 0.8)), 3),
        2: "no runs",
        3: Evidence((part_of(0.02, 0.01, 0.1),), 3),
        4: Evidence((part_of(0.0, 0.01, 0.5),), 3),
    }
    table = power(found, 3, 4)
    assert table["claim"].to_list() == [1, 1, 2, 3, 4]
    said = table["decided_by"].to_list()
    assert said[0] == "4 seeds, if the pilot's figure (on the other side) is the true one"
    assert (
        said[1] == f"{table['seeds_needed'][1]} seeds instead of 4, if the pilot's figure (on its side) is the true one"
    )
    assert said[2] == "not tested: no runs"
    assert said[3].endswith("with 50 seeds: the pilot's figure is near its reference")
    assert said[4] == "nothing that is affordable: the pilot's figure is too near its reference"
    assert power(found, 1, 4)["decided_by"][0] == "a pilot of one seed shows nothing of the seeds: run two"
    assert table["rows_needed"].is_not_null().to_list() == [False, False, False, True, False]


def test_studies_of_the_size_that_it_names_find_the_effect_as_often_as_it_says() -> None:
    """Simulated: an effect as large as what 4 seeds detect, by the variance of one pilot, is found in most studies."""
    rng = np.random.default_rng(5)

    def study(effect: float, seeds: int) -> ContrastPart:
        moved = 0.5 + rng.normal(0.0, 0.02, size=(2, seeds, 1)) + np.array([0.0, effect])[:, None, None]
        values = (rng.random((2, seeds, 400)) < np.broadcast_to(moved, (2, seeds, 400))).astype(float)
        stacked = Stack(values, np.zeros(400, dtype=np.int64), tuple(range(seeds)))
        found = resampled(stacked, lambda total: total[..., 1] - total[..., 0], draws=200)
        return ContrastPart(
            "", found.value, found.low, found.high, found.se, found.p(), 0.0, True, found.df, found.of_seeds
        )

    pilots = [study(0.0, 8) for _ in range(10)]
    effect = float(np.mean([detectable(pilot, 8, 4) for pilot in pilots]))
    decided = pl.Series([study(effect, 4).verdict == "holds" for _ in range(60)]).mean()
    assert isinstance(decided, float)
    assert 0.55 <= decided <= 1.0
