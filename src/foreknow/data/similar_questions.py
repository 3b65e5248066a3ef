"""Finds questions asked twice in sentences of another shape, and long answers that stand twice. Pure.

`near_duplicates.py` compares templated facts, which differ by one name. This file compares free questions, as people
and models write them. Two questions of one group (and, in a chat, behind the same turns) are similar where they are not
equal but

    by their answers   both golds have `LONG_WORDS` words or more and are nearly the same: of the runs of three words
                       that either has, half stand in both; and so does half of the questions' rare content words,
                       since the same words about another subject make another question. Where each names something in
                       capitals that the other does not, they are two questions with one stock answer
    by their words     their content words are the same; where a gold is short, the golds are also equal and the rows
                       have no relation, since the facts of a relation differ by one word only

Content words are the words that are not in `FUNCTION_WORDS`, without their English endings (Snowball's stemmer:
"resetting" counts as "reset"). In another language, questions are similar by their answers, or where they have the same
words in another order. datasketch's MinHash finds the pairs of golds to compare, so the work grows with the rows and
not with their pairs.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

import polars as pl

from foreknow.data.near_duplicates import families, normalise_expr
from foreknow.data.schema import GOLD, USABLE

logger = logging.getLogger(__name__)

SIMILAR: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "similar_row": pl.Int64(),
    "same_answer_row": pl.Int64(),
}
LONG_WORDS: Final = 12
"""A gold of so many words or more is compared by its runs of three words."""
COMPARED_WORDS: Final = 256
"""The words of a gold that are compared, from its beginning."""
SAME_ANSWER: Final = 0.5
"""Two golds are nearly the same if this share of their runs of three words stands in both (Jaccard)."""
SHARED_WORDS: Final = 0.5
"""With nearly the same golds, questions are similar if they share this part of their rare content words (Jaccard)."""
RARE: Final = 0.02
"""A content word is rare if at most this share of the questions has it, or at most `RARE_AT_LEAST` of them."""
RARE_AT_LEAST: Final = 8
BANDS, BAND_ROWS = 32, 3
"""Of the MinHash index: it finds 98.6 % of the pairs at `SAME_ANSWER`, and more of those that are more alike."""
MOST_ROWS: Final = 200_000
"""Files with more usable rows are not searched: their questions would be held in memory word by word."""
MOST_CANDIDATES: Final = 32
"""A gold is compared with at most so many earlier ones."""
FUNCTION_WORDS: Final = frozenset({
    "a", "about", "am", "an", "and", "any", "are", "as", "at", "be", "been", "briefly", "by", "can", "could",
    "define", "describe", "did", "do", "does", "explain", "for", "from", "give", "had", "has", "have", "hello",
    "help", "hi", "i", "id", "if", "im", "in", "into", "is", "it", "its", "ive", "just", "kindly", "know", "let",
    "like", "may", "me", "mean", "means", "meant", "meaning", "might", "my", "need", "of", "on", "or", "our", "out",
    "please", "question", "quick", "really", "say", "should", "so", "some", "tell", "than", "thanks", "that", "the",
    "their", "them", "there", "these", "they", "this", "those", "to", "us", "want", "wanted", "was", "we", "were",
    "what", "whats", "which", "will", "with", "wonder", "wondering", "words", "would", "you", "your",
})  # fmt: skip
"""English words that change the form of a question and not what it asks for; why, how, when, who and where are not."""


_WORD: Final = re.compile(r"\w+")


class _Text(NamedTuple):
    """One usable row. `written`: its question as the row has it. `runs`: of a long gold, its runs of three words."""

    row: int
    group: int
    question: str
    written: str
    short_gold: str | None
    has_relation: bool
    runs: frozenset[str]


def similar_questions(rows: pl.DataFrame) -> pl.DataFrame:
    """Find the similar questions and the nearly equal long golds among the usable rows of a frame `ROWS`.

    Returns `SIMILAR`, one line for every row of a family of two or more, by `row`. `similar_row` is the earliest row
    whose question the row resembles, `same_answer_row` the earliest with nearly the same long gold, chains included;
    each is null where the row has no such family. The earliest row of a family names itself. A frame with more than
    `MOST_ROWS` usable rows gives no line, and a message says so.
    """
    if (usable := rows.filter(USABLE).height) > MOST_ROWS:
        logger.info(
            f"questions in other words are not looked for: {usable:,} usable rows are more than {MOST_ROWS:,}; check a "
            "part of the file"
        )
        return pl.DataFrame(schema=SIMILAR)
    texts = _texts(rows)
    same_answers = list(_same_answer_pairs(texts))
    content = _content_words()
    questions = [*_same_question_pairs(texts, same_answers, content), *_same_word_pairs(texts, content)]
    return (
        pl.DataFrame({"row": [text.row for text in texts]}, schema={"row": pl.Int64})
        .with_columns(
            similar_row=_earliest(texts, questions),
            same_answer_row=_earliest(texts, same_answers),
        )
        .filter(pl.any_horizontal(pl.col("similar_row", "same_answer_row").is_not_null()))
        .select(pl.col(name).cast(dtype) for name, dtype in SIMILAR.items())
    )


def _texts(rows: pl.DataFrame) -> list[_Text]:
    """The usable rows, in order, without capitals, accents and punctuation."""
    plain = rows.select(
        "row",
        written=pl.col("question"),
        group=pl.struct("group", "context").hash(),
        question=normalise_expr(pl.col("question").str.replace_all(r"['’]s\b", ""), "an|the"),
        gold=normalise_expr(GOLD, "a|an|the"),
        has_relation=pl.col("relation").is_not_null(),
    )
    texts = []
    for row, written, group, question, gold, has_relation in plain.drop_nulls(["question", "gold"]).sort("row").rows():
        words = gold.split(" ", COMPARED_WORDS)[:COMPARED_WORDS]
        long = len(words) >= LONG_WORDS
        runs = frozenset(" ".join(words[n : n + 3]) for n in range(len(words) - 2)) if long else frozenset()
        texts.append(_Text(row, group, question, written, None if long else gold, has_relation, runs))
    return texts


def _names_differ(first: str, second: str) -> bool:
    """Return whether each of two questions names something that the other does not."""
    words = [frozenset(_WORD.findall(question.casefold())) for question in (first, second)]
    return bool(_names(first) - words[1] and _names(second) - words[0])


def _names(question: str) -> frozenset[str]:
    """The words behind the first that are written with a capital; none where a title's small words are so too."""
    words = _WORD.findall(question)[1:]
    capitals = [word.casefold() for word in words if word[0].isupper()]
    if any(word in FUNCTION_WORDS and len(word) > 1 for word in capitals):
        return frozenset()
    return frozenset(capitals) - FUNCTION_WORDS


