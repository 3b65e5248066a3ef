"""Turn the short facts of rows with long answers (a `facts` column) into rows to probe, and count their categories.

A long answer has no SliCK category, because it cannot match exactly. Each of the facts in it has one. Pure functions.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.data.schema import ROWS
from foreknow.inference import slick

FACT_COUNTS: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "n_facts": pl.Int64(),  # short facts that have a category
    "unknown_facts": pl.Float64(),  # share of them that are Unknown
    "facts_category": pl.String(),
}
ROLL_UP = ("none", "known", "mixed", "unknown")
"""The values of `facts_category`: the row has no facts, all are Known, some are Unknown, all are Unknown."""


def short_rows(rows: pl.DataFrame, first: int) -> pl.DataFrame:
    """Return the short facts of `rows` (`schema.ROWS`) as rows of their own, numbered from `first`.

    The frame has the columns of `schema.ROWS` and `parent`, `fact`. A fact belongs to its parent's group. Its subject
    names the parent, so that no fact of the same text is an exemplar for another. A parent's facts with the same
    question count once.
    """
    own = rows.filter(pl.col("facts").list.len() > 0)
    facts = (
        own.select(parent="row", record="record", group="group", relation="relation", split="split", facts="facts")
        .with_columns(fact=pl.int_ranges(0, pl.col("facts").list.len()))
        .explode("facts", "fact")
        .unnest("facts")
        .unique(["parent", "question"], keep="first", maintain_order=True)
    )
    numbered = facts.with_columns(
        row=pl.int_range(pl.len(), dtype=pl.Int64) + first,
        answers=pl.concat_list("answer"),
        subject=pl.format("row {}", "parent"),
        turn=pl.lit(None, dtype=ROWS["turn"]),
        popularity=pl.lit(None, dtype=pl.Float64),
        flags=pl.lit([], dtype=ROWS["flags"]),
        context=pl.lit(None, dtype=ROWS["context"]),
        facts=pl.lit(None, dtype=ROWS["facts"]),
        spans=pl.lit(None, dtype=pl.String),
    )
    return numbered.select(*(pl.col(name).cast(kind) for name, kind in ROWS.items()), "parent", "fact")


def roll_up_facts(rows: pl.Series, labelled: pl.DataFrame) -> pl.DataFrame:
    """Count the facts and categories of each of `rows` (row numbers) (`FACT_COUNTS`); `labelled`: parent, category."""
    counts = (
        labelled.drop_nulls("category")
        .group_by(row="parent")
        .agg(n_facts=pl.len().cast(pl.Int64), unknown_facts=(pl.col("category") == UNKNOWN).mean())
    )
    share = pl.col("unknown_facts")
    word = (
        pl.when(share.is_null())
        .then(pl.lit("none"))
        .when(share == 0)
        .then(pl.lit("known"))
        .when(share == 1)
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("mixed"))
    )
    joined = pl.DataFrame({"row": rows}).join(counts, on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.col("n_facts").fill_null(0), facts_category=word).select(
        *(pl.col(name).cast(kind) for name, kind in FACT_COUNTS.items())
    )


def summary(rolled: pl.DataFrame, shorts: pl.DataFrame) -> dict[str, Any]:
    """Return counts for `summary.json`: the facts, their categories, and the rows by `facts_category`."""
    counts = dict(rolled["facts_category"].value_counts().iter_rows())
    return {
        "facts": shorts.height,
        "labelled": shorts["category"].drop_nulls().len(),
        "categories": slick.shares(shorts["category"]),
        "rows": {word: int(counts.get(word, 0)) for word in ROLL_UP},
    }
