"""Gathers a run's known rows before its first step: those it watches, and those that join the batches.

No row is both. Where they come from is in `known_sources.py`, which are watched in `canary_watch.py`, which are
replayed or held to in `replay_choice.py`; a run that is resumed has the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.io.run_dir import RunDir
from foreknow.stages.train import kl_loss
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canary_check import SHOTS
from foreknow.stages.train.canary_watch import (
    FILE,
    CanaryWatch,
    known_file,
    watch_canaries,
    watch_file,
    watch_results,
)
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import read_set
from foreknow.stages.train.known_candidates import ROWS
from foreknow.stages.train.known_sources import KnownSources
from foreknow.stages.train.made_up import MadeUpCheck, is_cheap, made_up_questions
from foreknow.stages.train.replay import FOLDER, ReplayPlan, read_pool
from foreknow.stages.train.replay_choice import (
    KNOWN_EPOCH_FILE,
    POOL_FILE,
    choose_known_epoch,
    choose_replay,
    has_known_epoch,
    kl_term,
    replay_plan,
    uses_pool,
)
from foreknow.stages.train.text_loss import TextLoss
from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)


class KnownRows(NamedTuple):
    """Holds the known rows of a run, and what `results.json` says of them.

    `canaries`: those of `--canaries`. `watched`: those of `--watch-known`, by name. `text`: the plain text whose loss
    is measured. `made_up`: the questions on made-up subjects; `asks_made_up_often`: they are asked after every epoch
    and not only before training and at its end. `known_epoch`: the rows to train an epoch on before anything else; `kl`
    is then None until `with_teacher`.
    """

    canaries: CanaryWatch | None = None
    watched: Mapping[str, CanaryWatch] = {}
    replay: ReplayPlan | None = None
    kl: kl_loss.KlTerm | None = None
    text: TextLoss | None = None
    made_up: MadeUpCheck | None = None
    asks_made_up_often: bool = False
    results: Mapping[str, Any] = {}
    known_epoch: tuple[TrainingExample, ...] = ()


def prepare(
    config: TuneConfig,
    sets: Mapping[str, pl.DataFrame],
    examples: list[TrainingExample],
    measured_tokens: int,
    asking: AskingModel,
    folder: RunDir,
) -> KnownRows:
    """Choose the known rows before the first step, or read those that a run under way has chosen.

    `sets`: the rows of train, dev and the test sets. `examples`: the rows to train on. `measured_tokens`: the tokens of
    the rows that are measured at each evaluation. The model must be as it was before training.

    Of several processes the first one chooses and asks; the others read which rows join the batches.

    Raises InputError if there is no row to replay, or for a file of canaries that cannot be read.
    """
    if process_group.sharded():
        if config.canaries != "none":
            logger.info("canaries: not watched, because each process has only a part of the weights")
        return KnownRows(results=_results(config, None, None, {}, None, None, False))
    if process_group.is_main_process():
        known = _choose(config, sets, examples, measured_tokens, asking, folder)
    process_group.barrier()
    if process_group.is_main_process():
        return known
    return _read_choice(config, len(examples), asking, folder.path / FOLDER) if uses_pool(config) else KnownRows()


def _choose(
    config: TuneConfig,
    sets: Mapping[str, pl.DataFrame],
    examples: list[TrainingExample],
    measured_tokens: int,
    asking: AskingModel,
    folder: RunDir,
) -> KnownRows:
    own_files = {name: read_set(name, file, None) for name, file in config.watch_known.items()}
    sources = KnownSources(config, {**sets, **{name: split.rows for name, split in own_files.items()}}, asking)
    trained = sum(example.length for example in examples)
    watch = watch_canaries(sources, folder.path / FILE, trained, trained + measured_tokens)
    watched = {
        name: watch_file(KnownSources(config, sets, asking), name, split, folder.path / known_file(name))
        for name, split in own_files.items()
    }
    canary_rows = watch.rows if watch is not None else pl.DataFrame(schema=ROWS)
    home = folder.path / FOLDER
    plan = choose_replay(sources, canary_rows, examples, home) if uses_pool(config) else None
    first = choose_known_epoch(sources, canary_rows, len(examples), home) if has_known_epoch(config) else ()
    kl = kl_term(config, plan, asking, home) if plan is not None and config.kl and not first else None
    outside = _outside(config, sets, asking, trained, trained + measured_tokens)
    results = _results(config, watch, plan, watched, *outside)
    if first:
        results["replay"] |= {"known_epoch_rows": len(first)}
    return KnownRows(watch, watched, plan, kl, *outside, results, first)


def with_teacher(
    config: TuneConfig, known: KnownRows, asking: AskingModel, folder: RunDir, *, is_resumed: bool
) -> KnownRows:
    """Return `known` with the predictions that the model gives now, after its epoch on known rows.

    `is_resumed`: the model is past its first step, so they can only be read. Raises RunFolderError if they are gone.
    """
    if known.replay is None:
        return known
    path = folder.path / FOLDER
    kl = None
    if process_group.is_main_process():
        kl = kl_term(config, known.replay, asking, path, after=known.known_epoch, is_resumed=is_resumed)
    process_group.barrier()
    if kl is None:
        kl = kl_term(config, known.replay, asking, path, after=known.known_epoch)
    return known._replace(kl=kl)


def watch_again(
    config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel, folder: Path | None
) -> KnownRows:
    """Take up the canaries of a training that goes on in another trainer, if `folder` names any.

    The model is no longer as it was before training, so no divergence from it is measured, and no plain text.
    """
    stored = None if folder is None else folder / FILE
    watch = None
    if stored is not None and stored.is_file():
        rows = pl.read_parquet(stored)
        watch = CanaryWatch(rows, KnownSources(config, sets, asking).check(rows, int(rows["shots"][0])), {})
    return KnownRows(canaries=watch, results=_results(config, watch, None, {}, None, None, False))


def _read_choice(config: TuneConfig, rows: int, asking: AskingModel, folder: Path) -> KnownRows:
    """Read the rows that the first process chose for the batches, and the predictions to which it holds them."""
    plan = replay_plan(config, read_pool(folder / POOL_FILE), rows)
    if has_known_epoch(config):
        return KnownRows(replay=plan, known_epoch=read_pool(folder / KNOWN_EPOCH_FILE).examples)
    return KnownRows(replay=plan, kl=kl_term(config, plan, asking, folder) if config.kl else None)


def _outside(
    config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel, trained: int, measured: int
) -> tuple[TextLoss | None, MadeUpCheck | None, bool]:
    """Return the plain text and the questions on made-up subjects, and whether these are asked after every epoch."""
    if config.canaries == "none":
        return None, None, False
    text = TextLoss(asking)
    if not config.made_up_subjects:
        return text, None, False
    texts = [value for frame in sets.values() for value in frame["question"]]
    texts += [answer for frame in sets.values() for answer in frame["answers"].explode().drop_nulls()]
    questions = made_up_questions(sets["train"], texts, config.made_up_subjects)
    made_up = MadeUpCheck(questions, sets["train"], asking)
    return text, made_up, is_cheap(made_up, trained, measured)


def _results(
    config: TuneConfig,
    watch: CanaryWatch | None,
    plan: ReplayPlan | None,
    watched: Mapping[str, CanaryWatch],
    text: TextLoss | None,
    made_up: MadeUpCheck | None,
    often: bool,
) -> dict[str, Any]:
    results: dict[str, Any] = {CANARIES: watch_results(watch) if watch is not None else None, "replay": None}
    results["watched_known"] = {name: watch_results(own) for name, own in watched.items()}
    results["plain_text"] = (
        {"tokens": sum(len(e.answer) for e in text.examples), "before": text.before} if text else None
    )
    results["made_up"] = {"before": made_up.count(made_up.replies), "every_epoch": often} if made_up else None
    if plan is not None:
        results["replay"] = {
            "rows": len(plan.pool.examples),
            "source": plan.pool.source,
            "share": plan.share,
            "learns": plan.learns,
            "kl": config.kl or None,
            "kl_top_k": kl_loss.TOP_K if config.kl else None,
            "kl_exemplars": SHOTS if plan.pool.teacher_prompts is not None else 0,
            "fingerprint": plan.pool.fingerprint,
        }
    return results
