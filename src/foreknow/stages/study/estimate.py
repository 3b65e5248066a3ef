"""Estimate the cost of a study: measure one chunk of its audit and one burst of its training. Nothing is kept.

Where the study's folder has finished runs or its audit already, they are counted and cost nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from foreknow.config import AuditConfig, TuneConfig
from foreknow.format.numbers import duration
from foreknow.io.run_dir import MANIFEST
from foreknow.settings import settings_of
from foreknow.stages.audit import estimate as audit_estimate
from foreknow.stages.study.data_split import SPLITS
from foreknow.stages.study.grid import Run, runs
from foreknow.stages.study.local_executor import finished
from foreknow.stages.study.long_grid import long_runs
from foreknow.stages.study.long_run import long_kind, write_records
from foreknow.stages.study.run import kind
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.setup import audit_settings, check_folder, read_rows
from foreknow.stages.study.stored_runs import stored_runs
from foreknow.stages.train import estimate as tune_estimate


def estimate_long(config: StudyConfig) -> dict[str, Any]:
    """Return the cost of a study of long answers by stage.

    The size of a set is known only after the audit, so without `size` a quarter of the train rows is assumed. A remedy
    is taken to train on as many rows as its D, so that the cost is an upper bound. Raises InputError for rows that
    cannot be used, and RunFolderError if the study's folder holds another study.
    """
    rows = read_rows(config)
    train = rows.filter(pl.col("split") == "train")
    size = min(config.size or max(1, train.height // 4), train.height)
    grid = long_runs(config)
    check_folder(config, rows, long_kind())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(rows, folder / "data.jsonl")
        probing = audit_estimate.estimate(settings_of(AuditConfig, audit_settings(config, folder)))
        parts = {"train": train.sample(size, seed=0)}
        parts |= {part: rows.filter(pl.col("split") == split) for part, split in SPLITS.items() if part != "train"}
        files = {part: folder / f"{part}.jsonl" for part, own in parts.items() if own.height}
        for part, file in files.items():
            parts[part].select("question", "answers", "subject").write_ndjson(file)
        given: dict[str, Any] = {"train": str(files["train"]), "dev": str(files["dev"])}
        given |= {"model": config.model, "base": config.base}
        given["test"] = {"test": str(files["test"])} if "test" in files else {}
        settings = {**config.long_tune_settings, **given, "allow_overlap": True}
        tuning = tune_estimate.estimate(settings_of(TuneConfig, settings))
    done = finished(config.out, [one.name for one in grid])
    left = len(grid) - len(done)
    cost = _cost(config, probing, tuning, size, Left(len(grid), left, float(left)), "at most ")
    return {"long_answers": probing["long_answers"], **cost}


def estimate(config: StudyConfig) -> dict[str, Any]:
    """Return the cost of a study by stage.

    |D| is known only after the audit, so without `size` a quarter of the train rows is assumed.
    Raises InputError for rows that cannot be used, and RunFolderError if the study's folder holds another study.
    """
    rows = read_rows(config)
    train = rows.filter(pl.col("split") == "train")
    size = min(config.size or max(1, train.height // 4), train.height)
    grid = runs(config)
    check_folder(config, rows, kind())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.write_ndjson(folder / "data.jsonl")
        probing = audit_estimate.estimate(settings_of(AuditConfig, audit_settings(config, folder)))
        parts = {"train": train.sample(size, seed=0), "dev": rows.filter(pl.col("split") == "dev")}
        parts |= {n: rows.filter(pl.col("split") == s) for n, s in (("test", "test"), ("ood", "test_ood"))}
        files = {n: folder / f"{n}.jsonl" for n, part in parts.items() if part.height}
        for n, file in files.items():
            parts[n].write_ndjson(file)
        tests = {n: str(file) for n, file in files.items() if n in ("test", "ood")}
        given = {
            "train": str(files["train"]),
            "dev": str(files["dev"]),
            "test": tests,
            "model": config.model,
            "base": config.base,
        }
        tuning = tune_estimate.estimate(
            settings_of(TuneConfig, {**config.tune_settings, **given, "allow_overlap": True})
        )
    done = finished(config.out, [one.name for one in grid])
    done |= set(stored_runs(config.out)) if config.out else set()
    left = [one for one in grid if one.name not in done]
    cost = _cost(config, probing, tuning, size, Left(len(grid), len(left), sum(map(_work, left))))
    if config.p_true:
        cost["p_true"] = f"{probing['rows']:,} rows, a long prompt each: not in the time (--no-p-true leaves it out)"
    return {"rows_audited": probing["rows"], **cost}


class Left(NamedTuple):
    """How many runs a study has, how many of them are left, and `work`: how many runs on whole sets these equal."""

    runs: int
    left: int
    work: float


def _work(one: Run) -> float:
    """Return the share of a whole set that a run trains on: D_Known has only the Known rows."""
    return 1 - (one.variant.share or 0.0) if one.variant.kind == "known" else 1.0


def _cost(
    config: StudyConfig,
    probing: Mapping[str, Any],
    tuning: Mapping[str, Any],
    size: int,
    left: Left,
    bound: str = "",
) -> dict[str, Any]:
    """Return the cost of the runs that are left from the estimates of the audit and of one run.

    `size`: rows of a set. `bound`: words before the time.
    """
    epochs = int(tuning["epochs"])
    training = float(tuning["seconds_training_an_epoch"]) * epochs * left.work
    measuring = float(tuning["seconds_measuring_an_epoch"]) * epochs * left.left
    is_audited = config.out is not None and (config.out / "audit" / MANIFEST).is_file()
    audit = 0.0 if is_audited else float(probing["seconds"])
    seconds = audit + training + measuring
    return {
        "runs": left.runs,
        **({"runs_finished": left.runs - left.left} if left.left < left.runs else {}),
        "rows_of_a_set": size if config.size else f"{size:,} (guessed: known after the audit)",
        "epochs": epochs,
        "audit": "finished" if is_audited else duration(audit),
        "training": duration(training),
        "measuring": duration(measuring),
        "memory_gib": max(float(probing["memory_gib"]), float(tuning["memory_gib"])),
        "disk_gib": tuning["disk_gib"] * (left.left if config.keep_weights else config.workers),
        "seconds": round(seconds, 1),
        "time": f"{bound}{duration(seconds)}, one run after the other",
    }
