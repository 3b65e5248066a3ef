"""Stopped at random moments by SIGKILL, SIGINT or SIGTERM, a run ends in the result of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.harness import STAGES, STRUCK, Bench, Ended, clear, count, files_of, judged, out_name, result

pytestmark = pytest.mark.faults

STRIKES = int(os.environ.get("FAULTS_STRIKES", "4"))
"""How often a run is struck, by each signal."""
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
@pytest.mark.parametrize("stage", STAGES)
def test_struck_at_random_moments_it_ends_in_the_same_result(
    bench: Bench, tmp_path: Path, stage: str, how: signal.Signals
) -> None:
    rng = random.Random(f"{stage} {how.name}")
    out, calm = tmp_path / out_name(stage), bench.calm(stage)
    struck = 0
    for _ in range(3 * STRIKES):
        if bench.stopped(stage, out, rng.uniform(0.05, 0.95), how):
            struck += 1
            count(f"struck by {how.name}", stage, "(strikes)")
        else:  # it got through: from the start
            assert result(out) == calm.result
            clear(out)
        if struck == STRIKES:
            break
    assert struck, "no strike came in time"
    ended = bench.forge.run(bench.words(stage, out))
    judged(f"struck by {how.name}", stage, ended, lambda: result(out) == calm.result, set())
    torn = [p for p in files_of(out) if p.name.startswith(".") and p.suffix in (".part", p.name.rpartition(".")[2])]
    assert not [p for p in torn if stage != "mix" and p.name not in {q.name for q in files_of(calm.out)}]


@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
def test_a_real_interpreter_is_struck_while_it_imports_and_after(
    bench: Bench, tmp_path: Path, how: signal.Signals
) -> None:
    """`python -m foreknow`, not forked: the moments include the imports."""
    out, calm, rng = tmp_path / "audit", bench.calm("audit"), random.Random(how.name)
    words = [sys.executable, "-m", "foreknow", *bench.words("audit", out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for seconds in (rng.uniform(1.0, 3.0), rng.uniform(3.0, 6.0)):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        time.sleep(seconds)
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
        if process.returncode != 0:
            assert process.returncode in STRUCK[how], err
            assert "Traceback" not in err
            count(f"real process, {how.name}", "audit", "(strikes)")
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False)
    ended = Ended(done.returncode, done.stdout, done.stderr)
    judged(f"real process, {how.name}", "audit", ended, lambda: result(out) == calm.result, set())


def test_an_interrupt_says_how_to_go_on(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    running = bench.forge.start(bench.words("audit", out))
    while not (out / ".run.json").is_file():
        assert running.wait(0.01) is None
    running.strike(signal.SIGINT)
    assert "interrupted; the same command goes on from here" in running.end().err
