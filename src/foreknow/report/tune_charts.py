"""This module draws the curves of a training run as SVG (`charts.py` renders them).

Every line has its label at its end; chosen epochs are vertical lines with their names above the plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.report.charts import FILLS, GRID, INK, PERCENT_TICK, SOFT, UNKNOWN_INK, WIDE, render_chart

COLOURS = dict(zip(CATEGORIES, (*FILLS[:3], UNKNOWN_INK), strict=True))
DASHES = dict(zip(CATEGORIES, ([1, 0], [1, 0], [6, 3], [1, 0]), strict=True))
LABEL, ROW = 0.058, 0.072
"""The least distance between two labels, and the height of a line of text above the plot, as shares of the y axis."""


class Curve(NamedTuple):
    """A line: its label (`short` on narrow screens), its points (epoch, share 0 to 1), and its style."""

    label: str
    short: str
    points: tuple[tuple[float, float], ...]
    colour: str = INK
    dash: tuple[int, ...] = (1, 0)
    width: float = 2.5


class Mark(NamedTuple):
    """A chosen epoch and its name (`short` on narrow screens)."""

    epoch: float
    text: str
    short: str = ""


def losses_chart(curves: Sequence[Curve], marks: Sequence[Mark], width: int) -> str:
    """Draw losses (nats a token) over epochs, with the chosen epochs marked. `width`: pixels."""
    largest = max(loss for curve in curves for _, loss in curve.points)
    unit = next((step for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if step >= largest), largest)
    scaled = [curve._replace(points=tuple((epoch, loss / unit) for epoch, loss in curve.points)) for curve in curves]
    return epochs_chart(scaled, marks, width, tick=f"format(datum.value * {unit}, '.2~f')", unit=unit)


def epochs_chart(
    curves: Sequence[Curve], marks: Sequence[Mark], width: int, *, tick: str = PERCENT_TICK, unit: float | None = None
) -> str:
    """Draw shares over epochs, with the chosen epochs marked. `width`: pixels.

    `tick`: the Vega expression of an axis label. `unit`: what the share 1 stands for, if labels are not in per cent.
    """
    wide = width >= WIDE
    height = 360 if wide else 320
    places = sorted({epoch for curve in curves for epoch, _ in curve.points})
    first, last = places[0], places[-1]
    if first == last:
        first = last - 1
    span = last - first
    room = span * (0.32 if wide else 0.62)
    top = 1 + ROW * (len(marks) + 0.4)
    x = alt.X(
        "epoch:Q",
        title="epoch",
        scale=alt.Scale(domain=[first - 0.02 * span, last + room], nice=False),
        axis=alt.Axis(
            values=_ticks(first, last, 12 if wide else 6), format="d", grid=False, titleAnchor="start", domain=False
        ),
    )
    shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axis = alt.Axis(values=shares, labelExpr=tick, grid=False, domain=False, ticks=False)
    y = alt.Y("share:Q", title=None, axis=axis, scale=alt.Scale(domain=[0, top], nice=False))
    grid = alt.Chart(pl.DataFrame({"share": shares, "epoch": first, "end": last}))
    layers: list[alt.Chart] = [grid.mark_rule(color=GRID).encode(x=x, x2="end:Q", y=y)]  # ends before the labels
    layers += [
        layer
        for place, mark in enumerate(marks)
        for layer in _rule(
            mark.epoch,
            mark.text if wide or not mark.short else mark.short,
            top - ROW * (place + 0.6),
            first,
            last,
            x,
            y,
        )
    ]
    layers += _lines(curves, wide, x, y)
    layers.append(_labels(curves, last, wide, x, y, unit))
    return render_chart(alt.layer(*layers), width, height)


def apart(values: Sequence[float], gap: float, top: float = 1.0) -> list[float]:
    """Move the values apart until neighbours are at least `gap` apart and none is above `top`.

    The order stays the same; of equal values the first lies highest.
    """
    order = sorted(range(len(values)), key=lambda n: (values[n], -n))
    positions: list[float] = []
    for n in order:
        positions.append(max(values[n], positions[-1] + gap) if positions else values[n])
    limit = top
    for k in range(len(positions) - 1, -1, -1):
        positions[k] = min(positions[k], limit)
        limit = positions[k] - gap
    result = [0.0] * len(values)
    for n, value in zip(order, positions, strict=True):
        result[n] = value
    return result


def _lines(curves: Sequence[Curve], wide: bool, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The curves with their points, behind them an outline so that pale colours stand out from the page."""
    points = pl.DataFrame(
        [
            (n, epoch, share, curve.colour, str(list(curve.dash)), curve.width, curve.width + 1.2)
            for n, curve in enumerate(curves)
            for epoch, share in curve.points
        ],
        schema=["curve", "epoch", "share", "colour", "dash", "width", "outline"],
        orient="row",
    )
    dashes = list(dict.fromkeys(curve.dash for curve in curves))
    dash = alt.StrokeDash(
        "dash:N", scale=alt.Scale(domain=[str(list(d)) for d in dashes], range=[list(d) for d in dashes]), legend=None
    )
    base = alt.Chart(points).encode(x=x, y=y, detail="curve:N")
    layers = []
    if pale := [n for n, curve in enumerate(curves) if curve.colour != INK]:
        behind = alt.Chart(points.filter(pl.col("curve").is_in(pale))).mark_line(color=SOFT)
        width = alt.StrokeWidth("outline:Q", scale=None)
        layers.append(behind.encode(x=x, y=y, detail="curve:N", strokeDash=dash, strokeWidth=width))
    colour = alt.Color("colour:N", scale=None)
    lines = base.mark_line().encode(color=colour, strokeDash=dash, strokeWidth=alt.StrokeWidth("width:Q", scale=None))
    dots = base.mark_point(stroke=SOFT, strokeWidth=0.7, opacity=1, filled=False, size=28 if wide else 18)
    return [*layers, lines, dots.encode(fill=alt.Fill("colour:N", scale=None))]


