from __future__ import annotations

import random as rng
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from foreknow.data.near_duplicates import MOST_ALIKE, NEAR, near_duplicates
from foreknow.data.schema import ROWS

BLANK: dict[str, Any] = {**dict.fromkeys(ROWS), "group": "all", "flags": []}


def frame(rows: Sequence[tuple[str, str] | tuple[str, str, str]]) -> pl.DataFrame:
    """Rows from (question, gold) or (question, gold, group)."""
    lines = [
        {**BLANK, "row": n, "question": row[0], "answers": [row[1]], "group": row[2] if len(row) > 2 else "all"}
        for n, row in enumerate(rows)
    ]
    return pl.DataFrame(lines, schema=ROWS)


def flagged(rows: Sequence[tuple[str, str] | tuple[str, str, str]]) -> list[tuple[int, int]]:
    """(row, the row it resembles) of all flagged rows."""
    return near_duplicates(frame(rows)).filter("flagged").select("row", "near_row").rows()


def born(*subjects: str, gold: str = "Lyon") -> list[tuple[str, str]]:
    return [(f"Where was {subject} born?", gold) for subject in subjects]


letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=6, max_size=12)


@st.composite
def slips(draw: st.DrawFn) -> tuple[str, str]:
    """A word and a slip of it: one letter left out, added, replaced, or two neighbours swapped."""
    word = draw(letters.filter(lambda word: not set(word) <= set("ivxlcdm")))
    at = draw(st.integers(1, len(word) - 2))
    letter = draw(st.sampled_from("aeioubrst"))
    slip = draw(
        st.sampled_from([
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ])
    )  # fmt: skip
    return word, slip


def is_numeral(word: str) -> bool:
    return set(word) <= set("ivxlcdm")


@settings(max_examples=30, deadline=None)
@given(slips().filter(lambda pair: pair[0] != pair[1] and not is_numeral(pair[1])))
def test_a_generated_slip_is_found(pair: tuple[str, str]) -> None:
    others = born("Xander Quill", "Olga Brandt", "Pekka Toivonen", gold="Oslo")
    assert flagged([*others, *born(f"Jane {pair[0]}", f"Jane {pair[1]}")]) == [(4, 3)]


@settings(max_examples=30, deadline=None)
@given(st.lists(letters, min_size=2, max_size=5, unique=True))
def test_different_subjects_are_different_facts(words: list[str]) -> None:
    apart = [word for n, word in enumerate(words) if all(OSA.distance(word, other) > 1 for other in words[:n])]
    assert flagged(born(*apart)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where was Émile Zola born?", "where was emile zola born"),
        ("Who wrote The Iliad?", "Who wrote Iliad?"),
        ("Who leads the U.S. Army?", "Who leads US Army ?"),
        ("Who made Spider-Man?", "Who made Spiderman?"),
        ("Who made Spider-Man?", "Who  made\u00a0“Spider Man”?"),
        ("Where is \ufb01eld 9?", "Where is field ９?"),
        ("Wo liegt Gießen?", "Wo liegt GIESSEN?"),
    ],
)
def test_the_same_text_in_other_letters_whatever_the_gold(one: str, other: str) -> None:
    assert flagged([(one, "a"), ("Quite another question?", "a"), (other, "b")]) == [(2, 0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who owns the News Journal?", "Who owns Journal News?"),
        ("What causes hepatitis A in humans?", "What causes hepatitis in humans?"),
        ("Where was Jane Doe Browning born?", "Where was Jane Doe Brwoning born?"),
    ],
)
def test_words_moved_or_changed_need_the_same_gold(one: str, other: str) -> None:
    assert flagged([(one, "The Times"), (other, "times!")]) == [(1, 0)]
    assert flagged([(one, "The Times"), (other, "Post")]) == []
    assert flagged([(one, "Times", "g1"), (other, "Times", "g2")]) == []


def test_a_word_of_the_template_may_be_missing_but_no_word_of_a_subject() -> None:
    others = born("Anna Frost", "Bruno Wirth", "Clara Ng", "Dario Moss", "Elena Ray", gold="Oslo")
    assert flagged([*others, *born("Jane Doe"), ("Where Jane Doe born?", "Lyon")]) == [(6, 5)]
    assert flagged([*others, *born("Jane Doe", "Jane Mary Doe")]) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who won the 1996 final?", "Who won the 1997 final?"),
        ("Who hosted Super Bowl XXXII?", "Who hosted Super Bowl XXXIII?"),
        ("Who designed C++?", "Who designed C#?"),
        ("What is the cube of -1?", "What is the cube of 1?"),
        ("What is 3.5 doubled?", "What is 35 doubled?"),
        ("Which film has the code 1 2 3?", "Which film has the code 1 23?"),
        ("What is the capital of Uganda?", "What is the capital of Buganda?"),
        ("法国的首都是哪里", "德国的首都是哪里"),
        ("किताब क्या है?", "कताब क्या है?"),
        ("Which continent is Iran in?", "Which continent is Iraq in?"),
        ("!!!", "???"),
    ],
)
def test_a_small_difference_that_makes_another_fact(one: str, other: str) -> None:
    assert flagged([(one, "same"), (other, "same")]) == []


def test_a_slip_is_rare_a_word_of_many_questions_is_none() -> None:
    assert flagged(born("Maria Prone", "Marina Prone")) == [(1, 0)]
    assert flagged([*born(*(f"{name} {n}" for n in "pqrs" for name in ("Maria", "Marina")))]) == []


