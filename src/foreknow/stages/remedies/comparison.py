"""Builds the comparison of a study of remedies: its tables, curves and recommendation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from foreknow.config.remedies import RECIPES
from foreknow.stages.remedies.firmness import kept_by_firmness
from foreknow.stages.remedies.matching import MEASURES, TARGET, TARGETS, Estimate, Matched, at_end, match_recipe
from foreknow.stages.remedies.recipes import RECIPE_FILE
from foreknow.stages.remedies.recommendation import Recommendation, recommend

TABLE: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "learnt": pl.Float64(),
    "rate": pl.Float64(),
    "seeds": pl.Int64(),
    "of_seeds": pl.Int64(),
    "kept": pl.Float64(),
    "kept_low": pl.Float64(),
    "kept_high": pl.Float64(),
    **{name: pl.Float64() for name in MEASURES if name != "known_kept"},
}
"""One row per recipe and share of the new facts learnt (`learnt`), at the rate with the most known rows kept. `kept`:
share of the known rows that are kept, with its 95 % interval. The others are means over the seeds (`points.POINTS`)."""
CURVES: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "learnt": pl.Float64(),
    "seeds": pl.Int64(),
    "lost": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
}
"""The picture: the share of known rows lost, with its interval, at shares of the new facts learnt."""
GRID: Final = (*(n / 20 for n in range(1, 20)), 0.99)


@dataclass(frozen=True)
class Comparison:
    """The comparison. `firmness`: what is kept by how surely it was known (`firmness.FIRMNESS`). `ends`: where each
    recipe's runs end (`matching.at_end`). `costs`: means by recipe."""

    table: pl.DataFrame
    firmness: pl.DataFrame
    curves: pl.DataFrame
    ends: Mapping[str, Mapping[str, Any]]
    costs: Mapping[str, Mapping[str, float | None]]
    recommendation: Recommendation


def compare(points: pl.DataFrame, outcomes: pl.DataFrame, costs: pl.DataFrame, known: pl.DataFrame) -> Comparison:
    """Compare the recipes of a study from its frames (`points.py`). `known`: the watched rows (`points.KNOWN`).

    The recommendation is made at `matching.TARGET` of the new facts learnt or, where fewer than two recipes learn so
    much with every seed, at the largest smaller share of `TARGETS` that two recipes reach.
    """
    names = [name for name in RECIPES if name in set(points["recipe"])]
    lines, curves, matched = [], [], []
    ends, cost_of = {}, {}
    for name in names:
        of = pl.col("recipe") == name
        own, rows = points.filter(of), outcomes.filter(of)
        for share in TARGETS:
            one = match_recipe(own, rows, share)
            if one is not None:
                lines.append(_line(one))
                matched.append(one)
        curves += [_curve(one) for share in GRID if (one := match_recipe(own, rows, share)) is not None]
        ends[name] = at_end(own)
        cost_of[name] = (
            costs.filter(of).select("step_seconds", "training_seconds", "memory_gib").mean().row(0, named=True)
        )
    return Comparison(
        pl.DataFrame(lines, schema=TABLE, orient="row"),
        kept_by_firmness(matched, known),
        pl.DataFrame(curves, schema=CURVES, orient="row"),
        ends,
        cost_of,
        _recommendation(matched),
    )


def _recommendation(matched: Sequence[Matched]) -> Recommendation:
    for target in sorted((share for share in TARGETS if share <= TARGET), reverse=True):
        own = [one for one in matched if one.target == target]
        if sum(one.seeds == one.of_seeds for one in own) > 1:
            return recommend(own, target)
    return recommend([one for one in matched if one.target == TARGET], TARGET)


def _line(one: Matched) -> dict[str, Any]:
    return {
        "recipe": one.recipe,
        "learnt": one.target,
        "rate": one.rate,
        "seeds": one.seeds,
        "of_seeds": one.of_seeds,
        "kept": one.kept.value,
        "kept_low": _clipped(one.kept.low),
        "kept_high": _clipped(one.kept.high),
        **{name: value for name, value in one.measures.items() if name != "known_kept"},
    }


def _curve(one: Matched) -> dict[str, Any]:
    low, high = _clipped(one.kept.low), _clipped(one.kept.high)
    return {
        "recipe": one.recipe,
        "learnt": one.target,
        "seeds": one.seeds,
        "lost": 1 - one.kept.value,
        "low": None if high is None else 1 - high,
        "high": None if low is None else 1 - low,
    }


def _clipped(share: float | None) -> float | None:
    return None if share is None else min(1.0, max(0.0, share))


def as_json(comparison: Comparison, manifest: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the comparison as plain values (`comparison.json`), which the pages of other runs read.

    `settings`: those for tune that train by the recommended recipe (`recipes.advised_settings`).
    """
    advice = comparison.recommendation
    chosen = advice.recipe
    plain = comparison.table.filter((pl.col("recipe") == "plain") & (pl.col("learnt") == advice.target))
    return {
        "model": manifest["model"],
        "sets": manifest["sets"],
        "target": advice.target,
        "recipe": chosen.recipe if chosen else None,
        "settings": dict(settings) if settings is not None else None,
        "settings_file": RECIPE_FILE if settings is not None else None,
        "kept": _estimate(chosen.kept) if chosen else None,
        "plain_kept": plain["kept"][0] if plain.height else None,
        "seeds": chosen.of_seeds if chosen else None,
        "best": advice.best.recipe if advice.best else None,
        "alike": list(advice.alike),
        "worse": {name: _estimate(value) for name, value in advice.worse.items()},
        "reason": advice.reason,
        "table": comparison.table.to_dicts(),
        "firmness": comparison.firmness.to_dicts(),
        "ends": {name: dict(end) for name, end in comparison.ends.items()},
        "costs": {name: dict(cost) for name, cost in comparison.costs.items()},
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "ci_low": estimate.low, "ci_high": estimate.high}
