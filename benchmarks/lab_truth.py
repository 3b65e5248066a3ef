"""SliCK's labels against how often the lab's model was really told each fact, with and without chance.

    python benchmarks/lab_truth.py --out runs/lab-truth
    python benchmarks/lab_truth.py --lab FOLDER --out runs/other-lab-truth      a lab that `foreknow lab build` made

Audits every fact of the lab (by default `--model lab`; the paper's protocol), computes what guessing would score, and
prints as Markdown: categories by exposures, never-seen facts by the number of answers, and how well each score tells
seen facts from never-seen ones (area under the ROC curve: 0.5 is chance, 1 is perfect).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl

import foreknow
from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.data.builtin.lab_world import FACTS
from foreknow.models import lab_recipe as lab
from foreknow.stages.study import lab_truth
from markdown_table import show

FEW = 40
"""Relations with at most so many answers are where guessing pays."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lab", type=Path, help="the folder of a built lab")
    args = parser.parse_args()
    data, model = ("lab", "lab") if args.lab is None else (str(args.lab / "facts.jsonl"), str(args.lab))
    audit = foreknow.audit(data, model=model, out=str(args.out), dtype="float32", chance=True)
    chance = pl.read_parquet(args.out / "chance.parquet")
    facts = lab.facts() if args.lab is None else pl.read_ndjson(data, schema=FACTS)
    rows = lab_truth.with_exposures(audit.rows, facts).join(chance, on="row", how="left")
    found = lab_truth.truth(rows)
    show("Categories by exposures", found.confusion, ".3f")
    show("Never-seen facts by number of answers", found.pools, ".3f")
    print(f"never-seen facts called Known: {found.never_seen_known}")
    print(f"facts seen over {lab_truth.OFTEN} times called Unknown: {found.often_seen_unknown}")
    print(f"p_sampled against recall: {found.calibration_error:.3f} off on average\n")
    show("Telling seen from never-seen facts (AUC)", pl.DataFrame(separations(rows)), ".3f")
    known = rows.filter(pl.col("category") != UNKNOWN)
    show("Known rows called guessable, by category and whether they were seen", guessable(known), ".3f")
    told = json.loads((args.out / "chance.json").read_text(encoding="utf-8"))
    cost = told["cost"]
    print(f"chance took {cost['seconds']:.1f} s beside {cost['audit_seconds']:.1f} s of the audit")
    (args.out / "truth.json").write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")


def separations(rows: pl.DataFrame) -> list[dict[str, object]]:
    """AUC of every score over all rows, and over relations with few answers; facts told once or twice apart."""
    label = {name: float(len(CATEGORIES) - n) for n, name in enumerate(CATEGORIES)}
    scored = lab_truth.labelled(rows).with_columns(
        label=pl.col("category").replace_strict(label, return_dtype=pl.Float64), less_rank=1 - pl.col("rank")
    )
    scored = scored.drop_nulls(["lift", "rank"])
    lines: list[dict[str, object]] = []
    for score in ("label", "p_greedy", "p_sampled", "p_hit", "lift", "less_rank"):
        line: dict[str, object] = {"score": score}
        for name, part in (
            ("all", scored),
            (f"up to {FEW} answers", scored.filter(pl.col("pool") <= FEW)),
            (f"over {FEW} answers", scored.filter(pl.col("pool") > FEW)),
            (
                f"up to {FEW} answers, seen at most 5 times",
                scored.filter(pl.col("pool") <= FEW, pl.col("exposures") <= 5),
            ),
        ):
            line[name] = f"{lab_truth.auc(part[score].to_numpy(), (part['exposures'] > 0).to_numpy()):.3f}"
        lines.append(line)
    return lines


def guessable(known: pl.DataFrame) -> pl.DataFrame:
    """Rows that a tenth of the references match, by category: among never-seen facts and among seen ones."""
    seen = pl.col("exposures") > 0
    return (
        known.group_by("category")
        .agg(
            never_seen=(~seen).sum(),
            of_these_guessable=(~seen & pl.col("guessable")).sum(),
            seen=seen.sum(),
            of_seen_guessable=(seen & pl.col("guessable")).sum(),
        )
        .sort("category")
    )


if __name__ == "__main__":
    main()
