"""This module computes the lines of a training run's page: chosen epochs, curves, facts kept, lost and gained.

Its functions have no side effects. Whether a row is *known before training* follows from its category, which the
few-shot probe of the audit assigned. EARLY_STOP is the best epoch, CONVERGENCE the last one (paper, section 3). A
control is another run, on rows without Unknown ones; the two are compared row by row on the sets whose rows are the
same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.stages.train import curves, selection
from foreknow.stages.train.curves import CANARIES, TRAIN, Line
from foreknow.stats import Interval, mcnemar, wilson

CHANCE = 0.05
"""The page calls a difference clear if its p-value is below this."""
LEAST_OF_LONG = 0.1
"""Where answers are long, exact match of at most this share of a set at every epoch is not drawn."""
FEW = 20
"""The page marks shares of fewer rows than this as "few rows"."""


class Count(NamedTuple):
    """A number of rows (`hits`) among `rows`."""

    hits: int
    rows: int

    @property
    def share(self) -> float:
        """The share of hits, 0 to 1; 0 if there are no rows."""
        return self.hits / self.rows if self.rows else 0.0

    @property
    def interval(self) -> Interval:
        """The Wilson 95 % interval of the share."""
        return wilson(self.hits, self.rows)

    @property
    def rest(self) -> Count:
        """The rows that are not hits."""
        return Count(self.rows - self.hits, self.rows)


class PairedCounts(NamedTuple):
    """The same rows answered twice.

    `rows`: their number. `lost`: rows right only the first time. `won`: rows right only the second time.
    """

    rows: int
    lost: int
    won: int

    @property
    def p(self) -> float:
        """The two-sided p-value of the exact McNemar test."""
        return mcnemar(self.lost, self.won)

    @property
    def clear(self) -> bool:
        """Whether the p-value is below `CHANCE`."""
        return self.p < CHANCE


@dataclass(frozen=True)
class TrainRunView:
    """The data of a run that its page needs.

    `lines`: the evaluations. `outcomes` and `rows` are empty if the folder does not have them (yet). `results`: the
    content of `results.json`, or {} if the run has not ended. `config`: the settings.
    """

    lines: Sequence[Line]
    outcomes: pl.DataFrame
    rows: pl.DataFrame
    results: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return bool(self.results)

    @property
    def metric(self) -> str:
        """The metric that chose the best epoch."""
        metric = str(self.results.get("metric") or self.config.get("metric") or "dev_em")
        return "dev_em" if metric == selection.AUTO else metric  # a run under way has not said yet what auto is

    @property
    def chooser(self) -> selection.Chooser:
        """What chose EARLY_STOP."""
        return selection.chooser(self.lines, self.metric)

    @property
    def ever_right(self) -> bool:
        """Whether a row of any set is right, or fitted, at any evaluation."""
        counts = (of for line in self.lines for name, of in line["counts"].items() if name != CANARIES)
        return any(of["correct"] for of in counts)

    @property
    def shows_exact_match(self) -> bool:
        """Whether a chart of exact match has something to show: where the answers are long, a tenth of some set."""
        least = LEAST_OF_LONG if any("spans" in line for line in self.lines) else 0.0
        shares = (
            of["correct"] / of["rows"]
            for line in self.lines
            for name, of in line["counts"].items()
            if name != CANARIES and of["rows"]
        )
        return any(share > least for share in shares)

    @property
    def ends(self) -> list[Line]:
        """The evaluations at the ends of epochs."""
        return curves.epochs(self.lines)

    @property
    def early(self) -> Line | None:
        """The evaluation at EARLY_STOP, of all rows if all were measured there; None if no epoch has ended."""
        return self._whole(selection.best(self.lines, self.metric), "early_stop")

    @property
    def last(self) -> Line | None:
        """The evaluation at CONVERGENCE, the last epoch, as for `early`; None if no epoch has ended."""
        return self._whole(self.ends[-1] if self.ends else None, "convergence")

    @property
    def chosen(self) -> tuple[Line, Line]:
        """The evaluations at EARLY_STOP and CONVERGENCE. Raises ValueError if no epoch has ended."""
        early, last = self.early, self.last
        if early is None or last is None:
            raise ValueError("no epoch has ended")
        return early, last

    def _whole(self, line: Line | None, point: str) -> Line | None:
        """The line of a point in the results, which has the counts of all rows; `line` if the run has not ended."""
        whole: Line | None = self.results.get(point, {}).get("metrics")
        return whole if whole and line and whole["step"] == line["step"] else line

    @property
    def sets(self) -> tuple[str, ...]:
        """The test sets in their order in the settings, then dev."""
        names = [name for name in self.lines[-1]["em"] if name != CANARIES] if self.lines else []
        return (*(name for name in names if name != "dev"), *(name for name in names if name == "dev"))

    @property
    def unknown_rows(self) -> int | None:
        """The number of Unknown rows trained on, as far as they are measured; None if the rows have no categories."""
        line = self.last or (self.lines[-1] if self.lines else None)
        of = line["counts"][TRAIN]["by_category"] if line else {}
        return of.get(UNKNOWN, (0, 0))[1] if of else None

    @property
    def train_rows(self) -> int:
        """The number of rows trained on; of a run that has not ended, of those measured."""
        whole = self.results.get("data", {}).get(TRAIN, {}).get("rows")
        return int(whole or (self.lines[-1]["counts"][TRAIN]["rows"] if self.lines else 0))

    def same_rows(self, other: TrainRunView, name: str) -> bool:
        """Whether both runs measured the same rows under the set's name (by the fingerprint of its file)."""
        mine, theirs = (run.results.get("data", {}).get(name, {}).get("fingerprint") for run in (self, other))
        return mine is not None and mine == theirs