_Content = Callable[[str], frozenset[str]]


def _content_words() -> _Content:
    """Return a function from a question to its content words. It remembers them, as it takes long to stem words."""
    from snowballstemmer import stemmer  # keeps the stemmer's tables out

    stem = cache(stemmer("english").stemWord)

    @cache
    def content(question: str) -> frozenset[str]:
        words = question.split(" ", COMPARED_WORDS)[:COMPARED_WORDS]
        return frozenset(stem(word) for word in words if word and word not in FUNCTION_WORDS)

    return content


def _same_question_pairs(
    texts: Sequence[_Text], same_answers: Sequence[tuple[int, int]], content: _Content
) -> Iterator[tuple[int, int]]:
    """Pairs of questions of one group, of pairs with nearly the same golds, that share their rare content words."""
    different = [
        (at, earlier)
        for at, earlier in same_answers
        if texts[at].group == texts[earlier].group and texts[at].question != texts[earlier].question
    ]
    if not different:
        return
    counts = Counter(word for text in texts for word in content(text.question))
    most = max(RARE_AT_LEAST, RARE * len(texts))
    for pair in different:
        one, other = (frozenset(word for word in content(texts[at].question) if counts[word] <= most) for at in pair)
        written = [texts[at].written for at in pair]
        if _jaccard(one, other) >= SHARED_WORDS and not _names_differ(*written):
            yield pair


def _same_word_pairs(texts: Sequence[_Text], content: _Content) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of questions whose content words are the same."""
    firsts: dict[tuple[object, ...], int] = {}
    for at, text in enumerate(texts):
        if text.short_gold is not None and text.has_relation:
            continue
        if not (words := content(text.question)):
            continue
        first = firsts.setdefault((text.group, words, text.short_gold), at)
        if first != at and texts[first].question != text.question:
            yield at, first


def _same_answer_pairs(texts: Sequence[_Text]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of long golds that are nearly the same; of equal ones the first stands for all."""
    firsts: dict[frozenset[str], int] = {}
    different = []
    for at, text in enumerate(texts):
        if not text.runs:
            continue
        if (first := firsts.setdefault(text.runs, at)) != at:
            yield at, first
        else:
            different.append(at)
    if len(different) < 2:
        return
    from datasketch import MinHash, MinHashLSH  # keeps scipy out

    permutations = BANDS * BAND_ROWS
    index = MinHashLSH(params=(BANDS, BAND_ROWS), num_perm=permutations)
    texts_as_bytes = ([run.encode() for run in sorted(texts[at].runs)] for at in different)
    for at, sketch in zip(different, MinHash.generator(texts_as_bytes, num_perm=permutations), strict=True):
        for earlier in sorted(index.query(sketch))[:MOST_CANDIDATES]:
            if _jaccard(texts[at].runs, texts[earlier].runs) >= SAME_ANSWER:
                yield at, earlier
        index.insert(at, sketch, check_duplication=False)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _earliest(texts: Sequence[_Text], pairs: Sequence[tuple[int, int]]) -> pl.Series:
    """For each text the earliest row of its family; null for a text without a family."""
    ends = pl.DataFrame(pairs, schema={"id": pl.Int64, "other": pl.Int64}, orient="row")
    first = families(ends, len(texts)).tolist()
    sizes = Counter(first)
    return pl.Series([texts[one].row if sizes[one] > 1 else None for one in first], dtype=pl.Int64)
