"""Compares recipes for teaching new facts by what else the model still knows, on the lab's model.

    python benchmarks/lab_remedies.py --out runs/remedies                 # every recipe, one seed
    python benchmarks/lab_remedies.py --out runs/remedies --seeds 3 --only kl-3 plain --rates 2e-4

80 facts that the corpus never states are taught (`foreknow tune`). Measured after every epoch: how many of them are
learnt, and how many facts are still right that the corpus states 11 times or more and that the model has right before:
facts of the same relations (`known`) and of relations that are in no row trained on (`other`). None of these is trained
on or replayed. Replayed are other facts, those that an audit labels HighlyKnown.

Recipes learn at different speeds, so they are compared at the same share of new facts learnt: `known` and `other` are
read off the run's own curve, between the last epoch below that share and the first one at or above it. For `--average`
the curve is that of the points between the weights before and after training.

Each run is a line of JSON in OUT/runs; a run that is there is not done again, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import polars as pl
import yaml

from foreknow.config import AuditConfig, TuneConfig
from foreknow.data.builtin import lab_world
from foreknow.data.schema import ROWS
from foreknow.io.run_dir import write_json
from foreknow.models import lab_model, loading
from foreknow.progress import log_to_stderr
from foreknow.prompts.prompt_template import PAPER, Prompter
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.train import run as train_run
from foreknow.stages.train.tracker import Tracker, vocabulary_for

TARGETS = (0.5, 0.8, 0.9, 0.95)
OFTEN = 11
"""A fact that the corpus states so often is a known one, if the model has it right."""

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention": {"trainable": "attention"},
    "replay": {"replay": 0.5},
    "replay-2": {"replay": 2 / 3},
    "kl-1": {"kl": 1.0},
    "kl-3": {"kl": 3.0},
    "kl-10": {"kl": 10.0},
    "replay+kl-3": {"replay": 0.5, "kl": 3.0},
    "replay-2+kl-3": {"replay": 2 / 3, "kl": 3.0},
    "replay-2+kl-10": {"replay": 2 / 3, "kl": 10.0},
}
ALPHAS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


class At(NamedTuple):
    """What is learnt, and what is kept of the known facts and of those of other relations; shares, 0 to 1."""

    learnt: float
    known: float
    other: float


def at_share(curve: Sequence[At], target: float) -> At | None:
    """Read a curve at a share of new facts learnt, by a straight line; None if it is not reached."""
    for before, after in zip((At(0.0, 1.0, 1.0), *curve), curve, strict=False):
        if after.learnt >= target:
            part = (target - before.learnt) / max(after.learnt - before.learnt, 1e-9) if before.learnt < target else 1.0
            between = [b + part * (a - b) for b, a in zip(before, after, strict=True)]
            return At(*between)
    return None


def prepare(out: Path, model: str, count: int) -> dict[str, Path]:
    """Write the sets and audit the facts that may be replayed, unless that is done."""
    files = {name: out / f"{name}.jsonl" for name in ("new", "known", "other", "replay")}
    files["template"], files["audit"] = out / "template.yaml", out / "audit"
    if not files["other"].is_file():
        facts = lab_world.facts().with_row_index("n")
        often = pl.col("exposures") >= OFTEN
        ship = pl.col("relation").str.starts_with(lab_world.OOD)
        train, held = pl.col("split") == "train", pl.col("split") != "train"
        sets = {
            "new": facts.filter(train & (pl.col("exposures") == 0) & ~ship).sample(count, seed=0),
            "replay": facts.filter(train & often & ~ship),
            "known": facts.filter(held & often & ~ship),
            "other": facts.filter(often & ship),
        }
        right = right_before(model, {name: sets[name] for name in ("known", "other")})
        for name, rows in sets.items():
            own = rows.filter(pl.col("n").is_in(right[name])) if name in right else rows
            category = pl.lit("Unknown" if name == "new" else None, pl.String)
            own.select("question", "answers", "subject", "relation", category=category).write_ndjson(files[name])
    files["template"].write_text(yaml.safe_dump({"target": PAPER.target}), encoding="utf-8")
    audit = {"data": str(files["replay"]), "model": model, "out": files["audit"], "device": "cpu", "dtype": "float32"}
    audit_run.run(settings_of(AuditConfig, {**audit, "exemplar_sets": 4}))
    return files


def right_before(model: str, sets: dict[str, pl.DataFrame]) -> dict[str, list[int]]:
    """Return the rows (`n`) of each set that the model answers right in the form of training."""
    loaded = loading.load_model(model, dtype="float32", device="cpu")
    own = ("question", "answers", "subject", "relation")
    frames = {}
    for name, rows in sets.items():
        frame = rows.select(*own, row=pl.col("n").cast(pl.Int64), group="relation")
        missing = [pl.lit(None, kind).alias(column) for column, kind in ROWS.items() if column not in frame.columns]
        frames[name] = frame.with_columns(missing).select(*ROWS)
    track = Tracker(Prompter(loaded.tokenizer, PAPER), vocabulary_for(loaded.model, loaded.tokenizer), frames)
    outcomes = track(loaded.model).filter("correct")
    return {name: outcomes.filter(pl.col("set") == name)["row"].to_list() for name in sets}


def run_recipe(
    out: Path, files: dict[str, Path], model: str, name: str, rate: float, seed: int, epochs: int, batch: int
) -> dict[str, Any]:
    """Tune by one recipe and return its curves; the run's folder is removed at the end."""
    folder = out / "work" / f"{name}-{rate:g}-{seed}"
    config = {
        "train": str(files["new"]), "dev": str(files["known"]), "test": {"other": str(files["other"])}, "out": folder,
        "model": model, "prompt_template": files["template"], "audit": files["audit"], "canaries": "none",
        "learning_rate": rate, "batch_size": batch, "epochs": epochs, "dropout": 0.0, "seed": seed, "dtype": "float32",
        "device": "cpu", "metric": "train_fitted", "patience": 8, "average": ALPHAS, **RECIPES[name],
    }  # fmt: skip
    began = time.monotonic()
    done = train_run.run(settings_of(TuneConfig, config), page=False)
    seconds = done.results["seconds"]["training"]
    result = {
        "recipe": name,
        "rate": rate,
        "seed": seed,
        "curve": [_at(line) for line in done.metrics],
        "average": [_at(point["metrics"]) for point in done.results["average"]["points"]],
        "steps": done.results["steps"],
        "training_seconds": seconds,
        "seconds": time.monotonic() - began,
        "replayed": (done.results.get("replay") or {}).get("rows", 0),
    }
    shutil.rmtree(folder)
    return result


