"""Writes a masked mix as token ids and labels, for trainers that do not read the column `loss_exclude`.

`FILE.tokens.parquet` has one line per row: `input_ids`, `labels` (-100 for the prompt and for masked tokens) and
`attention_mask`. transformers.Trainer and TRL's SFTTrainer take it as it is. The ids are those that `foreknow tune`
trains on: the training format or the tokenizer's chat template, the answer, and the token that ends it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.config import AuditConfig, MixConfig
from foreknow.data.layouts.relation_templates import read_templates
from foreknow.data.schema import are_chats
from foreknow.errors import ForeknowError, ModelError
from foreknow.inference.server.model import address_of
from foreknow.io.run_dir import write_whole
from foreknow.models import loading
from foreknow.models.resolve import resolve
from foreknow.prompts.chat_templates import choose_template
from foreknow.prompts.prompt_template import Prompter
from foreknow.settings import read_settings
from foreknow.stages.audit.result import open_audit
from foreknow.stages.mix.sampling import read_manifest
from foreknow.stages.train import row_faults
from foreknow.stages.train.dataset import read_set
from foreknow.stages.train.label_check import IGNORED
from foreknow.stages.train.training_examples import TRAINING, TrainingExample, tokenise

logger = logging.getLogger(__name__)

TOKENS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "input_ids": pl.List(pl.Int64()),
    "labels": pl.List(pl.Int64()),
    "attention_mask": pl.List(pl.Int64()),
}
"""The columns of the file. `row` is the row's position in the mix."""


class TokensFile(NamedTuple):
    """Holds the path of the written file, None if it could not be written, and lines that say what is in it.

    `left_out`: how many rows of the mix have a fault, for which `foreknow tune` refuses them unless told to skip them.
    """

    path: Path | None
    notes: tuple[str, ...]
    left_out: int = 0


def tokens_path(file: Path) -> Path:
    """Return the path of the tokens of a mix."""
    return file.with_name(f"{file.name}.tokens.parquet")


def write_tokens(config: MixConfig) -> TokensFile:
    """Write the tokens of the mix that `config` made. The tokenizer is that of `config.model`, or the audit's model.

    Rows of which nothing can be learnt are left out, and counted in the notes. If the audit asked a model on a server,
    which gives no tokenizer, or its model is no longer there, nothing is written, and a note says so. Raises ModelError
    for the model that `config` names, and InputError.
    """
    folder = open_audit(config.audit).folder
    settings = read_settings(folder, needed=True)
    audit = AuditConfig(**settings)
    model = config.model or audit.model
    if address_of(model) is not None:
        why = f"{model} is on a server, which gives no tokenizer: give --model to write {tokens_path(config.out)}"
        return TokensFile(None, (why,))
    try:
        resolved = resolve(model, logger.info, audit.trust_remote_code, base=None if config.model else audit.base)
        tokenizer = loading.load_tokenizer(resolved, audit.trust_remote_code)
    except ForeknowError as error:
        if config.model:
            raise
        return TokensFile(None, (f"{tokens_path(config.out)}: not written; give --model: {error}",))
    if tokenizer.eos_token_id is None:
        raise ModelError(f"--model {model}: its tokenizer has no end-of-sequence token; answers could not end")
    reading: dict[str, Any] = {
        "columns": audit.map,
        "layout": audit.layout,
        "templates": read_templates(audit.templates) if audit.templates else None,
        "turns": audit.turns,
        "null_words": audit.null_words,
    }
    split = read_set("train", str(config.out), None, **reading)
    choice, reason = choose_template(tokenizer, chats=are_chats(split.rows))
    prompter = Prompter(tokenizer, TRAINING, choice == "yes", audit.bos)
    end = int(tokenizer.eos_token_id) if prompter.answer_end is None else prompter.answer_end
    positions = loading.max_positions(resolved, audit.trust_remote_code)
    examples, faults = tokenise(split, prompter, end, positions)
    learnt = [example for example in examples if example.weight and example.learnt]
    frame = tokens_frame(learnt)
    about = {
        "sha256": read_manifest(config.out).get("sha256"),
        "model": {"name": resolved.name, "fingerprint": resolved.fingerprint},
        "training_text": {**prompter.choices, "prompt": TRAINING.target},
    }
    path = tokens_path(config.out)
    write_whole(path, lambda part: frame.write_parquet(part, metadata={"foreknow": json.dumps(about)}))
    tokens = sum(len(example.answer) for example in learnt)
    masked = sum(len(example.excluded) for example in learnt)
    notes = [
        *([reason] if reason else []),
        f"{path}: {len(learnt):,} rows as tokens of {resolved.name} for TRL and transformers.Trainer; {masked:,} of "
        f"{tokens:,} tokens of answers have the label {IGNORED}",
        *row_faults.notes(path.name, faults),
    ]
    return TokensFile(path, tuple(notes), sum(fault.reason not in row_faults.KEPT for fault in faults))


def tokens_frame(rows: list[TrainingExample]) -> pl.DataFrame:
    """Return the rows as the frame `TOKENS`."""
    lines = []
    for example in rows:
        ids = [*example.prompt, *example.answer]
        answer = [token if counts else IGNORED for token, counts in zip(example.answer, example.in_loss, strict=True)]
        labels = [IGNORED] * len(example.prompt) + answer
        lines.append({"row": example.row, "input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    return pl.DataFrame(lines, schema=TOKENS)
