"""Exact match: which generated answers are correct, and which partial answers can still become correct.

Two modes. *strict* is the paper's: the answer, stripped at both ends, equals an accepted one letter by
letter, whichever way Unicode spells the letters (e with an accent as one character or as two: NFC decides).
*lenient* is the usual normalisation of question-answering benchmarks: case, punctuation, articles, runs of
blanks and characters that nobody sees do not count. Pure text; no tokens, no model.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final, Literal, NamedTuple

Mode = Literal["strict", "lenient"]

_ARTICLES = ("a", "an", "the")
_ARTICLE_STARTS = frozenset({"a", "an", "t", "th", "the"})
_WORD = re.compile(r"\w+", re.UNICODE)
_TATWEEL = "\u0640"  # stretches an Arabic word in print
_SELECTORS = re.compile("[\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # the form of the character before


def answer_of(generated: str) -> str:
    """The answer in a generated text: everything before the first newline, stripped."""
    return generated.split("\n", 1)[0].strip()


def canonical(text: str) -> str:
    """The strict form of `text`: stripped at both ends, composed (NFC). Equal texts are the same to a reader."""
    return unicodedata.normalize("NFC", text.strip())


def canonical_parts(text: str) -> str:
    """`text` with every accent as a character of its own, in Unicode's order (NFD)."""
    return unicodedata.normalize("NFD", text)


def spellings_of(answer: str) -> tuple[str, ...]:
    """An answer as it is written, and in its canonical form where that is another."""
    return tuple(dict.fromkeys((answer.strip(), canonical(answer))))


def may_become(head: str, whole: str) -> bool:
    """Whether some text that begins with `head` is canonically `whole`; both as `canonical_parts` gives them.

    Accents still to come may sort before those at the end of `head`, but only accents of another class do.
    """
    if whole.startswith(head):
        return True
    base = without_marks_at_end(head)
    if len(base) == len(head) or not whole.startswith(base):
        return False
    rest = whole[len(base) :]
    run = rest[: next((n for n, c in enumerate(rest) if not unicodedata.combining(c)), len(rest))]
    return all(
        _of_class(run, place).startswith(_of_class(head[len(base) :], place))
        for place in {unicodedata.combining(c) for c in head[len(base) :]}
    )


def without_marks_at_end(text: str) -> str:
    """`text` (as `canonical_parts` gives it) up to its last character that no later accent can move."""
    end = len(text)
    while end and unicodedata.combining(text[end - 1]):
        end -= 1
    return text[:end]


def _of_class(marks: str, place: int) -> str:
    return "".join(c for c in marks if unicodedata.combining(c) == place)


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """The lenient form of `text`; its folded self where nothing else is left of it.

    Compatibility-composed, case-folded, punctuation, symbols and invisible characters removed (so `U.S.` is `us`),
    articles dropped, one blank between words.
    """
    words = [w for w in _bare(text).split() if w not in _ARTICLES]
    folded = unicodedata.normalize("NFKC", text).casefold()
    seen = "".join(c for c in folded if not _is_invisible(c))
    return " ".join(words) or " ".join(seen.split()) or " ".join(folded.split())


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isspace() or not _is_dropped(c))


def _is_dropped(character: str) -> bool:
    """Whether lenient matching passes over a character: punctuation, a symbol, or one that nobody sees."""
    return unicodedata.category(character)[0] in "PS" or _is_invisible(character)


_DROPPED_ASCII = {n: None for n in range(128) if unicodedata.category(chr(n))[0] in "PS"}


def _is_invisible(character: str) -> bool:
    category = unicodedata.category(character)
    return category == "Cf" or character == _TATWEEL or bool(_SELECTORS.match(character))


def _decompose(text: str) -> str:
    """Accents as characters of their own: then a text cut before an accent is a prefix of the whole one."""
    return unicodedata.normalize("NFKD", text)


