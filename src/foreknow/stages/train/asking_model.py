"""Holds a model that is asked questions while it is trained, with all that asking needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train.answer_loss import Pass


class AskingModel(NamedTuple):
    """Holds the model, its pass (`losses`) and what makes token ids for it.

    `fingerprint`: that of the weights before training. `end`: the token that ends every answer. `positions`: the number
    of tokens that the model can read, if it says so. `tokens`: how many are computed at once. `autocast`: compute in
    bfloat16. `dtype`: what the run computes in.
    """

    model: Any
    fingerprint: str
    losses: Pass
    tokenizer: Any
    prompter: Prompter
    end: int
    positions: int | None
    tokens: int
    autocast: bool
    device: str
    dtype: str

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without dropout, and in bfloat16 if `autocast` is set; see `evaluating`."""
        with evaluating(self.model), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode, without dropout; give every module its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
