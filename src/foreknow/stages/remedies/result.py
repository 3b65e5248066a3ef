"""Opens the folder of a finished study of remedies and reads its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl

from foreknow.config import RemediesConfig
from foreknow.errors import InputError
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, verify
from foreknow.settings import read_settings, settings_of
from foreknow.stages.finished_run import FinishedRun

STAGE: Final = "remedies"
"""The stage's name in its manifest."""


@dataclass(frozen=True, repr=False)
class RemediesResult(FinishedRun):
    """A finished study of remedies: a view of its folder."""

    @cached_property
    def points(self) -> pl.DataFrame:
        """Return every recipe's curves (`points.POINTS`)."""
        return pl.read_parquet(self.folder / "points.parquet")

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """Return each watched row at each point (`points.OUTCOMES`)."""
        return pl.read_parquet(self.folder / "outcomes.parquet")

    @cached_property
    def costs(self) -> pl.DataFrame:
        """Return what each training cost (`points.COSTS`)."""
        return pl.read_parquet(self.folder / "costs.parquet")

    @cached_property
    def known(self) -> pl.DataFrame:
        """Return the known rows that are watched (`points.KNOWN`)."""
        return pl.read_parquet(self.folder / "known.parquet")

    @cached_property
    def retrieval(self) -> dict[str, Any]:
        """Return how many facts the base model answers with the fact in the prompt (`retrieval.py`)."""
        contents: dict[str, Any] = json.loads((self.folder / "retrieval.json").read_text(encoding="utf-8"))
        return contents

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """Return the comparison and the recommendation (`comparison.py`), as written to `comparison.json`."""
        contents: dict[str, Any] = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
        return contents

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the study's settings from `config.yaml`; empty where only its results are left."""
        return read_settings(self.folder)

    def config(self) -> RemediesConfig:
        """Return the settings that the recipes depend on, also where only the results are left.

        The prompt template is then missing, because the results hold its text and not its file.
        """
        identity = self.manifest["identity"]
        own = {key: identity[key] for key in ("epochs", "known_late_epochs", "kl")}
        tune = self.settings.get("tune") or {**identity["tune"], "prompt_template": None}
        return settings_of(RemediesConfig, {"data": "", **own, "tune": tune})

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest: model, sets, grid and cost."""
        contents: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return contents


def open_remedies(folder: str | Path) -> RemediesResult:
    """Open a finished study's folder. Raises InputError where there is none, or where one of its files has changed."""
    folder = download(folder)
    if (folder / "manifest.json").is_file():
        verify(folder, partial=True)
    for name in (
        "manifest.json",
        "points.parquet",
        "outcomes.parquet",
        "costs.parquet",
        "known.parquet",
        "retrieval.json",
    ):
        if not (folder / name).is_file():
            raise InputError(not_finished(folder, STAGE, name))
    return RemediesResult(folder)
