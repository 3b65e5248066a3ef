"""A study that could be real, drawn from a truth that is known: for tests of tables and page. No result of anything."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.io.run_dir import FORMAT
from foreknow.stages.study.grid import Run, Variant
from foreknow.stages.study.measurements import OUTCOMES, RESULTS

BASE = dict(zip(CATEGORIES, (0.94, 0.6, 0.11, 0.012), strict=True))
"""How often a row of a category is right after training that does no harm."""
SETS = {"dev": 200, "test": 400, "ood": 240}
MIX = (0.3, 0.25, 0.15, 0.3)
EARLY_EPOCH, GRID = 3, (0.0, 0.25, 0.5, 0.75, 1.0)


def grid(shares: tuple[float, ...] = GRID) -> list[Variant]:
    """All kinds of variants."""
    found = [Variant(f"unknown-{100 * s:g}", "shares", s) for s in shares]
    found += [
        Variant(f"known-of-{100 * s:g}", "known", s, known_of=f"unknown-{100 * s:g}") for s in shares if 0 < s < 1
    ]
    found += [Variant(f"only-{category}", "single", trained=category) for category in CATEGORIES]
    return [*found, Variant("natural", "natural"), Variant("idk-50", "idk", 0.5)]


def simulated(
    seeds: int = 2,
    epochs: int = 8,
    size: int = 200,
    harm: float = 0.25,
    variants: list[Variant] | None = None,
    sets: dict[str, int] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """RESULTS and OUTCOMES. `harm`: the factor of EM that is lost where all of D is Unknown and fitted."""
    generator = np.random.default_rng(5)
    rows = {name: categories(count, generator) for name, count in (sets or SETS).items()}
    # a row's own luck, the same for every run, so that runs are paired
    luck = {name: generator.random(len(of)) for name, of in rows.items()}
    lines: list[dict[str, Any]] = []
    parts: list[pl.DataFrame] = []
    for seed in range(seeds):
        for variant in grid() if variants is None else variants:
            of = _run(Run(variant, seed), epochs, size, harm, rows, luck, generator)
            lines += of[0]
            parts += of[1]
    return pl.DataFrame(lines, schema=RESULTS), pl.concat([pl.DataFrame(schema=OUTCOMES), *parts])


def categories(count: int, generator: np.random.Generator) -> list[str]:
    """Categories of so many rows, in the audit's shares."""
    return [str(c) for c in generator.permutation(np.repeat(CATEGORIES, _split(count)))]


def _split(count: int) -> list[int]:
    ends = [round(count * sum(MIX[:k])) for k in range(5)]
    return [b - a for a, b in pairwise(ends)]


def _run(
    run: Run, epochs: int, size: int, harm: float, rows: Any, luck: Any, generator: np.random.Generator
) -> tuple[list[dict[str, Any]], list[pl.DataFrame]]:
    variant = run.variant
    counts = _trained(variant, size)
    relabelled = variant.kind == "idk"
    lines, parts = [], []
    noise = generator.normal(0, 0.004)
    for epoch in range(1, epochs + 1):
        fit = {c: _fit(c, epoch, relabelled) for c in CATEGORIES}
        known = sum(counts[c] * fit[c] for c in CATEGORIES[:3]) / size
        unknown = 0.0 if relabelled else counts[UNKNOWN] * fit[UNKNOWN] / size
        place = {
            "variant": variant.name, "kind": variant.kind, "share": variant.share, "trained": variant.trained,
            "seed": run.seed, "size": size, "epoch": epoch, "step": epoch * 10, "early_stop": epoch == EARLY_EPOCH,
            "convergence": epoch == epochs,
        }  # fmt: skip
        fitted = {c: (round(counts[c] * fit[c]), counts[c]) for c in CATEGORIES if counts[c]}
        lines += _lines(place, "train", fitted)
        for name, of in rows.items():
            weight = 0.4 if name == "ood" else 1.0
            better = {c: _right(c, known, unknown, harm * weight, variant) for c in CATEGORIES}
            if epoch == 1:  # the form of the answer is learnt first
                better = {c: 0.9 * p for c, p in better.items()}
            answered = np.array([_answers(c, epoch) if relabelled else 1.0 for c in of])
            chance = np.clip(np.array([better[c] for c in of]) + noise, 0.0, 1.0)
            flip = generator.random(len(of)) < 0.04
            drawn = np.where(flip, generator.random(len(of)), luck[name])
            refused = generator.random(len(of)) > answered
            right = (drawn < chance) & ~refused
            lines += _lines(place, name, _counted(of, right))
            points = [p for p, at in (("early_stop", EARLY_EPOCH), ("convergence", epochs)) if at == epoch]
            parts += [_outcomes(run, point, name, of, right) for point in points]
            if name == "test" and relabelled:
                lines += _lines(place, "test_refused", _counted(of, refused))
                parts += [_outcomes(run, point, "test_refused", of, refused) for point in points]
    return lines, parts


