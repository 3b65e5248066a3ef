"""Reads a finished audit, evaluation or tune run as outcomes by row, so that runs can be held beside each other.

The outcome of a row is whether the answer is right: of an evaluation the model's, of a tune run that of the weights it
kept (a row of a test or dev set), by the matching of the run. Of an audit it is whether the row is Known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.data.schema import GOLD
from foreknow.settings import read_settings
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.evaluate.result import EvaluateResult, open_evaluation
from foreknow.stages.finished_run import read_by_stage
from foreknow.stages.train.result import TrainResult, open_train

OUTCOMES: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "question": pl.String(),
    "answer": pl.String(),
    "copy": pl.Int64(),
    "group": pl.String(),
    "category": pl.String(),
    "correct": pl.Boolean(),
}
"""One line per row with an outcome. `set`: the set of a tune run, otherwise "". `copy`: 0 for the first row of a set
with this question and gold answer, 1 for the second, ...: the first four columns tell a row from all others."""
KEY: Final = ("set", "question", "answer", "copy")
NOT_COMPARED: Final = ("out", "ray_address", "ray_workers", "report_to", "dry_run", "save_every")
"""Settings that change no result."""


@dataclass(frozen=True)
class RunOutcomes:
    """A finished run. `rows`: a frame `OUTCOMES`. `kept`: the epoch whose weights a tune run kept. `settings`: its
    resolved settings, and its model, number format, device and version, as texts. `not_known`: rows without outcome."""

    name: str
    stage: str
    model: str
    rows: pl.DataFrame
    settings: Mapping[str, Any]
    kept: float | None = None
    not_known: int = 0


def read_run(folder: str | Path) -> RunOutcomes:
    """Read a finished audit, evaluation or tune run. Raises InputError for any other folder."""
    readers: Mapping[str, Callable[[Path], RunOutcomes]] = {
        "audit": lambda path: of_audit(open_audit(path)),
        "evaluate": lambda path: of_evaluation(open_evaluation(path)),
        "tune": lambda path: of_train(open_train(path)),
    }
    return read_by_stage(folder, readers)


def of_audit(audit: AuditResult) -> RunOutcomes:
    """The rows of an audit that have a category; a row is right if it is Known."""
    rows = audit.rows.drop_nulls("category").with_columns(correct=pl.col("category") != UNKNOWN)
    return RunOutcomes(
        name=audit.folder.resolve().name,
        stage="audit",
        model=str(audit.summary["model"]["name"]),
        rows=_outcomes(rows),
        settings=_settings(audit.folder, audit.summary),
        not_known=audit.rows.height - rows.height,
    )


def of_evaluation(evaluation: EvaluateResult) -> RunOutcomes:
    """The rows of an evaluation whose answer is known, by the matching of the run."""
    lenient = evaluation.summary["protocol"]["match"] == "lenient"
    correct = pl.col("correct_lenient" if lenient else "correct")
    rows = evaluation.rows.with_columns(correct=correct).drop_nulls("correct")
    return RunOutcomes(
        name=evaluation.folder.resolve().name,
        stage="evaluate",
        model=str(evaluation.summary["model"]["name"]),
        rows=_outcomes(rows.with_columns(answer=GOLD)),
        settings=_settings(evaluation.folder, evaluation.summary),
        not_known=evaluation.rows.height - rows.height,
    )


def of_train(train: TrainResult) -> RunOutcomes:
    """The dev and test rows of a tune run with the weights that it kept: of the best epoch, else of the last one."""
    results = train.results
    key = "early_stop" if results["early_stop"]["folder"] or not results["convergence"]["folder"] else "convergence"
    step = results[key]["metrics"]["step"]
    lenient = results["config"]["match"] == "lenient"
    outcomes = train.outcomes.filter(pl.col("step") == step, pl.col("set") != "train")
    correct = outcomes.select("set", "row", correct="lenient" if lenient else "correct")
    rows = train.rows.join(correct.unique(["set", "row"]), on=["set", "row"], how="inner", maintain_order="left")
    return RunOutcomes(
        name=train.folder.resolve().name,
        stage="tune",
        model=str(results["model"]["name"]),
        rows=_outcomes(rows),
        settings=_settings(train.folder, results),
        kept=float(results[key]["metrics"]["epoch"]),
    )


def _outcomes(rows: pl.DataFrame) -> pl.DataFrame:
    frame = rows if "set" in rows.columns else rows.with_columns(set=pl.lit(""))
    copy = pl.int_range(pl.len(), dtype=pl.Int64).over("set", "question", "answer")
    return frame.with_columns(copy=copy).select(pl.col(name).cast(kind) for name, kind in OUTCOMES.items())


def _settings(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as short texts; paths by their last part, so that a page shows no folder of the machine."""
    config = read_settings(folder, needed=True)
    model = dict(summary.get("model") or {})
    how = summary.get("protocol") or summary.get("method") or {}
    found = {key: value for key, value in config.items() if key not in NOT_COMPARED}
    found |= {"model's fingerprint": str(model.get("fingerprint") or "")[:19]}
    found |= {"number format": how.get("dtype"), "device": how.get("device"), "version": summary.get("version")}
    return {key: _text(value) for key, value in found.items()}


def _text(value: Any) -> str:
    """A setting as one line."""
    if value is None or value in ({}, [], ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    text = str(value)
    return PurePath(text).name if text.startswith(("/", "~", ".")) or "\\" in text else text
