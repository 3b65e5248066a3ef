"""This module writes the texts of rows with their labelled spans as JSON, which the page's script shows as text only.

A page embeds at most `TEXTS` rows: those that its tables link to, and a seeded draw of the others.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from foreknow.format.text import clip, display
from foreknow.report.markup import script_json
from foreknow.stages.audit.verdict.labelled_spans import TYPE_NAMES, UNLABELLED, LabelledSpans, with_parts

TEXTS: Final = 200
"""At most this many texts are embedded."""
LONGEST: Final = 6000
"""A text is cut to this many characters."""


def drawn_rows(
    rows: pl.DataFrame, spans: pl.DataFrame, summary: LabelledSpans, seed: int, most: int = TEXTS
) -> pl.DataFrame:
    """The rows whose texts the page embeds, in row order: all that have spans, or a draw of `most` rows.

    Every row that a table links to is among them, even where these are more than `most`.
    """
    own = rows.filter(pl.col("row").is_in(spans["row"].unique().implode()))
    linked = {thing.row for _, things in summary.things for thing in things}
    is_linked = pl.col("row").is_in(list(linked))
    if own.height <= most:
        return own.sort("row")
    rest = own.filter(~is_linked)
    drawn = rest.sample(min(max(most - len(linked), 0), rest.height), seed=seed)
    return pl.concat([own.filter(is_linked), drawn]).sort("row")


def text_json(rows: pl.DataFrame, spans: pl.DataFrame, groups: list[str]) -> str:
    """Write the rows (row, group, question, answer) with their spans (`SPANS`) as JSON.

    A text is a list of pieces: plain text, or a span as [text, part, type, chance in place, rank, alternatives]; part
    is a place in `spans.PARTS`, or `UNLABELLED`.
    """
    marks: dict[int, list[dict[str, Any]]] = {}
    own = spans.filter(pl.col("row").is_in(rows["row"].implode()))
    for span in with_parts(own).sort("row", "start").iter_rows(named=True):
        marks.setdefault(span["row"], []).append(span)
    place = {name: index for index, name in enumerate(groups)}
    lines = [
        [
            r["row"],
            clip(r["question"]),
            place.get(r["group"], 0),
            span_pieces(r["answer"] or "", marks.get(r["row"], []), LONGEST),
        ]
        for r in rows.iter_rows(named=True)
    ]
    return script_json(
        {
            "types": list(TYPE_NAMES),
            "names": list(TYPE_NAMES.values()),
            "groups": list(map(display, groups)),
            "rows": lines,
        }
    )


def span_pieces(answer: str, spans: list[dict[str, Any]], longest: int | None = None) -> list[Any]:
    """Cut an answer into plain texts and its spans, as `text_json` writes them.

    `spans`: lines of `spans.with_parts`, in order of `start`. `longest`: the answer is cut to this many characters.
    """
    types, end = list(TYPE_NAMES), len(answer) if longest is None else min(len(answer), longest)
    pieces: list[Any] = []
    at = 0
    for span in spans:
        if span["start"] < at or span["end"] > end:
            continue  # a span that overlaps the one before it, or stands in what is cut away
        pieces.append(answer[at : span["start"]])
        chance = None if span["p_sampled"] is None else float(f"{span['p_sampled']:.2g}")
        kind = UNLABELLED if span["category"] is None else span["part"]
        pieces.append([span["text"], kind, types.index(span["type"]), chance, span["rank"], span["alternatives"]])
        at = span["end"]
    pieces.append(answer[at:end] + (" …" if len(answer) > end else ""))
    return [piece for piece in pieces if piece != ""]
