"""Parse question-answer pairs from a model's reply, and keep those that the text supports. Pure; trusts no reply."""

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
"""The reasons to refuse a pair, in the order in which they are checked."""

_OPENS = re.compile(r"\[\s*[\]{]|\{\s*\"")
"""Matches where an array of objects, an empty array or an object with a key may begin."""
_MOST: Final = 256
"""The maximum number of places in a reply to look for JSON: a faulty model can open a bracket in every token."""
_BROKEN: Final = object()
_LEANS = re.compile(
    r"\b(this|the (above|given|following|provided)) (text|passage|paragraph|article|document|excerpt|answer)\b"
    r"|\b(according to|mentioned in|stated in|described in) the (text|passage|paragraph|article|document|excerpt)\b",
    re.IGNORECASE,
)


class Pair(NamedTuple):
    """A short fact. Each text is on one line; a missing text is ""."""

    question: str
    answer: str


class UngroundedPair(NamedTuple):
    """A refused pair, and the key of `REASONS` that says why."""

    pair: Pair
    reason: str


class Grounded(NamedTuple):
    """The kept pairs of one reply, in its order, and the refused ones."""

    kept: list[Pair]
    refused: list[UngroundedPair]


def parse(reply: str) -> list[Pair] | None:
    """Return the pairs in a reply; [] where it says that there are none, None where it is unreadable. Never raises.

    It reads an array of objects with a question and an answer, an object that holds such an array, and such
    objects one after the other, with any text or code fence around them. It ignores the text before `</think>`. Of
    several arrays, it takes the first that has a pair. It does not repair broken JSON.
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
    """Keep the pairs that `text` supports.

    An answer must occur in the text as whole words, letter by letter. It may differ in capitals, in which case the
    pair gets the text's own spelling. Runs of blanks and line breaks count as one blank, in the answer and in the
    text. `REASONS` has the other conditions.
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
    """Return the answer as `line` spells it, matched exactly or else up to capitals; None where it does not occur."""
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
    """Return whether a cut before `at` splits a word. Scripts without capitals may have no blanks between words."""
    return 0 < at < len(line) and _of_word(line[at - 1]) and _of_word(line[at])


def _of_word(c: str) -> bool:
    return c.isdigit() or c.lower() != c.upper()


def _values(text: str) -> Iterator[object]:
    """Yield the JSON values that begin in `text`, also nested ones; `_BROKEN` for what only looked like one."""
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
