"""Charts are drawn in a process of its own, whatever becomes of it or of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import vl_convert

from foreknow.report import vega_process


def spec(rows: int) -> dict[str, Any]:
    values = [{"place": place, "rows": 2 * place} for place in range(rows)]
    return {
        "data": {"values": values},
        "mark": "bar",
        "encoding": {"x": {"field": "place"}, "y": {"field": "rows", "type": "quantitative"}},
    }


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Iterator[vega_process._Renderer]:
    fresh = vega_process._Renderer()
    monkeypatch.setattr(vega_process, "_RENDERER", fresh)
    yield fresh
    fresh._end()


def number(renderer: vega_process._Renderer) -> int:
    assert renderer.process is not None
    return renderer.process.pid


def test_the_other_process_draws_what_this_one_would(renderer: vega_process._Renderer) -> None:
    assert [vega_process.svg(spec(rows)) for rows in (2, 5)] == [
        vl_convert.vegalite_to_svg(spec(rows)) for rows in (2, 5)
    ]
    assert renderer.chart_count == 2


def test_a_process_gives_way_to_a_new_one(renderer: vega_process._Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega_process, "MOST", 2)
    first = vega_process.svg(spec(2))
    old, before = number(renderer), psutil.Process().num_fds()
    assert vega_process.svg(spec(2)) == first
    assert renderer.process is None
    assert not psutil.pid_exists(old)
    assert vega_process.svg(spec(2)) == first
    assert psutil.Process().num_fds() == before


def test_a_lost_process_costs_nothing(renderer: vega_process._Renderer) -> None:
    first = vega_process.svg(spec(2))
    lost = number(renderer)
    os.kill(lost, signal.SIGKILL)
    assert [vega_process.svg(spec(2)), vega_process.svg(spec(2))] == [first, first]
    assert number(renderer) != lost


def test_without_another_process_this_one_draws(
    monkeypatch: pytest.MonkeyPatch, renderer: vega_process._Renderer
) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    assert vega_process.svg(spec(2)) == vl_convert.vegalite_to_svg(spec(2))
    assert renderer.process is None


def test_a_spec_that_cannot_be_drawn_is_vl_converts_error() -> None:
    with pytest.raises(ValueError, match="Vega-Lite"):
        vega_process.svg({"mark": 7})


def test_after_an_interrupt_the_next_chart_is_its_own(
    renderer: vega_process._Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = vega_process.svg(spec(2))
    answer = vega_process._Renderer._answer

    def interrupted(self: vega_process._Renderer, line: str) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(vega_process._Renderer, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vega_process.svg(spec(5))
    monkeypatch.setattr(vega_process._Renderer, "_answer", answer)
    assert vega_process.svg(spec(2)) == wanted


def test_it_ends_with_the_process_it_draws_for() -> None:
    program = (
        "import time; from foreknow.report import vega_process;"
        "vega_process.svg({'mark': 'bar', 'data': {'values': []}});"
        "print(vega_process._RENDERER.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        child = psutil.Process(int(ours.stdout.readline()))
        ours.kill()
    until = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


FORK = """
import os, sys
from foreknow.report import vega_process

spec = {"mark": "bar", "data": {"values": [{"a": 1}]}, "encoding": {"x": {"field": "a"}}}
first = vega_process.svg(spec)
child = os.fork()
if not child:
    os._exit(0 if vega_process.svg(spec) == first else 1)
assert os.waitpid(child, 0)[1] == 0
assert vega_process.svg(spec) == first
assert vega_process._RENDERER.chart_count == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_draws_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
