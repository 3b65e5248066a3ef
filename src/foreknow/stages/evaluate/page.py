"""Writes the HTML page of a finished evaluation."""

from __future__ import annotations

from pathlib import Path

from foreknow.io.run_dir import write_text
from foreknow.stages.evaluate.result import EvaluateResult


def write_page(evaluation: EvaluateResult, *, show_rows: bool = True) -> Path:
    """Write `report.html` of an evaluation and return its path. `show_rows=False` leaves out every text of a row."""
    from foreknow.report.evaluation import render_evaluation  # keeps altair out

    path = evaluation.folder / "report.html"
    write_text(path, render_evaluation(evaluation, show_rows=show_rows))
    return path
