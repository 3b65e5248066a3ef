"""A training run -> the lines of its page: points, courses, facts kept, lost and gained. Pure.

A row is *known before training* by its category, which the audit's few-shot probe gave it. EARLY_STOP is the best
epoch, CONVERGENCE the last one (paper, section 3). A control is another run on rows without an Unknown one; it is
compared row by row where it watched the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.stages.train import curves
from foreknow.stages.train.curves import TRAIN, Line
from foreknow.stats import Interval, mcnemar, wilson

CHANCE = 0.05
"""A difference with a smaller p is called one."""
FEW = 20
"""Shares of fewer rows are said to be of few."""


class Count(NamedTuple):
    """So many of so many rows."""

    hits: int
    rows: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 where there are no rows."""
        return self.hits / self.rows if self.rows else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's."""
        return wilson(self.hits, self.rows)

    @property
    def rest(self) -> Count:
        """The rows that are not hits."""
        return Count(self.rows - self.hits, self.rows)


class PairedCounts(NamedTuple):
    """The same rows answered twice: right only the first time, right only the second, and what chance would give."""

    rows: int
    lost: int
    won: int

    @property
    def p(self) -> float:
        """Exact McNemar p, two-sided."""
        return mcnemar(self.lost, self.won)

    @property
    def clear(self) -> bool:
        """Whether chance alone would seldom give so uneven a change."""
        return self.p < CHANCE


@dataclass(frozen=True)
class TrainRunView:
    """What a page needs of a run. `outcomes` and `rows` are empty where the folder has none (yet).

    `results`: the contract of `results.json`, or {} where the run has not ended. `config`: its settings.
    """

    lines: Sequence[Line]
    outcomes: pl.DataFrame
    rows: pl.DataFrame
    results: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return bool(self.results)

    @property
    def metric(self) -> str:
        """The metric that chose the best epoch."""
        return str(self.results.get("metric") or self.config.get("metric") or "dev_em")

    @property
    def ends(self) -> list[Line]:
        """The evaluations at the ends of epochs."""
        return curves.epochs(self.lines)

    @property
    def early(self) -> Line | None:
        """EARLY_STOP; None where no epoch has ended."""
        return curves.best(self.lines, self.metric)

    @property
    def last(self) -> Line | None:
        """CONVERGENCE: the last epoch; None where none has ended."""
        return self.ends[-1] if self.ends else None

    @property
    def chosen(self) -> tuple[Line, Line]:
        """EARLY_STOP and CONVERGENCE, where an epoch has ended."""
        early = self.early
        if early is None:
            raise ValueError("no epoch has ended")
        return early, self.ends[-1]

    @property
    def sets(self) -> tuple[str, ...]:
        """Test sets in the order given, then dev."""
        names = list(self.lines[-1]["em"]) if self.lines else []
        return (*(name for name in names if name != "dev"), *(name for name in names if name == "dev"))

    @property
    def unknown_rows(self) -> int | None:
        """Unknown rows trained on; None where rows have no categories."""
        of = self.lines[-1]["counts"][TRAIN]["by_category"] if self.lines else {}
        return of.get(UNKNOWN, (0, 0))[1] if of else None

    @property
    def train_rows(self) -> int:
        """Rows trained on."""
        return int(self.lines[-1]["counts"][TRAIN]["rows"]) if self.lines else 0

    def same_rows(self, other: TrainRunView, name: str) -> bool:
        """Whether both watched the same rows under a set's name."""
        mine, theirs = (run.results.get("data", {}).get(name, {}).get("fingerprint") for run in (self, other))
        return mine is not None and mine == theirs


@dataclass(frozen=True)
class MetricCurve:
    """EM of one set at EARLY_STOP and at CONVERGENCE, and between them; `moved` is None where outcomes are missing."""

    name: str
    early: Count
    last: Count
    moved: PairedCounts | None


@dataclass(frozen=True)
class Fate:
    """Rows of a set that were kept, lost or gained, at both points, beside the control's where it has them."""

    what: str
    category: str
    early: Count
    last: Count
    control_early: Count | None
    control_last: Count | None

    @property
    def few(self) -> bool:
        """Whether so few rows can tell little."""
        return self.early.rows < FEW


class Turned(NamedTuple):
    """Rows of one category, or all, that changed between EARLY_STOP and CONVERGENCE, here and in the control."""

    category: str
    here: PairedCounts
    control: PairedCounts | None


class Group(NamedTuple):
    """One relation of a set at EARLY_STOP and CONVERGENCE, and where the control ended."""

    name: str
    early: Count
    last: Count
    control: Count | None


def count(line: Line, name: str, category: str | None = None) -> Count | None:
    """Right (of train: fitted) rows of a set, or of one category of it; None where there are none."""
    of = line["counts"].get(name)
    if of is None:
        return None
    pair = (of["correct"], of["rows"]) if category is None else of["by_category"].get(category)
    return Count(*pair) if pair and pair[1] else None


def known(line: Line) -> Count | None:
    """Fitted rows of the three Known categories."""
    pair = curves.count_known_fitted(line)
    return Count(*pair) if pair else None


def at(run: TrainRunView, line: Line, name: str) -> pl.DataFrame:
    """`row, right` of a set at one evaluation."""
    return run.outcomes.filter(pl.col("step") == line["step"], pl.col("set") == name).select("row", "correct")


