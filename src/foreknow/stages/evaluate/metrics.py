"""Computes EM, wrong answers, refusals, and the rows that a tuned model won and lost against its base model. Pure.

Every row counts as one of these:

    correct   the answer is accepted
    refused   the model declined, or said nothing
    wrong     neither

A row is both correct and refused if its gold is a refusal. The tuned model is compared with its base model in two ways:

    in the same format   the base model is asked as the tuned model is, without exemplars (`base_prediction`). This
                         shows what training changed, including the form of the answers. A base model that never ends
                         its answers scores 0
    behind exemplars     the base model's answers are those of the audit (paper, section 2). This shows what it knew.
                         It counts as right on a row if at least half of the exemplar sets' greedy answers were right
                         (`base_correct`)
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, UNKNOWN
from foreknow.data import exact_match
from foreknow.data.schema import GOLD
from foreknow.stages.evaluate.span_recall import SPAN_RECALL, span_recall, summarise_span_recall
from foreknow.stats import wilson

BASE_RIGHT: Final = 0.5
"""The base model counts as right on a row if at least this share of its greedy answers is right."""

PREDICTIONS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "prediction": pl.String(),
    "ended": pl.Boolean(),
    "correct": pl.Boolean(),
    "correct_lenient": pl.Boolean(),
    "long_answer": pl.String(),
    "long_answer_ended": pl.Boolean(),
}
"""The frame has one line per answered row. `prediction` is the answer up to the first newline or end token, with an
ellipsis if neither came. `ended` says whether one of them came within the tokens that a right answer may have; a row
that has not ended is not right. All columns but `row` are null if the model's logits stopped being finite before that,
because what the model would say is then not known. `long_answer` and `long_answer_ended` (`span_recall.SPAN_RECALL`)
are null but for rows with labelled spans."""

ANSWERED: Final[dict[str, pl.DataType]] = {
    **{name: pl.Int64() if name == "row" else pl.String() for name in ("row", "group", "relation", "split")},
    **{name: pl.String() for name in ("question", "answer", "category", "prediction")},
    **{name: pl.Boolean() for name in ("ended", "correct", "correct_lenient", "refused")},
    "base_p_greedy": pl.Float64(),
    "base_correct": pl.Boolean(),
    "base_answer": pl.String(),
    "base_prediction": pl.String(),
    "base_prediction_correct": pl.Boolean(),
    "base_prediction_lenient": pl.Boolean(),
    "answers": pl.List(pl.String()),
    **SPAN_RECALL,
}
"""The contract of `rows.parquet`: one line per row, in input order. `correct` follows strict matching. `base_correct`
is null if the base model's probe is not known. `base_prediction`, `base_prediction_correct` and
`base_prediction_lenient` are null if the base model was not asked in the same format. The columns from `prediction` to
`refused` are null if the model's logits were not finite. The columns of `SPAN_RECALL` are null for rows without
labelled spans."""

Share = dict[str, Any]
"""A dict of share, ci_low, ci_high, count and rows. `ci_low` and `ci_high` are Wilson's 95 % interval; they and `share`
are null if there are no rows."""


def answered(
    rows: pl.DataFrame,
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    idk_answer: str | None = None,
    base: pl.DataFrame | None = None,
    spans: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Join rows (`rows.ROWS`) with the model's answers and what was known before training into the frame `ANSWERED`.

    `predictions`: the model's answers (`PREDICTIONS`). `labels`: what was known (`base_labels.LABELS`). `idk_answer`: a
    refusal that the model was taught; it counts as a refusal in addition to answers that read like one. `base`: the
    base model's answers in the same format (`PREDICTIONS`). `spans`: the labelled spans inside long answers
    (`span_labels.WATCHED_SPANS`).
    """
    same_format = (pl.DataFrame(schema=PREDICTIONS) if base is None else base).select(
        "row",
        base_prediction="prediction",
        base_prediction_correct="correct",
        base_prediction_lenient="correct_lenient",
        base_long_answer="long_answer",
    )
    taught = exact_match.normalise(idk_answer) if idk_answer else None
    refused = [
        None if text is None else exact_match.is_refusal(text) or exact_match.normalise(text) == taught
        for text in predictions["prediction"]
    ]
    joined = (
        rows.drop("spans", strict=False)
        .join(predictions.with_columns(refused=pl.Series(refused, dtype=pl.Boolean)), on="row")
        .join(labels, on="row", how="left")
        .join(same_format, on="row", how="left")
        .with_columns(answer=GOLD, base_correct=pl.col("base_p_greedy") >= BASE_RIGHT)
        .sort("row")
    )
    recall = pl.DataFrame(schema={"row": pl.Int64(), **SPAN_RECALL}) if spans is None else span_recall(joined, spans)
    return joined.drop(list(SPAN_RECALL), strict=False).join(recall, on="row", how="left").sort("row").select(*ANSWERED)


