"""The result of an audit, read from its run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.data.spans.schema import is_new
from foreknow.errors import GateCrossed, InputError, RunFolderError
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, read_checked, verify


@dataclass(frozen=True)
class AuditResult:
    """A finished audit. Its properties read the files of its run folder when they are first used."""

    folder: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """One line per input row: category, probabilities, flags (design, section 3)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def facts(self) -> pl.DataFrame | None:
        """One line per short fact that rows brought along, if any did: as `rows`, with `parent` and `fact`."""
        path = self.folder / "facts.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def spans(self) -> pl.DataFrame | None:
        """One line per labelled span inside long answers (`spans.schema.SPANS`), if the audit labelled any."""
        path = self.folder / "spans.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @property
    def new_spans(self) -> pl.DataFrame:
        """The spans that are new to the model, one a line: row, question, text, type, and its places in the answer.

        Raises InputError if the audit has no labels of spans.
        """
        if self.spans is None:
            raise InputError(f"{self.folder}: found no labels of spans inside long answers (spans.parquet)")
        questions = self.rows.select("row", "question")
        new = self.spans.filter(is_new()).join(questions, on="row", how="left", maintain_order="left")
        return new.select("row", "question", "text", "type", "start", "end")

    @cached_property
    def chance(self) -> dict[str, Any] | None:
        """What guessing would score (`chance_probe.summarise_chance`); None if `--chance` was not used."""
        return _read_optional(self.folder / "chance.json", "foreknow audit --chance")

    @cached_property
    def forecast(self) -> dict[str, Any] | None:
        """The forecast of training on a mix of these rows; None if `foreknow forecast` was not run."""
        return _read_optional(self.folder / "forecast.json", "foreknow forecast")

    @cached_property
    def probes(self) -> pl.DataFrame:
        """One line per row and exemplar set (`slick.PROBES`)."""
        return pl.read_parquet(self.folder / "probes.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, shares, protocol, model, cost."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return summary

    def gate(self, max_unknown: float | None) -> None:
        """Raise GateCrossed if a larger share of the labelled rows than `max_unknown` is Unknown."""
        share = self.summary["categories"]["overall"][UNKNOWN]
        if max_unknown is not None and share > max_unknown:
            raise GateCrossed(
                f"--max-unknown {max_unknown}: {share:.1%} of the labelled rows are Unknown; all outputs are in "
                f"{self.folder}"
            )


def _read_optional(path: Path, command: str) -> dict[str, Any] | None:
    """Read a file that `command` adds to a finished audit; None if absent. Raises InputError if it was changed."""
    try:
        return read_checked(path)
    except RunFolderError:
        raise InputError(f"{path}: damaged or edited; delete it and run {command} again") from None


def open_audit(folder: str | Path) -> AuditResult:
    """Open a finished audit's folder. Raises InputError if there is none, and RunFolderError if a file was changed."""
    folder = download(folder)
    if not (folder / "manifest.json").is_file():
        raise InputError(not_finished(folder, "audit"))
    verify(folder)
    if not (folder / "rows.parquet").is_file():
        raise InputError(not_finished(folder, "audit"))
    return AuditResult(folder)
