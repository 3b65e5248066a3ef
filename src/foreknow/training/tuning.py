"""Tune: fine-tune a model on rows of known category, watched category by category (paper, section 3).

    training/inputs.py     the sets, checked
    training_rows.py   rows with categories -> token ids; what is refused
    training_pass.py   the loss, at the answers' tokens only
    trainer.py         transformers.Trainer with our batches and checkpoints
    tracker.py         which rows are answered right, after every epoch
    watching.py        what is written and said of it; the best weights kept
    curves.py          metrics.jsonl, the best epoch, where overfitting began
    training/loop.py       all of them together

DIR/config.yaml metrics.jsonl outcomes.parquet rows.parquet early_stop/ convergence/ results.json manifest.json
(last) report.html

`early_stop` holds the epoch with the best metric, `convergence` the last one: float32 safetensors and the tokenizer,
as any transformers folder, or the adapter for LoRA. On one CPU a run that was killed and taken up again ends in the
same weights bit for bit; on a GPU some kernels add in an order of their own, and no such promise is made.

Started by `accelerate launch` or `torchrun`, several processes (`ranks.py`) share the rows of each step and of each
measurement; the first holds the folder, writes and speaks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

import foreknow
from foreknow.config import TuneConfig
from foreknow.data.rows import GOLD
from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.files.remote import fetched
from foreknow.files.runs import RunFolder, fingerprint, hold, read_json, verify, write_frame, write_json
from foreknow.lm import models, ranks
from foreknow.lm.adapters import about
from foreknow.lm.model_names import resolve
from foreknow.lm.packaged import check
from foreknow.mixes.mixing import manifest_path, read_manifest
from foreknow.progress import say
from foreknow.protocol.slick import UNKNOWN
from foreknow.reporting import write_report
from foreknow.training import curves
from foreknow.training.curves import TRAIN
from foreknow.training.inputs import Given, check_method, check_models, read_given
from foreknow.training.row_faults import RowFault, counts
from foreknow.training.training_rows import ceiling

if TYPE_CHECKING:
    from foreknow.training.loop import Tokenised

OUTCOMES: Final[dict[str, pl.DataType]] = {
    "epoch": pl.Float64(),
    "step": pl.Int64(),
    "set": pl.String(),
    "row": pl.Int64(),
    "right": pl.Boolean(),
    "lenient": pl.Boolean(),
}
"""The contract of `outcomes.parquet`: one line per evaluation and watched row; of the set `train`, the row is
right when it is fitted. `right` follows `--match`; `lenient` is null where that is strict."""
WATCHED: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "row": pl.Int64(),
    "group": pl.String(),
    "category": pl.String(),
    "question": pl.String(),
    "answer": pl.String(),
}
"""The contract of `rows.parquet`: the rows that `outcomes.parquet` speaks of; `answer` is the gold."""


@dataclass(frozen=True)
class Tuned:
    """A finished run: a view of its folder."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        """Best and last epoch with their metrics, model, data, settings."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def metrics(self) -> list[curves.Line]:
        """One line per evaluation (`curves.py`)."""
        return read_lines(self.folder)

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """Every watched row at every evaluation (`OUTCOMES`)."""
        return pl.read_parquet(self.folder / "outcomes.parquet")

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The watched rows themselves (`WATCHED`)."""
        return pl.read_parquet(self.folder / "rows.parquet")


def open_tuned(folder: str | Path) -> Tuned:
    """A finished run's folder. Raises InputError where there is none, or a file of it was changed since."""
    folder = fetched(folder)
    if (folder / "manifest.json").is_file():
        verify(folder)
    if not (folder / "manifest.json").is_file() or not (folder / "results.json").is_file():
        raise InputError(f"{folder}: not a finished run of foreknow tune (no manifest.json); run it again")
    return Tuned(folder)