def _trained(variant: Variant, size: int) -> dict[str, int]:
    """Rows of D by category."""
    if variant.kind == "single":
        return {c: size if c == variant.trained else 0 for c in CATEGORIES}
    if variant.kind == "natural":
        return dict(zip(CATEGORIES, _split(size), strict=True))
    share = variant.share or 0.0
    known = round((1 - share) * size)
    of = dict(zip(CATEGORIES, (known // 2, known // 3, known - known // 2 - known // 3), strict=False))
    return {**of, UNKNOWN: 0 if variant.kind == "known" else size - known}


def _fit(category: str, epoch: int, relabelled: bool) -> float:
    """Known rows early, Unknown ones late; a refusal is learnt at once."""
    if category == UNKNOWN and not relabelled:
        return 1 / (1 + math.exp(-1.6 * (epoch - 4.6)))
    return 1 - 0.45 * math.exp(-0.75 * epoch)


def _right(category: str, known: float, unknown: float, harm: float, variant: Variant) -> float:
    narrow = variant.trained == "HighlyKnown" and category != "HighlyKnown"
    gain = 0.2 * BASE[category] * (1 - BASE[category]) * known * (0.4 if narrow else 1.0)
    return float((BASE[category] + gain) * (1 - harm * unknown))


def _answers(category: str, epoch: int) -> float:
    return {"HighlyKnown": 0.97, "MaybeKnown": 0.8, "WeaklyKnown": 0.45, UNKNOWN: 0.2}[category] - 0.004 * epoch


def _counted(of: list[str], right: Any) -> dict[str, tuple[int, int]]:
    return {
        c: (int(sum(bool(r) for r, own in zip(right, of, strict=True) if own == c)), of.count(c))
        for c in CATEGORIES
        if c in of
    }


def _lines(place: dict[str, Any], name: str, counts: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    total = (sum(r for r, _ in counts.values()), sum(n for _, n in counts.values()))
    every = {"all": total, **counts}
    return [{**place, "set": name, "category": c, "rows": n, "correct": r} for c, (r, n) in every.items()]


def _outcomes(run: Run, point: str, name: str, of: list[str], right: Any) -> pl.DataFrame:
    count = len(of)
    return pl.DataFrame(
        {
            "variant": [run.variant.name] * count,
            "seed": [run.seed] * count,
            "point": [point] * count,
            "set": [name] * count,
            "row": range(count),
            "category": of,
            "group": [("capital", "river", "founder")[k % 3] for k in range(count)],
            "correct": [bool(r) for r in right],
        },
        schema=OUTCOMES,
    )


def audited(
    outcomes: pl.DataFrame, sets: int = 5, samples: int = 16
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Rows and probes of an audit, as far as a study's tables and page read them, and P(True): a weaker score.

    Test rows are those of the outcomes; a relation that the study left out lies between them.
    """
    generator = np.random.default_rng(3)
    tested = outcomes.filter(pl.col("set") == "test").unique("row").sort("row")
    lines = [(c, g, "test") for c, g in tested.select("category", "group").iter_rows()]
    for k, category in enumerate(categories(120, generator)):
        lines.insert(3 * k, (category, ("spouse", "river")[k % 2], ("test", "train")[k % 2]))
    of = [c for c, _, _ in lines]
    shape = {"HighlyKnown": (40.0, 1.5), "MaybeKnown": (3.0, 2.5), "WeaklyKnown": (2.0, 60.0), UNKNOWN: (0.01, 900.0)}
    p = np.array([generator.beta(*shape[c], size=sets) for c in of])
    greedy = p > 0.5
    greedy[[c in CATEGORIES[2:] for c in of]] = False
    greedy[[c == "HighlyKnown" for c in of]] = True
    greedy[[c == "MaybeKnown" for c in of], 0], greedy[[c == "MaybeKnown" for c in of], 1] = True, False
    rows = pl.DataFrame(
        {
            "row": range(len(lines)),
            "group": [g for _, g, _ in lines],
            "split": [s for _, _, s in lines],
            "category": of,
            "p_greedy": greedy.mean(axis=1),
        }
    )
    probes = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(lines)), sets),
            "exemplar_set": np.tile(np.arange(sets), len(lines)),
            **{name: greedy.ravel() for name in ("greedy_correct", "greedy_lenient")},
            **{name: p.ravel() for name in ("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper")},
        }
    )
    known = np.array([c != UNKNOWN for c in of])
    p_true = 1 / (1 + np.exp(-(1.2 * known - 0.4 + generator.normal(0, 1, len(lines)))))
    return rows, probes, pl.DataFrame({"row": range(len(lines)), "p_true": p_true})


def write_study(
    folder: Path, results: pl.DataFrame, outcomes: pl.DataFrame, model: str = "tiny", **settings: Any
) -> Path:
    """A finished study's folder, with everything that its tables and its page read."""
    (folder / "audit").mkdir(parents=True)
    results.write_parquet(folder / "results.parquet")
    outcomes.write_parquet(folder / "outcomes.parquet")
    rows, probes, p_true = audited(outcomes)
    p_true.write_parquet(folder / "ptrue.parquet")
    rows.with_columns(earlier_turns=pl.lit(None, pl.String)).write_parquet(folder / "audit" / "rows.parquet")
    probes.write_parquet(folder / "audit" / "probes.parquet")
    protocol = {"name": "exact", "shots": 4, "exemplar_sets": 5, "samples": 16, "temperature": 0.5, "top_k": 40}
    summary = {
        "rows": len(rows), "protocol": protocol, "seconds": 61.0,
        "model": {"name": model, "fingerprint": "sha256:9f2c", "folder": "/somewhere/private"},
    }  # fmt: skip
    (folder / "audit" / "summary.json").write_text(json.dumps(summary))
    (folder / "audit" / "manifest.json").write_text(json.dumps({"format": FORMAT, "stage": "audit"}))
    pl.DataFrame(
        {
            "relation": ["capital", "founder", "river", "spouse"],
            "rows": [75, 75, 75, 75],
            "greedy": [0.61, 0.35, 0.28, 0.09],
            "floor": [0.04, 0.03, 0.06, 0.05],
            "above": [0.57, 0.32, 0.22, 0.04],
            "used": [True, True, True, False],
        }
    ).write_csv(folder / "relations.csv")
    config = {
        "data": "/somewhere/private/facts.jsonl", "model": model, "ood": ["spouse"], "fixed_epochs": [5],
        "margin": 0.02, "above_floor": 0.1, "tune": {"epochs": 8, "learning_rate": 5e-5, "batch_size": 16},
        **settings,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = results.select("variant", "seed").unique(maintain_order=True)
    manifest = {
        "format": FORMAT, "foreknow": "0.1.0", "stage": "study", "grid": [f"{v}-seed{k}" for v, k in names.iter_rows()],
        "model": summary["model"], "seconds": {"this_call": 900.0, "runs": 780.0}, "identity": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
