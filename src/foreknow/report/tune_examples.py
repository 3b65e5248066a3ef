"""This module picks the example rows of a training run, the clearest first. It has no side effects."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.report.tune_tables import TrainRunView
from foreknow.stages.train.curves import TRAIN


@dataclass(frozen=True)
class OutcomeExample:
    """A row of a measured set.

    `history`: whether it is right at each evaluation. `control`: whether it is right at the end of the control; None
    if the control did not measure it.
    """

    set: str
    question: str
    answer: str
    category: str | None
    group: str
    history: tuple[bool, ...]
    control: bool | None


def examples(run: TrainRunView, control: TrainRunView | None, limit: int = 8) -> dict[str, tuple[OutcomeExample, ...]]:
    """At most `limit` example rows of each kind, the clearest first; kinds without rows are left out.

    `lost`: HighlyKnown rows that are wrong at CONVERGENCE. `gained`: Unknown rows that are right there. `turned`:
    other rows that are right at EARLY_STOP and wrong at CONVERGENCE; `won`: the reverse. `taken`: Unknown train rows
    fitted at EARLY_STOP.
    """
    if run.early is None or run.last is None or run.rows.is_empty() or run.outcomes.is_empty():
        return {}
    steps = [line["step"] for line in run.lines]
    wide = (
        run.outcomes.filter(pl.col("step").is_in(steps))
        .sort("step")
        .group_by("set", "row")
        .agg(history="correct")
        .filter(pl.col("history").list.len() == len(steps))
    )
    early, last = steps.index(run.early["step"]), steps.index(run.last["step"])
    until, after = pl.col("history").list.head(early + 1), pl.col("history").list.slice(early + 1)
    mean = [part.list.eval(pl.element().cast(pl.Float64)).list.mean().fill_null(0.0) for part in (until, after)]
    frame = run.rows.join(wide, on=["set", "row"]).with_columns(
        then=pl.col("history").list.get(early), now=pl.col("history").list.get(last), fall=mean[0] - mean[1]
    )
    if control and control.last is not None and not control.outcomes.is_empty():
        same = [name for name in run.sets if run.same_rows(control, name)]
        control_end = control.outcomes.filter(pl.col("step") == control.last["step"], pl.col("set").is_in(same))
        frame = frame.join(control_end.select("set", "row", control="correct"), on=["set", "row"], how="left")
    else:
        frame = frame.with_columns(control=pl.lit(None, pl.Boolean))
    held, is_train = pl.col("set") != "dev", pl.col("set") == TRAIN
    highly, unknown = pl.col("category") == HIGHLY_KNOWN, pl.col("category") == UNKNOWN
    then, now, other = pl.col("then"), pl.col("now"), pl.col("category").is_null()
    kinds = {
        "lost": (~is_train & highly & ~now, True),
        "gained": (~is_train & unknown & now, False),
        "turned": (~is_train & (other | ~highly) & then & ~now, True),
        "won": (~is_train & (other | ~unknown) & ~then & now, False),
        "taken": (is_train & unknown & then, False),
    }
    examples_by_kind = {}
    for kind, (which, falling) in kinds.items():
        order = [held.cast(pl.Int8), pl.col("fall")]
        rows = frame.filter(which).sort([*order, "set", "row"], descending=[True, falling, False, False]).head(limit)
        lines = rows.select("set", "question", "answer", "category", "group", "history", "control").iter_rows()
        examples_by_kind[kind] = tuple(OutcomeExample(s, q, a, c, g, tuple(h), o) for s, q, a, c, g, h, o in lines)
    return {kind: lines for kind, lines in examples_by_kind.items() if lines}
