"""Collect what the runs of a study of long answers measured, in two frames. Pure but for reading folders.

A span is *said* if the model would say each of its tokens, given the right text before it (`span_labels.py`). Labels
are those of the audit, before training: the three Known categories; `recognised` (Unknown in place, but recognised);
`new` (neither).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import polars as pl

from foreknow.categories import KNOWN, UNKNOWN
from foreknow.errors import InputError
from foreknow.stages.study.grid import Run
from foreknow.stages.study.measurements import RESULTS
from foreknow.stages.train import curves, selection
from foreknow.stages.train.result import TrainResult
from foreknow.stages.train.span_labels import NEW

RECOGNISED: Final = "recognised"
SPAN_RESULTS: Final[dict[str, pl.DataType]] = {
    **{("label" if name == "category" else name): kind for name, kind in RESULTS.items() if name != "trained"},
}
"""One row per run, epoch, set and label, as `measurements.RESULTS`; `rows` counts spans, `correct` those that are said.
`label` is all, a Known category, recognised or new."""
SPAN_OUTCOMES: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "seed": pl.Int64(),
    "point": pl.String(),
    "set": pl.String(),
    "row": pl.Int64(),
    "span": pl.Int64(),
    "label": pl.String(),
    "said": pl.Boolean(),
}
"""One line per labelled span of a set that is not trained on, at each of the two points."""


def span_results_of(run: Run, size: int, lines: Iterable[dict[str, Any]], metric: str) -> pl.DataFrame:
    """Convert a run's lines of `metrics.jsonl` to `SPAN_RESULTS`."""
    ends = curves.epochs(list(lines))
    best, last = selection.best(ends, metric), ends[-1]
    records = []
    for line in ends:
        place = {
            **{"variant": run.variant.name, "kind": run.variant.kind, "share": run.variant.share, "seed": run.seed},
            **{"size": size, "epoch": int(line["epoch"]), "step": line["step"]},
            **{"early_stop": best is not None and line["step"] == best["step"], "convergence": line is last},
        }
        for name, counts in line.get("spans", {}).items():
            unknown, new = counts.get(UNKNOWN, (0, 0)), counts.get(NEW, (0, 0))
            labels = {category: tuple(counts.get(category, (0, 0))) for category in KNOWN}
            labels |= {RECOGNISED: (unknown[0] - new[0], unknown[1] - new[1]), NEW: (new[0], new[1])}
            labels["all"] = (sum(said for said, _ in labels.values()), sum(total for _, total in labels.values()))
            records += [
                {**place, "set": name, "label": label, "rows": total, "correct": said}
                for label, (said, total) in labels.items()
                if total
            ]
    return pl.DataFrame(records, schema=SPAN_RESULTS)


def span_outcomes_of(run: Run, tuned: TrainResult) -> pl.DataFrame:
    """Return a run's held-out spans at EARLY_STOP and CONVERGENCE (`SPAN_OUTCOMES`).

    Raises InputError if none of its rows has a labelled span.
    """
    spans, fitted = tuned.spans, tuned.fitted_spans
    if spans is None or fitted is None:
        raise InputError(f"{tuned.folder}: found no spans.parquet; the audit labelled no span of its rows")
    label = (
        pl.when(pl.col("new"))
        .then(pl.lit(NEW))
        .when(pl.col("category") == UNKNOWN)
        .then(pl.lit(RECOGNISED))
        .otherwise(pl.col("category"))
    )
    labels = spans.select("set", "row", "span", label=label)
    parts = [pl.DataFrame(schema=SPAN_OUTCOMES)]
    for point in ("early_stop", "convergence"):
        step = tuned.results[point]["step"]
        at = fitted.filter((pl.col("step") == step) & (pl.col("set") != curves.TRAIN))
        named = at.join(labels, on=["set", "row", "span"]).sort("set", "row", "span").rename({"fitted": "said"})
        place = {"variant": pl.lit(run.variant.name), "seed": pl.lit(run.seed, pl.Int64), "point": pl.lit(point)}
        parts.append(named.with_columns(**place).select(*SPAN_OUTCOMES))
    return pl.concat(parts)
