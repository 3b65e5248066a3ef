"""Labels by row and labels by record: a record of a chat has as many rows as answers. Pure.

A file has one line a record. Where every record has one row, a label is a value; where some record has several, every
label is a list, and the column `labelled_turns` says of which turns the lists speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from foreknow.data.layouts.rows import TURNS, at_turn, labelled_turns

PREFIX = "foreknow_"
"""What stands before a label's name where the input has a column of that name."""


def free_names(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Names for new columns, none of which the input has."""
    return {name: _free(name, taken) for name in names}


def by_record(labels: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """The labels in the order of the records, a line each: values, or lists and `labelled_turns` (without `row`).

    `labels`: row (each at most once) and the new columns. `places`: record and turn of every row, in order.
    """
    floats = pl.selectors.float().fill_nan(None)  # NaN is not JSON
    every = places.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    added = every.join(labels, on="row", how="left", validate="1:1", maintain_order="left").with_columns(floats)
    if labels.width == 1:
        return places.unique("record", maintain_order=True).drop("record", "turn")
    if not has_several_rows(places):
        return added.drop("row", "record", "turn")
    return added.rename({"turn": TURNS}).drop("row").group_by("record", maintain_order=True).all().drop("record")


def has_several_rows(places: pl.DataFrame) -> bool:
    """Whether some record has more than one row."""
    return places.height > 0 and places["record"].item(-1) < places.height - 1


def values_of(record: Mapping[str, object], name: str, turns: Sequence[int | None], last: bool) -> list[object]:
    """A column's value for each row of a record: a list beside `labelled_turns` by turn, any other value as it is.

    `turns`: the turn of every row. `last`: a value that is no such list is that of the last row alone, as where only
    last answers were labelled; else it is every row's.
    """
    value = record.get(name)
    prefix = PREFIX * ((len(name) - len(name.replace(PREFIX, ""))) // len(PREFIX))
    columns = (f"{prefix}{TURNS}", TURNS)
    places = next(
        (turn_places for column in columns if (turn_places := labelled_turns(record, column)) is not None), None
    )
    listed = isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("["))
    if places is not None and (listed or value is None):
        return [None if turn is None else at_turn(value, places, turn) for turn in turns]
    return [value if not last or at == len(turns) - 1 else None for at in range(len(turns))]


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"{PREFIX}{name}"
    return name
