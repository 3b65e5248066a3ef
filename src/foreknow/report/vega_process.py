"""This module renders Vega-Lite specs as SVG, with vl-convert in a separate process.

vl-convert contains a JavaScript engine that keeps memory for every chart it has drawn, and keeps threads until its
process ends. The first chart starts the process, and it then draws the charts of every page. A new process replaces
it after `MOST` charts. It ends with this process, however this one ends, because its input is closed then.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

MOST: Final = 200
"""The number of charts that one process draws before a new one replaces it."""

_PROGRAM: Final = """
import json, sys
import vl_convert
vl_convert.vegalite_to_svg({"mark": "point"})
for line in sys.stdin:
    print(json.dumps(vl_convert.vegalite_to_svg(json.loads(line))), flush=True)
"""


class _Renderer:
    """The process that draws charts.

    The first chart starts it; it ends after `MOST` charts, when it fails, and when this process ends.
    """

    def __init__(self) -> None:
        atexit.register(self._end)
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = self.chart_count = 0

    def svg(self, spec: Mapping[str, Any]) -> str:
        """Draw a spec. Raises OSError or ValueError if the process cannot be started or does not answer."""
        with self.lock:
            if self.process is None:
                self.start()
            elif self.owner != os.getpid():
                raise OSError("this process is a fork, and the chart process answers its parent")
            try:
                chart = self._answer(json.dumps(spec))
            except BaseException:  # after an interrupt too, because the next caller would read this chart
                self._end()
                raise
            self.chart_count += 1
            if self.chart_count >= MOST:
                self._end()
            return chart

    def start(self) -> None:
        """Start the process. Raises OSError if that fails."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
        self.owner, self.chart_count = os.getpid(), 0

    def _answer(self, line: str) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        chart: str = json.loads(self.process.stdout.readline())
        return chart

    def _end(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            with contextlib.suppress(OSError):  # raised if some input was not yet written to it
                self.process.communicate()
            self.process = None


_RENDERER: Final = _Renderer()


def start() -> None:
    """Start the process before the first chart, so that the caller can go on meanwhile; on failure, do nothing."""
    with contextlib.suppress(OSError), _RENDERER.lock:
        if _RENDERER.process is None:
            _RENDERER.start()


def svg(spec: Mapping[str, Any]) -> str:
    """Draw a Vega-Lite spec as SVG; if the separate process fails, draw it in this one."""
    try:
        return _RENDERER.svg(spec)
    except (OSError, ValueError):
        import vl_convert

        here: str = vl_convert.vegalite_to_svg(dict(spec))
        return here
