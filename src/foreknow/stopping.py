"""SIGTERM, from a scheduler or a container's stop, ends a run as Ctrl-C does; neither is lost on its way."""

from __future__ import annotations

import _thread
import signal
import sys
from typing import Final

AGAIN: Final = 5
"""Seconds after which SIGTERM is raised once more where a library has swallowed it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def heed() -> None:
    """Take SIGTERM from now on. For the main thread of a program of its own."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGALRM, _terminated)
    sys.unraisablehook = _unraisable


def heeded() -> None:
    """It has arrived: raise it no more."""
    signal.alarm(0)


def _terminated(*_: object) -> None:
    signal.alarm(AGAIN)
    raise Terminated


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """An interrupt that fell into a finaliser, where nothing can be raised, is sent again."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        _thread.interrupt_main(signal.SIGTERM if issubclass(found.exc_type, Terminated) else signal.SIGINT)
    else:
        sys.__unraisablehook__(found)
