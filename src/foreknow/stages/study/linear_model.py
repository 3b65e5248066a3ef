"""Fit the paper's linear model of a study (section 4): accuracy from the Known and Unknown rows fitted so far. Pure.

    Accuracy = b0 + b_kn * N_kn / |D| + b_unk * N_unk / |D|

N_kn and N_unk count the Known and Unknown train rows fitted at an epoch. |D| is the variant's full size; for D_Known it
is the size of the D it was made from. Each epoch of each run of the kinds `shares` and `known` gives one point. All
figures here are shares, 0 to 1: the paper's 36.9 is 0.369.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.categories import KNOWN, UNKNOWN
from foreknow.paper import FITTED, SHARES, complete_series
from foreknow.stages.study import cluster_robust
from foreknow.stages.study.cluster_robust import Array, Clustered

POINTS: Final[dict[str, pl.DataType]] = {
    "run": pl.String(),
    "variant": pl.String(),
    "seed": pl.Int64(),
    "epoch": pl.Int64(),
    "known": pl.Float64(),
    "unknown": pl.Float64(),
    "accuracy": pl.Float64(),
}
"""One row per run and epoch: fitted Known and Unknown rows over |D|, and the share of the set answered right."""

FEWEST_RUNS: Final = 5
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of the model. Where it has no error, the model's note says why."""

    value: float
    se: float | None = None
    df: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class LinearModel:
    """The fitted model. Coefficients are None where the points do not determine them; `note` says why."""

    intercept: Coefficient | None
    known: Coefficient | None
    unknown: Coefficient | None
    r2: float | None
    n: int
    runs: int
    between: float | None
    """Variance of the part that all points of a run share and the model does not explain."""
    within: float | None
    """Variance of one point about the level of its run."""
    note: str | None
    basis: Clustered | None = field(repr=False, compare=False, default=None)
    """The least-squares fit, which predictions need."""


class Prediction(NamedTuple):
    """The predicted accuracy at a point, with the ends of its 95 % interval where there is one."""

    value: float
    low: float | None
    high: float | None


class LeftOut(NamedTuple):
    """The predictions of every variant from all others: points, root mean square error, share of points inside."""

    points: pl.DataFrame
    rmse: float | None
    coverage: float | None
    skipped: tuple[str, ...]


def points(results: pl.DataFrame, name: str, first_epoch: int = 1) -> pl.DataFrame:
    """Return the points (`POINTS`) of set `name`, "test" or "ood", from a study's frame of results.

    The model itself uses the points from epoch 1 on. A fit from epoch 2 on checks how much weight the first epoch
    has, in which the run learns the form of the answer.
    """
    taken = results.filter(pl.col("kind").is_in(["shares", "known"]) & (pl.col("epoch") >= first_epoch))
    key = ["variant", "seed", "epoch"]
    fitted = (
        taken.filter((pl.col("set") == "train") & pl.col("category").is_in([*KNOWN, UNKNOWN]))
        .group_by([*key, "size"])
        .agg(
            known=pl.col("correct").filter(pl.col("category") != UNKNOWN).sum() / pl.col("size").first(),
            unknown=pl.col("correct").filter(pl.col("category") == UNKNOWN).sum() / pl.col("size").first(),
        )
    )
    right = taken.filter((pl.col("set") == name) & (pl.col("category") == "all") & (pl.col("rows") > 0))
    return (
        fitted.join(right.select(*key, accuracy=pl.col("correct") / pl.col("rows")), on=key)
        .with_columns(run=pl.format("{}-seed{}", "variant", "seed"))
        .select(pl.col(name).cast(kind) for name, kind in POINTS.items())
        .sort("run", "epoch")
    )


def paper_points() -> pl.DataFrame:
    """Return the paper's D variants (Figures 3 and 4) as 14 points: epoch 1 stands for EARLY_STOP, 2 for CONVERGENCE.

    At CONVERGENCE all rows are fitted. The paper gives no fitted share of the D_Known runs at EARLY_STOP.
    """
    lines = []
    ends = (complete_series("D", "early_stop"), complete_series("D", "convergence"))
    for share, known, unknown, early, late in zip(SHARES, FITTED["Known"], FITTED["Unknown"], *ends, strict=True):
        name, s = f"unknown-{share}", share / 100
        lines.append((name, name, 0, 1, (1 - s) * (known or 0) / 100, s * (unknown or 0) / 100, early / 100))
        lines.append((name, name, 0, 2, 1 - s, s, late / 100))
    return pl.DataFrame(lines, schema=POINTS, orient="row")


def fit(points: pl.DataFrame) -> LinearModel:
    """Fit least squares to `POINTS`, with errors clustered by run (CR2).

    The result has no errors for under five runs, or where a single run determines a coefficient. It has no
    coefficients where the points lie on a line.
    """
    runs = points["run"].n_unique()
    x, y = _design(points), points["accuracy"].to_numpy()
    if points.is_empty() or cluster_robust.collinear(x):
        why = "no points" if points.is_empty() else "Known and Unknown rows fitted go together over all points"
        return LinearModel(None, None, None, None, points.height, runs, None, None, f"{why}: no coefficients")
    basis = cluster_robust.least_squares(x, y, _numbers(points["run"]))
    note = _why_no_interval(points, basis, runs)
    if note:
        b0, b_kn, b_unk = (Coefficient(float(value)) for value in basis.coefficients)
    else:
        b0, b_kn, b_unk = (_coefficient(basis, which) for which in range(3))
    r2 = basis.r2 if np.isfinite(basis.r2) else None
    return LinearModel(b0, b_kn, b_unk, r2, points.height, runs, basis.between, basis.within, note, basis)


