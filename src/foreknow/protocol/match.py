"""Exact match: which generated answers count as right, and which beginnings still can.

Two modes. *strict* is the paper's: the answer, stripped at both ends, equals an accepted one letter by
letter. *lenient* is the usual normalisation of question-answering benchmarks: case, punctuation, articles
and runs of blanks do not count. Pure text; no tokens, no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Mode = Literal["strict", "lenient"]

_ARTICLES = ("a", "an", "the")
_WORD = re.compile(r"\w+", re.UNICODE)


def answer_of(generated: str) -> str:
    """The answer in a generated text: everything before the first newline, stripped."""
    return generated.split("\n", 1)[0].strip()


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """The lenient form of `text`; where nothing but articles and punctuation is left, its folded self.

    Compatibility-composed, case-folded, punctuation and symbols removed (so `U.S.` is `us`), articles
    dropped, one blank between words.
    """
    words = [w for w in _bare(text).split() if w not in _ARTICLES]
    return " ".join(words) or " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isspace() or unicodedata.category(c)[0] not in "PS")


def _decomposed(text: str) -> str:
    """Accents as characters of their own: then a text cut before an accent is a prefix of the whole one."""
    return unicodedata.normalize("NFKD", text)


def _settled(text: str) -> str:
    """`text` without accents and punctuation at its end: accents still to come may go before or between them."""
    text = _decomposed(text)
    end = len(text)
    while end and (unicodedata.combining(text[end - 1]) or unicodedata.category(text[end - 1])[0] in "PS"):
        end -= 1
    return text[:end]


@dataclass(frozen=True)
class Verdict:
    """What a (partial) answer text is worth under both modes.

    `*_match`: if the answer ended here it would be right. `*_open`: some continuation, or none, may still
    make it right; never false for a text that can become right, so that a search which drops closed texts
    loses nothing.
    """

    strict_match: bool
    lenient_match: bool
    strict_open: bool
    lenient_open: bool


@dataclass(frozen=True)
class Accepted:
    """The accepted answers of one row, ready to be matched.

    Texts equal after stripping (strict) or normalising (lenient) are one answer, so the masses of
    different answers never count twice.
    """

    strict: frozenset[str]
    lenient: frozenset[str]
    skeletons: frozenset[str]

    @classmethod
    def of(cls, answers: Iterable[str]) -> Accepted:
        """Accepted texts from a row's `answers`; blank ones are left out."""
        texts = [a.strip() for a in answers if a.strip()]
        lenient = frozenset(normalise(t) for t in texts)
        return cls(frozenset(texts), lenient, frozenset(_decomposed(n).replace(" ", "") for n in lenient))

    def right(self, answer: str, mode: Mode) -> bool:
        """Whether a finished `answer` is accepted."""
        return answer.strip() in self.strict if mode == "strict" else normalise(answer) in self.lenient

    def judge(self, text: str) -> Verdict:
        """What an unfinished answer `text` (no newline in it) is worth.

        A text that stops inside a multi-byte character ends in U+FFFD: it is judged without that tail and
        stays open.
        """
        whole = text.rstrip("\ufffd")
        cut = len(whole) < len(text)
        head = whole.lstrip()
        strict_match = not cut and head.rstrip() in self.strict
        strict_open = head.rstrip() in self.strict or any(a.startswith(head) for a in self.strict)
        lenient_match = not cut and normalise(whole) in self.lenient
        lenient_open = lenient_match or strict_open or self._lenient_open(whole)
        return Verdict(strict_match, lenient_match, strict_open, lenient_open)

    def _lenient_open(self, text: str) -> bool:
        words = _decomposed(_bare(_settled(text))).split()
        if not words:
            return True
        # the last word may still grow: into an article, which vanishes, or into the answer
        done = "".join(w for w in words[:-1] if w not in _ARTICLES)
        last = words[-1]
        for skeleton in self.skeletons:
            if skeleton.startswith(done) and any(a.startswith(last) for a in _ARTICLES):
                return True
            if skeleton.startswith(done + last):
                return True
        return False


_REFUSALS = re.compile(
    r"^(i (do not|don'?t|cannot|can'?t|am not|'?m not) |i'?m (sorry|not|unable)\b|sorry\b|unknown\b"
    r"|no (idea|answer|information)|not (known|sure|available|specified)|it is (not known|unknown|unclear)"
    r"|as an ai|n/?a$|none$)",
    re.IGNORECASE,
)


def is_refusal(answer: str) -> bool:
    """Whether an answer declines ("I don't know", "Sorry, ...", "Unknown") instead of naming something."""
    text = answer.strip().replace("\u2019", "'")
    return bool(_REFUSALS.match(text)) or not _WORD.search(text)
