"""The frame of rows that every stage works on, its flags, and draws from it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from os.path import commonprefix

import polars as pl

from foreknow.data.chat.exchanges import LEFT_OUT
from foreknow.data.values import NULL_WORDS
from foreknow.errors import ConfigError

TURN = pl.Struct({"role": pl.String(), "content": pl.String()})
FACT = pl.Struct({"question": pl.String(), "answer": pl.String()})
ROWS: dict[str, pl.DataType] = {
    "row": pl.Int64(),  # 0-based number of the row in the input
    "record": pl.Int64(),  # 0-based number of the record it is of: a chat gives a row for each answer
    "turn": pl.Int64(),  # index of the answer among the record's turns; null where the record is no chat
    "question": pl.String(),  # null where the row has none; such a row is never labelled
    "answers": pl.List(pl.String()),  # the first is the gold; every one is accepted
    "subject": pl.String(),
    "relation": pl.String(),
    "split": pl.String(),
    "group": pl.String(),  # exemplars are drawn within it
    "popularity": pl.Float64(),
    "flags": pl.List(pl.String()),  # sorted, each once
    "context": pl.List(TURN),  # the system's text and earlier turns of a chat, in order
    "facts": pl.List(FACT),  # the row's own short facts, where it brings some
    "spans": pl.String(),  # the row's own entry for fact spans, as JSON text (`spans/column.py`)
}
OUR_FLAGS = ("answer_in_subject", "conflicting", "context", "duplicate", "no_answer", "no_question", "null_word")
USABLE = pl.col("question").is_not_null() & pl.col("answers").is_not_null()
HAS_REASON = pl.col("flags").fill_null([]).list.set_intersection(pl.lit(list(LEFT_OUT))).list.len() > 0
"""Whether a flag says why the row cannot be used, other than that it lacks a question or an answer."""
GOLD = pl.col("answers").list.first()
SAME_GOLD = GOLD.str.normalize("NFC")
SAME_QUESTION = pl.col("question").str.normalize("NFC")
"""Texts as they are compared with one another: two that differ only in how Unicode spells an accent are one."""
DIGESTS: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "group": pl.String(),
    "usable": pl.Boolean(),
    "dev": pl.Boolean(),  # of the split that exemplars come from
    "asks": pl.UInt64(),  # hash of the question
    "gold": pl.UInt64(),  # hash of the gold
    "key": pl.UInt64(),  # the row's place in every draw: a hash of the seed and its texts
    "flags": pl.List(pl.String()),  # those that the row alone tells
}
"""What is kept of a row that is not kept itself: enough to draw rows, and to find repeated ones."""


def are_chats(rows: pl.DataFrame) -> bool:
    """Whether at least half of the rows of a frame `ROWS` are answers of a chat."""
    return 2 * rows["turn"].count() >= rows.height > 0


def digests(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """A line of `DIGESTS` for each row."""
    gold_and_text = rows.select(USABLE.alias("usable"), GOLD.alias("gold"), text=pl.coalesce("subject", "question"))
    inside = [usable and has_word(text, gold) for usable, gold, text in gold_and_text.iter_rows()]
    marks: dict[str, pl.Series | pl.Expr] = {
        "answer_in_subject": pl.Series(inside, dtype=pl.Boolean),
        "context": pl.col("context").list.len() > 0,
        "no_answer": pl.col("answers").is_null() & ~HAS_REASON,
        "no_question": pl.col("question").is_null() & ~HAS_REASON,
        "null_word": USABLE & GOLD.str.strip_chars().is_in(sorted(NULL_WORDS)),
    }
    ours = [pl.when(mark).then(pl.lit(flag)) for flag, mark in marks.items()]
    foreign_flags = pl.col("flags").fill_null([]).list.set_difference(pl.lit(list(OUR_FLAGS)))
    keys = [sampling_hash(seed, *texts) for texts in rows.select("question", GOLD).iter_rows()]
    return rows.select(
        "row",
        "group",
        usable=USABLE,
        dev=pl.col("split").eq_missing(pl.lit("dev")),
        asks=pl.struct(SAME_QUESTION, "context").hash(),
        gold=SAME_GOLD.hash(),
        key=pl.Series(keys, dtype=pl.UInt64),
        flags=pl.concat_list(foreign_flags, *ours).list.drop_nulls(),
    )


def flags_of(digests: pl.DataFrame) -> pl.Series:
    """Each row's flags, from the digests of all rows: sorted, each once.

    `duplicate`: question and gold of an earlier row, compared after NFC. `conflicting`: question and group of another
    row with a different gold. `answer_in_subject`: the gold, capitals aside, is a whole word of the subject, or of
    the question where there is no subject. `no_question`, `no_answer`: the row has none, and no other reason why it
    cannot be used. `context`: it is asked behind a system's text or earlier turns. `null_word`: the gold is
    a word that files also write for a missing value.
    """
    twin = pl.int_range(pl.len()).over("asks", "gold", order_by="row") > 0
    golds = pl.col("gold").n_unique().over("asks", "group", "usable")
    repeated = [pl.when("usable").then(pl.when(twin).then(pl.lit("duplicate")))]
    repeated += [pl.when("usable").then(pl.when(golds > 1).then(pl.lit("conflicting")))]
    flags = pl.concat_list("flags", *repeated).list.drop_nulls().list.unique().list.sort()
    return digests.select(flags=flags).to_series()


def flag_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with our own flags computed anew (`flags_of`); flags that others set are kept."""
    return rows.with_columns(flags=flags_of(digests(rows, 0)))


