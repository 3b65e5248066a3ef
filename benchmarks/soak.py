"""Audit, mix, tune and evaluate a tiny model over and over in one process: do memory, files and threads stay flat?

    python benchmarks/soak.py [--minutes 60] [--out runs/soak.json]

Resident memory, open file descriptors and threads are taken after every round. Flat: after the warm-up, the median of
memory in the last quarter of the rounds is at most 2 % over that of the first, and there are never more descriptors or
threads in the last quarter than there once were in the first half (libraries start a thread when they first need it).
Exit code 1 if not. Every round's rows must be the first round's, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import _train, fact_rows, tiny_model, tiny_tokenizer

WARM_UP = 5
"""Rounds not counted: what is imported, compiled and cached once."""
GROWTH = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        os.environ["FOREKNOW_CACHE"] = str(base / "cache")
        files = prepared(base)
        began, samples, first = time.monotonic(), [], None
        while time.monotonic() - began < 60 * args.minutes or len(samples) < WARM_UP + 8:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                came = one_round(base / "round", files)
            first = first or came
            if came != first:
                raise SystemExit(f"round {len(samples)}: other results than in round 0: {came} against {first}")
            samples.append({"seconds": round(time.monotonic() - began, 1), **state()})
    told = verdict(samples)
    print(json.dumps(told, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**told, "samples": samples}, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(0 if told["flat"] else 1)


def prepared(base: Path) -> dict[str, Path]:
    """The tiny model, rows to audit, rows to choose the epoch by, and the prompt."""
    rows = fact_rows()
    tokenizer = tiny_tokenizer([f"Q: {r['question']}\nA: {r['answer']}\n" for r in rows] * 3)
    model = tiny_model(len(tokenizer), tokenizer.eos_token_id)
    _train(model, tokenizer)
    files = {name: base / name for name in ("model", "data.jsonl", "dev.jsonl", "template.yaml")}
    model.save_pretrained(files["model"])
    tokenizer.save_pretrained(files["model"])
    for name, split in (("data.jsonl", "train"), ("dev.jsonl", "dev")):
        files[name].write_text("".join(json.dumps(r) + "\n" for r in rows if r["split"] == split), encoding="utf-8")
    files["template.yaml"].write_text('target: "Q: {question}\\nA:"\n', encoding="utf-8")
    return files


def one_round(out: Path, files: dict[str, Path]) -> dict[str, str]:
    """All four stages by the command line's own entry; sha256 of what each wrote."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    computing = ["--dtype", "float32", "--device", "cpu"]
    model = ["--model", str(files["model"]), *computing]
    prompt = ["--prompt-template", str(files["template.yaml"])]
    audit, mixed = ["--audit", str(out / "audit")], str(out / "mixed.jsonl")
    few = ["--shots", "2", "--exemplar-sets", "2", "--chunk-rows", "16"]
    brief = ["--epochs", "2", "--batch-size", "4", "--learning-rate", "3e-4", "--keep", "last"]
    data, dev = str(files["data.jsonl"]), str(files["dev.jsonl"])
    foreknow(["audit", data, *model, *few, "--out", str(out / "audit")])
    foreknow(["mix", str(out / "audit"), "--unknown", "0.5", "--out", mixed])
    foreknow(["tune", mixed, "--dev", dev, *audit, *model, *prompt, *brief, "--out", str(out / "tuned")])
    tuned = str(out / "tuned" / "convergence")
    foreknow(["evaluate", tuned, data, *audit, *prompt, *computing, "--out", str(out / "evaluation")])
    wrote = ("audit/rows.parquet", "mixed.jsonl", "tuned/outcomes.parquet", "evaluation/rows.parquet")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest()[:16] for name in wrote}


def foreknow(words: list[str]) -> None:
    """The command line, in this process. Exits as it does where it fails."""
    from foreknow.cli import main as command

    try:
        command(words)
    except SystemExit as end:
        if end.code:
            raise


def state() -> dict[str, int]:
    """What this process holds."""
    process = psutil.Process()
    return {"rss": process.memory_info().rss, "descriptors": process.num_fds(), "threads": process.num_threads()}


def verdict(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What memory, descriptors and threads were at first and in the end, and whether they are flat."""
    counted = samples[WARM_UP:]
    quarter, half = max(len(counted) // 4, 1), max(len(counted) // 2, 1)
    told: dict[str, Any] = {"rounds": len(samples), "minutes": round(samples[-1]["seconds"] / 60, 1)}
    begun, ended = (statistics.median(s["rss"] for s in part) for part in (counted[:quarter], counted[-quarter:]))
    told["rss"] = {"first_quarter": begun, "last_quarter": ended, "growth": round(ended / begun - 1, 5)}
    for name in ("descriptors", "threads"):
        most = (max(s[name] for s in part) for part in (counted[:half], counted[-quarter:]))
        told[name] = dict(zip(("most_in_first_half", "most_in_last_quarter"), most, strict=True))
    few = all(told[n]["most_in_last_quarter"] <= told[n]["most_in_first_half"] for n in ("descriptors", "threads"))
    return {**told, "flat": few and told["rss"]["growth"] <= GROWTH}


if __name__ == "__main__":
    main()
