"""This module renders the comparison of several runs as one page: verdict, table, paired tests, settings, chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from foreknow.format.numbers import count, exact, p_value
from foreknow.format.text import display
from foreknow.report import page
from foreknow.report.charts import FILLS, GRID, INK, PERCENT_TICK, SOFT, WIDE, render_chart
from foreknow.version import __version__

if TYPE_CHECKING:
    from foreknow.stages.compare.comparison import Paired, RunComparison, RunLine, SetComparison

KINDS = {"audit": "audits", "evaluate": "evaluations", "tune": "tune runs"}
ROW_HEIGHT = 17
"""The height of a run's line in the chart, in pixels."""


@dataclass(frozen=True)
class ComparisonVerdict:
    """What the comparison says: a sentence, what it means, and one sentence for each run beside the reference."""

    headline: str
    meaning: str
    points: tuple[str, ...]


def render_comparison(comparison: RunComparison) -> str:
    """Render the whole page. It holds names of runs and models and settings, and no text of any row."""
    first = comparison.sets[0]
    return page.render(
        "comparison.html.j2",
        warning=None,
        version=__version__,
        comparison=comparison,
        verdict=comparison_verdict(comparison),
        kind=KINDS[comparison.stage],
        figure=figure_of(comparison.stage),
        first=first,
        categories=_categories(first),
        chart=page.both(categories_chart, _chart_lines(first)) if _categories(first) else None,
        points=points,
        p=p_value,
        settings={name.replace("_", " "): texts for name, texts in comparison.settings.items()},
    )


def figure_of(stage: str) -> str:
    """What is compared, as a noun."""
    return "share of Known rows" if stage == "audit" else "exact match"


def comparison_verdict(comparison: RunComparison) -> ComparisonVerdict:
    """The verdict on the first set."""
    of = comparison.sets[0]
    reference, others = of.lines[0], of.lines[1:]
    tested = [line for line in others if line.paired and line.paired.rows]
    better = [line for line in tested if line.paired and line.paired.decided and line.paired.difference.value > 0]
    worse = [line for line in tested if line.paired and line.paired.decided and line.paired.difference.value < 0]
    what = "knows" if comparison.stage == "audit" else "answers"
    where = f" on {of.name}" if of.name else ""
    if not tested:
        headline = f"No run has a row in common with {_named(reference)}{where}."
    elif better:
        best = max(better, key=lambda line: line.paired.difference.value if line.paired else 0.0)
        more = "" if what == "knows" else " right"
        headline = f"{_named(best)} {what} more rows{more} than {_named(reference)}{where}."
    elif worse:
        few = "fewer rows" if what == "knows" else "fewer rows right"
        names = " and ".join(_named(line) for line in worse[:3])
        verb = {"knows": "know", "answers": "answer"}[what] if len(worse) > 1 else what
        headline = f"{names} {verb} {few} than {_named(reference)}{where}."
    else:
        headline = f"No run differs from {_named(reference)}{where} by more than chance allows."
    holm = ", adjusted for several runs (Holm)" if len(tested) > 1 else ""
    meaning = (
        "Each run is compared with the first one, row by row, on the rows that both have. A difference counts as more "
        f"than chance where the exact McNemar test gives p below 0.05{holm}."
    )
    return ComparisonVerdict(headline, meaning, tuple(_point(line, reference) for line in others))


def _named(line: RunLine) -> str:
    return f"{line.letter} ({display(line.run.name, 40)})"


def _point(line: RunLine, reference: RunLine) -> str:
    paired = line.paired
    assert paired is not None
    if not paired.rows:
        return f"{_named(line)} has no row in common with {reference.letter}: the two cannot be tested."
    share = exact(line.overall.interval.value)
    if not paired.won and not paired.lost:
        return f"{_named(line)}: {share}, the same outcome as {reference.letter} on {count(paired.rows, 'row')}."
    side = "more than chance" if paired.decided else "within chance"
    return (
        f"{_named(line)}: {share}, {points(paired)} than {reference.letter}; {count(paired.won, 'row')} won, "
        f"{paired.lost:,} lost: {side} ({p_value(paired.holm)})."
    )


def points(paired: Paired) -> str:
    """A difference in percentage points with its interval: 5.3 points more (2.1 to 8.5)."""
    value, low, high = (100 * x for x in (paired.difference.value, paired.difference.low, paired.difference.high))
    if value < 0:
        return f"{-value:.1f} points less ({-high:.1f} to {-low:.1f})"
    return f"{value:.1f} points more ({low:.1f} to {high:.1f})"


def _categories(of: SetComparison) -> list[str]:
    """The categories that any run has on this set, in their order."""
    return list(dict.fromkeys(name for line in of.lines for name in line.categories))


def _chart_lines(of: SetComparison) -> list[tuple[str, RunLine]]:
    return [(category, line) for category in ("all rows", *_categories(of)) for line in of.lines]


def categories_chart(lines: Sequence[tuple[str, RunLine]], width: int) -> str:
    """Draw each run's share in each category as a point with its 95 % interval; runs are named by their letters."""
    short = width < WIDE
    values = []
    for category, line in lines:
        share = line.overall if category == "all rows" else line.categories.get(category)
        if share is None or not share.rows:
            continue
        of = share.interval
        values.append(
            {
                "category": category.removesuffix("Known") if short and category != "Unknown" else category,
                "run": line.letter,
                "share": of.value,
                "low": of.low,
                "high": of.high,
                "label": f"{line.letter} {100 * of.value:.0f} %" if short else f"{line.letter}  {exact(of.value)}",
            }
        )
    frame = pl.DataFrame(values)
    order = frame["category"].unique(maintain_order=True).to_list()
    y = alt.Y("category:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, grid=False))
    base = alt.Chart(frame).encode(y=y, yOffset=alt.YOffset("run:N", scale=alt.Scale(paddingOuter=0.25)))
    x_scale = alt.Scale(domain=[0, 1.12 if short else 1.06])
    axis = alt.Axis(labelExpr=PERCENT_TICK, values=[0, 0.25, 0.5, 0.75, 1], gridColor=GRID)
    whiskers = base.mark_rule(color=SOFT, strokeWidth=1.5).encode(
        x=alt.X("low:Q", scale=x_scale, axis=axis, title=None), x2="high:Q"
    )
    dots = base.mark_circle(color=FILLS[1], size=55, opacity=1).encode(x=alt.X("share:Q", scale=x_scale))
    labels = base.mark_text(align="left", dx=6, color=INK, fontSize=11).encode(
        x=alt.X("high:Q", scale=x_scale), text="label:N"
    )
    runs = frame["run"].n_unique()
    return render_chart(whiskers + dots + labels, width, 40 + ROW_HEIGHT * runs * len(order) + 10 * len(order))
