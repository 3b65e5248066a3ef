"""Batches of records: some thousands of a data file's records, with the data that is needed to write them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from foreknow.io.csv_table import CsvTable
from foreknow.io.data_file import DataFile

Record = Mapping[str, object]
BATCH = 8192
LARGEST_BATCH = 2**25
"""A batch ends early once the texts of its records have this many characters."""
LONGEST_LINE = 2**25
"""A longer line, or cell of CSV, is an error: parsed, it can take thirty times its size in memory."""
LONGEST_ARRAY = 2**30
"""A larger JSON array is an error: it is read as a whole, and a few compressed KiB can unpack to it."""


class RecordBatch(NamedTuple):
    """Records of a part, with what writing them back needs.

    `first`: the first one's place in the part. `lines`: the 1-based line each begins at (empty for Parquet and Arrow).
    `texts`: JSON objects, or rows of the `table`, as they stand. `frame`: Parquet or Arrow rows as they are. `gaps`: of
    JSON that wraps its rows, the text before each, and `tail` the text after the last. `around`: the records have
    fields from around them, which their texts lack. `json_table`: of a JSON table, what writes it with columns added.
    """

    records: list[Record]
    first: int = 0
    lines: Sequence[int] = ()
    texts: Sequence[str] = ()
    frame: pl.DataFrame | None = None
    table: CsvTable | None = None
    gaps: Sequence[str] = ()
    tail: str = ""
    around: bool = False
    json_table: Callable[[Sequence[Record]], str] | None = None
    note: str = ""
    """A note for the user on what the file is, if it is unusual."""


def where(part: DataFile, batch: RecordBatch, at: int) -> str:
    """The place of a record: `file:line` in a format with lines, else `file: row N`, counted from 0 in the file."""
    return f"{part.where}:{batch.lines[at]}" if batch.lines else f"{part.where}: row {batch.first + at}"