def paired(first: pl.DataFrame, second: pl.DataFrame) -> PairedCounts:
    """Two answers to the same rows (`row, right` each)."""
    both = first.join(second, on="row", suffix="_then")
    was, now = both["correct"], both["correct_then"]
    return PairedCounts(both.height, int((was & ~now).sum()), int((~was & now).sum()))


def between(run: TrainRunView, name: str) -> PairedCounts | None:
    """EARLY_STOP against CONVERGENCE."""
    if run.early is None or run.last is None:
        return None
    first = at(run, run.early, name)
    return None if first.is_empty() else paired(first, at(run, run.last, name))


def courses(run: TrainRunView) -> tuple[MetricCurve, ...]:
    """Every set's course, test sets first."""
    if run.early is None or run.last is None:
        return ()
    pairs = [(name, count(run.early, name), count(run.last, name)) for name in run.sets]
    return tuple(MetricCurve(name, a, b, between(run, name)) for name, a, b in pairs if a and b)


def against(run: TrainRunView, control: TrainRunView, name: str) -> tuple[PairedCounts, PairedCounts] | None:
    """This run against the control at EARLY_STOP and at CONVERGENCE, each at its own; None where rows differ.

    `lost`: right here only. `won`: right in the control only.
    """
    lines = [(run.early, control.early), (run.last, control.last)]
    if not run.same_rows(control, name) or any(line is None for pair in lines for line in pair):
        return None
    found = [(at(run, mine, name), at(control, theirs, name)) for mine, theirs in lines if mine and theirs]
    if any(frame.is_empty() for pair in found for frame in pair):
        return None
    early, last = (paired(mine, theirs) for mine, theirs in found)
    return early, last


def fates(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[Fate, ...]:
    """Facts kept, lost and gained in a set; nothing where its rows have no category."""
    if run.early is None or run.last is None:
        return ()
    beside = control if control and run.same_rows(control, name) and control.early and control.last else None
    lines = (run.early, run.last, beside.early if beside else None, beside.last if beside else None)
    found = []
    for what, category in (("kept", HIGHLY_KNOWN), ("kept", MAYBE_KNOWN), ("lost", HIGHLY_KNOWN), ("gained", UNKNOWN)):
        early, last, other_early, other_last = (count(line, name, category) if line else None for line in lines)
        if early is None or last is None:
            continue
        four = [c.rest if c and what == "lost" else c for c in (early, last, other_early, other_last)]
        found.append(Fate(what, category, four[0] or early, four[1] or last, four[2], four[3]))
    return tuple(found)


def turned(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[Turned, ...]:
    """Rows of a set that turned between the two points: all, then by category where rows are known."""
    here = between(run, name)
    if here is None or run.early is None or run.last is None or run.early is run.last:
        return ()
    beside = control if control and run.same_rows(control, name) else None
    other = between(beside, name) if beside else None
    lines = [Turned("all", here, other)]
    labelled = run.rows.filter(pl.col("set") == name, pl.col("category").is_not_null())
    for category in CATEGORIES:
        of = labelled.filter(pl.col("category") == category).select("row")
        if not of.is_empty():
            lines.append(
                Turned(category, _within(run, name, of), _within(beside, name, of) if beside and other else None)
            )
    return tuple(lines)


def _within(run: TrainRunView, name: str, rows: pl.DataFrame) -> PairedCounts:
    """EARLY_STOP against CONVERGENCE over some rows of a set."""
    return paired(*(at(run, line, name).join(rows, on="row") for line in run.chosen))


def as_good(run: TrainRunView) -> tuple[int, ...]:
    """Epochs whose right dev rows chance alone could tell from those of the epoch with the best dev EM."""
    leader = curves.best(run.lines, "dev_em") if run.lines and "dev" in run.lines[-1]["em"] else None
    if leader is None or (first := at(run, leader, "dev")).is_empty():
        return ()
    return tuple(int(line["epoch"]) for line in run.ends if not paired(first, at(run, line, "dev")).clear)


def groups(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[Group, ...]:
    """A set's relations, those that lost most rows first; nothing where rows are unknown or of one relation."""
    of = run.rows.filter(pl.col("set") == name).select("row", "group")
    if run.early is None or run.last is None or of["group"].n_unique() < 2:
        return ()
    beside = control.last if control and run.same_rows(control, name) else None
    parts = [_by_group(run, line, name, of) for line in (run.early, run.last)]
    other = _by_group(control, beside, name, of) if control and beside else {}
    found = [Group(key, parts[0][key], parts[1][key], other.get(key)) for key in parts[0]]
    return tuple(sorted(found, key=lambda g: (g.last.hits - g.early.hits, -g.early.rows, g.name)))


def _by_group(run: TrainRunView, line: Line, name: str, of: pl.DataFrame) -> dict[str, Count]:
    joined = of.join(at(run, line, name), on="row").group_by("group").agg(pl.col("correct").sum(), pl.len())
    return {str(key): Count(right, rows) for key, right, rows in joined.iter_rows()}


def same_known(run: TrainRunView, control: TrainRunView) -> bool:
    """Whether the control was trained on exactly this run's Known rows (the paper's D_Known)."""
    kept = [r.rows.filter(pl.col("set") == TRAIN, pl.col("category").is_in(KNOWN)) for r in (run, control)]
    mine, theirs = (frame.select("question", "answer").sort("question", "answer") for frame in kept)
    return not mine.is_empty() and control.unknown_rows == 0 and mine.equals(theirs)