def read_lines(folder: Path) -> list[curves.Line]:
    """The evaluations of a run so far."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


_NO_IDENTITY: Final = {
    *("train", "dev", "test", "out", "model", "base", "audit", "force", "allow_overlap", "prompt_template"),
    *("map", "templates", "group_by", "turns", "null_words", "strict_rows", "bad_rows", "trust_remote_code"),
    *("dtype", "device", "report_to", "save_every", "dry_run"),
}
"""Settings that name a file whose content counts instead, or do not change a result."""


def identity_of(config: TuneConfig, given: Given, model: str, device: str, dtype: str) -> dict[str, Any]:
    """What makes two runs the same: contents and settings, never names of files."""
    return {
        "data": {name: fingerprint(found.rows) for name, found in given.sets.items()},
        "prompt_template": [given.template.instruction, given.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **({"processes": ranks.count(), "sharded": ranks.sharded()} if ranks.several() else {}),
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def sized(config: TuneConfig, device: str) -> TuneConfig:
    """Fill in the batch plan: a matter of the kind of device, never of free memory or load."""
    tokens = 16384 if device.startswith("cuda") else 2048
    return config.model_copy(
        update={
            "micro_batch_tokens": config.micro_batch_tokens or tokens,
            "batch_tokens": config.batch_tokens or tokens,
        }
    )


def computing_on(config: TuneConfig) -> tuple[str, str]:
    """The device, and the dtype to compute in: bfloat16 where the machine has instructions for it.

    Raises ConfigError for a device that tune does not train on.
    """
    if config.device == models.MAP:
        raise ConfigError(
            "--device map: found layers spread over devices, expected one device with the whole model; use --device "
            "auto with --method lora, or several processes with FSDP (docs/scale-training.md)"
        )
    device, dtype = models.computing_on(config.device, config.dtype)
    if device.startswith("cuda:") and device != "cuda:0":
        raise ConfigError(f"--device {config.device}: the trainer takes the first GPU; set CUDA_VISIBLE_DEVICES")
    return ("cuda" if device.startswith("cuda") else device), ("float32" if dtype == "float16" else dtype)


def launched(config: TuneConfig) -> TuneConfig:
    """The settings as they hold in one of several processes. Raises ConfigError for what does not work there."""
    if ranks.started_alone():
        say(
            "one process: accelerate launch --cpu starts more with MPI only; launch with --multi_gpu, --device cpu here"
        )
    if not ranks.several():
        return config
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError("DeepSpeed: tune trains with plain data parallelism or FSDP; launch it with one of them")
    if ranks.sharded() and config.method == "lora":
        raise ConfigError("--method lora: adapters are not sharded; launch it without FSDP")
    if ranks.sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("FSDP: found version 1, expected 2; launch with --fsdp_version 2")
    if ranks.sharded() and not ranks.can_shard():
        raise ConfigError("FSDP: accelerate shards on accelerators only; launch without it on CPUs")
    if config.device.startswith("cuda:"):
        raise ConfigError(f"--device {config.device}: each process takes a GPU of its own; use --device cuda")
    return config.model_copy(update={"device": "cpu"}) if ranks.on_cpus() else config


def run(config: TuneConfig, *, page: bool = True) -> Tuned:
    """Tune as `config` says and return the finished run; an interrupted one goes on from its last checkpoint.

    `page`: write `report.html` too. Raises the errors of `foreknow.errors`; in processes that a launcher started
    one of them raises, and the others exit.
    """
    with ranks.together(config.device):
        return _run(launched(config), page)


def _run(config: TuneConfig, page: bool) -> Tuned:
    if config.out is None:
        raise ConfigError("--out: missing; name the folder to write")
    given = read_given(config)
    with hold(config.out) if ranks.first() else nullcontext(RunFolder(config.out)) as folder:
        device, dtype = computing_on(config)
        config = sized(config, device)
        found = resolve(config.model, say, config.trust_remote_code, base=config.base, force=config.force)
        check_method(config.model, config.method, found)
        model = found.fingerprint
        notes = [*given.notes, *check_models(config, given, model)]
        identity = identity_of(config, given, model, device, dtype)
        if ranks.first():
            check_processes(folder)
        if ranks.first_says(folder.manifest is not None):
            if ranks.first():
                folder.begin(identity, config.resolved())
                for weights in ("early_stop", "convergence"):
                    check(folder.path / weights)
            say(f"{config.out}: this run is complete; nothing to do")
        else:
            from foreknow.training.loop import tokenised

            ready = tokenised(config, given, found)  # what it refuses is refused before anything is written
            if ranks.first():
                folder.begin(identity, config.resolved())
            for note in (*notes, *ready.notes):
                say(note)
            _tune(config, ready, folder, identity, device, dtype)
        if ranks.first():
            for left in (".checkpoints", ".best"):
                shutil.rmtree(folder.path / left, ignore_errors=True)
            if page and not (folder.path / "report.html").is_file():
                write_report(folder.path)
    return Tuned(folder.path)


def check_processes(folder: RunFolder) -> None:
    """Raise RunFolderError for a run begun with another number of processes: each has random states of its own."""
    known = folder.manifest or read_json(folder.path / ".run.json")
    begun = (known or {}).get("identity", {}).get("processes", 1)
    if known is not None and begun != ranks.count():
        raise RunFolderError(
            f"{folder.path}: processes: begun with {begun}, started now with {ranks.count()}; start it with {begun}, "
            "choose another --out, or delete the folder"
        )


def _tune(
    config: TuneConfig,
    ready: Tokenised,
    folder: RunFolder,
    identity: dict[str, Any],
    device: str,
    dtype: str,
) -> None:
    from foreknow.training.loop import train

    made, given = train(config, ready, folder, device, dtype), ready.given
    if not ranks.first():
        return
    lines = read_lines(folder.path)
    write_frame(folder.path / "rows.parquet", watched(given))
    write_json(folder.path / "results.json", results(config, given, lines, made, ready.faults))
    for note in _endings(lines, config.metric):
        say(note)
    folder.finish(
        {
            "foreknow": foreknow.__version__,
            "stage": "tune",
            "identity": identity,
            "model": made["model"],
            "metrics": fingerprint([{k: v for k, v in line.items() if k != "seconds"} for line in lines]),
            "versions": models.library_versions(),
            "early_stop": about(folder.path / "early_stop"),
            "convergence": about(folder.path / "convergence"),
        },
        ("config.yaml", "metrics.jsonl", "outcomes.parquet", "rows.parquet", "results.json"),
    )


def watched(given: Given) -> pl.DataFrame:
    """Every set's rows, one under the other (`WATCHED`)."""
    own = ("row", "group", "category", "question")
    parts = [rows.select(*own, set=pl.lit(name), answer=GOLD) for name, rows in given.rows.items()]
    return pl.concat(parts).select(*WATCHED)


