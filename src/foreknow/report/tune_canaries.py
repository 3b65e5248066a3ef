"""This module reads what a training run's page shows of the known facts that were watched besides the user's rows.

These are the canaries (`stages/train/canaries.py`), the known rows that were replayed, and the points between the
weights before and after training (`--average`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from foreknow.format.text import source
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


class WatchedSet(NamedTuple):
    """The lines of a file of `--watch-known`."""

    name: str
    lines: tuple[CanaryLine, ...]


class MadeUpLine(NamedTuple):
    """What was answered about subjects that do not exist. `attraction`: share of those answered, with its interval."""

    when: str
    questions: int
    refused: int
    answered: int
    training_answers: int
    attraction: Interval | None
    chance: float | None


class MadeUpAnswer(NamedTuple):
    """A question on a made-up subject, and the answers before and after training ("" for none)."""

    question: str
    before: str
    after: str


class CanaryReport(NamedTuple):
    """Everything that the page shows of what training does besides the user's sets.

    `text`: the loss of a plain text, in nats a token, by the name of the checkpoint.
    """

    lines: tuple[CanaryLine, ...]
    source: str
    lost: tuple[LostCanary, ...]
    replay: str
    points: tuple[AveragePoint, ...]
    watched: tuple[WatchedSet, ...] = ()
    text: tuple[tuple[str, float], ...] = ()
    made_up: tuple[MadeUpLine, ...] = ()
    made_up_answers: tuple[MadeUpAnswer, ...] = ()


def canary_report(run: TrainRunView, folder: Path, *, show_rows: bool) -> CanaryReport | None:
    """Read the section of the page; None if the run watched nothing, replayed no rows and averaged no weights."""
    chosen = [("EARLY_STOP" if run.finished else "best so far", run.early), (_end(run), run.last)]
    lines = tuple(_line(name, line, line[CANARIES]) for name, line in chosen if line is not None and CANARIES in line)
    points = _points(run)
    replay = _replay(run.results.get("replay") or {})
    watched = _watched(chosen)
    text = _text(run, chosen)
    made_up = _made_up(run)
    if not (lines or points or replay or watched or text or made_up):
        return None
    lost = _lost(run, folder) if show_rows and lines else ()
    origin = source(str((run.results.get(CANARIES) or {}).get("source") or ""))
    answers = _made_up_answers(folder) if show_rows and made_up else ()
    return CanaryReport(lines, origin, lost, replay, points, watched, text, made_up, answers)


def _watched(chosen: Sequence[tuple[str, Line | None]]) -> tuple[WatchedSet, ...]:
    names = dict.fromkeys(name for _, line in chosen if line is not None for name in line.get("watched_known", {}))
    return tuple(
        WatchedSet(
            name,
            tuple(
                _line(when, line, line["watched_known"][name])
                for when, line in chosen
                if line is not None and name in line.get("watched_known", {})
            ),
        )
        for name in names
    )


def _text(run: TrainRunView, chosen: Sequence[tuple[str, Line | None]]) -> tuple[tuple[str, float], ...]:
    before = (run.results.get("plain_text") or {}).get("before")
    own = [(name, float(line["text_loss"])) for name, line in chosen if line is not None and "text_loss" in line]
    return (("before training", float(before)), *own) if before is not None else tuple(own)


def _made_up(run: TrainRunView) -> tuple[MadeUpLine, ...]:
    counts: Mapping[str, Any] = run.results.get("made_up") or {}
    names = {"before": "before training", "after": "CONVERGENCE"}
    return tuple(_made_up_line(name, counts[key]) for key, name in names.items() if counts.get(key))


def _made_up_line(when: str, counts: Mapping[str, Any]) -> MadeUpLine:
    answered, taken = counts["answered"], counts["training_answers"]
    attraction = wilson(taken, answered) if answered else None
    return MadeUpLine(when, counts["questions"], counts["refused"], answered, taken, attraction, counts["chance"])


def _made_up_answers(folder: Path) -> tuple[MadeUpAnswer, ...]:
    path = folder / "made_up.parquet"
    if not path.is_file():
        return ()
    rows = pl.read_parquet(path, columns=["question", "before", "after"]).head(SHOWN)
    return tuple(MadeUpAnswer(*row) for row in rows.iter_rows())


def _end(run: TrainRunView) -> str:
    return "CONVERGENCE" if run.finished else "last so far"


def _line(name: str, line: Line, counts: Mapping[str, Any]) -> CanaryLine:
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
    epoch = replay.get("known_epoch_rows")
    teacher = f"the model after an epoch on {epoch:,} known rows" if epoch else "the model before training"
    held = f"held to {teacher} (KL divergence, weight {replay['kl']:g})" if replay.get("kl") else ""
    learnt = f"learnt again as {replay['share']:.0%} of each batch" if replay.get("learns") else ""
    what = " and ".join(part for part in (learnt, held) if part)
    return f"{replay['rows']:,} rows besides yours were {what}; they are {source(str(replay['source']))}."


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
