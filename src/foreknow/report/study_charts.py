"""This module draws the charts of a study as SVG (`charts.py` renders them).

There are line charts over a share or an epoch, and charts of intervals one below another. Every line has its label
at its end. The vertical axis, in per cent, covers only the range of the values, so that a change of a few points can
be seen. The paper's figures are hollow, or in a chart of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from foreknow.report.charts import INK, PERCENT_TICK, SOFT, WIDE, render_chart
from foreknow.report.tune_charts import LABEL, apart

SOLID: tuple[int, ...] = (1, 0)
DASHED: tuple[int, ...] = (6, 4)
DOTTED: tuple[int, ...] = (2, 3)
HALF = 530
"""The width (pixels) of each of two charts that stand side by side on wide screens."""


class ChartPosition(NamedTuple):
    """A point of a line, with the ends of its interval or range if it has one. `y`, `low`, `high`: shares, 0 to 1."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class ChartLine(NamedTuple):
    """A line: its label (`short` on narrow screens), its points, and its style.

    `band`: whether its ranges are drawn as a band and not as whiskers. `dots`: whether its points are drawn.
    """

    label: str
    short: str
    places: tuple[ChartPosition, ...]
    colour: str = INK
    dash: tuple[int, ...] = SOLID
    band: bool = False
    dots: bool = True


