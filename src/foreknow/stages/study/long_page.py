"""Write the tables, the scorecard and the page of a finished study of long answers."""

from __future__ import annotations

from pathlib import Path

from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import write_json, write_text
from foreknow.stages.study.long_result import LongStudyResult


def write_long_page(study: LongStudyResult) -> Path:
    """Write `tables/`, `scorecard.json` and `report.html` again, and return the page's path. This runs no model."""
    from foreknow.report.long_study import render_long_study  # keeps altair out

    (study.folder / "tables").mkdir(exist_ok=True)
    for name, table in study.tables.items():
        write_text(study.folder / "tables" / f"{name}.csv", csv_of(table))
    write_json(study.folder / "scorecard.json", study.tables["claims"].to_dicts())
    path = study.folder / "report.html"
    write_text(path, render_long_study(study))
    return path
