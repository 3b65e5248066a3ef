"""This module draws the chart of an evaluation: EM by category as bars, and the base model's EM as rings."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.report.charts import FILLS, GRID, INK, PERCENT_TICK, RIMMED, WIDE, render_chart
from foreknow.report.tune_tables import Count


def em_chart(lines: Sequence[tuple[str, Count, Count | None]], width: int) -> str:
    """Draw EM by category as bars with intervals, and the share that the base model had right as rings.

    `lines`: category, EM, and the base model's right rows or None. `width`: pixels.
    """
    short = width < WIDE
    values = [
        {
            "category": name.removesuffix("Known") if short and name != "Unknown" else name,
            "name": name,
            "em": of.share,
            "low": of.interval.low,
            "high": of.interval.high,
            "base": base.share if base and base.rows else None,
            "label": f"{100 * of.share:.0f} %" if short else f"{100 * of.share:.1f} %",
            "was": f"base {100 * base.share:.0f} %" if base and base.rows else "",
        }
        for name, of, base in lines
    ]
    schema = {name: pl.Float64() if name in ("em", "low", "high", "base") else pl.String() for name in values[0]}
    frame = pl.DataFrame(values, schema=schema)
    base = alt.Chart(frame).encode(
        x=alt.X("category:N", sort=None, title=None, axis=alt.Axis(labelAngle=0, grid=False))
    )
    axis = alt.Axis(labelExpr=PERCENT_TICK, tickCount=5)
    scale = alt.Scale(domain=[0, 1.08], nice=False)
    fills = alt.Scale(domain=list(CATEGORIES), range=list(FILLS))
    bars = base.mark_bar(size=26 if short else 48, stroke=GRID, strokeWidth=0.5).encode(
        y=alt.Y("em:Q", scale=scale, axis=axis, title=None), color=alt.Color("name:N", scale=fills, legend=None)
    )
    whiskers = base.mark_rule(color=INK, strokeWidth=1.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    texts = base.encode(y=alt.Y("high:Q", scale=scale), text="label:N")
    labels = [texts.mark_text(dy=-10, fontSize=12, **paint) for paint in RIMMED]
    beside = 23 if short else 36  # puts the rings beside the bars, where no label stands
    was = alt.Chart(frame.drop_nulls("base")).encode(x=alt.X("category:N", sort=None), y=alt.Y("base:Q", scale=scale))
    rings = was.mark_point(shape="circle", size=90, stroke=INK, strokeWidth=2, filled=False, xOffset=beside)
    names = [was.mark_text(align="left", dx=beside + 9, fontSize=12, **p).encode(text="was:N") for p in RIMMED]
    return render_chart(alt.layer(bars, whiskers, *labels, rings, *([] if short else names)), width, 280)
