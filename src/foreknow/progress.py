"""Reports a run's progress: messages through the standard `logging`; a live bar on a terminal or in a notebook.

Every module logs to its own logger below `foreknow`. As a library foreknow is quiet until `logging` is set up; the
command line sets it up (`log_to_stderr`), and standard output is left to results. Where there is neither a terminal nor
a notebook, progress is a message at times.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Final, Protocol

from foreknow.format.numbers import duration, format_rate

logger = logging.getLogger(__name__)
ROOT: Final = logging.getLogger("foreknow")
_ONCE: Final[set[str]] = set()
"""The subjects that `log_once` has reported in this process."""


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes each message as a line to whatever standard error is at that time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> object:
        """Standard error, as it is now."""
        return sys.stderr


def log_to_stderr() -> None:
    """Write foreknow's messages to standard error, as the command line does; calling it again changes nothing."""
    if not any(isinstance(handler, _Stderr) for handler in ROOT.handlers):
        ROOT.addHandler(_Stderr())
    ROOT.setLevel(logging.INFO)
    ROOT.propagate = False


def messages_shown() -> bool:
    """Whether foreknow's messages go anywhere in this process."""
    return logger.isEnabledFor(logging.INFO)


def log_once(about: str, text: str) -> None:
    """Log a message, but only the first one `about` a subject in this process."""
    if about not in _ONCE:
        _ONCE.add(about)
        logger.info(text)


class Meter(Protocol):
    """Counts finished units of work."""

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        ...


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
        logger.info(
            f"{self.what}: {self.done:,} of {self.total:,} rows, {format_rate(rate)}, {duration(seconds_left)} left"
        )


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
                return Text(format_rate(speed) if speed else "")

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=120,
            transient=not messages_shown(),  # a library leaves no trace
        )
        self.task = self.progress.add_task(what, total=total)

    def advance(self, count: int) -> None:
        self.progress.advance(self.task, count)


class _NotebookBar:
    """A bar in a notebook, which is gone at the end; IPython draws it, without widgets."""

    def __init__(self, what: str, total: int, every: float = 0.5):
        self.what, self.total, self.every = what, total, every
        self.done = 0
        self.began = self.last = time.monotonic()
        from IPython.display import HTML, display

        self.html: Callable[[str], Any] = HTML
        self.handle: Any = display(HTML(self._text()), display_id=True)

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self.last >= self.every:
            self.last = now
            self.handle.update(self.html(self._text()))

    def close(self) -> None:
        self.handle.update(self.html(""))

    def _text(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        left = f", {duration((self.total - self.done) * seconds / self.done)} left" if self.done else ""
        return (
            f'<progress value="{self.done}" max="{self.total}" style="width:16rem"></progress> '
            f"{escape(self.what)}: {self.done:,} of {self.total:,} rows{left}"
        )


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def meter(what: str, total: int) -> Iterator[Meter]:
    """A meter for `total` rows: a live bar in a notebook or where standard error is a terminal, else messages."""
    if in_notebook():
        live = _NotebookBar(what, total)
        try:
            yield live
        finally:
            live.close()
        return
    if not sys.stderr.isatty():
        yield _Log(what, total)
        return
    bar = _Bar(what, total)
    with bar.progress:
        yield bar
