"""Holds rows out of a file for dev so that no row held out was as good as trained on. Pure.

Rows belong together if they are answers of one chat, name the same subject, ask the same question (also in other
letters, `near_duplicates.py`, or in other words, `similar_questions.py`) or have nearly the same long answer. Chains of
such rows are a family, and a family is held out whole or not at all.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import polars as pl

from foreknow.data.near_duplicates import families, near_duplicates
from foreknow.data.schema import SAME_QUESTION
from foreknow.data.similar_questions import similar_questions
from foreknow.errors import InputError

LARGEST = 0.5
"""A family with more than this part of the rows to hold out stays in train, if others can be held out."""


class Holdout(NamedTuple):
    """The rows that are held out, by number, and how many families they and all rows are."""

    rows: pl.Series
    families: int
    of_families: int


def hold_out(rows: pl.DataFrame, share: float, seed: int) -> Holdout:
    """Draw about `share` (0 to 1) of the rows of a frame `ROWS`, all usable, whole families at a time.

    The draw depends on the seed and on the texts of the rows, not on their order. Raises InputError if the rows are of
    one family only, so that none can be held out.
    """
    member = row_families(rows)
    sizes = (
        rows.select("row", key=SAME_QUESTION)
        .with_columns(family=member)
        .group_by("family")
        .agg(size=pl.len(), key=pl.col("key").min())
    )
    if sizes.height < 2:
        raise InputError(
            f"all usable rows ({rows.height:,}) are of one family (one subject, or variants of one question): none can "
            "be held out for dev. Name a file with --dev"
        )
    wanted = max(1, round(share * rows.height))
    drawn = sizes.with_columns(
        place=pl.col("key").map_elements(lambda key: _place(seed, key), return_dtype=pl.String),
        large=pl.col("size") > max(1, LARGEST * wanted),
    ).sort("large", "place", "family")
    held, count = [], 0
    for family, size in drawn.select("family", "size").iter_rows():
        if count and count + size > wanted:
            continue
        if count + size >= rows.height:
            continue
        held.append(family)
        count += size
        if count >= wanted:
            break
    of = rows["row"].filter(member.is_in(held))
    return Holdout(of, len(held), sizes.height)


def row_families(rows: pl.DataFrame) -> pl.Series:
    """For each row of a frame `ROWS` the number of its family; see the top of this file."""
    near, similar = near_duplicates(rows), similar_questions(rows)
    keys = (
        rows.select("row")
        .with_row_index("id")
        .with_columns(
            record=rows["record"],
            subject=rows["subject"].str.to_lowercase(),
            question=rows.select(SAME_QUESTION.str.to_lowercase()).to_series(),
        )
    )
    keys = keys.join(near.select("row", "near_row").unique("row"), on="row", how="left", maintain_order="left")
    keys = keys.join(similar, on="row", how="left", maintain_order="left")
    edges = [
        keys.drop_nulls(name).select(id=pl.col("id").cast(pl.Int64), other=pl.col("id").min().over(name).cast(pl.Int64))
        for name in ("record", "subject", "question", "near_row", "similar_row", "same_answer_row")
    ]
    return pl.Series("family", families(pl.concat(edges), rows.height))


def _place(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).hexdigest()
