"""The frame of labelled fact spans (`spans.parquet`), what counts as new to the model, and counts by row. Pure.

A fact span is a stretch of a long answer that could be wrong: a name, a number, a date. Its category is SliCK's rule
on the span's probability *in place*, which means after the row's question and the answer's own text before the span.
`recognised` is a second test: the span is the likeliest of itself and `alternatives` spans of the same type from other
rows. A span is new to the model if it is neither expressed in place nor recognised.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from foreknow.categories import UNKNOWN

TYPES: Final = ("name", "number", "date", "code", "term", "own")
"""Types of spans. `own`: spans of the user's own column."""

SPANS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "span": pl.Int64(),  # 0-based number of the span within its row
    "start": pl.Int64(),  # characters of the row's answer
    "end": pl.Int64(),  # exclusive
    "text": pl.String(),
    "type": pl.String(),  # one of TYPES
    "finder": pl.String(),  # rules, spacy:MODEL or column
    "p_greedy": pl.Float64(),
    "p_sampled": pl.Float64(),
    "p_hit": pl.Float64(),
    "category": pl.String(),
    "recognised": pl.Boolean(),
    "p_recognised": pl.Float64(),
    "rank": pl.Int64(),
    "alternatives": pl.Int64(),
    "flags": pl.List(pl.String()),
}
"""`spans.parquet`: one line per span, sorted by row and start.

`p_greedy`: share of the exemplar sets behind which the greedy path says the span and ends it where the answer does.
`p_sampled`: mean over the sets of the probability that a sample does so. `p_hit` and `category`: as for short rows
(`slick.py`); null where the span was not probed (see `flags`). `rank`: place of the span among itself and its
alternatives, 1 = the likeliest. `recognised`: whether `rank` is 1. `p_recognised`: the span's share of the probability
of them all. These three are null where there were no alternatives to compare with, and
`recognised` also where there were fewer than half as many as the audit asks for."""

CUT: Final = "cut"
"""Flag of a span behind the part of its answer that was scored."""
NO_ALTERNATIVES: Final = "no_alternatives"
"""Flag of a span whose category alone says whether it is new, as there was nothing to compare it with."""
FEW_ALTERNATIVES: Final = "few_alternatives"
"""Flag of a span whose category alone says whether it is new, as there was too little to compare it with."""

SPAN_COUNTS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "n_spans": pl.Int64(),  # spans that have a category
    "unknown_spans": pl.Int64(),  # of them, those whose category is Unknown
    "new_spans": pl.Int64(),  # of them, those that are new to the model (`is_new`)
    "unknown_share": pl.Float64(),  # unknown_spans / n_spans; null without spans
    "spans_category": pl.String(),
}
"""What `rows.parquet` says of the spans of a row with a long answer."""

ROLL_UP: Final = ("none", "known", "mixed", "unknown")
"""Values of `spans_category`: the row has no spans, none is Unknown, some are Unknown, all are Unknown."""

SPAN_LABEL: Final = pl.List(
    pl.Struct(
        {
            "start": pl.Int64(),
            "end": pl.Int64(),
            "text": pl.String(),
            "type": pl.String(),
            "category": pl.String(),
            "new": pl.Boolean(),
        }
    )
)
"""Type of the column `spans` of the annotated file."""


def is_new() -> pl.Expr:
    """Whether a line of `SPANS` is new to the model: its category is Unknown and it is not recognised.

    Where `recognised` is null, the category alone decides. Never null: a span without a category is not new.
    """
    unknown = (pl.col("category") == UNKNOWN).fill_null(False)
    return unknown & ~pl.col("recognised").fill_null(False)


def count_spans(rows: pl.Series, spans: pl.DataFrame) -> pl.DataFrame:
    """Count the labelled spans of each of `rows` (row numbers) as in `SPAN_COUNTS`; `spans`: a frame `SPANS`."""
    counts = (
        spans.filter(pl.col("category").is_not_null())
        .group_by("row")
        .agg(
            n_spans=pl.len(),
            unknown_spans=(pl.col("category") == UNKNOWN).sum(),
            new_spans=is_new().sum(),
        )
    )
    share = pl.col("unknown_spans") / pl.col("n_spans")
    word = (
        pl.when(pl.col("n_spans") == 0)
        .then(pl.lit("none"))
        .when(share == 0)
        .then(pl.lit("known"))
        .when(share == 1)
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("mixed"))
    )
    joined = pl.DataFrame({"row": rows}).join(counts, on="row", how="left", maintain_order="left")
    return (
        joined.with_columns(pl.col("n_spans", "unknown_spans", "new_spans").fill_null(0))
        .with_columns(
            unknown_share=pl.when(pl.col("n_spans") > 0).then(share),
            spans_category=word,
        )
        .select(*(pl.col(name).cast(kind) for name, kind in SPAN_COUNTS.items()))
    )


def span_labels(spans: pl.DataFrame) -> pl.DataFrame:
    """Collect each row's spans into one list (`SPAN_LABEL`), in the order of the text: columns `row` and `spans`."""
    fields = ("start", "end", "text", "type", "category")
    return (
        spans.sort("row", "start")
        .with_columns(new=is_new())
        .group_by("row", maintain_order=True)
        .agg(spans=pl.struct(*fields, "new"))
        .cast({"row": pl.Int64(), "spans": SPAN_LABEL})
    )
