"""Turns the rows of a set into token ids, and finds the rows that cannot be used. Pure.

The training text is the prompt, the gold answer and the end-of-sequence token (design, section 8). Its ids are those
that the tracker asks with: the tokenizer's ids of the prompt, then the ids that the answer adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

from foreknow.data.schema import GOLD
from foreknow.errors import InputError
from foreknow.prompts.chat_templates import CHANGES
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.prompts.special_tokens import PromptText
from foreknow.stages.mix.span_edits import LOSS_EXCLUDE
from foreknow.stages.train import row_faults
from foreknow.stages.train.answer_places import answer_places, tokens_in
from foreknow.stages.train.dataset import LabelledSplit
from foreknow.stages.train.row_faults import RowFault

TRAINING: Final = Template(target="Answer the following question. {question}\n")
"""The paper's training format (section 3), zero-shot."""


class TrainingExample(NamedTuple):
    """Holds one row as token ids: `prompt`, then `answer` with the end token. Only the ids of `answer` are learnt.

    `excluded`: indices of tokens of `answer` that are left out of the loss; they stay in the text.
    """

    row: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weight: float = 1.0
    excluded: tuple[int, ...] = ()

    @property
    def in_loss(self) -> list[bool]:
        """Return whether each token of `answer` is in the loss."""
        counts = [True] * len(self.answer)
        for at in self.excluded:
            counts[at] = False
        return counts

    @property
    def token_weights(self) -> list[float]:
        """Return the weight of each token of `answer` in the loss: the row's, or 0 if it is left out."""
        return [self.weight * counts for counts in self.in_loss]

    @property
    def learnt(self) -> int:
        """Return the number of tokens of `answer` that are in the loss."""
        return len(self.answer) - len(self.excluded)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the ids that the model reads: all but the last one, which is only predicted."""
        return (*self.prompt, *self.answer[:-1])

    @property
    def length(self) -> int:
        """Return the number of tokens that the model reads."""
        return len(self.prompt) + len(self.answer) - 1


def examples(split: LabelledSplit, prompter: Prompter, end: int) -> list[TrainingExample]:
    """Turn the rows of a set into token ids, in the order of the rows. `end`: the token that ends every answer.

    Raises InputError for rows that cannot be trained on (`row_faults.py`).
    """
    training_examples, faults = tokenise(split, prompter, end)
    row_faults.check([(split.file, faults)], "refuse")
    return training_examples


def tokenise(
    split: LabelledSplit, prompter: Prompter, end: int, positions: int | None = None
) -> tuple[list[TrainingExample], list[RowFault]]:
    """Turn the rows of a set into token ids, in the order of the rows, and list the rows with faults (`row_faults.py`).

    `end`: the token that ends every answer. `positions`: the number of tokens that the model can read.
    """
    faults = {fault.row: fault for fault in template_faults(split.rows, prompter)}
    texts: list[tuple[int, PromptText, str, float]] = []
    masks: dict[int, list[list[int]]] = {}
    usable = split.rows.filter(~pl.col("row").is_in(list(faults)))
    columns = ("row", "question", "context", "weight", LOSS_EXCLUDE)
    for row, question, context, weight, ranges, gold in usable.select(*columns, GOLD).iter_rows():
        if ranges:
            blanks = len(gold) - len(gold.lstrip())
            masks[row] = [[start - blanks, end - blanks] for start, end in ranges]
        if weight == 0:
            faults[row] = RowFault(row, row_faults.WEIGHT_ZERO)
        elif not prompter.keeps_answer(question, context, gold.strip()):
            faults[row] = RowFault(row, row_faults.ANSWER_CHANGED)
        texts.append((row, prompter.text((), question, context), gold.strip(), weight))
        if prompter.unmarked(question, context, gold.strip()):
            faults[row] = RowFault(row, "no_label")
    prompts = prompter.ids([text for _, text, _, _ in texts])
    whole = prompter.ids([text + prompter.gap + gold for _, text, gold, _ in texts])
    training_examples = []
    for (row, text, gold, weight), prompt, ids in zip(texts, prompts, whole, strict=True):
        if ids[: len(prompt)] == prompt and len(ids) > len(prompt):
            answer = tuple(ids[len(prompt) :])
        else:
            answer = prompter.answer_ids(text, prompt, gold)
        if not answer:
            faults[row] = RowFault(row, "no_answer_tokens", f"the answer {gold!r}")
        elif not prompt:
            faults[row] = RowFault(row, "no_question_tokens", f"the prompt {str(text)!r}")
        elif positions is not None and len(prompt) + len(answer) + 1 > positions:
            faults[row] = _too_long(row, len(prompt) + len(answer) + 1, positions)
        if row not in faults or faults[row].reason in row_faults.KEPT:
            places = answer_places(prompter, text, gold, answer) if row in masks else []
            excluded = tokens_in(places, masks.get(row, ()))
            if excluded and len(excluded) == len(answer):
                excluded = (*excluded, len(answer))  # the end alone would only teach to say nothing
                faults[row] = RowFault(row, row_faults.ANSWER_MASKED)
            training_examples.append(TrainingExample(row, tuple(prompt), (*answer, end), weight, excluded))
    return training_examples, [faults[row] for row in sorted(faults)]


def template_faults(rows: pl.DataFrame, prompter: Prompter) -> list[RowFault]:
    """Find the usable rows (`rows.ROWS`) that the chat template refuses, or of which it drops a text."""
    if prompter.chat_template is None:
        return []
    faults = []
    for row, question, context in rows.select("row", "question", "context").iter_rows():
        fault = prompter.fault((), question, context)
        if fault is not None and fault.flag != CHANGES:
            faults.append(RowFault(row, fault.flag, str(fault).removeprefix("--chat-template: ")))
    return faults


def _too_long(row: int, tokens: int, positions: int) -> RowFault:
    return RowFault(row, "answer_cut", f"{tokens:,} tokens, the model has {positions:,} positions")


def without_faulty(name: str, rows: pl.DataFrame, faults: Sequence[RowFault]) -> pl.DataFrame:
    """Remove the rows that cannot be used from a file or set (`name`). Raises InputError if no row is left."""
    gone = [fault.row for fault in faults if fault.reason not in row_faults.KEPT]
    remaining = rows.filter(~pl.col("row").is_in(gone))
    if remaining.is_empty() and gone:
        reasons = "; ".join(row_faults.fault_lines(faults))
        raise InputError(f"{name}: none of its {rows.height:,} rows can be used: {reasons}")
    return remaining


def check_lengths(file: str, training_examples: Sequence[TrainingExample], positions: int | None) -> None:
    """Raise InputError for a row that is longer than the model's positions."""
    tokens = {e.row: len(e.prompt) + len(e.answer) for e in training_examples}
    long = [_too_long(row, n, positions) for row, n in tokens.items() if positions is not None and n > positions]
    if long:
        raise InputError(f"{file}: {'; '.join(row_faults.fault_lines(long))}; leave them out, or shorten them")
