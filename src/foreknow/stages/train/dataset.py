"""Reads the sets of rows to train on and to watch, with category, weight and loss mask, and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.schema import GOLD, ROWS, SAME_GOLD, SAME_QUESTION, USABLE, earlier_turns
from foreknow.errors import InputError, ModelError
from foreknow.io.json_text import loads
from foreknow.stages.mix.sampling import manifest_path, read_manifest
from foreknow.stages.mix.span_edits import LOSS_EXCLUDE, LOSS_EXCLUDE_TYPE

SET: Final[dict[str, pl.DataType]] = {
    **ROWS,
    "category": pl.String(),
    "weight": pl.Float64(),
    LOSS_EXCLUDE: LOSS_EXCLUDE_TYPE,
}
"""The columns of a set's usable rows. `category` is null if it is not known; `weight` is 1 if none is set.
`loss_exclude` lists the characters of the gold, as [start, end], that are left out of the loss; null if there are none.
"""


class LabelledSplit(NamedTuple):
    """Holds a set of rows (`SET`) and its `name`: train, dev, or the name of a test set.

    `left_out`: the number of the file's other rows, by reason. `digest`: that of the file. `categories`: words for
    where the categories come from; empty if there are none.
    """

    name: str
    file: str
    rows: pl.DataFrame
    left_out: Mapping[str, int]
    digest: str
    categories: str


def read_set(name: str, file: str, audited: pl.DataFrame | None, audit_name: str = "", **reading: Any) -> LabelledSplit:
    """Read a file's usable rows with their categories, weights and the characters left out of the loss (`SET`).

    Raises InputError.

    A row takes its category from the audited row (`rows.parquet`) that has the same question, gold and earlier turns.
    If there is none, it takes the category of the file's own column. `reading`: arguments passed on to `read_dataset`.
    """
    facts = read_dataset(file, **reading)
    labels = _category_columns(facts)
    masks = _columns_named(facts, LOSS_EXCLUDE)
    extra = extra_columns(facts, [*labels, "weight", *masks], last=[*labels, *masks])
    rows = facts.rows.join(extra, on="row", how="left", maintain_order="left")
    categories, reason = _categories(rows, _category_columns(facts), audited, audit_name)
    usable = rows.with_columns(categories).filter(USABLE)
    usable = usable.with_columns(_weights(usable, file), _exclusions(usable, masks, file)).select(*SET)
    return LabelledSplit(name, file, usable, facts.left_out, facts.digest, reason)


def extra_columns(facts: Dataset, names: Sequence[str], *, last: Sequence[str] = ()) -> pl.DataFrame:
    """Return the column `row` and those columns of `names` that the input has (`last`: see `Dataset.extra`)."""
    present = [name for name in dict.fromkeys(names) if name in facts.columns]
    return facts.extra(present, last=last) if present else facts.rows.select("row")


def asked_key(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the columns question and earlier_turns, by which the same row is found in another set."""
    return rows.select(SAME_QUESTION, earlier_turns(rows))


def _category_columns(facts: Dataset) -> list[str]:
    """Return the names of the columns that may hold our labels; the one with the prefix `foreknow_` comes first."""
    return _columns_named(facts, "category")


def _columns_named(facts: Dataset, name: str) -> list[str]:
    """Return the columns of this name, with the prefix `foreknow_` or without; the one with the prefix comes first."""
    return sorted((c for c in facts.columns if c.removeprefix("foreknow_") == name), key=lambda c: (-len(c), c))


def _categories(
    rows: pl.DataFrame, columns: Sequence[str], audited: pl.DataFrame | None, audit_name: str
) -> tuple[pl.Series, str]:
    own, column = _own_categories(rows, columns)
    if audited is None:
        return own, column
    keys = ["question", "earlier_turns", "gold"]
    labels = (
        audited.filter(pl.col("category").is_not_null())
        .select(SAME_QUESTION, "earlier_turns", gold=SAME_GOLD, category="category")
        .unique(keys, keep="first", maintain_order=True)
    )
    keys_of_rows = rows.select(SAME_QUESTION, earlier_turns(rows), gold=SAME_GOLD)
    audit_categories = keys_of_rows.join(labels, on=keys, how="left", maintain_order="left", nulls_equal=True)[
        "category"
    ]
    count, more = audit_categories.count(), (own.is_not_null() & audit_categories.is_null()).sum()
    sources = [f"{audit_name}, which labels {count:,} of its {rows.height:,} rows"] if count else []
    sources += [f"{column} for {more:,}" if count else column] if more else []
    return audit_categories.fill_null(own), ", ".join(sources)


def _own_categories(rows: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.Series, str]:
    """Return the labels of the first column that holds any, and words that name it; nulls and "" if none does."""
    for column in columns:
        text = rows[column].cast(pl.String)
        known = text.is_in(CATEGORIES)
        if known.any():
            return pl.select(pl.when(known).then(text).alias("category")).to_series(), f"the column {column!r}"
    return pl.Series("category", [None] * rows.height, dtype=pl.String), ""


