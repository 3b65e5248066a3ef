"""Trains a model from its inputs to the end of a run."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import polars as pl
import torch

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import (
    NotFinite,
    ResourceError,
)
from foreknow.io.run_dir import RunDir, write_frame
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.progress import meter
from foreknow.stages.train import curves, known_rows, made_up, selection
from foreknow.stages.train.all_rows import measure_remaining, over_all_rows, with_remaining
from foreknow.stages.train.answer_loss import base_of, open_pass
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.average_run import average_weights
from foreknow.stages.train.checkpoints import Checkpoint
from foreknow.stages.train.curves import Line
from foreknow.stages.train.eval_callback import BEST, EvalCallback, TrainingModel
from foreknow.stages.train.flow_weights import weigh
from foreknow.stages.train.inputs import TrainInputs, read_inputs
from foreknow.stages.train.known_epoch import train_known_epoch
from foreknow.stages.train.known_late import KnownLate, known_late
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.rate_trials import format_cost, run_trials
from foreknow.stages.train.result import CONVERGENCE, EARLY_STOP, OUTCOMES, weight_folders
from foreknow.stages.train.resume import resume
from foreknow.stages.train.setup import AUTO, set_up_run, training_plan
from foreknow.stages.train.span_labels import FITTED, FITTED_SPANS, spans_of_sets
from foreknow.stages.train.tokenized_inputs import TokenizedInputs, tokenize_inputs
from foreknow.stages.train.trainer import FactTrainer, QuietTrainer, Tally, arguments
from foreknow.stages.train.training_examples import TrainingExample
from foreknow.stages.train.training_model import load_training_model

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=FactTrainer)


def train(config: TuneConfig, tokenized: TokenizedInputs, folder: RunDir, device: str, dtype: str) -> dict[str, Any]:
    """Train to the end and write the weights that `--keep` names and the outcomes.

    Returns what `results.json` says of the model and the method. Raises NotFinite, ResourceError, RunFolderError.
    """
    training_model, inputs = load_training_model(config, device, dtype), tokenized.inputs
    for reason in training_model.reasons:
        logger.info(reason)
    plan = training_plan(config)
    steps = math.ceil(len(tokenized.examples) / plan.batch_size)
    paired = config.metric == selection.AUTO and tokenized.metric == "dev_em"
    config = config.model_copy(update={"metric": tokenized.metric})
    watch = EvalCallback(
        config,
        inputs,
        folder,
        training_model,
        tokenized.tokenizer,
        tokenized.prompter,
        tokenized.watched,
        paired=paired,
    )
    late = _late(config, tokenized)
    checkpoint = resume(folder, watch)
    rows = plan.epochs * len(tokenized.examples)
    done = _rows_done(checkpoint.step if checkpoint else 0, steps, len(tokenized.examples), plan.batch_size)
    some = sorted(tokenized.examples, key=lambda e: (e.length, e.row))[: 3 * 8 : 8]
    with open_pass(training_model.model, some) as (losses, reason), meter("training", rows - done) as progress:
        logger.info(reason)
        all_steps = steps * plan.epochs
        asking = _asking(config, tokenized, training_model, losses, device, dtype)
        measured = sum(e.length for examples in tokenized.watched.values() for e in examples)
        known = known_rows.prepare(config, inputs.all_rows, tokenized.examples, measured, asking, folder)
        watch.known, watch.asking = known, asking
        if config.loss_weights == "flow":
            tokenized = tokenized._replace(examples=weigh(tokenized.examples, asking, folder.path))
        if known.known_epoch:
            if checkpoint is None:
                _train_known_epoch(config, folder, training_model, losses, watch, device, known)
            known = known_rows.with_teacher(config, known, asking, folder, is_resumed=checkpoint is not None)
        rates = None
        if config.learning_rate == AUTO:
            config, rates = _with_best_rate(
                config, folder, training_model, tokenized, losses, watch, all_steps, device, known, late
            )
            watch.config = config
        trainer: FactTrainer = _trainer(
            config, folder, training_model, tokenized.examples, losses, watch, progress, all_steps, device, known, late
        )
        with _explain_errors(folder, watch):
            _train_to_end(trainer, checkpoint, steps * plan.epochs)
        weights = trainer.whole_weights()
        if process_group.is_main_process():
            if CONVERGENCE in weight_folders(config.keep):
                watch.save(folder.path / CONVERGENCE, curves.epochs(watch.lines)[-1], weights)
            if EARLY_STOP in weight_folders(config.keep):
                _promote(folder, watch.lines, config.metric)
        asked = _made_up_at_end(known, asking, folder)
        averaged = average_weights(config, watch, folder) if config.average else None
        points = _measure_points(config, watch, folder, trainer)
    loaded = training_model.loaded
    return {
        "known_rows": {**known.results, **asked, "average": averaged},
        "points": points,
        "learning_rate": rates,
        "memory_gib": round(watch.memory_gib, 3),
        "model": {**loaded.summary, "fluency": training_model.fluency},
        "method": {
            "name": config.method,
            "dtype": dtype,
            "device": device,
            "reasons": [*training_model.reasons, reason],
            **({"notes": list(tokenized.prompter.notes)} if tokenized.prompter.notes else {}),
            "training_text": {**tokenized.prompter.choices, "prompt": inputs.template.target},
        },
    }


def _train_known_epoch(
    config: TuneConfig,
    folder: RunDir,
    training_model: TrainingModel,
    losses: Any,
    watch: EvalCallback,
    device: str,
    known: KnownRows,
) -> None:
    """Train the epoch on known rows after which the model is the teacher of `--kl` (`known_epoch.py`)."""
    plan = training_plan(config)
    config = config.model_copy(update={"learning_rate": plan.learning_rate})  # --learning-rate auto tries none for it

    def open_trainer(settings: TuneConfig, rows: list[TrainingExample], steps: int) -> QuietTrainer:
        own, late = KnownRows(), None
        trainer = _trainer(
            settings, folder, training_model, rows, losses, watch, progress, steps, device, own, late, kind=QuietTrainer
        )
        trainer.args.max_steps = steps
        return trainer

    with meter("an epoch on known rows", len(known.known_epoch)) as progress, _explain_errors(folder, watch):
        line = train_known_epoch(config, known.known_epoch, plan.batch_size, open_trainer)
    logger.info(line)


def _with_best_rate(
    config: TuneConfig,
    folder: RunDir,
    training_model: TrainingModel,
    tokenized: TokenizedInputs,
    losses: Any,
    watch: EvalCallback,
    steps: int,
    device: str,
    known: KnownRows,
    late: KnownLate | None,
) -> tuple[TuneConfig, dict[str, Any]]:
    """Try three learning rates (`rate_trials.py`); return the settings with the best, and what `results.json` says."""

    def open_trainer(settings: TuneConfig, own: int) -> QuietTrainer:
        with meter("trying a learning rate", own * training_plan(settings).batch_size) as progress:
            trainer = _trainer(
                *(settings, folder, training_model, tokenized.examples, losses, watch, progress, steps),
                *(device, known, late),
                kind=QuietTrainer,
            )
        trainer.args.max_steps = own
        return trainer

    def measure() -> dict[str, Any]:
        outcomes, _, set_losses = watch.measure_sets()
        line = {"loss": set_losses, **curves.measures(outcomes, watch.inputs.rows, lenient=watch.lenient)}
        outside = watch.measure_outside(line)
        line["canaries_right"] = outside.filter(pl.col("set") == curves.CANARIES).sort("row")["correct"].to_list()
        return line

    middle = training_plan(config).learning_rate
    logger.info(format_cost(middle, steps))
    rate, results = run_trials(config, middle, steps, training_model.model, folder.path, open_trainer, measure)
    return config.model_copy(update={"learning_rate": rate}), results


def _measure_points(config: TuneConfig, watch: EvalCallback, folder: RunDir, trainer: FactTrainer) -> dict[str, Any]:
    """Measure the rows that were not measured after each epoch, and write all outcomes.

    Returns the lines of EARLY_STOP and CONVERGENCE, of all rows, and the `seconds` that this took. The model has the
    last epoch's weights; it may end with those of the best one.
    """
    early, last = selection.best(watch.lines, config.metric), curves.epochs(watch.lines)[-1]
    assert early is not None
    kept = EARLY_STOP in weight_folders(config.keep)
    weights = folder.path / EARLY_STOP if kept else folder.path / BEST / f"step-{early['step']}"
    remaining = measure_remaining(watch, folder, early, last, weights, trainer.load_again)
    if not process_group.is_main_process():
        return {}
    inputs = watch.inputs
    outcomes = with_remaining(folder.load_chunks("outcomes", OUTCOMES), remaining.outcomes)
    spans = with_remaining(folder.load_chunks(FITTED_SPANS, FITTED), remaining.spans)
    write_frame(folder.path / "outcomes.parquet", outcomes)
    if inputs.spans:
        write_frame(folder.path / "fitted_spans.parquet", spans)
        write_frame(folder.path / "spans.parquet", spans_of_sets(inputs.spans))
    both = [over_all_rows(line, outcomes, spans, inputs) if inputs.remaining_rows else line for line in (early, last)]
    return {EARLY_STOP: both[0], CONVERGENCE: both[1], "seconds": remaining.seconds}


def _made_up_at_end(known: KnownRows, asking: AskingModel, folder: RunDir) -> dict[str, Any]:
    """Ask about made-up subjects with the last epoch's weights; write the answers, return what `results.json` says."""
    if known.made_up is None:
        return {}
    replies = known.made_up.ask(asking)
    write_frame(folder.path / made_up.FILE, known.made_up.rows(replies))
    results = {**known.results["made_up"], "after": known.made_up.count(replies)}
    before, after = (curves.format_made_up(results[when]) for when in ("before", "after"))
    logger.info(f"before training: {before}; after the last epoch: {after}")
    return {"made_up": results}


