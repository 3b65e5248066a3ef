"""Trains a model from its inputs to the end of a run, and resumes a run that was killed from its last checkpoint."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

import polars as pl
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from foreknow.config import TuneConfig
from foreknow.data.schema import are_chats
from foreknow.distributed import process_group
from foreknow.errors import (
    ConfigError,
    InputError,
    MissingExtra,
    ModelError,
    ResourceError,
    RunFolderError,
    first_line,
)
from foreknow.io.run_dir import RunDir, write_frame
from foreknow.models import loading
from foreknow.models.adapters import about
from foreknow.models.fluency import check_fluency
from foreknow.models.resolve import Resolved, resolve
from foreknow.progress import duration, meter
from foreknow.prompts.chat_templates import choose_template
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train import curves, known_rows, made_up, row_faults, selection
from foreknow.stages.train.answer_loss import base_of, open_pass
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.average_run import average_weights
from foreknow.stages.train.checkpoints import Checkpoint, is_whole, latest
from foreknow.stages.train.curves import TRAIN, Line
from foreknow.stages.train.dataset import TrainingExample, micro_batches, tokenise, without_faulty
from foreknow.stages.train.eval_callback import BEST, EvalCallback, TrainingModel, write_lines
from foreknow.stages.train.inputs import TrainInputs, check_method, check_models, check_remedies, read_inputs
from foreknow.stages.train.known_late import KnownLate, known_late
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.rate_trials import TrialTrainer, format_cost, run_trials, trial_steps
from foreknow.stages.train.result import CONVERGENCE, EARLY_STOP, OUTCOMES, weight_folders
from foreknow.stages.train.row_faults import RowFault
from foreknow.stages.train.setup import (
    AUTO,
    resolve_device_dtype,
    training_plan,
    with_batch_sizes,
    with_training_plan,
)
from foreknow.stages.train.span_labels import FITTED, FITTED_SPANS, spans_of_sets
from foreknow.stages.train.tracker import EvalModelCopy, Tracker, vocabulary_for
from foreknow.stages.train.trainable_layers import set_trainable
from foreknow.stages.train.trainer import CHECKPOINTS, FactTrainer, NotFinite, Tally, arguments, set_dropout

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=FactTrainer)
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
    inputs = replace(inputs, sets=sets).with_measured_spans()
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


def _load(config: TuneConfig, device: str, dtype: str) -> TrainingModel:
    full, sharded = config.method == "full", process_group.sharded()
    loaded = loading.load_model(
        config.model,
        dtype="float32" if full else dtype,
        device="cpu" if sharded else config.device,  # FSDP moves a part of the model to each device
        trust_remote_code=config.trust_remote_code,
        log=logger.info,
        base=config.base,
        force=config.force,
        trainable=not full,
    )
    fluency = check_fluency(loaded, logger.info).summary if process_group.is_main_process() else None
    bf16 = dtype == "bfloat16"
    if full:
        dropout = set_dropout(loaded.model, config.dropout)
        parts = (set_trainable(loaded.model, config.trainable),) if config.trainable != "all" else ()
        computing = "float32 weights" + (", computed in bfloat16, measured as a bfloat16 copy" if bf16 else "")
        mirror = EvalModelCopy(torch.bfloat16 if bf16 else torch.float32) if bf16 or sharded else None
        if sharded:
            computing += f", sharded over {process_group.world_size()} processes"
            if mirror is not None and process_group.is_main_process():
                mirror.prepare(loaded.model, device)
        reasons = (loaded.reasons[0], computing, *parts, dropout, *loaded.notes)
        return TrainingModel(loaded, loaded.model, mirror, bf16, reasons, sharded, fluency)
    if loaded.trained is not None:
        model, adapter_lines = loaded.trained, _adapter_lines(loaded)
    else:
        model = _add_lora(config, loaded)
        adapter_line = (
            f"LoRA: {_trainable(model):,} weights of rank {config.lora_rank} in float32 on a model in {dtype}"
        )
        adapter_lines = (adapter_line, f"dropout {config.dropout:g} before adapters")
    return TrainingModel(
        loaded, model, None, False, (loaded.reasons[0], *adapter_lines, *loaded.notes), fluency=fluency
    )


def _trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _adapter_lines(loaded: loading.Loaded) -> tuple[str, ...]:
    """Return a line for the log that says that training goes on from an existing adapter."""
    config = loaded.trained.peft_config["default"]
    names_in_config = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    own = ", ".join(
        f"{word} {getattr(config, name):g}" for word, name in names_in_config.items() if hasattr(config, name)
    )
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return (
        f"training goes on from the adapter {loaded.name} ({kind}{f', {own}' if own else ''}, "
        f"{_trainable(loaded.trained):,} weights); --lora-rank, --lora-alpha, --lora-targets and --dropout do not "
        "apply",
    )


def _add_lora(config: TuneConfig, loaded: loading.Loaded) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtra("--method lora needs PEFT: pip install 'foreknow[train]'") from None
    targets: str | list[str] = list(config.lora_targets)
    set_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT still uses some names that are deprecated
            return get_peft_model(loaded.model, lora)
    except ValueError as error:
        raise ModelError(f"--lora-targets {','.join(targets)}: {first_line(error)}") from None


def _resume(folder: RunDir, watch: EvalCallback) -> Checkpoint | None:
    """Return the last checkpoint, if any, and delete what was written after it, so that nothing is written twice.

    A checkpoint is used only if everything that belongs to it is there: the outcomes of every evaluation before it, and
    the weights of the best epoch. If one of these is missing or damaged, training begins again.
    """
    if not process_group.is_main_process():
        process_group.barrier()  # wait while the first process removes what a killed run left
        checkpoint = latest(folder.path / CHECKPOINTS)
        watch.lines = checkpoint.note["lines"] if checkpoint else []
        _check_seen(folder, checkpoint)
        return checkpoint
    best = folder.path / BEST
    best.mkdir(exist_ok=True)
    early_stop = folder.path / EARLY_STOP
    if early_stop.exists():  # a run that stopped, or was killed at its end, moved the best weights there
        path = best / f"step-{about(early_stop).get('step')}"
        shutil.rmtree(path, ignore_errors=True)
        early_stop.rename(path)
    checkpoint = latest(folder.path / CHECKPOINTS)
    if checkpoint is not None and (missing := _missing_part(folder, watch, checkpoint)):
        logger.info(f"{missing}: missing or damaged; training begins again")
        shutil.rmtree(folder.path / CHECKPOINTS)
        checkpoint = None
    watch.lines = checkpoint.note["lines"] if checkpoint else []
    write_lines(folder.path, watch.lines)
    steps = {line["step"] for line in watch.lines}
    for path in [*folder.chunks.glob("*.outcomes.parquet"), *folder.chunks.glob(f"*.{FITTED_SPANS}.parquet")]:
        if int(path.name.split(".", 1)[0]) not in steps:
            path.unlink()
    watch.prune(selection.best(watch.lines, watch.config.metric))
    process_group.barrier()
    _check_seen(folder, checkpoint)
    if checkpoint is not None:
        logger.info(f"going on from the checkpoint after step {checkpoint.step:,}")
    return checkpoint


def _check_seen(folder: RunDir, checkpoint: Checkpoint | None) -> None:
    """Raise RunFolderError if the processes do not see the same checkpoint."""
    step = checkpoint.step if checkpoint else 0
    if (theirs := process_group.broadcast_from_main(step)) != step:
        raise RunFolderError(
            f"{folder.path}: found the checkpoint after step {step}, the first process that after step {theirs}: "
            "--out must lie on a disk that all processes see"
        )


def _missing_part(folder: RunDir, watch: EvalCallback, checkpoint: Checkpoint) -> str | None:
    """Name the first missing or damaged part without which a checkpoint cannot be resumed; None if there is none."""
    lines: list[Line] = checkpoint.note["lines"]
    for line in lines:
        if folder.chunk(line["step"], "outcomes") is None:
            return f"{folder.chunks}: outcomes of step {line['step']}"
        if "spans" in line and folder.chunk(line["step"], FITTED_SPANS) is None:
            return f"{folder.chunks}: fitted spans of step {line['step']}"
    leader = selection.best(lines, watch.config.metric)
    path = folder.path / BEST / f"step-{leader['step']}" if leader else None
    return str(path) if path and not is_whole(path) else None


def train(config: TuneConfig, tokenized: TokenizedInputs, folder: RunDir, device: str, dtype: str) -> dict[str, Any]:
    """Train to the end and write the weights that `--keep` names and the outcomes.

    Returns what `results.json` says of the model and the method. Raises NotFinite, ResourceError, RunFolderError.
    """
    training_model, inputs = _load(config, device, dtype), tokenized.inputs
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
    checkpoint = _resume(folder, watch)
    rows = plan.epochs * len(tokenized.examples)
    done = _rows_done(checkpoint.step if checkpoint else 0, steps, len(tokenized.examples), plan.batch_size)
    some = sorted(tokenized.examples, key=lambda e: (e.length, e.row))[: 3 * 8 : 8]
    with open_pass(training_model.model, some) as (losses, reason), meter("training", rows - done) as progress:
        logger.info(reason)
        all_steps = steps * plan.epochs
        asking = _asking(config, tokenized, training_model, losses, device, dtype)
        measured = sum(e.length for examples in tokenized.watched.values() for e in examples)
        known = known_rows.prepare(config, inputs.rows, tokenized.examples, measured, asking, folder)
        watch.known, watch.asking = known, asking
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
            write_frame(folder.path / "outcomes.parquet", folder.load_chunks("outcomes", OUTCOMES))
            if inputs.spans:
                write_frame(folder.path / "fitted_spans.parquet", folder.load_chunks(FITTED_SPANS, FITTED))
                write_frame(folder.path / "spans.parquet", spans_of_sets(inputs.spans))
        asked = _made_up_at_end(known, asking, folder)
        averaged = average_weights(config, watch, trainer, folder) if config.average else None
    loaded = training_model.loaded
    return {
        "known_rows": {**known.results, **asked, "average": averaged},
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

    def open_trainer(settings: TuneConfig, own: int) -> TrialTrainer:
        with meter("trying a learning rate", own * training_plan(settings).batch_size) as progress:
            trainer = _trainer(
                *(settings, folder, training_model, tokenized.examples, losses, watch, progress, steps),
                *(device, known, late),
                kind=TrialTrainer,
            )
        trainer.args.max_steps = own
        return trainer

    def measure(trainer: FactTrainer) -> dict[str, Any]:
        outcomes, _, set_losses = watch.measure_sets(trainer)
        line = {"loss": set_losses, **curves.measures(outcomes, watch.inputs.rows, lenient=watch.lenient)}
        outside = watch.measure_outside(line)
        line["canaries_right"] = outside.filter(pl.col("set") == curves.CANARIES).sort("row")["correct"].to_list()
        return line

    middle = training_plan(config).learning_rate
    logger.info(format_cost(middle, steps))
    rate, results = run_trials(config, middle, steps, training_model.model, folder.path, open_trainer, measure)
    return config.model_copy(update={"learning_rate": rate}), results


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
    device, dtype = resolve_device_dtype(config)
    config = with_batch_sizes(config, device)
    resolved_model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base, force=config.force)
    tokenized = tokenize_inputs(config, inputs, resolved_model)
    training_model = _load(config, device, dtype)
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
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "memory" not in str(error).lower():
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


def estimate(config: TuneConfig) -> dict[str, Any]:
    """Estimate what a run would cost by training and measuring for a short time. Writes nothing.

    Raises ConfigError if a launcher started several processes.
    """
    import psutil

    with process_group.process_group(config.device):
        if process_group.is_distributed():
            raise ConfigError("--dry-run measures one process; start it without the launcher")
    inputs = read_inputs(config)
    device, dtype = resolve_device_dtype(config)
    config = with_batch_sizes(config, device)
    resolved_model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base, force=config.force)
    check_method(config.model, config.method, resolved_model)
    check_remedies(config, resolved_model)
    config, reason = with_training_plan(config, inputs.train.rows.height, resolved_model)
    if reason:
        logger.info(reason)
    check_models(config, inputs, resolved_model.fingerprint)
    tokenized = tokenize_inputs(config, inputs, resolved_model)
    inputs = tokenized.inputs
    for note in tokenized.notes:
        logger.info(note)
    training_model = _load(config, device, dtype)
    plan = training_plan(config)
    burst = micro_batches(tokenized.examples[: plan.batch_size], int(config.micro_batch_tokens or 2048))[:2]
    with open_pass(training_model.model, [min(tokenized.examples, key=lambda e: e.length)]) as (losses, _):
        training_model.model.train()
        for _ in range(2):  # the first pass builds kernels, so only the second one is timed
            began = time.monotonic()
            with torch.autocast(device, torch.bfloat16, enabled=training_model.autocast):
                for part in burst:
                    losses.losses(part)[1].mean().backward()
            pass_seconds = time.monotonic() - began
    tokens = sum(example.length for example in tokenized.examples)
    training = pass_seconds / sum(e.length for part in burst for e in part) * tokens
    if known_rows.uses_pool(config):  # the known rows of a batch are taken to be as long as the new ones
        training /= 1 - (config.replay or known_rows.EQUAL)
    sample_rows = {name: rows.sample(min(rows.height, 64), seed=0) for name, rows in inputs.rows.items()}
    base = base_of(training_model.model)
    vocabulary, lenient = tokenized.prompter.ended(vocabulary_for(base, tokenized.tokenizer)), config.match == "lenient"
    batch = int(config.batch_tokens or 2048)
    measure = Tracker(tokenized.prompter, vocabulary, sample_rows, lenient=lenient, batch_tokens=batch)
    model = training_model.mirror.of(base) if training_model.mirror else base
    for _ in range(2):
        began = time.monotonic()
        measure(model)
        measured = time.monotonic() - began
    rows = sum(frame.height for frame in inputs.rows.values())
    measuring = measured / measure.count * rows
    trainable = sum(p.numel() for p in training_model.model.parameters() if p.requires_grad)
    steps = math.ceil(len(tokenized.examples) / plan.batch_size)
    whole = (training + measuring) * plan.epochs
    if config.learning_rate == AUTO:
        logger.info(format_cost(plan.learning_rate, steps * plan.epochs))
        whole += 3 * (training * trial_steps(steps * plan.epochs) / steps + measuring)
    return {
        "rows": len(tokenized.examples),
        "epochs": plan.epochs,
        "steps": steps * plan.epochs,
        "tokens_per_epoch": tokens,
        "measured_rows_per_epoch": rows,
        "trained_weights": trainable,
        "disk_gib": round(8 * 4 * trainable / 2**30, 2),
        "memory_gib": round(psutil.Process().memory_info().rss / 2**30, 2),
        "seconds_training_an_epoch": round(training, 1),
        "seconds_measuring_an_epoch": round(measuring, 1),
        "seconds": round(whole, 1),
        "time": duration(whole),
    }
