"""Near-duplicates: rows that ask the same question in other words. Pure; the work grows with the rows, not their pairs.

Facts are templated: "Where was Anna born?" and "Where was Emil born?" differ by one word and are two facts, so the
similarity of two texts says little. Two different questions of one group (in a chat, also after the same turns) are
near-duplicates if one of these rules holds:

    same text     the texts are equal without capitals, accents, punctuation, blanks, "the" and "an"
    same words    they have the same words in any order, without "a" too, and equal golds
    typo          one word is a typo of the other's word and rare in the whole frame; the golds are equal
    missing word  one question lacks a word that the questions of its group share; the golds are equal

A typo is one letter left out, added or replaced, or two neighbouring letters swapped, but never the first letter:
Uganda is not Buganda. Typos are looked for in words of at least five letters, of which one has at least six, in
alphabets with vowels: if a digit, a Chinese character or a Roman numeral differs, the fact differs. Golds are compared
without capitals, accents, punctuation and articles, by their first 300 characters. If many rows of a group have the
same gold, equal golds say little, and only the first rule applies. Questions of more than 32 words are compared as
texts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from foreknow.data.schema import GOLD

NEAR: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "near_row": pl.Int64(),
    "flagged": pl.Boolean(),
    "golds": pl.Int64(),
}

MOST_WORDS = 32
"""Longer questions are compared as texts only."""
RARE = 2
"""A typo is a word that occurs in at most this many different questions."""
SHARED = 0.25
"""A word belongs to a group's template if this share of its questions, and at least five of them, contain it."""
COMMON = 0.02
"""A gold that more than this share of a group's questions, and more than five of them, have is not compared."""
LETTERS = 6
"""Two words are compared for a typo only if at least one of them has this many letters."""
MOST_ALIKE = 32
"""If more words than this differ only in the same letter, they are a code, not typos, and are passed over."""
_SLICE = 100_000  # number of wordings normalised at once, to bound memory
_WORD = r"^[\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Georgian}]{5,40}$"
_BETWEEN_DIGITS = r"(\d)[\p{P}\p{Z}]+(\d)"
_NO_PAIRS = pl.DataFrame(schema={"word": pl.UInt64, "word_other": pl.UInt64})
_NUMERAL = r"^[ivxlcdm]+$"


@dataclass(frozen=True)
class _Texts:
    """`wordings`: id, group, text (hashes), words (the sum of its words' hashes; null if there are too many).
    `entries`: one line per wording and word: id, word (hash). `vocabulary`: word (hash), spelling."""

    wordings: pl.DataFrame
    entries: pl.DataFrame
    vocabulary: pl.DataFrame


