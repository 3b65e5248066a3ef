"""Draws the charts of results in a notebook: plain Altair charts, which a user can change further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.notebook import COLOURS

_COLOUR = alt.Color(
    "category:N", title=None, scale=alt.Scale(domain=list(CATEGORIES), range=[COLOURS[name] for name in CATEGORIES])
)
_SHARE = alt.Axis(format=".0%")


def category_chart(rows: pl.DataFrame, *, most: int = 24) -> alt.Chart:
    """Draw the shares of the categories in each group of labelled rows (columns group and category).

    The groups with the largest Unknown share stand first, at most `most` of them; above them all rows together.
    """
    labelled = rows.filter(pl.col("category").is_not_null()).select("group", "category")
    every = pl.concat([labelled.with_columns(group=pl.lit("all rows")), labelled])
    order = (
        labelled.group_by("group")
        .agg(unknown=(pl.col("category") == CATEGORIES[-1]).mean())
        .sort(["unknown", "group"], descending=[True, False])["group"]
        .head(most)
        .to_list()
    )
    groups = ["all rows", *order] if len(order) > 1 else ["all rows"]
    counts = every.filter(pl.col("group").is_in(groups)).group_by("group", "category").len("rows")
    counts = counts.with_columns(share=pl.col("rows") / pl.col("rows").sum().over("group"))
    chart: alt.Chart = (
        alt.Chart(counts.sort("group", "category"))
        .transform_calculate(rank=f"indexof({list(CATEGORIES)}, datum.category)")
        .mark_bar()
        .encode(
            y=alt.Y("group:N", sort=groups, title=None),
            x=alt.X("share:Q", stack="normalize", axis=_SHARE, title="share of labelled rows"),
            color=_COLOUR,
            order=alt.Order("rank:Q"),
            tooltip=["group", "category", "rows", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=480)
    )
    return chart


def epochs_chart(lines: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """Draw the shares of train rows fitted, by category, and EM of each set, by epoch (lines of `metrics.jsonl`)."""
    points = [
        {"epoch": line["epoch"], "curve": name, "share": share}
        for line in lines
        for name, share in (
            *((f"fitted: {category}", share) for category, share in line["fitted"].items()),
            *((f"EM: {name}", share) for name, share in line["em"].items()),
        )
    ]
    frame = pl.DataFrame(points, schema={"epoch": pl.Float64, "curve": pl.String, "share": pl.Float64})
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("share:Q", axis=_SHARE, scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("curve:N", title=None),
            strokeDash=alt.condition("indexof(datum.curve, 'EM') === 0", alt.value([1, 0]), alt.value([5, 3])),
            tooltip=["curve", "epoch", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=480)
    )
    return chart


def em_chart(em: Mapping[str, Any], matching: str) -> alt.LayerChart:
    """Draw exact match, overall and by category, with its 95 % intervals (`summary["em"]` of an evaluation).

    `matching`: strict or lenient.
    """
    parts = {
        "all rows": em["overall"],
        **{name: em["by_category"][name] for name in CATEGORIES if name in em["by_category"]},
    }
    lines = [{"rows of": name, **part[matching]} for name, part in parts.items() if part[matching]["rows"]]
    schema = {"rows of": pl.String, "share": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64, "rows": pl.Int64}
    frame = pl.DataFrame([{key: line[key] for key in schema} for line in lines], schema=schema)
    base = alt.Chart(frame).encode(y=alt.Y("rows of:N", sort=list(parts), title=None))
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_bar(color=COLOURS[CATEGORIES[1]]).encode(
        x=alt.X("share:Q", axis=_SHARE, scale=scale, title="exact match"), tooltip=["rows of", "rows", "share"]
    )
    whiskers = base.mark_rule().encode(x=alt.X("ci_low:Q", scale=scale), x2="ci_high:Q")
    chart: alt.LayerChart = (bars + whiskers).properties(width=480)
    return chart
