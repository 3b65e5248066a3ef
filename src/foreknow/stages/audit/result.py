"""The result of an audit, read from its run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow import notebook
from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.data.spans.schema import is_new
from foreknow.errors import GateCrossed, InputError, RunFolderError
from foreknow.io.remote import download
from foreknow.io.run_dir import fingerprint, not_finished, read_checked, read_json, verify
from foreknow.prompts.prompt_template import Template
from foreknow.stages.audit.explain import Explanation, explain_row
from foreknow.stages.audit.verdict.figures import audit_figures
from foreknow.stages.finished_run import FinishedRun, to_pandas

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

MAIN_COLUMNS: Final = ("row", "question", "answer", "category", "p_greedy", "p_sampled", "model_answer", "flags")
"""The columns that stand first in `AuditResult.rows`: Polars prints the first and the last four."""

LONG_LABELS: Final = ("answer_tokens", "logprob", "logprob_alone", "n_facts", "unknown_facts", "facts_category")
"""Columns of the annotated file where rows have long answers or short facts of their own."""


@dataclass(frozen=True, repr=False)
class AuditResult(FinishedRun):
    """A finished audit. Its properties read the files of its run folder when they are first used."""

    @cached_property
    def rows(self) -> pl.DataFrame:
        """One line per input row: category, probabilities, flags (design, section 3), the main columns first."""
        rows = pl.read_parquet(self.folder / "rows.parquet")
        main = [name for name in MAIN_COLUMNS if name in rows.columns]
        return rows.select(*main, pl.exclude(main))

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        return to_pandas(self.rows)

    def plot(self) -> alt.Chart:
        """A chart of the categories' shares: all rows, and the groups with the largest Unknown share."""
        from foreknow.notebook_charts import category_chart  # keeps altair out

        return category_chart(self.rows)

    def explain(self, row: int) -> Explanation:
        """Why a row has its label: its prompts, the model's answers with their probabilities, the rule.

        `row`: the row's number (column `row`), or that of a short fact. Raises InputError if the audit has no such row.
        """
        for name in ("rows.parquet", "facts.parquet"):
            if lines := self._lines_of(name, row).to_dicts():
                probes = self._lines_of("probes.parquet", row)
                return explain_row(lines[0], probes, self._exemplars, self.summary["protocol"], self._template)
        numbers = self.rows["row"].to_list()
        few = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else "")
        raise InputError(f"{self.folder}: found no audited row {row}; `.rows['row']` has {few or 'none'}")

    def _lines_of(self, name: str, row: int) -> pl.DataFrame:
        """The lines of a file that belong to a row: of a large run, a small part of the file is read."""
        path = self.folder / name
        return pl.scan_parquet(path).filter(pl.col("row") == row).collect() if path.is_file() else pl.DataFrame()

    @cached_property
    def _exemplars(self) -> dict[str, Any]:
        exemplars: dict[str, Any] = json.loads((self.folder / "exemplars.json").read_text(encoding="utf-8"))
        return exemplars

    @cached_property
    def _template(self) -> Template:
        manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return Template(*manifest["identity"]["prompt_template"])

    @cached_property
    def digest(self) -> str:
        """A hash of the labelled questions, and of the spans of long answers with their labels."""
        spans = None if self.spans is None else fingerprint(self.spans)
        return fingerprint([fingerprint(self.rows.select("question", "answers", "category")), spans])

    def __repr__(self) -> str:
        return f"AuditResult({self._title()}: {self._shares()}; {self._where()})"

    def _repr_html_(self) -> str:
        verdict = audit_figures(self.rows, self.summary, self.facts, self.spans).verdict
        shares = self.summary["categories"]["overall"]
        return notebook.card(
            self._title(),
            verdict.headline,
            notebook.bar(shares) if self.summary["labelled"] else "",
            notebook.note(verdict.meaning),
            notebook.note(self._where()),
        )

    def _title(self) -> str:
        summary = self.summary
        return f"{summary['labelled']:,} of {summary['rows']:,} rows labelled with {summary['model']['name']}"

    def _shares(self) -> str:
        shares = self.summary["categories"]["overall"]
        return notebook.shares_text({name: shares[name] for name in CATEGORIES}) if self.summary["labelled"] else "none"

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
    """Open a finished audit's folder.

    Raises InputError if there is none, or one of another stage's run, and RunFolderError if a file was changed.
    """
    folder = download(folder)
    path = folder / "manifest.json"
    if not path.is_file() or (read_json(path) or {}).get("stage", "audit") != "audit":
        raise InputError(not_finished(folder, "audit"))
    verify(folder)
    if not (folder / "rows.parquet").is_file():
        raise InputError(not_finished(folder, "audit"))
    return AuditResult(folder)
