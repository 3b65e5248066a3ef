"""Two runs on one folder, and clocks that jump."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from faults.harness import STAGES, Bench, files_of, judged, out_name, result

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("stage", STAGES)
def test_of_two_runs_on_one_folder_one_is_done_and_the_other_told(bench: Bench, tmp_path: Path, stage: str) -> None:
    calm, rng = bench.calm(stage), random.Random(stage)
    for number in range(3):
        out = tmp_path / str(number) / out_name(stage)
        out.parent.mkdir()
        first = bench.forge.start(bench.words(stage, out))
        first.wait(rng.choice([0.0, 0.1, 0.5]) * calm.seconds)
        second = bench.forge.start(bench.words(stage, out))
        ends = [first.end(), second.end()]
        assert 0 in [ended.code for ended in ends], [ended.said for ended in ends]
        for ended in ends:
            judged("two at once", stage, ended, lambda out=out: result(out) == calm.result, {"held by another run"})
        assert result(out) == calm.result


def test_two_different_mixes_into_one_file_at_once(bench: Bench, tmp_path: Path) -> None:
    """One file stands at the end; if its manifest is the other's, whoever reads it says so."""
    mixed, calm = str(bench.calm("mix").out), []
    (tmp_path / "calm").mkdir()
    for share in ("0.5", "0.25"):
        out = tmp_path / "calm" / f"{share}.jsonl"
        assert bench.forge.run(_mix(bench, share, out)).code == 0
        calm.append(list(result(out).values()))
    for number in range(4):
        out = tmp_path / f"{number}.jsonl"
        both = [bench.forge.start([*_mix(bench, share, out), "--force"]) for share in ("0.5", "0.25")]
        assert all("Traceback" not in one.end().err for one in both)
        tuned = bench.words("tune", tmp_path / f"tuned-{number}")
        ended = bench.forge.run([*(str(out) if word == mixed else word for word in tuned), "--dry-run"])
        same = partial(lambda out: list(result(out).values()) in calm, out)
        judged("two mixes into one file", "mix", ended, same, {out.name})


def _mix(bench: Bench, share: str, out: Path) -> list[str]:
    return [share if word == "0.5" else word for word in bench.words("mix", out)]


JUMPING = """
import random, time
real, rng = time.time, random.Random(1)
time.time = lambda: real() + rng.choice([-3e8, -3600, 0, 3600, 3e8])
ns = time.time_ns
time.time_ns = lambda: ns() + int(rng.choice([-3e17, 0, 3e17]))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_clock_that_jumps_changes_nothing(bench: Bench, tmp_path: Path, stage: str) -> None:
    """The time of day jumps by up to ten years with every look at it, and files' times lie in the past and future."""
    out, calm, rng = tmp_path / out_name(stage), bench.calm(stage), random.Random(stage)
    running = bench.forge.start(bench.words(stage, out), before=JUMPING)
    if running.wait(rng.uniform(0.3, 0.8) * calm.seconds) is None:
        running.strike(signal.SIGKILL)
        running.end()
    for path in files_of(out):
        if path.exists():
            moment = rng.choice([0, 4e9])
            os.utime(path, (moment, moment))
    ended = bench.forge.run(bench.words(stage, out), before=JUMPING)
    judged("clock jumps, files of other times", stage, ended, lambda: result(out) == calm.result, set())
