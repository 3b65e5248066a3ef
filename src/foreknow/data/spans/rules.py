"""Find fact spans by rules: dates, numbers with their units, codes, acronyms, names in capitals, rare words. Pure.

The rules read letters and digits of any script. Names need a script with capitals: in Chinese, Japanese, Arabic, Hindi
and the like only numbers, dates and codes are found. A capital that merely begins a sentence says nothing, so a single
word there counts as a name only if the file's answers write it in capitals elsewhere and never in lower case. In
German, where every noun has a capital, a name is a run of at least two such words, or one that no other answer has.
Rare words in lower case (`acetazolamide`) are found in eight languages (`rare_words.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from foreknow.data.spans.finder import AnswerText, Span, without_overlaps
from foreknow.data.spans.rare_words import rare_words_of
from foreknow.data.spans.word_lists import GERMAN, MONTHS, OPENERS, PARTICLES, UNITS

_MONTH = r"(?P<month>[^\W\d_]{3,10})\b\.?"
_YEAR = r"(?:1[0-9]{3}|20[0-9]{2})(?!\d)"
_DATES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b",
        r"\b\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b",
        r"\d{2,4}\s?年(?:\s?\d{1,2}\s?月(?:\s?\d{1,2}\s?日)?)?",
        rf"\b\d{{1,2}}(?:st|nd|rd|th|\.|º|er)?\s+(?:of\s+|de\s+)?{_MONTH}(?:,?\s+(?:de\s+|of\s+)?{_YEAR})?",
        rf"\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?!\d)(?:,?\s+{_YEAR})?",
        rf"\b{_MONTH},?\s+(?:de\s+|of\s+)?{_YEAR}",
        rf"\b{_YEAR}(?:s\b|\s?[-–]\s?{_YEAR})?(?![.,:]?\d)(?!\s?%)",
    )
)
"""Where one of these names a month, the word must be one of MONTHS."""
_UNIT = "(?:" + "|".join(map(re.escape, sorted(set(UNITS), key=len, reverse=True))) + r"|(?-i:A))(?!\w)"
_PER = r"(?:/[^\W\d_]{1,8}[²³]?[^\W\d_]?(?!\w)){0,2}"
"""What a unit is divided by: SEK/m², mg/kg/day."""
_CURRENCY = r"[$€£¥₹₽₩₺₫₪฿]"
_FIGURE = r"\d{1,4}:\d{1,4}(?!\d)|\d{1,3}(?:[  \u00a0\u202f,.’']\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?"
_RANGE = rf"(?:{_FIGURE})(?:(?:\s?[-–—]\s?| (?:to|in|out of|bis|till|à) )(?:{_FIGURE}))?"
_NUMBER: Final = re.compile(
    rf"(?<![\w.,])(?<![^\W\d_]-){_CURRENCY}?\s?[-−+]?{_RANGE}(?:\s?[%‰°]\w?(?!\w)|\s?{_CURRENCY}|[\s\u00a0-]?{_UNIT}(?:\s{_UNIT})?{_PER})?"
    r"(?!\w)(?![.,]\d)",
    re.IGNORECASE,
)
_LINKS_AND_MAIL: Final = (
    r"https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]",
    r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b",
    r"\bwww\.[\w-]+(?:\.[\w-]+)+(?:/[^\s<>\"')\]]*[^\s<>\"')\].,;:!?])?",
)
_CODE = re.compile(r"[^\W_]+(?:[-_][^\W_]+)*")
_ACRONYM = re.compile(r"\b(?:[A-ZÀ-ÖØ-Þ]{2,6}s?|(?:[A-Z]\.){2,})(?!\w)")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)\Z", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"(?:\A|\n)[ \t]*(\d{1,3})[.):](?=\s)")
_WORD = re.compile(r"[^\W\d_](?:[^\W_]|[’'.](?=[^\W\d_])|-(?=[^\W\d_]))*")
_SENTENCE_END: Final = frozenset('.!?:;…。！？\n•*"“”»«([{-–—|#>/\t')
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+\Z")


class RuleFinder:
    """Finds spans by the rules of this file. `answers`: the file's answers, from which it learns which words are
    written in lower case, and which with a capital inside a sentence."""

    name: Final = "rules"

    def __init__(self, answers: Iterable[str]):
        self.lower: set[str] = set()
        self.capital: set[str] = set()
        self.answers_with: Counter[str] = Counter()
        german = words = 0
        texts = list(answers)
        for answer in texts:
            own: set[str] = set()
            for match in _WORD.finditer(answer):
                word = match.group()
                if word[0].islower():
                    self.lower.add(word)
                    words += 1
                    german += word in GERMAN
                elif word[0].isupper():
                    own.add(word)
                    if not _begins_sentence(answer, match.start()):
                        self.capital.add(word)
            self.answers_with.update(own)
        self.is_german = words > 0 and german / words > 0.12
        self.rare_words = rare_words_of(texts)

    def find(self, texts: Sequence[AnswerText]) -> list[list[Span]]:
        """See `Finder.find`."""
        return [self._find(text.answer) for text in texts]

    def _find(self, answer: str) -> list[Span]:
        enumeration = {match.start(1) for match in _LIST_NUMBER.finditer(answer)}
        links = [Span(*match.span(), "code") for pattern in _LINKS_AND_MAIL for match in re.finditer(pattern, answer)]
        dates = [
            Span(*match.span(), "date")
            for pattern in _DATES
            for match in pattern.finditer(answer)
            if (match.groupdict().get("month") or "may").lower() in MONTHS
        ]
        numbers = []
        for match in _NUMBER.finditer(answer):
            start = match.start() + len(match.group()) - len(match.group().lstrip())
            if start not in enumeration:
                numbers.append(Span(start, match.end(), "number"))
        codes = [Span(*match.span(), "code") for match in _CODE.finditer(answer) if _is_code(match.group())]
        ordinals = [
            Span(*match.span(), "number") for match in re.finditer(r"\b\d+(?:st|nd|rd|th)\b", answer, re.IGNORECASE)
        ]
        headings = _lines_in_capitals(answer)
        names = self._names(answer, headings)
        acronyms = [
            Span(*match.span(), "code")
            for match in _ACRONYM.finditer(answer)
            if not _inside(match.start(), headings) and match.group().rstrip("s").lower() not in self.lower
        ]
        terms = self.rare_words.find(answer) if self.rare_words else []
        return without_overlaps([*links, *dates, *numbers, *ordinals, *codes, *names, *acronyms, *terms])

    def _names(self, answer: str, headings: Sequence[tuple[int, int]]) -> list[Span]:
        """Return runs of words with capitals, with links such as `of` inside them."""
        words = [(match.start(), match.end(), match.group()) for match in _WORD.finditer(answer)]
        spans = []
        at = 0
        while at < len(words):
            run = at if _inside(words[at][0], headings) else self._run(answer, words, at)
            if run == at:
                at += 1
                continue
            first = at
            begins = _begins_sentence(answer, words[first][0])
            if begins and not self._counts_at_start(words[first][2], run - first):
                first += 1
            while first < run and (words[first][2] in PARTICLES or words[first][2].lower() in OPENERS):
                first += 1
            if first < run and self._is_name([word for _, _, word in words[first:run]]):
                end = words[run - 1][1]
                end -= 2 if answer[end - 2 : end] in ("'s", "\u2019s") else 0
                spans.append(Span(words[first][0], end, "name"))
            at = run
        return spans

    def _run(self, answer: str, words: Sequence[tuple[int, int, str]], at: int) -> int:
        """Return the end of the run of capitalised words that begins with word `at`; `at` if it is no such word."""
        if not _is_capitalised(words[at][2]):
            return at
        end = last = at + 1
        while end < len(words):
            gap = answer[words[end - 1][1] : words[end][0]]
            initials = gap == ". " and _INITIALS.match(words[end - 1][2] + ".") is not None
            if gap not in (" ", " & ", "\u00a0") and not initials:
                break
            if _is_capitalised(words[end][2]) and words[end][2].lower() not in OPENERS:
                end += 1
                last = end
            elif words[end][2] in PARTICLES and end - last < 2 and gap == " " and not self.is_german:
                end += 1
            elif words[end][2] == "and" and end == last and "of" in (word for _, _, word in words[at:end]):
                end += 1  # National Institute of Neurological Disorders and Stroke
            else:
                break
        return last

    def _counts_at_start(self, word: str, length: int) -> bool:
        """Return whether the first word of a sentence belongs to a name, in a run of `length` words."""
        if word.lower() in OPENERS or word.lower() in self.lower:
            return False
        return length > 1 or word in self.capital

    def _is_name(self, words: Sequence[str]) -> bool:
        if all(word.isupper() and len(word) <= 6 for word in words):
            return False  # an acronym
        return not self.is_german or len(words) > 1 or self.answers_with[words[0]] <= 1


def _is_code(word: str) -> bool:
    """Return whether a word has letters and digits, or parts joined by an underscore: H1N1, COVID-19, max_length."""
    if "_" in word:
        return True
    return any(c.isdigit() for c in word) and any(c.isalpha() for c in word) and not _ORDINAL.match(word)


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() and not (len(word) == 1 and word == "I")


def _begins_sentence(text: str, start: int) -> bool:
    """Return whether a word stands at the start of a text, sentence, line, quotation or bracket."""
    at = start - 1
    while at >= 0 and text[at] in " \u00a0":
        at -= 1
    if at < 0:
        return True
    if text[at] == "." and at >= 1 and text[at - 1].isalpha() and (at == 1 or text[at - 2] in " .\u00a0\n"):
        return False  # one letter and a point is an initial: J. Smith
    if text[at] == ")":  # as in "10) Go"
        line = text[text.rfind("\n", 0, at) + 1 : at].strip()
        return line.isdigit() or len(line) == 1
    return text[at] in _SENTENCE_END


def _lines_in_capitals(text: str) -> list[tuple[int, int]]:
    """Return the places (start, end) of the lines that are written in capitals, as headings are."""
    places = []
    for match in re.finditer(r"[^\n]+", text):
        letters = [c for c in match.group() if c.isupper() or c.islower()]
        if len(letters) > 8 and sum(c.isupper() for c in letters) > 0.6 * len(letters):
            places.append(match.span())
    return places


def _inside(at: int, places: Sequence[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in places)
