"""Orders the rows of an epoch, and cuts the rows of a step into batches, for one process or several. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foreknow.stages.train.training_examples import TrainingExample


def order(seed: int, epoch: int, count: int) -> list[int]:
    """Return the order of the rows in an epoch, which depends only on the seed and the epoch."""
    shuffled: list[int] = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return shuffled


def step_rows(seed: int, step: int, count: int, batch: int) -> list[int]:
    """Return the indices of the rows of optimizer step `step`, counted from 0 over all epochs.

    The last step of an epoch may have fewer than `batch` rows.
    """
    epoch, within = divmod(step, math.ceil(count / batch))
    return order(seed, epoch, count)[within * batch : (within + 1) * batch]


def micro_batches(rows: Sequence[TrainingExample], tokens: int) -> list[list[TrainingExample]]:
    """Sort a step's rows by length and cut them into parts of at most `tokens` tokens.

    A row that is longer than that is a part of its own.
    """
    parts: list[list[TrainingExample]] = []
    filled = 0
    for example in sorted(rows, key=lambda e: (e.length, e.row)):
        if not parts or filled + example.length > tokens:
            parts.append([])
            filled = 0
        parts[-1].append(example)
        filled += example.length
    return parts


def shares(rows: Sequence[TrainingExample], tokens: int, count: int) -> list[list[list[TrainingExample]]]:
    """Cut a step's rows into micro-batches for each of `count` processes; all get the same number of micro-batches.

    Every row goes to one process. The processes synchronize after every micro-batch, so a process that has fewer is
    given micro-batches of one row with weight 0, which teaches nothing. It is none of a pool's rows, which are numbered
    below 0 and count in `--kl` whatever their weight.
    """
    ordered = sorted(rows, key=lambda e: (e.length, e.row))
    parts = [micro_batches(ordered[k::count], tokens) for k in range(count)]
    most = max(len(own) for own in parts)
    idle = [min(ordered, key=lambda e: e.row < 0)._replace(weight=0.0)]
    return [own + [idle] * (most - len(own)) for own in parts]


def runs_by_length(rows: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    """Sort rows by length and cut them into runs of similar length; attention pads each run to its longest row."""
    runs: list[list[TrainingExample]] = []
    shortest = 0
    for example in sorted(rows, key=lambda e: (e.length, e.row)):
        if not runs or example.length > max(2 * shortest, shortest + 12):
            runs.append([])
            shortest = example.length
        runs[-1].append(example)
    return runs
