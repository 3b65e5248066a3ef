"""Fuzz every reader: whatever the bytes, rows that are all accounted for, or an error of ours that names the file.

    python benchmarks/fuzz.py --inputs 100000 [--reader csv ...] [--engine random|atheris|both] [--out runs/fuzz]

`random` changes valid files: their values, and their bytes (before they are packed, and after). `atheris` is guided
by coverage, where it is installed. Each reader runs in a process of its own with 4 GiB of address space; one that
dies or hangs is a failure too, and is started again. An input that reads cleanly is also annotated, one row of it
is written with another answer, and both outputs are read back. Failing inputs are kept under --out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))  # the inputs and the rules are those of tests/test_fuzz.py

if TYPE_CHECKING:
    from fuzzing import Reader

ADDRESS_SPACE = 4 << 30
"""Bytes that a reader's process may map."""
HANGS = 60.0
"""Seconds of computing without progress after which a reader's process is ended."""
STALLS = 900.0
"""Seconds without progress, computing or not, after which it is ended: a busy machine may let it wait."""
INSTRUMENTED = ("foreknow.io", "foreknow.data")


# a process for one reader


class Tally:
    """What came of the inputs so far, in a file that outlives the process."""

    FIELDS = ("clean", "refused", "failed", "peak_kib", "first_kib", "slowest_us")
    FORM = struct.Struct(f"<{len(FIELDS)}q")

    def __init__(self, folder: Path):
        self.file = (folder / "tally").open("r+b" if (folder / "tally").exists() else "w+b", buffering=0)
        self.found = dict(zip(self.FIELDS, self.FORM.unpack(self.file.read() or bytes(self.FORM.size)), strict=True))

    def add(self, what: str, seconds: float = 0.0) -> None:
        self.found[what] += 1
        peak = _peak_kib() if seconds else 0
        self.found["peak_kib"] = max(self.found["peak_kib"], peak)
        self.found["first_kib"] = self.found["first_kib"] or peak
        self.found["slowest_us"] = max(self.found["slowest_us"], int(seconds * 1e6))
        self.file.seek(0)
        self.file.write(self.FORM.pack(*self.found.values()))

    @property
    def inputs(self) -> int:
        return self.found["clean"] + self.found["refused"] + self.found["failed"]


def _peak_kib() -> int:
    """This process's peak memory; what its parent held before does not count, as it would in ru_maxrss."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().partition("VmHWM:")[2].split()[0])


def child(name: str, engine: str, inputs: int, seed: int, folder: Path) -> None:
    """Run so many inputs through one reader."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with (folder / "stderr.txt").open("a") as log:
        os.dup2(log.fileno(), 2)  # where Rust tells of a panic, and libFuzzer of its progress
    with _instrumented(engine == "atheris"):
        import fuzzing
    reader, seeds = fuzzing.readers()[name], fuzzing.readers()[name].seeds()
    tally = Tally(folder)
    kept: dict[str, int] = {}

    def one(content: bytes) -> None:
        path = folder / reader.file
        path.write_bytes(content[: fuzzing.LARGEST])
        began = time.process_time()
        try:
            what = fuzzing.outcome(reader, path)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            what = "failed"
            _keep(folder, path, error, kept)
        tally.add(what, time.process_time() - began)

    if engine == "atheris":
        _atheris(reader, seeds, one, inputs, seed, folder)
        return
    rng = random.Random(f"{name} {seed}")
    for _ in range(inputs):
        one(fuzzing.random_input(rng, reader, seeds))


def _instrumented(guided: bool) -> contextlib.AbstractContextManager[None]:
    if not guided:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=list(INSTRUMENTED))


