"""Disks that fill up, folders that cannot be written: one line that says so, and the same command goes on after."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.harness import STAGES, Bench, count, files_of, judged, out_name, result, small_disk

pytestmark = pytest.mark.faults


@contextmanager
def mounted(at: Path, kib: int) -> Iterator[Callable[[str], None]]:
    try:
        with small_disk(at, kib) as remount:
            yield remount
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a tmpfs: {error}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up_at_any_moment_costs_nothing_but_time(bench: Bench, tmp_path: Path, stage: str) -> None:
    calm = bench.calm(stage)
    whole = max(sum(p.stat().st_size for p in files_of(calm.out)) // 1024, 8)
    for share in (0.1, 0.4, 0.7, 0.9):
        place = tmp_path / f"disk-{share}"
        with mounted(place, max(int(share * whole), 4)) as remount:
            out = place / out_name(stage)
            full = bench.forge.run(bench.words(stage, out))
            judged("disk full", stage, full, lambda out=out: result(out) == calm.result, {"disk is full"})
            remount("size=64m")
            again = bench.forge.run(bench.words(stage, out))
            judged("disk full, then space", stage, again, lambda out=out: result(out) == calm.result, set())


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_cannot_be_written_is_named(bench: Bench, tmp_path: Path, stage: str) -> None:
    calm, place = bench.calm(stage), tmp_path / "disk"
    with mounted(place, 65536) as remount:
        remount("ro")
        out = place / out_name(stage)
        refused = bench.forge.run(bench.words(stage, out))
        assert refused.code == 2, refused.said
        count("read-only folder, new run", stage, "named" if str(place) in refused.err else "not named")
        assert str(place) in refused.err
        assert "Read-only file system" in refused.err, refused.said
        assert "Traceback" not in refused.err, refused.said
        remount("rw")
        bench.stopped(stage, out, random.Random(stage).uniform(0.3, 0.8), signal.SIGKILL)
        remount("ro")
        refused = bench.forge.run(bench.words(stage, out))
        assert "Traceback" not in refused.err, refused.said
        assert refused.code in (0, 2), refused.said
        count("read-only folder, half a run", stage, "named" if refused.code else "continued")
        remount("rw")
        again = bench.forge.run(bench.words(stage, out))
        judged("read-only, then writable", stage, again, lambda: result(out) == calm.result, set())


def test_a_finished_audit_on_a_read_only_disk_can_be_mixed_and_compared(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with mounted(place, 65536) as remount:
        shutil.copytree(bench.calm("audit").out, place / "audit", ignore=shutil.ignore_patterns(".lock"))
        remount("ro")
        out = tmp_path / "mixed.jsonl"
        words = bench.words("mix", out)
        words[1] = str(place / "audit")
        ended = bench.forge.run(words)
        judged("read-only audit, mix", "mix", ended, lambda: result(out) == bench.calm("mix").result, set())
        compared = bench.forge.run(["compare", str(place / "audit"), str(bench.calm("audit").out)])
        judged("read-only audit, compare", "audit", compared, lambda: "less known 0" in compared.out, set())
        paged = bench.forge.run(["report", str(place / "audit")])
        judged("read-only audit, report", "audit", paged, lambda: False, {"report.html"})
