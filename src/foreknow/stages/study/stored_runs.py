"""What a study keeps of runs whose folders no longer exist, and these runs under another audit's categories.

A study resumes from `results.parquet`, `outcomes.parquet` and its manifest alone. Whoever resumes it may have to audit
the rows again, on another processor, where rounding moves a few rows across the border between two categories. Runs can
be compared row by row only if all have the same categories, so the stored runs get those of the audit at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.errors import InputError
from foreknow.stages.study.local_executor import is_done
from foreknow.stages.study.measurements import OUTCOMES, RESULTS


class StoredRun(NamedTuple):
    """The measurements of a run whose own folder no longer exists."""

    results: pl.DataFrame
    outcomes: pl.DataFrame


class Recategorized(NamedTuple):
    """Stored runs with the categories of the audit at hand, the number of rows moved by set, and a line that says it.

    `text` is empty, and `moved` too, where no row has another category.
    """

    runs: dict[str, StoredRun]
    moved: dict[str, int]
    text: str


def measured(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the results and outcomes so far, empty where there are none. Raises InputError if a file is no study's."""
    files = [folder / "results.parquet", folder / "outcomes.parquet"]
    if not all(file.is_file() for file in files):
        return pl.DataFrame(schema=RESULTS), pl.DataFrame(schema=OUTCOMES)
    try:
        results, outcomes = (pl.read_parquet(file) for file in files)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{folder}: results.parquet or outcomes.parquet is damaged ({error}); delete both") from None
    if results.schema != RESULTS or outcomes.schema != OUTCOMES:
        raise InputError(f"{folder}: results.parquet or outcomes.parquet is not a study's; delete both")
    return results, outcomes


def stored_runs(folder: Path) -> dict[str, StoredRun]:
    """Return by name the runs that are in the study's `results.parquet` and `outcomes.parquet` but have no folder."""
    results, outcomes = measured(folder)
    found = {}
    for variant, seed in results.select("variant", "seed").unique(maintain_order=True).iter_rows():
        name, mine = f"{variant}-seed{seed}", (pl.col("variant") == variant) & (pl.col("seed") == seed)
        if not is_done(folder / "runs" / name):
            found[name] = StoredRun(results.filter(mine), outcomes.filter(mine))
    return found


def with_current_categories(runs: Mapping[str, StoredRun], watched: Mapping[str, pl.DataFrame]) -> Recategorized:
    """Give the outcomes of stored runs, and their results at the two points, the categories of the `watched` rows.

    `watched`: by set, the rows that runs are tested on now, in the order of their numbers, with the columns relation
    and category. Results of other epochs keep the categories they were counted by, as no outcome of theirs is stored.

    Raises InputError where a stored run was tested on other rows: another number of them, or other relations.
    """
    labels = pl.concat(
        [
            rows.select(
                set=pl.lit(name),
                row=pl.int_range(pl.len(), dtype=pl.Int64),
                now="category",
                relation=pl.col("relation").cast(pl.String),
            )
            for name, rows in watched.items()
        ]
    )
    found, moved = {}, dict.fromkeys(watched, 0)
    for name, run in runs.items():
        _check_rows(name, run.outcomes, labels)
        joined = run.outcomes.join(labels, on=["set", "row"], how="left", maintain_order="left")
        changed = joined.filter(pl.col("now").ne_missing(pl.col("category")))
        if changed.is_empty():
            found[name] = run
            continue
        for of, rows in changed.group_by("set").agg(pl.col("row").n_unique()).iter_rows():
            moved[of] = max(moved[of], rows)
        outcomes = joined.with_columns(category="now").select(*OUTCOMES)
        found[name] = StoredRun(_count_again(run.results, outcomes), outcomes)
    moved = {of: rows for of, rows in moved.items() if rows}
    counts = ", ".join(f"{rows:,} of {watched[of].height:,} {of} rows" for of, rows in moved.items())
    text = f"this audit gives {counts} another category than the stored runs had; all runs now have this audit's"
    return Recategorized(found, moved, text if moved else "")


def _check_rows(name: str, outcomes: pl.DataFrame, labels: pl.DataFrame) -> None:
    """Raise InputError unless a run's outcomes stand for the rows of `labels`, as far as counts and relations tell."""
    for (of, point), mine in outcomes.group_by("set", "point", maintain_order=True):
        now = labels.filter(pl.col("set") == of)
        same = mine.join(now, on=["set", "row"]).filter(pl.col("group").eq_missing(pl.col("relation"))).height
        if not same == mine.height == now.height:
            raise InputError(
                f"{name}: its {mine.height:,} {of} rows at {point} are not the {now.height:,} of this audit ({same:,} "
                "have the same number and relation). Runs are compared row by row: choose another --out"
            )


def _count_again(results: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """Count the rows of each category again where `results` stands at one of the two points, from their outcomes."""
    parts = []
    for of_epoch in results.partition_by("epoch", maintain_order=True):
        point = next((name for name in ("early_stop", "convergence") if of_epoch[name].any()), "")
        counts = (
            outcomes.filter(pl.col("point") == point)
            .group_by("set", "category")
            .agg(rows=pl.len().cast(pl.Int64), correct=pl.col("correct").sum().cast(pl.Int64))
        )
        for of_set in of_epoch.partition_by("set", maintain_order=True):
            everything = of_set.filter(pl.col("category") == "all")
            again = everything.drop("category", "rows", "correct").join(counts, on="set")
            if again.is_empty():  # no outcome of the set at this epoch is stored
                parts.append(of_set)
                continue
            parts += [everything, again.select(*RESULTS).sort(pl.col("category").cast(pl.Enum(CATEGORIES)))]
    return pl.concat(parts)