def _weights(rows: pl.DataFrame, file: str) -> pl.Series:
    if "weight" not in rows.columns:
        return pl.Series("weight", [1.0] * rows.height, dtype=pl.Float64)
    weight = rows["weight"].cast(pl.Float64, strict=False)
    bad = weight.is_null() | ~weight.is_finite().fill_null(False) | (weight < 0).fill_null(False)
    if bad.any():
        at = int(bad.arg_max() or 0)
        raise InputError(f"{file}: row {rows['row'][at]}: weight {rows['weight'][at]!r}, expected a number from 0 on")
    if not (weight > 0).any():
        raise InputError(f"{file}: every row's weight is 0; nothing would be learnt")
    return weight.alias("weight")


def _exclusions(rows: pl.DataFrame, columns: Sequence[str], file: str) -> pl.Series:
    """Return the characters of each row's gold that are left out of the loss; null for none. Raises InputError."""
    values: list[list[list[int]] | None] = [None] * rows.height
    present = [name for name in columns if name in rows.columns][:1]
    for name in present:
        table = rows.select("row", GOLD, pl.col(name).cast(pl.String)).iter_rows()
        values = [_ranges(text, len(gold), f"{file}: row {row}: {name}") for row, gold, text in table]
    return pl.Series(LOSS_EXCLUDE, values, dtype=LOSS_EXCLUDE_TYPE)


def _ranges(text: str | None, length: int, where: str) -> list[list[int]] | None:
    """Read a cell of `loss_exclude`. `length`: the number of characters of the gold. Raises InputError."""
    if text is None or not text.strip():
        return None
    try:
        ranges = loads(text)
        fine = all(
            len(one) == 2 and all(type(n) is int for n in one) and 0 <= one[0] <= one[1] <= length for one in ranges
        )
    except (ValueError, TypeError):
        fine = False
    if not fine:
        raise InputError(
            f"{where}: found {text[:80]!r}, expected a list of [start, end] within the {length:,} characters of its "
            "answer, such as [[0, 5]]"
        )
    return [list(one) for one in ranges] or None


def check_overlap(train: LabelledSplit, others: Sequence[LabelledSplit], allowed: bool) -> str | None:
    """Check that no question to train on is in another set too.

    If some are, return a line about them if `allowed`, else raise InputError. If none is, return None.
    """
    overlaps, key = [], ["question", "earlier_turns"]
    train_rows = train.rows.with_columns(asked_key(train.rows))
    for other in others:
        shared_rows = train_rows.join(asked_key(other.rows), on=key, how="semi", nulls_equal=True)
        if not shared_rows.is_empty():
            row, question = shared_rows.select("row", "question").row(0)
            count = shared_rows.select(key).n_unique()
            overlaps.append(
                f"{shared_rows.height:,} ({count:,} questions) in {other.name}, first row {row}: {question!r}"
            )
    if not overlaps:
        return None
    text = f"{train.file}: rows to train on stand in other sets: {'; '.join(overlaps)}"
    if not allowed:
        raise InputError(f"{text}.\nLeave them out of one of the files, or go on with --allow-overlap.")
    return text


def ceiling(rows: pl.DataFrame) -> tuple[float, int]:
    """Return the largest share of rows that can be fitted, and how many questions have more than one gold.

    If the same question after the same turns has different golds, the model can answer it with only one of them
    (design, section 8).
    """
    counts = rows.group_by(asked=pl.struct(SAME_QUESTION, "context").hash(), gold=SAME_GOLD.str.strip_chars()).len()
    best = counts.group_by("asked").agg(most=pl.col("len").max(), golds=pl.len())
    return float(best["most"].sum()) / max(rows.height, 1), int((best["golds"] > 1).sum())


def check_same_model(
    file: Path | str, made_with: Mapping[str, Any] | None, fingerprint: str, forced: bool
) -> str | None:
    """Raise ModelError if an audit or a mix was made with another model; if `forced`, return a line that says so.

    `made_with`: the model that the audit or mix was made with. `fingerprint`: that of the model to tune.
    """
    known = made_with or {}
    if known.get("fingerprint") in (None, fingerprint):
        return None
    text = f"{file}: made with {known.get('name')} ({known['fingerprint'][:19]}...), not with the model to be tuned "
    text += f"({fingerprint[:19]}...): its categories are another model's"
    if forced:
        return text
    raise ModelError(f"{text}. Audit this model, or go on with --force.")


def mix_model(file: str) -> dict[str, Any] | None:
    """Return the model that a file was mixed for, or None if `foreknow mix` did not write the file."""
    if not manifest_path(Path(file)).is_file():
        return None
    model = read_manifest(Path(file)).get("model")
    return model if isinstance(model, dict) else None


def check_turns(train: LabelledSplit, turns: str) -> None:
    """Raise InputError if a mix of last answers is read with all answers, because the others have no category."""
    path = Path(train.file)
    if turns == "last" or not manifest_path(path).is_file() or read_manifest(path).get("turns") != "last":
        return
    if train.rows["record"].n_unique() < train.rows.height:
        raise InputError(
            f"{train.file}: mixed from an audit with --turns last, but read with --turns all: the earlier answers of "
            "its chats were never labelled. Give --turns last, or audit and mix with --turns all"
        )