def near_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Find the near-duplicates among the usable rows of a frame of `schema.ROWS` (rules at the top of this file).

    Returns `NEAR`, sorted by `row`: one line for every row whose question has another wording in its group. A family
    is all wordings that a chain of near-duplicates connects. `near_row` is the family's earliest row. `flagged`: the
    row is the first of its wording, and its wording is not the family's earliest, so a family of n wordings has n - 1
    flagged rows in any order of the rows. `golds`: the number of different golds in the family; if there are several,
    the same question may have been meant for two facts.
    """
    questions = (
        rows.select("row", "question", group=pl.struct("group", "context").hash(), gold=GOLD)
        .drop_nulls()
        .with_columns(first=pl.col("row").min().over("group", "question"))
    )
    firsts = questions.filter(pl.col("row") == pl.col("first")).unique("row").sort("row").with_row_index("id")
    texts = _normalise_questions(firsts.select("id", "group", "question"))
    golds = (
        questions.join(firsts.select("id", "first"), on="first")
        .select("id", gold=normalise_expr(pl.col("gold").str.head(300), "a|an|the").hash())
        .unique()
    )
    golds_by_words = golds.join(texts.wordings.drop_nulls("words").select("id", "group", "words"), on="id")
    distinctive = golds_by_words.filter(pl.len().over("group", "gold") <= (COMMON * pl.len().over("group")).clip(5))
    edges = pl.concat(
        [_same_text_edges(texts.wordings), _same_words_edges(distinctive), *_one_word_edges(texts, distinctive)]
    )
    members = firsts.select("id", "first", family=families(edges, firsts.height)).filter(pl.len().over("family") > 1)
    golds_per_family = golds.join(members, on="id").group_by("family").agg(golds=pl.col("gold").n_unique())
    members_with_golds = members.join(golds_per_family, on="family").with_columns(
        near_row=firsts["first"].gather(members["family"])
    )
    return (
        questions.join(members_with_golds, on="first")
        .with_columns(flagged=(pl.col("row") == pl.col("first")) & (pl.col("first") != pl.col("near_row")))
        .select(pl.col(name).cast(dtype) for name, dtype in NEAR.items())
        .sort("row")
    )


def normalise_expr(text: pl.Expr, articles: str) -> pl.Expr:
    """`text` without capitals, accents, punctuation and `articles` ("a|an|the"); one blank between words.

    Characters that distinguish names and numbers stay (+, #, %, &, @, *, a minus, anything between two digits). Dots
    and apostrophes are removed; other punctuation becomes a blank.
    """
    return (
        text.str.normalize("NFKD")
        .str.to_lowercase()
        .str.replace_many(["ß", "ς", "æ", "ø", "œ", "ł", "đ", "ı"], ["ss", "σ", "ae", "o", "oe", "l", "d", "i"])
        .str.replace_all(r"(^|[\p{Z}(])-(\d)", "$1~$2")
        .str.replace_all(_BETWEEN_DIGITS, "$1|$2")
        .str.replace_all(_BETWEEN_DIGITS, "$1|$2")  # matches do not overlap: 1 2 3
        .str.replace_all(r"[\x{0300}-\x{036f}\p{Cf}.'’‘ʼ`´]+", "")
        .str.replace_all(r"[[\p{P}--[#%&@*]]\p{Z}\p{Cc}]+", " ")
        .str.strip_chars(" ")
        .str.replace_all(rf"\b(?:{articles}) ", "")
    )


def _normalise_questions(wordings: pl.DataFrame) -> _Texts:
    """Normalise the questions slice by slice. Only hashes are kept, and each word once."""
    parts = [_normalise_slice(part) for part in wordings.iter_slices(_SLICE)] or [_normalise_slice(wordings)]
    entries = pl.concat([part.entries for part in parts])
    sums = entries.group_by("id").agg(words=pl.col("word").sum())
    return _Texts(
        pl.concat([part.wordings for part in parts]).join(sums, on="id", how="left"),
        entries,
        pl.concat([part.vocabulary for part in parts]).unique("word"),
    )


def _normalise_slice(wordings: pl.DataFrame) -> _Texts:
    plain = wordings.select("id", "group", text=normalise_expr(pl.col("question"), "an|the"))
    short = plain.filter(pl.col("text").str.count_matches(" ", literal=True) < MOST_WORDS)
    words = (
        short.select("id", spelling=pl.col("text").str.split(" "))
        .explode("spelling")
        .filter(~pl.col("spelling").is_in(["", "a"]))
        .with_columns(word=pl.col("spelling").hash())
    )
    whole = pl.col("text").str.replace_all(" ", "", literal=True)
    return _Texts(
        plain.select("id", "group", text=pl.when(whole != "").then(whole.hash())),
        words.select("id", "word"),
        words.select("word", "spelling").unique("word"),
    )


def _same_text_edges(wordings: pl.DataFrame) -> pl.DataFrame:
    return _edges(wordings.drop_nulls("text"), pl.col("id").min().over("group", "text"))


def _same_words_edges(golds: pl.DataFrame) -> pl.DataFrame:
    return _edges(golds, pl.col("id").min().over("group", "gold", "words"))


def _one_word_edges(texts: _Texts, golds: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield edges between wordings with equal golds that differ by a typo in one word, or by a word of the template."""
    targets = golds.unique(["group", "gold", "words"])
    for changes in (_typo_changes(texts), _left_out_changes(texts)):
        wanted = golds.join(changes, on="id").with_columns(words=pl.col("words") + pl.col("change"))
        matches = wanted.join(targets, on=["group", "gold", "words"], suffix="_other")
        yield _edges(matches, pl.col("id_other"))


def _typo_changes(texts: _Texts) -> pl.DataFrame:
    """How much a wording's hash changes if the typo in one of its rare words is corrected: id, change."""
    seen = texts.entries.unique().group_by("word").len("times")
    words = texts.vocabulary.filter(pl.col("spelling").str.contains(_WORD), ~pl.col("spelling").str.contains(_NUMERAL))
    pairs = pl.concat([_NO_PAIRS, *_typo_pairs(words.join(seen, on="word"))]).unique()
    change = pl.col("word_other") - pl.col("word")
    return texts.entries.join(pairs, on="word").select("id", change=change)


def _typo_pairs(words: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Pairs of a rare word and a word that differs from it by one typo: word, word_other (hashes).

    Two such words share a spelling once one letter of each, or of the longer one, is left out. So words are looked up
    by these spellings, one length at a time, and are never all compared with each other.
    """
    from rapidfuzz.distance import OSA
    from rapidfuzz.process import cpdist

    spelling, at, length = pl.col("spelling"), pl.col("at"), pl.col("length")
    numbered = words.with_columns(length=spelling.str.len_chars()).sort("word").with_row_index("n")
    for letters in numbered["length"].unique().to_list():
        cut = numbered.filter(length == letters).with_columns(at=pl.int_ranges(1, pl.lit(letters, pl.Int64)))
        shorter = numbered.filter(length == letters - 1)
        keys = pl.concat([
            shorter.select("n", "times", key=spelling.hash()),
            cut.explode("at").select(
                "n", "times", key=(spelling.str.head(at) + spelling.str.slice(at + 1)).hash()
            ),
        ]).unique(["n", "key"])  # fmt: skip
        keys = keys.filter(pl.len().over("key").is_between(2, MOST_ALIKE))
        shared_keys = keys.filter(pl.col("times") <= RARE).join(keys, on="key", suffix="_other")
        pairs = shared_keys.filter(pl.col("n") != pl.col("n_other")).select("n", "n_other").unique()
        one, other = numbered[pairs["n"]], numbered[pairs["n_other"]]
        distance = cpdist(one["spelling"].to_list(), other["spelling"].to_list(), scorer=OSA.distance, dtype=np.int32)
        long_enough = (one["length"] >= LETTERS) | (other["length"] >= LETTERS)
        yield pl.DataFrame({"word": one["word"], "word_other": other["word"]}).filter(
            pl.Series(distance == 1) & long_enough
        )


def _left_out_changes(texts: _Texts) -> pl.DataFrame:
    """How much a wording's hash changes if a word of its group's template is left out: id, change."""
    groups = texts.wordings.select("id", "group")
    placed = texts.entries.unique().join(groups, on="id")
    sizes = groups.group_by("group").len("size")
    shared = (
        placed.group_by("group", "word")
        .len("times")
        .join(sizes, on="group")
        .filter(pl.col("times") >= 5, pl.col("times") >= SHARED * pl.col("size"))
    )
    return placed.join(shared, on=["group", "word"]).select("id", change=pl.lit(0, pl.UInt64) - pl.col("word"))


def _edges(frame: pl.DataFrame, other: pl.Expr) -> pl.DataFrame:
    return frame.select("id", other=other).filter(pl.col("id") != pl.col("other"))


def families(edges: pl.DataFrame, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each of `count` ids, from 0, the smallest id that a chain of edges leads to. `edges`: id, other."""
    if edges.is_empty():
        return np.arange(count)  # scipy stays out
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = edges["id"].to_numpy(), edges["other"].to_numpy()
    graph = coo_matrix((np.ones(edges.height, dtype=np.bool_), ends), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    smallest: np.ndarray[tuple[int], np.dtype[np.int64]] = first[label].astype(np.int64)
    return smallest