def summarise_answers(rows: pl.DataFrame, *, lenient: bool = False) -> dict[str, Any]:
    """Compute the counts and shares of `summary.json` from the frame `ANSWERED`.

    EM is given under both matchings; all other figures follow one matching (lenient if `lenient`, else strict). Rows
    for which the model's logits were not finite are counted in `not_finite` and in no other figure.
    """
    every = rows.height
    long_answers = summarise_span_recall(rows)
    rows = counted(rows.filter(pl.col("prediction").is_not_null()), lenient=lenient)
    by = {"by_category": "category", "by_relation": "group", "by_split": "split"}
    parts = {name: parted(rows, column) for name, column in by.items()}
    known = rows.filter(pl.col("base_correct").is_not_null())
    return {
        "rows": rows.height,
        "not_finite": every - rows.height,
        "labelled": rows["category"].drop_nulls().len(),
        "em": {
            "overall": _em(rows),
            **{name: {key: _em(part) for key, part in found.items()} for name, found in parts.items()},
        },
        "answers": {
            "correct": int(rows["counts"].sum()),
            "wrong": int(rows["wrong"].sum()),
            "refused": int(rows["refused"].sum()),
            "empty": int((rows["prediction"] == "").sum()),
            "not_ended": int((~rows["ended"]).sum()),
        },
        "wrong_answers": {
            "overall": frequent(rows, 20),
            "by_relation": {key: frequent(part, 5) for key, part in parts["by_relation"].items()},
        },
        "collapse": {
            "overall": collapse(rows),
            "by_relation": {key: collapse(part) for key, part in parts["by_relation"].items()},
        },
        "refusals": {
            "overall": _share(rows["refused"]),
            **{name: {key: _share(part["refused"]) for key, part in found.items()} for name, found in parts.items()},
            "over_refusal": _share(rows.filter(pl.col("category") == HIGHLY_KNOWN)["refused"]),
        },
        "answering": {
            "overall": answering(rows),
            "by_category": {key: answering(part) for key, part in parts["by_category"].items()},
        },
        "long_answers": long_answers,
        "same_format": same_format_moves(rows, lenient=lenient),
        "moves": moves(rows) if known.height or rows["category"].drop_nulls().len() else None,
    }


def counted(rows: pl.DataFrame, *, lenient: bool) -> pl.DataFrame:
    """Add `counts` (right under the chosen matching) and `wrong` (neither right nor refused) to the rows."""
    right = pl.col("correct_lenient" if lenient else "correct")
    return rows.with_columns(counts=right, wrong=~right & ~pl.col("refused"))


def parted(rows: pl.DataFrame, column: str) -> dict[str, pl.DataFrame]:
    """Group the rows by the values of a column; leave out nulls.

    The groups are sorted by value; categories are sorted from known to unknown.
    """
    parts = {str(key): part for (key,), part in rows.drop_nulls(column).group_by(column, maintain_order=True)}
    order = CATEGORIES if column == "category" else sorted(parts)
    return {name: parts[name] for name in order if name in parts}


def share(count: int, rows: int) -> Share:
    """Return the share `count` of `rows` with its interval."""
    of = wilson(count, rows)
    ends = (of.value, of.low, of.high) if rows else (None, None, None)
    return {**dict(zip(("share", "ci_low", "ci_high"), ends, strict=True)), "count": count, "rows": rows}


def _share(outcome: pl.Series) -> Share:
    return share(int(outcome.sum()), len(outcome))


