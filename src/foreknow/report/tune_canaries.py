"""This module reads what a training run's page shows of the known facts that were watched besides the user's rows.

These are the canaries (`stages/train/canaries.py`), the known rows that were replayed, and the points between the
weights before and after training (`--average`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from foreknow.report.format import source
from foreknow.report.tune_tables import PairedCounts, TrainRunView
from foreknow.stages.train.curves import CANARIES, Line
from foreknow.stats import Interval, wilson

SHOWN = 8
"""The most lost rows that the page shows."""
_COLUMNS = ("row", "question", "answers", "before")


class CanaryLine(NamedTuple):
    """The canaries at one checkpoint: `kept` of those right before training, and the interval of the share `lost`."""

    name: str
    epoch: str
    before: int
    kept: int
    lost: int
    gained: int
    interval: Interval
    p: float


class LostCanary(NamedTuple):
    """A row that was right before training and is wrong at the last epoch."""

    question: str
    answer: str


class AveragePoint(NamedTuple):
    """The measurement at one point of `--average`; `canaries`: those kept, or None. `saved`: it is in averaged/."""

    alpha: float
    fitted: int
    train_rows: int
    dev_em: float
    dev_loss: float
    canaries: int | None
    saved: bool


class CanaryReport(NamedTuple):
    """Everything that the page shows of known rows besides the user's sets."""

    lines: tuple[CanaryLine, ...]
    source: str
    lost: tuple[LostCanary, ...]
    replay: str
    points: tuple[AveragePoint, ...]


def canary_report(run: TrainRunView, folder: Path, *, show_rows: bool) -> CanaryReport | None:
    """Read the section of the page; None if the run watched no canaries, replayed no rows and averaged no weights."""
    chosen = [("EARLY_STOP" if run.finished else "best so far", run.early), (_end(run), run.last)]
    lines = tuple(_line(name, line) for name, line in chosen if line is not None and CANARIES in line)
    points = _points(run)
    replay = _replay(run.results.get("replay") or {})
    if not lines and not points and not replay:
        return None
    lost = _lost(run, folder) if show_rows and lines else ()
    return CanaryReport(lines, source(str((run.results.get(CANARIES) or {}).get("source") or "")), lost, replay, points)


def _end(run: TrainRunView) -> str:
    return "CONVERGENCE" if run.finished else "last so far"


def _line(name: str, line: Line) -> CanaryLine:
    counts = line[CANARIES]
    pair = PairedCounts(counts["rows"], counts["lost"], counts["gained"])
    own = (counts["before"], counts["kept"], counts["lost"], counts["gained"])
    return CanaryLine(name, f"{line['epoch']:g}", *own, wilson(counts["lost"], counts["before"]), pair.p)


def _lost(run: TrainRunView, folder: Path) -> tuple[LostCanary, ...]:
    path = folder / f"{CANARIES}.parquet"
    if run.last is None or run.outcomes.is_empty() or not path.is_file():
        return ()
    here = (pl.col("set") == CANARIES) & (pl.col("step") == run.last["step"]) & ~pl.col("correct")
    wrong = run.outcomes.filter(here).select("row")
    rows = pl.read_parquet(path, columns=list(_COLUMNS)).filter("before").join(wrong, on="row", maintain_order="left")
    texts = rows.select("question", pl.col("answers").list.first()).head(SHOWN)
    return tuple(LostCanary(question, answer) for question, answer in texts.iter_rows())


def _replay(replay: Mapping[str, Any]) -> str:
    """Write a sentence on the known rows that joined the batches."""
    if not replay:
        return ""
    held = f"held to the model before training (KL divergence, weight {replay['kl']:g})" if replay.get("kl") else ""
    learnt = f"learnt again as {replay['share']:.0%} of each batch" if replay.get("learns") else ""
    what = " and ".join(part for part in (learnt, held) if part)
    return f"{replay['rows']:,} known rows were {what}; they are {source(str(replay['source']))}."


def _points(run: TrainRunView) -> tuple[AveragePoint, ...]:
    average: Mapping[str, Any] = run.results.get("average") or {}
    points: Sequence[Mapping[str, Any]] = average.get("points", ())
    return tuple(
        AveragePoint(
            point["alpha"],
            point["fitted"],
            run.train_rows,
            point["dev_em"],
            point["dev_loss"],
            point["canaries_kept"],
            point["alpha"] == average["alpha"],
        )
        for point in points
    )
