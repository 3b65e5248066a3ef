"""A training run's curves -> SVG (`charts.py` says how).

Every line is labelled where it ends; chosen epochs are vertical rules with their names above the plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.report.charts import FILLS, GRID, INK, SOFT, UNKNOWN_INK, WIDE, render_chart

COLOURS = dict(zip(CATEGORIES, (*FILLS[:3], UNKNOWN_INK), strict=True))
DASHES = dict(zip(CATEGORIES, ([1, 0], [1, 0], [6, 3], [1, 0]), strict=True))
LABEL, ROW = 0.058, 0.072
"""Least distance between two labels, and height of a line of text above the plot, in shares of the y axis."""


class Curve(NamedTuple):
    """One line: its label (`short` on narrow screens), epochs and shares, and how it is drawn."""

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


def epochs_chart(curves: Sequence[Curve], marks: Sequence[Mark], width: int) -> str:
    """Shares over epochs, with chosen epochs marked."""
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
    axis = alt.Axis(
        values=shares, labelExpr="format(100 * datum.value, 'd') + ' %'", grid=False, domain=False, ticks=False
    )
    y = alt.Y("share:Q", title=None, axis=axis, scale=alt.Scale(domain=[0, top], nice=False))
    grid = alt.Chart(pl.DataFrame({"share": shares, "epoch": first, "end": last}))
    layers: list[alt.Chart] = [grid.mark_rule(color=GRID).encode(x=x, x2="end:Q", y=y)]  # not behind the labels
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
    for curve in curves:
        line = alt.Chart(pl.DataFrame(curve.points, schema=["epoch", "share"], orient="row")).encode(x=x, y=y)
        if curve.colour != INK:  # a rim, so that pale colours stand out from the page
            layers.append(line.mark_line(color=SOFT, strokeWidth=curve.width + 1.2, strokeDash=curve.dash))
        layers.append(line.mark_line(color=curve.colour, strokeWidth=curve.width, strokeDash=curve.dash))
        dots = line.mark_point(fill=curve.colour, stroke=SOFT, strokeWidth=0.7, opacity=1, size=28 if wide else 18)
        layers.append(dots)
    layers.append(_labels(curves, last, wide, x, y))
    return render_chart(alt.layer(*layers), width, height)


def apart(values: Sequence[float], gap: float, top: float = 1.0) -> list[float]:
    """The values moved as little as need be for neighbours to lie `gap` apart, none above `top`. Order is
    kept, and of equal ones the first lies highest."""
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


def _labels(curves: Sequence[Curve], last: float, wide: bool, x: alt.X, y: alt.Y) -> alt.Chart:
    """What each line is, and its last share, to the right of it."""
    ends = [curve.points[-1][1] for curve in curves]
    text = [f"{c.label if wide else c.short} {100 * end:.0f} %" for c, end in zip(curves, ends, strict=True)]
    frame = {"epoch": [last] * len(curves), "share": apart(ends, LABEL), "text": text}
    chart = alt.Chart(pl.DataFrame(frame)).mark_text(align="left", dx=9, color=INK, fontSize=12.5 if wide else 11.5)
    labels: alt.Chart = chart.encode(x=x, y=y, text="text:N")
    return labels


def _rule(epoch: float, name: str, height: float, first: float, last: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A vertical line up to its name, which stands on the side with more room."""
    left = epoch > (first + last) / 2
    base = alt.Chart(pl.DataFrame({"epoch": [float(epoch)], "share": [0.0], "top": [height], "text": [name]}))
    line = base.mark_rule(color=SOFT, strokeWidth=1.2, strokeDash=[4, 3]).encode(x=x, y=y, y2="top:Q")
    text = base.mark_text(color=INK, fontSize=12, align="right" if left else "left", dx=-5 if left else 5)
    return [line, text.encode(x=x, y=alt.Y("top:Q", title=None), text="text:N")]


def _ticks(first: float, last: float, most: int) -> list[int]:
    """Whole epochs from the first to the last, at most so many; the last is among them."""
    every = math.ceil((last - first + 1) / most)
    ticks = list(range(math.ceil(first), math.floor(last) + 1, every))
    end = math.floor(last)
    return ticks if ticks[-1] == end else [*(tick for tick in ticks if end - tick > every / 2), end]
