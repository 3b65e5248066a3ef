"""Row counts of an input: rows in = rows read + rows left out, by reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from foreknow.data.chat.exchanges import LEFT_OUT

REASONS: Final = (*LEFT_OUT, "no_question", "no_answer")
"""Why a row cannot be used: one of its flags. The first that holds counts."""
WHAT_TO_DO: Final[Mapping[str, str]] = {
    "masked": "Take the marks (weight: 0, train: false, loss: 0 and the like) from the turns that are to be learnt.",
    "tool_call": "A model is asked in words: give a file with answers in words.",
    "only_thought": "Close the mark of each thought, and write the answer behind it.",
    "refusal": "A refusal says nothing about knowledge: give a file with answers.",
    "not_text": "A model is asked in text: give rows without pictures, sounds or files.",
    "no_user_turn": "Put a turn of the user before each answer.",
    "long_chat": "Cut the chats, or ask for their last answers only: --turns last.",
    "rejected": "Every answer is marked as a bad one: see whether the labels are the wrong way round.",
    "unanswerable": "Give rows whose questions have an answer.",
    "no_such_choice": "Write the right choice's text into a column `answer`, and name --layout question.",
    "no_marks": "Give rows of question and answer.",
    "missing_value": "Fill questions and answers in, or take such words as answers: --null-words keep.",
}
"""Where all rows of a file are left out: what to do about the most frequent reason."""
THOUGHT: Final = "thought"
"""The flag of a row whose answer had a thought before it, which is no part of the gold."""


def reasons(flags: pl.Expr) -> pl.Expr:
    """Of rows that cannot be used, the reason that counts, from their flags."""
    reason = pl.coalesce(pl.when(flags.list.contains(name)).then(pl.lit(name)) for name in REASONS)
    return reason.fill_null("no_answer")


def left_out(rows: pl.DataFrame) -> dict[str, int]:
    """How many rows cannot be used, by reason, in the order of `REASONS`. `rows`: flags, usable."""
    lost = rows.filter(~pl.col("usable")).select(reason=reasons(pl.col("flags")))
    counts = dict(lost["reason"].value_counts().iter_rows())
    return {name: counts[name] for name in REASONS if name in counts}


def account(records: int, rows: int, lost: Mapping[str, int], thoughts: int = 0) -> str:
    """Records and rows in a line: "12 records: 30 rows read, 6 left out (masked 4, tool_call 2)"."""
    count = sum(lost.values())
    why = f" ({', '.join(f'{name} {number:,}' for name, number in lost.items())})" if count else ""
    noun, read = ("record" if records == 1 else "records"), ("row" if rows - count == 1 else "rows")
    held = "answer holds" if thoughts == 1 else "answers hold"
    more = f"; {thoughts:,} {held} a thought, which is not part of the gold" if thoughts else ""
    return f"{records:,} {noun}: {rows - count:,} {read} read, {count:,} left out{why}{more}"
