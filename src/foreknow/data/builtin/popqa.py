"""PopQA (Mallen et al. 2023): questions on entities from famous to obscure, with page views as popularity."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.errors import InputError
from foreknow.io.batches import where
from foreknow.io.json_text import loads
from foreknow.io.readers import read_part
from foreknow.io.sources import source_of

ROWS: Final[dict[str, pl.DataType]] = {
    "question": pl.String(),
    "answer": pl.String(),
    "answers": pl.List(pl.String()),
    "subject": pl.String(),
    "relation": pl.String(),
    "popularity": pl.Int64(),  # page views of the subject's article in a month
    "id": pl.Int64(),
}
_COLUMNS = ("id", "subj", "prop", "obj", "s_pop", "question", "possible_answers")


class PopQATable(NamedTuple):
    """The rows (`ROWS`), in the published order, and a hash of the file."""

    rows: pl.DataFrame
    content: str


def read_popqa(name: str) -> PopQATable:
    """Read the published test.tsv, or the same columns in another format: the rows and a hash of the file.

    The gold is `obj`; every text of `possible_answers` is accepted too. `name` is what `sources.source_of`
    takes. Raises InputError naming file and line.
    """
    parts = source_of(name).parts
    if len(parts) != 1:
        raise InputError(f"{name}: found {len(parts)} data files, expected PopQA's test.tsv. Name that file.")
    content = hashlib.sha256()
    with parts[0].open() as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    rows: list[dict[str, Any]] = []
    for batch in read_part(parts[0]):
        for at, record in enumerate(batch.records):
            try:
                rows.append(_row(record))
            except ValueError as error:
                raise InputError(f"{where(parts[0], batch, at)}: {error}") from None
    if not rows:
        raise InputError(f"{name} is empty: found no rows, expected at least one.")
    return PopQATable(pl.DataFrame(rows, schema=ROWS), f"sha256:{content.hexdigest()}")


def _row(record: Mapping[str, object]) -> dict[str, Any]:
    """One row; ValueError says what is wrong with it."""
    missing = [column for column in _COLUMNS if column not in record]
    if missing:
        raise ValueError(f"there is no column {', '.join(missing)}; expected PopQA's {', '.join(_COLUMNS)}.")
    texts = {name: _text(record[name], name) for name in ("question", "obj", "subj", "prop")}
    listed = record["possible_answers"]
    with contextlib.suppress(ValueError):
        listed = loads(listed) if isinstance(listed, str) else listed
    if not isinstance(listed, list) or not all(isinstance(answer, str) for answer in listed):
        raise ValueError(f"possible_answers: found {str(listed)[:60]!r}, expected a JSON list of texts.")
    accepted = [texts["obj"], *(_text(answer, "possible_answers") for answer in listed if answer.strip())]
    return {
        "question": texts["question"],
        "answer": texts["obj"],
        "answers": list(dict.fromkeys(accepted)),
        "subject": texts["subj"],
        "relation": texts["prop"],
        "popularity": _whole(record["s_pop"], "s_pop"),
        "id": _whole(record["id"], "id"),
    }


def _text(value: object, name: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{name}: found {json.dumps(value, default=str)[:60]}, expected text.")
    return text


def _whole(value: object, name: str) -> int:
    text = str(value).strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{name}: found {text[:60]!r}, expected a whole number.")
    return int(text)
