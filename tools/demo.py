"""Run foreknow's whole road on the packaged facts and model: audit, mix, tune, evaluate, report. `make demo` calls it.

    python tools/demo.py [--out runs/demo] [--install-seconds 200] [--dry-run]

Says beforehand how long each step will take on this machine, from two bursts measured now: starting Python with
foreknow, and multiplying float32 matrices on all cores. At the end it says what each step took beside what was said,
with its processor time (user and system, of all its processes), and writes both to times.json.

The estimate scales `STEPS`, the times of the parts of such a run on `REFERENCE`, by what this machine's bursts take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

MODEL: Final = "smollm2-135m"
RELATIONS: Final = ("city_country", "company_headquarters", "company_ticker", "country_capital")
"""Relations of which the model expresses some facts and not others, so that a mix has rows of both kinds of each."""
AUDITED: Final = {"train": 96, "test": 40}
DEV_ROWS: Final = 32
MIX_ROWS: Final = 36
SETS: Final = 5


class Machine(NamedTuple):
    """What the bursts measure: processor seconds to start foreknow, and float32 GFLOP a processor second."""

    start_seconds: float
    gflops: float


REFERENCE: Final = Machine(0.93, 59.2)
"""Two cores of an AMD EPYC with AVX2 and no more."""


class StepTime(NamedTuple):
    """Seconds of a step on `REFERENCE`: those of one core, and those that all cores share, in seconds of one core."""

    one_core: float
    shared: float


STEPS: Final = {
    "facts": StepTime(2, 0),
    "audit": StepTime(21, 70),
    "mix": StepTime(2, 0),
    "tune": StepTime(63, 80),
    "evaluate": StepTime(17, 30),
    "report": StepTime(8, 0),
}
"""From the processor and wall-clock seconds of a run on `REFERENCE`; a run writes its own to times.json."""


@dataclass(frozen=True)
class Step:
    """A step of the road: what it shows, and a command of foreknow or a function that writes a file."""

    name: str
    title: str
    command: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None


def steps(out: Path) -> list[Step]:
    """Return the steps of the road, which write into `out`."""
    facts, audit, tuned = out / "facts", out / "audit", out / "tuned"
    training = ("--epochs", "3", "--learning-rate", "5e-5", "--batch-size", "8", "--dev", f"{out / 'dev.jsonl'}")
    return [
        Step("facts", "what a team's files would be", ("data", "facts", "--out", f"{facts}")),
        Step(
            "audit",
            f"what does the model express of {sum(AUDITED.values())} of them? ({SETS} exemplar sets, where the paper "
            "has 10)",
            (
                *("audit", f"{out / 'rows.jsonl'}", "--model", MODEL, "--exemplars", f"{facts / 'dev.jsonl'}"),
                *("--exemplar-sets", f"{SETS}", "--out", f"{audit}"),
            ),
            lambda: write_rows(facts, out),
        ),
        Step(
            "mix",
            f"{MIX_ROWS} training rows, half of them Unknown",
            ("mix", f"{audit}", "--unknown", "0.5", "--size", f"{MIX_ROWS}", "--out", f"{out / 'mixed.jsonl'}"),
        ),
        Step(
            "tune",
            "train on them for three epochs: which are learnt, and what is lost?",
            (
                *("tune", f"{out / 'mixed.jsonl'}", "--model", MODEL, *training),
                *("--test", f"test={out / 'test.jsonl'}", "--canaries", "none", "--out", f"{tuned}"),
            ),
            lambda: write_test(audit, out),
        ),
        Step(
            "evaluate",
            "what does the tuned model really say?",
            ("evaluate", f"{tuned / 'early_stop'}", f"{out / 'test.jsonl'}", "--out", f"{out / 'evaluation'}"),
        ),
        Step("report", "the page to decide from, written again", ("report", f"{tuned}")),
    ]


def write_rows(facts: Path, out: Path) -> None:
    """Write the rows to audit and the dev rows: of each relation, evenly spaced by popularity."""
    for name, counts in (("rows", AUDITED), ("dev", {"dev": DEV_ROWS})):
        lines = [line for split, count in counts.items() for line in evenly(facts / f"{split}.jsonl", count)]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def evenly(file: Path, count: int) -> list[str]:
    """Return `count` lines of a file of facts, as many of each of `RELATIONS`, evenly spaced within it."""
    chosen = []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for at, relation in enumerate(RELATIONS):
        own = [line for line in lines if json.loads(line)["relation"] == relation]
        share = min(count // len(RELATIONS) + (at < count % len(RELATIONS)), len(own))
        chosen += [own[(2 * n + 1) * len(own) // (2 * share)] for n in range(share)]
    return chosen


def write_test(audit: Path, out: Path) -> None:
    """Write the test rows of the audit, with their categories."""
    lines = (audit / "annotated.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    test = [line for line in lines if json.loads(line)["split"] == "test"]
    (out / "test.jsonl").write_text("".join(test), encoding="utf-8")


BURST: Final = """
import sys, time, torch
cores = int(sys.argv[1])
torch.set_num_threads(cores)
a = torch.randn(768, 768)
a @ a
began, times = time.process_time(), 0
while time.process_time() - began < 0.5 * cores:
    a @ a
    times += 1
