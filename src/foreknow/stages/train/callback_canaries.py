"""Watches facts besides the user's rows while another trainer trains, for KnowledgeCallback (`canaries.py`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.config import TuneConfig
from foreknow.errors import ConfigError
from foreknow.io.run_dir import RunDir
from foreknow.models.in_memory import fingerprint, unchanged_folder
from foreknow.stages.train import known_rows
from foreknow.stages.train.answer_loss import base_of
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.curves import TRAIN
from foreknow.stages.train.dataset import LabelledSplit
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.training_examples import TrainingExample, tokenise


def watch_known(
    config: TuneConfig, asking: AskingModel, sets: Mapping[str, pl.DataFrame], folder: Path | None, *, begun: bool
) -> KnownRows:
    """Choose the facts to watch, and ask them before training.

    `config`: its `canaries` and `audit` count. `sets`: the rows of the user (`dataset.SET`), by name. `folder`: the run
    folder, if one is written. `begun`: training goes on from a checkpoint, with the facts that `folder` names.

    Raises InputError for a file of canaries that cannot be read.
    """
    if begun:
        return known_rows.watch_again(config, sets, asking, folder)
    examples = {name: _examples(name, rows, asking) for name, rows in sets.items()}
    measured = sum(example.length for own in examples.values() for example in own)
    with tempfile.TemporaryDirectory() as spare:
        own_folder = RunDir(folder or Path(spare))
        return known_rows.prepare(config, sets, examples.get(TRAIN, []), measured, asking, own_folder)


def _examples(name: str, rows: pl.DataFrame, asking: AskingModel) -> list[TrainingExample]:
    split = LabelledSplit(name, name, rows, {}, "", "")
    return tokenise(split, asking.prompter, asking.end, asking.positions)[0]


def fingerprint_of(model: Any, tokenizer: Any) -> str:
    """Return the fingerprint of a model in memory: that of its folder, if it still is what lies there."""
    base, outer = base_of(model), getattr(model, "module", model)
    if base is outer:
        return unchanged_folder(base, tokenizer) or fingerprint(base, tokenizer)
    return fingerprint(base, tokenizer, outer)


def answer_end(prompter: Any, tokenizer: Any) -> int:
    """Return the token that ends every answer. Raises ConfigError if the tokenizer has none."""
    end = prompter.answer_end if prompter.answer_end is not None else tokenizer.eos_token_id
    if end is None:
        raise ConfigError("KnowledgeCallback: the tokenizer has no end-of-sequence token; give canaries='none'")
    return int(end)
