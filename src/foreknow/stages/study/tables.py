"""Make the paper's tables from the runs of a study, with the paper's own figures (`paper_figures`) beside ours. Pure.

Every table is a frame with a fixed schema; it is empty where the study lacks the runs for it. Shares are 0 to 1. `em`
(or `share`) is the mean over seeds, `seed_min` and `seed_max` are the smallest and largest value, and `seeds` is their
number. `ci_low` and `ci_high` are the ends of a 95 % interval, and `interval` says what varies in it: "rows and seeds"
(bootstrap, where outcomes are known row by row), else "rows" (Wilson's, of the mean over seeds). `paper` is null where
the paper has no figure.

    curves       Figure 1     fitted and dev EM by epoch, half of D Unknown
    shares ood   Figure 3     EM by Unknown share, of D and D_Known, by test category too
    fitted       Figure 4     rows fitted at EARLY_STOP
    linear       Table 1      EM from Known and Unknown rows fitted
    single       Table 2      sets of one category and the natural mix, by test category
    differences  Table 2      every contrast on the page, by the paper's test and two more (differences.py)
    refusals                  Unknown rows relabelled as a refusal (differences.py)
    sweep                     SliCK against P(True) (sweep_run.py)
    claims                    the nine claims (claims.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow import paper
from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.paper import Figure
from foreknow.stages.study import claims, linear_model
from foreknow.stages.study.aggregation import (
    ALL,
    ALL_KNOWN,
    EARLY,
    POINTS,
    TRAINED_ON,
    at_points,
    intervals_of,
    over_seeds,
    trained_on,
    with_intervals,
    with_known,
)
from foreknow.stages.study.differences import differences, refusals
from foreknow.stages.study.paired import LEVEL
from foreknow.stages.study.stopping_rule import level_of
from foreknow.stages.study.sweep_run import swept
from foreknow.stats import wilson

if TYPE_CHECKING:
    from foreknow.stages.study.result import StudyResult

_SPREAD: Final[dict[str, pl.DataType]] = {
    "seeds": pl.Int64(),
    "rows": pl.Int64(),
    "em": pl.Float64(),
    "seed_min": pl.Float64(),
    "seed_max": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "interval": pl.String(),
    "paper": pl.Float64(),
}
CURVES: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "trained_on": pl.String(),
    "share": pl.Float64(),
    "epoch": pl.Int64(),
    "measure": pl.String(),
    "seeds": pl.Int64(),
    "value": pl.Float64(),
    "seed_min": pl.Float64(),
    "seed_max": pl.Float64(),
    "paper": pl.Float64(),
}
"""`measure` is known or unknown (the share of train rows fitted), or dev (EM)."""
SHARES: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "trained_on": pl.String(),
    "share": pl.Float64(),
    "point": pl.String(),
    "epoch": pl.Float64(),
    "category": pl.String(),
    **_SPREAD,
}
"""`point` is early_stop, "epoch n" or convergence; `epoch` is its mean over seeds; `rows` counts the set's rows."""
FITTED: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "trained_on": pl.String(),
    "share": pl.Float64(),
    "point": pl.String(),
    "part": pl.String(),
    **_SPREAD,
}
"""`part` is Known or Unknown; `rows` counts that part over all seeds; `em` is the share of these rows fitted."""
LINEAR: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "fit": pl.String(),
    "coefficient": pl.String(),
    **dict.fromkeys(("value", "se", "df", "ci_low", "ci_high", "p", "r2"), pl.Float64()),
    "points": pl.Int64(),
    "runs": pl.Int64(),
    "note": pl.String(),
    "paper": pl.Float64(),
}
"""One row per coefficient (b0, b_kn, b_unk). `fit` is from epoch 1, from epoch 2, or of the paper's points."""
SINGLE: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "trained": pl.String(),
    "point": pl.String(),
    "epoch": pl.Float64(),
    "category": pl.String(),
    **_SPREAD,
}
"""`trained` is the category of the training set, or natural; `category` is that of the test rows."""


