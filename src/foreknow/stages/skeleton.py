"""The skeleton of audit, train, evaluate and study: settings -> identity -> run folder -> work -> result -> page.

A stage's `run.py` says what is its own: how it gets ready (`prepare`), what it then does chunk by chunk and how it
gathers the outputs (`PreparedRun.work`, through an executor where workers elsewhere can do it), how its folder is read
(`result.py`) and shown (`page.py`). What is the same for all of them is here, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from foreknow.distributed import process_group
from foreknow.errors import ConfigError
from foreknow.io.run_dir import RunDir, lock_run_dir
from foreknow.progress import say

Result = TypeVar("Result")


def nothing_to_do(_: RunDir) -> None:
    """Do nothing: a complete run has no work left, and mostly nothing to check beside what every folder promises."""


def always_enough(_: RunDir) -> bool:
    """Accept every complete run: its identity says that it is this one."""
    return True


class PreparedRun(NamedTuple):
    """A run whose inputs are read and checked, and whose folder is locked but not claimed yet.

    `identity`: what makes two runs the same, by key; `settings`: what `config.yaml` holds. `work`: compute what the
    folder lacks, write the outputs and finish it (`RunDir.finish`). `notes`: lines to print before the work.
    `is_enough`: whether a complete run holds all that is asked for now; `check_complete`: what to check or to say of
    one that does. `partial`: outputs may be missing that others can be made into again.
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
    """What one stage does its own way.

    `name`: what messages call a run of it. `prepare`: read and check; all that can be refused is refused here, before
    the folder is claimed. What it opens (a cluster, a server) stays open until the page is written. `result`: the view
    of a finished folder. `write_page`: write `report.html` from it; None where no page is wanted. `joint`: all
    processes that a launcher started do it together, and the first holds the folder and writes (`process_group.py`).
    """

    name: str
    prepare: Callable[[RunDir], AbstractContextManager[PreparedRun]]
    result: Callable[[Path], Result]
    write_page: Callable[[Result], object] | None
    joint: bool = False


def required_out(out: Path | None) -> Path:
    """The folder to write. Raises ConfigError where none is named."""
    if out is None:
        raise ConfigError("--out: missing; name the folder to write")
    return out


def run_stage(stage: Stage[Result], out: Path) -> Result:
    """Do the run of `stage` in the folder `out` and return its result; an interrupted one goes on where it stopped.

    A complete run is only checked. Raises the errors of `foreknow.errors`.
    """
    main = process_group.is_main_process() or not stage.joint
    with lock_run_dir(out) if main else nullcontext(RunDir(out)) as folder, stage.prepare(folder) as run:
        complete = main and folder.open_run(run.identity, run.settings, partial=run.partial) and run.is_enough(folder)
        if stage.joint:
            complete = bool(process_group.broadcast_from_main(complete))
        if complete:
            say(f"{out}: this {stage.name} is complete; nothing to do")
            if main:
                run.check_complete(folder)
        else:
            for note in run.notes:
                say(note)
            run.work(folder)
        if main and stage.write_page and not (complete and (folder.path / "report.html").is_file()):
            stage.write_page(stage.result(folder.path))
    return stage.result(folder.path)
