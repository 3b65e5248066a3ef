"""Rare words in lower case, by the frequencies of the language that the answers are written in."""

from __future__ import annotations

import pytest

from foreknow.data.spans.finder import AnswerText
from foreknow.data.spans.rare_words import RareWords, rare_words_of
from foreknow.data.spans.rules import RuleFinder

ENGLISH = (
    "The doctor may give the patient acetazolamide to lower the pressure in the eye, and it can help with the pain."
)
GERMAN = (
    "Der Arzt kann dem Patienten auch Acetazolamid geben, und das ist nicht für jeden von ihnen gut, aber sie sind da."
)
SWEDISH = (
    "Läkaren kan ge patienten det här och det är inte bra för alla, men de har varit med om det som vi vet att de är."
)


def terms(answer: str, language: str = "en") -> list[str]:
    spans = RareWords(language).find(answer)
    assert all(span.type == "term" for span in spans)
    return [answer[span.start : span.end] for span in spans]


def test_a_rare_word_is_found_and_a_common_one_or_a_form_of_it_is_not() -> None:
    assert terms(ENGLISH) == ["acetazolamide"]
    assert terms("a neutralizing effect on inflammation, decreased by medicines") == []
    assert terms("with keratitis, an ameba and the cysticerci") == ["keratitis", "ameba", "cysticerci"]


def test_rare_words_beside_each_other_are_one_span() -> None:
    assert terms("an immunosorbent serologic test") == ["immunosorbent serologic"]
    assert terms("immunosorbent, serologic") == ["immunosorbent", "serologic"]


def test_words_with_capitals_and_short_ones_are_left_to_other_rules() -> None:
    assert terms("ELISA by McGranahan of zzq and XYZzy") == []


@pytest.mark.parametrize(
    ("text", "language"),
    [(ENGLISH, "en"), (GERMAN, "de"), (SWEDISH, "sv"), ("彼女は東京に住んでいる。", None), ("", None), ("1 2 3", None)],
)
def test_the_language_is_that_of_the_common_words(text: str, language: str | None) -> None:
    found = rare_words_of([text])
    assert (found.language if found else None) == language


def test_the_rules_find_terms_behind_their_other_spans() -> None:
    answer = "The Acme Clinic gives 250 mg of acetazolamide, and the patient can take it with water in the morning."
    spans = RuleFinder([answer]).find([AnswerText(0, answer, "")])[0]
    assert [(answer[s.start : s.end], s.type) for s in spans] == [
        ("Acme Clinic", "name"),
        ("250 mg", "number"),
        ("acetazolamide", "term"),
    ]