def _coefficient(basis: Clustered, which: int) -> Coefficient:
    from scipy.special import stdtr, stdtrit

    value, se, df = basis.contrast(np.eye(3)[which])
    half = float(stdtrit(df, 0.5 + LEVEL / 2)) * se
    p = float(2 * stdtr(df, -(abs(value) / se))) if se > 0 else float(value == 0)
    return Coefficient(value, se, df, value - half, value + half, p)


def _why_no_interval(points: pl.DataFrame, basis: Clustered, runs: int) -> str | None:
    if runs < FEWEST_RUNS:
        return f"no interval: {runs} runs, at least {FEWEST_RUNS} are needed"
    if basis.alone:
        names = points["run"].unique().sort()
        return f"no interval: without {names[basis.alone[0]]} alone the coefficients could not be told apart"
    return None


def _design(points: pl.DataFrame) -> Array:
    return np.column_stack([np.ones(points.height), points["known"].to_numpy(), points["unknown"].to_numpy()])


def _numbers(names: pl.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number the names in their sorted order."""
    return np.unique(names.to_numpy(), return_inverse=True)[1].astype(np.int64)


def predict(model: LinearModel, known: float, unknown: float, *, new_run: bool = True) -> Prediction:
    """Predict the accuracy at `known` and `unknown`, the fitted Known and Unknown rows over |D|.

    With `new_run`, the interval is for what one evaluation of a new run would measure, so it includes the spread
    of runs and of points about the fit. Without it, the interval is for the fit itself. Raises ValueError for a
    model without coefficients.
    """
    from scipy.special import stdtrit

    if model.basis is None:
        raise ValueError(f"a model without coefficients predicts nothing ({model.note})")
    value, se, df = model.basis.contrast(np.array([1.0, known, unknown]))
    if model.note is not None:
        return Prediction(value, None, None)
    spread = model.basis.between + model.basis.within if new_run else 0.0
    if spread > 0:
        df = (se**2 + spread) ** 2 / (se**4 / df + spread**2 / max(model.runs - 3, 1))
    half = float(stdtrit(df, 0.5 + LEVEL / 2)) * (se**2 + spread) ** 0.5
    return Prediction(value, value - half, value + half)


def within(points: pl.DataFrame, known: float, unknown: float) -> bool:
    """Return whether the point lies in the convex hull of the fitted points; outside, a prediction extrapolates.

    It lies inside when the directions from it to the fitted points leave no gap of more than half a turn.
    """
    away = np.column_stack([points["known"].to_numpy() - known, points["unknown"].to_numpy() - unknown])
    if not len(away) or bool(np.any(np.abs(away).max(axis=1) < 1e-9)):
        return bool(len(away))
    angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    return bool(gaps.max() <= np.pi + 1e-9)


def leave_out(points: pl.DataFrame) -> LeftOut:
    """Predict each variant's points by the model of all other variants, and measure the error and coverage.

    `points` gains predicted, ci_low, ci_high, error (predicted - accuracy) and inside (whether the point is in the
    hull of the others). A variant without which nothing can be fitted is skipped.
    """
    parts, skipped = [], []
    for variant in points["variant"].unique().sort():
        mine, others = points.filter(pl.col("variant") == variant), points.filter(pl.col("variant") != variant)
        model = fit(others)
        if model.known is None:
            skipped.append(str(variant))
            continue
        asked = mine.select("known", "unknown").rows()
        told = [predict(model, *at) for at in asked]
        parts.append(
            mine.with_columns(
                pl.Series("predicted", [one.value for one in told], dtype=pl.Float64),
                pl.Series("ci_low", [one.low for one in told], dtype=pl.Float64),
                pl.Series("ci_high", [one.high for one in told], dtype=pl.Float64),
                pl.Series("inside", [within(others, *at) for at in asked], dtype=pl.Boolean),
            ).with_columns(error=pl.col("predicted") - pl.col("accuracy"))
        )
    found = pl.concat(parts) if parts else points.clear()
    if not parts:
        return LeftOut(found, None, None, tuple(skipped))
    judged = found.drop_nulls("ci_low")
    covered = judged["accuracy"].is_between(judged["ci_low"], judged["ci_high"])
    coverage = float(covered.sum()) / judged.height if judged.height else None
    return LeftOut(found, float((found["error"].to_numpy() ** 2).mean() ** 0.5), coverage, tuple(skipped))


def as_json(model: LinearModel, checks: Sequence[tuple[str, LinearModel]] = ()) -> dict[str, Any]:
    """Return plain values for `linear_model.json`. `checks` has other fits by name, such as the one from epoch 2."""
    found = {
        name: None if one is None else {key: value for key, value in vars(one).items() if value is not None}
        for name, one in (("b0", model.intercept), ("b_kn", model.known), ("b_unk", model.unknown))
    }
    keys = ("r2", "n", "runs", "between", "within", "note")
    told = {"coefficients": found} | {key: getattr(model, key) for key in keys}
    return told | ({"checks": {name: as_json(one) for name, one in checks}} if checks else {})
