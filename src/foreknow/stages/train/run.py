"""Runs tune: fine-tunes a model on rows of known category and measures each category (paper, section 3).

    inputs.py          reads and checks the sets
    dataset.py         reads the rows of a set with their categories
    training_examples.py  turns them into token ids, and finds rows that cannot be used
    batches.py         orders the rows of an epoch and cuts them into batches
    answer_loss.py     computes the loss at the answers' tokens only
    trainer.py         trains with transformers.Trainer, our batches and our checkpoints
    tracker.py         measures which rows are answered right, after every epoch
    eval_callback.py   writes and logs each measurement, and keeps the best weights
    curves.py          computes the lines of metrics.jsonl and where overfitting began
    selection.py       chooses the best epoch
    all_rows.py        measures the rows that are not measured after each epoch at the best and the last one
    loop.py            puts all of them together

    known_rows.py      gathers the known rows that are watched (canary_watch.py) and replayed (replay_choice.py)
    weight_average.py  goes part of the way back to the weights before training
    flow_weights.py    weighs rows by the model's loss on them before training

DIR/config.yaml metrics.jsonl outcomes.parquet rows.parquet canaries.parquet known-NAME.parquet made_up.parquet
row_weights.parquet early_stop/ averaged/ results.json
manifest.json (last) report.html

`early_stop` holds the model of the best epoch; with `--keep last` or `both`, `convergence` holds that of the last one.
Both are float32 safetensors and the tokenizer, in the layout of transformers, or the adapter for LoRA. On one CPU, a
run that was killed and resumed ends with the same weights bit for bit. On a GPU this is not guaranteed, because some
kernels add in varying order.

If `accelerate launch` or `torchrun` starts several processes (`process_group.py`), they share the rows of each step and
of each measurement. The first process owns the folder, writes the files and logs.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.config import TuneConfig
from foreknow.data.dataset import read_dataset
from foreknow.data.schema import GOLD
from foreknow.distributed import process_group
from foreknow.errors import ConfigError, RunFolderError
from foreknow.io.in_memory import InMemory
from foreknow.io.run_dir import RunDir, fingerprint, read_json, write_frame, write_json
from foreknow.models.adapters import about
from foreknow.models.checksums import verify_checksums
from foreknow.models.resolve import check_name
from foreknow.models.versions import library_versions
from foreknow.stages.mix.sampling import manifest_path, read_manifest
from foreknow.stages.skeleton import PreparedRun, Stage, nothing_to_do, required_out, run_stage
from foreknow.stages.train import curves, selection
from foreknow.stages.train.curves import TRAIN
from foreknow.stages.train.dataset import ceiling
from foreknow.stages.train.inputs import TrainInputs, read_inputs
from foreknow.stages.train.page import write_page
from foreknow.stages.train.result import CONVERGENCE, EARLY_STOP, WATCHED, TrainResult, read_metrics, weight_folders
from foreknow.stages.train.row_faults import RowFault, counts
from foreknow.stages.train.setup import AUTO, set_up_run, training_plan
from foreknow.version import __version__

if TYPE_CHECKING:
    from foreknow.stages.train.tokenized_inputs import TokenizedInputs

logger = logging.getLogger(__name__)

AVERAGED: Final = "averaged"
"""The folder of the weights that `--average` chose (`weight_average.py`)."""

_NO_IDENTITY: Final = {
    *("train", "dev", "test", "out", "model", "base", "audit", "force", "allow_overlap", "prompt_template"),
    *("map", "templates", "group_by", "turns", "null_words", "strict_rows", "bad_rows", "trust_remote_code"),
    *("dtype", "device", "report_to", "save_every", "dry_run", "canaries", "watch_known", "replay_from"),
}
"""Settings that are left out of a run's identity, because the content of the file that they name counts instead or
because they do not change a result."""


def identity_of(config: TuneConfig, inputs: TrainInputs, model: str, device: str, dtype: str) -> dict[str, Any]:
    """Return the contents and settings by which two runs count as the same; names of files do not count."""
    return {
        "data": {name: fingerprint(split.rows) for name, split in inputs.sets.items()},
        "prompt_template": [inputs.template.instruction, inputs.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **(
            {"processes": process_group.world_size(), "sharded": process_group.sharded()}
            if process_group.is_distributed()
            else {}
        ),
        "watch_known": {name: file_digest(file) for name, file in config.watch_known.items()},
        "replay_from": file_digest(config.replay_from) if config.replay_from else None,
        "audit": inputs.audit,
        "canaries": config.canaries if config.canaries in ("auto", "none") else file_digest(config.canaries),
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def with_process_settings(config: TuneConfig) -> TuneConfig:
    """Adapt the settings to a run of several processes. Raises ConfigError for settings that do not work there."""
    if process_group.is_single_process_launch():
        logger.info(
            "one process: accelerate launch --cpu starts more with MPI only; launch with --multi_gpu, --device cpu here"
        )
    if not process_group.is_distributed():
        return config
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError("DeepSpeed: tune trains with plain data parallelism or FSDP; launch it with one of them")
    remedies = config.replay or config.kl or config.average or config.watch_known or config.learning_rate == AUTO
    if process_group.sharded() and (remedies or config.loss_weights != "file"):
        raise ConfigError(
            "--replay, --kl, --average, --watch-known, --learning-rate auto, --loss-weights: found FSDP; they need the "
            "whole model in each process: launch it without FSDP"
        )
    if process_group.sharded() and config.method == "lora":
        raise ConfigError("--method lora: adapters are not sharded; launch it without FSDP")
    if process_group.sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("FSDP: found version 1, expected 2; launch with --fsdp_version 2")
    if process_group.sharded() and not process_group.can_shard():
        raise ConfigError("FSDP: accelerate shards on accelerators only; launch without it on CPUs")
    if config.device.startswith("cuda:"):
        raise ConfigError(f"--device {config.device}: each process takes a GPU of its own; use --device cuda")
    return config.model_copy(update={"device": "cpu"}) if process_group.uses_cpus() else config


def run(config: TuneConfig, *, page: bool = True) -> TrainResult:
    """Tune as `config` says and return the finished run; an interrupted run goes on from its last checkpoint.

    `page`: write `report.html` too. Raises the errors of `foreknow.errors`. If a launcher started several processes,
    one of them raises and the others exit.
    """
    with process_group.process_group(config.device):
        return _run(with_process_settings(config), page)


def _run(config: TuneConfig, page: bool) -> TrainResult:
    out = required_out(config.out)
    check_name(config.model)
    inputs = read_inputs(config)

    def prepare(folder: RunDir) -> AbstractContextManager[PreparedRun]:
        return nullcontext(_prepare(config, inputs, folder))

    return run_stage(Stage("run", prepare, TrainResult, write_page if page else None, joint=True), out)


def _prepare(config: TuneConfig, inputs: TrainInputs, folder: RunDir) -> PreparedRun:
    """Resolve the model and, unless the folder has a finished run, turn the rows into tokens."""
    config, resolved_model, device, dtype, reason, model_notes = set_up_run(config, inputs)
    notes = [*inputs.notes, *model_notes]
    identity = identity_of(config, inputs, resolved_model.fingerprint, device, dtype)
    if process_group.is_main_process():
        check_processes(folder)
    if process_group.broadcast_from_main(folder.manifest is not None):
        return PreparedRun(
            identity, config.resolved(), nothing_to_do, check_complete=lambda folder: _check_weights(config, folder)
        )
    from foreknow.stages.train.tokenized_inputs import tokenize_inputs  # keeps torch out

    tokenized = tokenize_inputs(config, inputs, resolved_model)  # raises its errors before anything is written

    def work(folder: RunDir) -> None:
        _tune(config, tokenized, folder, identity, device, dtype)
        if process_group.is_main_process():
            _remove_leftovers(folder)

    return PreparedRun(identity, config.resolved(), work, (*notes, *([reason] if reason else []), *tokenized.notes))


def _check_weights(config: TuneConfig, folder: RunDir) -> None:
    """Raise ModelError if the weights of a complete run are not those that it wrote."""
    for weights in (*weight_folders(config.keep), AVERAGED):
        verify_checksums(folder.path / weights)
    _remove_leftovers(folder)


def _remove_leftovers(folder: RunDir) -> None:
    """Remove the folders that only an unfinished run needs."""
    for name in (".checkpoints", ".best", ".replay", ".rates"):
        shutil.rmtree(folder.path / name, ignore_errors=True)


def check_processes(folder: RunDir) -> None:
    """Raise RunFolderError for a run begun with another number of processes, as each has its own random states."""
    known_run = folder.manifest or read_json(folder.path / ".run.json")
    known_processes = (known_run or {}).get("identity", {}).get("processes", 1)
    if known_run is not None and known_processes != process_group.world_size():
        raise RunFolderError(
            f"{folder.path}: processes: begun with {known_processes}, started now with {process_group.world_size()}; "
            f"start it with {known_processes}, choose another --out, or delete the folder"
        )


def _tune(
    config: TuneConfig,
    tokenized: TokenizedInputs,
    folder: RunDir,
    identity: dict[str, Any],
    device: str,
    dtype: str,
) -> None:
    from foreknow.stages.train.loop import train  # keeps torch out

    training_summary, inputs = train(config, tokenized, folder, device, dtype), tokenized.inputs
    if not process_group.is_main_process():
        return
    lines = read_metrics(folder.path)
    write_frame(folder.path / "rows.parquet", measured_rows(inputs))
    write_json(
        folder.path / "results.json",
        build_results(config, tokenized.metric, inputs, lines, training_summary, tokenized.faults),
    )
    for note in _endings(lines, training_summary["points"], tokenized.metric, config.keep):
        logger.info(note)
    folder.finish(
        {
            "foreknow": __version__,
            "stage": "tune",
            "identity": identity,
            "model": training_summary["model"],
            "metrics": fingerprint([{k: v for k, v in line.items() if k != "seconds"} for line in lines]),
            "versions": library_versions(),
            **{name: about(folder.path / name) for name in weight_folders(config.keep)},
            **({AVERAGED: about(folder.path / AVERAGED)} if config.average else {}),
        },
        (
            *(
                "config.yaml",
                "metrics.jsonl",
                "outcomes.parquet",
                "rows.parquet",
                "canaries.parquet",
                "made_up.parquet",
                "row_weights.parquet",
            ),
            *("fitted_spans.parquet", "spans.parquet", "known-*.parquet", "average_outcomes.parquet", "results.json"),
        ),
    )


def measured_rows(inputs: TrainInputs) -> pl.DataFrame:
    """Return the rows of all sets that are measured at any epoch in one frame (`WATCHED`)."""
    own = ("row", "group", "category", "question")
    parts = [rows.select(*own, set=pl.lit(name), answer=GOLD) for name, rows in inputs.asked_rows.items()]
    return pl.concat(parts).select(*WATCHED)


def build_results(
    config: TuneConfig,
    metric: str,
    inputs: TrainInputs,
    lines: list[curves.Line],
    training_summary: Mapping[str, Any],
    faults: Mapping[str, Sequence[RowFault]],
) -> dict[str, Any]:
    """Build the contents of `results.json`, which are a contract.

    `metric`: the metric that chose the epoch. `lines`: the evaluations. `training_summary`: what `loop.train` returned.
    `faults`: the faults of rows, by set.
    """
    points = training_summary["points"]
    early, last = points[EARLY_STOP], points[CONVERGENCE]
    folders = weight_folders(config.keep)
    stopped_fitted = config.stop_fitted is not None and last["fitted_overall"] >= config.stop_fitted
    measuring = sum(line["measuring_seconds"] for line in lines) + points["seconds"]
    saving = sum(line["saving_seconds"] for line in lines)
    training = sum(line["seconds"] for line in lines) - (measuring - points["seconds"]) - saving
    return {
        "metric": metric,
        "chooser": selection.chooser(lines, metric),
        "epochs": last["epoch"],
        "steps": last["step"],
        "stopped_by_patience": last["epoch"] < training_plan(config).epochs and not stopped_fitted,
        "stopped_fitted": stopped_fitted,
        "early_stop": {**_point(early), "folder": EARLY_STOP if EARLY_STOP in folders else None},
        "convergence": {**_point(last), "folder": CONVERGENCE if CONVERGENCE in folders else None},
        "overfitting_epoch": curves.overfitting_epoch(lines),
        "ceiling": ceiling(inputs.train.rows)[0],
        "model": training_summary["model"],
        "method": training_summary["method"],
        **training_summary["known_rows"],
        "trainable": config.trainable,
        "mix": mix_source(inputs.train.file),
        "data": {
            name: {
                "file": split.file.label if isinstance(split.file, InMemory) else split.file,
                "rows": split.rows.height,
                "watched": inputs.rows[name].height,
                "watched_at_points": inputs.asked_rows[name].height,
                "skipped": sum(split.left_out.values()),
                "left_out": dict(split.left_out),
                "fingerprint": fingerprint(split.rows),
                "digest": split.digest,
                "categories": split.categories or None,
                "row_faults": counts(faults.get(name, ())),
            }
            for name, split in inputs.sets.items()
        },
        "config": config.resolved(),
        "seconds": {"training": training, "measuring": measuring, "saving": saving},
        "memory_gib": training_summary["memory_gib"],
        "learning_rate": training_summary["learning_rate"],
        "rows_per_second": inputs.train.rows.height * last["epoch"] / training if training else 0.0,
        "version": __version__,
    }


def file_digest(file: str) -> str:
    """Return the hash of a data file's content. Raises InputError if it cannot be read."""
    return read_dataset(file).digest


