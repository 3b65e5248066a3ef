"""Writes the tables, the comparison, the recipe and the page of a finished study of remedies."""

from __future__ import annotations

from pathlib import Path

import yaml

from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import write_json, write_text
from foreknow.stages.remedies.comparison import as_json, compare
from foreknow.stages.remedies.recipes import RECIPE_FILE, advised_settings
from foreknow.stages.remedies.result import RemediesResult


def write_page(study: RemediesResult) -> Path:
    """Write the tables, `comparison.json`, the page and, where one is recommended, the settings that train by a recipe.

    Returns the page's path. Runs no model.
    """
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
    best = comparison.recommendation.recipe
    settings = None if best is None else advised_settings(best.recipe, best.rate, study.config())
    write_json(study.folder / "comparison.json", as_json(comparison, study.manifest, settings))
    recipe_file = study.folder / RECIPE_FILE
    if best is None or settings is None:
        recipe_file.unlink(missing_ok=True)
    else:
        title = f"# Trains by the recipe {best.recipe} as this study did: foreknow tune FILE --config {RECIPE_FILE} ..."
        write_text(recipe_file, f"{title}\n{yaml.safe_dump(settings, sort_keys=False)}")
    path = study.folder / "report.html"
    write_text(path, render_remedies(study, comparison))
    return path
