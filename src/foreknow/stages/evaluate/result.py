"""Reads the result of a finished evaluation from its run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.errors import InputError
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, read_json, verify


@dataclass(frozen=True)
class EvaluateResult:
    """Reads the tables and the summary of a finished evaluation from its run folder."""

    folder: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Return the rows of the evaluation, one line per row (`metrics.ANSWERED`)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return EM, wrong answers, refusals and moves (`metrics.summarise_answers`), and which model was asked how."""
        contents: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return contents


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
