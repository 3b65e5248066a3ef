"""Trains an epoch on known rows before the run itself (`--kl-teacher known-epoch`).

A base model hardly answers in the form in which rows are trained on, so what it says there is little to hold a model
to. After an epoch on rows whose answers it already gives behind exemplars it answers them without, and no fact is new
to it. The model as it is then is the teacher of `--kl`, and training on the new rows begins with its weights.

The epoch has the seed, the learning rate and the batch size of the run. It is not counted as one of the run's epochs,
and nothing is measured after it: what the model said *before* stays what the base model said. A run that is interrupted
before its first checkpoint trains it again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformers import set_seed

from foreknow.format.numbers import duration
from foreknow.stages.train.trainer import QuietTrainer

if TYPE_CHECKING:
    from foreknow.config import TuneConfig
    from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)


def train_known_epoch(
    config: TuneConfig,
    examples: Sequence[TrainingExample],
    batch_size: int,
    open_trainer: Callable[[TuneConfig, list[TrainingExample], int], QuietTrainer],
) -> str:
    """Train the model one epoch on `examples` and return a line that says so. Raises NotFinite.

    `batch_size`: rows of a step. `open_trainer`: makes a trainer for settings, rows and a number of steps, whose loss
    is that of the rows alone.
    """
    began = time.monotonic()
    steps = math.ceil(len(examples) / batch_size)
    set_seed(config.seed)
    settings = config.model_copy(update={"replay": 0.0, "kl": 0.0, "known_late": 0.0, "report_to": ()})
    rows = [example._replace(row=n) for n, example in enumerate(examples)]  # those below 0 would count as replayed
    trainer = open_trainer(settings, rows, steps)
    trainer.train()
    loss = trainer.tally.mean or 0.0
    set_seed(config.seed)
    text = f"kl: an epoch on {len(examples):,} known rows ({steps:,} steps) before the first step"
    return f"{text}, loss {loss:.3f}, in {duration(time.monotonic() - began)}; the model after it is the teacher"
