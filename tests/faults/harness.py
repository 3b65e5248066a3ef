"""Commands on tiny files: started, struck at a moment, run again, and held against a run that nobody struck.

    Forge           starts `foreknow ...` as processes of their own, forked where the heavy imports are done already
    STAGES          the command of each stage, and what its result is
    judged          what came of the same command after a fault: it went on to the same result, or named the file
    DAMAGES         what can happen to a file

The package is taken from wherever it is imported (PYTHONPATH, or the environment's).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

FORGE: Final = r"""
import importlib, io, json, os, signal, sys, time, traceback
for name in ("torch", "transformers", "polars", "scipy.stats", "altair", "jinja2", "accelerate",
             "transformers.models.llama.modeling_llama", "transformers.trainer", "foreknow.stages.train.loop",
             "foreknow.stages.study.run", "foreknow.stages.evaluate.run", "foreknow.report", "foreknow.cli"):
    importlib.import_module(name)
ended = {}

def child(order):
    for number, name in ((1, order["out"]), (2, order["err"])):
        file = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
    os.environ.update(order["env"])
    code = 1
    try:
        exec(order["before"], {})
        from foreknow.cli import main
        sys.argv[1:] = order["words"]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(code)

def reap(pid, seconds):
    deadline = time.monotonic() + seconds
    while pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(0.003)
    return ended[pid]

print("ready", flush=True)
while line := sys.stdin.readline():
    order = json.loads(line)
    if "pid" in order:
        print(json.dumps(reap(order["pid"], order["seconds"])), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        child(order)
    print(pid, flush=True)
"""


class Ended(NamedTuple):
    """A command that has ended: exit code (negative: the signal), standard output and error."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of it, for a message."""
        return f"exit {self.code}\n{self.out[-800:]}\n{self.err[-3000:]}"


@dataclass
class Running:
    """A command under way."""

    forge: Forge
    pid: int
    out: Path
    err: Path

    def strike(self, how: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, how)

    def wait(self, seconds: float = 300) -> Ended | None:
        """Its end, or None where it has not come in `seconds`."""
        code = self.forge.ask({"pid": self.pid, "seconds": seconds})
        return None if code is None else Ended(int(code), self.out.read_text(), self.err.read_text(errors="replace"))

    def end(self) -> Ended:
        """Its end, which must come."""
        found = self.wait()
        assert found is not None, f"{self.pid} did not end: {self.err.read_text()[-2000:]}"
        return found


class Forge:
    """Starts commands. A fork takes milliseconds where a new interpreter would import torch for seconds."""

    def __init__(self, scratch: Path):
        self.scratch, self.count = scratch, 0
        scratch.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, order: Mapping[str, Any]) -> Any:
        """An order to the process that forks, and its reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words: list[str], before: str = "", env: Mapping[str, str] | None = None) -> Running:
        """Start `foreknow WORDS`; `before`: Python to run in the process first."""
        self.count += 1
        out, err = self.scratch / f"{self.count}.out", self.scratch / f"{self.count}.err"
        order = {"words": words, "out": str(out), "err": str(err), "before": before, "env": dict(env or {})}
        return Running(self, int(self.ask(order)), out, err)

    def run(self, words: list[str], before: str = "", env: Mapping[str, str] | None = None) -> Ended:
        """Start it and wait for its end."""
        return self.start(words, before, env).end()

    def close(self) -> None:
        """Let the process that forks end."""
        with self.process:  # closes its pipes, which ends it, and waits
            pass


# stages


def _digest(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


_SPENT: Final = {"seconds", "measuring_seconds", "saving_seconds", "rows_per_second", "out", "folder"}


def _timeless(value: Any) -> Any:
    """JSON without what a clock says and where it lies."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in _SPENT}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def result(out: Path) -> dict[str, str]:
    """What a command came to, file by file: the bytes, or of JSON all but times and places."""
    if out.is_file():
        return {p.name: _digest(p.read_bytes()) for p in (out, out.with_name(f"{out.name}.manifest.json"))}
    skipped = {"manifest.json", "report.html", "config.yaml", "foreknow.json", "training_args.bin"}
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if not path.is_file() or any(part.startswith(".") for part in name.parts) or path.suffix == ".log":
            continue
        if path.name in skipped or name.parts[0] in ("audit", "runs", "variants"):
            continue
        if path.suffix == ".json" and "tokenizer" not in path.name:
            found[str(name)] = _digest(_timeless(json.loads(path.read_text())))
        elif path.name == "metrics.jsonl":
            found[str(name)] = _digest([_timeless(json.loads(line)) for line in path.read_text().splitlines()])
        else:
            found[str(name)] = _digest(path.read_bytes())
    return found


