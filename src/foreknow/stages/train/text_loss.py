"""Measures the loss of a short plain text that no row contains, to see what training does to ordinary language.

The text is `data/builtin/plain_text.py`, a paragraph at a time without any prompt. The first token of a paragraph is
only read, each of the others is predicted from all before it. The loss is the mean of -log p of a token, in nats, so
that it compares checkpoints of one model and not two models with different tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreknow.data.builtin.plain_text import PARAGRAPHS
from foreknow.stages.train.dataset import TrainingExample
from foreknow.stages.train.set_loss import mean_losses

if TYPE_CHECKING:
    from foreknow.stages.train.asking_model import AskingModel


class TextLoss:
    """Holds the text as token ids (`examples`) and its loss before training, `before`, in nats a token."""

    def __init__(self, asking: AskingModel, paragraphs: Sequence[str] = PARAGRAPHS):
        """Turn the paragraphs into token ids and measure them. The model must be as it was before training."""
        self.examples = text_examples(asking, paragraphs)
        self.before = self.measure(asking)

    def measure(self, asking: AskingModel) -> float:
        """Return the mean loss of a token now, in nats."""
        losses = mean_losses(
            asking.losses,
            asking.model,
            {"text": self.examples},
            tokens=asking.tokens,
            autocast=asking.autocast,
            device=asking.device,
        )
        return losses["text"]


def text_examples(asking: AskingModel, paragraphs: Sequence[str]) -> list[TrainingExample]:
    """Return each paragraph as a row whose prompt is its first token; cut where the model has no more positions."""
    most = asking.positions or None
    rows = [ids[:most] for ids in asking.prompter.ids(paragraphs)]
    return [TrainingExample(n, tuple(ids[:1]), tuple(ids[1:])) for n, ids in enumerate(rows) if len(ids) > 1]
