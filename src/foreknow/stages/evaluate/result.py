"""The result of an evaluation: a view of its run folder."""

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
    """A finished evaluation: a view of its run folder."""

    folder: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """One line per row (`metrics.ANSWERED`)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """EM, wrong answers, refusals, moves (`metrics.summarise_answers`), and what was asked of which model."""
        contents: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return contents


def open_evaluation(folder: str | Path) -> EvaluateResult:
    """A finished evaluation's folder. Raises InputError where there is none, or a file of it was changed since."""
    folder = download(folder)
    manifest = read_json(folder / "manifest.json") or {}
    if (folder / "manifest.json").is_file():
        verify(folder)
    if manifest.get("stage") != "evaluate" or not (folder / "rows.parquet").is_file():
        raise InputError(not_finished(folder, "evaluate"))
    return EvaluateResult(folder)