def _labels(curves: Sequence[Curve], last: float, wide: bool, x: alt.X, y: alt.Y, unit: float | None) -> alt.Chart:
    """The label and the last share of each line, to the right of it."""
    ends = [curve.points[-1][1] for curve in curves]
    values = [f"{100 * end:.0f} %" if unit is None else f"{unit * end:.2f}" for end in ends]
    text = [f"{c.label if wide else c.short} {value}" for c, value in zip(curves, values, strict=True)]
    frame = {"epoch": [last] * len(curves), "share": apart(ends, LABEL), "text": text}
    chart = alt.Chart(pl.DataFrame(frame)).mark_text(align="left", dx=9, color=INK, fontSize=12.5 if wide else 11.5)
    labels: alt.Chart = chart.encode(x=x, y=y, text="text:N")
    return labels


def _rule(epoch: float, name: str, height: float, first: float, last: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A vertical line at an epoch, with its name at the top on the side that has more room."""
    left = epoch > (first + last) / 2
    base = alt.Chart(pl.DataFrame({"epoch": [float(epoch)], "share": [0.0], "top": [height], "text": [name]}))
    line = base.mark_rule(color=SOFT, strokeWidth=1.2, strokeDash=[4, 3]).encode(x=x, y=y, y2="top:Q")
    text = base.mark_text(color=INK, fontSize=12, align="right" if left else "left", dx=-5 if left else 5)
    return [line, text.encode(x=x, y=alt.Y("top:Q", title=None), text="text:N")]


def _ticks(first: float, last: float, most: int) -> list[int]:
    """At most `most` whole epochs from the first to the last, including the last."""
    every = math.ceil((last - first + 1) / most)
    ticks = list(range(math.ceil(first), math.floor(last) + 1, every))
    end = math.floor(last)
    return ticks if ticks[-1] == end else [*(tick for tick in ticks if end - tick > every / 2), end]
