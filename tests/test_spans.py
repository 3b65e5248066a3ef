"""Surprising spans: what they promise for any answer, and small answers one can follow by hand."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.inference.surprisal import MOST, WIDEST, Offsets, Span, offsets_of, surprising_spans

Tokens = tuple[list[Offsets], list[float]]


def by_word(answer: str, surprisals: dict[str, float], other: float = 1.0) -> list[Span]:
    """Spans where every word is one token, with its blank, of the given surprisal."""
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", answer)]
    return surprising_spans(answer, tokens, [-surprisals.get(answer[a:b].strip(), other) for a, b in tokens])


ANSWER = "The clinic stands on the northern bank of the old canal and opens at nine every day"
WORDS = ANSWER.split()


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[str, list[Offsets]]:
    """An answer cut into tokens anywhere, blanks with what follows or not; some cut away at the end."""
    answer = draw(st.text(st.sampled_from("ab é.,-\n(1東京ก€\U0001f600\u0301"), min_size=1, max_size=120))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(answer) - 1)), max_size=60)) | {0, len(answer)})
    tokens = list(pairwise(cuts))
    return answer, tokens[: draw(st.integers(0, len(tokens)))]


@given(tokenised(), st.data())
@settings(max_examples=300)
def test_spans_are_disjoint_exact_substrings(made: tuple[str, list[Offsets]], data: st.DataObject) -> None:
    answer, tokens = made
    floats = st.one_of(st.floats(-40, 0), st.sampled_from([0.0, -1e-12, -1000.0]))
    logprobs = data.draw(st.lists(floats, min_size=len(tokens), max_size=len(tokens)))
    found = surprising_spans(answer, tokens, logprobs)
    assert found == surprising_spans(answer, tokens, logprobs)
    assert len(found) <= MOST
    taken: set[int] = set()
    for span in found:
        assert span.text == answer[span.start : span.end]
        assert span.text == span.text.strip()
        assert any(c.isalnum() for c in span.text)
        assert not {span.text[0], span.text[-1]} & set(".,-(")
        assert len(span.text.split()) <= WIDEST
        assert taken.isdisjoint(range(span.start, span.end))
        taken |= set(range(span.start, span.end))
        touching = [p for (a, b), p in zip(tokens, logprobs, strict=True) if a < span.end and b > span.start]
        assert 1 <= span.tokens <= len(touching)
        assert min(touching) - 1e-9 <= span.logprob <= max(touching) + 1e-9


@given(
    st.text(max_size=40),
    st.lists(st.tuples(st.integers(-3, 50), st.integers(-3, 50)), max_size=20),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20),
)
@settings(max_examples=300)
def test_nothing_raises_whatever_the_tokens_say(answer: str, tokens: list[Offsets], logprobs: list[float]) -> None:
    n = min(len(tokens), len(logprobs))
    for span in surprising_spans(answer, tokens[:n], logprobs[:n]):
        assert answer[span.start : span.end] == span.text != ""


@given(st.integers(0, len(WORDS) - 1), st.lists(st.floats(0, 2), min_size=len(WORDS), max_size=len(WORDS)))
def test_a_word_made_very_unlikely_is_in_the_first_span(at: int, others: list[float]) -> None:
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", ANSWER)]
    surprisals = [*others[:at], 30.0, *others[at + 1 :]]
    first = surprising_spans(ANSWER, tokens, [-s for s in surprisals])[0]
    end = tokens[at][1]
    assert first.start <= end - len(WORDS[at])
    assert end <= first.end


@given(st.floats(0, 12), st.lists(st.floats(-0.04, 0.04), min_size=len(WORDS), max_size=len(WORDS)))
def test_an_even_answer_has_no_span(level: float, noise: list[float]) -> None:
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", ANSWER)]
    assert surprising_spans(ANSWER, tokens, [-(level + n) for n in noise]) == []


def test_neighbours_that_surprise_are_one_span_and_the_rest_follow_by_what_they_add() -> None:
    surprisals = {"northern": 9.0, "bank": 9.0, "nine": 14.0, "clinic": 8.5}
    assert [s.text for s in by_word(ANSWER, surprisals)] == ["nine", "northern bank", "clinic"]


def test_of_equal_spans_the_first_comes_first() -> None:
    surprisals = {"clinic": 9.0, "canal": 9.0, "nine": 9.0, "day": 9.0}
    assert [s.text for s in by_word(ANSWER, surprisals)] == ["clinic", "canal", "nine"]


def test_a_span_ends_after_twelve_words() -> None:
    words = [f"w{i}" for i in range(60)]
    found = by_word(" ".join(words), {f"w{i}": 9.0 for i in range(20, 36)})
    assert [len(s.text.split()) for s in found] == [12, 4]


def test_a_rare_name_counts_as_a_whole() -> None:
    """Its first piece surprises and the others follow from it; a single odd word must not stand before it."""
    answer = "the region is named for Quetzaltenango and it has such fine old houses in the centre of it"
    pieces = [m.span() for m in re.finditer(r"\s*Quet|zal|ten|ango|\s*\S+", answer)]
    surprisals = {" Quet": 10.0, "zal": 4.0, "ten": 2.0, "ango": 2.0, " such": 8.0}
    found = surprising_spans(answer, pieces, [-surprisals.get(answer[a:b], 1.0) for a, b in pieces])
    assert found[0] == Span("Quetzaltenango", 24, 38, -4.5, 4)


def test_a_name_of_many_likely_pieces_is_no_surprise() -> None:
    answer = "what it says of Quetzaltenango is new to us and not one of the others knew it then"
    pieces = [m.span() for m in re.finditer(r"\s*Qu|et|zal|ten|ango|\s*\S+", answer)]
    likely = {" Qu", "et", "zal", "ten", "ango"}
    found = surprising_spans(answer, pieces, [-(1.5 if answer[a:b] in likely else 3.0) for a, b in pieces])
    assert found == []


def test_punctuation_at_the_edges_neither_shows_nor_counts() -> None:
    answer = "It was (so they say) built by one man, in a week; nobody at all believes that story"
    pieces = [m.span() for m in re.finditer(r"[(),;]|\s*[^\s(),;]+", answer)]
    surprisals = {"(": 20.0, ",": 20.0, " week": 9.0}
    found = surprising_spans(answer, pieces, [-surprisals.get(answer[a:b], 1.0) for a, b in pieces])
    assert [s.text for s in found] == ["week"]


def test_an_answer_scored_in_part_is_searched_in_part() -> None:
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", ANSWER)][:6]
    found = surprising_spans(ANSWER, tokens, [-1.0, -9.0, -1.0, -1.0, -1.0, -1.0])
    assert [s.text for s in found] == ["clinic"]


def test_a_span_does_not_reach_over_words_that_were_not_scored() -> None:
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", ANSWER)]
    surprisals = {" northern": 30.0, " of": 30.0}
    scored = [(a, b) for a, b in tokens if ANSWER[a:b] != " bank"]
    found = surprising_spans(ANSWER, scored, [-surprisals.get(ANSWER[a:b], 1.0) for a, b in scored])
    assert [s.text for s in found] == ["northern", "of"]


def test_text_without_blanks_is_cut_at_its_tokens() -> None:
    answer = "東京は日本の首都であり大きな都市です"
    tokens = [(0, 2), (2, 3), (3, 5), (5, 6), (6, 8), (8, 11), (11, 14), (14, 16), (16, 18)]
    found = surprising_spans(answer, tokens, [-1.0, -1.0, -1.0, -1.0, -14.0, -1.0, -1.0, -1.0, -1.0])
    assert [s.text for s in found] == ["首都"]


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e300])
def test_what_is_no_log_probability_gives_no_span(value: float) -> None:
    assert surprising_spans("one two three", [(0, 3), (3, 7), (7, 13)], [-1.0, value, -1.0]) == []


def test_decoded_pieces_are_found_in_the_answer() -> None:
    answer = "The  caf\u00e9, at nine."
    pieces = ["The", " ", "caf", "\ufffd", "\ufffd", ",", " at", "nine", "."]
    offsets = offsets_of(pieces, answer)
    assert [answer[a:b] for a, b in offsets] == ["The", "", "caf", "", "", ",", "at", "nine", "."]


@given(st.lists(st.text(max_size=6), max_size=12), st.text(max_size=40))
def test_places_of_pieces_only_move_forward(pieces: list[str], answer: str) -> None:
    offsets = offsets_of(pieces, answer)
    flat = [x for pair in offsets for x in pair]
    assert flat == sorted(flat)
    assert all(b == a or answer[a:b] == piece.strip() for (a, b), piece in zip(offsets, pieces, strict=True))
