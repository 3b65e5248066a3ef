"""Counts which labelled spans of long answers turn up in the text that a model writes, and what else it names. Pure.

A model is asked a row's question and writes its answer freely (`generate.py`), at most as many tokens as the row's own
answer has. A gold span *turns up* if its words stand anywhere in that text, case and a plural `s` aside, or if another
spelling of it does (`alternatives.variants`). Order and wording do not count, so this is recall of facts, not of texts.

A text of that length would mention some spans by accident. `in_other_text` is the measure for that: whether the span
turns up in the text that the model wrote for the next row. It is null if the span stands in that row's own question or
answer, where it would be no accident.

*Other spans* are names, numbers, dates, codes and rare terms of the written text with a word that stands in neither the
row's question, earlier turns nor any of its accepted answers. They are found by the rules (`rules.py`), whichever
finder the audit used. They need not be wrong, and a wrong name put together of the row's own words is none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.data.spans.alternatives import variants
from foreknow.data.spans.finder import AnswerText, Words, first_mentions
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import TYPES
from foreknow.data.spans.word_lists import PARTICLES
from foreknow.stats import wilson

GOLD_SPANS: Final = pl.List(
    pl.Struct(
        {
            "text": pl.String(),
            "type": pl.String(),
            "category": pl.String(),
            "new": pl.Boolean(),
            "in_text": pl.Boolean(),
            "in_base_text": pl.Boolean(),
            "in_other_text": pl.Boolean(),
        }
    )
)
"""A row's labelled gold spans, in the order of its answer. `in_text`: the span turns up in the model's text;
`in_base_text`: in that of the base model in the same format, null if it was not asked; `in_other_text`: in the model's
text for the next row, null if it stands in that row itself."""
OTHER_SPANS: Final = pl.List(pl.Struct({"text": pl.String(), "type": pl.String()}))
"""Spans of a model's text that stand in neither the question, earlier turns nor an accepted answer."""
SPAN_RECALL: Final[dict[str, pl.DataType]] = {
    "long_answer": pl.String(),
    "long_answer_ended": pl.Boolean(),
    "base_long_answer": pl.String(),
    "gold_spans": GOLD_SPANS,
    "other_spans": OTHER_SPANS,
    "base_other_spans": OTHER_SPANS,
}
"""The columns that `rows.parquet` has for a row with labelled spans; null for other rows. `long_answer`: all that the
model wrote, line breaks included, null if its logits were not finite. `long_answer_ended`: whether it ended by itself.
The columns that begin with `base_` hold the same of the base model in the same format."""
ALL, NEW = "all", "new"


