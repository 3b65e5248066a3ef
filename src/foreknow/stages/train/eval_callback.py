"""Measures the model at every evaluation of a run, writes and logs the result, and keeps the best weights."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.format.numbers import duration
from foreknow.io.disk_space import disk_full_errors
from foreknow.io.run_dir import RunDir, write_text
from foreknow.models import loading
from foreknow.models.quiet import quiet
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train import curves, selection
from foreknow.stages.train.answer_loss import PlainPass, base_of
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.checkpoints import save_model
from foreknow.stages.train.curves import Line
from foreknow.stages.train.inputs import TrainInputs
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.outside import add_outside, measure_outside
from foreknow.stages.train.result import outcomes_at
from foreknow.stages.train.set_loss import Sets, mean_losses
from foreknow.stages.train.span_labels import FITTED_SPANS, SPAN_OUTCOMES, count_fitted, spans_at
from foreknow.stages.train.tracker import OUTCOMES as MEASURED
from foreknow.stages.train.tracker import EvalModelCopy, Measurement, Tracker, vocabulary_for
from foreknow.stages.train.trainer import FactTrainer

logger = logging.getLogger(__name__)

BEST = ".best"
"""The folder, within the run's folder, that holds the weights of the best epoch so far."""


class TrainingModel(NamedTuple):
    """Holds the model to train, how it is measured, and a line for each choice.

    `mirror`: the copy of the model that is measured in its place, if any. `autocast`: compute in bfloat16. `sharded`:
    the weights are split over several processes, and a copy in the first process is measured. `fluency`: the result of
    the fluency check before training (`Fluency.summary`), in the first process only.
    """

    loaded: loading.Loaded
    model: Any
    mirror: EvalModelCopy | None
    autocast: bool
    reasons: tuple[str, ...]
    sharded: bool = False
    fluency: dict[str, Any] | None = None


