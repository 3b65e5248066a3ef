"""Estimates the cost of a study of remedies: measures one chunk of its audit and one burst of each kind of training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.config import AuditConfig, RemediesConfig, TuneConfig
from foreknow.config.shared import DataSettings
from foreknow.data.load import read_data
from foreknow.data.schema import USABLE
from foreknow.format.numbers import duration
from foreknow.io.run_dir import MANIFEST, RunDir
from foreknow.models.memory_plan import parameters_of
from foreknow.models.resolve import resolve
from foreknow.settings import settings_of
from foreknow.stages.audit import estimate as audit_estimate
from foreknow.stages.remedies.recipes import trainings, tune_settings
from foreknow.stages.remedies.run import audit_settings, identity_of, rates_of
from foreknow.stages.study.local_executor import finished
from foreknow.stages.train import estimate as tune_estimate

COLUMNS = ("question", "answers", "subject", "relation")


def estimate(config: RemediesConfig) -> dict[str, Any]:
    """Return the cost of a study by stage, at most: a run may end before its last epoch. Nothing is kept.

    Which rows are taught is known only after the audit, so any rows stand for them. What the study's folder has
    finished costs nothing. Raises InputError for rows that cannot be used, and RunFolderError if the folder holds
    another study.
    """
    model = resolve(config.model, trust_remote_code=bool(config.audit.get("trust_remote_code")), base=config.base)
    if config.out is not None and config.out.is_dir():
        RunDir(config.out).check_identity(identity_of(config, model.fingerprint), config.resolved())
    grid = trainings(config, rates_of(config, parameters_of(model.folder)))
    reading = {key: value for key, value in config.audit.items() if key in DataSettings.model_fields}
    rows = read_data(settings_of(DataSettings, {"data": config.data, **reading})).rows.filter(USABLE)
    rows = rows.unique("question", keep="first", maintain_order=True).select(*COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        probing = audit_estimate.estimate(settings_of(AuditConfig, audit_settings(config, folder)))
        count = min(config.facts, (rows.height + 1) // 2)  # of few rows, half stand for those that are watched
        taught = rows.head(count).with_columns(category=pl.lit(UNKNOWN))
        watched = rows.slice(count, config.held_out).with_columns(category=pl.lit(HIGHLY_KNOWN))
        files = {part: folder / f"{part}.jsonl" for part in ("new", "known")}
        taught.write_ndjson(files["new"])
        watched.write_ndjson(files["known"])
        given = {"train": str(files["new"]), "dev": str(files["known"]), "model": config.model, "base": config.base}
        own = {"canaries": "none", "average": (), "known_late": 0.0}
        measured = {}
        for one in grid:
            if one.training not in measured:
                settings = {**tune_settings(one, config), **given, **own, "allow_overlap": True}
                measured[one.training] = tune_estimate.estimate(settings_of(TuneConfig, settings))
    done = finished(config.out, [one.name for one in grid])
    seconds = {one.name: float(measured[one.training]["seconds"]) for one in grid if one.name not in done}
    is_audited = config.out is not None and (config.out / "audit" / MANIFEST).is_file()
    audit = 0.0 if is_audited else float(probing["seconds"])
    return {
        "rows_audited": probing["rows"],
        "trainings": len(grid),
        **({"trainings_finished": len(done)} if done else {}),
        "rows_of_a_training": count,
        "audit": "finished" if is_audited else duration(audit),
        "longest_training": duration(max(seconds.values(), default=0.0)),
        "memory_gib": max(float(one["memory_gib"]) for one in (probing, *measured.values())),
        "disk_gib": max(float(one["disk_gib"]) for one in measured.values()) * config.workers,
        "seconds": round(audit + sum(seconds.values()), 1),
        "time": f"at most {duration(audit + sum(seconds.values()))}, one run after the other; most runs end earlier",
    }
