"""What does each recipe against forgetting cost? All in turns, in one run, beside plain tuning.

    python benchmarks/recipes.py [--model smollm2-135m] [--rows 64] [--epochs 3] [--rounds 2] [--recipes plain kl]

Each training is `foreknow tune` in a process of its own, on the same packaged facts. Rounds repeat, so that what else
the machine does strikes all alike. Printed for each recipe, as medians over rounds: seconds to train an epoch (the
first, which builds kernels, left out; measuring and saving not counted), that time beside plain training's in the same
round, seconds to measure an epoch, seconds of the whole command, and the peak of its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.data import schema as facts
from foreknow.data.builtin import default_facts
from foreknow.data.schema import GOLD

RECIPES: dict[str, list[str]] = {
    "plain": [],
    "canaries": ["--canaries", "auto"],
    "replay": ["--replay", "0.5"],
    "kl": ["--kl", "10"],
    "replay+kl": ["--replay", "0.5", "--kl", "10"],
    "lora": ["--method", "lora"],
    "attention": ["--trainable", "attention"],
    "average": ["--average", "0.7,0.85,1"],
}
"""The flags of each recipe; all but `canaries` watch nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), args.rows)
        for number in range(args.rounds):
            for name in dict.fromkeys(["plain", *args.recipes]):
                lines.append({"round": number, "recipe": name, **trained(args, Path(folder), name, number)})
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(pl.DataFrame(lines))))


def write_rows(folder: Path, count: int) -> None:
    """Write rows to train on, rows to choose an epoch by, and rows that may be replayed."""
    every = default_facts.read_default().rows.filter(pl.col("split") == "train")
    drawn = facts.take(every, 2 * count + 16, 0).sample(fraction=1, shuffle=True, seed=0)
    rows = drawn.select("question", answer=GOLD, subject="subject", relation="relation")
    parts = {"train": rows.head(count), "dev": rows.slice(count, 16), "others": rows.slice(count + 16)}
    for name, part in parts.items():
        part.write_ndjson(folder / f"{name}.jsonl")


def trained(args: argparse.Namespace, folder: Path, name: str, number: int) -> dict[str, float]:
    """Tune with one recipe in a process of its own."""
    out = folder / f"{name}-{number}"
    flags = [] if "--canaries" in RECIPES[name] else ["--canaries", "none"]
    pool = ["--replay-from", str(folder / "others.jsonl")] if {"--replay", "--kl"} & set(RECIPES[name]) else []
    command = [
        *(sys.executable, "-m", "foreknow", "tune", str(folder / "train.jsonl"), "--dev", str(folder / "dev.jsonl")),
        *("--model", args.model, "--epochs", str(args.epochs), "--batch-size", "16", "--out", str(out)),
        *(*RECIPES[name], *flags, *pool),
    ]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: {told.splitlines()[-1]}")
    whole = time.perf_counter() - began
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    training = [line["seconds"] - line["measuring_seconds"] - line["saving_seconds"] for line in metrics]
    return {
        "training": statistics.median(training),
        "measuring": statistics.median(line["measuring_seconds"] for line in metrics),
        "whole": whole,
        "peak_mib": used.ru_maxrss / 1024,
    }


def table(lines: pl.DataFrame) -> list[str]:
    """Return the medians as Markdown."""
    plain = lines.filter(pl.col("recipe") == "plain").select("round", plain="training")
    beside = lines.join(plain, on="round").with_columns(beside=pl.col("training") / pl.col("plain"))
    medians = beside.group_by("recipe", maintain_order=True).agg(pl.col(pl.Float64).median())
    head = [
        "| recipe | an epoch, s | beside plain | measuring it, s | whole command, s | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    return head + [
        f"| `{line['recipe']}` | {line['training']:.2f} | {line['beside']:.2f} | {line['measuring']:.2f} "
        f"| {line['whole']:.0f} | {line['peak_mib']:,.0f} |"
        for line in medians.iter_rows(named=True)
    ]


if __name__ == "__main__":
    main()