class EvalCallback:
    """Measures, writes and shows every evaluation, and keeps the best weights.

    With several processes, each measures a share of the rows, the first one writes, and all get the outcome.
    """

    def __init__(
        self,
        config: TuneConfig,
        inputs: TrainInputs,
        folder: RunDir,
        training_model: TrainingModel,
        tokenizer: PreTrainedTokenizerBase,
        prompter: Prompter,
        examples: Sets,
        *,
        paired: bool = False,
    ):
        """Prepare the measurement of the sets of `inputs`.

        `examples`: by set, the rows whose loss is measured. `paired`: also count the rows of dev that differ from those
        of the best epoch, so that a test on them can tell whether the epochs differ.
        """
        self.config, self.inputs, self.folder, self.training_model, self.tokenizer = (
            config,
            inputs,
            folder,
            training_model,
            tokenizer,
        )
        self.examples, self.paired = examples, paired
        self.prompter, self.lenient = prompter, config.match == "lenient"
        self.spans = inputs.spans_of(inputs.rows)
        # several processes share the rows of loss and outcome differently, and a copy in bfloat16 is another model
        scored = examples if process_group.world_size() == 1 and not training_model.mirror else None
        self.measure = self.tracker(inputs.rows, self.spans, scored)
        self.known = KnownRows()
        self.memory_gib = 0.0
        self.asking: AskingModel | None = None
        self.lines: list[Line] = []
        self.since = time.monotonic()
        self.measuring = False
        self.warned = False

    def tracker(
        self, rows: Mapping[str, pl.DataFrame], spans: Mapping[str, pl.DataFrame], examples: Sets | None = None
    ) -> Tracker:
        """Return what measures these sets, of several processes this one's share. `examples`: see `Tracker`."""
        sets = rows if self.training_model.sharded else {name: own_rows(own) for name, own in rows.items()}
        return Tracker(
            self.prompter,
            self.prompter.ended(vocabulary_for(base_of(self.training_model.model), self.tokenizer)),
            sets,
            lenient=self.lenient,
            batch_tokens=int(self.config.batch_tokens or 2048),
            spans=spans,
            examples=examples,
        )

    def __call__(self, trainer: FactTrainer) -> tuple[Mapping[str, float], bool]:
        """Measure the model, write the result and save the weights if they are the best; see `trainer.EvalHook`."""
        config, step, epoch = self.config, trainer.state.global_step, trainer.epoch
        began, self.measuring = time.monotonic(), True
        weights = trainer.whole_weights()
        outcomes, spans, losses = self.measure_sets(weights)
        self.measuring = False
        line: Line = {"epoch": epoch, "step": step, "train_loss": trainer.tally.mean, "loss": losses}
        line |= curves.measures(outcomes, self.inputs.rows, lenient=self.lenient)
        if self.spans:
            line["spans"] = count_fitted(spans, self.spans)
        if paired := self._against_leader(outcomes):
            line["paired"] = paired
        outcomes = pl.concat([outcomes, self.measure_outside(line)])
        line |= trainer.tally.means
        line["seconds"] = round(time.monotonic() - self.since, 3)
        line["measuring_seconds"] = round(time.monotonic() - began, 3)
        line["saving_seconds"] = round(trainer.saving, 3)
        self.since = time.monotonic()
        self._keep(outcomes, spans, line, weights)
        trainer.saving = time.monotonic() - self.since
        if self.measure.note and len(self.lines) == 1:
            logger.info(self.measure.note)
        if self.training_model.mirror is not None and self.training_model.mirror.note and len(self.lines) == 1:
            logger.info(self.training_model.mirror.note)
        self._show(line)
        self.memory_gib = max(self.memory_gib, memory_gib(trainer.args.device.type))
        stop = not trainer.within_epoch and (
            selection.out_of_patience(self.lines, config.metric, config.patience or 0)
            or line["fitted_overall"] >= (config.stop_fitted or math.inf)
        )
        return curves.flat(line), stop and step > 0

    def measure_sets(
        self, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, float]]:
        """Measure the model as it is now: the outcome of every row (`MEASURED`) and of every labelled span
        (`SPAN_OUTCOMES`), and the loss of every set but train.

        `weights`: the gathered weights if the model is sharded.
        """
        measurement = self._measured(weights)
        outcomes = all_outcomes(measurement.outcomes, self.inputs.rows)
        spans = all_span_outcomes(measurement.spans, self.spans)
        return outcomes, spans, self._losses(weights, measurement.losses)

    def measure_outside(self, line: Line, *, at_end: bool = False) -> pl.DataFrame:
        """Measure what training does besides the user's sets, add it to the line, and return outcomes (`MEASURED`).

        These are the canaries, the sets of `--watch-known`, the plain text, and the questions on made-up subjects:
        these last only `at_end`, unless they are asked after every epoch. Of several processes the first one measures
        them and the others wait for what it found.
        """
        found, outcomes = process_group.from_main(
            lambda: measure_outside(self.known, self.asking, lenient=self.lenient, at_end=at_end)
        )
        add_outside(line, found)
        return outcomes

    def _measured(self, weights: Mapping[str, Tensor] | None) -> Measurement:
        mirror = self.training_model.mirror
        if not self.training_model.sharded:
            return self.measure.measure(self.measured_model())
        if mirror is None or weights is None or not process_group.is_main_process():
            return Measurement(pl.DataFrame(schema=MEASURED), pl.DataFrame(schema=SPAN_OUTCOMES))
        return self.measure.measure(mirror.holding(weights))

    def measured_model(self) -> Any:
        """Return the model as it is now, or its copy in the number format in which it is measured."""
        base, mirror = base_of(self.training_model.model), self.training_model.mirror
        return mirror.of(base) if mirror else base

    def _losses(
        self, weights: Mapping[str, Tensor] | None, known: Mapping[str, tuple[float, int]] | None
    ) -> dict[str, float]:
        """Compute the mean loss, in nats a token, of every set but train.

        For a sharded model, this measures the copy in the first process. `known`: `Measurement.losses`.
        """
        assert self.asking is not None
        if not self.training_model.sharded:
            own: Sets = {
                name: rows[process_group.rank() :: process_group.world_size()]
                for name, rows in (self.examples if known is None else self.measure.unscored).items()
            }
            return mean_losses(self.asking, own, known)
        mirror = self.training_model.mirror
        whole = mirror is not None and weights is not None and process_group.is_main_process()
        model = mirror.holding(weights) if whole and mirror and weights else base_of(self.training_model.model)
        sets: Sets = self.examples if whole else dict.fromkeys(self.examples, ())
        return mean_losses(self.asking._replace(model=model, losses=PlainPass(model)), sets)

    def _against_leader(self, outcomes: pl.DataFrame) -> dict[str, int] | None:
        """Count dev's rows that are right now but were wrong at the epoch kept until then, and the reverse.

        The counts are `won` and `lost`; `step` is that of the kept epoch. Returns None if there is no such
        epoch, or if the rows are not compared (`paired`).
        """
        leader = selection.best(self.lines, self.config.metric) if self.paired else None
        before = self.folder.chunk(leader["step"], "outcomes") if leader else None
        if leader is None or before is None:
            return None
        right = pl.col("lenient" if self.lenient else "correct")
        now = outcomes.filter(pl.col("set") == "dev").select("row", now=right)
        both = now.join(before.filter(pl.col("set") == "dev").select("row", then="correct"), on="row")
        won, lost = pl.col("now") & ~pl.col("then"), pl.col("then") & ~pl.col("now")
        counts = both.select(won=won.sum(), lost=lost.sum()).row(0, named=True)
        return {"step": leader["step"], "won": int(counts["won"]), "lost": int(counts["lost"])}

    def _keep(
        self, outcomes: pl.DataFrame, spans: pl.DataFrame, line: Line, weights: Mapping[str, Tensor] | None
    ) -> None:
        leader = selection.best(self.lines, self.config.metric)
        self.lines.append(line)
        if not process_group.is_main_process():
            return
        if self.spans:
            self.folder.save_chunk(line["step"], FITTED_SPANS, spans_at(line, spans))
        self.folder.save_chunk(line["step"], "outcomes", outcomes_at(line, outcomes, lenient=self.lenient))
        # the weights of an epoch that is no longer the best are removed once there is a checkpoint after them
        self.prune(leader)
        write_lines(self.folder.path, self.lines)
        if line is selection.best(self.lines, self.config.metric):
            self.save(self.folder.path / BEST / f"step-{line['step']}", line, weights)

    def prune(self, leader: Line | None) -> None:
        """Remove all kept weights except those of `leader`."""
        for path in (self.folder.path / BEST).glob("*"):
            if leader is None or path.name != f"step-{leader['step']}":
                shutil.rmtree(path, ignore_errors=True)

    def save(self, path: Path, line: Line, weights: Mapping[str, Tensor] | None, **more: Any) -> None:
        """Save the model as it is now, so that transformers (for LoRA: PEFT) can load it.

        `weights`: the gathered weights if the model is sharded. `more`: further entries of its foreknow.json.
        """
        loaded = self.training_model.loaded
        beside = {
            "stage": "tune",
            "method": self.config.method,
            "epoch": line["epoch"],
            "step": line["step"],
            "metric": self.config.metric,
            "value": curves.flat(line)[self.config.metric],
            **more,
            **_origin_of(loaded),
        }

        def write(part: Path) -> None:
            with quiet():
                self.training_model.model.save_pretrained(
                    part, **({} if weights is None else {"state_dict": dict(weights)})
                )
                self.tokenizer.save_pretrained(part)

        with disk_full_errors(str(path), "the last checkpoint and the best weights before it are kept"):
            save_model(path, write, beside)

    def _show(self, line: Line) -> None:
        leader = selection.best(self.lines, self.config.metric)
        text = curves.format_point(line, selection.mark_of(self.lines, self.config.metric))
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            rich_text = Text(text, style="bold" if leader is line else "")
            for part, style in ((r"\bKnown [█·]+", "green"), (r"Unknown [█·]+", "red"), (r"\* [a-z ]+$", "yellow")):
                rich_text.highlight_regex(part, style)
            Console(stderr=True).print(rich_text, soft_wrap=True)
        else:
            logger.info(f"{text}  ({duration(line['seconds'])})")
        began = curves.overfitting_epoch(self.lines)
        if began is not None and not self.warned:
            logger.info(
                f"warning: since epoch {began} more of Unknown is fitted and dev EM is below its best, a sign of "
                "overfitting to new facts"
            )
        elif began is None and self.warned:
            logger.info("dev EM is at a new best: not overfitting after all")
        self.warned = began is not None


