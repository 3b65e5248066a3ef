"""Trains on HighlyKnown rows in the last steps only (`--known-late`), as KnownPatch does (arXiv 2511.02626). Pure.

Before the last SHARE of all steps, an epoch has the other rows only, spread over the same number of steps; from then
on it has all rows, as without this setting. Which rows a step takes depends on the seed and the step only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from foreknow.categories import HIGHLY_KNOWN
from foreknow.errors import ConfigError
from foreknow.stages.train.batches import order, step_rows


class KnownLate(NamedTuple):
    """Says which rows a step takes.

    `others`: the places, among `total` rows to train on, of those that are not HighlyKnown. `first`: the first step
    with all rows. `batch`: how many rows such a step takes.
    """

    seed: int
    total: int
    batch: int
    others: tuple[int, ...]
    first: int

    def rows(self, step: int) -> list[int]:
        """Return the places of the rows of optimizer step `step`, counted from 0 over all epochs."""
        if step >= self.first:
            return step_rows(self.seed, step, self.total, self.batch)
        steps = math.ceil(self.total / self.batch)
        epoch, within = divmod(step, steps)
        size = math.ceil(len(self.others) / steps)
        shuffled = [self.others[place] for place in order(self.seed, epoch, len(self.others))]
        # with fewer rows than steps, or where the last steps would be empty, rows come again from the epoch's beginning
        return [shuffled[place % len(shuffled)] for place in range(within * size, (within + 1) * size)]


def known_late(
    share: float, categories: Sequence[str | None], seed: int, batch: int, epochs: int
) -> tuple[KnownLate, str]:
    """Return the plan for rows of these categories, and a line that says what it does.

    `share`: the last part of all steps, 0 to 1, in which HighlyKnown rows are trained on. Raises ConfigError if no
    row, or every row, is HighlyKnown.
    """
    others = tuple(place for place, category in enumerate(categories) if category != HIGHLY_KNOWN)
    late = len(categories) - len(others)
    if not late or not others:
        found = "no row" if not late else "every row"
        raise ConfigError(
            f"--known-late {share:g}: {found} of the training file is HighlyKnown, so that there is nothing to order; "
            "categories come from the column 'category' or --audit"
        )
    steps = math.ceil(len(categories) / batch) * epochs
    first = steps - max(1, round(share * steps))
    line = f"{late:,} HighlyKnown rows are trained on from step {first + 1:,} of {steps:,} on (--known-late {share:g})"
    return KnownLate(seed, len(categories), batch, others, first), line
