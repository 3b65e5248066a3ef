"""Exact match: the two modes by example, and the promise that the search relies on."""

from __future__ import annotations

import unicodedata
from itertools import groupby

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foreknow.data.exact_match import Accepted, Mode, answer_of, is_refusal, may_become, normalise, spellings_of

COMBINED, APART = "Zürich", "Zu\u0308rich"


def right(accepted: list[str], answer: str, mode: Mode) -> bool:
    return Accepted.of(accepted).right(answer, mode)


@pytest.mark.parametrize(
    ("accepted", "answer", "strict", "lenient"),
    [
        ("Paris", "Paris", True, True),
        ("Paris", "  Paris\t", True, True),
        (" Paris ", "Paris", True, True),
        ("Paris", "paris", False, True),
        ("Paris", "Paris.", False, True),
        ("Paris", "The Paris", False, True),
        ("Paris", "Paris, France", False, False),
        ("Paris", "Pari", False, False),
        ("Paris", "", False, False),
        ("The Hague", "Hague", False, True),
        ("The Hague", "the  hague!", False, True),
        ("Hague", "A Hague", False, True),
        ("Hague", "Thehague", False, False),
        ("U.S.", "US", False, True),
        ("U.S.", "u.s", False, True),
        ("US", "U. S.", False, False),
        ("Guinea-Bissau", "guineabissau", False, True),
        ("Guinea-Bissau", "Guinea Bissau", False, False),
        ("rock 'n' roll", "Rock n Roll", False, True),
        (COMBINED, APART, True, True),
        (APART, COMBINED, True, True),
        ("Zürich", "Zurich", False, False),
        ("Việt Nam", "Viê\u0323t Nam", True, True),
        ("Việt Nam", "Vie\u0323\u0302t Nam", True, True),
        ("Å", "\u212b", True, True),
        ("한국", unicodedata.normalize("NFD", "한국"), True, True),
        ("하", "한", False, False),
        ("ﬁn", "fin", False, True),
        ("کتاب\u200cخانه", "کتابخانه", False, True),
        ("Par\u00adis", "Paris", False, True),
        ("كـتاب", "كتاب", False, True),
        ("كِتاب", "كتاب", False, False),
        ("น้ำ", "นำ", False, False),
        ("न\u093cई", "नई", False, False),
        ("❤\ufe0f", "❤", False, True),
        ("straße", "STRASSE", False, True),
        ("ΟΔΟΣ", "οδος", False, True),
        ("東京", "東京", True, True),
        ("東京", "東京。", False, True),
        ("東京", "東", False, False),
        ("ＡＢＣ", "abc", False, True),
        ("1\u00a0000", "1 000", False, True),
        ("$5", "5", False, True),
        ("The", "the", False, True),
        ("The", "a", False, False),
        ("The", "", False, False),
        ("A", "a", False, True),
        ("A", "An", False, False),
        ("...", "...", True, True),
        ("...", "!", False, False),
    ],
)
def test_what_counts_as_right(accepted: str, answer: str, strict: bool, lenient: bool) -> None:
    assert right([accepted], answer, "strict") is strict
    assert right([accepted], answer, "lenient") is lenient
    verdict = Accepted.of([accepted]).judge(answer)
    assert (verdict.strict_match, verdict.lenient_match) == (strict, lenient)


def test_answers_that_are_one_answer_count_once() -> None:
    accepted = Accepted.of(["Paris", " Paris", "paris.", "", "  "])
    assert accepted.strict == {"Paris", "paris."}
    assert accepted.lenient == {"paris"}
    assert Accepted.of([]).judge("x").lenient_open is False


def test_spellings_that_unicode_calls_equal_are_one_answer() -> None:
    accepted = Accepted.of([COMBINED, APART])
    assert accepted.strict == {COMBINED}
    assert spellings_of(f" {APART}") == (APART, COMBINED)
    assert spellings_of(COMBINED) == (COMBINED,)


def test_the_answer_ends_at_the_first_newline() -> None:
    assert answer_of(" Paris \nQ: next") == "Paris"
    assert answer_of("\nParis") == ""
    assert answer_of("Paris") == "Paris"


def test_normalising_never_leaves_nothing() -> None:
    assert normalise("The A an") == "the a an"
    assert normalise("The  Beatles") == "beatles"
    assert normalise("") == ""


