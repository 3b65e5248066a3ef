"""Reads the result of a finished evaluation from its run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from foreknow import notebook
from foreknow.errors import InputError
from foreknow.format.numbers import percent
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, read_json, verify
from foreknow.stages.finished_run import FinishedRun, to_pandas

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


@dataclass(frozen=True, repr=False)
class EvaluateResult(FinishedRun):
    """Reads the tables and the summary of a finished evaluation from its run folder."""

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Return the rows of the evaluation, one line per row (`metrics.ANSWERED`)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return EM, wrong answers, refusals and moves (`metrics.summarise_answers`), and which model was asked how."""
        contents: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return contents

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas table."""
        return to_pandas(self.rows)

    def plot(self) -> alt.LayerChart:
        """Return a chart of exact match with its intervals: all rows, and each category."""
        from foreknow.notebook_charts import em_chart  # keeps altair out

        return em_chart(self.summary["em"], self._matching)

    def __repr__(self) -> str:
        return f"EvaluateResult({self.summary['model']['name']}: {self._sentence()}; {self._where()})"

    def _repr_html_(self) -> str:
        em = self.summary["em"]
        parts = {"all rows": em["overall"], **em["by_category"]}
        lines = [
            (name, part[self._matching]["rows"], _percent(part[self._matching]["share"]))
            for name, part in parts.items()
        ]
        return notebook.card(
            f"evaluation of {self.summary['model']['name']}",
            self._sentence(),
            notebook.table(("rows of", "rows", "exact match"), lines),
            notebook.note(self._where()),
        )

    @property
    def _matching(self) -> str:
        return str(self.summary["protocol"]["match"])

    def _sentence(self) -> str:
        answers, overall = self.summary["answers"], self.summary["em"]["overall"][self._matching]
        return (
            f"{_percent(overall['share'])} of {self.summary['rows']:,} answers right, {answers['wrong']:,} wrong, "
            f"{answers['refused']:,} refused"
        )


def _percent(share: float | None) -> str:
    return "none" if share is None else percent(share)


def open_evaluation(folder: str | Path) -> EvaluateResult:
    """Open a finished evaluation's folder.

    Raises InputError if there is no finished evaluation, or if one of its files was changed since.
    """
    folder = download(folder)
    manifest = read_json(folder / "manifest.json") or {}
    if (folder / "manifest.json").is_file():
        verify(folder)
    if manifest.get("stage") != "evaluate" or not (folder / "rows.parquet").is_file():
        raise InputError(not_finished(folder, "evaluate"))
    return EvaluateResult(folder)
