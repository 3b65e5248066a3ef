"""What the finders call a fact span, what counts as its first mention, and which alternatives it is given."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.spans.acronyms import Initials, is_acronym
from foreknow.data.spans.alternatives import AlternativePool, SpanMention, variants
from foreknow.data.spans.finder import AnswerText, Span, Words, first_mentions, without_overlaps
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import SPANS, count_spans, is_new, span_labels
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.long_exemplars import LongExemplars, cut_text


def found(answer: str, *others: str) -> list[tuple[str, str]]:
    spans = RuleFinder([answer, *others]).find([AnswerText(0, answer, "")])[0]
    return [(answer[s.start : s.end], s.type) for s in spans]


@pytest.mark.parametrize(
    ("answer", "spans"),
    [
        ("It was built in 1887 by Gustave Eiffel.", [("1887", "date"), ("Gustave Eiffel", "name")]),
        ("Take 20 mg twice, never over 1,500 mg.", [("20 mg", "number"), ("1,500 mg", "number")]),
        (
            "On 5 May 2021, or 2021-05-05, or May 6, 2021.",
            [("5 May 2021", "date"), ("2021-05-05", "date"), ("May 6, 2021", "date")],
        ),
        ("le 14 juillet 1789 et am 3. Oktober 1990", [("14 juillet 1789", "date"), ("3. Oktober 1990", "date")]),
        (
            "It costs $3.50 or 50,000 SEK, that is 30% off.",
            [("$3.50", "number"), ("50,000 SEK", "number"), ("30%", "number")],
        ),
        ("The virus H1N1 and COVID-19 are known to WHO.", [("H1N1", "code"), ("COVID-19", "code"), ("WHO", "code")]),
        (
            "See https://example.org/a?b=1. Set max_length there.",
            [("https://example.org/a?b=1", "code"), ("max_length", "code")],
        ),
        ("1. Wash hands\n2. Dry them\n10) Go", []),
        ("Symptoms include fever. Treatment is rest.", []),
        (
            "He met the University of Oslo staff and Vincent van Gogh.",
            [("University of Oslo", "name"), ("Vincent van Gogh", "name")],
        ),
        ("It was J. K. Rowling who wrote it.", [("J. K. Rowling", "name")]),
        ("THIS IS A HEADING IN CAPITALS\nand no name", []),
        ("東京は1868年に首都となった。", [("1868年", "date")]),
        ("И тогда Лев Толстой написал роман в 1869 году.", [("Лев Толстой", "name"), ("1869", "date")]),
        ("It is Act 2016:732 on Oslo's parks.", [("Act", "name"), ("2016:732", "number"), ("Oslo", "name")]),
        ("From 20-30 days, at -5 °C.", [("20-30 days", "number"), ("-5 °C", "number")]),
        ("It takes 15 to 20 years in 1 in 4.", [("15 to 20 years", "number"), ("1 in 4", "number")]),
        (
            "Pay 600–1,200 SEK/m² and give 5 mg/kg/day; 3 and/or 4 days.",
            [("600–1,200 SEK/m²", "number"), ("5 mg/kg/day", "number"), ("3", "number"), ("4 days", "number")],
        ),
        (
            "The Institute of Neurological Disorders and Stroke works with Berlin and Oslo.",
            [("Institute of Neurological Disorders and Stroke", "name"), ("Berlin", "name"), ("Oslo", "name")],
        ),
    ],
)
def test_rules(answer: str, spans: list[tuple[str, str]]) -> None:
    assert found(answer) == spans


def test_a_capital_that_begins_a_sentence_says_nothing_unless_the_file_writes_the_word_so_elsewhere() -> None:
    assert found("Stone is large.") == []
    assert found("Avens is large.") == [("Avens", "term")], "a rare word, which need not be a name"
    assert found("Avens is large.", "People go to Avens.") == [("Avens", "name")]
    assert found("Doctors know Ebola well. Doctors are many.", "The doctors came.") == [("Ebola", "name")]
    assert found("Large Avens is far.", "It is large.") == [] or found("Large Avens is far.", "It is large.") == [
        ("Avens", "name")
    ]


def test_german_nouns_are_no_names_by_their_capital_alone() -> None:
    text = "Das ist der Hund und die Katze von Johann Wolfgang Goethe, und das ist ein Haus für den Hund."
    others = ["Der Hund und die Katze, das Haus ist alt.", "Ein Haus und ein Hund und die Katze."]
    assert [span for span, _ in found(text, *others)] == ["Johann Wolfgang Goethe"]


def mentions(answer: str, before: str = "") -> list[str]:
    text = AnswerText(0, answer, before)
    return [answer[s.start : s.end] for s in first_mentions(text, RuleFinder([answer]).find([text])[0])]


def test_a_span_counts_where_it_is_mentioned_first() -> None:
    assert mentions("It lies in Avens. People like Avens, AVENS and the Avens.") == ["Avens"]
    assert mentions("It is the Avens that we mean.", "What are avens?") == []
    assert mentions("We saw John Smith. Then Smith left with the Smiths.") == ["John Smith"]
    assert mentions("In 1999, not in 19990 or 1999.") == ["1999", "19990"]
    assert mentions("We like Oslo.", "Is Oslotown nice?") == ["Oslo"]
    assert not Words("\u0926\u093f\u0932\u094d\u0932\u0940").mentions(Words("\u0926\u093f\u0932")), "Delhi, heart"


@pytest.mark.parametrize(
    ("answer", "before", "codes"),
    [
        ("There is no cure for MSA.", "Is there a cure for Multiple System Atrophy?", []),
        ("There is no cure for AGCC.", "Is there a cure for Agenesis of the Corpus Callosum?", ["AGCC"]),
        ("There is no cure for ACC.", "Is there a cure for Agenesis of the Corpus Callosum?", []),
        ("Many TIAs pass.", "What is a Transient Ischemic Attack?", []),
        ("Many TIAs pass.", "The illness attacks.", ["TIAs"]),
        ("Many ADHDs pass.", "What is attention deficit hyperactivity disorder?", []),
        ("It is paid by the U.N.A.", "Who pays for the United Nations Academy?", []),
        ("It paid the World Food Programme (WFP).", "", []),
        ("It was told by MSA, the Maritime Safety Agency.", "", ["MSA"]),
        ("It is MS.", "Is there a cure for Multiple Sclerosis?", []),
        ("It is MS.", "Can they make somebody ill?", ["MS"]),
        ("It is multiple sclerosis (MS).", "", []),
        ("The plan was made by hand. Then BH came.", "", ["BH"]),
    ],
)
def test_an_acronym_is_mentioned_with_its_words(answer: str, before: str, codes: list[str]) -> None:
    assert [own for own in mentions(answer, before) if is_acronym(own)] == codes


NAMES = st.lists(st.sampled_from(["River", "East", "İzmir", "Ödland", "ßtadt", "zebra", "of"]), min_size=2, max_size=6)


@given(NAMES, st.text(max_size=20))
def test_the_words_of_an_acronym_spell_it_wherever_they_stand(words: list[str], before: str) -> None:
    letters = "".join(word[0].lower()[0] for word in words if len(word) > 3)
    text = f"{before} {' '.join(words)}"
    assert len(letters) < 2 or Initials(text).spell_before(letters.upper(), len(text)) or "SS" in letters.upper()
    assert len(letters) < 4 or Initials(f"{text} is far.").spell(letters.upper()) or "SS" in letters.upper()
    assert not Initials(text).spell("QXQ")


WORDS = st.sampled_from(
    ["Avens", "Brigston", "avens", "1999", "12 km", "salt", "is", "in", "Avenss", "H1N1", "東京", "."]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=14).map(" ".join)


@given(TEXTS, TEXTS)
def test_first_mentions_stand_nowhere_before(answer: str, before: str) -> None:
    text = AnswerText(0, answer, before)
    every = RuleFinder([answer, before]).find([text])[0]
    chosen = first_mentions(text, every)
    assert set(chosen) <= set(every)
    assert chosen == sorted(chosen)
    fold = [word.casefold() for word in f"{before}\n".split()]
    for span in chosen:
        own = answer[span.start : span.end]
        assert own.casefold() not in fold
        assert own.casefold() not in answer[: span.start].casefold().split()
    for span in set(every) - set(chosen):
        own = Words(answer[span.start : span.end])
        assert Words(before).mentions(own) or Words(answer[: span.start]).mentions(own)


@given(TEXTS)
def test_spans_lie_in_order_without_overlaps_and_blanks_at_their_edges(answer: str) -> None:
    spans = RuleFinder([answer]).find([AnswerText(0, answer, "")])[0]
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(answer[s.start : s.end].strip() == answer[s.start : s.end] != "" for s in spans)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8))
def test_of_two_spans_that_overlap_the_first_listed_stays(places: list[tuple[int, int]]) -> None:
    spans = [Span(start, start + length, "name") for start, length in places]
    kept = without_overlaps(spans)
    taken = [set(range(s.start, s.end)) for s in kept]
    assert sum(map(len, taken)) == len(set().union(*taken))
    assert not spans or spans[0] in kept
    for span in spans:
        assert any(set(range(span.start, span.end)) & own for own in taken)


POOL = [SpanMention("name", name, "He lives in ") for name in ("Avens", "Brigston", "Callow", "Dunwick", "Avens Road")]
POOL += [SpanMention("name", name, "It was made by ") for name in ("Emil Storm", "Ada Blom", "Carl Lind")]
POOL += [SpanMention("date", text, "in ") for text in ("1887", "2004", "5 May 2021", "1912")]
POOL += [SpanMention("number", "20 mg", "takes "), SpanMention("number", "7 km", "goes ")]


def test_alternatives_are_of_the_type_and_shape_and_not_mentioned_in_the_row() -> None:
    pool = AlternativePool(POOL, 0)
    mentioned = Words("Is Callow near Avens?")

    def draw(kind: str, text: str, before: str, count: int) -> list[str]:
        return sorted(pool.draw(0, SpanMention(kind, text, before), mentioned, count))

    assert draw("name", "Avens", "in ", 2) == ["Brigston", "Dunwick"], "those behind the same words come first"
    assert draw("name", "Avens", "made by ", 3) == ["Ada Blom", "Carl Lind", "Emil Storm"]
    assert draw("name", "Avens", "", 9) == ["Ada Blom", "Brigston", "Carl Lind", "Dunwick", "Emil Storm"]
    assert draw("date", "1066", "about ", 3) == ["1887", "1912", "2004"], "those of the same shape come first"
    assert draw("number", "15 mg", "", 1) == ["20 mg"]
    assert draw("term", "anything", "", 9) == []
    assert draw("name", "Avens", "", 0) == []


@given(st.permutations(POOL), st.integers(0, 5))
def test_alternatives_do_not_depend_on_the_order_of_the_rows(spans: list[SpanMention], seed: int) -> None:
    span = SpanMention("name", "Elmfort", "in ")
    same = AlternativePool(POOL, seed).draw(3, span, Words(""), 2)
    assert AlternativePool(spans, seed).draw(3, span, Words(""), 2) == same
    assert len(set(same)) == 2


def test_variants() -> None:
    assert variants("12,500 mg", "number", False) == ["12500 mg"]
    assert variants("12500", "number", False) == ["12,500"]
    assert variants("1999", "date", False) == []
    assert variants("aspirin", "term", False) == ["Aspirin"]
    assert variants("Aspirin", "term", True) == []
    assert variants("Avens", "name", False) == []


def test_new_is_unknown_and_not_recognised() -> None:
    lines = [
        {"row": 0, "start": 0, "category": "Unknown", "recognised": False},
        {"row": 0, "start": 9, "category": "Unknown", "recognised": True},
        {"row": 0, "start": 5, "category": "HighlyKnown", "recognised": False},
        {"row": 1, "start": 0, "category": "Unknown", "recognised": None},
        {"row": 2, "start": 0, "category": None, "recognised": None},
    ]
    spans = pl.DataFrame(lines, schema=SPANS)
    assert spans.select(is_new()).to_series().to_list() == [True, False, False, True, False]
    counts = count_spans(pl.Series([0, 1, 2, 3]), spans)
    assert counts["n_spans"].to_list() == [3, 1, 0, 0]
    assert counts["unknown_spans"].to_list() == [2, 1, 0, 0]
    assert counts["new_spans"].to_list() == [1, 1, 0, 0]
    assert counts["unknown_share"].to_list() == [2 / 3, 1.0, None, None]
    assert counts["spans_category"].to_list() == ["mixed", "unknown", "none", "none"]
    labels = dict(span_labels(spans).iter_rows())
    assert [span["start"] for span in labels[0]] == [0, 5, 9]


def test_a_row_never_sees_itself_its_subject_or_its_twin_among_the_exemplars() -> None:
    text = "The town lies on a wide river and has a market on every second day of the week"
    shots = [Exemplar(f"What is {n}?", f"{text} {n}" if n < 2 else f"{n} " * 12, f"s{n}", n) for n in range(6)]
    exemplars = LongExemplars({"all": ((shots[0], shots[2]), (shots[1], shots[3]))}, {"all": tuple(shots[4:])}, "")
    assert exemplars.for_row("all", "Other?", "Short.", None, None) == [(shots[0], shots[2]), (shots[1], shots[3])]
    own = exemplars.for_row("all", "What is 2?", "Short.", None, None)
    assert own[0][0] == shots[0]
    assert own[0][1] in shots[4:]
    assert own[1] == (shots[1], shots[3])
    by_subject = exemplars.for_row("all", "Other?", "Short.", "S3", None)
    assert shots[3] not in by_subject[1]
    twin = exemplars.for_row("all", "Other?", f"{text}.", None, None)
    assert not {shots[0], shots[1]} & {shot for shots_ in twin for shot in shots_}


@given(st.text(alphabet="ab .\n", max_size=60), st.integers(0, 70))
def test_a_text_is_cut_at_a_sentence_or_a_blank(text: str, end: int) -> None:
    cut = cut_text(text, end)
    assert text.startswith(cut)
    assert len(cut) <= max(end, 0) or end >= len(text)


def test_a_long_exemplar_ends_with_a_sentence() -> None:
    assert cut_text("One two. Three four. Five six seven.", 30) == "One two. Three four."
    assert cut_text("one two three four five", 15) == "one two three"
