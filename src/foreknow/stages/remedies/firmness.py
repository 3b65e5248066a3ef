"""Counts what each recipe keeps by how surely the model gave the answer before training. Pure.

All watched rows are HighlyKnown, so the greedy answer is right behind every set of exemplars. The sampled answers at
T = 0.5 (P_Correct of the audit; paper, section 2.2) still differ: of two such facts one may be right in all samples and
the other in half of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import polars as pl

from foreknow.stages.remedies.matching import Matched, estimate

BOUNDS: Final = (0.0, 0.7, 0.95, 1.0)
"""The bounds of the bins of the share of sampled answers that are right; the upper one is in the last bin only."""
FEWEST: Final = 5
"""A bin with fewer rows is not shown."""
FIRMNESS: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "learnt": pl.Float64(),
    "from": pl.Float64(),
    "to": pl.Float64(),
    "rows": pl.Int64(),
    "kept": pl.Float64(),
    "kept_low": pl.Float64(),
    "kept_high": pl.Float64(),
}
"""One row per recipe, share of the new facts learnt and bin (`from`, `to`: shares of sampled answers that were right
before training): known rows in the bin, and the share of them that is kept, with its 95 % interval."""


def kept_by_firmness(matched: Sequence[Matched], known: pl.DataFrame) -> pl.DataFrame:
    """Return what each recipe keeps by bin (`FIRMNESS`).

    `known`: the watched rows (row, p_sampled: 0 to 1, null where the audit did not sample). Rows without `p_sampled`
    are in no bin.
    """
    sampled = {row: p for row, p in known.select("row", "p_sampled").iter_rows() if p is not None}
    lines = []
    for one in matched:
        for low, high in pairwise(BOUNDS):
            last = high == BOUNDS[-1]
            columns = [
                n
                for n, row in enumerate(one.rows)
                if row in sampled and low <= sampled[row] and (sampled[row] < high or last)
            ]
            if len(columns) < FEWEST:
                continue
            kept = estimate([[line[n] for n in columns] for line in one.table])
            ends = [None if end is None else min(1.0, max(0.0, end)) for end in (kept.low, kept.high)]
            lines.append((one.recipe, one.target, low, high, len(columns), kept.value, *ends))
    return pl.DataFrame(lines, schema=FIRMNESS, orient="row")