@pytest.mark.parametrize(
    ("accepted", "text", "strict", "lenient"),
    [
        ("Paris", "", True, True),
        ("Paris", " ", True, True),
        ("Paris", " Par", True, True),
        ("Paris", "Paris ", True, True),
        ("Paris", "par", False, True),
        ("Paris", "th", False, True),
        ("Paris", "The ", False, True),
        ("Paris", "thep", False, False),
        ("Paris", "\u201cPar", False, True),
        ("Paris", "Lond", False, False),
        ("Paris", "Paris F", False, False),
        ("New York", "New  Y", False, True),
        ("New York", "New the", False, True),
    ],
)
def test_which_beginnings_are_open(accepted: str, text: str, strict: bool, lenient: bool) -> None:
    verdict = Accepted.of([accepted]).judge(text)
    assert (verdict.strict_open, verdict.lenient_open) == (strict, lenient)


# soundness: a beginning of something right is never closed

MARKS = "\u0301\u0302\u0323\u0327\u0308\u0345"
LETTERS = "abehtnsuAEIOTßéêệİıŉάᾳΣς한국東ｱé１²ﬁнйكд" + "".join(unicodedata.normalize("NFD", "ệ"))
answers = st.one_of(
    st.sampled_from(
        ["Paris", "The Hague", "U.S.", "Việt Nam", "a the An", "...", "A", "São Tomé", "ἀρχῇ", "한국", "東京", "Ça ira"]
    ),
    st.text(LETTERS + MARKS + " .-$´", min_size=1, max_size=8),
    st.text(min_size=1, max_size=6).filter(lambda t: "\n" not in t),
).filter(lambda t: t.strip() != "" and "\ufffd" not in t)


def shuffled_marks(text: str, draw: st.DrawFn) -> str:
    """Accents in another order: often the same text to Unicode."""
    parts = []
    for combining, run in groupby(unicodedata.normalize("NFD", text), lambda c: unicodedata.combining(c) > 0):
        chars = list(run)
        parts += draw(st.permutations(chars)) if combining else chars
    half = draw(st.integers(0, len(parts)))
    return unicodedata.normalize("NFC", "".join(parts[:half])) + "".join(parts[half:])


@st.composite
def writings(draw: st.DrawFn) -> tuple[str, str]:
    """An answer and a way of writing it that lenient matching should mostly accept."""
    answer = draw(answers)
    text = answer
    form = draw(st.sampled_from(["as it is", "NFC", "NFD", "NFKC", "NFKD", "marks"]))
    if form == "marks":
        text = shuffled_marks(text, draw)
    elif form != "as it is":
        text = unicodedata.normalize(form, text)
    case = draw(st.sampled_from([str, str.upper, str.lower, str.title, str.swapcase, str.casefold]))
    words = case(text).split(" ")
    blanks = st.sampled_from([" ", "  ", "\t", "\u00a0"])
    extra = st.sampled_from(["", "", "the ", "A  ", "an, ", "- ", "THE. "])
    spelled = ""
    for at, word in enumerate(words):
        spelled += (draw(blanks) if at else "") + draw(extra)
        cut = draw(st.integers(0, len(word)))
        spelled += (
            word[:cut] + draw(st.sampled_from(["", "", "-", "\u2019", "$.", "\u200d", "\u0640\u00ad"])) + word[cut:]
        )
    return answer, draw(st.sampled_from(["", " ", "\u201c"])) + spelled + draw(st.sampled_from(["", ".", " the", " !"]))


@settings(deadline=None, max_examples=500)
@given(writings(), st.lists(answers, max_size=2), st.integers(1, 3))
def test_every_beginning_of_a_lenient_match_is_open(pair: tuple[str, str], others: list[str], torn: int) -> None:
    answer, spelled = pair
    accepted = Accepted.of([*others, answer])
    assume(accepted.right(spelled, "lenient"))
    if not spelled.endswith("\ufffd"):
        assert accepted.judge(spelled).lenient_match
    for end in range(len(spelled) + 1):
        assert accepted.judge(spelled[:end]).lenient_open, spelled[:end]
        # a token that ends inside a character
        assert accepted.judge(spelled[:end] + "\ufffd" * torn).lenient_open, spelled[:end]


