"""Rows that lie in memory: every kind gives the rows that a file of them gives, and what no file can hold is named."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import foreknow
from builders import write_jsonl
from conftest import fact_rows
from foreknow.data.dataset import read_dataset
from foreknow.errors import InputError
from foreknow.io.in_memory import write_rows

FACTS = fact_rows()[:12]
KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: FACTS,
    "generator": lambda: (row for row in FACTS),
    "tuple": lambda: tuple(FACTS),
    "pandas": lambda: pd.DataFrame(FACTS),
    "polars": lambda: pl.DataFrame(FACTS),
    "lazy": lambda: pl.DataFrame(FACTS).lazy(),
    "arrow": lambda: pa.Table.from_pylist(FACTS),
    "batch": lambda: pa.RecordBatch.from_pylist(FACTS),
    "dataset": lambda: datasets.Dataset.from_list(FACTS),
    "selected": lambda: datasets.Dataset.from_list([*reversed(FACTS), *FACTS]).select(range(12, 24)),
    "torch": lambda: datasets.Dataset.from_list(FACTS).with_format("torch"),
    "iterable": lambda: datasets.Dataset.from_list(FACTS).to_iterable_dataset(num_shards=2),
}


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_memory_are_read_as_the_file_of_them(kind: str, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    file = write_rows(KINDS[kind](), tmp_path / "rows")
    ours = read_dataset(file.path)
    theirs = read_dataset(write_jsonl(tmp_path / "facts.jsonl", FACTS))
    assert ours.rows.equals(theirs.rows)
    assert ours.digest == theirs.digest
    assert "in memory" in file.label


@pytest.mark.parametrize("kind", ["list", "pandas", "polars", "dataset"])
def test_a_check_of_rows_in_memory(kind: str) -> None:
    checked = foreknow.check(KINDS[kind]())
    assert checked.summary["rows"] == 12
    assert "12 rows" in repr(checked)
    assert "12 usable; nothing found" in checked._repr_html_()
    assert "<td" in foreknow.check([FACTS[0], FACTS[0]])._repr_html_()


@pytest.mark.parametrize("iterable", [False, True])
def test_the_splits_of_a_dataset_dict(iterable: bool, tmp_path: Path) -> None:
    parts = {"train": FACTS[:6], "validation": FACTS[6:9], "holdout": FACTS[9:]}
    tables = {name: datasets.Dataset.from_list([{"question": r["question"], "answer": r["answer"]} for r in rows])
              for name, rows in parts.items()}  # fmt: skip
    data: Any = datasets.DatasetDict(tables)
    if iterable:
        data = datasets.IterableDatasetDict({name: table.to_iterable_dataset() for name, table in tables.items()})
    rows = read_dataset(write_rows(data, tmp_path).path).rows
    splits = dict(rows.group_by("split").len().iter_rows())
    assert splits == {"train": 6, "dev": 3, "holdout": 3}


def test_missing_values_of_every_kind_are_null(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": "b", "x": value} for value in (math.nan, None, pd.NA, pd.NaT, np.nan, float("inf"))
    ]
    file = write_rows(rows, tmp_path)
    assert [json.loads(line)["x"] for line in file.path.read_text().splitlines()] == [None] * 6
    frame = pd.DataFrame({"question": ["a?", "b?"], "answer": ["b", None], "year": [1912, None]})
    read = read_dataset(write_rows(frame, tmp_path).path).rows
    assert read["answers"].to_list() == [["b"], None]


def test_values_of_other_libraries_become_plain_ones(tmp_path: Path) -> None:
    row = {
        "question": np.str_("a?"), "answer": np.int64(7), "n": np.array([1.5, 2.0]), "when": datetime.date(2024, 1, 2),
        "inner": {"list": (1, np.bool_(True))}, 3: "number",
    }  # fmt: skip
    (line,) = write_rows([row], tmp_path).path.read_text().splitlines()
    assert json.loads(line) == {
        "question": "a?", "answer": 7, "n": [1.5, 2.0], "when": "2024-01-02", "inner": {"list": [1, True]},
        "3": "number",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "found no rows in a list"),
        (pl.DataFrame(schema={"question": pl.String}), "found no rows"),
        ([{"question": "a?"}, "b"], "row 1: found a str, expected a dictionary"),
        (["a.jsonl", "b.jsonl"], "give several files as a folder"),
        ([{"question": "a?", "image": object()}], "row 0: key 'image': found a object, expected a text"),
        ([{"question": "\ud800"}], "row 0: holds half of a character"),
        ({"question": ["a?"], "answer": ["b"]}, "for columns give polars.DataFrame(data)"),
        ({"question": "a?", "answer": "b"}, "key 'question': found a str, expected a table for each split"),
        ({"../up": FACTS}, "found a split named '../up'"),
        ({}, "found no split"),
        (pd.DataFrame([[1, 2]]), "found a column named 0"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "found two columns named 'a'"),
        (3.5, "found float 3.5, expected a path, a list of dictionaries"),
        (b"bytes", "found bytes b'bytes', expected a path"),
        (object(), "found a object, expected a path"),
    ],
)
def test_what_no_file_can_hold_is_named(value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        write_rows(value, tmp_path, "data")
    assert words in str(caught.value)
    assert str(caught.value).startswith("data")
    assert len(str(caught.value)) < 300


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreknow.check(FACTS)
    with pytest.raises(InputError):
        foreknow.check([{"a": 1}])
    assert list(tmp_path.iterdir()) == []
