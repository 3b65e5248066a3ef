"""Holds a model that is asked questions while it is trained, with all that asking needs."""

from __future__ import annotations

from typing import Any, NamedTuple

from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train.answer_loss import Pass


class AskingModel(NamedTuple):
    """Holds the model, its pass and what makes token ids for it.

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