class Bar(NamedTuple):
    """A line of a chart of intervals: a value, its interval, and the paper's value.

    `late`: whether the value is of CONVERGENCE. `short`: the label on narrow screens.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    paper: float | None = None
    late: bool = False
    short: str = ""


class Axes(NamedTuple):
    """The axes: the title and ticks of x, whether x is a share, and the range of y (None: the range of the values)."""

    title: str
    ticks: tuple[float, ...]
    is_share: bool = True
    y: tuple[float, float] | None = None


def lines_chart(lines: Sequence[ChartLine], axes: Axes, width: int) -> str:
    """Draw shares over another share or over epochs. `width`: pixels."""
    wide = width >= HALF
    first, last = min(axes.ticks), max(axes.ticks)
    span = (last - first) or 1.0
    low, high = axes.y or used(lines)
    x_axis = alt.Axis(
        values=list(axes.ticks),
        grid=False,
        titleAnchor="start",
        labelExpr=PERCENT_TICK if axes.is_share else "datum.label",
    )
    room = span * (0.58 if width == HALF else 0.36 if wide else 0.72)
    x = alt.X(
        "x:Q", title=axes.title, axis=x_axis, scale=alt.Scale(domain=[first - 0.03 * span, last + room], nice=False)
    )
    y = alt.Y(
        "y:Q",
        title=None,
        axis=alt.Axis(values=_steps(low, high), labelExpr=_percent(low, high)),
        scale=alt.Scale(domain=[low, high], nice=False),
    )
    layers = [*_line_layers(lines, x, y, span), _labels(lines, last, (low, high), wide, x, y)]
    return render_chart(alt.layer(*layers), width, 330 if wide else 300)


def _line_layers(lines: Sequence[ChartLine], x: alt.X, y: alt.Y, span: float) -> list[alt.Chart]:
    """Bands, whiskers, lines and dots, in one layer each for all lines, because every layer adds drawing time."""
    names = [str(place) for place in range(len(lines))]
    values = [
        (name, place.x + _aside(lines, line, span), *place[1:], line.band, line.dots)
        for name, line in zip(names, lines, strict=True)
        for place in line.places
    ]
    number, flag = pl.Float64(), pl.Boolean()
    schema = {"line": pl.String(), **dict.fromkeys(("x", "y", "low", "high"), number), "band": flag, "dots": flag}
    frame = pl.DataFrame(values, schema=schema, orient="row")
    scale = alt.Scale(domain=names, range=[line.colour for line in lines])
    stroke, fill = alt.Color("line:N", scale=scale, legend=None), alt.Fill("line:N", scale=scale, legend=None)
    dash = alt.StrokeDash(
        "line:N", scale=alt.Scale(domain=names, range=[list(line.dash) for line in lines]), legend=None
    )
    y_spec: dict[str, Any] = y.to_dict()  # type: ignore[assignment]
    ends = {"x": x, "y": alt.Y("low:Q", title=None, axis=y_spec["axis"], scale=y_spec["scale"]), "y2": "high:Q"}
    ranged = frame.drop_nulls("low")
    bands, whiskers = ranged.filter("band"), ranged.filter(~pl.col("band"))
    layers: list[alt.Chart] = []
    if bands.height:
        layers.append(alt.Chart(bands).mark_area(opacity=0.16).encode(fill=fill, detail="line:N", **ends))
    if whiskers.height:
        layers.append(alt.Chart(whiskers).mark_rule(strokeWidth=1.3, opacity=0.8).encode(color=stroke, **ends))
    base = alt.Chart(frame)
    layers.append(base.mark_line(strokeWidth=2.3).encode(x=x, y=y, color=stroke, strokeDash=dash))
    dots = alt.Chart(frame.filter("dots"))
    layers.append(dots.mark_point(stroke=SOFT, strokeWidth=0.7, opacity=1, size=30).encode(x=x, y=y, fill=fill))
    return layers


def _aside(lines: Sequence[ChartLine], line: ChartLine, span: float) -> float:
    """How far to shift a line in x, so that the whiskers of several lines do not cover each other."""
    if line.band or not any(place.low is not None for place in line.places):
        return 0.0
    return (lines.index(line) - (len(lines) - 1) / 2) * 0.007 * span


def _labels(
    lines: Sequence[ChartLine], last: float, within: tuple[float, float], wide: bool, x: alt.X, y: alt.Y
) -> alt.Chart:
    """The label and the last value of each line, to the right of it."""
    low, high = within
    ends = [line.places[-1].y for line in lines]
    text = [f"{line.label if wide else line.short} {100 * end:.1f} %" for line, end in zip(lines, ends, strict=True)]
    spots = apart([(end - low) / (high - low) for end in ends], LABEL)
    frame = {"x": [last] * len(lines), "y": [low + spot * (high - low) for spot in spots], "text": text}
    mark = alt.Chart(pl.DataFrame(frame)).mark_text(align="left", dx=10, color=INK, fontSize=12.5 if wide else 11.5)
    labelled: alt.Chart = mark.encode(x=x, y=y, text="text:N")
    return labelled


def used(lines: Sequence[ChartLine], least: float = 0.06) -> tuple[float, float]:
    """The range of y: all values and intervals, and some room, in whole steps within 0 and 1; at least `least` wide."""
    values = [v for line in lines for place in line.places for v in (place.y, place.low, place.high) if v is not None]
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 0.0)
    step = 0.01 if high - low < 0.2 else 0.05
    down, up = math.floor((low - room) / step + 1e-9) * step, math.ceil((high + room) / step - 1e-9) * step
    return max(0.0, down), min(1.0, up)


def _steps(low: float, high: float) -> list[float]:
    """Even ticks from `low` to `high`, about five."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (high - low) / s <= 7)
    return [round(k * step, 4) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _percent(low: float, high: float) -> str:
    return f"format(100 * datum.value, '{'.1f' if high - low < 0.02 else 'd'}') + ' %'"


def intervals_chart(bars: Sequence[Bar], title: str, width: int, *, zero: bool = False) -> str:
    """Draw values with their intervals, one below the other, and the paper's values as hollow diamonds.

    `zero`: whether to draw a line at 0 and label differences with their sign.
    """
    values = [
        v for bar in bars for v in (bar.value, bar.low, bar.high, bar.paper, 0.0 if zero else None) if v is not None
    ]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.01
    order = list(dict.fromkeys(bar.label for bar in bars))
    # of two points with the same label, one is drawn above the other
    both = len({bar.late for bar in bars}) > 1
    frame = pl.DataFrame(
        [
            (order.index(b.label) + (0.0 if not both else 0.17 if b.late else -0.17), *b[1:5], "late" if b.late else "")
            for b in bars
        ],
        schema={**dict.fromkeys(("place", "value", "low", "high", "paper"), pl.Float64()), "late": pl.String()},
        orient="row",
    )
    unit = "format(100 * datum.value, '+d')" if zero else PERCENT_TICK
    scale = alt.Scale(domain=[low - room, high + room], nice=False)
    ticks = alt.Axis(labelExpr=unit, tickCount=7 if width >= WIDE else 4, titleAnchor="start")
    x = alt.X("value:Q", title=title, scale=scale, axis=ticks)
    short = {bar.label: bar.short or bar.label for bar in bars}
    axis_labels = [name if width >= WIDE else short[name] for name in order]
    names = alt.Axis(
        values=list(range(len(order))), labelExpr=f"{axis_labels}[datum.value]", grid=False, labelLimit=300
    )
    y = alt.Y(
        "place:Q", title=None, axis=names, scale=alt.Scale(domain=[len(order) - 0.5, -0.5], nice=False, zero=False)
    )
    base = alt.Chart(frame).encode(y=y)
    shape = alt.Shape("late:N", scale=alt.Scale(domain=["", "late"], range=["circle", "square"]), legend=None)
    layers = [
        base.mark_rule(color=INK, strokeWidth=1.4).encode(
            x=alt.X("low:Q", scale=scale, title=title, axis=ticks), x2="high:Q"
        ),
        base.mark_point(fill=INK, stroke=INK, opacity=1, size=55).encode(x=x, shape=shape),
        base.transform_filter("isValid(datum.paper)")
        .mark_point(shape="diamond", filled=False, stroke=INK, strokeWidth=1.4, opacity=1, size=70)
        .encode(x=alt.X("paper:Q", scale=scale, title=title, axis=ticks)),
    ]
    if zero:
        line = alt.Chart(pl.DataFrame({"value": [0.0]})).mark_rule(color=SOFT, strokeDash=[4, 3])
        layers.insert(0, line.encode(x=x))
    height = (70 if width >= WIDE else 80) + (44 if both else 30) * len(order)
    return render_chart(alt.layer(*layers), width, height)


def sweep_chart(lines: Sequence[ChartLine], labels: Sequence[ChartPosition], width: int) -> str:
    """Draw EM on the rows that a score calls Unknown over their share.

    `labels`: the points of SliCK's own label; the first, at the full budget, is drawn as a cross.
    """
    axes = Axes("test rows called Unknown", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    wide = width >= HALF
    high = used(lines)[1]
    x = alt.X(
        "x:Q",
        title=axes.title,
        scale=alt.Scale(domain=[0, 1.3 if wide else 1.62], nice=False),
        axis=alt.Axis(values=list(axes.ticks), grid=False, titleAnchor="start", labelExpr=_percent(0, 1)),
    )
    axis = alt.Axis(values=_steps(0.0, high), labelExpr=_percent(0.0, high))
    y = alt.Y("y:Q", title=None, axis=axis, scale=alt.Scale(domain=[0.0, high], nice=False))
    layers = _line_layers(lines, x, y, 1.0)
    frame = pl.DataFrame([(p.x, p.y) for p in labels], schema=["x", "y"], orient="row")
    for own, shape, size in ((frame.slice(1), "circle", 40), (frame.head(1), "cross", 140)):
        fill = INK if shape == "cross" else "none"
        mark = alt.Chart(own).mark_point(shape=shape, size=size, fill=fill, stroke=INK, opacity=1, strokeWidth=1.2)
        layers.append(mark.encode(x=x, y=y))
    layers.append(_labels(lines, 1.0, (0.0, high), wide, x, y))
    return render_chart(alt.layer(*layers), width, 330 if wide else 300)
