"""Chooses the engine for a loaded model: packed passes where they agree with the model's own, else plain ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from foreknow.inference.engine import PackedEngine, PlainEngine, Sampling
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.models.loading import Loaded
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import Prompter

logger = logging.getLogger(__name__)

CHECK: Exemplar = Exemplar("What is the capital of France?", "Paris", None)
"""The exemplar of the prompt on which packed passes are compared with the model's own."""


class EngineChoice(NamedTuple):
    """`name`: packed or plain. `engine` makes one for any sampling; the model stays attached until the context ends."""

    name: str
    engine: Callable[[Sampling], PackedEngine | PlainEngine]


@contextmanager
def open_engine(loaded: Loaded, prompter: Prompter, batch_tokens: int) -> Iterator[EngineChoice]:
    """Attach packed passes to a model and check them. Where the check fails, print why and use plain passes."""
    with ExitStack() as stack:
        try:
            packed = stack.enter_context(PackedModel(loaded.model).attached())
            ids = prompter.ids([prompter.text([CHECK], "What is the capital of Peru?")])[0]
            packed.verify(ids[: len(ids) // 2], ids[len(ids) // 2 :])
        except UnsupportedModel as error:
            stack.close()
            logger.info(f"plain forward passes, about ten times slower: {error}")
            yield EngineChoice("plain", lambda sampling: PlainEngine(loaded.model, sampling))
        else:
            yield EngineChoice("packed", lambda sampling: PackedEngine(packed, sampling, batch_tokens))
