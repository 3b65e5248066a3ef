"""A comparison of runs as tables and lines for the terminal. Pure."""

from __future__ import annotations

import polars as pl

from foreknow.format.numbers import exact_interval, p_value
from foreknow.report.comparison import figure_of, points
from foreknow.stages.compare.comparison import RunComparison, SetComparison


def differences_table(comparison: RunComparison, of: SetComparison) -> pl.DataFrame:
    """One line a run: its share with its interval, and the paired test against the first run."""
    lines = []
    for line in of.lines:
        paired = line.paired
        against = "reference" if paired is None else points(paired) if paired.rows else "no row in common"
        lines.append(
            {
                "run": f"{line.letter}: {line.run.name}",
                "rows": f"{line.overall.rows:,}",
                figure_of(comparison.stage): exact_interval(line.overall.interval) if line.overall.rows else "",
                f"against {of.lines[0].letter}": against,
                "rows in both": f"{paired.rows:,}" if paired else "",
                "won": f"{paired.won:,}" if paired and paired.rows else "",
                "lost": f"{paired.lost:,}" if paired and paired.rows else "",
                "p": p_value(paired.holm).removeprefix("p ").removeprefix("= ") if paired and paired.rows else "",
            }
        )
    return pl.DataFrame(lines)


def settings_lines(comparison: RunComparison) -> list[str]:
    """One line for each setting in which the runs differ."""
    return [
        f"{name.replace('_', ' ')}: "
        + ", ".join(f"{letter} {text}" for letter, text in zip(comparison.letters, texts, strict=True))
        for name, texts in comparison.settings.items()
    ]
