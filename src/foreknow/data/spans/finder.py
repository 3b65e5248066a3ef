"""Find the fact spans of long answers: what a finder is, and which of its spans count as first mentions. Pure.

A span counts only where its text is mentioned for the first time: not in the question, the system text, earlier turns
or earlier in the answer, case and a plural `s` aside. A later mention could be copied, so it says nothing of what a
model has learnt. An acronym is mentioned where its words are (`acronyms.py`).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from foreknow.data.spans.acronyms import Initials, is_acronym

_ASCII_WORD = re.compile(r"[^\W_]+")
# scripts written without blanks: Thai to Khmer, kana, Han
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""A letter of a script that is written without blanks between words."""


@functools.cache
def _word() -> re.Pattern[str]:
    """Return the pattern of a word of any script: letters and digits with their combining marks, up to U+1FFFF."""
    marks = "".join(chr(n) for n in range(0x300, 0x20000) if unicodedata.category(chr(n)).startswith("M"))
    return re.compile(rf"[^\W_](?:[^\W_]+|[{marks}]+)*")


def continues_word(character: str) -> bool:
    """Return whether a character belongs to the word in front of it: a letter, a digit or a combining mark."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


class Span(NamedTuple):
    """A stretch `text[start:end]` of an answer that could be wrong, and its type (`schema.TYPES`)."""

    start: int
    end: int
    type: str


class AnswerText(NamedTuple):
    """What a finder sees of one row: the answer, all text before it, and the row's own entry for spans, if any.

    `before`: question, system text and earlier turns. `own`: the row's value in the column `spans`, as JSON text.
    """

    row: int
    answer: str
    before: str
    own: str | None = None


class Finder(Protocol):
    """Finds the spans of answers. `name` is what `spans.parquet` says in the column `finder`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def find(self, texts: Sequence[AnswerText]) -> list[list[Span]]:
        """Return the spans of each answer, in the order of the text and without overlaps."""
        ...


class Words:
    """A text's words without case and plural `s`, to look for mentions of other texts in it."""

    def __init__(self, text: str):
        found = list((_ASCII_WORD if text.isascii() else _word()).finditer(text))
        self.starts = [match.start() for match in found]
        self.words = [_fold(match.group()) for match in found]
        self.text = f" {' '.join(self.words)} "
        self._lengths = [1]
        for word in self.words:
            self._lengths.append(self._lengths[-1] + len(word) + 1)

    def mentions(self, other: Words, until: int | None = None) -> bool:
        """Whether `other` stands in this text; `until`: only in front of this character of it."""
        if not other.words:
            return False
        text = self.text
        if until is not None:
            text = self.text[: self._lengths[bisect_left(self.starts, until)]]
        # in scripts without blanks a run of letters is no word
        wanted = other.text.strip() if UNSPACED.search(other.text) else other.text
        return wanted in text


def _fold(word: str) -> str:
    folded = word.casefold()
    return folded[:-1] if len(folded) > 3 and folded.endswith("s") and not folded.endswith("ss") else folded


def first_mentions(text: AnswerText, spans: Iterable[Span]) -> list[Span]:
    """Return the spans of `text.answer` that are first mentions, in order. Spans without a letter or digit are not."""
    before, answer = Words(text.before), Words(text.answer)
    candidates = [(span, text.answer[span.start : span.end]) for span in sorted(spans)]
    initials = functools.cache(Initials)
    first = []
    for span, own_text in candidates:
        own = Words(own_text)
        if not own.words or before.mentions(own) or answer.mentions(own, span.start):
            continue
        is_spelt_out = is_acronym(own_text) and (
            initials(text.before).spell(own_text) or initials(text.answer).spell_before(own_text, span.start)
        )
        if not is_spelt_out:
            first.append(span)
    return first


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """Return spans in the order of the text; of two that overlap, the one that was listed first stays."""
    chosen: list[Span] = []
    for span in spans:
        if all(span.end <= other.start or other.end <= span.start for other in chosen):
            chosen.append(span)
    return sorted(chosen)
