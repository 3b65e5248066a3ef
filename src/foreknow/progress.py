"""Shows a run's progress on standard error: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_ONCE: Final[set[str]] = set()
"""The subjects that `say_once` has printed in this process."""


class Meter(Protocol):
    """Counts finished units of work."""

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        ...


def say(text: str) -> None:
    """Print a line to standard error, where all progress goes: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def say_once(about: str, text: str) -> None:
    """Print a line, but only the first one `about` a subject in this process."""
    if about not in _ONCE:
        _ONCE.add(about)
        say(text)


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 20 s, 2 h 5 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


class _Log:
    def __init__(self, what: str, total: int, every: float = 15.0):
        self.what, self.total, self.every = what, total, every
        self.done = 0
        self.began = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self.last < self.every:
            return
        self.last = now
        rate = self.done / max(now - self.began, 1e-9)
        seconds_left = (self.total - self.done) / rate
        say(f"{self.what}: {self.done:,} of {self.total:,} rows, {rate:.1f} rows/s, {duration(seconds_left)} left")


class _Bar:
    def __init__(self, what: str, total: int):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: object) -> Text:
                speed = getattr(task, "speed", None)
                return Text(f"{speed:.1f} rows/s" if speed else "")

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=120,
        )
        self.task = self.progress.add_task(what, total=total)

    def advance(self, count: int) -> None:
        self.progress.advance(self.task, count)


@contextmanager
def meter(what: str, total: int) -> Iterator[Meter]:
    """A meter for `total` rows: a live bar if standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield _Log(what, total)
        return
    bar = _Bar(what, total)
    with bar.progress:
        yield bar