@settings(deadline=None, max_examples=200)
@given(answers, st.lists(answers, max_size=2), st.text(" \t\u00a0", max_size=2), st.text(" \t", max_size=2), st.data())
def test_every_beginning_of_a_strict_match_is_open(
    answer: str, others: list[str], before: str, after: str, spelling: st.DataObject
) -> None:
    accepted = Accepted.of([*others, answer])
    form = spelling.draw(st.sampled_from(["NFC", "NFD", "as it is", "mixed", "marks"]))
    stripped = answer.strip()
    if form == "mixed":
        cut = spelling.draw(st.integers(0, len(stripped)))
        stripped = unicodedata.normalize("NFD", stripped[:cut]) + stripped[cut:]
    elif form == "marks":
        stripped = shuffled_marks(stripped, spelling.draw)
    elif form != "as it is":
        stripped = unicodedata.normalize(form, stripped)
    assume(unicodedata.normalize("NFC", stripped) == unicodedata.normalize("NFC", answer.strip()))
    spelled = before + stripped + after
    assert accepted.right(spelled, "strict")
    assert accepted.right(spelled, "lenient")
    verdict = accepted.judge(spelled)
    assert (verdict.strict_match, verdict.lenient_match) == (True, True)
    for end in range(len(spelled) + 1):
        for text in (spelled[:end], spelled[:end] + "\ufffd"):
            verdict = accepted.judge(text)
            assert (verdict.strict_open, verdict.lenient_open) == (True, True), text


@settings(deadline=None, max_examples=200)
@given(st.text(LETTERS + MARKS + " .-the", max_size=8), st.lists(answers, min_size=1, max_size=3))
def test_judging_agrees_with_right_and_strict_is_within_lenient(text: str, given_answers: list[str]) -> None:
    accepted = Accepted.of(given_answers)
    verdict = accepted.judge(text)
    assert verdict.strict_match == accepted.right(text, "strict")
    assert verdict.lenient_match == accepted.right(text, "lenient")
    assert verdict.strict_match <= verdict.strict_open <= verdict.lenient_open
    assert verdict.strict_match <= verdict.lenient_match <= verdict.lenient_open
    composed = {unicodedata.normalize("NFC", a.strip()) for a in given_answers}
    assert verdict.strict_match == (unicodedata.normalize("NFC", text.strip()) in composed)


PIECES = (
    "a",
    "e",
    "\u00e9",
    "\u00ea",
    "\u0301",
    "\u0302",
    "\u0323",
    "\u1ec7",
    "\u1eb9",
    "\u1112",
    "\u1161",
    "\u11ab",
    "\ud558",
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), st.lists(st.sampled_from(PIECES), max_size=4))
def test_a_beginning_is_strictly_open_if_and_only_if_something_can_follow(head: str, whole: list[str]) -> None:
    parts = unicodedata.normalize("NFD", "".join(whole))
    # an oracle: all ways to go on with characters of the answer, no longer than the answer
    letters, waiting, reached = sorted(set(parts)), [head], False
    while waiting and not reached:
        text = waiting.pop()
        reached = unicodedata.normalize("NFD", text) == parts
        if len(unicodedata.normalize("NFD", text)) < len(parts):
            waiting += [text + letter for letter in letters]
    assert may_become(unicodedata.normalize("NFD", head), parts) is reached


def test_an_accent_that_the_answer_lacks_closes_it() -> None:
    verdict = Accepted.of(["Zurich"]).judge("Zu\u0308")
    assert not verdict.strict_open
    assert Accepted.of([COMBINED]).judge("Zu").strict_open
    assert Accepted.of([APART]).judge("Zü").strict_open
    assert Accepted.of(["ệ"]).judge("ê").strict_open, "the dot below still to come sorts before the hat"


def test_accents_that_come_late_and_out_of_order_keep_an_answer_open() -> None:
    # Windows-1258 text: the precomposed ê, then the dot below that Unicode would put first
    spelled = "Viê\u0323t Nam"
    accepted = Accepted.of(["Việt Nam"])
    assert accepted.right(spelled, "lenient")
    assert all(accepted.judge(spelled[:end]).lenient_open for end in range(len(spelled)))


def test_a_torn_character_is_never_a_match() -> None:
    verdict = Accepted.of(["Par"]).judge("Par\ufffd")
    assert (verdict.strict_match, verdict.lenient_match) == (False, False)
    assert (verdict.strict_open, verdict.lenient_open) == (True, True)
    assert not Accepted.of(["Paris"]).judge("Par\ufffdis").strict_open


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know", "I don\u2019t know.", "I do not know the answer", "i cannot answer that", "I'm sorry, but",
        "Sorry, no idea", "Unknown", "unknown.", "Not known", "not specified in the text", "No information",
        "It is unclear", "As an AI language model, I", "N/A", "n/a", "None", "I am not sure", "I'm not able", "",
        "...", " - ",
    ],
)  # fmt: skip
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "Unknownville",
        "Nonesuch",
        "Norway",
        "I",
        "Idaho",
        "Nota Bene",
        "42",
        "東京",
        "None of them",
    ],
)
def test_answers_that_only_look_like_refusals(answer: str) -> None:
    assert not is_refusal(answer)
