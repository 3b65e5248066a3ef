"""Measures the mean loss of a set's answers: -log p of a token, in nats, given the tokens before it.

The text is the same as in training (prompt, gold, end of the answer), and dropout is off. Tokens that are left out of
the loss (`loss_exclude`) do not count. Unlike exact match, the loss tells epochs apart even if no whole answer is
right, as with long answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from foreknow.distributed import process_group
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.training_examples import TrainingExample

if TYPE_CHECKING:
    from foreknow.stages.train.asking_model import AskingModel

Sets = Mapping[str, Sequence[TrainingExample]]


def mean_losses(
    asking: AskingModel, sets: Sets, known: Mapping[str, tuple[float, int]] | None = None
) -> dict[str, float]:
    """Compute the mean loss of a token, in nats, of every set that has rows.

    All processes must call this for the same sets, and get the same numbers. `sets`: the rows of this process, by set
    name. `known`: see `summed_losses`.
    """
    own = summed_losses(asking, sets, known)
    whole = {name: process_group.totals(sum_and_count) for name, sum_and_count in own.items()}
    return {name: total / count for name, (total, count) in whole.items() if count}


@torch.no_grad()
def summed_losses(
    asking: AskingModel, sets: Sets, known: Mapping[str, tuple[float, int]] | None = None
) -> dict[str, tuple[float, int]]:
    """Compute the loss, in nats, of every set in this process: its sum over tokens, and how many they are.

    `known`: by set, the sum and the number of tokens of its other rows, whose losses are known already.
    """
    found = {}
    with asking.evaluating():
        for name, rows in sets.items():
            total, count = (known or {}).get(name, (0.0, 0))
            for part in micro_batches(rows, asking.tokens):
                ordered, values = asking.losses.losses(part)
                in_loss = [counts for example in ordered for counts in example.in_loss]
                total += float(values.cpu().double()[torch.tensor(in_loss)].sum())
                count += sum(in_loss)
            found[name] = (total, count)
    return found
