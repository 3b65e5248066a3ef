"""Predict test exact match after training on a mix, from a study of the same model (paper, section 4: linear model).

The study's runs gave points: the shares of |D| that were fitted Known and fitted Unknown rows, and test EM. A forecast
reads off the linear fit through these points at the mix and fit asked for. It holds for this model, for rows like the
study's, and inside the range of fits that the study measured. Outside that range it extrapolates, and reports this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.categories import KNOWN, UNKNOWN
from foreknow.errors import ConfigError, ModelError
from foreknow.stages.study import linear_model

if TYPE_CHECKING:
    from foreknow.stages.audit.result import AuditResult
    from foreknow.stages.study.result import StudyResult

FORECAST: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "when": pl.String(),
    "known_fitted": pl.Float64(),
    "unknown_fitted": pl.Float64(),
    "em": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "inside": pl.Boolean(),
}
"""One row per set (`test`, `ood`) and moment: the shares of the Known and of the Unknown rows that are fitted at that
moment; EM with its 95 % prediction interval for one new run, both kept within 0 to 1, which the line is not; and
whether the study measured such fits."""


def usual_fits(results: pl.DataFrame, share: float) -> dict[str, tuple[float, float]]:
    """Return the shares of Known and Unknown train rows fitted at EARLY_STOP and at CONVERGENCE, at this `share`.

    They are interpolated linearly between the means of the study's runs of kind `shares` at the nearest share on
    each side. Where a set has no rows of a kind, the fit of that kind does not count, and is 0.
    """
    found = {}
    for name, point in (("EARLY_STOP", "early_stop"), ("CONVERGENCE", "convergence")):
        train = results.filter((pl.col("kind") == "shares") & (pl.col("set") == "train") & pl.col(point))
        fits = []
        for categories in (KNOWN, (UNKNOWN,)):
            own = (
                train.filter(pl.col("category").is_in(categories))
                .group_by("share")
                .agg(fit=pl.col("correct").sum() / pl.col("rows").sum())
            )
            at = dict(own.sort("share").iter_rows())
            fits.append(_between(at, share))
        found[name] = (fits[0], fits[1])
    return found


def _between(at: dict[float, float], share: float) -> float:
    below, above = [s for s in at if s <= share], [s for s in at if s >= share]
    if not below or not above:
        return at[min(at, key=lambda s: abs(s - share))] if at else 0.0
    low, high = max(below), min(above)
    return at[low] if high == low else at[low] + (at[high] - at[low]) * (share - low) / (high - low)


def forecast(results: pl.DataFrame, share: float, fits: dict[str, tuple[float, float]]) -> pl.DataFrame:
    """Return `FORECAST` for a set with this share of Unknown rows, at each of the `fits` (Known, Unknown; 0 to 1).

    Raises ConfigError where the study's points do not determine the coefficients.
    """
    lines: list[dict[str, Any]] = []
    for name in ("test", "ood"):
        points = linear_model.points(results, name)
        if points.is_empty():
            continue
        model = linear_model.fit(points)
        if model.known is None:
            raise ConfigError(f"--study: its runs determine no linear model ({model.note}); add shares or seeds to it")
        for when, (known, unknown) in fits.items():
            place = ((1 - share) * known, share * unknown)
            predicted = linear_model.predict(model, *place)
            ci_low, ci_high = _possible(predicted.low, predicted.high)
            lines.append({
                "set": name, "when": when, "known_fitted": known, "unknown_fitted": unknown,
                "em": min(max(predicted.value, 0.0), 1.0), "ci_low": ci_low, "ci_high": ci_high,
                "inside": linear_model.within(points, *place),
            })  # fmt: skip
    return pl.DataFrame(lines, schema=FORECAST)


def _possible(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Return the part of an interval that exact match can have, 0 to 1; None, None if there is no such part."""
    if low is None or high is None or high < 0 or low > 1:
        return None, None
    return max(low, 0.0), min(high, 1.0)


def check(results: pl.DataFrame) -> dict[str, Any]:
    """Return the error of such forecasts by set: each variant predicted from the others (`linear_model.leave_out`)."""
    found = {}
    for name in ("test", "ood"):
        points = linear_model.points(results, name)
        if not points.is_empty():
            left = linear_model.leave_out(points)
            found[name] = {"rmse": left.rmse, "coverage": left.coverage, "points": left.points.height}
    return found


def forecast_audit(
    audit: AuditResult, study: StudyResult, *, unknown: float | None, fitted: Sequence[float] = (), force: bool = False
) -> dict[str, Any]:
    """Forecast the result of training on a finished audit's rows, from a finished study.

    `unknown`: the share of Unknown rows in the mix; None: the audit's own. `fitted`: the shares of Known and of Unknown
    rows that will be fitted; none: those usual in the study. Raises ConfigError, and, unless `force` is set, ModelError
    where the study is of another model.
    """
    ours, theirs = audit.summary["model"], study.manifest["model"]
    if ours["fingerprint"] != theirs["fingerprint"] and not force:
        raise ModelError(
            f"--study {study.folder}: of {theirs['name']} ({theirs['fingerprint'][:19]}...), but {audit.folder} asked "
            f"{ours['name']} "
            f"({ours['fingerprint'][:19]}...); a forecast holds for one model. Name a study of it, or --force"
        )
    if len(fitted) not in (0, 2) or any(not 0 <= share <= 1 for share in fitted):
        raise ConfigError(f"--fitted: found {list(fitted)}, expected two shares from 0 to 1: of Known, of Unknown rows")
    share = float(audit.summary["categories"]["overall"][UNKNOWN]) if unknown is None else unknown
    if not 0 <= share <= 1:
        raise ConfigError(f"--unknown {share}: expected a share from 0 to 1")
    fits = {"asked": (fitted[0], fitted[1])} if fitted else usual_fits(study.results, share)
    table = forecast(study.results, share, fits)
    return {
        "study": {"folder": str(study.folder), "model": theirs["name"], "results": study.manifest["results"]},
        "unknown": share,
        "forecast": table.to_dicts(),
        "left_out": check(study.results),
    }


def forecast_table(found: dict[str, Any]) -> pl.DataFrame:
    """Return a forecast for the terminal, in %."""
    lines = [
        {
            "test rows": f"{line['set']}, {line['when']}",
            "Known fitted": f"{line['known_fitted']:.0%}",
            "Unknown fitted": f"{line['unknown_fitted']:.0%}",
            "exact match": f"{100 * line['em']:.1f}",
            "95 % for a new run": "none"
            if line["ci_low"] is None
            else f"{100 * line['ci_low']:.1f} to {100 * line['ci_high']:.1f}",
            "seen in the study": "yes" if line["inside"] else "no: extrapolated",
        }
        for line in found["forecast"]
    ]
    return pl.DataFrame(lines)
