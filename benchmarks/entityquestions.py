"""Category shares of 100 ENTITYQUESTIONS rows a relation, beside PaLM 2's in the paper's Table 3.

    python benchmarks/entityquestions.py entityquestions.zip --model smollm2-135m --out runs/eq [--chance]

Rows are drawn from the published train files (one answer each) by a hash of their text, exemplars from the dev
files, as in the paper (section 2). Prints a table as Markdown; with `--chance` a second one, of what guessing scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

import foreknow
from foreknow.data.dataset import read_dataset
from foreknow.data.schema import GOLD, majority_floor, sampling_hash

# HighlyKnown, MaybeKnown, WeaklyKnown, Unknown of PaLM 2-M in the train set (arXiv 2405.05904, Table 3)
PALM = {
    "P131": (553, 2529, 1493, 3071), "P136": (236, 3410, 1892, 1978), "P17": (4387, 2628, 511, 364),
    "P19": (369, 1884, 1498, 4170), "P26": (1609, 1503, 1087, 3257), "P264": (206, 1444, 1854, 3820),
    "P36": (4160, 1634, 449, 572), "P40": (692, 1467, 1271, 2680), "P495": (5459, 1101, 408, 706),
    "P69": (233, 1126, 1712, 3650), "P740": (1323, 1618, 1428, 2902), "P800": (301, 330, 222, 503),
}  # fmt: skip
CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the published folder or zip")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=100, help="rows of each relation")
    parser.add_argument("--chance", action="store_true", help="compare each row with a null")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = read_dataset(args.data).rows.filter(pl.col("answers").list.len() == 1)
    train = rows.filter(pl.col("split") == "train")
    keys = [sampling_hash(0, question, gold) for question, gold in train.select("question", GOLD).iter_rows()]
    keyed = train.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).sort("key", "row")
    drawn = keyed.filter(pl.int_range(pl.len()).over("relation") < args.rows).sort("relation", "row")
    for name, frame in (("sample", drawn), ("dev", rows.filter(pl.col("split") == "dev"))):
        columns = frame.select("question", "subject", "relation", answer=GOLD)
        columns.write_ndjson(args.out / f"{name}.jsonl")
    audit = foreknow.audit(
        str(args.out / "sample.jsonl"),
        model=args.model,
        out=args.out / args.model,
        exemplars=args.out / "dev.jsonl",
        chance=args.chance,
    )
    found = audit.rows
    floors = dict(majority_floor(train.with_columns(group="relation")).select("group", "floor").iter_rows())
    unchanged = found.filter(~pl.col("flags").list.contains("answer_in_subject"))
    print(f"{found.height} rows, {found['category'].drop_nulls().len()} labelled; {audit.summary['model']['name']}\n")
    print("| relation | Hkn | Mkn | Wkn | Unk | Known | floor | PaLM 2: Hkn | Mkn | Wkn | Unk |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for relation in sorted(found["relation"].unique(), key=lambda name: (name not in PALM, int(name[1:]))):
        own = found.filter(pl.col("relation") == relation)
        counts = dict(own["category"].value_counts().iter_rows())
        shares = [counts.get(category, 0) / own.height for category in CATEGORIES]
        palm = [f"{count / sum(PALM[relation]):.0%}" for count in PALM[relation]] if relation in PALM else ["-"] * 4
        cells = [*(f"{share:.0%}" for share in shares), f"{1 - shares[3]:.0%}", f"{floors[relation]:.0%}", *palm]
        print(f"| {relation} | {' | '.join(cells)} |")
    total = audit.summary["categories"]["overall"]
    whole = [sum(column) for column in zip(*PALM.values(), strict=True)]
    cells = [f"{total[category]:.1%}" for category in CATEGORIES]
    palm = [f"{count / sum(whole):.1%}" for count in whole]
    print(f"| all | {' | '.join(cells)} | {1 - total['Unknown']:.1%} | | {' | '.join(palm)} |")
    known = unchanged.filter(pl.col("category") != "Unknown").height
    print(
        f"\nwithout the {found.height - unchanged.height} rows whose question holds the answer: "
        f"{known / unchanged.height:.1%} Known"
    )
    print(json.dumps({"flags": audit.summary["flags"], "rows_per_second": audit.summary["rows_per_second"]}))
    if audit.chance is not None:
        print("\n".join(chance_lines(audit.chance["corrected"])))


def chance_lines(corrected: dict[str, Any]) -> list[str]:
    """A table of Markdown: shares of each relation as found, by chance, and without it with its interval."""

    def cells(share: dict[str, Any]) -> str:
        if share["corrected"] is None:
            return f"{share['observed']:.2f} | - | -"
        bounds = f" ({share['ci_low']:.2f}-{share['ci_high']:.2f})" if share["ci_low"] is not None else ""
        return f"{share['observed']:.2f} | {share['chance']:.2f} | {share['corrected']:.2f}{bounds}"

    hit, greedy = corrected["hit"], corrected["greedy"]
    head = "| relation | hit | by chance | without chance | greedy | by chance | without chance |"
    named = [("all", hit["overall"], greedy["overall"])]
    named += [(name, hit["by_relation"][name], greedy["by_relation"][name]) for name in hit["by_relation"]]
    return ["", head, "|---" * 7 + "|", *(f"| {name} | {cells(one)} | {cells(two)} |" for name, one, two in named)]


if __name__ == "__main__":
    main()
