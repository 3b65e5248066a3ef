"""Question-answer pairs out of a model's reply, and which of them the text bears out. Pure; no reply is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from foreknow.data.exact_match import normalise
from foreknow.data.values import text_of

REASONS: Final = {
    "empty": "no question or no answer",
    "not_in_text": "the answer does not stand in the text",
    "long_answer": "the answer has too many words",
    "answer_in_question": "the question gives its answer away",
    "leans_on_text": "the question speaks of the text it was made from",
    "duplicate": "the question was asked before",
    "too_many": "beyond the number of facts wanted",
}
"""Why a pair is refused, in the order in which it is looked at."""

_OPENS = re.compile(r"\[\s*[\]{]|\{\s*\"")
"""Where an array of objects, an empty array or an object with a key may begin."""
_MOST: Final = 256
"""Places in a reply at which JSON is looked for: a model that goes mad can open a bracket in every token."""
_BROKEN: Final = object()
_LEANS = re.compile(
    r"\b(this|the (above|given|following|provided)) (text|passage|paragraph|article|document|excerpt|answer)\b"
    r"|\b(according to|mentioned in|stated in|described in) the (text|passage|paragraph|article|document|excerpt)\b",
    re.IGNORECASE,
)


class Pair(NamedTuple):
    """A short fact. Texts on one line; "" for what is missing."""

    question: str
    answer: str


class UngroundedPair(NamedTuple):
    """A pair that is not kept, and the key of `REASONS` that says why."""

    pair: Pair
    reason: str


class Grounded(NamedTuple):
    """The pairs of one reply that are kept, in its order, and those that are not."""

    kept: list[Pair]
    refused: list[UngroundedPair]


def parse(reply: str) -> list[Pair] | None:
    """The pairs in a reply; [] where it says that there are none, None where nothing can be read. Never raises.

    Read are an array of objects with a question and an answer, an object that holds such an array, and such
    objects one after the other, with any text or code fence around them; what stands before `</think>` is
    not read. Of several arrays the first with a pair in it counts. Broken JSON is not mended.
    """
    alone: list[Pair] = []
    empty = broken = False
    for value in _values(reply.rpartition("</think>")[2]):
        fields = _fields(value)
        if value is _BROKEN:
            broken = True
        elif {"question", "answer"} <= set(fields):
            alone.append(_pair(fields))
        elif pairs := _pairs(fields.get("facts", value)):
            return pairs
        empty = empty or value == [] or fields.get("facts") == []
    if broken:
        return None
    return alone or ([] if empty else None)


def grounded(pairs: Iterable[Pair], text: str, *, max_facts: int, max_answer_words: int) -> Grounded:
    """Keep the pairs that `text` bears out.

    An answer must stand in the text as whole words, letter by letter or else but for capitals; then the
    text's own spelling is taken. Runs of blanks and line breaks count as one blank, in the answer and in the
    text. The other conditions are those of `REASONS`.
    """
    line = " ".join(text.split())
    kept: list[Pair] = []
    refused: list[UngroundedPair] = []
    asked: set[str] = set()
    for pair in pairs:
        answer = span(pair.answer, line)
        reason = _fault(pair, answer, max_answer_words)
        if reason is None and normalise(pair.question) in asked:
            reason = "duplicate"
        if reason is None and len(kept) >= max_facts:
            reason = "too_many"
        if reason is not None:
            refused.append(UngroundedPair(pair, reason))
            continue
        asked.add(normalise(pair.question))
        kept.append(Pair(pair.question, str(answer)))
    return Grounded(kept, refused)


def span(answer: str, line: str) -> str | None:
    """The answer as it stands in `line`: as it is, else but for capitals; None where it does not stand there."""
    words = " ".join(answer.split())
    if not words:
        return None
    for flags in (re.NOFLAG, re.IGNORECASE):
        for found in re.finditer(f"(?={re.escape(words)})", line, flags):
            end = found.start() + len(words)
            if not (_inside_word(line, found.start()) or _inside_word(line, end)):
                return line[found.start() : end]
    return None


def _fault(pair: Pair, answer: str | None, max_answer_words: int) -> str | None:
    if not pair.question or not any(c.isalnum() for c in pair.answer):
        return "empty"
    if answer is None:
        return "not_in_text"
    if len(answer.split()) > max_answer_words:
        return "long_answer"
    if span(answer, pair.question) is not None:
        return "answer_in_question"
    if _LEANS.search(pair.question):
        return "leans_on_text"
    return None


def _inside_word(line: str, at: int) -> bool:
    """Whether a cut before `at` would part a word. Scripts without capitals may have no blanks between words."""
    return 0 < at < len(line) and _of_word(line[at - 1]) and _of_word(line[at])


def _of_word(c: str) -> bool:
    return c.isdigit() or c.lower() != c.upper()


def _values(text: str) -> Iterator[object]:
    """The JSON values that begin in `text`, those within others too; `_BROKEN` for what only looked like one."""
    decoder = json.JSONDecoder()
    for opening in islice(_OPENS.finditer(text), _MOST):
        try:
            value, _ = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            value = _BROKEN
        yield value


def _pairs(value: object) -> list[Pair]:
    found = [_fields(item) for item in value] if isinstance(value, list) else []
    return [_pair(fields) for fields in found if {"question", "answer"} & set(fields)]


def _fields(value: object) -> dict[str, object]:
    return {str(key).strip().lower(): item for key, item in value.items()} if isinstance(value, dict) else {}


def _pair(fields: dict[str, object]) -> Pair:
    return Pair(*(" ".join((text_of(fields.get(name)) or "").split()) for name in ("question", "answer")))
