"""Open the folder of a finished study and read its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from foreknow import notebook
from foreknow.errors import InputError
from foreknow.io.csv_escape import table_of
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, verify
from foreknow.settings import read_settings
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.finished_run import FinishedRun, to_pandas

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class StudyResult(FinishedRun):
    """A finished study: a view of its folder."""

    @cached_property
    def results(self) -> pl.DataFrame:
        """Return the results of every run, epoch, set and category (`measurements.RESULTS`)."""
        return pl.read_parquet(self.folder / "results.parquet")

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """Return every watched row at the two points (`measurements.OUTCOMES`)."""
        return pl.read_parquet(self.folder / "outcomes.parquet")

    @cached_property
    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the paper's tables (`stages/study/tables.py`), as written to `tables/`."""
        files = sorted((self.folder / "tables").glob("*.csv"))
        return {path.stem: table_of(path.read_text(encoding="utf-8")) for path in files}

    @cached_property
    def relations(self) -> pl.DataFrame:
        """Return the relations, the score of a model that only guesses, and whether each is used (`data_split.py`)."""
        return table_of((self.folder / "relations.csv").read_text(encoding="utf-8"), "relation")

    @cached_property
    def audit(self) -> AuditResult:
        """Return the audit of the study's rows."""
        return open_audit(self.folder / "audit")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the study's settings from `config.yaml`; empty where only its results are left."""
        return read_settings(self.folder)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest: model, data, grid and cost."""
        found: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return found

    def to_pandas(self) -> pd.DataFrame:
        """Return the results as a pandas table."""
        return to_pandas(self.results)

    def __repr__(self) -> str:
        return f"StudyResult({self._sentence()}; {self._where()})"

    def _repr_html_(self) -> str:
        claims = self.tables["claims"].select("claim", "text", "verdict", "estimate", "ci_low", "ci_high")
        return notebook.card(
            "study", self._sentence(), notebook.table(claims.columns, claims.iter_rows()), notebook.note(self._where())
        )

    def _sentence(self) -> str:
        claims = self.tables["claims"]
        counts = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdict"].value_counts(sort=True).rows())
        return f"{self.manifest['model']['name']}: {claims.height} claims of the paper: {counts}"


def open_study(folder: str | Path) -> StudyResult:
    """Open a finished study's folder. Raises InputError where there is none, or where one of its files has changed."""
    folder = download(folder)
    files = verify(folder, partial=True).get("files", {}) if (folder / "manifest.json").is_file() else {}
    for name in ("manifest.json", "results.parquet", *(name for name in files if name == "outcomes.parquet")):
        if not (folder / name).is_file():
            raise InputError(not_finished(folder, "study", name))
    return StudyResult(folder)
