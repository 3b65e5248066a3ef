"""SIGTERM, from a scheduler or a container's stop, ends a run as Ctrl-C does; neither is lost on its way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Final

AGAIN: Final = 5.0
"""Seconds after which SIGTERM is raised once more where a library has swallowed it."""
SOON: Final = 0.05
"""Seconds after which an interrupt is raised once more that fell into a finaliser, where nothing can be raised."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def install_sigterm() -> None:
    """Take SIGTERM from now on. For the main thread of a program of its own."""
    signal.signal(signal.SIGTERM, _raising(Terminated))
    sys.unraisablehook = _unraisable


def cancel_repeat() -> None:
    """An interrupt has arrived: raise it no more."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raising(kind: type[BaseException]) -> Callable[..., None]:
    def handle(*_: object) -> None:
        if issubclass(kind, Terminated):
            _raise_after(AGAIN, kind)
        raise kind

    return handle


def _raise_after(seconds: float, kind: type[BaseException]) -> None:
    signal.signal(signal.SIGALRM, _raising(kind))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    if issubclass(found.exc_type, KeyboardInterrupt):
        _raise_after(SOON, found.exc_type)
    else:
        sys.__unraisablehook__(found)
