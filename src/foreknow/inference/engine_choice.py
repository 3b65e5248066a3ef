"""Chooses the engine for a loaded model: packed passes where they agree with the model's own, else plain ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from foreknow.inference.engine import Engine, PackedEngine, PlainEngine, Sampling
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import Prompter

logger = logging.getLogger(__name__)

CHECK: Exemplar = Exemplar("What is the capital of France?", "Paris", None)
"""The exemplar of the prompt on which packed passes are compared with the model's own."""


class EngineChoice(NamedTuple):
    """The engine that fits a model: `packed` has packed passes attached until the context ends; None for plain ones."""

    model: PreTrainedModel
    packed: PackedModel | None
    batch_tokens: int

    @property
    def name(self) -> Literal["packed", "plain"]:
        """Return the engine's name."""
        return "plain" if self.packed is None else "packed"

    @property
    def finds_log_p(self) -> bool:
        """Return whether an engine with a `top_k` finds the log-probabilities of `Engine.open`, in float32."""
        return self.packed is not None and self.packed.head.weight.dtype == torch.float32

    def engine(self, sampling: Sampling) -> Engine:
        """Make an engine for any sampling."""
        if self.packed is None:
            return PlainEngine(self.model, sampling)
        return PackedEngine(self.packed, sampling, self.batch_tokens)


class EngineFactory:
    """Opens the engine that fits a model. The model may be opened again when its weights have changed.

    Packed passes are compared with the model's own when it is first opened, on a prompt with the exemplars `shots`.
    `refusal`: why plain passes are used; None if packed ones are.
    """

    def __init__(self, prompter: Prompter, batch_tokens: int, shots: Sequence[Exemplar] = (CHECK,)):
        self.refusal: str | None = None
        self._batch_tokens = batch_tokens
        self._prompt = prompter.ids([prompter.text(shots, "What is the capital of Peru?")])[0]
        self._is_checked = False

    @contextmanager
    def open(self, model: PreTrainedModel) -> Iterator[EngineChoice]:
        """Attach packed passes to a model if they fit it, until the context ends."""
        with ExitStack() as stack:
            packed = None
            if self.refusal is None:
                try:
                    packed = stack.enter_context(PackedModel(model).attached())
                    if not self._is_checked:
                        packed.verify(self._prompt[: len(self._prompt) // 2], self._prompt[len(self._prompt) // 2 :])
                        self._is_checked = True
                except UnsupportedModel as error:
                    stack.close()
                    packed, self.refusal = None, str(error)
            yield EngineChoice(model, packed, self._batch_tokens)


@contextmanager
def open_engine(model: PreTrainedModel, prompter: Prompter, batch_tokens: int) -> Iterator[EngineChoice]:
    """Open the engine that fits a model, once. Where packed passes do not, print why."""
    factory = EngineFactory(prompter, batch_tokens)
    with factory.open(model) as choice:
        if factory.refusal is not None:
            logger.info(f"plain forward passes, about ten times slower: {factory.refusal}")
        yield choice
