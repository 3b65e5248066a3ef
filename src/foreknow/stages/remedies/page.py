"""Writes the tables, the comparison and the page of a finished study of remedies."""

from __future__ import annotations

from pathlib import Path

from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import write_json, write_text
from foreknow.stages.remedies.comparison import as_json, compare
from foreknow.stages.remedies.result import RemediesResult


def write_page(study: RemediesResult) -> Path:
    """Write the tables, `comparison.json` and the page again, and return the page's path. Runs no model."""
    from foreknow.report.remedies import render_remedies  # keeps altair out

    comparison = compare(study.points, study.outcomes, study.costs, study.known)
    (study.folder / "tables").mkdir(exist_ok=True)
    tables = {
        "comparison": comparison.table,
        "curves": comparison.curves,
        "firmness": comparison.firmness,
        "costs": study.costs,
    }
    for name, table in tables.items():
        write_text(study.folder / "tables" / f"{name}.csv", csv_of(table))
    write_json(study.folder / "comparison.json", as_json(comparison, study.manifest))
    path = study.folder / "report.html"
    write_text(path, render_remedies(study, comparison))
    return path
