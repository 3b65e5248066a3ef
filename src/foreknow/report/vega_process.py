"""Vega-Lite specs -> SVG, by vl-convert in a process of its own.

vl-convert holds a JavaScript engine that keeps memory for what it has drawn, and threads to the end. The process is
started with the first chart, serves every page of this one, gives way to a new one after `MOST` charts, and ends with
this process, however that ends: its input is closed then.
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
"""Charts that one process draws."""

_PROGRAM: Final = """
import json, sys
import vl_convert
for line in sys.stdin:
    print(json.dumps(vl_convert.vegalite_to_svg(json.loads(line))), flush=True)
"""


class _Renderer:
    """The process that draws: started when asked, ended after `MOST` charts, where it fails, and with this one."""

    def __init__(self) -> None:
        atexit.register(self._end)
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = self.chart_count = 0

    def svg(self, spec: Mapping[str, Any]) -> str:
        """Raises OSError or ValueError where no process can be started, or it does not answer."""
        with self.lock:
            if self.process is None:
                self._start()
            elif self.owner != os.getpid():
                raise OSError("this process is a fork, and the drawer answers its parent")
            try:
                chart = self._answer(json.dumps(spec))
            except BaseException:  # an interrupt too: the next one to ask would get this chart
                self._end()
                raise
            self.chart_count += 1
            if self.chart_count >= MOST:
                self._end()
            return chart

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for this process to answer
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
            with contextlib.suppress(OSError):  # what was not yet written to it
                self.process.communicate()
            self.process = None


_RENDERER: Final = _Renderer()


def svg(spec: Mapping[str, Any]) -> str:
    """Draw a Vega-Lite spec; in this process where the other one cannot."""
    try:
        return _RENDERER.svg(spec)
    except (OSError, ValueError):
        import vl_convert

        here: str = vl_convert.vegalite_to_svg(dict(spec))
        return here
