"""Open the folder of a finished study of long answers and read its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.errors import InputError
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, verify
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.finished_run import FinishedRun
from foreknow.stages.study.long_claims import long_scorecard, remedy_table

STAGE = "long study"
"""What the manifest of such a study names as its stage."""


@dataclass(frozen=True, repr=False)
class LongStudyResult(FinishedRun):
    """A finished study of long answers: a view of its folder."""

    @cached_property
    def results(self) -> pl.DataFrame:
        """Return the counts of every run, epoch, set and label (`long_measurements.SPAN_RESULTS`)."""
        return pl.read_parquet(self.folder / "results.parquet")

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """Return every held-out span at the two points (`long_measurements.SPAN_OUTCOMES`)."""
        return pl.read_parquet(self.folder / "outcomes.parquet")

    @cached_property
    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the scorecard (`claims`) and the comparison of remedies (`remedies`), computed from the results."""
        remedies, margin = tuple(self.settings["remedies"]), float(self.settings["margin"])
        return {
            "claims": long_scorecard(self.results, self.outcomes, remedies, margin),
            "remedies": remedy_table(self.results, self.outcomes),
        }

    @cached_property
    def audit(self) -> AuditResult:
        """Return the audit of the study's rows."""
        return open_audit(self.folder / "audit")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that decide what the study measures (its identity)."""
        settings: dict[str, Any] = self.manifest["identity"]
        return settings

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest: model, data, grid and cost."""
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest


def open_long_study(folder: str | Path) -> LongStudyResult:
    """Open a finished study's folder. Raises InputError where there is none, or where one of its files has changed."""
    folder = download(folder)
    for name in ("manifest.json", "results.parquet"):
        if not (folder / name).is_file():
            raise InputError(not_finished(folder, STAGE, name))
    if "spans" not in verify(folder, partial=True):
        raise InputError(
            f"{folder / 'manifest.json'}: found no counts of the audit's spans; delete this file and give the command "
            "of the study again"
        )
    return LongStudyResult(folder)
