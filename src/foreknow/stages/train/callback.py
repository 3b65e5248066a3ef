"""Defines KnowledgeCallback, which adds the tracker to a user's own trainer.

    callback = KnowledgeCallback("train.jsonl", audit="runs/train", sets={"dev": "dev.jsonl"})
    trainer = Trainer(model, arguments, ..., callbacks=[callback])          # or TRL's SFTTrainer
    callback.attach(trainer)                                                # the trackers get its metrics too

At every evaluation of the trainer, or at the end of every epoch if it has none, the callback asks the watched rows in
the form in which they are trained on, and adds these metrics to the trainer's own:

    eval_<set>_em   eval_<set>_<category>_em   eval_train_fitted   eval_train_<category>_fitted
    eval_<set>_known_spans   eval_<set>_new_spans   eval_<set>_spans     with labels of spans (`span_labels.py`)

The trainer can choose checkpoints by them, with `metric_for_best_model="dev_em"` and `greater_is_better=True`. A
callback that reads them, such as EarlyStoppingCallback, must come after this one in the list of callbacks. The name of
a metric that does not exist raises an error at the start of training.

With `out="runs/watched"` the callback also writes a run folder with a page like that of `foreknow tune`
(`callback_run.py`), and then it measures at the end of every epoch in any case.

At the start of training the callback also checks the trainer's own labels (`label_check.py`). Rows from which nothing
can be learnt, because all their labels are -100, raise an error that gives their numbers; with `bad_rows="skip"` they
give a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from foreknow.config import TuneConfig
from foreknow.config.shared import BadRows
from foreknow.data.schema import USABLE
from foreknow.distributed import process_group
from foreknow.errors import ConfigError, InputError
from foreknow.models import loading
from foreknow.models.model_checks import check_finite
from foreknow.models.positions import positions_of
from foreknow.models.weight_files import WeightFiles
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.settings import settings_of
from foreknow.stages.audit.result import open_audit
from foreknow.stages.train import curves, row_faults, selection
from foreknow.stages.train.answer_loss import PlainPass, base_of
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.callback_canaries import answer_end, fingerprint_of, watch_known
from foreknow.stages.train.callback_run import CallbackRun, training_settings
from foreknow.stages.train.curves import TRAIN
from foreknow.stages.train.dataset import SET, check_same_model, read_set
from foreknow.stages.train.inputs import labelled_spans, unlabelled_notes
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.label_check import LabelReport, check_labels
from foreknow.stages.train.outside import add_outside, measure_outside
from foreknow.stages.train.row_faults import RowFault
from foreknow.stages.train.span_labels import count_fitted
from foreknow.stages.train.tracker import EvalModelCopy, Tracker, vocabulary_for
from foreknow.stages.train.trainer_format import (
    Pair,
    check_format,
    count_learnt_masks,
    find_format,
    pair_texts,
    read_texts,
)
from foreknow.stages.train.training_examples import TRAINING, template_faults, without_faulty

logger = logging.getLogger(__name__)

FALLEN = 0.5
"""A loss counts as fallen if it is below this fraction of the first one."""
Rows = str | Path | pl.DataFrame
"""A data file, or a frame with `question` and `answers`, and with `category`, `relation`, `group` if they are known."""


class KnowledgeCallback(TrainerCallback):
    """Reports the share of rows fitted and exact match by knowledge category to any `transformers.Trainer`.

    `train`: the rows trained on, which are fitted if the model answers their own gold; None to leave them out. `sets`:
    rows to watch, by name. `audit`: a finished audit that knows the rows' categories; without it, the rows' column
    `category` is used. `template`, `chat`: how a question is written for the model. By default the callback writes it
    as the trainer's own rows do, which it reads at the start of training (`trainer_format.py`); if it finds none of the
    rows of `train` there, it uses the paper's format. A given `template` or `chat` must be that of the trainer's rows:
    otherwise ConfigError is raised at the start of training and shows both texts. `model`: the fingerprint of the model
    to be trained, to check that the audit is of the same model. `dtype`: the dtype in which float32 weights are
    measured; "auto" is bfloat16 where that is faster. `tokenizer`: needed if the trainer has none.
    `bad_rows`: `refuse` raises InputError for rows from which nothing can be learnt, and for watched rows that the chat
    template refuses; `skip` logs a warning and goes on. `out`: a run folder to write, with a page; after training its
    path is `page`. `canaries`: facts to watch besides the rows, as `--canaries` of `foreknow tune`: `auto` asks the
    packaged facts once for each model, `none` watches nothing. `reading`: arguments passed on to `read_set`.
    """

    def __init__(
        self,
        train: Rows | None = None,
        *,
        sets: Mapping[str, Rows] | None = None,
        audit: str | Path | None = None,
        template: Template | None = None,
        chat: bool | None = None,
        bos: str = "auto",
        match: str = "strict",
        model: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        force: bool = False,
        bad_rows: BadRows = "refuse",
        out: str | Path | None = None,
        canaries: str | Path = "auto",
        **reading: Any,
    ):
        if match not in ("strict", "lenient") or bos not in ("auto", "yes", "no"):
            raise ConfigError(f"match={match!r}, bos={bos!r}: expected strict or lenient; auto, yes or no")
        if bad_rows not in ("refuse", "skip"):
            raise ConfigError(f"bad_rows={bad_rows!r}: expected refuse or skip")
        if out is not None and train is None:
            raise ConfigError(
                "KnowledgeCallback: out= writes a page on what is fitted; give train=, the rows trained on"
            )
        audit_result = open_audit(Path(audit)) if audit else None
        if audit_result is not None and model is not None:
            check_same_model(str(audit), audit_result.summary["model"], model, force)
        rows_by_name = {**({} if train is None else {TRAIN: train}), **(sets or {})}
        if not rows_by_name:
            raise ConfigError("KnowledgeCallback: no rows to watch; give train or sets={'dev': 'dev.jsonl'}")
        audited = audit_result.rows if audit_result else None
        self.sets = {name: _rows(name, rows, audited, str(audit), reading) for name, rows in rows_by_name.items()}
        self.spans = labelled_spans(self.sets, audit_result) if audit_result else {}
        self.template, self.chat, self.bos, self.lenient = template, chat, bos, match == "lenient"
        self._ends: frozenset[int] = frozenset()
        self._form_checked = self._unfitted_said = False
        self.dtype, self.batch_tokens, self.tokenizer = dtype, batch_tokens, tokenizer
        self.bad_rows = bad_rows
        self.out = None if out is None else Path(out)
        self.canaries, self.model = str(canaries), model
        self.audit = None if audit is None else Path(audit)
        self._known = KnownRows()
        self._asking: AskingModel | None = None
        self.page: Path | None = None
        self._run: CallbackRun | None = None
        self._files = {name: str(rows) for name, rows in rows_by_name.items() if not isinstance(rows, pl.DataFrame)}
        self.labels: LabelReport | None = None
        self.lines: list[curves.Line] = []
        self._log: Callable[[dict[str, float]], Any] | None = None
        self._measure: Tracker | None = None
        self._prompter: Prompter | None = None
        self._loss_seen = False
        self._mirror: EvalModelCopy | None = None

    def attach(self, trainer: Any) -> KnowledgeCallback:
        """Log through this trainer, so that its trackers (`report_to`) get the metrics; return the callback."""
        self._log = trainer.log
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the form and labels of the trainer's rows, and the metric that chooses checkpoints.

        Raises InputError for rows from which nothing can be learnt. Raises ConfigError for a given form that is not
        that of the trainer's rows, and for a metric that does not exist.
        """
        del control
        self._take_format(state, kwargs)
        self._prepare(kwargs)
        self._check_labels(args, state, kwargs)
        for note in unlabelled_notes(self.sets, self.spans) if state.is_world_process_zero else ():
            logger.info(note)
        self._start_run(args, state)
        self._watch_known(state, kwargs)
        metric = (args.metric_for_best_model or "").removeprefix("eval_")
        ours = metric.endswith(("_em", "_em_lenient", "_fitted", "_spans")) and args.eval_strategy != "no"
        if ours:
            curves.check_metric(metric, self.sets, lenient=self.lenient, spans=self.spans)
            if args.greater_is_better is False:
                raise ConfigError(f"metric_for_best_model {metric!r} is better when greater: greater_is_better=True")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Check that the first loss is finite and not exactly 0, which would mean that nothing is learnt.

        Otherwise logs a warning, or raises InputError if `bad_rows="refuse"` and the labels could not be checked.
        """
        del args, control, kwargs
        loss = (logs or {}).get("loss")
        if self._loss_seen or not isinstance(loss, int | float):
            return
        self._loss_seen = True
        if loss and math.isfinite(loss):
            return
        message = (
            f"KnowledgeCallback: the trainer's first loss is {loss:g} at step {state.global_step}: nothing is learnt"
        )
        if self.bad_rows == "refuse" and (self.labels is None or self.labels.why_not):
            raise InputError(f"{message}.\nLook at the labels of its batches, or go on with bad_rows='skip'")
        if state.is_world_process_zero:
            logger.info(f"warning: {message}")

    def _take_format(self, state: Any, kwargs: Mapping[str, Any]) -> None:
        """Take the form of questions from the trainer's own rows.

        Raises ConfigError if a form was given and theirs is another, or if no known form is theirs.
        """
        tokenizer = self._tokenizer(kwargs)
        rows = self.sets.get(TRAIN)
        pairs = [] if rows is None else pair_texts(read_texts(kwargs.get("train_dataloader")), rows, tokenizer)
        if self.template is not None or self.chat is not None:
            check_format(pairs, self._given_prompter(tokenizer), tokenizer)
            self._form_checked = bool(pairs)
            self._check_masks(pairs, tokenizer, state)
            return
        found = find_format(pairs, tokenizer, self.bos)
        if found is not None:
            self.template, self.chat, self._ends = found.template, found.chat, found.ends
            self._form_checked = True
            self._measure = None  # a measurement before training may have used another form
            form = "through the chat template" if found.chat else f"as {found.template.target!r}"
            note = f"KnowledgeCallback: asks {form}, as {found.pairs:,} of the trainer's rows are written"
            self._check_masks(pairs, tokenizer, state)
        elif pairs:
            check_format(pairs, self._given_prompter(tokenizer), tokenizer)
            return
        else:
            note = (
                "warning: KnowledgeCallback: no watched train row was found in the trainer's data, so whether it asks "
                "as the trainer trains is not known; it asks in the paper's format. Give train=, or template= and chat="
            )
        if state.is_world_process_zero:
            logger.info(note)

    def _check_masks(self, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, state: Any) -> None:
        """Warn if the trainer learns characters that the watched rows' `loss_exclude` leaves out of the loss."""
        if not pairs:
            return
        learnt, masked = count_learnt_masks(pairs, self.sets[TRAIN], self._given_prompter(tokenizer))
        if learnt and state.is_world_process_zero:
            logger.info(
                f"warning: KnowledgeCallback: {learnt:,} of {masked:,} rows that have masked spans (loss_exclude) are "
                "learnt whole by the trainer, which does not read that column: train on the tokens that foreknow mix "
                "--mask writes beside its file (FILE.tokens.parquet)"
            )

    def _given_prompter(self, tokenizer: PreTrainedTokenizerBase) -> Prompter:
        return Prompter(tokenizer, self.template or TRAINING, bool(self.chat), self.bos)  # type: ignore[arg-type]

    def _check_labels(self, args: Any, state: Any, kwargs: Mapping[str, Any]) -> None:
        """Raise InputError for rows of the trainer without a label; with `bad_rows="skip"`, log a warning."""
        assert self._prompter is not None
        ends = [n for n in (self._tokenizer(kwargs).eos_token_id, self._prompter.answer_end) if n is not None]
        self.labels = report = check_labels(kwargs.get("train_dataloader"), args, ends)
        if state.is_world_process_zero:
            for note in report.notes:
                logger.info(note)
        faults = {f"the trainer's data set ({report.looked:,} rows looked at)": report.faults} if report.faults else {}
        if TRAIN in self.sets and (cut := self._cut_away(args, kwargs.get("train_dataloader"))):
            faults["the rows watched as train"] = cut
        row_faults.check(faults.items(), self.bad_rows, "bad_rows='skip'")
        if state.is_world_process_zero:
            for where, some in faults.items():
                for line in row_faults.fault_lines(some):
                    logger.info(f"warning: {where}: {line}")

    def _cut_away(self, args: Any, loader: Any) -> list[RowFault]:
        """Find watched train rows whose prompt alone fills the trainer's `max_length`; TRL drops them silently."""
        length, data = getattr(args, "max_length", None), getattr(loader, "dataset", None)
        rows = self.sets[TRAIN]
        packed = bool(getattr(args, "packing", False))
        if not isinstance(length, int) or self._prompter is None or getattr(args, "truncation_mode", "") == "keep_end":
            return []
        if not packed and data is not None and hasattr(data, "__len__") and len(data) >= rows.height:
            return []
        texts = [
            self._prompter.text((), *question_and_context)
            for question_and_context in rows.select("question", "context").iter_rows()
        ]
        tokens = [len(ids) for ids in self._prompter.ids(texts)]
        return [
            RowFault(row, "answer_cut", f"{n:,} tokens before its answer, the trainer's max_length is {length:,}")
            for row, n in zip(rows["row"], tokens, strict=True)
            if n >= length
        ]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Add the metrics to those of the trainer's own evaluation, which choose the best checkpoint afterwards."""
        del args, control
        knowledge_metrics = self._metrics(state, kwargs)
        if metrics is not None:
            metrics.update(knowledge_metrics)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure at the end of an epoch if the trainer has no evaluations of its own, or if there will be a page."""
        del control
        strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
        if strategy == "no" or (strategy == "steps" and self.out is not None):
            self._metrics(state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the page, if `out` was given and an epoch has ended."""
        del args, control
        if self._run is None or not state.is_world_process_zero:
            return
        model = base_of(kwargs["model"])
        assert self._prompter is not None
        adapters = model is not getattr(kwargs["model"], "module", kwargs["model"])
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        method = {
            "name": "adapter" if adapters else "full",
            "training_text": {**self._prompter.choices, "prompt": self._prompter.template.target},
            "notes": [f"trained by {_trainer_name(self._log)}, watched by KnowledgeCallback"],
        }
        self.page = self._run.finish(self.lines, {"name": name}, method, self._known.results)
        if self.page is None:
            logger.info(f"{self.out}: no epoch has ended, so there is no page")
        else:
            logger.info(f"report: {self.page}")

    def _start_run(self, args: Any, state: Any) -> None:
        if self.out is None:
            return
        config = training_settings(args, "lenient" if self.lenient else "strict", self._files)
        if state.is_world_process_zero:
            self._run = CallbackRun(self.out, config, self.sets, lenient=self.lenient)
            self.lines = self._run.start(state.global_step)

    def _metrics(self, state: Any, kwargs: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics at this step; measure only once if the trainer evaluates several data sets at one step."""
        if not self.lines or self.lines[-1]["step"] != state.global_step:
            self.lines.append(self._line(state, kwargs))
            metrics = {f"eval_{name}": value for name, value in curves.flat(self.lines[-1]).items()}
            if self._log is not None:
                self._log(dict(metrics))
            else:
                state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
            if state.is_world_process_zero:
                mark = selection.mark_of(self.lines, "dev_em") if "dev" in self.sets else ""
                logger.info(curves.format_point(self.lines[-1], mark))
            self._warn_unfitted(state)
        return {f"eval_{name}": value for name, value in curves.flat(self.lines[-1]).items()}

    def _warn_unfitted(self, state: Any) -> None:
        """Warn once if no train row is fitted although the trainer's loss falls, unless the form was checked."""
        measured = [line for line in self.lines if line["train_loss"] is not None and "fitted_overall" in line]
        if (
            self._form_checked
            or self._unfitted_said
            or len(measured) < 2
            or any(line["fitted_overall"] for line in measured)
        ):
            return
        losses = [entry["loss"] for entry in state.log_history if isinstance(entry.get("loss"), int | float)]
        if len(losses) < 2 or not losses[-1] < FALLEN * losses[0]:
            return
        self._unfitted_said = True
        assert self._prompter is not None
        question, context = self.sets[TRAIN].select("question", "context").row(0)
        text = str(self._prompter.text((), question, context))
        if state.is_world_process_zero:
            logger.info(
                f"warning: KnowledgeCallback: the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}, but no row of "
                f"train is answered as it is taught. It asks {text!r}: is that how the trainer writes it?"
            )

    def _line(self, state: Any, kwargs: Mapping[str, Any]) -> curves.Line:
        self._prepare(kwargs)
        model = base_of(kwargs["model"])
        assert self._measure is not None
        check_finite("KnowledgeCallback: the trainer's model", model, self.dtype, WeightFiles((), {}))
        with torch.no_grad():
            outcomes, spans, _ = self._measure.measure(self._mirror.of(model) if self._mirror else model)
        if self._mirror is not None and self._mirror.note is not None and not self.lines:
            logger.info(self._mirror.note)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        line: curves.Line = {
            "epoch": _epoch(state.epoch),
            "step": state.global_step,
            "train_loss": losses[-1] if losses else None,
        }
        line |= {"spans": count_fitted(spans, self.spans)} if self.spans else {}
        line |= curves.measures(outcomes, self.sets, lenient=self.lenient)
        found, outside = measure_outside(self._known, self._asking, lenient=self.lenient, at_end=False)
        add_outside(line, found)
        if self._run is not None:
            self._run.add([*self.lines, line], pl.concat([outcomes, outside]))
        return line

    def _watch_known(self, state: Any, kwargs: Mapping[str, Any]) -> None:
        """Choose the facts to watch besides the rows, and ask them before training."""
        if self.canaries == "none":
            return
        if process_group.is_distributed():
            if state.is_world_process_zero:
                logger.info("canaries: not watched: KnowledgeCallback watches them where one process trains")
            return
        assert self._prompter is not None
        model, tokenizer = base_of(kwargs["model"]), self._tokenizer(kwargs)
        parameter = next(model.parameters())
        asking = AskingModel(
            model,
            self.model or fingerprint_of(kwargs["model"], tokenizer),
            PlainPass(model),
            tokenizer,
            self._prompter,
            answer_end(self._prompter, tokenizer),
            positions_of(model.config),
            self._tokens(parameter.device.type),
            self._mirror is not None,
            parameter.device.type,
            "bfloat16" if self._mirror is not None else str(parameter.dtype).removeprefix("torch."),
        )
        given = {"train": TRAIN, "canaries": self.canaries, "audit": self.audit, "made_up_subjects": 0}
        folder = None if self._run is None else self._run.path
        self._known = watch_known(
            settings_of(TuneConfig, given), asking, self.sets, folder, begun=state.global_step > 0
        )
        self._asking = asking

    def _tokens(self, device: str) -> int:
        return self.batch_tokens or (16384 if device.startswith("cuda") else 2048)

    def _prepare(self, kwargs: Mapping[str, Any]) -> None:
        if self._measure is not None:
            return
        model = base_of(kwargs["model"])
        tokenizer = self._tokenizer(kwargs)
        prompter = self._given_prompter(tokenizer)
        self._prompter = prompter
        self._leave_out(prompter)
        device, dtype = loading.resolve_device_dtype(str(next(model.parameters()).device), self.dtype)
        tokens = self._tokens(device)
        vocabulary = prompter.ended(vocabulary_for(model, tokenizer))
        ends, breaks = vocabulary.ends | self._ends, vocabulary.breaks - self._ends
        vocabulary = replace(vocabulary, ends=ends, breaks=breaks)
        self._measure = Tracker(
            prompter, vocabulary, self.sets, lenient=self.lenient, batch_tokens=tokens, spans=self.spans
        )
        # models with adapters are measured themselves; only whole float32 models are measured as a copy
        whole = base_of(kwargs["model"]) is getattr(kwargs["model"], "module", kwargs["model"])
        if whole and dtype == "bfloat16" and next(model.parameters()).dtype == torch.float32:
            self._mirror = EvalModelCopy(torch.bfloat16)

    def _tokenizer(self, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
        tokenizer = self.tokenizer or kwargs.get("processing_class")
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if tokenizer is None:
            raise ConfigError("KnowledgeCallback: the trainer has no tokenizer; give tokenizer=... to the callback")
        return tokenizer

    def _leave_out(self, prompter: Prompter) -> None:
        """Leave out watched rows that the chat template refuses; with `bad_rows="refuse"`, raise InputError instead."""
        faults = {name: template_faults(rows, prompter) for name, rows in self.sets.items()}
        row_faults.check(faults.items(), self.bad_rows, "bad_rows='skip'")
        rows = [note for name, some in faults.items() for note in row_faults.notes(name, some)]
        for note in (*prompter.notes, *rows) if process_group.is_main_process() else ():
            logger.info(note)
        self.sets = {name: without_faulty(name, rows, faults[name]) for name, rows in self.sets.items()}


def _rows(name: str, rows: Rows, audited: pl.DataFrame | None, audit: str, reading: Mapping[str, Any]) -> pl.DataFrame:
    if name != TRAIN and not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"KnowledgeCallback: set {name!r}: expected a name of letters, digits, '-' and '_'")
    if not isinstance(rows, pl.DataFrame):
        return read_set(name, str(rows), audited, f"the audit {audit}", **reading).rows
    if not {"question", "answers"} <= set(rows.columns):
        raise ConfigError(f"KnowledgeCallback: {name}: found the columns {rows.columns}, expected question and answers")
    missing = {column: pl.lit(None, dtype) for column, dtype in SET.items() if column not in rows.columns}
    if "row" in missing:
        missing["row"] = pl.int_range(pl.len(), dtype=pl.Int64)
    whole = rows.with_columns(**missing)
    grouped = whole.with_columns(group=pl.coalesce("group", "relation", pl.lit("all")))
    return grouped.select(*SET).filter(USABLE)


def _trainer_name(log: Callable[..., Any] | None) -> str:
    """Return the class of the trainer that the callback is attached to."""
    trainer = getattr(log, "__self__", None)
    return "another trainer" if trainer is None else type(trainer).__name__


def _epoch(epoch: float | None) -> float | int:
    """Return the trainer's epoch; return an int if it is whole except for rounding."""
    value = epoch or 0.0
    return round(value) if abs(value - round(value)) < 1e-6 else value