def earlier_turns(rows: pl.DataFrame) -> pl.Series:
    """What each row is asked behind, a system's text aside, as a hash in hex; null where nothing is.

    The same on every machine: with question and gold it tells which rows of two files are the same.
    """
    hashes = []
    for context in rows["context"].to_list():
        turns = [(turn["role"], turn["content"]) for turn in context or () if turn["role"] != "system"]
        text = unicodedata.normalize("NFC", json.dumps(turns, ensure_ascii=False))
        hashes.append(hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if turns else None)
    return pl.Series("earlier_turns", hashes, dtype=pl.String)


def has_flag(*flags: str) -> pl.Expr:
    """Whether a row has one of these flags."""
    return pl.any_horizontal(pl.col("flags").list.contains(flag) for flag in flags)


def add_flag(rows: pl.DataFrame, flag: str, where: pl.Series | pl.Expr) -> pl.DataFrame:
    """The rows with `flag` on those where `where` holds; flags stay sorted, each once."""
    more = pl.when(where).then(pl.col("flags").list.concat(pl.lit([flag]))).otherwise(pl.col("flags"))
    return rows.with_columns(flags=more.list.unique().list.sort())


def with_flags(rows: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """The rows with the flags that `more` (row, flags) adds to some of them."""
    added = rows.select("row").join(more, on="row", how="left", maintain_order="left")["flags"]
    flags = pl.col("flags").list.concat(added.fill_null([])).list.unique().list.sort()
    return rows.with_columns(flags=flags)


def majority_floor(rows: pl.DataFrame) -> pl.DataFrame:
    """Per group, the EM (0 to 1) of always answering its most frequent gold: a floor to print.

    Returns group, floor, majority_answer, rows (the usable ones). A row counts as hit where any of its
    accepted answers is the majority answer; ties are broken by the order of the texts. (Paper, section 2:
    11.2 % on the ENTITYQUESTIONS test set.)
    """
    usable = rows.filter(USABLE)
    majority = (
        usable.group_by("group", SAME_GOLD.alias("majority_answer"))
        .len("count")
        .sort(["group", "count", "majority_answer"], descending=[False, True, False])
        .group_by("group", maintain_order=True)
        .first()
    )
    same = pl.col("answers").list.eval(pl.element().str.normalize("NFC"))
    hit = same.list.contains(pl.col("majority_answer"))
    return (
        usable.join(majority, on="group")
        .group_by("group", "majority_answer")
        .agg(hit.mean().alias("floor"), pl.len().cast(pl.Int64).alias("rows"))
        .select("group", "floor", "majority_answer", "rows")
        .sort("group")
    )


def take(rows: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    """At most `limit` usable rows, spread over the groups by their size, in row order (`sample_rows`)."""
    return rows.filter(pl.col("row").is_in(sample_rows(digests(rows, seed), limit).implode()))


def sample_rows(digests: pl.DataFrame, limit: int) -> pl.Series:
    """The numbers of at most `limit` usable rows, spread over the groups by their size; sorted.

    Totals are exact (largest remainder). Within a group the rows with the smallest keys are drawn, so the
    draw depends neither on positions nor on the machine. Dev rows, which exemplars come from, are drawn only
    where the others do not suffice.
    """
    if limit < 1:
        raise ConfigError(f"--limit {limit}: found {limit}, expected at least 1.")
    usable = digests.filter("usable")
    first = _draw_rows(usable.filter(~pl.col("dev")), limit)
    more = _draw_rows(usable.filter("dev"), limit - first.len())
    return pl.concat([first, more]).sort()


def pool(digests: pl.DataFrame, audited: pl.Series, most: int) -> pl.Series:
    """The numbers of at most `most` rows of each group that may serve as exemplars; sorted.

    Dev rows where a group has some, else rows that are not `audited`: those with the smallest keys.
    """
    candidates = digests.filter(pl.col("usable") & (pl.col("dev") | ~pl.col("row").is_in(audited.implode())))
    has_dev = pl.col("dev").any().over("group")
    own = candidates.filter(pl.col("dev") | ~has_dev).sort("key", "row")
    return own.filter(pl.int_range(pl.len()).over("group") < most)["row"].sort()


def largest_remainder(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` split in proportion to `sizes`, exact; ties in the remainders go to the earlier key by text.

    Where `total` is at most the sum of the sizes, no share exceeds its size.
    """
    sum_of_sizes = sum(sizes.values())
    if sum_of_sizes == 0:
        return dict.fromkeys(sizes, 0)
    shares = {key: size * total // sum_of_sizes for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(sizes[key] * total % sum_of_sizes), key))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def has_word(text: str | None, word: str | None) -> bool:
    """Whether `word` stands in `text` as whole words, capitals aside.

    Scripts without blanks between words have no whole words: there it stands anywhere. In Korean, where endings are
    joined to a word, only its beginning counts.
    """
    if not text or not word:
        return False
    text, word = (unicodedata.normalize("NFC", each.casefold()) for each in (text, word))
    at = text.find(word)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        if not _are_one_word(before, word[0]) and (
            (_is_hangul(after) and _is_hangul(word[-1])) or not _are_one_word(word[-1], after)
        ):
            return True
        at = text.find(word, at + 1)
    return False


def _are_one_word(one: str, other: str) -> bool:
    """Whether two neighbours are of one word: letters, digits and marks are, but for scripts without blanks."""
    return all(each and (each.isalnum() or unicodedata.category(each)[0] == "M") for each in (one, other)) and not (
        _UNSPACED.match(one) or _UNSPACED.match(other)
    )


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1980-\u19ff\u1a20-\u1aaf\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff\u3005-\u3007]"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, Tai scripts, Japanese, Chinese."""


def _is_hangul(character: str) -> bool:
    return "\uac00" <= character <= "\ud7a3"


def sampling_hash(seed: int, *texts: str | None) -> int:
    """A row's place in every draw: a hash of the seed and its own texts, the same on every machine."""
    text = "\x1f".join([str(seed), *(text or "" for text in texts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _draw_rows(usable: pl.DataFrame, limit: int) -> pl.Series:
    if limit >= usable.height:
        return usable["row"]
    shares = largest_remainder(dict(usable.group_by("group").len().iter_rows()), limit)
    share = pl.col("group").replace_strict(shares, return_dtype=pl.Int64)
    return usable.sort("key", "row").filter(pl.int_range(pl.len()).over("group") < share)["row"]


def common_heads(rows: pl.DataFrame) -> dict[str, str]:
    """For each group the text all its questions begin with: `Which country is `, say."""
    ends = rows.group_by("group").agg(first=pl.col("question").min(), last=pl.col("question").max())
    return {group: commonprefix([first, last]) for group, first, last in ends.iter_rows()}  # noqa: RUF071


def chunks(rows: pl.DataFrame, size: int) -> list[pl.DataFrame]:
    """Cut rows into chunks of `size`: groups together, questions of like length together, then input order."""
    ordered = rows.sort("group", pl.col("question").str.len_chars(), "row")
    return [ordered.slice(start, size) for start in range(0, ordered.height, size)]