@contextmanager
def open_asking(config: TuneConfig) -> Iterator[tuple[AskingModel, TrainInputs]]:
    """Load the model that a run would train, to ask it questions in the form in which it would train. Trains nothing.

    Raises the errors that a run of `config` raises before its first step.
    """
    inputs = read_inputs(config)
    config, resolved_model, device, dtype, *_ = set_up_run(config, inputs)
    tokenized = tokenize_inputs(config, inputs, resolved_model)
    training_model = load_training_model(config, device, dtype)
    some = sorted(tokenized.examples, key=lambda e: (e.length, e.row))[: 3 * 8 : 8]
    with open_pass(training_model.model, some) as (losses, _):
        yield _asking(config, tokenized, training_model, losses, device, dtype), tokenized.inputs


def _late(config: TuneConfig, tokenized: TokenizedInputs) -> KnownLate | None:
    if not config.known_late:
        return None
    plan, rows = training_plan(config), tokenized.inputs.train.rows
    category_of = dict(rows.select("row", "category").iter_rows())
    categories = [category_of[example.row] for example in tokenized.examples]
    late, line = known_late(config.known_late, categories, config.seed, plan.batch_size, plan.epochs)
    logger.info(line)
    return late


def _asking(
    config: TuneConfig,
    tokenized: TokenizedInputs,
    training_model: TrainingModel,
    losses: Any,
    device: str,
    dtype: str,
) -> AskingModel:
    return AskingModel(
        training_model.model,
        training_model.loaded.fingerprint,
        losses,
        tokenized.tokenizer,
        tokenized.prompter,
        tokenized.end,
        tokenized.positions,
        int(config.batch_tokens or 2048),
        training_model.autocast,
        device,
        dtype,
    )