def test_an_equal_gold_says_nothing_where_many_rows_have_it() -> None:
    pair = born("Jane Hawthorne", "Jane Hawthrone")
    filler = [(f"Where was {chr(97 + n % 26)}{n} born?", "Lyon" if n < 10 else f"gold {n}") for n in range(100)]
    assert flagged([*filler, *pair]) == []
    assert flagged([*filler[10:], *pair]) == [(91, 90)]


def test_copies_belong_to_the_family_and_are_not_flagged() -> None:
    rows = [*born("Zoe Hale"), *born("ZOE HALE") * 2, *born("Zoe Hale"), ("where was zoe hale born", "Metz")]
    found = near_duplicates(frame(rows))
    assert found.schema == pl.Schema(NEAR)
    assert found.rows() == [
        (0, 0, False, 2), (1, 0, True, 2), (2, 0, False, 2), (3, 0, False, 2), (4, 0, True, 2),
    ]  # fmt: skip
    assert near_duplicates(frame(born("Zoe Hale") * 3)).is_empty()


def test_chains_are_one_family_of_its_earliest_row() -> None:
    chain = born("Hawthornes Plc", "Hawthorne Plc", "Hawthrone Plc")
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        assert flagged([chain[n] for n in order]) == [(1, 0), (2, 0)]


def test_another_chat_before_the_question_is_another_question() -> None:
    rows = frame([("Yes please", "Done."), ("yes, please!", "Done.")])
    turns = pl.Series([[{"role": "user", "content": "a"}], None], dtype=ROWS["context"])
    assert near_duplicates(rows)["flagged"].sum() == 1
    assert near_duplicates(rows.with_columns(context=turns)).is_empty()


def test_a_long_question_is_compared_as_a_text_only() -> None:
    story = " ".join(f"word{n}" for n in range(40))
    slip = [(f"{story} about Hawthorne", "x"), (f"{story} about Hawthrone", "x")]
    assert flagged(slip) == []
    assert flagged([slip[0], (f"{story.upper()} about Hawthorne!", "x")]) == [(1, 0)]


def test_words_of_a_code_are_not_slips_of_each_other() -> None:
    codes = [f"Who filed caase{a}{b}?" for a in "abcdefghij" for b in "klmnopqrst"]
    few = [f"Who filed caase{a}?" for a in "abc"]
    assert len(codes) > MOST_ALIKE
    assert flagged([(code, f"g{n % 2}") for n, code in enumerate(codes[:MOST_ALIKE] + codes[MOST_ALIKE:])]) == []
    assert len(flagged([(code, "g") for code in few])) == 2


words = st.sampled_from(["stone", "stones", "stoen", "storne", "marble", "marbel", "marvel", "garble", "iron", "irons"])
made = st.lists(
    st.tuples(st.lists(words, min_size=1, max_size=3).map(" ".join), st.sampled_from("xy"), st.sampled_from("gh")),
    max_size=9,
)


def alike(one: str, other: str) -> bool:
    """The rule of a slip, word against word."""
    return OSA.distance(one, other) == 1 and one[0] == other[0] and min(map(len, (one, other))) >= 5 and (
        max(map(len, (one, other))) >= 6
    )  # fmt: skip


def families(rows: Sequence[tuple[str, str, str]]) -> int:
    """Flagged rows counted by comparing every pair of questions."""
    wordings = sorted({(group, question) for question, _, group in rows})
    golds = {key: {gold for question, gold, group in rows if (group, question) == key} for key in wordings}
    counts = {w: sum(w in q.split() for _, q in wordings) for _, text in wordings for w in text.split()}
    parent = {key: key for key in wordings}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        return key if parent[key] == key else root(parent[key])

    for a, b in combinations(wordings, 2):
        one, other = sorted(a[1].split()), sorted(b[1].split())
        near = a[0] == b[0] and a[1].replace(" ", "") == b[1].replace(" ", "")
        if a[0] == b[0] and golds[a] & golds[b]:
            near |= one == other
            near |= any(
                alike(w, v) and min(counts[w], counts[v]) <= 2
                and sorted([*one[:i], *one[i + 1 :]]) == sorted([*other[:j], *other[j + 1 :]])
                for i, w in enumerate(one) for j, v in enumerate(other)
            )  # fmt: skip
            for whole, part in ((one, other), (other, one)):
                for i, w in enumerate(whole):
                    inside = [w in q.split() for group, q in wordings if group == a[0]]
                    template = sum(inside) >= 5 and sum(inside) >= 0.25 * len(inside)
                    near |= template and [*whole[:i], *whole[i + 1 :]] == part
        if near:
            parent[root(b)] = root(a)
    return len(wordings) - len({root(key) for key in wordings})


@settings(max_examples=60, deadline=None)
@given(made, st.randoms(use_true_random=False))
def test_families_agree_with_every_pair_compared_in_any_order(
    rows: list[tuple[str, str, str]], random: rng.Random
) -> None:
    assert len(flagged(rows)) == families(rows)
    random.shuffle(rows)
    assert len(flagged(rows)) == families(rows)


def test_an_empty_frame_and_rows_that_cannot_be_used() -> None:
    assert near_duplicates(pl.DataFrame(schema=ROWS)).schema == pl.Schema(NEAR)
    lines = [{**BLANK, "row": 0, "question": "Q?"}, {**BLANK, "row": 1, "answers": ["a"]}]
    assert near_duplicates(pl.DataFrame(lines, schema=ROWS)).is_empty()