def _em(rows: pl.DataFrame) -> dict[str, Share]:
    return {"strict": _share(rows["correct"]), "lenient": _share(rows["correct_lenient"])}


def answering(rows: pl.DataFrame) -> dict[str, Share]:
    """Compute coverage, accuracy and yield.

    Coverage is the share of rows that are not refused, accuracy the share of those that are right, and yield the share
    of all rows that are answered and right.
    """
    answered_rows = rows.filter(~pl.col("refused"))
    hits = int(answered_rows["counts"].sum())
    return {
        "coverage": share(answered_rows.height, rows.height),
        "accuracy": share(hits, answered_rows.height),
        "yield": share(hits, rows.height),
    }


def frequent(rows: pl.DataFrame, most: int) -> list[dict[str, Any]]:
    """Return the `most` most frequent wrong answers with their text, count and share of the wrong answers.

    Equally frequent answers are sorted by text.
    """
    wrong = rows.filter("wrong")
    most_frequent = (
        wrong.group_by(pl.col("prediction").str.normalize("NFC"))
        .agg(count=pl.len())
        .sort("count", "prediction", descending=[True, False])
        .head(most)
    )
    return [
        {"prediction": text, "count": count, "share": count / wrong.height} for text, count in most_frequent.iter_rows()
    ]


def collapse(rows: pl.DataFrame) -> dict[str, Any]:
    """Measure how far the model gives the same few answers to many rows, among the rows that are not refused.

    Both the predictions and the golds get the share of the most frequent text and the number of distinct texts. A model
    that answers well is about as varied as the golds.
    """
    answered_rows = rows.filter(~pl.col("refused"))
    return {
        "rows": answered_rows.height,
        "predictions": _variety(answered_rows["prediction"]),
        "golds": _variety(answered_rows["answer"].str.strip_chars()),
    }


def _variety(texts: pl.Series) -> dict[str, Any]:
    counts = (
        texts.alias("text")
        .str.normalize("NFC")
        .value_counts(name="count")
        .sort("count", "text", descending=[True, False])
    )
    if counts.is_empty():
        return {"top": None, "count": 0, "share": None, "distinct": 0}
    top, count = counts.row(0)
    return {"top": top, "count": count, "share": count / texts.len(), "distinct": counts.height}


def same_format_moves(rows: pl.DataFrame, *, lenient: bool = False) -> dict[str, Any] | None:
    """Count the rows won and lost against the base model in the same format; return None if it was not asked."""
    asked = rows.filter(pl.col("base_prediction").is_not_null())
    if asked.is_empty():
        return None
    was = asked["base_prediction_lenient" if lenient else "base_prediction_correct"]
    return _moved(asked.with_columns(base_correct=was))


def moves(rows: pl.DataFrame) -> dict[str, Any]:
    """Count the rows won and lost against the base model, overall and by category.

    `correct_to_wrong` is a share of the rows on which the base model was right, `wrong_to_correct` of those on which it
    was wrong. `lost`: HighlyKnown rows that are not right now. `gained`: Unknown rows that are right now. A row that is
    not right is wrong or refused.
    """
    by_category = parted(rows, "category")
    nothing = rows.clear()
    return {
        "base_correct_from": BASE_RIGHT,
        "overall": _moved(rows.filter(pl.col("base_correct").is_not_null())),
        "by_category": {
            name: {
                "rows": part.height,
                "now_correct": _share(part["counts"]),
                "now_refused": _share(part["refused"]),
                **_moved(part.filter(pl.col("base_correct").is_not_null())),
            }
            for name, part in by_category.items()
        },
        "lost": _share(~by_category.get(HIGHLY_KNOWN, nothing)["counts"]),
        "gained": _share(by_category.get(UNKNOWN, nothing)["counts"]),
    }


def _moved(rows: pl.DataFrame) -> dict[str, Any]:
    was, now = rows["base_correct"], rows["counts"]
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    return {
        "compared": rows.height,
        "base_correct": _share(was),
        "correct_to_wrong": share(lost, int(was.sum())),
        "wrong_to_correct": share(won, int((~was).sum())),
        "net": won - lost,
    }
