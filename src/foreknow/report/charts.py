"""This module draws the charts of the audit page as SVG, offline, from Altair specs.

A spec uses sentinel colours; `theme_svg` replaces them by CSS variables, so that one drawing serves the light and
the dark theme. Every chart is drawn for a desktop and for a phone, and the style sheet shows one of the two. No text
of the user's data enters a chart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import altair as alt
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.report import vega_process
from foreknow.report.audit_tables import BinLine, PopularityLine
from foreknow.stages.audit.verdict.long_answers import ExpectationBin

WIDE, NARROW = 720, 330
INK, SOFT, GRID = "#010001", "#010002", "#010003"
FILLS = ("#010004", "#010005", "#010006", "#010007")
UNKNOWN_INK = "#010008"
"""The colour of Unknown in line charts, because a line cannot be hatched."""
PAGE = "#010009"
"""The background colour of the page; it outlines texts that stand on grid lines."""
UNKNOWN_FILL = "url(#unknown)"
"""The hatching for Unknown that the page defines, so that Unknown differs from the others by more than its colour."""
VARIABLES = dict(
    zip(
        (INK, SOFT, GRID, *FILLS, UNKNOWN_INK, PAGE),
        (*(f"var(--{n})" for n in ("ink", "soft", "line", "hk", "mk", "wk")), UNKNOWN_FILL, "var(--un)", "var(--page)"),
        strict=True,
    )
)

CONFIG: Final = {
    "aria": False,
    "font": "Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 200,
    },
}
"""How every chart looks (Vega-Lite's config)."""
PERCENT_TICK: Final = "format(100 * datum.value, 'd') + ' %'"
"""The Vega expression that labels a tick of an axis of shares in whole per cent."""
RIMMED: Final = ({"fill": PAGE, "stroke": PAGE, "strokeWidth": 4}, {"fill": INK})


def probability_chart(lines: Sequence[BinLine], width: int) -> str:
    """Draw the number of rows in each bin of P_Correct, stacked by category."""
    values = [{"place": b.place, "bin": b.bin, "category": b.category, "rows": b.rows} for b in lines]
    order = list(dict.fromkeys(b.bin for b in lines))
    sums = [{"bin": name, "rows": sum(b.rows for b in lines if b.bin == name)} for name in order]
    y = alt.Y("bin:N", sort=order, title=None)
    bars = (
        alt.Chart(pl.DataFrame(values))
        .transform_calculate(rank=f"indexof({list(CATEGORIES)}, datum.category)")
        .mark_bar(stroke=GRID, strokeWidth=0.5)
        .encode(
            y=y,
            x=alt.X("rows:Q", title="labelled rows", stack="zero", axis=alt.Axis(tickCount=5, tickMinStep=1)),
            color=alt.Color("category:N", scale=alt.Scale(domain=list(CATEGORIES), range=list(FILLS)), legend=None),
            order=alt.Order("rank:Q"),
        )
    )
    totals = (
        alt.Chart(pl.DataFrame(sums))
        .mark_text(align="left", dx=5, color=INK, fontSize=12)
        .encode(y=y, x="rows:Q", text=alt.Text("rows:Q", format=","))
    )
    return render_chart(bars + totals, width, 280)


def popularity_chart(lines: Sequence[PopularityLine], width: int) -> str:
    """Draw the Known share in each fifth of popularity, with intervals."""
    short = width < WIDE
    names = {p.fifth: p.fifth.removesuffix(" fifth") if not short else str(k + 1) for k, p in enumerate(lines)}
    values = [
        {
            "fifth": names[p.fifth],
            "known": p.known.value,
            "low": p.known.low,
            "high": p.known.high,
            "label": f"{100 * p.known.value:.0f} %",
        }
        for p in lines
    ]
    title = "fifth by popularity: 1 least, 5 most" if short else "fifth by popularity, within each relation"
    base = alt.Chart(pl.DataFrame(values)).encode(
        x=alt.X("fifth:N", sort=None, title=title, axis=alt.Axis(labelAngle=0, grid=False))
    )
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(labelExpr=PERCENT_TICK, tickCount=5)
    bars = base.mark_bar(color=FILLS[1], size=36).encode(
        y=alt.Y("known:Q", scale=scale, axis=axis, title="rows that are Known")
    )
    whiskers = base.mark_rule(color=INK, strokeWidth=1.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    labels = base.mark_text(dy=-10, color=INK, fontSize=12).encode(y=alt.Y("high:Q", scale=scale), text="label:N")
    return render_chart(bars + whiskers + labels, width, 260)


def expectation_chart(bins: Sequence[ExpectationBin], width: int) -> str:
    """Draw a histogram of how expected the long answers are: filled bars with the question, outlines without it."""
    values = [
        {"low": b.low, "high": b.high, "with": b.with_question, "without": b.without_question, "none": 0} for b in bins
    ]
    low, high = bins[0].low, bins[-1].high
    step = max(1, round((high - low) / (8 if width == WIDE else 4)))
    ticks = [k for k in range(math.ceil(low), math.floor(high) + 1) if k % step == 0]
    axis = alt.Axis(values=ticks, labelExpr="'1 in ' + format(pow(2, datum.value), ',')", grid=False)
    title = "chance of the next token" + (", mean of the answer" if width == WIDE else "")
    base = alt.Chart(pl.DataFrame(values)).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[low, high], nice=False), axis=axis, title=title), x2="high:Q"
    )
    rows = alt.Axis(tickCount=4, tickMinStep=1)
    with_question = base.mark_bar(color=FILLS[1]).encode(y=alt.Y("with:Q", axis=rows, title="rows"), y2="none:Q")
    without_question = base.mark_bar(fillOpacity=0, stroke=INK, strokeWidth=1.5).encode(y="without:Q", y2="none:Q")
    return render_chart(with_question + without_question, width, 220)


def render_chart(chart: alt.LayerChart | alt.FacetChart, width: int, height: int) -> str:
    """Render a chart as SVG of a fixed size (pixels) whose colours come from the style sheet."""
    spec = chart.to_dict(validate=False)  # Altair's own methods would copy the whole chart once for each setting
    spec |= {
        "width": width,
        "height": height,
        "background": "transparent",
        "padding": {"left": 12, "right": 12, "top": 8, "bottom": 4},
        "autosize": {"type": "fit", "contains": "padding"},
        "config": spec.get("config", {}) | CONFIG,
    }
    return theme_svg(vega_process.svg(spec))


def theme_svg(svg: str) -> str:
    """Replace sentinel colours by CSS variables, and remove the namespaces, which HTML does not need."""
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg, count=3)
    svg = re.sub(
        r'(fill|stroke)="(#0100\d\d)"',
        lambda m: f'{m[1]}="{VARIABLES[m[2]]}"' if m[2] in VARIABLES else m[0],
        svg,
    )
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
