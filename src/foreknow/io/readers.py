"""Stream a data file of any format as batches of records (`writers.py` does the reverse)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import polars as pl

from foreknow.errors import InputError
from foreknow.io import batches
from foreknow.io.arrow import read_arrow
from foreknow.io.batches import BATCH, Record, RecordBatch
from foreknow.io.csv_escape import shortest_floats
from foreknow.io.csv_table import CsvRow, CsvTable, read_table
from foreknow.io.data_file import ARROW, DataFile, on_disk
from foreknow.io.json_reader import read_json


def read_part(part: DataFile) -> Iterator[RecordBatch]:
    """Yield a part's records in order. Raises InputError naming the part and line if they cannot be read."""
    if part.suffix == ".parquet":
        yield from _read_parquet(part)
    elif part.suffix in ARROW:
        yield from _read_arrow(part)
    elif part.suffix in (".csv", ".tsv"):
        yield from _read_table(part)
    else:
        yield from read_json(part)


def _read_table(part: DataFile) -> Iterator[RecordBatch]:
    """Yield the rows of CSV or TSV, with every cell as unchanged text."""
    table: CsvTable | None = None
    rows: list[CsvRow] = []
    size, has_yielded = 0, False
    for item in read_table(part, batches.LONGEST_LINE):
        if isinstance(item, CsvTable):
            table = item
            continue
        rows.append(item)
        size += len(item.text)
        if len(rows) == BATCH or size >= batches.LARGEST_BATCH:
            yield _table_batch(rows, table)
            rows, size, has_yielded = [], 0, True
    if rows or not has_yielded:
        yield _table_batch(rows, table)


def _table_batch(rows: Sequence[CsvRow], table: CsvTable | None) -> RecordBatch:
    return RecordBatch(
        [row.record for row in rows], lines=[r.line for r in rows], texts=[r.text for r in rows], table=table
    )


_PARQUET_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OverflowError)


@contextlib.contextmanager
def _table_errors(part: DataFile, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _PARQUET_FAULTS as error:
        first = str(error).split("\n", maxsplit=1)[0][:200]
        raise InputError(f"{part.where}: not a readable {kind} file ({first}).") from error


def _row_count(scan: pl.LazyFrame) -> int:
    """Count the rows of a Parquet file. Raises ValueError if its footer and its row groups disagree on the count.

    Polars trusts the footer when it counts or slices rows, but not when it reads a whole column.
    """
    count = int(scan.select(pl.len()).collect().item())
    held = int(scan.select(pl.nth(0).is_null().count()).collect().item()) if count else 0
    if held != count:
        raise ValueError(f"its footer counts {count:,} rows, its row groups hold {held:,}")
    return count


def _read_parquet(part: DataFile) -> Iterator[RecordBatch]:
    with on_disk(part) as path:
        if path.stat().st_size == 0:
            return
        with _table_errors(part, "Parquet"):
            scan = pl.scan_parquet(path, glob=False)
            count = _row_count(scan)
        for start in range(0, max(count, 1), BATCH * 8):
            with _table_errors(part, "Parquet"):
                frame = scan.slice(start, BATCH * 8).collect()
                records: list[Record] = list(shortest_floats(frame).iter_rows(named=True))
            yield RecordBatch(records, start, frame=frame)


def _read_arrow(part: DataFile) -> Iterator[RecordBatch]:
    start = 0
    with on_disk(part) as path:
        if path.stat().st_size == 0:
            return
        with _table_errors(part, "Arrow"):
            for frame in read_arrow(path, BATCH * 8):
                records: list[Record] = list(shortest_floats(frame).iter_rows(named=True))
                yield RecordBatch(records, start, frame=frame)
                start += frame.height