@dataclass(frozen=True)
class MetricCurve:
    """EM of one set at EARLY_STOP and at CONVERGENCE.

    `moved`: the rows that changed between the two; None if outcomes are missing.
    """

    name: str
    early: Count
    last: Count
    moved: PairedCounts | None


@dataclass(frozen=True)
class Fate:
    """The rows of a category that are kept, lost or gained at EARLY_STOP and CONVERGENCE.

    `what`: "kept", "lost" or "gained". The control's counts are None if there is no control with the same rows.
    """

    what: str
    category: str
    early: Count
    last: Count
    control_early: Count | None
    control_last: Count | None

    @property
    def few(self) -> bool:
        """Whether there are too few rows for the share to say much."""
        return self.early.rows < FEW


class RowChanges(NamedTuple):
    """The rows of one category, or of all, that changed between EARLY_STOP and CONVERGENCE, here and in the control."""

    category: str
    here: PairedCounts
    control: PairedCounts | None


class Group(NamedTuple):
    """One relation of a set at EARLY_STOP and CONVERGENCE, and at the CONVERGENCE of the control."""

    name: str
    early: Count
    last: Count
    control: Count | None


def count(line: Line, name: str, category: str | None = None) -> Count | None:
    """The right rows (in train: the fitted rows) of a set or of one category of it; None if it has no rows."""
    of = line["counts"].get(name)
    if of is None:
        return None
    pair = (of["correct"], of["rows"]) if category is None else of["by_category"].get(category)
    return Count(*pair) if pair and pair[1] else None


def known(line: Line) -> Count | None:
    """The fitted train rows of the three Known categories."""
    pair = curves.count_known_fitted(line)
    return Count(*pair) if pair else None


def at(run: TrainRunView, line: Line, name: str) -> pl.DataFrame:
    """The columns `row` and `correct` of a set at one evaluation."""
    return run.outcomes.filter(pl.col("step") == line["step"], pl.col("set") == name).select("row", "correct")


def paired(first: pl.DataFrame, second: pl.DataFrame) -> PairedCounts:
    """Compare two evaluations of the same rows (frames with `row` and `correct`)."""
    both = first.join(second, on="row", suffix="_then")
    was, now = both["correct"], both["correct_then"]
    return PairedCounts(both.height, int((was & ~now).sum()), int((~was & now).sum()))


def between(run: TrainRunView, name: str) -> PairedCounts | None:
    """Compare EARLY_STOP with CONVERGENCE on a set; None if no epoch has ended or outcomes are missing."""
    if run.early is None or run.last is None:
        return None
    first = at(run, run.early, name)
    return None if first.is_empty() else paired(first, at(run, run.last, name))


def courses(run: TrainRunView) -> tuple[MetricCurve, ...]:
    """EM of every set at the two points, test sets first."""
    if run.early is None or run.last is None:
        return ()
    pairs = [(name, count(run.early, name), count(run.last, name)) for name in run.sets]
    return tuple(MetricCurve(name, a, b, between(run, name)) for name, a, b in pairs if a and b)