def memory_gib(device: str) -> float:
    """Return the most memory of the accelerator that was in use so far, or the process's own now on a CPU, in GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def _origin_of(loaded: loading.Loaded) -> dict[str, Any]:
    """Return name, fingerprint and folder of the model that training began from, under `base`.

    If that model is an adapter, `base` has those of the adapter's base and `from` those of the adapter.
    """
    own = {key: getattr(loaded, key) for key in ("name", "fingerprint", "folder")}
    resolved_model = loaded.resolved
    if resolved_model is not None and resolved_model.adapter is not None:
        return {"base": dict(resolved_model.base or {}), "from": own}
    return {"base": own}


def own_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Return this process's share of the rows; a single process gets all rows."""
    return rows.gather_every(process_group.world_size(), process_group.rank())


def all_outcomes(own: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Share the outcomes (`tracker.OUTCOMES`) between processes, so that every process has those of all rows.

    `own`: the outcomes that this process measured. `sets`: the rows of every set, by name.
    """
    if not process_group.is_distributed():
        return own
    places = pl.concat([rows.select("row", set=pl.lit(name)) for name, rows in sets.items()]).sort("set", "row")
    code = [pl.col(name).cast(pl.Int64) + 1 for name in ("correct", "lenient")]  # 0 stands for null
    coded = places.join(own.with_columns(code), on=["set", "row"], how="left", maintain_order="left").fill_null(0)
    totals = process_group.totals([*coded["correct"], *coded["lenient"]])
    names = ("correct", "lenient")
    outcome_columns = {
        name: pl.Series(name, totals[n * coded.height :][: coded.height]) for n, name in enumerate(names)
    }
    decoded = [pl.when(pl.col(name) > 0).then(pl.col(name) > 1).alias(name) for name in names]
    return coded.with_columns(**outcome_columns).with_columns(decoded).select(*MEASURED)


def all_span_outcomes(own: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Share the outcomes of spans (`SPAN_OUTCOMES`) between processes, so that every process has all of them.

    `own`: the outcomes that this process measured. `sets`: the labelled spans of every set, by name.
    """
    if not process_group.is_distributed() or not sets:
        return own
    places = pl.concat([spans.select("row", "span", set=pl.lit(name)) for name, spans in sets.items()])
    order = ["set", "row", "span"]
    coded = places.join(own.with_columns(code=pl.col("fitted").cast(pl.Int64) + 1), on=order, how="left").sort(order)
    totals = pl.Series("code", process_group.totals(coded["code"].fill_null(0).to_list()))
    shared = coded.with_columns(totals).filter(pl.col("code") > 0)  # a span without a token is measured by none
    return shared.with_columns(fitted=pl.col("code") > 1).select(*SPAN_OUTCOMES)


def write_lines(folder: Path, lines: list[Line]) -> None:
    """Write `metrics.jsonl` with all `lines`, replacing the file."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
