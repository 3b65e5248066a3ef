"""Collect what a study's runs measured in two frames, which every table is made from. Pure but for reading folders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.stages.study.grid import Run
from foreknow.stages.train import curves, selection
from foreknow.stages.train.result import TrainResult

RESULTS: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "kind": pl.String(),
    "share": pl.Float64(),
    "trained": pl.String(),
    "seed": pl.Int64(),
    "size": pl.Int64(),
    "epoch": pl.Int64(),
    "step": pl.Int64(),
    "set": pl.String(),
    "category": pl.String(),
    "rows": pl.Int64(),
    "correct": pl.Int64(),
    "early_stop": pl.Boolean(),
    "convergence": pl.Boolean(),
}
"""One row per run, epoch, set and category (`all`: every row). In the set train, the right rows are the fitted ones; in
`test_refused`, those that the model refuses. `size` is |D| of the variant; for D_Known it is that of the D it is made
from. `early_stop` and `convergence` say whether this epoch is the run's best, or last, one."""
OUTCOMES: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "seed": pl.Int64(),
    "point": pl.String(),
    "set": pl.String(),
    "row": pl.Int64(),
    "category": pl.String(),
    "group": pl.String(),
    "correct": pl.Boolean(),
}
"""One line per row at each of the two points (`early_stop`, `convergence`). `row` is its number in the set's file."""


def results_of(run: Run, size: int, lines: Iterable[dict[str, Any]], metric: str) -> pl.DataFrame:
    """Convert a run's lines of `metrics.jsonl` to `RESULTS`."""
    ends = curves.epochs(list(lines))
    best, last = selection.best(ends, metric), ends[-1]
    variant = run.variant
    found = []
    for line in ends:
        place = {
            **{"variant": variant.name, "kind": variant.kind, "share": variant.share, "trained": variant.trained},
            **{"seed": run.seed, "size": size, "epoch": int(line["epoch"]), "step": line["step"]},
            **{"early_stop": best is not None and line["step"] == best["step"], "convergence": line is last},
        }
        for name, of in line["counts"].items():
            counts = {"all": (of["correct"], of["rows"]), **of["by_category"]}
            found += [
                {
                    **place,
                    "set": name,
                    "category": category,
                    "rows": counts[category][1],
                    "correct": counts[category][0],
                }
                for category in ("all", *CATEGORIES)
                if category in counts
            ]
    return pl.DataFrame(found, schema=RESULTS)


def outcomes_of(run: Run, tuned: TrainResult) -> pl.DataFrame:
    """Return a run's watched rows at EARLY_STOP and CONVERGENCE (`OUTCOMES`), without those it was trained on."""
    rows = tuned.rows.select("set", "row", "category", "group")
    parts = [pl.DataFrame(schema=OUTCOMES)]
    for point in ("early_stop", "convergence"):
        step = tuned.results[point]["step"]
        at = tuned.outcomes.filter((pl.col("step") == step) & (pl.col("set") != curves.TRAIN))
        named = at.select("set", "row", "correct").join(rows, on=["set", "row"]).sort("set", "row")
        told = {"variant": pl.lit(run.variant.name), "seed": pl.lit(run.seed, pl.Int64), "point": pl.lit(point)}
        parts.append(named.with_columns(**told).select(*OUTCOMES))
    return pl.concat(parts)