def against(run: TrainRunView, control: TrainRunView, name: str) -> tuple[PairedCounts, PairedCounts] | None:
    """Compare this run with the control at EARLY_STOP and at CONVERGENCE, each run at its own epoch.

    `lost`: rows right only in this run. `won`: rows right only in the control. None if the rows are not the same.
    """
    lines = [(run.early, control.early), (run.last, control.last)]
    if not run.same_rows(control, name) or any(line is None for pair in lines for line in pair):
        return None
    pairs = [(at(run, mine, name), at(control, theirs, name)) for mine, theirs in lines if mine and theirs]
    if any(frame.is_empty() for pair in pairs for frame in pair):
        return None
    early, last = (paired(mine, theirs) for mine, theirs in pairs)
    return early, last


def fates(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[Fate, ...]:
    """The facts kept, lost and gained in a set; empty if its rows have no category."""
    if run.early is None or run.last is None:
        return ()
    beside = control if control and run.same_rows(control, name) and control.early and control.last else None
    lines = (run.early, run.last, beside.early if beside else None, beside.last if beside else None)
    fate_lines = []
    for what, category in (("kept", HIGHLY_KNOWN), ("kept", MAYBE_KNOWN), ("lost", HIGHLY_KNOWN), ("gained", UNKNOWN)):
        early, last, other_early, other_last = (count(line, name, category) if line else None for line in lines)
        if early is None or last is None:
            continue
        four = [c.rest if c and what == "lost" else c for c in (early, last, other_early, other_last)]
        fate_lines.append(Fate(what, category, four[0] or early, four[1] or last, four[2], four[3]))
    return tuple(fate_lines)


def row_changes(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[RowChanges, ...]:
    """The rows of a set that changed between the two points: all rows, then each category if the rows have one."""
    here = between(run, name)
    if here is None or run.early is None or run.last is None or run.early["step"] == run.last["step"]:
        return ()
    beside = control if control and run.same_rows(control, name) else None
    other = between(beside, name) if beside else None
    lines = [RowChanges("all", here, other)]
    labelled = run.rows.filter(pl.col("set") == name, pl.col("category").is_not_null())
    for category in CATEGORIES:
        of = labelled.filter(pl.col("category") == category).select("row")
        if not of.is_empty():
            lines.append(
                RowChanges(category, _within(run, name, of), _within(beside, name, of) if beside and other else None)
            )
    return tuple(lines)


def _within(run: TrainRunView, name: str, rows: pl.DataFrame) -> PairedCounts:
    """Compare EARLY_STOP with CONVERGENCE on some rows of a set."""
    return paired(*(at(run, line, name).join(rows, on="row") for line in run.chosen))


def as_good(run: TrainRunView) -> tuple[int, ...]:
    """The epochs whose answers on dev do not clearly differ (McNemar) from those of the epoch with the best dev EM."""
    leader = selection.best(run.lines, "dev_em") if run.lines and "dev" in run.lines[-1]["em"] else None
    if leader is None or (first := at(run, leader, "dev")).is_empty():
        return ()
    return tuple(int(line["epoch"]) for line in run.ends if not paired(first, at(run, line, "dev")).clear)


def groups(run: TrainRunView, control: TrainRunView | None, name: str) -> tuple[Group, ...]:
    """The relations of a set, those that lost most rows first; empty without rows or with a single relation."""
    of = run.rows.filter(pl.col("set") == name).select("row", "group")
    if run.early is None or run.last is None or of["group"].n_unique() < 2:
        return ()
    beside = control.last if control and run.same_rows(control, name) else None
    parts = [_by_group(run, line, name, of) for line in (run.early, run.last)]
    other = _by_group(control, beside, name, of) if control and beside else {}
    lines = [Group(key, parts[0][key], parts[1][key], other.get(key)) for key in parts[0]]
    return tuple(sorted(lines, key=lambda g: (g.last.hits - g.early.hits, -g.early.rows, g.name)))


def _by_group(run: TrainRunView, line: Line, name: str, of: pl.DataFrame) -> dict[str, Count]:
    counts = of.join(at(run, line, name), on="row").group_by("group").agg(pl.col("correct").sum(), pl.len())
    return {str(key): Count(right, rows) for key, right, rows in counts.iter_rows()}


def same_known(run: TrainRunView, control: TrainRunView) -> bool:
    """Whether the control was trained on exactly this run's Known rows (the paper's D_Known)."""
    frames = [r.rows.filter(pl.col("set") == TRAIN, pl.col("category").is_in(KNOWN)) for r in (run, control)]
    mine, theirs = (frame.select("question", "answer").sort("question", "answer") for frame in frames)
    return not mine.is_empty() and control.unknown_rows == 0 and mine.equals(theirs)
