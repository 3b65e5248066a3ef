"""Chooses the known rows that join the batches (`--replay`, `--kl`), and computes what `--kl` holds them to.

They are stored in the run folder until the run ends, so that a resumed run has the same ones:

DIR/.replay/pool.parquet         the rows that are replayed, as token ids
DIR/.replay/teacher.safetensors  the model's predictions before training at their answers (`kl_loss.py`)
DIR/.replay/known-epoch.parquet  the rows of the epoch that comes before the teacher's predictions (`known_epoch.py`)

Replayed are the HighlyKnown rows of `--audit` whose facts are in no set and not watched, in whatever words; for `--kl`
alone those of every category, whose answers are then not learnt. Where the audit has fewer than `FEW` of them, it is
the half of the packaged facts known that is not watched, if that is more; else questions and answers that the base
model makes up in the form of the file's own groups (`self_generated.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN
from foreknow.config import TuneConfig
from foreknow.errors import InputError, RunFolderError
from foreknow.format.numbers import duration
from foreknow.io.run_dir import fingerprint
from foreknow.stages.train import kl_loss
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canaries import FEW
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.kl_teacher import paired_rows
from foreknow.stages.train.known_candidates import Candidates, without_facts, without_questions
from foreknow.stages.train.known_sources import KnownSources
from foreknow.stages.train.replay import ReplayPlan, ReplayPool, pool_of, read_pool, replay_count, write_pool
from foreknow.stages.train.self_generated import generate_rows
from foreknow.stages.train.setup import training_plan
from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)

POOL_FILE: Final = "pool.parquet"
KNOWN_EPOCH_FILE: Final = "known-epoch.parquet"
KNOWN_EPOCH: Final = "known-epoch"
"""The setting of `--kl-teacher` that trains an epoch on known rows first."""
MOST: Final = 512
"""The most rows of that epoch, unless there are more rows to train on: then as many as these."""
EQUAL: Final = 0.5
"""The share of a batch that known rows make up if `--kl` is given without `--replay`: one for each new row."""


def uses_pool(config: TuneConfig) -> bool:
    """Return whether known rows join the batches."""
    return config.replay > 0 or config.kl > 0


def has_known_epoch(config: TuneConfig) -> bool:
    """Return whether an epoch on known rows comes before the teacher's predictions (`--kl-teacher`)."""
    return config.kl > 0 and config.kl_teacher == KNOWN_EPOCH


def holds_all(config: TuneConfig) -> bool:
    """Return whether rows of every category hold the model (`--kl-rows`), and not only those that it knows."""
    return config.kl > 0 and not config.replay and config.kl_rows != "known"


