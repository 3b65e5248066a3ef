"""Do two audits of the same rows agree? Compares their probes.parquet, for instance before and after a change of code.

    python benchmarks/probe_agreement.py AUDIT OTHER [--allowed 1e-3]

Each is an audit's folder, or a probes.parquet. Prints how many probes are equal byte for byte, how many greedy
decisions and categories differ, and the largest change of a probability. Exit code 1 where a category differs, or a
probability by more than `--allowed`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.inference.slick import label

PROBABILITIES = ("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--allowed", type=float, default=1e-3)
    args = parser.parse_args()
    agreement = compare(read(args.audit), read(args.other), args.samples)
    for key, value in agreement.items():
        print(f"{key:<44}{value}")
    if agreement["categories that differ"] or agreement["largest change of a probability"] > args.allowed:
        sys.exit(1)


def read(path: Path) -> pl.DataFrame:
    """Read the probes of an audit's folder, or of the file itself."""
    return pl.read_parquet(path / "probes.parquet" if path.is_dir() else path).sort("row", "exemplar_set")


def compare(probes: pl.DataFrame, other: pl.DataFrame, samples: int) -> dict[str, Any]:
    """Count what differs between two frames of `slick.PROBES`. Raises SystemExit where their rows or sets differ."""
    keys = ["row", "exemplar_set"]
    if not probes.select(keys).equals(other.select(keys)):
        raise SystemExit("the two audits probed other rows, or other exemplar sets")
    equal = pl.Series([one == two for one, two in zip(probes.iter_rows(), other.iter_rows(), strict=True)])
    changes = [(probes[p] - other[p]).abs().max() for p in PROBABILITIES]
    labels, other_labels = label(probes, samples=samples), label(other, samples=samples)
    differing = (labels["category"] != other_labels["category"]).fill_null(True)
    both_null = labels["category"].is_null() & other_labels["category"].is_null()
    return {
        "probes": probes.height,
        "equal byte for byte": int(equal.sum()),
        "greedy decisions that differ": int((probes["greedy_correct"] != other["greedy_correct"]).sum()),
        "paths searched that differ": int((probes["expansions"] != other["expansions"]).sum()),
        "largest change of a probability": max(float(c) for c in changes if isinstance(c, float)),
        "rows": labels.height,
        "categories that differ": int((differing & ~both_null).sum()),
    }


if __name__ == "__main__":
    main()
