"""This module reads the counts of fitted spans of a run's long answers, and draws them over epochs.

A span is fitted if each of its tokens is the arg max behind the gold text before it (`span_labels.py`). Train spans are
drawn by category. Of the other sets, the page shows what was kept (spans that the model said before training and that
no answer to train on contains) and what was learnt (Unknown spans).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.report import page
from foreknow.report.charts import INK, SOFT
from foreknow.report.tune_charts import COLOURS, DASHES, Curve, Mark, epochs_chart
from foreknow.report.tune_tables import Count, TrainRunView
from foreknow.stages.train.curves import TRAIN, Line
from foreknow.stages.train.span_labels import KEPT, NEW

_NAMES = {KEPT: "said before training, not trained on", NEW: "new to the model"}


class SpanPoint(NamedTuple):
    """Fitted spans of one label at EARLY_STOP and CONVERGENCE."""

    name: str
    early: Count
    last: Count


class SetSpans(NamedTuple):
    """The spans of one set: the number of labelled ones, the chart for wide and for narrow screens, the numbers."""

    name: str
    spans: int
    chart: tuple[Markup, Markup]
    points: tuple[SpanPoint, ...]


def span_reports(run: TrainRunView, marks: Sequence[Mark]) -> tuple[SetSpans, ...]:
    """Return a report for train and every other set that has labelled spans; none before an epoch has ended.

    `marks`: the chosen epochs.
    """
    if not run.ends:
        return ()
    early, last = run.chosen
    names = [name for name in (TRAIN, *run.sets) if name in last.get("spans", {})]
    reports = []
    for name in names:
        counts = last["spans"][name]
        points = [
            SpanPoint(_NAMES.get(part, part), before, after)
            for part in (*CATEGORIES, NEW, KEPT)
            if (before := _count(early, name, part)) and (after := _count(last, name, part))
        ]
        curves = _train_curves(run, name) if name == TRAIN else _held_out_curves(run, name)
        total = sum(counts[category][1] for category in CATEGORIES if category in counts)
        reports.append(SetSpans(name, total, page.both(epochs_chart, curves, list(marks)), tuple(points)))
    return tuple(reports)


def _train_curves(run: TrainRunView, name: str) -> list[Curve]:
    """Fitted spans by category, and of those that are new to the model."""
    curves = [
        Curve(f"{category}, {of.rows:,} spans:", category, points, COLOURS[category], tuple(DASHES[category]))
        for category in CATEGORIES
        if (of := _count(run.lines[-1], name, category)) and (points := _points(run, name, category))
    ]
    if (of := _count(run.lines[-1], name, NEW)) and (points := _points(run, name, NEW)):
        curves.append(Curve(f"new to the model, {of.rows:,}:", "new", points, SOFT, (2, 3), 1.8))
    return curves


def _held_out_curves(run: TrainRunView, name: str) -> list[Curve]:
    """What was kept and what was learnt of a set that was not trained on."""
    kinds = (
        (KEPT, "kept", "kept", INK, (1, 0), 3.0),
        (UNKNOWN, "Unknown, learnt", "Unknown", COLOURS[UNKNOWN], (1, 0), 2.5),
        (NEW, "new, learnt", "new", SOFT, (2, 3), 1.8),
    )
    return [
        Curve(f"{label}, {of.rows:,} spans:", short, points, colour, dash, width)
        for part, label, short, colour, dash, width in kinds
        if (of := _count(run.lines[-1], name, part)) and (points := _points(run, name, part))
    ] or _train_curves(run, name)


def _points(run: TrainRunView, name: str, part: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(line["epoch"]), of.share) for line in run.lines if (of := _count(line, name, part)))


def _count(line: Line, name: str, part: str) -> Count | None:
    pair = line.get("spans", {}).get(name, {}).get(part)
    return Count(*pair) if pair else None
