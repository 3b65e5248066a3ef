"""Weighs the training rows by the model's loss on them before training (`--loss-weights flow`; FLOW, arXiv 2502.02797).

A row's weight is exp(-loss / tau). Its loss is the mean of its learnt tokens, in nats, before training, and tau is the
median of the rows' losses. So rows that the model finds easy weigh more, and the largest steps away from what it knows
weigh least. The weights are multiplied with those of the file, if it has any, and scaled so that their mean is 1.

DIR/row_weights.parquet   the rows with their loss and weight (`WEIGHTS`), which a resumed run reads
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch

from foreknow.distributed import process_group
from foreknow.io.run_dir import write_frame
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)

FILE: Final = "row_weights.parquet"
WEIGHTS: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "loss": pl.Float64(), "weight": pl.Float64()}
"""The contract of `row_weights.parquet`. `loss`: nats a token, before training; null where no token is learnt."""

_CERTAIN: Final = 1e-6
"""A median loss below this, in nats a token, gives no scale."""


def flow_weights(losses: Sequence[float]) -> list[float]:
    """Return the weight of each row, with mean 1, from its loss before training (FLOW, section 3)."""
    values = np.asarray(losses, dtype=np.float64)
    median = float(np.median(values)) if values.size else 0.0
    if median < _CERTAIN:  # half of the rows are certain already: no scale to weigh by
        return [1.0] * values.size
    weights = np.exp(-values / median)
    return [float(weight) for weight in weights / weights.mean()]


def weigh(examples: Sequence[TrainingExample], asking: AskingModel, folder: Path) -> list[TrainingExample]:
    """Return the rows with their weights, which are computed before training and read by a run that goes on.

    Of several processes the first one computes them. The model must be as it was before training, unless `folder` has
    the weights already.
    """
    path = folder / FILE
    if process_group.is_main_process() and not path.is_file():
        losses = _losses(examples, asking)
        learnt = [example.row for example in examples if example.row in losses]
        weights = dict(zip(learnt, flow_weights([losses[row] for row in learnt]), strict=True))
        lines = [(example.row, losses.get(example.row), weights.get(example.row, 1.0)) for example in examples]
        write_frame(path, pl.DataFrame(lines, schema=WEIGHTS, orient="row"))
    process_group.barrier()
    found = pl.read_parquet(path)
    low, middle, high = np.quantile(found["weight"].to_numpy(), (0.1, 0.5, 0.9))
    logger.info(
        "flow: rows weigh by the model's loss on them before training: the lightest tenth "
        f"{low:.2f} or less, half {middle:.2f} or less, the heaviest tenth {high:.2f} or more"
    )
    weight_of = dict(found.select("row", "weight").iter_rows())
    return [example._replace(weight=example.weight * weight_of[example.row]) for example in examples]


@torch.no_grad()
def _losses(examples: Sequence[TrainingExample], asking: AskingModel) -> dict[int, float]:
    """Return the mean loss of each row's learnt tokens, in nats, by row; rows without one are missing."""
    found = {}
    with asking.evaluating():
        for part in micro_batches(examples, asking.tokens):
            ordered, losses = asking.losses.losses(part)
            values = losses.double().cpu().split([len(example.answer) for example in ordered])
            for example, own in zip(ordered, values, strict=True):
                if example.learnt:
                    found[example.row] = float(own[torch.tensor(example.in_loss)].mean())
    return found
