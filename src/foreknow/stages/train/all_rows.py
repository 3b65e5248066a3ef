"""Measures every row at the best and at the last epoch, where only a draw of them is measured after each epoch.

After each epoch a run measures all of dev and a draw of the other sets (`--watch-rows auto`). At its end it measures
the remaining rows too, with the weights of the last epoch and with those of the best one (CONVERGENCE and EARLY_STOP;
paper, section 3). So what is said of these two rests on all rows, and every row has its outcome there. The lines of
`metrics.jsonl` stay those of the draw, because only the same rows can be compared from epoch to epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from foreknow.distributed import process_group
from foreknow.io.run_dir import RunDir
from foreknow.progress import meter
from foreknow.stages.train import curves
from foreknow.stages.train.curves import Line
from foreknow.stages.train.eval_callback import EvalCallback, all_outcomes, all_span_outcomes
from foreknow.stages.train.inputs import TrainInputs
from foreknow.stages.train.result import OUTCOMES, outcomes_at
from foreknow.stages.train.span_labels import FITTED, count_fitted, spans_at

REMAINING_ROWS: Final = "remaining_rows"
REMAINING_SPANS: Final = "remaining_spans"
"""The names of the chunks that hold the outcomes of the remaining rows and of their spans."""


class Remaining(NamedTuple):
    """Holds the outcomes of the remaining rows (`result.OUTCOMES`) and of their spans (`FITTED`) at the two epochs.

    `seconds`: how long measuring them took.
    """

    outcomes: pl.DataFrame
    spans: pl.DataFrame
    seconds: float


NOTHING: Final = Remaining(pl.DataFrame(schema=OUTCOMES), pl.DataFrame(schema=FITTED), 0.0)


def measure_remaining(
    watch: EvalCallback, folder: RunDir, early: Line, last: Line, weights: Path, load: Callable[[Path], None]
) -> Remaining:
    """Measure the remaining rows of `watch.inputs` at the last epoch, whose weights the model has now, and at `early`.

    `weights`: the folder with the weights of `early`; `load` loads such a folder into the model, which ends with these
    weights. What a killed run had measured is read, not measured again.
    """
    inputs = watch.inputs
    if not inputs.remaining_rows:
        return NOTHING
    began, spans = time.monotonic(), inputs.spans_of(inputs.remaining_rows)
    tracker = watch.tracker(inputs.remaining_rows, spans)
    parts = []
    for line in [last] if early["step"] == last["step"] else [last, early]:
        if line is not last:
            process_group.barrier()  # until the first process has moved the weights to their place
            load(weights)
        stored = (folder.chunk(line["step"], REMAINING_ROWS), folder.chunk(line["step"], REMAINING_SPANS))
        if process_group.broadcast_from_main(stored[0] is not None and stored[1] is not None):
            parts.append(stored)
            continue
        with meter(f"asking all rows with the weights of epoch {line['epoch']:g}", tracker.count) as progress:
            found = tracker.measure(watch.measured_model(), progress.advance)
        rows = all_outcomes(found.outcomes, inputs.remaining_rows)
        own = outcomes_at(line, rows, lenient=watch.lenient), spans_at(line, all_span_outcomes(found.spans, spans))
        parts.append(own)
        if process_group.is_main_process():
            for name, frame in zip((REMAINING_ROWS, REMAINING_SPANS), own, strict=True):
                folder.save_chunk(line["step"], name, frame)
    frames = [[frame for frame in kind if frame is not None] for kind in zip(*parts, strict=True)]
    return Remaining(pl.concat(frames[0]), pl.concat(frames[1]), time.monotonic() - began)


def with_remaining(frame: pl.DataFrame, remaining: pl.DataFrame) -> pl.DataFrame:
    """Return the outcomes measured after each epoch and those of the remaining rows in one frame, by step."""
    return pl.concat([frame, remaining]).sort("step", maintain_order=True)


def over_all_rows(line: Line, outcomes: pl.DataFrame, spans: pl.DataFrame, inputs: TrainInputs) -> Line:
    """Return the line of one of the two epochs with shares and counts of all rows and spans. Pure.

    `outcomes`, `spans`: frames `OUTCOMES` and `FITTED` of all rows. Losses that only the drawn rows have are left out.
    """
    whole = curves.measures(outcomes.filter(pl.col("step") == line["step"]), inputs.asked_rows)
    parts = {name: {**line[name], **value} if isinstance(value, Mapping) else value for name, value in whole.items()}
    if inputs.spans:
        own = spans.filter(pl.col("step") == line["step"]).drop("epoch", "step")
        parts["spans"] = count_fitted(own, inputs.spans)
    losses = {name: loss for name, loss in line["loss"].items() if name not in inputs.remaining_rows}
    return {**line, **parts, "loss": losses}
