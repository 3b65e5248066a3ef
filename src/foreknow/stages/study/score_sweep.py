"""Compare how well scores (SliCK, P(True)) find the facts a model will get wrong, threshold by threshold. Pure.

This is the comparison of the paper's section 4: a score calls every row at or below a threshold Unknown. x is the share
of test rows called Unknown, y the exact match on them after fine-tuning. At the same x, the better score has the lower
y. SliCK itself is one point; a continuous score is a curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.inference import slick

SWEEP: Final[dict[str, pl.DataType]] = {
    "score": pl.String(),
    "setting": pl.String(),
    "threshold": pl.Float64(),
    "share": pl.Float64(),
    "em": pl.Float64(),
    "rows": pl.Int64(),
    "correct": pl.Int64(),
}
"""One row per score, setting and threshold. A row is called Unknown where its score is at most `threshold`, which is
null for SliCK's own label. `share` and `em` are 0 to 1; `em` is null where no row is called Unknown. `rows` counts the
outcomes of rows called Unknown, and `correct` those that are right; a row tuned with several seeds counts once per
seed."""

BUDGETS: Final = ((10, 16), (8, 16), (6, 16), (4, 16), (2, 16), (1, 16), (10, 8), (10, 4), (10, 1))
"""Pairs of exemplar sets and samples of each for which SliCK is computed again. The first pair is the paper's."""


def curve(name: str, setting: str, scores: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """Sweep all thresholds of a score (`row, score`: the higher, the better known) over `outcomes` (`row, correct`).

    The frame has one line for every value of the score; the last calls all rows Unknown. Rows without a score, or
    with one that is not a number, are left out.
    """
    known = scores.select("row", pl.col("score").cast(pl.Float64)).filter(pl.col("score").is_not_nan())
    joined = outcomes.join(known, on="row")
    levels = joined.group_by("score").agg(pl.len().cast(pl.Int64).alias("rows"), correct=pl.col("correct").sum())
    swept = levels.sort("score").with_columns(pl.col("rows", "correct").cum_sum().cast(pl.Int64))
    return _framed(swept.rename({"score": "threshold"}), name, setting, joined.height)


def point(name: str, setting: str, unknown: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """Return the single line of a label (`row, unknown`), which has no threshold."""
    joined = outcomes.join(unknown.filter(pl.col("unknown").is_not_null()), on="row")
    called = joined.filter("unknown")
    line = pl.DataFrame(
        {"threshold": [None], "rows": [called.height], "correct": [int(called["correct"].sum())]},
        schema={"threshold": pl.Float64(), "rows": pl.Int64(), "correct": pl.Int64()},
    )
    return _framed(line, name, setting, joined.height)


def _framed(lines: pl.DataFrame, name: str, setting: str, total: int) -> pl.DataFrame:
    rows = pl.col("rows")
    return lines.with_columns(
        score=pl.lit(name),
        setting=pl.lit(setting),
        share=rows / total if total else pl.lit(0.0),
        em=pl.when(rows > 0).then(pl.col("correct") / rows),
    ).select(pl.col(column).cast(kind) for column, kind in SWEEP.items())


def compare(
    outcomes: pl.DataFrame,
    probes: pl.DataFrame,
    scores: Mapping[str, pl.DataFrame],
    *,
    budgets: Iterable[tuple[int, int]] = BUDGETS,
    lenient: bool = False,
) -> pl.DataFrame:
    """Sweep every score on the same rows (`SWEEP`).

    `outcomes`: row, correct, of the test rows after tuning on the natural mix (`at_point`). `probes`: the audit's
    probes (`slick.PROBES`). `scores`: frames of `row, score` by name, such as P(True) and lift. SliCK's label and
    `p_hit` are computed from the probes for each of `budgets` (sets, samples); budgets with more sets than were
    probed are left out. Rows that lack any of the scores are left out everywhere.
    """
    sets = probes["exemplar_set"].n_unique()
    common = outcomes.select("row").unique().join(probes.select("row").unique(), on="row")
    for one in scores.values():
        common = common.join(one.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan()), on="row").select(
            "row"
        )
    rows = outcomes.join(common, on="row", how="semi")
    found = [curve(name, "", one, rows) for name, one in scores.items()]
    some = probes.join(common, on="row", how="semi")
    for count, samples in budgets:
        if count > sets:
            continue
        labels = slick.relabel(some, sets=count, samples=samples, lenient=lenient)
        setting = f"{count} sets x {samples} samples"
        unknown = labels.select("row", unknown=pl.col("category") == UNKNOWN)
        found.append(point("SliCK", setting, unknown, rows))
        # rows with a right greedy answer are known whatever their samples are; p_hit alone would rank some lower
        score = pl.col("p_hit") + (pl.col("p_greedy") > 0)
        found.append(curve("p_hit", setting, labels.select("row", score=score), rows))
    return pl.concat(found) if found else pl.DataFrame(schema=SWEEP)


def at_point(
    outcomes: pl.DataFrame, *, variant: str = "natural", point: str = "convergence", name: str = "test"
) -> pl.DataFrame:
    """Return `row, correct` of one variant, point and set of a study's `outcomes.parquet`: a line per row and seed."""
    wanted = (pl.col("variant") == variant) & (pl.col("point") == point) & (pl.col("set") == name)
    return outcomes.filter(wanted).select("row", "correct")


def em_at(swept: pl.DataFrame, share: float) -> float | None:
    """Return the EM of one curve (a score and setting of `SWEEP`) where `share` of the rows are called Unknown.

    Ties are broken at random: between two thresholds, the rows of the upper one count in part, as their
    expectation. Returns None where the share is 0 or the curve is empty.
    """
    lines = swept.sort("share").select("share", "rows", "correct").rows()
    if not lines or share <= 0:
        return None
    wanted = min(share, 1.0) * lines[-1][1] / lines[-1][0]
    below_rows, below_right = 0.0, 0.0
    for _, rows, right in lines:
        if rows >= wanted - 1e-9:
            part = (wanted - below_rows) / (rows - below_rows)
            return float((below_right + part * (right - below_right)) / wanted)
        below_rows, below_right = rows, right
    return float(below_right / below_rows) if below_rows else None
