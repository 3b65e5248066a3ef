"""Holds what the verdict on a training run and the options after it are based on."""

from __future__ import annotations

from dataclasses import dataclass

from foreknow.format.numbers import count
from foreknow.report.tune_tables import Count, MetricCurve, PairedCounts
from foreknow.stages.train.selection import Chooser


@dataclass(frozen=True)
class Control:
    """The control run: its rows, its chosen epochs, and its results.

    `rows`, `unknown`: rows trained on, and the Unknown ones among them. `same_known`: whether its rows are exactly
    this run's Known rows. `early`, `last`: epochs. `courses`: EM by set, for sets with the same rows as this run's.
    `against`: this run compared with it at EARLY_STOP and CONVERGENCE (`lost`: right only here, `won`: right only
    there). `differ`: the settings that are not the same.
    """

    rows: int
    unknown: int | None
    same_known: bool
    early: int
    last: int
    courses: dict[str, MetricCurve]
    against: dict[str, tuple[PairedCounts, PairedCounts]]
    steps: int
    differ: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the control was trained on, in words."""
        if self.same_known:
            return f"Trained on the same {count(self.rows, 'Known row')} alone"
        if self.unknown == 0:
            return f"Trained on {count(self.rows, 'row')}, none of them Unknown"
        return f"Trained on {count(self.rows, 'row')}"


@dataclass(frozen=True)
class TrainReportData:
    """The numbers that the verdict is based on.

    `best`, `last`: epochs. `planned`: epochs in the settings. `chosen`: the metric's value at the best epoch.
    `courses`: EM of every set, test sets first, dev last. `unknown`: Unknown train rows fitted at EARLY_STOP and at
    CONVERGENCE; None if there are none, or if the rows have no categories (`labelled`). `began`: the epoch at which
    overfitting to new facts began, if dev's rows can tell. `falls`: whether dev EM fell at all while they were learnt.
    `as_good`: epochs whose dev answers do not clearly differ from those of the best.
    `gained`: Unknown rows of the judged set that are right at EARLY_STOP. `ceiling`: the share of rows that can be
    fitted. `chooser`: what chose the best epoch (`selection.py`). `dev_loss`: at the best epoch and at the last, in
    nats a token; None if the run did not measure it. `fitted`: the share of training rows fitted at the best epoch and
    at the last. `keep`: whose weights the run kept, best, last or both; none if another trainer keeps them. `held`:
    whether known rows were replayed, or the model held to its predictions before training. `spans`: of the labelled
    spans inside long answers trained on, the Known ones and those new to the model that are fitted, each at the best
    epoch and at the last. `canaries`: the facts watched besides the rows, before training against the best epoch and
    against the last; `rows` are those right before. None if none was watched. `is_mix`: whether foreknow mix wrote the
    training set. `has_audit`: whether the settings name an audit.
    """

    steps: int
    best: int
    last: int
    planned: int
    metric: str
    chosen: float
    courses: tuple[MetricCurve, ...]
    unknown: tuple[Count, Count] | None = None
    labelled: bool = True
    began: int | None = None
    falls: bool = False
    as_good: tuple[int, ...] = ()
    gained: Count | None = None
    control: Control | None = None
    ceiling: float = 1.0
    finished: bool = True
    chooser: Chooser = "metric"
    dev_loss: tuple[float, float] | None = None
    fitted: tuple[float, float] = (1.0, 1.0)
    keep: str = "best"
    held: bool = False
    spans: tuple[tuple[Count, Count], tuple[Count, Count]] | None = None
    canaries: tuple[PairedCounts, PairedCounts] | None = None
    is_mix: bool = True
    has_audit: bool = True

    @property
    def dev(self) -> MetricCurve | None:
        """EM of dev; None if there is no dev set."""
        return next((c for c in self.courses if c.name == "dev"), None)

    @property
    def judged(self) -> MetricCurve | None:
        """The set that the verdict is about: the first test set, else dev, which chose the epoch."""
        return self.courses[0] if self.courses else None
