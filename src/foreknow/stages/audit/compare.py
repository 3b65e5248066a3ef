"""Compare two audits row by row: how categories change between two models, or from before training to after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.errors import UsageError
from foreknow.inference import slick
from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import differences, write_whole
from foreknow.stages.audit.result import AuditResult

_SAME = (
    *("name", "shots", "exemplar_sets", "samples", "temperature", "top_k", "match"),
    *("max_answer_tokens", "prompt", "instruction", "chat_template"),
)
"""Parts of the protocol that must agree for categories to be compared."""


@dataclass(frozen=True)
class Comparison:
    """Two audits compared. `first`, `second`: their models' names. `rows`: every row with both categories (`from`,
    `to`) and the change of P_Correct. `moves`: the number of rows by both categories."""

    first: str
    second: str
    rows: pl.DataFrame
    moves: pl.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """Return the shares of categories before and after, and how many rows moved in which direction."""
        order = {name: place for place, name in enumerate(CATEGORIES)}
        both = self.rows.drop_nulls(["from", "to"])
        step = both.select(
            pl.col("to").replace_strict(order, return_dtype=pl.Int64)
            - pl.col("from").replace_strict(order, return_dtype=pl.Int64)
        ).to_series()
        return {
            "first": self.first,
            "second": self.second,
            "rows": self.rows.height,
            "compared": both.height,
            "shares": {"first": slick.shares(both["from"]), "second": slick.shares(both["to"])},
            "better_known": int((step < 0).sum()),
            "same": int((step == 0).sum()),
            "less_known": int((step > 0).sum()),
        }


def compare_audits(first: AuditResult, second: AuditResult) -> Comparison:
    """Compare two finished audits of the same rows under the same protocol. Raises UsageError if they are not."""
    was, now = first.summary, second.summary
    differ = differences(
        {k: was["protocol"].get(k) for k in _SAME}, {k: now["protocol"].get(k) for k in _SAME}, "protocol"
    )
    if differ:
        raise UsageError(
            f"{first.folder} and {second.folder} were made under different protocols: {'; '.join(differ[:4])}. "
            "Audit again with the same settings"
        )
    keys = ["row", "question", "answers"]
    if not first.rows.select(keys).equals(second.rows.select(keys)):
        a, b = first.rows, second.rows
        where = ""
        if a.height == b.height:
            apart = (a["question"].ne_missing(b["question"]) | a["answers"].ne_missing(b["answers"])).arg_max()
            where = f", from line {apart} on"
        raise UsageError(
            f"{first.folder} and {second.folder} hold different rows ({a.height:,} and {b.height:,}{where}); "
            "categories can only be compared row by row. Audit the same file with the same --limit and --seed"
        )
    columns = ["row", "category", "p_sampled", "p_greedy", "model_answer"]
    rows = (
        first.rows.select("row", "group", "question", "answer", *columns[1:])
        .join(second.rows.select(columns), on="row", suffix="_now")
        .rename({"category": "from", "category_now": "to"})
        .with_columns(p_sampled_change=pl.col("p_sampled_now") - pl.col("p_sampled"))
    )
    counts = {(a, b): n for a, b, n in rows.drop_nulls(["from", "to"]).group_by("from", "to").len().iter_rows()}
    moves = pl.DataFrame(
        {
            "from": CATEGORIES,
            **{to: [counts.get((was, to), 0) for was in CATEGORIES] for to in CATEGORIES},
        }
    )
    return Comparison(was["model"]["name"], now["model"]["name"], rows, moves)


def write_rows(comparison: Comparison, path: Path) -> None:
    """Write every row with both categories in the format of the suffix (.parquet, .csv, .jsonl).

    Raises UsageError for another suffix.
    """
    writers: dict[str, Callable[[Path], object]] = {
        ".parquet": comparison.rows.write_parquet,
        ".csv": lambda target: target.write_text(csv_of(comparison.rows), encoding="utf-8"),
        ".jsonl": comparison.rows.write_ndjson,
    }
    if path.suffix not in writers:
        raise UsageError(f"--out {path}: found suffix {path.suffix!r}, expected one of {', '.join(writers)}")
    write_whole(path, writers[path.suffix])
