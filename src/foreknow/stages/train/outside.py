"""Measures what training does outside the user's sets: watched facts, plain text, questions on made-up subjects."""

from __future__ import annotations

import polars as pl

from foreknow.stages.train import curves
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.curves import Line
from foreknow.stages.train.known_rows import KnownRows
from foreknow.stages.train.tracker import OUTCOMES as MEASURED


def measure_outside(
    known: KnownRows, asking: AskingModel | None, *, lenient: bool, at_end: bool
) -> tuple[Line, pl.DataFrame]:
    """Return what a line of `metrics.jsonl` says of it, under `em` and `counts` too, and the outcomes (`MEASURED`).

    The questions on made-up subjects are asked only `at_end`, unless they are asked after every epoch. Nothing is
    measured without `asking`.
    """
    line: Line = {"em": {}, "counts": {}}
    frames = [pl.DataFrame(schema=MEASURED)]
    if asking is None:
        return line, frames[0]
    watches = {curves.CANARIES: known.canaries} if known.canaries is not None else {}
    for name, watch in {**watches, **known.watched}.items():
        right, counts = watch.measure(asking)
        if name == curves.CANARIES:
            line[name] = counts
            correct = int(right["correct"].sum())
            line["em"][name] = correct / max(right.height, 1)
            line["counts"][name] = {"rows": right.height, "correct": correct, "by_category": {}}
        else:
            line.setdefault("watched_known", {})[name] = counts
        other = pl.col("correct") if lenient else pl.lit(None, pl.Boolean)
        frames.append(right.select(pl.lit(name).alias("set"), "row", "correct", lenient=other))
    if known.text is not None:
        line["text_loss"] = known.text.measure(asking)
    if known.made_up is not None and (at_end or known.asks_made_up_often):
        line["made_up"] = known.made_up.count(known.made_up.ask(asking))
    return line, pl.concat(frames)


def add_outside(line: Line, found: Line) -> None:
    """Add to a line of `metrics.jsonl` what `measure_outside` found."""
    for name in ("em", "counts"):
        line[name] |= found[name]
    line |= {name: value for name, value in found.items() if name not in ("em", "counts")}