def _atheris(
    reader: Reader, seeds: Sequence[bytes], one: Callable[[bytes], None], inputs: int, seed: int, folder: Path
) -> None:
    """Inputs guided by coverage of our own code; half of the changes are ours, half libFuzzer's. Does not return."""
    import atheris

    from fuzzing import LARGEST, inside, random_input

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)

    def mutate(content: bytes, largest: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return random_input(rng, reader._replace(made=lambda _: content), seeds)[:largest]
        return inside(reader, content, lambda b: bytes(atheris.Mutate(b, largest)), rng.random() < 0.5)[:largest]

    flags = [f"-runs={inputs}", f"-seed={seed + 1}", f"-max_len={LARGEST}", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def _keep(folder: Path, path: Path, error: BaseException, kept: dict[str, int]) -> None:
    """Keep the input and the traceback, once for each place that fails."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "foreknow" in frame.filename]
    key = f"{type(error).__name__} {str(error)[:40]} {[(f.name, f.lineno) for f in frames[-1:]]}"
    kept[key] = kept.get(key, 0) + 1
    if kept[key] > 1 or len(kept) > 20:
        return
    failures = folder / "failures"
    failures.mkdir(exist_ok=True)
    number = len(list(failures.glob("*.txt")))
    if path.exists():  # a process may die before its first input
        shutil.copy(path, failures / f"{number}-{path.name}")
    (failures / f"{number}.txt").write_text("".join(traceback.format_exception(error)), "utf-8", "backslashreplace")


# the run


def fuzz(name: str, engine: str, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """Run a reader's process, again after each death, until all inputs are through."""
    from fuzzing import Unlike, readers

    folder = out / f"{name}-{engine}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tally, began, deaths = Tally(folder), time.perf_counter(), []
    while tally.inputs < inputs and len(deaths) < 10:
        left = inputs - tally.inputs
        command = [sys.executable, __file__, "--child", name, engine, str(left), str(seed + len(deaths)), str(folder)]
        quiet = {**os.environ, "RUST_BACKTRACE": "0"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quiet)
        seen, moved, computed = -1, time.monotonic(), 0.0
        while process.poll() is None:
            time.sleep(0.2)
            tally = Tally(folder)
            if tally.inputs != seen:
                seen, moved, computed = tally.inputs, time.monotonic(), _computed(process.pid)
            elif _computed(process.pid) - computed > HANGS or time.monotonic() - moved > STALLS:
                process.kill()
        tally = Tally(folder)
        if process.returncode:
            deaths.append(f"ended with {process.returncode}" if process.returncode != -signal.SIGKILL else "hung")
            print(f"{name}, {engine}: {deaths[-1]}; see {folder}", file=sys.stderr)
            tally.add("failed")
            _keep(folder, folder / readers()[name].file, Unlike(deaths[-1]), {})
        elif tally.inputs < inputs:  # libFuzzer counts a few inputs of its own
            seed += 1
    panics = (folder / "stderr.txt").read_text("utf-8", "replace").count("panicked at")
    return {
        "reader": name, "engine": engine, "inputs": tally.inputs, **tally.found, "panics": panics,
        "deaths": deaths, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _computed(pid: int) -> float:
    """Seconds that a process has computed; those of the clock where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, shared out over the readers")
    parser.add_argument("--reader", nargs="*", help="as tests/fuzzing.py names them; all of them, if none is named")
    parser.add_argument("--engine", choices=["random", "atheris", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, engine, inputs, seed, folder = args.child
        child(name, engine, int(inputs), int(seed), Path(folder))
        return
    from fuzzing import readers

    chosen = args.reader or list(readers())
    if unknown := set(chosen) - set(readers()):
        parser.error(f"no such reader: {', '.join(sorted(unknown))}; known are {', '.join(readers())}")
    engines = ["random", "atheris"] if args.engine == "both" else [args.engine]
    if "atheris" in engines and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: changes at random only", file=sys.stderr)
        engines = ["random"]
    each = -(-args.inputs // (len(chosen) * len(engines)))
    print("| reader | engine | inputs | clean | refused | failed | Rust panics | slowest | peak memory | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    results = []
    for name in chosen:
        for engine in engines:
            r = fuzz(name, engine, each, args.seed, args.out)
            results.append(r)
            cells = [f"{r[key]:,}" for key in ("inputs", "clean", "refused", "failed", "panics")]
            cells += [f"{r['slowest_us'] / 1e3:.0f} ms", f"{r['peak_kib'] / 1024:.0f} MiB", f"{r['seconds']:.0f}"]
            print(f"| {name} | {engine} | {' | '.join(cells)} |", flush=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    total = {key: sum(r[key] for r in results) for key in ("inputs", "clean", "refused", "failed", "seconds")}
    peak, first = (max(r[key] for r in results) / 1024 for key in ("peak_kib", "first_kib"))
    print(
        f"\n{total['inputs']:,} inputs: {total['clean']:,} clean, {total['refused']:,} refused, {total['failed']:,} "
        f"failed; peak memory {peak:.0f} MiB (after a first input {first:.0f}), {total['seconds']:.0f} s"
    )
    sys.exit(1 if total["failed"] else 0)


if __name__ == "__main__":
    main()
