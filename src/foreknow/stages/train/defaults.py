"""Chooses epochs, batch size and learning rate from the number of rows and the size of the model. Pure.

The paper's settings (section 3: 50 epochs, batches of 128, a rate of 1e-5) were made for 6,142 rows and a large model.
With them 40 rows give one step an epoch, and a small model learns nothing in 50 steps. `--preset paper` uses them
anyway; studies always do. Settings that the user gives are used unchanged, and the others are chosen to fit them.

Where the number of epochs is chosen, it is the most that may be needed: the run ends earlier if dev does not improve.
On 40 facts a model of 135 million weights had the least dev loss after 2 epochs and fitted all rows after 4
(docs/tuning.md).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

PAPER: Final = {"epochs": 50, "batch_size": 128, "learning_rate": 1e-5}
"""The paper's settings (section 3)."""

STEPS_AN_EPOCH: Final = 16
"""The number of optimizer steps in an epoch that the batch size is chosen for."""
SMALLEST_BATCH, LARGEST_BATCH = 4, 128
STEPS: Final = 250
"""The number of optimizer steps of the whole run that the number of epochs is chosen for."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20
PATIENCE: Final = 3
"""The number of epochs without a better dev that ends a run whose number of epochs was chosen here."""
RATE_AT_1B: Final = 2e-5
"""The learning rate for all weights of a model of 1e9 weights; it falls with the square root of the model's size."""
LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-4
LORA_FACTOR: Final = 10
"""The factor by which the rate for LoRA adapters is higher than the rate for all weights."""


class TrainingPlan(NamedTuple):
    """Holds the settings of a run.

    `patience`: the run ends after this many epochs in which dev did not improve; 0 if it never ends early. `reason`: a
    sentence on how the settings were chosen; None if the user gave all of them.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    reason: str | None


def plan_training(
    rows: int,
    parameters: int,
    *,
    lora: bool = False,
    paper: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
) -> TrainingPlan:
    """Choose the settings that are None for `rows` rows and a model of `parameters` weights.

    `lora`: train adapters and not all weights. `paper`: use the paper's settings instead.
    """
    missing = {"epochs": epochs is None, "batch size": batch_size is None, "learning rate": learning_rate is None}
    if patience is None:
        patience = 0 if paper or epochs is not None else PATIENCE
    if paper:
        batch = batch_size or int(PAPER["batch_size"])
        chosen = TrainingPlan(
            epochs or int(PAPER["epochs"]), batch, learning_rate or PAPER["learning_rate"], patience, None
        )
    else:
        batch = batch_size or _batch_size(rows)
        chosen = TrainingPlan(
            epochs or _epochs(rows, batch), batch, learning_rate or _rate(parameters, lora), patience, None
        )
    if not any(missing.values()):
        return chosen
    values = {
        "epochs": f"at most {chosen.epochs} epochs, {patience} without a better dev end the run"
        if patience
        else f"{chosen.epochs} epochs",
        "batch size": f"batches of {chosen.batch_size}",
        "learning rate": f"a learning rate of {chosen.learning_rate:.1e}",
    }
    taken = ", ".join(values[name] for name, is_missing in missing.items() if is_missing)
    why = (
        "the paper's settings (--preset paper)"
        if paper
        else f"chosen for {rows:,} rows and {'adapters of ' if lora else ''}a model of {parameters / 1e6:,.0f} million "
        "weights (--preset paper takes the paper's settings)"
    )
    return chosen._replace(reason=f"{taken}: {why}")


def _batch_size(rows: int) -> int:
    """Return the power of two nearest to `rows / STEPS_AN_EPOCH`, within the limits."""
    nearest = 1 << round(math.log2(max(rows / STEPS_AN_EPOCH, 1)))
    return min(max(nearest, SMALLEST_BATCH), LARGEST_BATCH)


def _epochs(rows: int, batch_size: int) -> int:
    steps = math.ceil(rows / batch_size)
    return min(max(round(STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)


def _rate(parameters: int, lora: bool) -> float:
    """Return the learning rate with two significant digits, so that the printed rate is the exact rate."""
    rate = min(max(RATE_AT_1B * math.sqrt(1e9 / max(parameters, 1)), LOWEST_RATE), HIGHEST_RATE)
    return float(f"{rate * (LORA_FACTOR if lora else 1):.1e}")
