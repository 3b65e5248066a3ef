"""Measures the loss of a short plain text that no row contains, to see what training does to ordinary language.

The text is `data/builtin/plain_text.py`, a paragraph at a time without any prompt, and about `MOST_TOKENS` of it at
most. The first token of a paragraph is only read, each of the others is predicted from all before it. The loss is the
mean of -log p of a token, in nats, so that it compares checkpoints of one model and not two models with different
tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from foreknow.data.builtin.plain_text import PARAGRAPHS
from foreknow.stages.train.set_loss import summed_losses
from foreknow.stages.train.training_examples import TrainingExample

if TYPE_CHECKING:
    from foreknow.stages.train.asking_model import AskingModel

MOST_TOKENS: Final = 800
"""Paragraphs that begin after so many tokens are left out."""


class TextLoss:
    """Holds the text as token ids (`examples`) and its loss before training, `before`, in nats a token."""

    def __init__(self, asking: AskingModel, paragraphs: Sequence[str] = PARAGRAPHS):
        """Turn the paragraphs into token ids and measure them. The model must be as it was before training."""
        self.examples = text_examples(asking, paragraphs)
        self.before = self.measure(asking)

    def measure(self, asking: AskingModel) -> float:
        """Return the mean loss of a token now, in nats."""
        total, count = summed_losses(asking, {"text": self.examples})["text"]
        return total / count


def text_examples(asking: AskingModel, paragraphs: Sequence[str]) -> list[TrainingExample]:
    """Return each paragraph as a row whose prompt is its first token; cut where the model has no more positions.

    Paragraphs after the first `MOST_TOKENS` tokens are left out: a tokenizer that spells English byte by byte would
    make the text several times as long.
    """
    most = min(asking.positions or MOST_TOKENS, MOST_TOKENS)
    rows: list[TrainingExample] = []
    for ids in asking.prompter.ids(paragraphs):
        if len(ids) > 1 and sum(row.length for row in rows) < MOST_TOKENS:
            rows.append(TrainingExample(len(rows), tuple(ids[:1]), tuple(ids[1:most])))
    return rows