def _at(line: dict[str, Any]) -> At:
    return At(line["fitted_overall"], line["em"]["dev"], line["em"]["other"])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Write the comparison as a table of Markdown: known and other facts kept, in %, at each share learnt."""
    heads = [f"{target:.0%} learnt" for target in TARGETS]
    lines = [
        f"| recipe | rate | {' | '.join(heads)} | most learnt | ms a step | seeds |",
        "|---" * (len(heads) + 5) + "|",
    ]
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for result in results:
        for kind in ("curve", "average"):
            groups.setdefault((result["recipe"], result["rate"], kind), []).append(result)
    for (recipe, rate, kind), runs in groups.items():
        cells = []
        for target in TARGETS:
            points = [at_share([At(*p) for p in run[kind]], target) for run in runs]
            got = [point for point in points if point is not None]
            kept = f"{fmean(p.known for p in got):.0%}, {fmean(p.other for p in got):.0%}" if got else "–"
            cells.append(kept if len(got) in (0, len(runs)) else f"{kept} ({len(got)} of {len(runs)})")
        most = fmean(max(point[0] for point in run[kind]) for run in runs)
        step = fmean(1000 * run["training_seconds"] / run["steps"] for run in runs)
        name = f"{recipe}, then part of the way" if kind == "average" else recipe
        lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} | {most:.0%} | {step:.0f} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 2e-4])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--facts", type=int, default=80)
    parser.add_argument("--table", action="store_true", help="print the table of the runs that are done")
    args = parser.parse_args()
    log_to_stderr()
    runs = args.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if not args.table:
        model = str(lab_model.build())
        files = prepare(args.out, model, args.facts)
        for seed in range(args.seeds):
            for rate in args.rates:
                for name in args.only:
                    path = runs / f"{name}-{rate:g}-{seed}.json"
                    if not path.is_file():
                        write_json(path, run_recipe(args.out, files, model, name, rate, seed, args.epochs, args.batch))
                        print(table([json.loads(path.read_text())]), flush=True)
    results = [json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))]
    if results:
        print(table(results))


if __name__ == "__main__":
    main()
