"""Labels by row and labels by record: a record of a chat has as many rows as answers. Pure.

A file has one line a record. Where every record has one row, a label is a value; where some record has several, every
label is a list, and the column `labelled_turns` says of which turns the lists speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from foreknow.data.layouts.layout import Record
from foreknow.data.layouts.python_reprs import decode_list
from foreknow.data.layouts.rows import TURNS, at_turn, labelled_turns
from foreknow.io.json_text import dumps

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
    places = _turns_of(record, name)
    listed = isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("["))
    if places is not None and (listed or value is None):
        return [None if turn is None else at_turn(value, places, turn) for turn in turns]
    return [value if not last or at == len(turns) - 1 else None for at in range(len(turns))]


def with_values(record: Record, turn: int | None, values: Mapping[str, object]) -> Record:
    """The record with the labels of one of its rows replaced: in a list beside `labelled_turns` that turn's alone.

    `turn`: the turn of the row. A column that the record lacks is not added; a cell of JSON text stays one.
    """
    changed = dict(record)
    for name, value in values.items():
        if name not in record:
            continue
        old, new, places = record[name], value, _turns_of(record, name)
        if places is not None:
            each = decode_list(old)
            if not isinstance(each, list | tuple) or len(each) != len(places) or turn not in places:
                continue
            new = [value if place == turn else one for place, one in zip(places, each, strict=True)]
        changed[name] = dumps(new) if isinstance(old, str) and isinstance(new, list) else new
    return changed


def own_names(names: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """The columns of our labels in a file that has them: where the user's file had such a name, ours has a prefix."""
    return {
        name: max((column for column in columns if column.removeprefix(PREFIX * column.count(PREFIX)) == name), key=len)
        for name in names
        if name in columns
    }


def _turns_of(record: Mapping[str, object], name: str) -> list[int] | None:
    """The turns that the list in a column speaks of: those of the column `labelled_turns` with the same prefix."""
    prefix = PREFIX * ((len(name) - len(name.replace(PREFIX, ""))) // len(PREFIX))
    columns = (f"{prefix}{TURNS}", TURNS)
    return next((places for column in columns if (places := labelled_turns(record, column)) is not None), None)


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"{PREFIX}{name}"
    return name
