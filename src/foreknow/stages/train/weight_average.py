"""Goes part of the way from the weights before training to those after it (`--average`; WiSE-FT, arXiv 2109.01903).

At each alpha the weights are base + alpha (tuned - base), with the last epoch's as the tuned ones; for LoRA the
adapter's product is scaled by alpha, which is the same line. Each point is measured on every set and on the canaries.
Nothing is trained again. `choose` says which one is saved in `averaged/`:

1. Points at which fewer train rows are fitted than `LEARNT` of those fitted at the largest alpha are out: the facts
   that were to be taught would be lost again.
2. Of the others, those stay that lose no dev rows against the one with the best dev EM, as far as dev's rows can tell
   (McNemar's exact test, p >= 0.05).
3. Of these, the one that keeps the most canaries is saved; without canaries, the one with the lowest dev loss.
4. Of equal ones, the one with the largest alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import torch
from torch import Tensor, nn

from foreknow.errors import ConfigError
from foreknow.stages.train.answer_loss import base_of
from foreknow.stats import loses

FOLDER: Final = "averaged"
LEARNT: Final = 0.95
"""The share of the train rows fitted at the largest alpha that a point must still fit."""


@dataclass(frozen=True)
class Point:
    """Holds the measurement at one alpha.

    `fitted`: how many train rows are fitted. `dev`: whether each row of dev is right, in the order of the rows. `loss`:
    dev loss. `canaries`: how many canaries are kept; None if there are none. `metrics`: the whole measurement.
    """

    alpha: float
    fitted: int
    dev: tuple[bool, ...]
    loss: float
    canaries: int | None
    metrics: Mapping[str, Any]


def choose(points: Sequence[Point]) -> Point:
    """Return the point to save, by the rule at the top of this file."""
    whole = max(points, key=lambda point: point.alpha)
    learnt = [point for point in points if point.fitted >= LEARNT * whole.fitted]
    best = max(learnt, key=lambda point: (sum(point.dev), point.alpha))
    equal = [point for point in learnt if not loses(best.dev, point.dev)]
    if all(point.canaries is not None for point in equal):
        return max(equal, key=lambda point: (point.canaries or 0, point.alpha))
    return min(equal, key=lambda point: (point.loss, -point.alpha))


class WeightLine:
    """Sets a model's trained weights to points between `before` and what they are now, and back."""

    def __init__(self, model: Any, before: Mapping[str, Tensor] | None):
        """Remember the weights as they are now.

        `before`: the weights before training by name, for a model that is trained as a whole; None for a LoRA adapter
        that was new when training began. Raises ConfigError if a trained weight is not in `before`.
        """
        self.model, self.before = model, before
        own = base_of(model) if before is not None else model
        trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
        if before is None:
            trained = {name: p for name, p in trained.items() if "lora_B" in name}
        elif missing := [name for name in trained if name not in before]:
            raise ConfigError(f"--average: the model before training has no weight {missing[0]}")
        self._trained: dict[str, nn.Parameter] = trained
        self._after = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Set the weights to the point `alpha`: 0 is before training, 1 after it, exactly."""
        for name, parameter in self._trained.items():
            after = self._after[name]
            if alpha == 1:
                parameter.copy_(after)
            elif self.before is None:
                parameter.copy_(after * alpha)
            else:
                start = self.before[name].to(device=after.device, dtype=after.dtype)
                parameter.copy_(start + alpha * (after - start))


def dev_outcomes(outcomes: pl.DataFrame, lenient: bool) -> tuple[bool, ...]:
    """Return whether each row of dev is right, by row. `outcomes`: a frame `tracker.OUTCOMES`."""
    of = outcomes.filter(pl.col("set") == "dev").sort("row")
    return tuple(of["lenient" if lenient else "correct"].to_list())