def _without_open_end(text: str) -> str:
    """`text` without accents and dropped characters at its end: accents still to come may go before or between."""
    text = _decompose(text)
    end = len(text)
    while end and (unicodedata.combining(text[end - 1]) or _is_dropped(text[end - 1])):
        end -= 1
    return text[:end]


@dataclass(frozen=True)
class MatchResult:
    """The state of a (partial) answer text under both modes.

    `*_match`: the answer would be correct if it ended here. `*_open`: it is correct, or some continuation may make it
    so; never False for a text that can become correct, so a search that drops closed texts loses nothing.
    """

    strict_match: bool
    lenient_match: bool
    strict_open: bool
    lenient_open: bool


_RESULTS = {flags: MatchResult(*flags) for flags in product((False, True), repeat=4)}
"""Every result once: a search judges hundreds of texts a row."""


_CODES: Final = 127
"""How many characters have a code of their own in `opening_code`; characters beyond ASCII share them."""
_SLOTS: Final = 1024
"""How many codes the words of ASCII letters share."""
_WORDS_FROM: Final = 256
OPENING_CODES: Final = _WORDS_FROM + 2 * _SLOTS


def opening_code(piece: str) -> int:
    """Return a number below `OPENING_CODES` for what a piece of text begins with, and for a blank before it.

    That is its one word, or the first letter or digit if it has several words or is not ASCII. 0 where only judging can
    tell what the piece does to a text. Two words or letters may share a code. No piece has code 1.
    """
    if piece.isascii():
        bare = piece.lower().translate(_DROPPED_ASCII)
        words = bare.split()
        if len(words) == 1:
            return _WORDS_FROM + 2 * (zlib.crc32(words[0].encode()) % _SLOTS) + bare[0].isspace()
    after_blank, character = _opening(piece)
    return 2 + 2 * (ord(character) % _CODES) + after_blank if character else 0


def _opening(piece: str) -> tuple[bool, str]:
    """Return whether a blank begins a piece, and its first letter or digit in lenient form; "" where unclear."""
    if piece.isascii():
        bare = piece.lower().translate(_DROPPED_ASCII)
        return bare[:1].isspace(), bare.lstrip()[:1]
    letters = piece.lstrip(" ")
    if not _begins_word(letters) or "\ufffd" in piece:
        return False, ""
    character = _decompose(_bare(letters))[:1]
    return letters != piece, character if _begins_word(character) else ""


def _begins_word(text: str) -> bool:
    """Return whether a text begins with a letter or digit that is one whatever stands before it.

    The second and third letters of a Korean syllable join what stands before them.
    """
    first = text[:1]
    joins = "\u1160" <= first <= "\u11ff"
    return first != "" and not joins and unicodedata.category(first)[0] in "LN" and not _is_invisible(first)


class Openings(NamedTuple):
    """The pieces that may follow a text that may still become right: 1 at their `opening_code`, 0 elsewhere."""

    table: bytes

    @classmethod
    def of(cls, new_word: Iterable[str], same_word: Iterable[str]) -> Openings:
        """Return the openings from what may come after a blank, and without one: all beginnings of these texts."""
        table = bytearray(OPENING_CODES)
        table[0] = 1
        for after_blank, texts in enumerate((same_word, new_word)):
            for text in texts:
                table[2 + 2 * (ord(text[0]) % _CODES) + after_blank] = 1
                code = 0
                for character in text:
                    if character > "\x7f":
                        break
                    code = zlib.crc32(character.encode(), code)
                    table[_WORDS_FROM + 2 * (code % _SLOTS) + after_blank] = 1
        return cls(bytes(table))

    def exclude(self, piece: str) -> bool:
        """Return whether no text that goes on with `piece` can become right; False where only judging can tell."""
        return not self.table[opening_code(piece)]


