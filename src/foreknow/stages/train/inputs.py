"""Reads and checks the sets of a run of tune, and writes the notes that are shown before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.config import TuneConfig
from foreknow.config.tune import held_out_share
from foreknow.data.holdout import hold_out
from foreknow.data.layouts.relation_templates import read_templates
from foreknow.data.schema import GOLD, ROWS, sampling_hash
from foreknow.distributed import process_group
from foreknow.errors import ConfigError
from foreknow.format.numbers import count
from foreknow.models.quantization import check_trainable
from foreknow.models.resolve import Resolved
from foreknow.prompts.prompt_template import Template, read_template
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.train import curves, selection
from foreknow.stages.train.curves import TRAIN
from foreknow.stages.train.dataset import (
    LabelledSplit,
    ceiling,
    check_overlap,
    check_same_model,
    check_turns,
    mix_model,
    read_set,
)
from foreknow.stages.train.span_labels import watched_spans, without_trained
from foreknow.stages.train.training_examples import TRAINING
from foreknow.stats import wilson

FEWEST_WATCHED = 200
"""The number of rows of a set that `--watch-rows auto` measures at least: a share of them is known to 7 points."""
FEW_DEV_ROWS = 50
"""If a share is held out and dev has fewer rows, a note says that so few rows can hardly tell epochs apart."""


@dataclass(frozen=True)
class TrainInputs:
    """Holds what a run reads: train, dev and the test sets by name, the prompt template, and notes about the sets.

    `most_watched`: how many rows of train and of each test set are measured after each epoch at most; None for all.
    `asks_all`: at the best and at the last epoch every row is measured (`all_rows.py`).
    `spans`: by set, the labelled spans inside its long answers (`span_labels.WATCHED_SPANS`), if an audit has any.
    `audit`: the hash of the audit's labels (`AuditResult.digest`), if there is an audit.
    """

    sets: dict[str, LabelledSplit]
    template: Template
    notes: tuple[str, ...]
    most_watched: int | None = None
    asks_all: bool = False
    seed: int = 0
    spans: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    audit: str | None = None

    @property
    def train(self) -> LabelledSplit:
        """Return the set to train on."""
        return self.sets[TRAIN]

    @cached_property
    def rows(self) -> dict[str, pl.DataFrame]:
        """Return the rows that are measured after each epoch, by set: all of dev, and a sample of the others."""
        return {
            name: split.rows if name == "dev" else _sample(split.rows, self.most_watched, self.seed)
            for name, split in self.sets.items()
        }

    @property
    def all_rows(self) -> dict[str, pl.DataFrame]:
        """Return every usable row, by set."""
        return {name: split.rows for name, split in self.sets.items()}

    @cached_property
    def remaining_rows(self) -> dict[str, pl.DataFrame]:
        """Return the rows that are measured at the best and at the last epoch only, by set, of the sets with any."""
        if not self.asks_all:
            return {}
        rest = {name: rows.join(self.rows[name], on="row", how="anti") for name, rows in self.all_rows.items()}
        return {name: rows for name, rows in rest.items() if not rows.is_empty()}

    @property
    def asked_rows(self) -> dict[str, pl.DataFrame]:
        """Return the rows that are measured at the best and at the last epoch, by set."""
        return self.all_rows if self.asks_all else self.rows

    def spans_of(self, sets: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """Return the labelled spans of the rows of `sets`, by set; sets without any are left out."""
        spans = {
            name: self.spans[name].filter(pl.col("row").is_in(rows["row"].implode()))
            for name, rows in sets.items()
            if name in self.spans
        }
        return {name: own for name, own in spans.items() if not own.is_empty()}

    @property
    def sample_note(self) -> str | None:
        """Return a line on the sets of which not every row is measured; None if there is none."""
        drawn = {
            name: (self.rows[name].height, split.rows.height)
            for name, split in self.sets.items()
            if self.rows[name].height < split.rows.height
        }
        if not drawn:
            return None
        parts = [f"{few:,} of the {rows:,} rows of {name}" for name, (few, rows) in drawn.items()]
        half = [wilson(few // 2, few) for few, _ in drawn.values()]  # the share of which a draw tells least
        points = max(50 * (interval.high - interval.low) for interval in half)
        note = f"measured after each epoch: {', '.join(parts)}, drawn at random (--watch-rows)"
        note += f", so a share of them is known to about {points:.0f} points"
        return f"{note}; all rows at EARLY_STOP and CONVERGENCE" if self.asks_all else note


def read_inputs(config: TuneConfig) -> TrainInputs:
    """Read and check all files, and raise every error that can be found without the model."""
    template = read_template(config.prompt_template) if config.prompt_template else TRAINING
    mix_model(config.train)  # raise the error about a damaged mix before the file is read
    audit = open_audit(config.audit) if config.audit else None
    reading: dict[str, Any] = {
        "columns": config.map,
        "templates": read_templates(config.templates) if config.templates else None,
        "group_by": config.group_by,
        "strict_rows": config.strict_rows,
        "turns": config.turns,
        "null_words": config.null_words,
    }
    share = held_out_share(config.dev)
    files = {TRAIN: config.train, **({} if share else {"dev": config.dev}), **config.test}
    sets = {
        name: read_set(name, file, audit.rows if audit else None, f"the audit {config.audit}", **reading)
        for name, file in files.items()
    }
    check_turns(sets[TRAIN], config.turns)
    dev_note = []
    if share:
        sets[TRAIN], dev, note = _split(sets[TRAIN], share, config.seed)
        sets = {TRAIN: sets.pop(TRAIN), "dev": dev, **sets}
        dev_note = [note]
    overlap = check_overlap(sets[TRAIN], [split for name, split in sets.items() if name != TRAIN], config.allow_overlap)
    rows = {name: split.rows for name, split in sets.items()}
    spans = labelled_spans(rows, audit) if audit else {}
    if config.metric != selection.AUTO:
        curves.check_metric(config.metric, rows, lenient=config.match == "lenient", losses=True, spans=spans)
    notes = (*_notes(sets, TRAIN in spans), *_span_notes(spans), *dev_note, *([overlap] if overlap else []))
    most = _most_watched(config, sets[TRAIN].rows.height)
    asks_all = config.watch_rows == "auto" and not process_group.sharded()  # of sharded weights none is loaded again
    return TrainInputs(sets, template, notes, most, asks_all, config.seed, spans, audit.digest if audit else None)


def _most_watched(config: TuneConfig, train_rows: int) -> int | None:
    """Return how many rows of a set are measured at most; None for all.

    With a third of the training rows, and all of them at two epochs (`all_rows.py`), a run with one test set spends at
    most about a third of its time on measuring.
    """
    if isinstance(config.watch_rows, int):
        return config.watch_rows
    return None if config.watch_rows == "all" else max(FEWEST_WATCHED, train_rows // 3)


def _sample(rows: pl.DataFrame, most: int | None, seed: int) -> pl.DataFrame:
    """Return at most `most` of the rows in their order, the same ones for the same rows and seed."""
    if most is None or rows.height <= most:
        return rows
    texts = rows.select("question", GOLD.alias("answer"), "row").iter_rows()
    keys = pl.Series([sampling_hash(seed, "watch", question, answer, str(row)) for question, answer, row in texts])
    return rows.filter(keys.rank("ordinal") <= most)


def labelled_spans(rows: Mapping[str, pl.DataFrame], audit: AuditResult) -> dict[str, pl.DataFrame]:
    """Return the labelled spans of every set that has any (`WATCHED_SPANS`). `rows`: by set, frames `SET`."""
    if audit.spans is None:
        return {}
    spans = {name: watched_spans(own, audit.rows, audit.spans) for name, own in rows.items()}
    train = rows.get(TRAIN)
    return {
        name: own if name == TRAIN or train is None else without_trained(own, train)
        for name, own in spans.items()
        if not own.is_empty()
    }


def unlabelled_notes(rows: Mapping[str, pl.DataFrame], spans: Mapping[str, pl.DataFrame]) -> list[str]:
    """Return a line for each set of which only some rows have a label: a category (`SET`), or labelled spans."""
    notes = []
    for name, own in rows.items():
        with_spans = spans[name]["row"].implode() if name in spans else pl.lit([], pl.List(pl.Int64))
        labelled = own.filter(pl.col("category").is_not_null() | pl.col("row").is_in(with_spans)).height
        if 0 < labelled < own.height:
            notes.append(
                f"{name}: {own.height - labelled:,} of {own.height:,} rows have no label, and count in no category's "
                "metric; audit all of them to see these"
            )
    return notes


def _span_notes(spans: Mapping[str, pl.DataFrame]) -> list[str]:
    notes = []
    for name, own in spans.items():
        note = (
            f"{name}: {count(own.height, 'labelled span')} in {count(own['row'].n_unique(), 'long answer')}, "
            f"{own['new'].sum():,} of them new to the model"
        )
        notes.append(note if name == TRAIN else f"{note}; dev_spans counts {own['kept'].sum():,}" * (name == "dev"))
    return [note for note in notes if note]


def _split(train: LabelledSplit, share: float, seed: int) -> tuple[LabelledSplit, LabelledSplit, str]:
    """Move rows from the training set to a new set `dev`; return both sets and a note on how many rows were moved."""
    held = hold_out(train.rows.select(*ROWS), share, seed)
    mine = pl.col("row").is_in(held.rows.implode())
    rest, dev = train.rows.filter(~mine), train.rows.filter(mine)
    note = (
        f"dev: {dev.height:,} of {train.rows.height:,} rows are held out of {train.file} (--dev {share:g}), in "
        f"{held.families:,} of {held.of_families:,} families, so that no subject, question, chat or long answer stands "
        "on both sides"
    )
    if dev.height < FEW_DEV_ROWS:
        note += ". So few rows can hardly tell epochs apart; name a file with more with --dev"
    return train._replace(rows=rest), train._replace(name="dev", rows=dev, left_out={}), note


def _notes(sets: Mapping[str, LabelledSplit], has_spans: bool) -> list[str]:
    notes = []
    for name, split in sets.items():
        counts = dict(split.rows["category"].drop_nulls().value_counts().iter_rows())
        category_counts = ", ".join(f"{category} {counts[category]:,}" for category in CATEGORIES if category in counts)
        whence = f" (from {split.categories}: {category_counts})" if category_counts else ""
        why = ", ".join(f"{reason} {count:,}" for reason, count in split.left_out.items())
        left = f", {sum(split.left_out.values()):,} left out ({why})" if why else ""
        notes.append(f"{name}: {split.rows.height:,} rows of {split.file}{left}{whence}")
    if not sets[TRAIN].rows["category"].drop_nulls().len():
        notes.append(
            "no row of train has a category of its own; the facts inside the long answers have labels, and are counted"
            if has_spans
            else "no categories: no column 'category' in the rows, no --audit that knows them; shares are overall"
        )
    share, questions = ceiling(sets[TRAIN].rows)
    if questions:
        notes.append(
            f"{questions:,} questions of train have more than one gold: at most {share:.1%} of its rows can be fitted"
        )
    if (sets[TRAIN].rows["weight"] != 1.0).any():
        notes.append("rows are weighted by the column 'weight'")
    return notes


def check_method(model: str, method: str, resolved_model: Resolved) -> None:
    """Raise ConfigError if `--method full` is set for a model that cannot be trained as a whole."""
    check_trainable(f"--model {model}", resolved_model.quantization, method)
    if resolved_model.adapter is not None and method == "full":
        raise ConfigError(
            f"--model {model}: an adapter of {(resolved_model.base or {}).get('name')}, found with --method full. Use "
            "--method lora, which goes on training the adapter, or merge it into its base first (PEFT's "
            "merge_and_unload, then save_pretrained)"
        )


def check_remedies(config: TuneConfig, resolved_model: Resolved) -> None:
    """Raise ConfigError for `--trainable`, `--kl-rows`, `--kl-teacher` or `--average` where they have no use."""
    if config.method == "lora" and config.trainable != "all":
        raise ConfigError(
            f"--trainable {config.trainable}: found with --method lora, which trains adapters; --lora-targets names "
            "the layers that get one"
        )
    if config.kl_rows == "all" and config.replay:
        raise ConfigError(
            "--kl-rows all: found with --replay, which learns the answers of its rows, so that they must be known "
            "ones; leave out one of the two"
        )
    if config.kl_teacher != "base" and not config.kl:
        raise ConfigError(f"--kl-teacher {config.kl_teacher}: found without --kl; give its weight, such as --kl 10")
    if config.average and resolved_model.adapter is not None:
        raise ConfigError(
            f"--average: {config.model} is an adapter on which training goes on, and the line back to it cannot be "
            "scaled; merge it into its base first (PEFT's merge_and_unload, then save_pretrained)"
        )


def unused_settings(config: TuneConfig) -> list[str]:
    """Return a line for each setting that does nothing without another one, which is not given."""
    needs = {
        **dict.fromkeys(("kl_rows", "kl_exemplars"), ("--kl", config.kl > 0)),
        "replay_from": ("--replay or --kl", config.replay > 0 or config.kl > 0),
        **dict.fromkeys(("lora_rank", "lora_alpha", "lora_targets"), ("--method lora", config.method == "lora")),
    }
    fields = TuneConfig.model_fields
    return [
        f"--{name.replace('_', '-')} does nothing here: it belongs to {other}, which is not given"
        for name, (other, is_given) in needs.items()
        if not is_given and getattr(config, name) != fields[name].default
    ]


def check_models(config: TuneConfig, inputs: TrainInputs, model: str) -> list[str]:
    """Raise ModelError if the categories are another model's; if forced, return lines that say so instead.

    `model`: the fingerprint of the model to tune.
    """
    made_with = {str(config.audit): open_audit(config.audit).summary["model"]} if config.audit else {}
    mixed = mix_model(inputs.train.file)
    made_with |= {inputs.train.file: mixed} if mixed else {}
    return [note for file, of in made_with.items() if (note := check_same_model(file, of, model, config.force))]