def mix_source(file: str) -> dict[str, Any] | None:
    """Return what a training set that `foreknow mix` wrote is a mix of, so that runs can be told apart and paired.

    Returns None if `foreknow mix` did not write the file.
    """
    if not manifest_path(Path(file)).is_file():
        return None
    manifest = read_manifest(Path(file))
    audit = (manifest.get("audit") or {}).get("fingerprint")
    return {
        "audit": audit,
        **{key: manifest.get(key) for key in ("sha256", "kind", "share", "size", "seed", "known_of")},
    }


def _point(line: curves.Line) -> dict[str, Any]:
    known = curves.count_known_fitted(line)
    unknown = line["counts"][TRAIN]["by_category"].get(UNKNOWN)
    return {
        "epoch": line["epoch"],
        "step": line["step"],
        "known_fitted": known and known[0],
        "known_rows": known and known[1],
        "unknown_fitted": unknown and unknown[0],
        "unknown_rows": unknown and unknown[1],
        "metrics": line,
    }


def _endings(lines: list[curves.Line], points: Mapping[str, Any], metric: str, keep: str) -> list[str]:
    """Return what a finished run says: which epoch was chosen and why, and what the weights that go would have had.

    `lines`: the evaluations. `points`: the lines of EARLY_STOP and CONVERGENCE, of all rows.
    """
    early, last = selection.best(lines, metric), curves.epochs(lines)[-1]
    assert early is not None
    why = selection.format_choice(lines, metric)
    lines_to_print = [f"EARLY_STOP: epoch {early['epoch']}: {why}", f"CONVERGENCE: epoch {last['epoch']}, the last"]
    whole = [points[name] for name in (EARLY_STOP, CONVERGENCE)]
    fitted = [line["fitted_overall"] for line in whole]
    if keep == "best" and curves.much_less_fitted(*fitted):
        lines_to_print.append(
            f"the epoch whose weights are kept has {fitted[0]:.0%} of the training rows fitted, the last "
            f"{fitted[1]:.0%}; where these rows must be learnt, take --keep last or --keep both"
        )
    if metric != "dev_spans" and "dev_spans" in curves.flat(early):
        other = selection.best(lines, "dev_spans")
        assert other is not None
        shares = [curves.flat(line)["dev_spans"] for line in (other, early)]
        if other is not early:
            lines_to_print.append(
                f"dev_spans would have kept epoch {other['epoch']}: {shares[0]:.1%} of dev's spans that the model said "
                f"before are still right there, {shares[1]:.1%} at EARLY_STOP"
            )
        else:
            lines_to_print.append(f"dev_spans at EARLY_STOP: {shares[1]:.1%}, the best of all epochs")
    began = curves.overfitting_epoch(lines)
    if began:
        lines_to_print.append(
            f"a sign of overfitting to new facts: at epoch {began} dev EM is below its best, with more Unknown rows "
            "fitted; the page says whether dev's rows can tell"
        )
    return lines_to_print
