"""Draws the sets of a study of remedies from an audit: what is taught, watched and replayed. Pure.

new      Unknown rows, which are taught
known    HighlyKnown rows of the same relations, which are watched: never trained on, never replayed
other    HighlyKnown rows of relations of which no row is trained on or replayed
replay   the remaining HighlyKnown rows, which recipes may replay
hold     the rows of replay and those of the other categories that are in no set: recipes may hold the model there
dev      a few of them that are not replayed, because tune needs such a set
reworded the new facts asked in other words: rows of the same subject, relation and gold

A fact is in one set only, in whatever words, but for those of replay, which are in hold too, and those of new, which
are in reworded. Rows are of one fact if they have the same subject, relation and gold; without a subject, the same
question.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.data.schema import GOLD, sampling_hash
from foreknow.errors import InputError

FEWEST: Final = 20
"""A study needs at least this many rows of each of new, known and replay."""
DEV: Final = 40
"""How many HighlyKnown rows are kept for dev at most; a tenth of them if that is fewer."""
FACT: Final = ("question", "answers", "subject", "relation")
COLUMNS: Final = (*FACT, "category")


def study_sets(audited: pl.DataFrame, ood: tuple[str, ...], facts: int, held_out: int) -> dict[str, pl.DataFrame]:
    """Return the sets by name (`COLUMNS`); `other` and `reworded` only where they have rows.

    `audited`: an audit's rows. `facts`: the most rows of new. `held_out`: the most rows of known, and of other. Which
    rows are drawn depends on their texts alone. Raises InputError where too few rows are left.
    """
    missing = sorted(set(ood) - set(audited["group"].drop_nulls()))
    if missing:
        raise InputError(f"--ood: found no rows of relation {missing[0]!r}")
    alone = pl.col("earlier_turns").is_null() & ~pl.col("flags").fill_null([]).list.contains("context")
    usable = audited.filter(pl.col("category").is_not_null() & alone).unique("question", keep="first")
    shuffled = _shuffled(usable.with_columns(relation=pl.col("group")))
    inside = shuffled.filter(~pl.col("group").is_in(list(ood)))
    taught, reworded = _one_wording(inside.filter(pl.col("category") == UNKNOWN), facts)
    highly_known = pl.col("category") == HIGHLY_KNOWN
    known, _ = _one_wording(_without_facts(inside.filter(highly_known), taught), inside.height)
    dev = min(DEV, known.height // 10)
    watched = min(held_out, (known.height - dev) // 2)
    sets = {
        "new": taught,
        "dev": known.head(dev),
        "known": known.slice(dev, watched),
        "replay": known.slice(dev + watched),
        "other": shuffled.filter(pl.col("group").is_in(list(ood)) & highly_known).head(held_out),
        "reworded": reworded,
    }
    used = pl.concat([rows.select(*FACT) for rows in sets.values()])
    sets["hold"] = _shuffled(pl.concat([sets["replay"], _without_facts(inside.filter(~highly_known), used)]))
    for name in ("new", "known", "replay"):
        if sets[name].height < FEWEST:
            what = "Unknown" if name == "new" else "HighlyKnown"
            raise InputError(
                f"a study of remedies needs {FEWEST} rows for the set {name!r}; the audit leaves {sets[name].height} "
                f"({what} rows, without those of --ood). Give it more rows"
            )
    return {name: rows.select(*COLUMNS) for name, rows in sets.items() if rows.height}


def _shuffled(rows: pl.DataFrame) -> pl.DataFrame:
    texts = rows.select("question", GOLD.alias("gold")).iter_rows()
    key = pl.Series("key", [sampling_hash(0, "remedies", question, gold) for question, gold in texts])
    return rows.with_columns(key).sort("key").drop("key")


def _fact() -> pl.Expr:
    own = pl.when(pl.col("subject").is_null()).then("question").otherwise("subject")
    return pl.struct(own.alias("s"), "relation", GOLD.alias("gold")).hash()


def _without_facts(rows: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    facts = others.select(fact=_fact()).unique()
    return rows.with_columns(fact=_fact()).join(facts, on="fact", how="anti", maintain_order="left").drop("fact")


def _one_wording(rows: pl.DataFrame, most: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return at most `most` rows, one of each fact, and the other wordings of the same facts.

    A question with two golds is left out.
    """
    keyed = rows.with_columns(fact=_fact())
    first = keyed.unique("fact", keep="first", maintain_order=True).head(most)
    rest = keyed.join(first.select("fact", "question"), on=["fact", "question"], how="anti")
    return first.drop("fact"), rest.join(first.select("fact"), on="fact", how="semi").drop("fact")


def matching_wordings(rows: pl.DataFrame, new: pl.DataFrame, file: str) -> pl.DataFrame:
    """Return the rows of a file (`rows.ROWS`) that ask for facts of `new` in other words (`COLUMNS`).

    A row matches by subject and gold. Raises InputError if none does.
    """
    keyed = new.select("subject", gold=GOLD).filter(pl.col("subject").is_not_null()).unique()
    own = rows.with_columns(gold=GOLD, category=pl.lit(UNKNOWN), relation=pl.col("group"))
    same = own.join(keyed, on=["subject", "gold"], how="semi")
    other = same.join(new.select("question"), on="question", how="anti").unique("question", maintain_order=True)
    if other.is_empty():
        raise InputError(
            f"--reworded {file}: no row has the subject and the gold of a row that is taught, and another question; it "
            "needs a column subject, as the data has"
        )
    return other.select(*COLUMNS)