class Calm(NamedTuple):
    """A run that nobody struck: where it lies, its result, and how long it took."""

    out: Path
    result: dict[str, str]
    seconds: float


@dataclass
class Bench:
    """The tiny model, the files, and an undisturbed run of every stage, done when first asked for."""

    forge: Forge
    folder: Path
    model: Path
    _calm: dict[str, Calm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from conftest import fact_rows

        rows = fact_rows()
        held = [n % 24 >= 20 for n in range(len(rows))]  # of each relation the last; those before are hardly known
        self.data = self._write(
            "data.jsonl", [{**r, "split": "train"} for r, h in zip(rows, held, strict=True) if not h]
        )
        self.dev = self._write("dev.jsonl", [r for r, h in zip(rows, held, strict=True) if h])
        self.template = self.folder / "template.yaml"
        self.template.write_text('target: "Q: {question}\\nA:"\n')
        splits = ("train", "train", "train", "dev", "test", "train", "test", "train")
        every = [{**r, "split": splits[n % 8]} for n, r in enumerate(rows)]
        self.study = self.folder / "study.yaml"
        tune = f"{{epochs: 2, learning_rate: 3.0e-4, batch_size: 4, prompt_template: {self.template}, "
        self.study.write_text(
            f"data: {self._write('all.jsonl', every)}\nmodel: {self.model}\nunknown: [0.5]\nknown: false\nonly: []\n"
            "natural: true\nidk: []\nfixed_epochs: [1]\nsize: 4\np_true: false\n"
            "audit: {exemplar_sets: 2, shots: 2, dtype: float32, device: cpu, chunk_rows: 8}\n"
            f"tune: {tune}dtype: float32, device: cpu}}\n"
        )

    def _write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def words(self, stage: str, out: Path) -> list[str]:
        """The stage's command; what it reads are undisturbed runs."""
        computing = ["--dtype", "float32", "--device", "cpu"]
        model = ["--model", str(self.model)]
        if stage == "audit":
            given = ["--shots", "2", "--exemplar-sets", "4", "--chunk-rows", "4"]
            return ["audit", str(self.data), *model, *given, *computing, "--out", str(out)]
        if stage == "mix":
            return ["mix", str(self.calm("audit").out), "--unknown", "0.5", "--out", str(out)]
        prompt = ["--prompt-template", str(self.template)]
        if stage == "tune":
            given = ["--epochs", "4", "--learning-rate", "3e-4", "--batch-size", "4", "--save-every", "2"]
            read = [str(self.calm("mix").out), "--dev", str(self.dev), "--audit", str(self.calm("audit").out)]
            given += ["--keep", "both"]
            return ["tune", *read, *model, *given, *prompt, *computing, "--out", str(out)]
        if stage == "evaluate":
            read = [str(self.calm("tune").out / "convergence"), str(self.data)]
            given = ["--audit", str(self.calm("audit").out), "--chunk-rows", "4", "--batch-rows", "4"]
            return ["evaluate", *read, *given, *prompt, *computing, "--out", str(out)]
        assert stage == "study", stage
        return ["study", str(self.study), "--out", str(out)]

    def calm(self, stage: str) -> Calm:
        """The undisturbed run of a stage."""
        if stage not in self._calm:
            out = self.folder / "calm" / out_name(stage)
            out.parent.mkdir(exist_ok=True)
            words = self.words(stage, out)
            began = time.monotonic()
            ended = self.forge.run(words)
            assert ended.code == 0, ended.said
            self._calm[stage] = Calm(out, result(out), time.monotonic() - began)
        return self._calm[stage]

    def copy(self, stage: str, to: Path) -> Path:
        """The undisturbed run once more, to be damaged."""
        calm = self.calm(stage).out
        out = to / out_name(stage)
        out.parent.mkdir(parents=True, exist_ok=True)
        if calm.is_dir():
            shutil.copytree(calm, out, ignore=shutil.ignore_patterns(".lock"))
            return out
        for name in (calm.name, f"{calm.name}.manifest.json"):
            shutil.copy(calm.with_name(name), to / name)
        return out

    def half(self, stage: str, number: int) -> Path:
        """A run that was killed half way; made when first asked for, to be copied."""
        out = self.folder / f"half-{number}" / out_name(stage)
        rng = random.Random(f"{stage} {number}")
        while not out.is_dir() or (out / "manifest.json").exists():
            out.parent.mkdir(exist_ok=True)
            clear(out)
            self.stopped(stage, out, rng.uniform(0.2, 0.9))
        return out

    def stopped(self, stage: str, out: Path, share: float, how: signal.Signals = signal.SIGKILL) -> bool:
        """Start the stage and strike it after a share of the time it takes undisturbed; whether that was in time."""
        took = self.calm(stage).seconds
        running = self.forge.start(self.words(stage, out))
        if running.wait(share * took) is not None:
            return False
        running.strike(how)
        ended = running.end()
        if ended.code == 0:  # it came to its end just then
            return False
        assert ended.code in STRUCK[how], ended.said
        assert "Traceback" not in ended.err, ended.said
        return True


STAGES: Final = ("audit", "mix", "tune", "evaluate", "study")
STRUCK: Final = {signal.SIGKILL: (-9,), signal.SIGINT: (130,), signal.SIGTERM: (-15, 143)}
"""Exit codes of a command that was struck; by SIGTERM also before it could take it."""


def out_name(stage: str) -> str:
    """What a stage writes: a folder, or of `mix` a file."""
    return "mixed.jsonl" if stage == "mix" else stage


# judging

TALLY: Final[Counter[tuple[str, str, str]]] = Counter()
"""(fault, stage, how it was met): how often."""


def count(fault: str, stage: str, met: str) -> None:
    """Count a fault, and note it in the file FAULTS_COUNTS at once: a long run may be stopped."""
    TALLY[fault, stage, met] += 1
    if file := os.environ.get("FAULTS_COUNTS"):
        with Path(file).open("a", encoding="utf-8") as opened:
            opened.write(json.dumps([fault, stage, met]) + "\n")


REMEDIES: Final = (
    *("delete", "again", "another --out", "--force", "free some space", "run foreknow", "Check the path"),
    *("wait for it to end", "cannot be written"),
)
"""A message that names what is wrong says what to do, too."""


def judged(fault: str, stage: str, ended: Ended, same: Callable[[], bool], names: set[str]) -> str:
    """`continued`: exit 0 and the result of an undisturbed run. `named`: refused with a message that names one of
    `names` and says what to do. Anything else fails, and counts as silently wrong where the exit code is 0.
    """
    if ended.code == 0:
        met = "continued" if same() else "silently wrong"
    else:
        told = any(name in ended.err for name in names)
        remedy = any(word in ended.err for word in REMEDIES)
        named = ended.code in (1, 2) and told and remedy and "Traceback" not in ended.err
        met = "named" if named else "not named"
    count(fault, stage, met)
    assert met in ("continued", "named"), f"{fault}, {stage}: {met}; {sorted(names)}\n{ended.said}"
    return met


# damage


def cut(path: Path, rng: random.Random) -> None:
    """The file ends somewhere within."""
    os.truncate(path, rng.randrange(path.stat().st_size) if path.stat().st_size else 0)


def flip(path: Path, rng: random.Random) -> None:
    """One bit is another."""
    raw = bytearray(path.read_bytes())
    if raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def empty(path: Path, rng: random.Random) -> None:
    """The file is there and has no bytes, as after a power cut."""
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random) -> None:
    """The file is gone."""
    path.unlink()


DAMAGES: Final[dict[str, Callable[[Path, random.Random], None]]] = {
    "cut": cut,
    "flip": flip,
    "empty": empty,
    "remove": remove,
}


def files_of(out: Path) -> list[Path]:
    """Every file of a run, hidden ones too, but for its lock."""
    if not out.is_dir():
        return [out, out.with_name(f"{out.name}.manifest.json")]
    return sorted(p for p in out.rglob("*") if p.is_file() and p.name != ".lock")


def clear(out: Path) -> None:
    """Delete what a stage wrote."""
    if out.is_dir():
        shutil.rmtree(out)
    for path in (out, out.with_name(f"{out.name}.manifest.json")):
        path.unlink(missing_ok=True)


@contextmanager
def small_disk(at: Path, kib: int) -> Iterator[Callable[[str], None]]:
    """A file system of `kib` KiB at the folder `at`; what is yielded remounts it with other options.

    Raises PermissionError where this process may not mount.
    """
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "foreknow-faults", str(at)], capture_output=True, check=False
    )
    if done.returncode != 0:
        raise PermissionError(done.stderr.decode().strip())

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(at)], check=True, capture_output=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
