"""Turns the rows of all sets of a run into token ids, checks them and chooses the metric."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, NamedTuple

from transformers import PreTrainedTokenizerBase

from foreknow.config import TuneConfig
from foreknow.data.schema import are_chats
from foreknow.errors import (
    InputError,
    ModelError,
)
from foreknow.models import loading
from foreknow.models.resolve import Resolved
from foreknow.prompts.chat_templates import choose_template
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train import row_faults, selection
from foreknow.stages.train.curves import TRAIN
from foreknow.stages.train.inputs import TrainInputs
from foreknow.stages.train.row_faults import RowFault
from foreknow.stages.train.training_examples import TrainingExample, tokenise, without_faulty

logger = logging.getLogger(__name__)

LONG_ANSWER: Final = 32
"""Answers with more tokens are long (an audit's `--max-answer-tokens`). If half of dev's answers are, `--metric auto`
chooses the loss."""


class TokenizedInputs(NamedTuple):
    """Holds the rows as token ids, and the tokenizer and prompter that made them.

    `examples`: the rows to train on. `watched`: the rows of every other set, whose loss is measured. `inputs`: the sets
    without the rows that cannot be used. `faults`: the faults of rows, by set, with their reasons. `metric`: the metric
    that chooses the epoch. `choices`: a sentence for each setting that was left to `auto`. `end`: the token that ends
    every answer. `positions`: the number of tokens that the model can read, if it says so.
    """

    tokenizer: PreTrainedTokenizerBase
    prompter: Prompter
    examples: list[TrainingExample]
    watched: dict[str, list[TrainingExample]]
    inputs: TrainInputs
    faults: dict[str, list[RowFault]]
    metric: str
    choices: tuple[str, ...]
    end: int
    positions: int | None

    @property
    def notes(self) -> list[str]:
        """Return lines about the prompts, about rows that are left out or teach nothing, and about the choices."""
        rows = [line for name, faults in self.faults.items() for line in row_faults.notes(name, faults)]
        return [*self.prompter.notes, *rows, *self.choices]


def tokenize_inputs(config: TuneConfig, inputs: TrainInputs, resolved_model: Resolved) -> TokenizedInputs:
    """Turn the rows of all sets into token ids and check them.

    Raises InputError for rows that cannot be used (unless `--bad-rows skip`), or if every weight is 0; ModelError if
    the tokenizer has no end-of-sequence token.
    """
    tokenizer = loading.load_tokenizer(resolved_model, config.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"--model {config.model}: its tokenizer has no end-of-sequence token; answers could not end")
    choice, reason = config.chat_template, None
    if choice == "auto":
        choice, reason = choose_template(tokenizer, chats=are_chats(inputs.train.rows))
    prompter = Prompter(tokenizer, inputs.template, choice == "yes", config.bos)
    positions, end = loading.max_positions(resolved_model, config.trust_remote_code), prompter.answer_end
    end = int(tokenizer.eos_token_id) if end is None else end
    faults: dict[str, list[RowFault]] = {}
    by_set: dict[str, list[TrainingExample]] = {}
    for name, split in inputs.sets.items():
        by_set[name], faults[name] = tokenise(split, prompter, end, positions)
        if name != TRAIN:
            faults[name] = [fault for fault in faults[name] if fault.reason not in row_faults.OF_TRAINING]
    row_faults.check([(inputs.sets[name].file, some) for name, some in faults.items()], config.bad_rows)
    train_examples = by_set.pop(TRAIN)
    if not any(example.weight and example.learnt for example in train_examples):
        raise InputError(
            f"{inputs.train.file}: no row is left whose weight is not 0 and whose answer is not all in loss_exclude; "
            "nothing would be learnt"
        )
    sets = {
        name: split._replace(rows=without_faulty(split.file, split.rows, faults[name]))
        for name, split in inputs.sets.items()
    }
    inputs = replace(inputs, sets=sets)
    inputs = replace(inputs, spans=inputs.spans_of(inputs.asked_rows))
    kept = int(inputs.spans["dev"]["kept"].sum()) if "dev" in inputs.spans else 0
    metric, why = _metric(config, by_set["dev"], kept)
    watched = {name: set(inputs.rows[name]["row"]) for name in by_set}
    losses_of = {name: [e for e in examples if e.row in watched[name]] for name, examples in by_set.items()}
    choices = tuple(line for line in (reason, why, _masked_line(train_examples), inputs.sample_note) if line)
    return TokenizedInputs(
        tokenizer, prompter, train_examples, losses_of, inputs, faults, metric, choices, end, positions
    )


def _masked_line(rows: list[TrainingExample]) -> str | None:
    """Return a line on how many tokens are left out of the loss; None if none is."""
    masked = sum(len(example.excluded) for example in rows)
    if not masked:
        return None
    tokens = sum(len(example.answer) for example in rows)
    return f"{masked:,} of {tokens:,} tokens of train's answers are left out of the loss (column loss_exclude)"


def _metric(config: TuneConfig, dev: list[TrainingExample], kept: int) -> tuple[str, str | None]:
    """Return the metric that chooses the epoch, and the reason if `--metric auto` leaves the choice to dev's rows.

    `kept`: the number of spans that `dev_spans` counts.
    """
    if config.metric != selection.AUTO:
        return config.metric, None
    tokens = sorted(len(example.answer) for example in dev)
    middle = tokens[len(tokens) // 2] if tokens else 0
    if middle > LONG_ANSWER:
        reason = (
            f"dev loss chooses the epoch: half of dev's answers have {middle:,} tokens or more, and a long answer is "
            "hardly ever right letter by letter (--metric dev_em chooses by exact match)"
        )
        if kept:
            reason += (
                f". --metric dev_spans chooses by {kept:,} spans of dev that the model said before training: it only "
                "sees what is lost, so it would seldom leave the first epochs"
            )
        return selection.LOSS, reason
    return "dev_em", (
        "dev EM chooses the epoch where dev's rows can tell epochs apart (McNemar, p < 0.05); where not, dev loss does"
    )
