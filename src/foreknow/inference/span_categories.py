"""Makes the figures and the category of a span from its scores behind all exemplar sets. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from foreknow.data.spans.schema import SPANS
from foreknow.inference import slick


def with_categories(lines: Sequence[dict[str, Any]], samples: int) -> pl.DataFrame:
    """Return lines as a frame `SPANS`, with the figures and the category of those that have `probes`."""
    probes = pl.DataFrame(
        [(n, greedy, p) for n, line in enumerate(lines) for greedy, p in line.get("probes", ())],
        schema={"line": pl.Int64, "greedy": pl.Boolean, "p": pl.Float64},
        orient="row",
    )
    figures = (
        probes.group_by("line")
        .agg(p_greedy=pl.col("greedy").mean(), p_sampled=pl.col("p").mean(), p_hit=slick.p_hit(pl.col("p"), samples))
        .with_columns(category=slick.category(pl.col("p_greedy"), pl.col("p_hit")))
    )
    labelled = {name: kind for name, kind in SPANS.items() if name not in figures.columns}
    frame = pl.DataFrame([{name: line.get(name) for name in labelled} for line in lines], schema=labelled)
    numbered = frame.with_columns(line=pl.int_range(pl.len(), dtype=pl.Int64))
    return numbered.join(figures, on="line", how="left").select(list(SPANS)).sort("row", "start")


def recognition(golds: Sequence[float], alternatives: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Compare a span with its alternatives: `rank`, `recognised`, `p_recognised` and the number of `alternatives`.

    `golds`: the span's log p behind each set; `alternatives`: those of each alternative, in the same order.
    """
    gold = math.fsum(golds) / len(golds)
    others = [math.fsum(values) / len(golds) for values in zip(*alternatives, strict=True)]
    largest = max(gold, *others)
    weights = [math.exp(value - largest) for value in (gold, *others)]
    rank = 1 + sum(other >= gold for other in others)
    return {
        "recognised": rank == 1,
        "p_recognised": weights[0] / math.fsum(weights),
        "rank": rank,
        "alternatives": len(others),
    }
