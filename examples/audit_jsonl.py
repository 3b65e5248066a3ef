"""Audit a JSONL file from Python and read the labelled rows with Polars.

    python examples/audit_jsonl.py train.jsonl --model smollm2-135m --out runs/train

Run the same command again: the finished audit is opened, and nothing is computed twice.
"""

from __future__ import annotations

import argparse

import polars as pl

import foreknow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the rows: JSONL with questions and answers, or any file `check` reads")
    parser.add_argument("--model", default="smollm2-135m", help="a packaged model, a folder, a .gguf file or a hub id")
    parser.add_argument("--out", default="runs/train", help="the run folder to write")
    options = parser.parse_args()

    audit = foreknow.audit(options.data, model=options.model, out=options.out)

    # `rows` is a Polars frame with one line for each row of the file
    by_relation = (
        audit.rows.filter(pl.col("category").is_not_null())
        .group_by("relation")
        .agg(rows=pl.len(), unknown=(pl.col("category") == "Unknown").mean())
        .sort("unknown", descending=True)
    )
    print(by_relation)

    unknown = audit.rows.filter(pl.col("category") == "Unknown")
    print(unknown.select("question", "answer", "model_answer").head())
    print(f"{unknown.height} of {audit.rows.height} rows are Unknown; the page: {audit.folder / 'report.html'}")


if __name__ == "__main__":
    main()
