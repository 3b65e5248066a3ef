"""Split the rows of a study into sets, and select the relations that it can learn from. Pure.

No question is in two sets, and each set has at most the number of rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from foreknow.data.schema import GOLD, USABLE, majority_floor, sampling_hash, take
from foreknow.errors import InputError
from foreknow.stages.study.settings import SETS

SHARES: Final = (("test", 20), ("dev", 10))
"""How many of 100 rows go to test and to dev where the file has no splits. The others go to train."""
DATA: Final[dict[str, pl.DataType]] = {
    "question": pl.String(),
    "answers": pl.List(pl.String()),
    "subject": pl.String(),
    "relation": pl.String(),
    "split": pl.String(),
}
"""The columns of a study's `data.jsonl`; rows of the set `ood` have the split `test_ood`. Rows that bring
fact spans of their own have the column `spans` too (`rows.ROWS`)."""
SPLITS: Final = {"train": "train", "dev": "dev", "test": "test", "ood": "test_ood"}
"""The split of the rows of each set."""


def study_rows(rows: pl.DataFrame, ood: Sequence[str], most: Mapping[str, int], seed: int) -> pl.DataFrame:
    """Return the rows that a study works on (`DATA`), from an input's rows (`rows.ROWS`).

    Relations in `ood` give only their test rows, or all rows where none is marked test. A question that is in
    several sets stays in the first of test, ood, dev, train. `most` gives the maximum number of rows of each set; they
    are spread over the relations.

    Raises InputError where a set would be empty.
    """
    missing = sorted(set(ood) - set(rows["group"].drop_nulls()))
    if missing:
        raise InputError(f"ood: found no rows of relation {missing[0]!r}; relations are {_some(rows['group'])}")
    usable = rows.filter(USABLE)
    placed = usable.with_columns(set=_sets(usable, seed))
    held_out = pl.col("group").is_in(list(ood))
    has_test = (pl.col("set") == "test").any().over("group")
    in_ood = held_out & (~has_test | (pl.col("set") == "test"))
    placed = placed.with_columns(set=pl.when(in_ood).then(pl.lit("ood")).otherwise("set"))
    placed = placed.filter(~held_out | (pl.col("set") == "ood"))
    order = {"test": 0, "ood": 1, "dev": 2, "train": 3}
    rank = pl.col("set").replace_strict(order, return_dtype=pl.Int64)
    one = placed.with_columns(rank=rank).sort("rank", "row").unique("question", keep="first", maintain_order=True)
    parts = []
    for name in SETS:
        part = one.filter(pl.col("set") == name).sort("row")
        if part.is_empty() and name != "ood":
            raise InputError(f"no {name} row to use: found {_some(placed['set'])}; mark rows by a column split")
        parts.append(take(part, most[name], seed).sort("row") if name in most and part.height else part)
    chosen = pl.concat(parts).sort("row")
    own = ["spans"] if chosen["spans"].count() else []
    return chosen.select("question", "answers", "subject", *own, relation="group", split=pl.col("set").replace(SPLITS))


def left_out_text(rows: pl.DataFrame, used: int) -> str | None:
    """Say how many of an input's rows (`rows.ROWS`) a study works on, and why not on the others; None if on all.

    `used`: the number of rows that `study_rows` returned for them.
    """
    usable = rows.filter(USABLE)
    different = usable["question"].n_unique()
    reasons = {
        "with the question of another row": usable.height - different,
        "without a question or an answer": rows.height - usable.height,
        "not needed (settings rows and ood)": different - used,
    }
    parts = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
    return f"{used:,} of {rows.height:,} rows are used; left out: {', '.join(parts)}" if parts else None


def _sets(rows: pl.DataFrame, seed: int) -> pl.Series:
    """Return each row's set: that of its split, or, where no row has a split, one chosen by a hash of its text."""
    splits = rows["split"]
    if splits.null_count() < rows.height:
        return splits.fill_null("train").replace(dict.fromkeys(("test_ood", "ood_test"), "ood")).alias("set")
    found = []
    for texts in rows.select("question", GOLD).iter_rows():
        place, name = sampling_hash(seed, "split", *texts) % 100, "train"
        for other, share in SHARES:
            if place < share:
                name = other
                break
            place -= share
        found.append(name)
    return pl.Series("set", found, dtype=pl.String)


def learnable(audited: pl.DataFrame, above_floor: float | None) -> tuple[pl.DataFrame, list[str]]:
    """Compare each relation's rows known by greedy answers with its most frequent gold.

    Returns all relations with the comparison, and the names of those that pass.

    `audited`: an audit's rows. Columns: relation, rows, greedy (mean share of exemplar sets answered right
    greedily), known_by_greedy (share of rows that are right in at least one: HighlyKnown and MaybeKnown), floor,
    above (known_by_greedy - floor), used. A relation says little about knowledge if always giving one of its answers
    scores as well.
    """
    rows = audited.filter(pl.col("category").is_not_null())
    floors = majority_floor(rows.select("group", "question", answers=pl.concat_list("answer"))).select("group", "floor")
    found = (
        rows.group_by("group")
        .agg(
            rows=pl.len().cast(pl.Int64),
            greedy=pl.col("p_greedy").mean(),
            known_by_greedy=(pl.col("p_greedy") > 0).mean(),
        )
        .join(floors, on="group")
        .with_columns(above=pl.col("known_by_greedy") - pl.col("floor"))
        .with_columns(used=pl.lit(True) if above_floor is None else pl.col("above") >= above_floor)
        .sort("group")
        .rename({"group": "relation"})
    )
    return found, found.filter("used")["relation"].to_list()


def _some(names: pl.Series, most: int = 12) -> str:
    listed = sorted(set(names.drop_nulls()))
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
