"""Masks or cuts the spans of long answers that are new to the model. Pure.

mask   the answer stays whole; the column `loss_exclude` lists the characters that the loss leaves out
cut    sentences go whose only spans are new; an answer of which nothing is left is dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.data.sentences import Place, rest_and_moves, sentences, without_breaks_inside
from foreknow.data.spans.schema import is_new
from foreknow.errors import InputError

LOSS_EXCLUDE: Final = "loss_exclude"
"""The column with the characters of an answer that a trainer leaves out of its loss: a list of [start, end] each."""
LOSS_EXCLUDE_TYPE: Final = pl.List(pl.List(pl.Int64()))


class Masked(NamedTuple):
    """Holds, by row number, the characters to leave out of the loss, and the number of spans and characters."""

    ranges: dict[int, list[list[int]]]
    spans: int
    characters: int


class Cut(NamedTuple):
    """Holds, by row number, answers with sentences cut; the rows of which nothing is left; and what was cut.

    `left`: the frame `SPANS` of the set as it is written: the spans that are left, at their places in the new answers.
    `moves`: by row, how far to the left each sentence that stays has moved.
    """

    answers: dict[int, str]
    empty: list[int]
    sentences: int
    spans: int
    characters: int
    left: pl.DataFrame
    moves: dict[int, dict[Place, int]]


def mask_spans(spans: pl.DataFrame, which: Literal["new", "unknown"]) -> Masked:
    """Return the characters of the spans that are new, or Unknown, by row. `spans`: a frame `SPANS`.

    Ranges are sorted by their start; ranges that overlap or touch are joined.
    """
    chosen = spans.filter(is_new() if which == "new" else (pl.col("category") == UNKNOWN).fill_null(False))
    ranges: dict[int, list[list[int]]] = {}
    for row, start, end in chosen.sort("row", "start").select("row", "start", "end").iter_rows():
        own = ranges.setdefault(row, [])
        if own and start <= own[-1][1]:
            own[-1][1] = max(own[-1][1], end)
        else:
            own.append([start, end])
    characters = sum(end - start for own in ranges.values() for start, end in own)
    return Masked(ranges, chosen.height, characters)


def cut_sentences(answers: Mapping[int, str], spans: pl.DataFrame) -> Cut:
    """Cut the sentences that have spans, all of which are new. `answers`: by row. `spans`: a frame `SPANS`.

    A sentence with a span that is expressed, recognised or not labelled stays, and so does one without a span. A
    sentence never ends inside a span.
    """
    by_row: dict[int, list[tuple[int, int, bool]]] = {}
    moves: dict[int, dict[Place, int]] = {}
    for row, start, end, new in spans.select("row", "start", "end", new=is_new()).iter_rows():
        by_row.setdefault(row, []).append((start, end, new))
    edited: dict[int, str] = {}
    empty, count, gone, characters = [], 0, 0, 0
    for row, own in sorted(by_row.items()):
        text = answers.get(row)
        if text is None:
            continue
        places = without_breaks_inside(sentences(text), [(start, end) for start, end, _ in own])
        cut = [place for place in places if _only_new(place, own)]
        if not cut:
            continue
        rest, moves[row] = rest_and_moves(text, places, cut)
        count += len(cut)
        gone += sum(any(a < end and start < b for a, b in cut) for start, end, _ in own)
        characters += len(text) - len(rest)
        if any(letter.isalnum() for letter in rest):
            edited[row] = rest
        else:
            empty.append(row)
    return Cut(edited, empty, count, gone, characters, _spans_left(spans, edited, empty, moves), moves)


def _spans_left(
    spans: pl.DataFrame, edited: Mapping[int, str], empty: Sequence[int], moves: Mapping[int, Mapping[Place, int]]
) -> pl.DataFrame:
    """Return the spans whose sentence stays, at their places in the edited answers."""
    lefts: list[int | None] = []
    for row, start, end, text in spans.select("row", "start", "end", "text").iter_rows():
        left = _move_of((start, end), moves[row]) if row in edited else 0
        is_there = row not in edited or (left is not None and edited[row][start - left : end - left] == text)
        lefts.append(left if is_there and row not in empty else None)
    left_by = pl.Series("left_by", lefts, dtype=pl.Int64)
    moved = spans.with_columns(left_by).filter(pl.col("left_by").is_not_null())
    return moved.with_columns(pl.col("start", "end") - pl.col("left_by")).drop("left_by")


def _move_of(span: Place, moves: Mapping[Place, int]) -> int | None:
    """Return how far the sentence around a span moves to the left; None if it is cut."""
    return next((left for (start, end), left in moves.items() if start <= span[0] and span[1] <= end), None)


def moved_entries(entries: Sequence[object], answer: str, rest: str, moves: Mapping[Place, int]) -> list[object]:
    """Return the entries of a user's own column of spans (`spans/column.py`) that are left, at their new places.

    `answer` and `rest`: the answer before and after the cut. `moves`: as in `Cut`.
    """
    left = [_moved_entry(entry, answer, rest, moves) for entry in entries]
    return [entry for entry in left if entry is not None]


def _moved_entry(entry: object, answer: str, rest: str, moves: Mapping[Place, int]) -> object | None:
    fields = entry if isinstance(entry, Mapping) else {}
    start, end = entry if isinstance(entry, list) and len(entry) == 2 else (fields.get("start"), fields.get("end"))
    if type(start) is not int or type(end) is not int:
        text = entry if isinstance(entry, str) else fields.get("text")
        return entry if isinstance(text, str) and text in rest else None
    by = _move_of((start, end), moves)
    if by is None or rest[start - by : end - by] != answer[start:end]:
        return None
    return {**fields, "start": start - by, "end": end - by} if fields else [start - by, end - by]


def check_places(answers: Mapping[int, str], spans: pl.DataFrame, where: Path) -> None:
    """Raise InputError if a span does not stand where it says in its row's answer. `where`: the audit's folder."""
    for row, start, end, text in spans.select("row", "start", "end", "text").iter_rows():
        if row in answers and answers[row][start:end] != text:
            raise InputError(
                f"{where}/spans.parquet: row {row}: found {answers[row][start:end]!r} at characters {start} to {end} "
                f"of its answer, expected {text!r}; run the audit again"
            )


def _only_new(place: Place, spans: Sequence[tuple[int, int, bool]]) -> bool:
    inside = [new for start, end, new in spans if start < place[1] and place[0] < end]
    return bool(inside) and all(inside)
