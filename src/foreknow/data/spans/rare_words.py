"""Find rare words in lower case (`acetazolamide`), by how often a language's words are used. Pure.

Frequencies are wordfreq's (Apache-2.0; its lists, CC BY-SA 4.0), on the Zipf scale: the base-10 logarithm of the
occurrences in a billion words. A word below `RARE` is rare, unless its stem is not: `neutralizing` is as common as
`neutral`. The language is the one of `LANGUAGES` whose common words cover most of the file's answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from foreknow.data.spans.finder import Span

RARE: Final = 3.0
"""Zipf frequency below which a word is rare: less than once in a million words."""
LEAST_LETTERS: Final = 4
LANGUAGES: Final = {
    "en": "english",
    "de": "german",
    "sv": "swedish",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "pt": "portuguese",
    "nl": "dutch",
}
"""Languages whose rare words are found, with the name of their Snowball stemmer."""
COMMON: Final = 4.5
"""Zipf frequency of words that tell languages apart."""
ENOUGH: Final = 0.35
"""The share of a file's running words that must be common in a language for the file to count as written in it."""
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SAMPLE: Final = 2_000
"""Different words, the most frequent ones, by which the language is chosen."""


class RareWords:
    """Finds rare words. `language`: one of `LANGUAGES`."""

    def __init__(self, language: str):
        self.language = language
        self._frequency = cache(_frequency_of(language))

    def find(self, answer: str) -> list[Span]:
        """Return runs of rare words with one blank between them, as spans of type `term`."""
        spans: list[Span] = []
        for match in _WORD.finditer(answer):
            if not self._is_rare(match.group()):
                continue
            if spans and answer[spans[-1].end : match.start()] == " ":
                spans[-1] = spans[-1]._replace(end=match.end())
            else:
                spans.append(Span(*match.span(), "term"))
        return spans

    def _is_rare(self, word: str) -> bool:
        return len(word) >= LEAST_LETTERS and word[1:].islower() and self._frequency(word.lower()) < RARE


def rare_words_of(answers: Iterable[str]) -> RareWords | None:
    """Return a finder for the language of `answers`; None if they are in none of `LANGUAGES`."""
    counts: Counter[str] = Counter()
    for answer in answers:
        counts.update(match.group().lower() for match in _WORD.finditer(answer))
    words = counts.most_common(_SAMPLE)
    total = sum(count for _, count in words)
    if not total:
        return None
    from wordfreq import zipf_frequency  # keeps wordfreq out

    def share(language: str) -> float:
        return sum(n for w, n in words if zipf_frequency(w, language, wordlist="small") >= COMMON) / total

    english = share("en")
    if english > 0.5:  # no other language has as many of these words
        return RareWords("en")
    shares = {language: share(language) for language in LANGUAGES if language != "en"} | {"en": english}
    best = max(shares, key=lambda language: shares[language])
    return RareWords(best) if shares[best] >= ENOUGH else None


def _frequency_of(language: str) -> Callable[[str], float]:
    """Return the frequency of a word in lower case: that of the word, its stem or the stem and `e`, the largest."""
    from snowballstemmer import stemmer  # keeps the stemmer's tables out
    from wordfreq import zipf_frequency  # keeps wordfreq out

    stem = stemmer(LANGUAGES[language]).stemWord

    def frequency(word: str) -> float:
        root = stem(word)
        return max(zipf_frequency(form, language) for form in {word, root, root + "e"})

    return frequency
