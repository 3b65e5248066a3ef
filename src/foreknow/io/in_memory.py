"""Writes rows that lie in memory to files, which the readers then read as any other: one way in for all rows.

    a list of dictionaries, any iterable of them     JSON lines
    a table of pandas                                JSON lines (NaN, NaT and NA become null)
    a table of Polars                                Parquet
    a table of Arrow, DuckDB, ...                    Parquet (whatever has `__arrow_c_stream__`)
    `datasets.Dataset`                               an Arrow stream, batch by batch
    `datasets.IterableDataset`                       JSON lines, row by row
    `DatasetDict`, a mapping of names to tables      a folder with a split for each name, as `save_to_disk` writes it

No package is imported to find out what a table is: its type's own module says so.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple, Self

from foreknow.errors import InputError

EXPECTED: Final = (
    "a path, a list of dictionaries, a table of pandas, Polars or Arrow, or a Dataset, IterableDataset or DatasetDict "
    "of datasets"
)
BATCH: Final = 1000
"""Number of rows of a `datasets.Dataset` that are converted at once."""


class InMemory(str):
    """A setting that stands for something in memory: its text is what the setting holds, people are shown `label`."""

    label: str

    def __new__(cls, text: str, label: str) -> Self:  # noqa: D102
        made = super().__new__(cls, text)
        made.label = label
        return made


class RowsFile(NamedTuple):
    """A file or folder of rows that lay in memory, and what they were, such as `24 rows of a list in memory`."""

    path: Path
    label: str


def is_path(value: object) -> bool:
    """Whether a value names rows: a text or a path."""
    return isinstance(value, (str, PathLike))


def write_rows(value: Any, folder: Path, name: str = "data") -> RowsFile:
    """Write rows that lie in memory into `folder` and return the file. `name`: what messages call the argument.

    Raises InputError, which names the row and the key, for a value that no file can hold.
    """
    if isinstance(value, Mapping):
        return _write_splits(value, folder, name)
    kind, module = type(value).__name__, type(value).__module__.partition(".")[0]
    if module == "polars" and kind == "LazyFrame":
        value = value.collect()
    if module == "datasets" and hasattr(value, "with_format"):
        if kind == "Dataset":
            return RowsFile(
                _write_dataset(value, folder / "dataset.arrow"), f"a Dataset in memory ({len(value):,} rows)"
            )
        return _write_records(value.with_format(None), folder / "dataset.jsonl", name, "an IterableDataset")
    if module == "pandas" and kind == "DataFrame":
        _check_columns([*value.columns], name)
        columns = [value[column].tolist() for column in value.columns]
        records = (dict(zip(value.columns, row, strict=True)) for row in zip(*columns, strict=True))
        return _write_records(records, folder / "frame.jsonl", name, "a pandas table")
    if hasattr(value, "__arrow_c_stream__"):
        return _write_table(value, folder / "frame.parquet", name)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray)):
        return _write_records(value, folder / "rows.jsonl", name, "a list" if isinstance(value, list) else "rows")
    raise InputError(f"{name}: found {describe(value)}, expected {EXPECTED}")


def describe(value: object) -> str:
    """Return what a value is in a few words: its type, and its beginning where that is short."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{kind} {value!r:.40}" if isinstance(value, (int, float, bool, bytes)) else f"a {kind}"


def _write_records(records: Iterable[Any], path: Path, name: str, what: str) -> RowsFile:
    """Write dictionaries as JSON lines."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            if not isinstance(record, Mapping):
                hint = "; give several files as a folder, or one call for each" if is_path(record) else ""
                raise InputError(f"{name}: row {count - 1}: found {describe(record)}, expected a dictionary{hint}")
            plain = {str(key): _plain(value, f"{name}: row {count - 1}: key {key!r}") for key, value in record.items()}
            try:
                file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name}: row {count - 1}: holds half of a character (a lone surrogate, "
                    f"U+{ord(error.object[error.start]):04X}), which no file can hold; take it out"
                ) from None
    if not count:
        raise InputError(f"{name}: found no rows in {what}, expected at least one")
    return RowsFile(path, f"{what} in memory ({count:,} rows)")


def _plain(value: Any, where: str) -> Any:
    """Return a value as JSON can hold it. NaN and the missing values of pandas become null; dates become ISO texts.

    Raises InputError for a value that is no text, number, list or object.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner, where) for inner in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, PurePath)):
        return str(value)
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, tensors
        return _plain(value.tolist(), where)
    raise InputError(f"{where}: found {describe(value)}, expected a text, a number, a list or an object; leave it out")


def _check_columns(columns: list[Any], name: str) -> None:
    """Raise InputError for a table whose columns have no names of their own."""
    odd = next((column for column in columns if not isinstance(column, str)), None)
    if odd is not None:
        raise InputError(f"{name}: found a column named {odd!r}, expected texts; rename it (frame.columns = [...])")
    twice = next((column for at, column in enumerate(columns) if column in columns[:at]), None)
    if twice is not None:
        raise InputError(f"{name}: found two columns named {twice!r}, expected each once")


def _write_table(value: Any, path: Path, name: str) -> RowsFile:
    """Write a table that hands out Arrow data as Parquet."""
    import polars as pl

    try:
        frame = value if isinstance(value, pl.DataFrame) else pl.DataFrame(value)
        frame.write_parquet(path)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: {describe(value)} cannot be written as Parquet: {str(error).splitlines()[0][:160]}"
        ) from None
    if frame.is_empty():
        raise InputError(f"{name}: found no rows in {describe(value)}, expected at least one")
    return RowsFile(path, f"a table in memory ({frame.height:,} rows)")


def _write_dataset(dataset: Any, path: Path) -> Path:
    """Write a `datasets.Dataset` as an Arrow stream: its rows in its own order, whatever selects or shuffles them."""
    import pyarrow as pa  # `datasets` brings it

    arrow, schema = dataset.with_format("arrow"), dataset.features.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in arrow.iter(batch_size=BATCH):
            writer.write_table(batch.cast(schema))
    return path


def _write_splits(value: Mapping[Any, Any], folder: Path, name: str) -> RowsFile:
    """Write tables by name as the splits of a folder, in the form of `save_to_disk`."""
    tables = {str(split): table for split, table in value.items()}
    for split, table in tables.items():
        holds_rows = not is_path(table) and (
            isinstance(table, list) or hasattr(table, "__arrow_c_stream__") or hasattr(table, "with_format")
        )
        if not holds_rows or (isinstance(table, list) and table and not isinstance(table[0], Mapping)):
            raise InputError(
                f"{name}: key {split!r}: found {describe(table)}, expected a table for each split; for columns give "
                "polars.DataFrame(data)"
            )
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise InputError(f"{name}: found a split named {split!r}, expected letters, digits, '.', '_' and '-'")
    if not tables:
        raise InputError(f"{name}: found no split, expected at least one")
    root = folder / "splits"
    for split, table in tables.items():
        (root / split).mkdir(parents=True)
        file = write_rows(table, root / split, f"{name}[{split!r}]").path
        state = {"_data_files": [{"filename": file.name}], "_split": split}
        (root / split / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (root / "dataset_dict.json").write_text(json.dumps({"splits": [*tables]}), encoding="utf-8")
    return RowsFile(root, f"splits in memory ({', '.join(tables)})")
