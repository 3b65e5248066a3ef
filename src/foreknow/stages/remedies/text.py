"""Writes the comparison of a study of remedies for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.stages.remedies.matching import TARGETS
from foreknow.stages.remedies.recipes import RECIPE_FILE


def comparison_table(comparison: Mapping[str, Any]) -> pl.DataFrame:
    """Return known facts kept by recipe and share learnt, in %, from `comparison.json`."""
    kept = {(line["recipe"], line["learnt"]): line for line in comparison["table"]}
    lines = []
    for name, end in comparison["ends"].items():
        cells = {f"{share:.0%}": _cell(kept.get((name, share))) for share in TARGETS}
        ended = f"{end['learnt']:.0%} learnt, {end['known_kept']:.0%} kept"
        lines.append({"recipe": name, **cells, "at its end": ended, "seeds": str(end["seeds"])})
    return pl.DataFrame(lines)


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "–"
    if line["kept_low"] is None:
        return f"{100 * line['kept']:.0f}"
    return f"{100 * line['kept']:.0f} ({100 * line['kept_low']:.0f} to {100 * line['kept_high']:.0f})"


def advice_text(comparison: Mapping[str, Any], folder: Path, model: str) -> list[str]:
    """Return what the study recommends, in a line or two, and the command for it.

    `folder`: the study's. `model`: as the user named it.
    """
    if comparison["recipe"] is None:
        return [comparison["reason"]]
    lines = [f"take {comparison['recipe']}"]
    if comparison["alike"]:
        lines.append(f"these runs cannot tell it from {', '.join(comparison['alike'])}")
    files = ("--model", model, "--audit", str(folder / "audit"), "--config", str(folder / RECIPE_FILE))
    lines.append(f"next: foreknow tune NEW {shlex.join(files)} --out RUN (NEW: the rows to teach, RUN: a new folder)")
    return lines
