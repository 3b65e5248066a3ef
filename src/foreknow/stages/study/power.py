"""Compute what more seeds or more rows would let a study decide, from the errors that a pilot measured. Pure.

The squared error of a contrast has a part from the rows that are asked and a part from the seeds
(`Estimate.of_seeds`). S seeds instead of the pilot's S0 leave S0 / S of the latter; k times the rows leave 1 / k of the
former. A test at 5 % detects an effect of (t(97.5 %) + t(80 %)) standard errors four times in five, with Student's t at
the degrees of freedom of Satterthwaite: the rows are many, so the seeds alone limit them.

`decided_by` supposes that the pilot's figure is the true one, which a pilot of few seeds cannot promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import polars as pl

from foreknow.stages.study.contrasts import ContrastPart, Evidence

MOST_SEEDS: Final = 50
"""More seeds than this are not suggested."""
POWER: Final[dict[str, pl.DataType]] = {
    "claim": pl.Int64(),
    "part": pl.String(),
    "away": pl.Float64(),
    "detectable": pl.Float64(),
    "seeds_needed": pl.Int64(),
    "rows_needed": pl.Float64(),
    "decided_by": pl.String(),
}
"""A line for each part of each claim: the figure minus its reference in the pilot, the smallest such distance that the
planned study detects (both shares), the seeds that would detect the pilot's, how many times the rows that would with
`MOST_SEEDS` seeds (null where it is not needed or not known), and a sentence. A claim that the pilot cannot test has
one line, with the reason."""


def power(evidence: Mapping[int, Evidence | str], pilot_seeds: int, seeds: int) -> pl.DataFrame:
    """Return `POWER` for a study of `seeds` seeds on the pilot's rows.

    `evidence`: by the claim's number, its parts in the pilot or why it was not tested.
    """
    lines: list[dict[str, object]] = []
    for claim, found in evidence.items():
        if isinstance(found, str):
            lines.append({"claim": claim, "part": "", "decided_by": f"not tested: {found}"})
            continue
        for part in found.parts:
            needed, rows = seeds_to_detect(part, pilot_seeds), None
            if needed is None:
                rows = rows_to_detect(part, pilot_seeds)
            lines.append(
                {
                    "claim": claim,
                    "part": part.name,
                    "away": part.value - part.reference,
                    "detectable": detectable(part, pilot_seeds, seeds),
                    "seeds_needed": needed,
                    "rows_needed": rows,
                    "decided_by": _sentence(part, pilot_seeds, seeds, needed, rows),
                }
            )
    return pl.DataFrame(lines, schema=POWER)


def detectable(part: ContrastPart, pilot_seeds: int, seeds: int, rows: float = 1.0) -> float:
    """Return the smallest distance from the reference that `seeds` seeds and `rows` times the rows detect (share)."""
    from scipy.special import stdtrit

    of_rows, of_seeds = _variances(part, pilot_seeds, seeds, rows)
    variance = of_rows + of_seeds
    df = variance**2 / (of_seeds**2 / max(seeds - 1, 1)) if of_seeds > 0 else math.inf
    return float(stdtrit(df, 0.975) + stdtrit(df, 0.8)) * math.sqrt(variance)


def seeds_to_detect(part: ContrastPart, pilot_seeds: int) -> int | None:
    """Return the fewest seeds, from 2 on, that detect the pilot's own figure; None if `MOST_SEEDS` are too few."""
    away = abs(part.value - part.reference)
    return next((n for n in range(2, MOST_SEEDS + 1) if detectable(part, pilot_seeds, n) <= away), None)


def rows_to_detect(part: ContrastPart, pilot_seeds: int) -> float | None:
    """Return how many times the rows detect the pilot's own figure with `MOST_SEEDS` seeds; None if no number does."""
    away = abs(part.value - part.reference)
    for step in range(1, 41):
        times = 1.25**step
        if detectable(part, pilot_seeds, MOST_SEEDS, times) <= away:
            return times
    return None


def _variances(part: ContrastPart, pilot_seeds: int, seeds: int, rows: float) -> tuple[float, float]:
    """The squared errors that come from rows and from seeds."""
    whole = part.se**2
    return whole * (1 - part.of_seeds) / rows, whole * part.of_seeds * pilot_seeds / seeds


def _sentence(part: ContrastPart, pilot_seeds: int, seeds: int, needed: int | None, rows: float | None) -> str:
    if pilot_seeds < 2 and part.of_seeds < 1:
        return "a pilot of one seed shows nothing of the seeds: run two"
    side = "on its side" if part.support > 0 else "on the other side"
    if needed is not None and needed <= seeds:
        return f"{seeds} seeds, if the pilot's figure ({side}) is the true one"
    if needed is not None:
        return f"{needed} seeds instead of {seeds}, if the pilot's figure ({side}) is the true one"
    if rows is not None:
        return f"{rows:.1f} times the rows, with {MOST_SEEDS} seeds: the pilot's figure is near its reference"
    return "nothing that is affordable: the pilot's figure is too near its reference"
