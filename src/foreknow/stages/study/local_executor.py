"""Do the runs of a study, one after the other or several at once, in processes of this machine or on Ray.

A run is `foreknow tune` on its own folder, so an interrupted study resumes inside the run where it stopped, and a
finished run is never repeated. The messages of a run go to `log.txt` in its folder.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

from foreknow.config import TuneConfig
from foreknow.distributed.ray_cluster import Cluster
from foreknow.errors import ResourceError
from foreknow.format.numbers import duration
from foreknow.io.remote import push_written
from foreknow.progress import log_to_stderr, messages_shown
from foreknow.stages.study.one_run import _folder, train_one_run
from foreknow.stages.study.ray_executor import runs_on_ray

logger = logging.getLogger(__name__)

THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def is_done(folder: Path) -> bool:
    """Return whether a run's folder is complete."""
    return (folder / "manifest.json").is_file() and (folder / "results.json").is_file()


def finished(study: Path | None, names: Iterable[str]) -> set[str]:
    """Return those runs whose folder is complete below `study`, the folder of a study; none where it is None."""
    return set() if study is None else {name for name in names if is_done(study / "runs" / name)}


def run_all(
    configs: Mapping[str, TuneConfig],
    workers: int,
    keep_weights: bool,
    rows: Mapping[str, int],
    cluster: Cluster | None = None,
    stored: int = 0,
) -> None:
    """Do the runs that are not done.

    `rows` gives the number of rows to train on in each run, which the estimate of the remaining time needs. With
    `cluster`, its processes do the runs instead of `workers` processes of this machine. `stored`: how many more runs
    the study has, whose results are stored without their folders.

    Raises the error of a run that failed. The runs beside it are ended, and the next call resumes them.
    """
    left = {name: config for name, config in configs.items() if not is_done(_folder(config))}
    total = stored + len(configs)
    if len(left) < total:
        logger.info(f"{total - len(left):,} of {total:,} runs are done{'; going on' if left else ''}")
    progress = _Progress(total, total - len(left), sum(rows[name] for name in left))
    if cluster is not None and left:
        home = _folder(next(iter(left.values()))).parent
        runs_on_ray(left, home.parent, cluster, keep_weights, lambda name: progress.done(name, rows[name]))
        return
    if workers == 1 or len(left) <= 1:
        for name, config in left.items():
            train_one_run(config, keep_weights)
            progress.done(name, rows[name])
        return
    _in_processes(left, workers, keep_weights, lambda name: progress.done(name, rows[name]))


class _Progress:
    """Reports the remaining time after each run, from the rows trained on so far."""

    def __init__(self, total: int, finished: int, rows: int):
        self.total, self.finished, self.rows, self.trained = total, finished, rows, 0
        self.began = time.monotonic()

    def done(self, name: str, rows: int) -> None:
        self.finished, self.trained = self.finished + 1, self.trained + rows
        spent = time.monotonic() - self.began
        left = spent / self.trained * (self.rows - self.trained)
        logger.info(f"run {self.finished} of {self.total}: {name}, {duration(spent)} so far, {duration(left)} left")


def _in_processes(
    left: Mapping[str, TuneConfig], workers: int, keep_weights: bool, done: Callable[[str], None]
) -> None:
    """Do the runs in workers that stay alive over runs. A killed worker breaks the pool; its run is resumed once."""
    again: set[str] = set()
    waiting = dict(left)
    while waiting:
        with _threads(max(1, (os.cpu_count() or 1) // workers)):
            pool = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(messages_shown(),),
            )
            under_way: dict[Future[None], str] = {
                pool.submit(train_one_run, config, keep_weights): name for name, config in waiting.items()
            }
            try:
                _collect(under_way, waiting, done)
            except BrokenProcessPool:
                begun = {name for name, config in waiting.items() if (_folder(config) / ".run.json").is_file()}
                if begun <= again:
                    raise ResourceError(
                        f"a process of the study was killed again ({', '.join(sorted(begun)) or 'at its start'}): "
                        "out of memory? What is finished is kept; lower --workers and run the same command again"
                    ) from None
                again |= begun
                logger.info(f"a process was killed; {len(waiting):,} runs are taken up again")
            except BaseException:
                for child in multiprocessing.active_children():
                    child.kill()  # what they have finished is kept in their runs' folders
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(messages: bool) -> None:
    """Show messages in a worker if its parent shows them, and end the worker when its parent ends."""
    if messages:
        log_to_stderr()
    _end_with_parent()


def _end_with_parent() -> None:
    """Start a thread that ends this worker when the study is killed.

    Otherwise the worker would keep its run's folder locked against the same command.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _collect(
    under_way: Mapping[Future[None], str], waiting: dict[str, TuneConfig], done: Callable[[str], None]
) -> None:
    pending = set(under_way)
    while pending:
        finished, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
            run = waiting.pop(under_way[future])
            push_written(_folder(run).parent)
            done(under_way[future])


@contextlib.contextmanager
def _threads(count: int) -> Any:
    """Let each process that is started inside compute with `count` threads."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
