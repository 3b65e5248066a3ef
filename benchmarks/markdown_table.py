"""Prints a frame as a Markdown table, for the scripts beside it."""

from __future__ import annotations

import polars as pl


def show(title: str, frame: pl.DataFrame, numbers: str = ".3g") -> None:
    """Print a frame as a Markdown table under its title. `numbers`: the format of floats."""
    print(f"{title}\n\n| {' | '.join(frame.columns)} |\n|{'---|' * frame.width}")
    for line in frame.iter_rows():
        print(f"| {' | '.join(format(v, numbers) if isinstance(v, float) else str(v) for v in line)} |")
    print()
