"""Selects the rows that may be watched or replayed: of an audit, or of a file, and in no set. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from foreknow.categories import HIGHLY_KNOWN
from foreknow.data.schema import GOLD, USABLE
from foreknow.io.run_dir import fingerprint
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import LabelledSplit

ROWS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "question": pl.String(),
    "answers": pl.List(pl.String()),
    "subject": pl.String(),
    "relation": pl.String(),
    "source": pl.String(),
    "before": pl.Boolean(),
    "shots": pl.Int64(),
}
"""The contract of `canaries.parquet`, the rows that are watched.

`before`: whether the answer was right before training. `shots`: how many exemplars the rows are asked behind, before
training and after every epoch; null until that is decided. `source`: where the row is from.
`outcomes.parquet` has their outcomes, under the set "canaries".
"""


@dataclass(frozen=True)
class Candidates:
    """Holds rows that may be watched or replayed (`ROWS`; `before` null if not known), and words for their source."""

    rows: pl.DataFrame
    source: str


def audit_candidates(audited: pl.DataFrame, source: str, categories: Sequence[str] = (HIGHLY_KNOWN,)) -> Candidates:
    """Return the rows of an audit (`rows.parquet`) with one of `categories` that no earlier turn belongs to.

    Their order is fixed.

    The audit asked them behind exemplars; whether they are right without is measured before training.
    """
    alone = pl.col("earlier_turns").is_null() & ~pl.col("flags").fill_null([]).list.contains("context")
    known = audited.filter(USABLE & pl.col("category").is_in(categories) & alone)
    known = known.unique("question", keep="first", maintain_order=True)
    shuffled = known.with_columns(key=pl.col("question").map_elements(_place, return_dtype=pl.String)).sort("key")
    rows = shuffled.select(
        *("row", "question", "answers", "subject", "relation"),
        source=pl.lit(source),
        before=pl.lit(None, pl.Boolean),
        shots=pl.lit(None, pl.Int64),
    )
    return Candidates(rows.select(*ROWS), source)


def _place(question: str) -> str:
    return fingerprint([CANARIES, question])


def file_candidates(split: LabelledSplit) -> Candidates:
    """Return the rows of a file that the user names."""
    source = f"the file {split.file}"
    rows = split.rows.select(
        *("row", "question", "answers", "subject", "relation"),
        source=pl.lit(source),
        before=pl.lit(None, pl.Boolean),
        shots=pl.lit(None, pl.Int64),
    )
    return Candidates(rows.select(*ROWS), source)


def without_questions(rows: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Leave out the rows whose question stands in one of the sets, capitals and punctuation aside."""
    asked = {_words(question) for frame in sets.values() for question in frame["question"]}
    return rows.filter(pl.Series([_words(question) not in asked for question in rows["question"]], dtype=pl.Boolean))


def without_facts(rows: pl.DataFrame, trained: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that do not ask for a fact of `trained` in other words: the same subject, and the same gold.

    Rows without a subject are all returned.
    """
    key = {"s": pl.col("subject").str.to_lowercase(), "g": GOLD.str.strip_chars()}
    facts = trained.select(**key).drop_nulls().unique()
    keyed = rows.with_columns(**key)
    return keyed.join(facts, on=["s", "g"], how="anti", maintain_order="left").drop("s", "g")


def without_subjects(rows: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Leave out the rows whose subject stands, as whole words, in a question or as a subject of one of the sets."""
    texts = [text for frame in sets.values() for name in ("question", "subject") for text in frame[name].drop_nulls()]
    whole = "|".join(_words(text) for text in texts)
    fits = [subject is None or _words(subject) not in whole for subject in rows["subject"]]
    return rows.filter(pl.Series(fits, dtype=pl.Boolean))


def _words(text: str) -> str:
    """Return the words of a text in small letters, with a blank before, between and after them."""
    words = " ".join(re.findall(r"[^\W_]+", text.casefold()))
    return f" {words} "
