"""Kill a real tuning run with SIGKILL at random moments until it is done: does it end as if undisturbed?

    python benchmarks/kills.py TRAIN DEV [--model smollm2-135m] [--kills 10] [--seed 0] [FLAGS OF TUNE]

Prints when each kill struck, and whether metrics, outcomes and both checkpoints are the same bytes as those of a run
that nobody killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEASURED = {"seconds", "measuring_seconds", "saving_seconds"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args, flags = parser.parse_known_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        calm, struck = Path(name) / "calm", Path(name) / "struck"
        command = [sys.executable, "-m", "foreknow", "tune", args.train, "--dev", args.dev, "--model", args.model]
        command += [*flags, "--keep", "both", "--out"]
        began = time.monotonic()
        subprocess.run([*command, str(calm)], check=True, capture_output=True)
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.0f} s")
        kills = 0
        while kills < args.kills:
            process = subprocess.Popen([*command, str(struck)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(rng.uniform(0.1, 0.9) * whole)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                print(f"kill {kills}: {reached(struck)}", flush=True)
                continue
            if kills < args.kills:  # it got through: once more from the start
                print(f"done after {kills} kills: {told(calm, struck)}", flush=True)
                subprocess.run(["rm", "-rf", str(struck)], check=True)
        subprocess.run([*command, str(struck)], check=True, capture_output=True)
        print(f"done after {kills} kills: {told(calm, struck)}")


def reached(folder: Path) -> str:
    """How far the run had come."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return f"after the evaluation of step {json.loads(lines[-1])['step']}" if lines else "before the first evaluation"


def told(calm: Path, struck: Path) -> str:
    """Which outputs are the same."""
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in text.splitlines()]
        for text in ((folder / "metrics.jsonl").read_text() for folder in (calm, struck))
    ]
    same = {"metrics": lines[0] == lines[1]}
    for file in ("outcomes.parquet", "early_stop/model.safetensors", "convergence/model.safetensors"):
        sums = {hashlib.sha256((folder / file).read_bytes()).hexdigest() for folder in (calm, struck)}
        same[file] = len(sums) == 1
    return ", ".join(f"{name} {'the same' if equal else 'DIFFERENT'}" for name, equal in same.items())


if __name__ == "__main__":
    main()
