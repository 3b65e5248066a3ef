"""Finds what was known of rows before training: their categories, and the base model's probe."""

from __future__ import annotations

from typing import Final

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.data.dataset import Dataset
from foreknow.data.schema import SAME_GOLD, SAME_QUESTION, earlier_turns
from foreknow.errors import ConfigError, InputError
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.train.dataset import extra_columns

LABELS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "category": pl.String(),
    "base_p_greedy": pl.Float64(),
    "base_answer": pl.String(),
}
"""The columns of what is known of a row before training; a value is null if it is not known."""


def audited_labels(
    audit: AuditResult, facts: Dataset, rows: pl.DataFrame, match: str, long_rows: int = 0
) -> tuple[pl.DataFrame, str]:
    """Find what an audit knows of `rows` (the usable ones of `facts`); return `LABELS` and words for their source.

    `long_rows`: how many of the rows have long answers with labelled spans, which have no category of their own. If the
    audit read the same file, rows are matched by their numbers, else by question, earlier turns and gold.
    Raises InputError if the audit knows none of the rows, ConfigError if it was made with another `--match` than
    `match`.
    """
    theirs = audit.summary["protocol"]["match"]
    if theirs != match:
        raise ConfigError(
            f"--audit {audit.folder}: made with --match {theirs}, found --match {match}; the base model's answers can "
            f"only be compared under their own. Evaluate with --match {theirs}: EM of both kinds is given"
        )
    same = audit.summary["data"]["fingerprint"] == facts.digest
    labels = labels_of(rows, audit.rows, same_file=same)
    how = "by row number" if same else "by question and gold"
    if labels.is_empty() and not long_rows:
        raise InputError(
            f"--audit {audit.folder}: knows none of the {rows.height:,} rows of {facts.name} ({how}); name the audit "
            "of these rows"
        )
    spans = f", and labelled spans in {long_rows:,} long answers" if long_rows else ""
    return labels, f"the audit {audit.folder}, which labels {labels.height:,} of {rows.height:,} rows ({how}){spans}"


def labels_of(rows: pl.DataFrame, audited: pl.DataFrame, *, same_file: bool) -> pl.DataFrame:
    """Return a line of `LABELS` for each row that an audit has labelled. `audited`: the audit's `rows.parquet`."""
    known = audited.filter(pl.col("category").is_not_null()).select(
        *("row", SAME_QUESTION, "earlier_turns", "category"),
        gold=pl.col("answer").str.normalize("NFC"),
        base_p_greedy="p_greedy",
        base_answer="model_answer",
    )
    if same_file:
        return rows.select("row").join(known, on="row").select(*LABELS).sort("row")
    keys = ["question", "earlier_turns", "gold"]
    first = known.drop("row").unique(keys, keep="first", maintain_order=True)
    row_keys = rows.select("row", SAME_QUESTION, earlier_turns(rows), gold=SAME_GOLD)
    labelled_rows = row_keys.join(first, on=keys, nulls_equal=True)
    return labelled_rows.select(*LABELS).sort("row")


def own_labels(facts: Dataset, rows: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Read the labels that an audit or a mix wrote into the file; return `LABELS` and words for their source.

    Both are empty if the file has no labels. If the file already had a column of a label's name, the label's column is
    called `foreknow_<name>`; such columns are preferred.
    """
    names = {"category": "category", "base_p_greedy": "p_greedy", "base_answer": "model_answer"}
    columns = [f"{prefix}{name}" for name in names.values() for prefix in ("foreknow_", "")]
    extra = extra_columns(facts, columns, last=columns)
    prefix = next((p for p in ("foreknow_", "") if _has_labels(extra, f"{p}category")), None)
    if prefix is None:
        return pl.DataFrame(schema=LABELS), ""
    column_of_label = {ours: f"{prefix}{name}" for ours, name in names.items()}
    columns_as_labels = [
        (
            pl.col(column_of_label[name]) if extra.schema.get(column_of_label[name]) == kind else pl.lit(None, kind)
        ).alias(name)
        for name, kind in LABELS.items()
        if name != "row"
    ]
    known = extra.select("row", *columns_as_labels).filter(pl.col("category").is_in(CATEGORIES))
    labels = known.join(rows.select("row"), on="row").select(*LABELS).sort("row")
    return labels, f"the column {column_of_label['category']!r}, which labels {labels.height:,} of {rows.height:,} rows"


def _has_labels(extra: pl.DataFrame, column: str) -> bool:
    return column in extra.columns and bool(extra[column].cast(pl.String).is_in(CATEGORIES).any())
