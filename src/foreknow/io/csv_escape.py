"""Writes CSV that a spreadsheet shows and does not compute, and reads it again. Pure.

A cell that a spreadsheet would take for a formula gets an apostrophe before it, which `table_of` takes off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import polars as pl

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""The first characters of cells that a spreadsheet may compute."""


def number_of(value: object) -> float | None:
    """A number, or a text that spells one, as a float; None for anything else, and for infinity and NaN."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shortest_floats(frame: pl.DataFrame) -> pl.DataFrame:
    """Convert 32-bit floats, also in lists, to the doubles with the same digits: 0.1, not 0.10000000149011612."""
    for name, dtype in frame.schema.items():
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        if inner == pl.Float32:
            listed = (pl.List(pl.String), pl.List(pl.Float64)) if inner is not dtype else (pl.String, pl.Float64)
            frame = frame.with_columns(pl.col(name).cast(listed[0]).cast(listed[1]))
    return frame


def escape_formula(value: object) -> object:
    """The value with an apostrophe before it if a spreadsheet would compute it; numbers do not change."""
    risky = isinstance(value, str) and value.lstrip("'")[:1] in FORMULA and number_of(value) is None
    return f"'{value}" if risky else value


def csv_of(frame: pl.DataFrame) -> str:
    """The table as CSV text that no spreadsheet computes."""
    return _map_text_columns(frame, escape_formula).write_csv()


def table_of(text: str, *names: str) -> pl.DataFrame:
    """Read the CSV text of `csv_of`; the columns `names` are read as text even if all their cells are numbers."""
    return _map_text_columns(
        pl.read_csv(text.encode(), schema_overrides=dict.fromkeys(names, pl.String)), _unescape_formula
    )


def _unescape_formula(value: object) -> object:
    inner = value[1:] if isinstance(value, str) and value[:1] == "'" else None
    return value if inner is None or escape_formula(inner) == inner else inner


def _map_text_columns(frame: pl.DataFrame, change: Callable[[object], object]) -> pl.DataFrame:
    text = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(
        pl.Series(name, [change(value) for value in frame[name]], dtype=pl.String) for name in text
    )