@dataclass(frozen=True)
class Accepted:
    """The accepted answers of one row, ready to be matched.

    Texts equal in their canonical (strict) or normalised (lenient) form are one answer, so the masses of
    different answers never count twice.
    """

    strict: frozenset[str]
    lenient: frozenset[str]
    parts: frozenset[str]
    skeletons: frozenset[str]

    @classmethod
    def of(cls, answers: Iterable[str]) -> Accepted:
        """Accepted texts from a row's `answers`; blank ones are left out."""
        strict = frozenset(canonical(a) for a in answers if a.strip())
        lenient = frozenset(normalise(t) for t in strict)
        skeletons = frozenset(_decompose(n).replace(" ", "") for n in lenient)
        return cls(strict, lenient, frozenset(map(canonical_parts, strict)), skeletons)

    def right(self, answer: str, mode: Mode) -> bool:
        """Whether a finished `answer` is accepted."""
        return canonical(answer) in self.strict if mode == "strict" else normalise(answer) in self.lenient

    def judge(self, text: str) -> MatchResult:
        """Match an unfinished answer `text` (without a newline).

        A text that stops inside a multi-byte character ends in U+FFFD: it is judged without that tail and
        stays open.
        """
        if text.isascii():
            return self._judge_ascii(text)
        text_read = text.rstrip("\ufffd")
        cut = len(text_read) < len(text)
        finished = canonical(text_read) in self.strict
        strict_match = not cut and finished
        head = canonical_parts(text_read.lstrip())
        strict_open = finished or any(may_become(head, a) for a in self.parts)
        lenient_match = not cut and normalise(text_read) in self.lenient
        lenient_open = lenient_match or strict_open or self._lenient_open(text_read)
        return MatchResult(strict_match, lenient_match, strict_open, lenient_open)

    def openings(self, text: str) -> Openings | None:
        """Return which pieces may follow `text` at all, articles among them; None where part of a character ends it."""
        if "\ufffd" in text or "" in self.skeletons:
            return None
        bare = text.lower().translate(_DROPPED_ASCII) if text.isascii() else _decompose(_bare(text))
        *words, last = bare.split() or [""]
        done = "".join(w for w in words if w not in _ARTICLES)
        before = done if last in _ARTICLES else done + last
        new_word = _rests(self.skeletons, before) | set(_ARTICLES)
        if not last or bare[-1].isspace():
            return Openings.of(new_word, new_word)
        return Openings.of(new_word, _rests(self.skeletons, done + last) | _rests(_ARTICLES, last))

    def _judge_ascii(self, text: str) -> MatchResult:
        """Match like `judge`. ASCII has no accents and one way to write a letter, so nothing is normalised."""
        finished = text.strip() in self.strict
        head = text.lstrip()
        strict_open = finished
        for part in self.parts:
            if part.startswith(head):
                strict_open = True
                break
        lower = text.lower()
        words = lower.translate(_DROPPED_ASCII).split()
        form = " ".join([w for w in words if w not in _ARTICLES]) or " ".join(lower.split())
        lenient_match = form in self.lenient
        lenient_open = lenient_match or strict_open or self._words_open(words)
        return _RESULTS[finished, lenient_match, strict_open, lenient_open]

    def _lenient_open(self, text: str) -> bool:
        return self._words_open(_decompose(_bare(_without_open_end(text))).split())

    def _words_open(self, words: list[str]) -> bool:
        if not words:
            return True
        # the last word may still grow: into an article, which vanishes, or into the answer
        done = "".join(w for w in words[:-1] if w not in _ARTICLES)
        last = words[-1]
        grows_into_article = last in _ARTICLE_STARTS
        for skeleton in self.skeletons:
            if skeleton.startswith(done) and (grows_into_article or skeleton.startswith(last, len(done))):
                return True
        return False


def _rests(texts: Iterable[str], beginning: str) -> set[str]:
    """Return what is left of those texts that go on after a beginning."""
    return {text[len(beginning) :] for text in texts if text.startswith(beginning) and len(text) > len(beginning)}


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