def _trainer(
    config: TuneConfig,
    folder: RunDir,
    training_model: TrainingModel,
    rows: list[TrainingExample],
    losses: Any,
    watch: EvalCallback,
    progress: Any,
    steps: int,
    device: str,
    known: KnownRows,
    late: KnownLate | None,
    kind: type[AnyTrainer] = FactTrainer,  # type: ignore[assignment]
) -> AnyTrainer:
    base = base_of(training_model.model)
    use_cache = base.config.use_cache
    training_arguments = arguments(config, folder.path, steps, device)
    trainer = kind(
        training_model.model,
        training_arguments,
        rows,
        config,
        losses,
        watch,
        progress,
        autocast=training_model.autocast,
        replay=known.replay,
        kl=known.kl,
        late=late,
    )
    base.config.use_cache = use_cache  # the trainer turns it off, and a saved model would generate without its cache
    if not process_group.is_main_process():
        torch.manual_seed(config.seed + (process_group.rank() << 32))  # each process draws its own dropout
    return trainer


def _train_to_end(trainer: FactTrainer, checkpoint: Checkpoint | None, steps: int) -> None:
    watch: Any = trainer.watch
    config = trainer.config
    over = curves.epochs(watch.lines) and selection.out_of_patience(
        watch.lines, config.metric, training_plan(config).patience
    )
    if checkpoint is not None and (checkpoint.step >= steps or over):
        trainer.load_again(checkpoint.path)
        return
    if checkpoint is not None:
        trainer.tally = Tally(**checkpoint.note["tally"])
    elif 0 in config.eval_steps:
        watch(trainer)
    watch.since = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)


@contextmanager
def _explain_errors(folder: RunDir, watch: EvalCallback) -> Iterator[None]:
    """Add to errors that stop training what is kept and which setting to change.

    Raises NotFinite, or ResourceError if memory runs out.
    """
    try:
        yield
    except NotFinite as stop:
        leader = _promote(folder, watch.lines, watch.config.metric) if process_group.is_main_process() else None
        best_kept = f"kept: the best epoch so far, {leader['epoch']}, in {folder.path / 'early_stop'}" if leader else ""
        raise NotFinite(f"{stop}{'; ' if best_kept else ''}{best_kept}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        setting = (
            ("--batch-tokens", watch.config.batch_tokens)
            if watch.measuring
            else (
                "--micro-batch-tokens",
                watch.config.micro_batch_tokens,
            )
        )
        raise ResourceError(
            f"out of memory; the last checkpoint is kept. Lower {setting[0]} (now {setting[1]}), or train with "
            "--method lora, or use a smaller model"
        ) from None


def _promote(folder: RunDir, lines: list[Line], metric: str) -> Line | None:
    """Move the best weights to `early_stop`; return the line of the epoch that they are from."""
    leader = selection.best(lines, metric)
    path = folder.path / BEST / f"step-{leader['step']}" if leader else None
    if path is not None and path.exists():
        shutil.rmtree(folder.path / EARLY_STOP, ignore_errors=True)
        path.rename(folder.path / EARLY_STOP)
    return leader


def _rows_done(step: int, steps: int, rows: int, batch: int) -> int:
    epochs, within = divmod(step, steps)
    return epochs * rows + min(within * batch, rows)
