"""Write the tables, the scorecard and the page of a finished study."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import write_json, write_text
from foreknow.stages.study import linear_model
from foreknow.stages.study.result import StudyResult
from foreknow.stages.study.tables import all_tables


def write_page(study: StudyResult) -> Path:
    """Write the paper's tables, the scorecard and the page of a finished study again, and return the page's path.

    This runs no model: everything comes from `results.parquet`, `outcomes.parquet` and the audit.
    """
    from foreknow.report.study import render_study  # keeps altair out

    tables = all_tables(study)
    (study.folder / "tables").mkdir(exist_ok=True)
    for name, table in tables.items():
        write_text(study.folder / "tables" / f"{name}.csv", csv_of(table))
    write_json(study.folder / "scorecard.json", tables["claims"].to_dicts())
    models_of = {
        name: linear_model.as_json(
            linear_model.fit(linear_model.points(study.results, name)),
            [("from epoch 2", linear_model.fit(linear_model.points(study.results, name, 2)))],
        )
        for name in ("test", "ood")
        if study.results.filter(pl.col("set") == name).height
    }
    write_json(study.folder / "linear_model.json", models_of)
    path = study.folder / "report.html"
    write_text(path, render_study(study, tables))
    return path
