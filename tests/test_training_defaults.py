"""The settings that tune chooses from the number of rows and the size of the model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.stages.train.defaults import (
    FEWEST_EPOCHS,
    HIGHEST_RATE,
    LARGEST_BATCH,
    LOWEST_RATE,
    MOST_EPOCHS,
    PAPER,
    PATIENCE,
    SMALLEST_BATCH,
    plan_training,
)

ROWS = st.integers(1, 10**7)
SIZES = st.integers(10**5, 10**12)


@given(ROWS, SIZES)
def test_every_file_gets_settings_within_the_limits_and_a_reason(rows: int, parameters: int) -> None:
    plan = plan_training(rows, parameters)
    assert FEWEST_EPOCHS <= plan.epochs <= MOST_EPOCHS
    assert SMALLEST_BATCH <= plan.batch_size <= LARGEST_BATCH
    assert LOWEST_RATE <= plan.learning_rate <= HIGHEST_RATE
    assert f"{rows:,} rows" in str(plan.reason)


@given(ROWS, SIZES)
def test_a_file_of_some_rows_gets_more_than_one_step_an_epoch(rows: int, parameters: int) -> None:
    steps = math.ceil(rows / plan_training(rows, parameters).batch_size)
    assert steps >= min(8, math.ceil(rows / SMALLEST_BATCH))


@given(ROWS, ROWS, SIZES, SIZES)
def test_more_rows_mean_larger_batches_and_fewer_epochs_a_larger_model_a_lower_rate(
    few: int, many: int, small: int, large: int
) -> None:
    few, many = sorted((few, many))
    small, large = sorted((small, large))
    assert plan_training(few, small).batch_size <= plan_training(many, small).batch_size
    assert plan_training(few, large).learning_rate <= plan_training(few, small).learning_rate
    assert plan_training(few, small, lora=True).learning_rate > plan_training(few, small).learning_rate


@given(ROWS, SIZES, st.integers(1, 99), st.integers(1, 512))
def test_what_is_given_is_taken_and_only_the_rest_is_named(rows: int, size: int, epochs: int, batch: int) -> None:
    plan = plan_training(rows, size, epochs=epochs, batch_size=batch)
    assert (plan.epochs, plan.batch_size) == (epochs, batch)
    assert "epochs" not in str(plan.reason)
    assert "learning rate" in str(plan.reason)
    assert plan_training(rows, size, epochs=epochs, batch_size=batch, learning_rate=1e-3).reason is None


@pytest.mark.parametrize("rows", [40, 400, 6142])
def test_the_papers_settings_are_a_preset(rows: int) -> None:
    plan = plan_training(rows, 135_000_000, paper=True)
    assert plan._asdict() | {"reason": None} == {**PAPER, "patience": 0, "reason": None}
    assert "paper" in str(plan.reason)
    assert plan_training(rows, 135_000_000, paper=True, epochs=3).epochs == 3


def test_only_a_run_whose_epochs_are_chosen_here_ends_early() -> None:
    assert plan_training(400, 135_000_000).patience == PATIENCE
    assert f"{PATIENCE} without a better dev end the run" in str(plan_training(400, 135_000_000).reason)
    assert plan_training(400, 135_000_000, epochs=9).patience == 0
    assert plan_training(400, 135_000_000, paper=True).patience == 0
    assert plan_training(400, 135_000_000, patience=0).patience == 0
    assert plan_training(400, 135_000_000, epochs=9, patience=2).patience == 2
