"""The rows of docs/study-smollm2.md: ENTITYQUESTIONS and packaged facts of relations that SmolLM2 partly knows.

    foreknow data entityquestions --out eq
    python benchmarks/study_rows.py eq --out rows.jsonl
    foreknow study docs/studies/smollm2/study.yaml --out runs/smollm2      # beside rows.jsonl

Rows of a relation are drawn by a hash of their text. A question that stands in several sets stays in the first of test,
test_ood, dev, train.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from foreknow.data.builtin import default_facts
from foreknow.data.schema import GOLD, sampling_hash

WANTED = {
    "train": {"P17": 1200, "P36": 800, "city_country": 420, "us_city_state": 313, "airport_country": 312},
    "dev": {"P17": 80, "P36": 80, "city_country": 60, "us_city_state": 50, "airport_country": 50},
    "test": {"P17": 900, "P36": 400, "city_country": 90, "us_city_state": 69, "airport_country": 69},
    "test_ood": {"P176": 400, "P407": 220, "country_capital": 209},
}
"""Rows by split and relation; relations named P... are of ENTITYQUESTIONS, the others packaged facts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that foreknow data entityquestions wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    columns = ("question", "answer", "subject", "relation")
    facts = default_facts.read_default().rows.with_columns(answer=GOLD)
    parts = []
    for split, wanted in WANTED.items():
        theirs = pl.read_ndjson(args.data / f"{split}.jsonl").select(*columns)
        ours = facts if split == "test_ood" else facts.filter(pl.col("split") == split)
        for relation, count in wanted.items():
            source = theirs if relation.startswith("P") else ours
            rows = source.filter(pl.col("relation") == relation).select(*columns)
            keys = [sampling_hash(0, *texts) for texts in rows.select("question", "answer").iter_rows()]
            drawn = rows.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).sort("key").head(count).drop("key")
            parts.append(drawn.with_columns(split=pl.lit(split)))
    order = {"test": 0, "test_ood": 1, "dev": 2, "train": 3}
    rank = pl.col("split").replace_strict(order, return_dtype=pl.Int64)
    every = pl.concat(parts).with_row_index("place").with_columns(rank=rank).sort("rank", "place")
    one = every.unique("question", keep="first", maintain_order=True).sort("place")
    one.select(*columns, "split").write_ndjson(args.out)
    print(one.group_by("split").len().sort("split"))


if __name__ == "__main__":
    main()
