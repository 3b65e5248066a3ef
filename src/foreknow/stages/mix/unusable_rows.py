"""Counts and lists, by reason, the rows of an audit that no training set can take, and refuses them on request. Pure.

A training set is drawn from labelled rows, so it never contains one of these rows. They are counted so that the user
knows which rows of the file are not taught.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import polars as pl

from foreknow.errors import InputError
from foreknow.format.numbers import count, row_numbers

REASONS: Final = {
    "no_question": "without a question",
    "no_answer": "without an answer",
    "template_refuses": "refused by the chat template",
    "template_drops": "of which the chat template leaves out a text",
    "long_prompt": "longer than the model's positions",
    "no_exemplars": "with a short answer that the audit could not ask: the file has too few such rows for exemplars",
    "long_answer": "with an answer too long for a category",
    "unspellable": "whose answer the tokenizer cannot spell",
    "not_finite": "for which the model's numbers were not finite",
    "no_labelled_span": "with a long answer in which no span is labelled",
}
"""Maps each flag of rows without a category to the words for it; the most serious flag comes first. The last one is for
sets drawn by their spans."""
UNTRAINABLE: Final = ("no_question", "no_answer", "template_refuses", "template_drops", "long_prompt")
"""The flags of rows from which nothing can be learnt, with or without a category."""
LISTED: Final = 8
"""How many row numbers are listed for each reason."""


def left_out(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Count the rows of an audit (`rows.parquet`) that have no category, by reason.

    Each reason maps to `rows`, the number of such rows, and `first`, the row numbers of the first `LISTED` of them.
    """
    bare = rows.filter(pl.col("category").is_null()).select("row", "flags").sort("row")
    rows_by_reason: dict[str, list[int]] = {}
    for row, flags in bare.iter_rows():
        rows_by_reason.setdefault(next((flag for flag in REASONS if flag in (flags or ())), "no_category"), []).append(
            row
        )
    order = [*REASONS, "no_category"]
    return {
        name: {"rows": len(rows_by_reason[name]), "first": rows_by_reason[name][:LISTED]}
        for name in order
        if name in rows_by_reason
    }


def check_left_out(left_out_rows: dict[str, dict[str, Any]], choice: Literal["refuse", "skip"]) -> None:
    """Raise InputError if `choice` is "refuse" and there are rows from which nothing can be learnt."""
    bad = {name: of for name, of in left_out_rows.items() if name in UNTRAINABLE}
    if choice == "refuse" and bad:
        raise InputError(
            f"the audit has rows that nothing can be learnt from: {'; '.join(unusable_lines(bad))}.\n"
            "Leave them out of the file and audit it again, or go on without them: --bad-rows skip"
        )


def unusable_lines(left_out_rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each reason, with the row numbers of the first rows."""
    lines = []
    for name, of in left_out_rows.items():
        numbers = row_numbers(of["first"], of["rows"])
        lines.append(f"{count(of['rows'], 'row')} {REASONS.get(name, 'without a category')} ({numbers})")
    return lines