print(2 * 768**3 * times / (time.process_time() - began) / 1e9)
"""
"""All cores multiply at once: two that share one unit for arithmetic are slower together than either is alone."""


def measure(cores: int) -> Machine:
    """Measure both bursts on this machine; seconds are processor time, so other jobs disturb them little."""
    before = child_seconds()
    subprocess.run([sys.executable, "-m", "foreknow", "--help"], check=True, stdout=subprocess.DEVNULL)
    start = child_seconds() - before
    done = subprocess.run([sys.executable, "-c", BURST, str(cores)], check=True, stdout=subprocess.PIPE, text=True)
    return Machine(start, float(done.stdout))


def estimate(step: StepTime, machine: Machine, cores: int) -> float:
    """Return the seconds that a step takes on a machine with nothing else to do."""
    slower = machine.start_seconds / REFERENCE.start_seconds
    return step.one_core * slower + step.shared * REFERENCE.gflops / machine.gflops / cores


def child_seconds() -> float:
    """Return the processor time of all processes that ended under this one, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cores_here() -> int:
    """Return the number of cores that this process may use, up to 8: small models gain nothing from more."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 8)


def clock(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 20 s."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def run(step: Step) -> tuple[float, float]:
    """Run a step; return its wall-clock and processor seconds. Ends the demo with the step's status if it fails."""
    print(f"\n== {step.name}: {step.title} ==", flush=True)
    began, before = time.monotonic(), child_seconds()
    step.prepare()
    print(f"$ foreknow {shlex.join(step.command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "foreknow", *step.command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began, child_seconds() - before


def closing(out: Path) -> list[str]:
    """Return what the run found: shares and exact match, with 95 % intervals (Wilson)."""
    from foreknow.stats import wilson

    def share(hits: int, total: int) -> str:
        found = wilson(hits, total)
        return f"{hits} of {total} ({found.low:.0%} to {found.high:.0%})"

    audit = json.loads((out / "audit" / "summary.json").read_text(encoding="utf-8"))
    rows, unknown = audit["labelled"], audit["categories"]["overall"]["Unknown"]
    results = json.loads((out / "tuned" / "results.json").read_text(encoding="utf-8"))
    tests = len((out / "test.jsonl").read_text(encoding="utf-8").splitlines())
    lines = [f"Unknown before training: {share(round(unknown * rows), rows)} audited rows"]
    for key, name in (("early_stop", "the epoch to keep"), ("convergence", "the last epoch")):
        point = results[key]
        right = share(round(point["metrics"]["em"]["test"] * tests), tests)
        lines.append(f"{name} ({point['epoch']}): right on {right} test rows")
    return [*lines, "in brackets: 95 % intervals; so few rows show the road, not a small difference"]


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows of texts as columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure, say how long it will take, run the steps, and say how long they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--install-seconds", type=lambda text: float(text or 0), help="what the installation took, for the total"
    )
    parser.add_argument("--dry-run", action="store_true", help="say how long it will take, and stop")
    args = parser.parse_args(words)
    cores = cores_here()
    machine = measure(cores)
    expected = {name: estimate(time_of, machine, cores) for name, time_of in STEPS.items()}
    print(
        f"measured on this machine: {machine.gflops:.0f} GFLOP/s a core in float32 (1 of {cores} cores that are "
        f"counted), {machine.start_seconds:.1f} s to start foreknow"
    )
    print(table([("step", "about"), *((name, clock(s)) for name, s in expected.items())]))
    print(f"in all about {clock(sum(expected.values()))} with nothing else running; a run that is stopped goes on")
    if args.dry_run:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    took = {step.name: run(step) for step in steps(args.out)}
    lines = [("step", "said", "took", "processor time")]
    lines += [(n, clock(expected[n]), clock(wall), clock(processor)) for n, (wall, processor) in took.items()]
    wall, processor = (sum(values) for values in zip(*took.values(), strict=True))
    lines.append(("in all", clock(sum(expected.values())), clock(wall), clock(processor)))
    print("\n== what it found, and what it took ==")
    print("\n".join(closing(args.out)))
    print(table(lines))
    if args.install_seconds:
        print(f"with the installation ({clock(args.install_seconds)}): {clock(wall + args.install_seconds)}")
    times: dict[str, Any] = {
        "machine": machine._asdict(),
        "cores": cores,
        "install_seconds": args.install_seconds,
        "steps": {n: {"said": expected[n], "wall": w, "processor": p} for n, (w, p) in took.items()},
    }
    (args.out / "times.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    print(f"pages: {args.out}/audit/report.html, {args.out}/tuned/report.html, {args.out}/evaluation/report.html")


if __name__ == "__main__":
    main()
