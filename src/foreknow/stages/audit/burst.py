"""Measure a short burst of an audit's work on this machine: exemplar prompts, rows, long answers, spans."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data.schema import GOLD
from foreknow.models import loading
from foreknow.stages.audit.chunks import label_spans, open_span_prober
from foreknow.stages.audit.executor import ChunkProber, OpenProber, PromptPlan

Clock = Callable[[], float]
"""Returns seconds since any fixed moment, as `time.monotonic` does."""

FIRST_ROWS: Final = 2
"""Rows that are probed twice, with computing their exemplar prefixes and without."""


class Burst(NamedTuple):
    """What a burst measured: the `rows` that it probed last, seconds to compute the exemplar prefixes of one group
    (`prefix_seconds`), seconds to probe one row behind them (`row_seconds`), and seconds of the whole burst."""

    rows: pl.DataFrame
    prefix_seconds: float
    row_seconds: float
    seconds: float


def measure_burst(
    prober: ChunkProber, rows: pl.DataFrame, seconds: float, *, extend: bool = True, clock: Clock = time.monotonic
) -> Burst:
    """Probe the first of `rows` twice, and then as many of `rows` as fit in `seconds` in all (unless not `extend`).

    `rows`: rows with groups together, not empty. The first rows are measured in any case, so a slow model takes longer
    than `seconds`.
    """
    first = rows.head(FIRST_ROWS)
    cold, warm = (run_time(lambda: prober.probe(first), clock) for _ in range(2))
    prefix_seconds = max(cold - warm, 0.0) / first["group"].n_unique()
    row_seconds, measured, spent = warm / first.height, first, cold + warm
    more = rows.head(_affordable(rows, first, seconds - spent, row_seconds, prefix_seconds))
    if extend and more.height > first.height:
        new_groups = more["group"].n_unique() - first["group"].n_unique()
        longer = run_time(lambda: prober.probe(more), clock)
        row_seconds = max(longer - prefix_seconds * new_groups, 1e-9) / more.height
        measured, spent = more, spent + longer
    return Burst(measured, prefix_seconds, row_seconds, spent)


def _affordable(
    rows: pl.DataFrame, first: pl.DataFrame, seconds: float, row_seconds: float, prefix_seconds: float
) -> int:
    """Return how many of `rows` can be probed in `seconds`; the prefixes of the groups of `first` are computed."""
    groups = set(first["group"])
    for count, group in enumerate(rows["group"]):
        seconds -= row_seconds + (0.0 if group in groups else prefix_seconds)
        groups.add(group)
        if seconds < 0:
            return count
    return rows.height


def measure_long_answers(
    score: Callable[[pl.DataFrame], object], rows: pl.DataFrame, most: int = 1, *, clock: Clock = time.monotonic
) -> float:
    """Return the seconds that scoring one long answer takes: the mean over `most` rows, evenly spaced by length.

    0 if there are no rows. One row is that of middle length.
    """
    if rows.is_empty():
        return 0.0
    ordered, count = rows.sort(GOLD.str.len_chars()), min(most, rows.height)
    chosen = ordered[[(2 * at + 1) * rows.height // (2 * count) for at in range(count)]]
    return run_time(lambda: score(chosen), clock) / count


def span_seconds(
    config: AuditConfig,
    loaded: loading.Loaded,
    probing: OpenProber,
    plan: PromptPlan,
    *,
    clock: Clock = time.monotonic,
) -> float:
    """Return the seconds that labelling the spans of all of the plan's long answers takes.

    Measured on a few rows with the middle number of spans; 0 if there are no spans to label.
    """
    rows = plan.long.filter(pl.col("fact_spans").list.len() > 0) if plan.spans is not None else plan.long.clear()
    if plan.spans is None or rows.is_empty():
        return 0.0
    spans = plan.spans
    few = rows.sort(pl.col("fact_spans").list.len(), "row").slice(max(rows.height // 2 - 2, 0), 4)
    with open_span_prober(loaded, probing.prompter, config, spans, probing.packed) as prober:
        # the first pass also computes the exemplars
        first, second = (run_time(lambda: list(label_spans(prober, spans.finder, [(0, few)])), clock) for _ in range(2))
    return max(first - second, 0.0) + second / few.height * rows.height


def run_time(work: Callable[[], object], clock: Clock = time.monotonic) -> float:
    """Return the seconds that `work` takes."""
    began = clock()
    work()
    return clock() - began