def span_recall(rows: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Return the columns `SPAN_RECALL` beside `row`, one line for each row that has labelled spans.

    `rows`: `row`, `question`, `context`, `answers`, `long_answer`, `long_answer_ended` and `base_long_answer`; `spans`:
    the labelled spans of these rows (`span_labels.WATCHED_SPANS`).
    """
    by_row = {row: own.to_dicts() for (row,), own in spans.sort("row", "start").group_by("row", maintain_order=True)}
    records = [record for record in rows.sort("row").to_dicts() if record["row"] in by_row]
    befores = ["\n".join([*(t["content"] for t in r["context"] or ()), r["question"], *r["answers"]]) for r in records]
    texts = {name: [r[name] or "" for r in records] for name in ("long_answer", "base_long_answer")}
    finder = RuleFinder([answer for r in records for answer in r["answers"]] + texts["long_answer"])
    written = {name: [Words(text) for text in own] for name, own in texts.items()}
    mentioned = [Words(before) for before in befores]
    lines = []
    for n, record in enumerate(records):
        other = (n + 1) % len(records)
        gold_spans = []
        for span in by_row[record["row"]]:
            forms = [Words(text) for text in (span["text"], *variants(span["text"], span["type"], False))]
            no_accident = other == n or _any_in(mentioned[other], forms) or records[other]["long_answer"] is None
            gold_spans.append(
                {
                    **{name: span[name] for name in ("text", "type", "category", "new")},
                    "in_text": None if record["long_answer"] is None else _any_in(written["long_answer"][n], forms),
                    "in_base_text": None
                    if record["base_long_answer"] is None
                    else _any_in(written["base_long_answer"][n], forms),
                    "in_other_text": None if no_accident else _any_in(written["long_answer"][other], forms),
                }
            )
        lines.append(
            {
                **{name: record[name] for name in ("row", "long_answer", "long_answer_ended", "base_long_answer")},
                "gold_spans": gold_spans,
                "other_spans": _other_spans(finder, record["row"], record["long_answer"], befores[n]),
                "base_other_spans": _other_spans(finder, record["row"], record["base_long_answer"], befores[n]),
            }
        )
    return pl.DataFrame(lines, schema={"row": pl.Int64(), **SPAN_RECALL})


def _any_in(text: Words, forms: Sequence[Words]) -> bool:
    return any(text.mentions(form) for form in forms)


def _other_spans(finder: RuleFinder, row: int, text: str | None, before: str) -> list[dict[str, str]] | None:
    if text is None:
        return None
    answer = AnswerText(row, text, before)
    (spans,) = finder.find([answer])
    others = [(text[s.start : s.end], s.type) for s in first_mentions(answer, spans)]
    supported = Words(before)
    words = {*supported.words, *PARTICLES}
    return [
        {"text": other, "type": kind}
        for other, kind in others
        if not words.issuperset(Words(other).words)
        and not _any_in(supported, [Words(form) for form in variants(other, kind, False)])
    ]


def summarise_span_recall(rows: pl.DataFrame, most: int = 20) -> dict[str, Any] | None:
    """Compute the section `long_answers` of `summary.json` from the frame `metrics.ANSWERED`; None without such rows.

    `by_label`: for `all` spans, each category and `new` spans, the share that turns up, that of the base model, and
    that in the text of another row. `other_spans`: how many there are, by type, and the `most` most frequent ones.
    """
    long = rows.filter(pl.col("gold_spans").is_not_null())
    if long.is_empty():
        return None
    spans = long.select("gold_spans").explode("gold_spans").unnest("gold_spans")
    labels = {ALL: pl.lit(True), **{name: pl.col("category") == name for name in CATEGORIES}, NEW: pl.col("new")}
    parts = {name: spans.filter(which) for name, which in labels.items()}
    others = long.select("row", "other_spans").explode("other_spans").drop_nulls().unnest("other_spans")
    base_others = long.select("base_other_spans").explode("base_other_spans").drop_nulls()
    has_base = long["base_long_answer"].is_not_null().any()
    frequent = (
        others.group_by("text", "type")
        .agg(rows=pl.len())
        .sort("rows", "text", "type", descending=[True, False, False])
        .head(most)
    )
    return {
        "rows": long.height,
        "not_finite": int(long["long_answer"].is_null().sum()),
        "ended": int(long["long_answer_ended"].sum()),
        "by_label": {
            name: {
                "said": _share(part["in_text"]),
                "base": _share(part["in_base_text"]) if has_base else None,
                "by_accident": _share(part["in_other_text"]),
            }
            for name, part in parts.items()
            if part.height
        },
        "other_spans": {
            "count": others.height,
            "rows": others["row"].n_unique(),
            "by_type": {kind: count for kind in TYPES if (count := others.filter(pl.col("type") == kind).height)},
            "base_count": base_others.height if has_base else None,
            "frequent": frequent.to_dicts(),
        },
    }


def _share(outcomes: pl.Series) -> dict[str, Any]:
    measured = outcomes.drop_nulls()
    count, rows = int(measured.sum()), len(measured)
    of = wilson(count, rows)
    ends = (of.value, of.low, of.high) if rows else (None, None, None)
    return {**dict(zip(("share", "ci_low", "ci_high"), ends, strict=True)), "count": count, "rows": rows}
