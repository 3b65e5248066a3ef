"""Run a stage: the steps that audit, train, evaluate and study share.

The order is settings -> identity -> run folder -> work -> result -> page. A stage's `run.py` defines its own steps: how
it prepares (`prepare`), and how it computes chunk by chunk and gathers the outputs (`PreparedRun.work`, through an
executor if workers elsewhere can do it). `result.py` reads its folder, and `page.py` writes its page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from foreknow.distributed import process_group
from foreknow.errors import ConfigError
from foreknow.io.run_dir import RunDir, lock_run_dir

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def nothing_to_do(_: RunDir) -> None:
    """Do nothing: most stages check nothing in a complete run beyond what every run folder checks."""


def always_enough(_: RunDir) -> bool:
    """Accept every complete run, because its identity already matches."""
    return True


class PreparedRun(NamedTuple):
    """A run whose inputs are read and checked, and whose folder is locked but not claimed yet.

    `identity`: the values by which two runs count as the same, by key. `settings`: the contents of `config.yaml`.
    `work`: computes what the folder lacks, writes the outputs and finishes the folder (`RunDir.finish`). `notes`: lines
    to print before the work. `is_enough`: whether a complete run holds all that is asked for now. `check_complete`:
    checks a run that does, or prints something about it. `partial`: outputs may be missing if they can be computed
    again from others.
    """

    identity: dict[str, Any]
    settings: dict[str, Any]
    work: Callable[[RunDir], None]
    notes: tuple[str, ...] = ()
    is_enough: Callable[[RunDir], bool] = always_enough
    check_complete: Callable[[RunDir], None] = nothing_to_do
    partial: bool = False


@dataclass(frozen=True)
class Stage(Generic[Result]):
    """The parts of a run that differ between stages.

    `name`: how messages call a run of the stage. `prepare`: reads and checks the inputs, and refuses everything that
    can be refused before the folder is claimed; what it opens (a cluster, a server) stays open until the page is
    written. `result`: opens a finished folder. `write_page`: writes `report.html` from the result; None if no page is
    wanted. `joint`: all processes that a launcher started do the run together, and the main process locks the folder
    and writes (`process_group.py`).
    """

    name: str
    prepare: Callable[[RunDir], AbstractContextManager[PreparedRun]]
    result: Callable[[Path], Result]
    write_page: Callable[[Result], object] | None
    joint: bool = False


def required_out(out: Path | None) -> Path:
    """Return the folder to write. Raises ConfigError if it is None."""
    if out is None:
        raise ConfigError("--out: missing; name the folder to write")
    return out


def run_stage(stage: Stage[Result], out: Path) -> Result:
    """Run `stage` in the folder `out` and return its result; an interrupted run continues where it stopped.

    A complete run is only checked. Raises the errors of `foreknow.errors`.
    """
    main = process_group.is_main_process() or not stage.joint
    with lock_run_dir(out) if main else nullcontext(RunDir(out)) as folder, stage.prepare(folder) as run:
        complete = main and folder.open_run(run.identity, run.settings, partial=run.partial) and run.is_enough(folder)
        if stage.joint:
            complete = bool(process_group.broadcast_from_main(complete))
        if complete:
            logger.info(f"{out}: this {stage.name} is complete; nothing to do")
            if main:
                run.check_complete(folder)
        else:
            for note in run.notes:
                logger.info(note)
            run.work(folder)
        if main and stage.write_page and not (complete and (folder.path / "report.html").is_file()):
            stage.write_page(stage.result(folder.path))
    return stage.result(folder.path)
