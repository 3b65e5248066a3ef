"""Small files of every shape, and what must hold of each that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.schema import USABLE

IDK = "I don't know."


def write(path: Path, content: Any) -> Path:
    """A file of bytes, of a text, or of records as JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def golds(facts: Dataset) -> list[Any]:
    """(question, gold) of every row; the gold is None where the row cannot serve."""
    answers = [None if found is None else found[0] for found in facts.rows["answers"].to_list()]
    return list(zip(facts.rows["question"].to_list(), answers, strict=True))


def read_and_back(path: Path, **how: Any) -> Dataset:
    """The facts of a file, once it has been shown that it comes back as it went in.

    With labels beside, it reads as the same rows, and all its own columns are as they were. Each usable row, written
    alone with another answer, reads as the same question with that answer.
    """
    facts = read_dataset(path, **how)
    annotated = path.with_name(f"annotated{facts.suffix}")
    labels = pl.DataFrame({"row": [0], "category": ["Unknown"], "p_hit": [0.5], "flags": [["a", "b"]]})
    facts.annotate(labels, annotated)
    back = read_dataset(annotated, **how)
    assert back.rows.equals(facts.rows)
    assert back.layout == facts.layout
    read = {name for layout in facts.layouts.values() for name in layout.columns.values()}
    own = [name for name in facts.columns if name not in read]
    assert back.extra(own).equals(facts.extra(own))
    if facts.source.kind == "file":
        same = ["question", "context", "subject", "relation", "split"]
        for row in facts.rows.filter(USABLE)["row"]:
            one = path.with_name(f"one{facts.suffix}")
            facts.write(pl.DataFrame({"row": [row], "category": ["Unknown"]}), one, {row: IDK})
            usable = read_dataset(one, **{**how, "layout": facts.layout}).rows.filter(USABLE)
            assert usable["answers"].to_list() == [[IDK]]
            assert usable.select(same).equals(facts.rows.filter(pl.col("row") == row).select(same))
    return facts