def all_tables(study: StudyResult, *, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Return every table by name, in the order of the page. The bootstraps use `seed`.

    The fixed epochs and the margin of the claims come from the study's own `config.yaml`.
    """
    settings, results, outcomes = study.settings, study.results, study.outcomes
    return {
        **tables(results, outcomes, settings.get("fixed_epochs") or (), seed=seed),
        "sweep": swept(study),
        "claims": scorecard(
            *(results, outcomes, float(settings.get("margin") or claims.MARGIN)), seed=seed, level=level_of(settings)
        ),
    }


def scorecard(
    results: pl.DataFrame,
    outcomes: pl.DataFrame,
    margin: float = claims.MARGIN,
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> pl.DataFrame:
    """Return the nine claims (`claims.SCORECARD`), each with this margin and intervals at this level (0 to 1)."""
    test, ood = (linear_model.fit(linear_model.points(results, name)) for name in ("test", "ood"))
    asked = [replace(claim, margin=margin) for claim in claims.CLAIMS]
    return claims.scorecard(results, outcomes, test, ood, asked, seed, level=level)


def tables(
    results: pl.DataFrame, outcomes: pl.DataFrame, fixed_epochs: Iterable[int] = (), *, seed: int = 0
) -> dict[str, pl.DataFrame]:
    """Return by name every table that needs only the runs. `results` and `outcomes` are frames of `measurements`."""
    whole = with_known(results)
    intervals = intervals_of(outcomes, seed)
    points = at_points(whole, fixed_epochs)
    return {
        "curves": curves(whole),
        "shares": shares(points, intervals, "test"),
        "fitted": fitted(points),
        "linear": linear_models(results),
        "single": single(points, intervals),
        "differences": differences(results, outcomes, seed=seed),
        "ood": shares(points, intervals, "ood"),
        "refusals": refusals(points, outcomes, seed),
    }


def table(results: pl.DataFrame) -> pl.DataFrame:
    """Return test EM in %, mean over seeds, for the terminal: the share, then D and D_Known at the two points."""
    found = over_seeds(at_points(results), "test").filter(pl.col("category") == ALL)
    columns = []
    for kind in ("shares", "known"):
        for point, name in zip(POINTS, ("EARLY_STOP", "CONVERGENCE"), strict=True):
            of = found.filter((pl.col("kind") == kind) & (pl.col("point") == point))
            columns.append(of.select("share", pl.col("em").alias(f"{TRAINED_ON[kind]} {name}")))
    lines = found.filter(pl.col("kind").is_in(["shares", "known"])).select("share").unique().sort("share")
    for column in columns:
        lines = lines.join(column, on="share", how="left")
    return lines.select(
        pl.format("{}% Unknown", (100 * pl.col("share")).round().cast(pl.Int64)).alias("share"),
        (pl.exclude("share") * 100).round(1).cast(pl.String).fill_null(""),
    )


def _held_against(
    found: pl.DataFrame, figures: Iterable[Figure | None], schema: dict[str, pl.DataType]
) -> pl.DataFrame:
    """Join the paper's figures to `found`, in the declared columns."""
    values = pl.Series("paper", [figure and figure.value for figure in figures], dtype=pl.Float64)
    return found.with_columns(values).select(pl.col(name).cast(kind) for name, kind in schema.items())


def curves(whole: pl.DataFrame) -> pl.DataFrame:
    """Return Figure 1 (`CURVES`): D with half of its rows Unknown, or the nearest share, and its D_Known."""
    mixed = whole.filter((pl.col("kind") == "shares") & pl.col("share").is_between(0, 1, closed="none"))
    if mixed.is_empty():
        return pl.DataFrame(schema=CURVES)
    share = min(mixed["share"].unique().sort().to_list(), key=lambda value: abs(value - 0.5))
    of = whole.filter(pl.col("kind").is_in(["shares", "known"]) & (pl.col("share") == share))
    names = {("train", ALL_KNOWN): "known", ("train", UNKNOWN): "unknown", ("dev", ALL): "dev"}
    parts = [
        of.filter((pl.col("set") == name) & (pl.col("category") == category)).with_columns(measure=pl.lit(measure))
        for (name, category), measure in names.items()
    ]
    value = pl.col("correct") / pl.col("rows")
    found = (
        pl.concat(parts)
        .filter(pl.col("rows") > 0)
        .group_by("variant", "kind", "share", "epoch", "measure")
        .agg(seeds=pl.col("seed").n_unique(), value=value.mean(), seed_min=value.min(), seed_max=value.max())
        .with_columns(trained_on=trained_on())
        .sort("trained_on", "measure", "epoch")
    )
    told = found.select("trained_on", "share", "measure", "epoch").iter_rows()
    has = [paper.curve(m, epoch) if (on, s) == ("D", 0.5) else None for on, s, m, epoch in told]
    return _held_against(found, has, CURVES)


def shares(points: pl.DataFrame, intervals: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return Figure 3 (`SHARES`) for set `name`: test, or ood, which the paper plots without printing its figures."""
    found = over_seeds(points.filter(pl.col("kind").is_in(["shares", "known"])), name)
    found = with_intervals(found, intervals, name).with_columns(trained_on=trained_on())
    found = found.sort("trained_on", "share", maintain_order=True)
    told = found.select("trained_on", "share", "point", "category").iter_rows()
    has = [paper.exact_match(*line) if name == "test" else None for line in told]
    return _held_against(found, has, SHARES)


def fitted(points: pl.DataFrame) -> pl.DataFrame:
    """Return Figure 4 (`FITTED`). Each seed trains on other rows, so the interval is Wilson's over all seeds' rows."""
    share = pl.col("correct") / pl.col("rows")
    found = (
        points.filter(
            pl.col("kind").is_in(["shares", "known"])
            & (pl.col("set") == "train")
            & pl.col("point").is_in(POINTS)
            & pl.col("category").is_in([ALL_KNOWN, UNKNOWN])
            & (pl.col("rows") > 0)
        )
        .group_by("variant", "kind", "share", "point", pl.col("category").alias("part"), maintain_order=True)
        .agg(
            seeds=pl.col("seed").n_unique(),
            rows=pl.col("rows").sum(),
            correct=pl.col("correct").sum(),
            em=share.mean(),
            seed_min=share.min(),
            seed_max=share.max(),
        )
        .with_columns(trained_on=trained_on(), interval=pl.lit("rows"))
        .sort("trained_on", "share", maintain_order=True)
    )
    ends = [wilson(right, rows) for right, rows in found.select("correct", "rows").iter_rows()]
    found = found.with_columns(
        ci_low=pl.Series([one.low for one in ends], dtype=pl.Float64),
        ci_high=pl.Series([one.high for one in ends], dtype=pl.Float64),
    )
    told = found.select("trained_on", "point", "part", "share").iter_rows()
    has = [paper.fitted(part, s) if (on, point) == ("D", EARLY) else None for on, point, part, s in told]
    return _held_against(found, has, FITTED)


def linear_models(results: pl.DataFrame) -> pl.DataFrame:
    """Return Table 1 (`LINEAR`): fits from epoch 1 as in the paper, from epoch 2 as a check, and of the paper's points.

    The last fit has only the 14 points that can be read off the paper's figures, so it is not the paper's own
    Table 1, which has all points.
    """
    lines: list[dict[str, Any]] = []
    for name in ("test", "ood"):
        for first, fit in ((1, "from epoch 1"), (2, "from epoch 2")):
            points = linear_model.points(results, name, first)
            if points.height:
                lines += _coefficients(linear_model.fit(points), name, fit)
    if lines:
        lines += _coefficients(linear_model.fit(linear_model.paper_points()), "test", "the paper's 14 points")
    return pl.DataFrame(lines, schema=LINEAR)


def _coefficients(model: linear_model.LinearModel, name: str, fit: str) -> Iterator[dict[str, Any]]:
    for which, found in (("b0", model.intercept), ("b_kn", model.known), ("b_unk", model.unknown)):
        figure = paper.linear(name, which)
        numbers = {} if found is None else {key: value for key, value in vars(found).items() if key in LINEAR}
        yield {
            **dict.fromkeys(LINEAR),
            **{"set": name, "fit": fit, "coefficient": which, "r2": model.r2, "points": model.n, "runs": model.runs},
            **{"note": model.note, "paper": figure and figure.value},
            **numbers,
        }


def single(points: pl.DataFrame, intervals: pl.DataFrame) -> pl.DataFrame:
    """Return Table 2 (`SINGLE`). A study without a set of only Unknown rows uses its equal share of 100 % instead."""
    trained = pl.when(pl.col("kind") == "natural").then(pl.lit("natural")).otherwise("trained")
    found = over_seeds(points.filter(pl.col("kind").is_in(["single", "natural"])), "test")
    found = with_intervals(found, intervals, "test").with_columns(trained=trained)
    order = {name: place for place, name in enumerate((*CATEGORIES, "natural"))}
    found = found.sort(pl.col("trained").replace_strict(order, return_dtype=pl.Int64), maintain_order=True)
    has = [paper.single(*line) for line in found.select("trained", "point", "category").iter_rows()]
    return _held_against(found, has, SINGLE)
