"""Chooses the settings of a fair lab study by a rule that was written before any run.

    python benchmarks/lab_rule.py LAB --out runs/lab-rule

LAB is a folder that `foreknow lab build --out LAB` made. A model that forgets whatever it is trained on cannot show
what Unknown rows add. So training must be gentle enough on Known rows, and must still fit the Unknown ones. The rule:

1. A run trains D with 50 % Unknown rows, and D_Known, at one learning rate and weight decay, for `--epochs` epochs.
2. It is *gentle* if the test EM of D_Known at CONVERGENCE is at most 3 points below that at EARLY_STOP.
3. It *fits* if at CONVERGENCE at least 90 % of the Unknown rows of D are fitted.
4. Of the runs that are gentle and fit, the one with the largest rate is taken; of equal rates, the one without weight
   decay. If none is both, a larger model is built, and the rule is applied again.

One seed; the same rows in all runs, from the largest rate on, until one is both: smaller rates cannot be taken then. It
prints a table and writes `rule.json`; the same command goes on. The study is then run with other seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.settings import settings_of
from foreknow.stages.study.run import run
from foreknow.stages.study.settings import StudyConfig

MOST_LOST = 0.03
LEAST_FITTED = 0.90
RATES = (4e-4, 2e-4, 1e-4, 5e-5, 2.5e-5)
DECAYS = (0.0, 0.1)
SEED_FOLDER = "rate-{rate:g}-decay-{decay:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--test", type=int, default=400)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for rate in sorted(args.rates, reverse=True):
        for decay in sorted(args.decays):
            lines.append(outcome(args, rate, decay))
            print(json.dumps(lines[-1]), flush=True)
        if choose(lines) is not None:
            break
    chosen = choose(lines)
    (args.out / "rule.json").write_text(json.dumps({"runs": lines, "chosen": chosen}, indent=1) + "\n")
    print("chosen:", "none: build a larger model" if chosen is None else json.dumps(chosen))


def outcome(args: argparse.Namespace, rate: float, decay: float) -> dict[str, Any]:
    """Train D and D_Known at one rate and weight decay, and return what the rule asks of them."""
    prompt = Path(__file__).parent.parent / "src/foreknow/presets/prompts/lab.yaml"
    settings = {
        "data": str(args.lab / "facts.jsonl"),
        "model": str(args.lab),
        "out": args.out / SEED_FOLDER.format(rate=rate, decay=decay),
        "rows": {"dev": 200, "test": args.test, "ood": 60},
        "unknown": [0.5],
        "only": [],
        "natural": False,
        "idk": [],
        "seeds": 1,
        "size": args.size,
        "p_true": False,
        "audit": {"dtype": "float32", "device": "cpu"},
        "tune": {
            **{"epochs": args.epochs, "learning_rate": rate, "weight_decay": decay, "batch_size": 16, "dropout": 0},
            **{"prompt_template": str(prompt), "dtype": "float32", "device": "cpu"},
        },
    }
    results = run(settings_of(StudyConfig, settings)).results
    known = at(results, "known", "test", "all")
    mixed = at(results, "shares", "train", "Unknown")
    return {
        "rate": rate,
        "weight_decay": decay,
        "known_early_stop": known["early_stop"],
        "known_convergence": known["convergence"],
        "lost": round(known["early_stop"] - known["convergence"], 4),
        "unknown_fitted": mixed["convergence"],
    }


def at(results: pl.DataFrame, kind: str, name: str, category: str) -> dict[str, float]:
    """Return the exact match of one kind of set, on one set of rows and one category, at the two points."""
    own = results.filter((pl.col("kind") == kind) & (pl.col("set") == name) & (pl.col("category") == category))
    values = {}
    for point in ("early_stop", "convergence"):
        line = own.filter(pl.col(point))
        values[point] = round(float(line["correct"].sum() / line["rows"].sum()), 4)
    return values


def choose(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Apply steps 2 to 4 of the rule."""
    good = [line for line in lines if line["lost"] <= MOST_LOST and line["unknown_fitted"] >= LEAST_FITTED]
    return max(good, key=lambda line: (line["rate"], -line["weight_decay"]), default=None)


if __name__ == "__main__":
    main()