def results(
    config: TuneConfig,
    given: Given,
    lines: list[curves.Line],
    made: Mapping[str, Any],
    faults: Mapping[str, Sequence[RowFault]],
) -> dict[str, Any]:
    """The contract of `results.json`. `faults`: by set, the rows that are left out or teach nothing."""
    early, last = curves.best(lines, config.metric), curves.epochs(lines)[-1]
    assert early is not None
    measuring = sum(line["measuring_seconds"] for line in lines)
    saving = sum(line["saving_seconds"] for line in lines)
    training = sum(line["seconds"] for line in lines) - measuring - saving
    return {
        "metric": config.metric,
        "epochs": last["epoch"],
        "steps": last["step"],
        "stopped_by_patience": last["epoch"] < config.epochs,
        "early_stop": {**_point(early), "folder": "early_stop"},
        "convergence": {**_point(last), "folder": "convergence"},
        "overfitting_epoch": curves.overfitting_epoch(lines),
        "ceiling": ceiling(given.train.rows)[0],
        "model": made["model"],
        "method": made["method"],
        "mix": mix_told(given.train.file),
        "data": {
            name: {
                "file": found.file,
                "rows": found.rows.height,
                "skipped": sum(found.left_out.values()),
                "left_out": dict(found.left_out),
                "fingerprint": fingerprint(found.rows),
                "digest": found.digest,
                "categories": found.categories or None,
                "row_faults": counts(faults.get(name, ())),
            }
            for name, found in given.sets.items()
        },
        "config": config.resolved(),
        "seconds": {"training": training, "measuring": measuring, "saving": saving},
        "rows_per_second": given.train.rows.height * last["epoch"] / training if training else 0.0,
        "version": foreknow.__version__,
    }


def mix_told(file: str) -> dict[str, Any] | None:
    """Of a training set that `foreknow mix` wrote: what it is a mix of, so that runs can be told apart and paired."""
    if not manifest_path(Path(file)).is_file():
        return None
    told = read_manifest(Path(file))
    audit = (told.get("audit") or {}).get("fingerprint")
    return {"audit": audit, **{key: told.get(key) for key in ("sha256", "kind", "share", "size", "seed", "known_of")}}


def _point(line: curves.Line) -> dict[str, Any]:
    known = curves.known_fitted(line)
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


def _endings(lines: list[curves.Line], metric: str) -> list[str]:
    early, last = curves.best(lines, metric), curves.epochs(lines)[-1]
    assert early is not None
    value = curves.flat(early)[metric]
    told = [f"EARLY_STOP: epoch {early['epoch']} ({metric} {value:.1%}); CONVERGENCE: epoch {last['epoch']}"]
    began = curves.overfitting_epoch(lines)
    return [*told, f"overfitting to new facts began at epoch {began}"] if began else told