def choose_replay(
    sources: KnownSources, watched: pl.DataFrame, examples: list[TrainingExample], folder: Path
) -> ReplayPlan:
    """Choose the rows that join the batches, and store them in `folder`; or read those that it has.

    `watched`: the canaries, which are not replayed. `examples`: the rows to train on. Raises InputError if there is no
    row to replay.
    """
    config, plan = sources.config, training_plan(sources.config)
    stored = folder / POOL_FILE
    if stored.is_file():
        pool = read_pool(stored)
    else:
        new = min(plan.batch_size, len(examples))
        most = plan.epochs * -(-len(examples) // plan.batch_size) * replay_count(config.replay or EQUAL, new)
        pool = _pool(sources, watched, most, examples)
        folder.mkdir(exist_ok=True)
        write_pool(stored, pool)
    if not pool.examples:
        raise InputError(
            "--replay, --kl: no known row to replay: no HighlyKnown row of --audit, no packaged fact that the model "
            "knows, and it makes up no question. Audit the model on other rows and name it with --audit"
        )
    teacher = "model after its epoch on known rows" if has_known_epoch(config) else "base model"
    held, added = (
        f"are held to the {teacher}, in each batch as many as new ones",
        f"make up {config.replay:.0%} of each batch",
    )
    what = added if config.replay else held
    logger.info(f"{'replay' if config.replay else 'kl'}: {len(pool.examples):,} rows {what} ({pool.source})")
    return replay_plan(config, pool, len(examples))


def replay_plan(config: TuneConfig, pool: ReplayPool, rows: int) -> ReplayPlan:
    """Return how the rows of `pool` join the batches. `rows`: the number of rows to train on."""
    batch_size = training_plan(config).batch_size
    return ReplayPlan(pool, config.replay or EQUAL, config.seed, rows, batch_size, learns=config.replay > 0)


def _pool(sources: KnownSources, watched: pl.DataFrame, most: int, examples: list[TrainingExample]) -> ReplayPool:
    found = _pool_rows(sources, watched)
    rows = found.rows.head(most)
    if rows.height:
        golds = sources.check(rows).golds()
        shots = sources.teacher_shots(rows) if sources.config.kl and not has_known_epoch(sources.config) else 0
        if shots:
            held, prompts = paired_rows(golds, sources.check(rows, shots).golds())
            return pool_of(held, found.source, prompts)
        return pool_of([golds[row] for row in rows["row"] if row in golds], found.source)
    if sources.config.replay_from:
        raise InputError(
            f"--replay-from {sources.config.replay_from}: every row stands in train, dev, a test set or a watched set"
        )
    asking = sources.asking
    made = generate_rows(asking, sources.sets, min(most, len(examples)), sources.config.seed)
    return pool_of(made, "questions and answers that the base model made up")


def choose_known_epoch(
    sources: KnownSources, watched: pl.DataFrame, rows: int, folder: Path
) -> tuple[TrainingExample, ...]:
    """Return the rows of the epoch on known rows, in the form in which the run trains (`known_epoch.py`).

    They are the HighlyKnown rows of the source of `--kl`, or all of it where no row has a category; `rows` of them at
    most, or `MOST` if that is more. `rows`: the number of rows to train on. Raises InputError where there is none.
    """
    stored = folder / KNOWN_EPOCH_FILE
    if stored.is_file():
        return read_pool(stored).examples
    found = _pool_rows(sources, watched, (HIGHLY_KNOWN,)).rows.head(max(rows, MOST))
    golds = sources.check(found).golds() if found.height else {}
    examples = [golds[row] for row in found["row"] if row in golds]
    if not examples:
        raise InputError(
            "--kl-teacher known-epoch: no HighlyKnown row to train an epoch on that is in no set and not watched; name "
            "an audit with known rows with --audit, or hold the base model with --kl-teacher base"
        )
    pool = pool_of(examples, "known rows")
    write_pool(stored, pool)
    return pool.examples


def _pool_rows(sources: KnownSources, watched: pl.DataFrame, categories: Sequence[str] = ()) -> Candidates:
    """Return the rows of the pool: of the file asked for; else of the audit, or packaged ones where those are more.

    A few rows that fill half of every batch again and again teach themselves and keep nothing else, so an audit with
    fewer than `FEW` is not enough if the model knows more packaged facts. `categories`: those of the rows, in place of
    those that `--kl-rows` asks for.
    """
    wanted = categories or (CATEGORIES if holds_all(sources.config) else (HIGHLY_KNOWN,))
    found = sources.replay_file(categories) if sources.config.replay_from else sources.audited(wanted)
    found = _besides_watched(found, watched)
    if sources.config.replay_from or found.rows.height >= FEW:
        return found
    packaged = _besides_watched(sources.packaged(), watched)
    return packaged if packaged.rows.height > found.rows.height else found


def _besides_watched(found: Candidates, watched: pl.DataFrame) -> Candidates:
    rows = without_facts(found.rows, watched)
    return Candidates(without_questions(rows, {CANARIES: watched}), found.source)


def kl_term(
    config: TuneConfig,
    plan: ReplayPlan,
    asking: AskingModel,
    folder: Path,
    *,
    after: Sequence[TrainingExample] = (),
    is_resumed: bool = False,
) -> kl_loss.KlTerm:
    """Return the term of `--kl`. `after`: the rows of the epoch that the model was trained before it is the teacher."""
    path, k = folder / "teacher.safetensors", kl_loss.TOP_K
    key = kl_loss.teacher_key(asking.fingerprint, plan.pool.fingerprint, k, asking.dtype)
    if after:
        key = fingerprint([key, pool_of(after, "").fingerprint])
    teacher = kl_loss.read_teacher(path, key)
    if teacher is None and is_resumed:
        raise RunFolderError(
            f"{path}: missing or damaged, and the model is past the weights that it was computed from; delete the "
            "run folder and start again"
        )
    if teacher is None:
        began = time.monotonic()
        teacher = kl_loss.teacher_of(asking, plan.pool.taught, k)
        kl_loss.write_teacher(path, teacher, key)
        logger.info(
            f"kl: the {'model' if after else 'base model'}'s {k} likeliest tokens at {len(teacher.tokens):,} positions "
            f"computed in {duration(time.monotonic() - began)}"
        )
    return kl_loss.KlTerm(config.kl, teacher, skips_end=plan.pool.teacher_prompts is not None)
