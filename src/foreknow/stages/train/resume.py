"""Finds the checkpoint from which a killed run goes on, and removes what was written after it."""

from __future__ import annotations

import logging
import shutil

from foreknow.distributed import process_group
from foreknow.errors import (
    RunFolderError,
)
from foreknow.io.run_dir import RunDir
from foreknow.models.adapters import about
from foreknow.stages.train import selection
from foreknow.stages.train.all_rows import REMAINING_ROWS, REMAINING_SPANS
from foreknow.stages.train.checkpoints import Checkpoint, is_whole, latest
from foreknow.stages.train.curves import Line
from foreknow.stages.train.eval_callback import BEST, EvalCallback, write_lines
from foreknow.stages.train.result import EARLY_STOP
from foreknow.stages.train.span_labels import FITTED_SPANS
from foreknow.stages.train.trainer import CHECKPOINTS

logger = logging.getLogger(__name__)


def resume(folder: RunDir, watch: EvalCallback) -> Checkpoint | None:
    """Return the last checkpoint, if any, and delete what was written after it, so that nothing is written twice.

    A checkpoint is used only if everything that belongs to it is there: the outcomes of every evaluation before it, and
    the weights of the best epoch. If one of these is missing or damaged, training begins again.
    """
    if not process_group.is_main_process():
        process_group.barrier()  # wait while the first process removes what a killed run left
        checkpoint = latest(folder.path / CHECKPOINTS)
        watch.lines = checkpoint.note["lines"] if checkpoint else []
        _check_seen(folder, checkpoint)
        return checkpoint
    best = folder.path / BEST
    best.mkdir(exist_ok=True)
    early_stop = folder.path / EARLY_STOP
    if early_stop.exists():  # a run that stopped, or was killed at its end, moved the best weights there
        path = best / f"step-{about(early_stop).get('step')}"
        shutil.rmtree(path, ignore_errors=True)
        early_stop.rename(path)
    checkpoint = latest(folder.path / CHECKPOINTS)
    if checkpoint is not None and (missing := _missing_part(folder, watch, checkpoint)):
        logger.info(f"{missing}: missing or damaged; training begins again")
        shutil.rmtree(folder.path / CHECKPOINTS)
        checkpoint = None
    watch.lines = checkpoint.note["lines"] if checkpoint else []
    write_lines(folder.path, watch.lines)
    steps = {line["step"] for line in watch.lines}
    parts = ("outcomes", FITTED_SPANS, REMAINING_ROWS, REMAINING_SPANS)
    for path in [path for part in parts for path in folder.chunks.glob(f"*.{part}.parquet")]:
        if int(path.name.split(".", 1)[0]) not in steps:
            path.unlink()
    watch.prune(selection.best(watch.lines, watch.config.metric))
    process_group.barrier()
    _check_seen(folder, checkpoint)
    if checkpoint is not None:
        logger.info(f"going on from the checkpoint after step {checkpoint.step:,}")
    return checkpoint


def _check_seen(folder: RunDir, checkpoint: Checkpoint | None) -> None:
    """Raise RunFolderError if the processes do not see the same checkpoint."""
    step = checkpoint.step if checkpoint else 0
    if (theirs := process_group.broadcast_from_main(step)) != step:
        raise RunFolderError(
            f"{folder.path}: found the checkpoint after step {step}, the first process that after step {theirs}: "
            "--out must lie on a disk that all processes see"
        )


def _missing_part(folder: RunDir, watch: EvalCallback, checkpoint: Checkpoint) -> str | None:
    """Name the first missing or damaged part without which a checkpoint cannot be resumed; None if there is none."""
    lines: list[Line] = checkpoint.note["lines"]
    for line in lines:
        if folder.chunk(line["step"], "outcomes") is None:
            return f"{folder.chunks}: outcomes of step {line['step']}"
        if "spans" in line and folder.chunk(line["step"], FITTED_SPANS) is None:
            return f"{folder.chunks}: fitted spans of step {line['step']}"
    leader = selection.best(lines, watch.config.metric)
    path = folder.path / BEST / f"step-{leader['step']}" if leader else None
    return str(path) if path and not is_whole(path) else None
