"""Makes SIGTERM, from a scheduler or a container's stop, end a run like Ctrl-C; raises a lost interrupt again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Final

AGAIN: Final = 5.0
"""Seconds after which SIGTERM is raised once more, in case a library swallowed it."""
SOON: Final = 0.05
"""Seconds after which an interrupt that hit a finaliser, which cannot raise, is raised once more."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def install_sigterm() -> None:
    """Raise `Terminated` on SIGTERM from now on. Only for the main thread of the command line."""
    signal.signal(signal.SIGTERM, _raise_handler(Terminated))
    sys.unraisablehook = _unraisable


def cancel_repeat() -> None:
    """Cancel the repetition of an interrupt that has been handled."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_handler(kind: type[BaseException]) -> Callable[..., None]:
    def handle(*_: object) -> None:
        if issubclass(kind, Terminated):
            _raise_after(AGAIN, kind)
        raise kind

    return handle


def _raise_after(seconds: float, kind: type[BaseException]) -> None:
    signal.signal(signal.SIGALRM, _raise_handler(kind))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _raise_after(SOON, unraisable.exc_type)
    else:
        sys.__unraisablehook__(unraisable)
