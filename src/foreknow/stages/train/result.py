"""Reads the result of a training run from its run folder, and defines the columns of its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow import notebook
from foreknow.errors import InputError
from foreknow.format.numbers import percent
from foreknow.io.remote import download
from foreknow.io.run_dir import not_finished, verify
from foreknow.stages.finished_run import FinishedRun, to_pandas
from foreknow.stages.train import curves

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

EARLY_STOP: Final = "early_stop"
"""The folder with the weights of the best epoch (paper, section 3)."""
CONVERGENCE: Final = "convergence"
"""The folder with the weights of the last epoch."""


def weight_folders(keep: str) -> tuple[str, ...]:
    """Return the folders of weights that a run with `--keep` best, last or both has."""
    return {"best": (EARLY_STOP,), "last": (CONVERGENCE,), "both": (EARLY_STOP, CONVERGENCE)}[keep]


OUTCOMES: Final[dict[str, pl.DataType]] = {
    "epoch": pl.Float64(),
    "step": pl.Int64(),
    "set": pl.String(),
    "row": pl.Int64(),
    "correct": pl.Boolean(),
    "lenient": pl.Boolean(),
}
"""The contract of `outcomes.parquet`: one line per evaluation and measured row. A row of the set `train` is right if it
is fitted. `correct` follows `--match`; `lenient` is null if `--match` is strict. At the best and at the last epoch more
rows may be measured than at the others (`all_rows.py`)."""


def outcomes_at(line: curves.Line, outcomes: pl.DataFrame, *, lenient: bool) -> pl.DataFrame:
    """Return the outcomes of one measurement (`tracker.OUTCOMES`) as `OUTCOMES`, with the epoch and step of its line.

    `lenient`: `--match` is lenient.
    """
    right = pl.col("lenient" if lenient else "correct").alias("correct")
    place = {"epoch": pl.lit(float(line["epoch"])), "step": pl.lit(line["step"], pl.Int64)}
    return outcomes.select("set", "row", right, "lenient").with_columns(**place).select(*OUTCOMES)


WATCHED: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "row": pl.Int64(),
    "group": pl.String(),
    "category": pl.String(),
    "question": pl.String(),
    "answer": pl.String(),
}
"""The contract of `rows.parquet`: the rows to which `outcomes.parquet` refers. `answer` is the gold."""


@dataclass(frozen=True, repr=False)
class TrainResult(FinishedRun):
    """Reads the tables and results of a finished run from its folder."""

    @cached_property
    def results(self) -> dict[str, Any]:
        """Return the best and the last epoch with their metrics, the model, the data and the settings."""
        contents: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return contents

    @cached_property
    def metrics(self) -> list[curves.Line]:
        """Return one line per evaluation (`curves.py`)."""
        return read_metrics(self.folder)

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """Return the outcome of every watched row at every evaluation (`OUTCOMES`)."""
        return pl.read_parquet(self.folder / "outcomes.parquet")

    @cached_property
    def spans(self) -> pl.DataFrame | None:
        """Return the labelled spans of all sets (`set` and `span_labels.WATCHED_SPANS`); None without any."""
        path = self.folder / "spans.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def fitted_spans(self) -> pl.DataFrame | None:
        """Return whether each labelled span is fitted, at every evaluation (`span_labels.FITTED`); None without any."""
        path = self.folder / "fitted_spans.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Return the watched rows themselves (`WATCHED`)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @property
    def best(self) -> Path:
        """Return the folder with the weights of the best epoch; of the last one if only these were kept.

        Raises InputError for a training that KnowledgeCallback watched: its trainer kept the weights.
        """
        folder = self.results["early_stop"]["folder"] or self.results["convergence"]["folder"]
        if folder is None:
            raise InputError(f"{self.folder}: holds no weights; they are where the trainer saved its checkpoints")
        return self.folder / str(folder)

    def to_pandas(self) -> pd.DataFrame:
        """Return the metrics of every evaluation as a pandas table, one line each, one column a metric."""
        return to_pandas([{"epoch": line["epoch"], "step": line["step"], **curves.flat(line)} for line in self.metrics])

    def plot(self) -> alt.Chart:
        """Return a chart of what is fitted and answered right, by epoch."""
        from foreknow.notebook_charts import epochs_chart  # keeps altair out

        return epochs_chart(self.metrics)

    def __repr__(self) -> str:
        return f"TrainResult({self.results['model']['name']}: {self._sentence()}; {self._where()})"

    def _repr_html_(self) -> str:
        lines = []
        for name, key in (("best epoch", EARLY_STOP), ("last epoch", CONVERGENCE)):
            metrics = self.results[key]["metrics"]
            shares = "; ".join(f"{name} {percent(share)}" for name, share in metrics["em"].items())
            fitted = "; ".join(f"{name} {percent(share)}" for name, share in metrics["fitted"].items())
            lines.append((name, metrics["epoch"], shares, fitted, self.results[key]["folder"] or "not kept"))
        return notebook.card(
            f"training of {self.results['model']['name']}",
            self._sentence(),
            notebook.table(("", "epoch", "exact match", "train rows fitted", "weights"), lines),
            notebook.note(self._where()),
        )

    def _sentence(self) -> str:
        best, last = self.results[EARLY_STOP]["metrics"], self.results[CONVERGENCE]["metrics"]
        shares = [
            f"{name} EM {percent(share)}"
            + ("" if best["epoch"] == last["epoch"] else f" (last epoch {percent(last['em'][name])})")
            for name, share in best["em"].items()
        ]
        return f"best epoch {best['epoch']:g} of {last['epoch']:g}: {', '.join(shares) or 'no set was measured'}"


def open_train(folder: str | Path) -> TrainResult:
    """Open a finished run's folder. Raises InputError if there is none, or if one of its files was changed since."""
    folder = download(folder)
    if (folder / "manifest.json").is_file():
        verify(folder)
    if not (folder / "manifest.json").is_file() or not (folder / "results.json").is_file():
        raise InputError(not_finished(folder, "tune"))
    return TrainResult(folder)


def read_metrics(folder: Path) -> list[curves.Line]:
    """Return the evaluations of a run so far."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
