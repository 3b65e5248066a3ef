"""Questions asked in other words, and long answers that stand twice: what is found, what is not, and by which rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data import similar_questions as similar_module
from foreknow.data.schema import ROWS
from foreknow.data.similar_questions import SIMILAR, similar_questions
from foreknow.data.validation import check

BLANK: dict[str, Any] = {**dict.fromkeys(ROWS), "group": "all", "flags": []}
LONG = (
    "Photosynthesis is the process by which green plants turn light water and carbon dioxide into sugar and oxygen in "
    "the chloroplasts of their leaves"
)
OTHER = "A mortgage is a loan for which a house stands as security so that the bank may sell it if nobody pays it back"


def frame(rows: Sequence[tuple[str, str]], **columns: Sequence[Any]) -> pl.DataFrame:
    lines = [
        {**BLANK, "row": n, "record": n, "question": question, "answers": [answer]}
        | {name: values[n] for name, values in columns.items()}
        for n, (question, answer) in enumerate(rows)
    ]
    return pl.DataFrame(lines, schema=ROWS)


def similar(rows: Sequence[tuple[str, str]], **columns: Sequence[Any]) -> list[tuple[int, int]]:
    found = similar_questions(frame(rows, **columns)).drop_nulls("similar_row")
    return [pair for pair in found.select("row", "similar_row").rows() if pair[0] != pair[1]]


@pytest.mark.parametrize(
    "other",
    [
        "Explain photosynthesis, please.",
        "Could you tell me what photosynthesis means?",
        "I'd like to know about photosynthesis.",
    ],
)
def test_a_question_in_another_form_is_similar_whatever_its_long_answer(other: str) -> None:
    assert similar([("What is photosynthesis?", LONG), (other, LONG)]) == [(1, 0)]
    assert similar([("What is photosynthesis?", LONG), (other, OTHER)]) == [(1, 0)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (
            "Who is at risk for Chapare Hemorrhagic Fever (CHHF)??",
            "Who is at risk for Lujo Hemorrhagic Fever (LUHF)??",
            False,
        ),
        (
            "Do you have information about Hispanic American Health",
            "Do you have information about Asian American Health",
            False,
        ),
        ("Who is at risk for Chapare Hemorrhagic Fever?", "who is at risk of chapare hemorrhagic fever (CHHF)", True),
        (
            "What Are The Risks Of Chapare Hemorrhagic Fever?",
            "Which Are Risks Of Chapare Hemorrhagic Fever Today?",
            True,
        ),
    ],
)
def test_a_stock_answer_to_questions_about_two_names_is_no_repeated_question(
    first: str, second: str, same: bool
) -> None:
    changed = f"{LONG.rsplit(' ', 1)[0]} there"
    assert similar([(first, LONG), (second, changed)]) == ([(1, 0)] if same else [])


@pytest.mark.parametrize(
    "other",
    [
        "What is a mortgage?",
        "Who discovered photosynthesis?",
        "How does photosynthesis work in algae?",
        "Why is there photosynthesis?",
    ],
)
def test_another_question_is_not_similar(other: str) -> None:
    assert similar([("What is photosynthesis?", LONG), (other, OTHER)]) == []


def test_words_may_differ_where_the_long_answers_are_nearly_the_same() -> None:
    rows = [
        ("How do I reset my router password?", LONG),
        ("I forgot my router password, how to reset?", f"Well. {LONG}"),
    ]
    assert similar(rows) == [(1, 0)]
    assert similar([rows[0], (rows[1][0], OTHER)]) == []


def test_boilerplate_about_another_subject_is_the_same_answer_and_not_the_same_question() -> None:
    rows = [
        (f"What research is being done for {name}?", f"The institute supports research on {name} {LONG}")
        for name in (
            "Coma",
            "Apraxia",
            "Alpers",
            "Colpocephaly",
            "Hypersomnia",
            "Dystonia",
            "Myopathy",
            "Ataxia",
            "Tics",
        )
    ]
    found = similar_questions(frame(rows))
    assert found["similar_row"].null_count() == len(rows)
    assert found["same_answer_row"].to_list() == [0] * len(rows)


def test_numbers_count() -> None:
    assert similar([("What is the square root of 16?", LONG), ("What is the square root of 25?", OTHER)]) == []
    assert similar([("What is the square root of 16?", LONG), ("the square root of 16, please", OTHER)]) == [(1, 0)]


def test_short_golds_must_be_equal_and_facts_of_a_relation_are_left_to_the_rules_for_templates() -> None:
    rows = [("What is the capital of Peru?", "Lima"), ("Please tell me Peru's capital.", "Lima")]
    assert similar(rows) == [(1, 0)]
    assert similar([rows[0], (rows[1][0], "Cusco")]) == []
    assert similar(rows, relation=["capital", "capital"]) == []


def test_groups_and_chats_are_told_apart() -> None:
    rows = [("What is photosynthesis?", LONG), ("Explain photosynthesis.", LONG)]
    assert similar(rows, group=["a", "b"]) == []
    assert similar(rows, context=[[{"role": "user", "content": "Hi"}], None]) == []


@given(st.permutations(range(6)))
def test_the_order_of_the_rows_changes_only_which_is_first(order: list[int]) -> None:
    forms = ["What is {}?", "Explain {}.", "Could you define {}?"]
    rows = [(form.format(name), text) for name, text in (("osmosis", LONG), ("inflation", OTHER)) for form in forms]
    found = similar_questions(frame([rows[n] for n in order]))
    families: dict[int, set[tuple[str, str]]] = {}
    for row, first in found.select("row", "similar_row").iter_rows():
        families.setdefault(first, set()).add(rows[order[row]])
    assert sorted(map(sorted, families.values())) == sorted([sorted(rows[:3]), sorted(rows[3:])])
    assert all(first == min(found.filter(pl.col("similar_row") == first)["row"]) for first in families)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=80)), max_size=12))
def test_any_texts_give_the_schema(rows: list[tuple[str, str]]) -> None:
    found = similar_questions(frame(rows))
    assert found.schema == pl.Schema(SIMILAR)
    assert (found["similar_row"].drop_nulls().is_in(list(range(len(rows))))).all()


def test_a_file_that_is_too_large_is_said_not_to_be_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(similar_module, "MOST_ROWS", 1)
    assert similar([("What is photosynthesis?", LONG), ("Explain photosynthesis.", LONG)]) == []
    assert "questions in other words are not looked for: 2 usable rows are more than 1" in capsys.readouterr().err


def test_a_check_counts_variants_and_leaks_once_each() -> None:
    forms = ["What is {}?", "Explain {}, please.", "Could you tell me what {} means?", "I'd like to know about {}."]
    subjects = [
        f"{first}{second}" for first in ("photo", "chemo", "macro", "neuro", "hydro") for second in ("lysis", "genesis")
    ]
    rows = [
        (form.format(subject), f"The word {subject} names a process of nature, {LONG}, and {subject} takes {n} days")
        for n, subject in enumerate(subjects)
        for form in forms
    ]
    whole = check(frame(rows))
    assert whole.summary["flags"]["similar_question"] == 30
    assert "near_duplicate" not in whole.summary["flags"]
    parted = check(frame(rows, split=["dev" if n % 4 == 3 else "train" for n in range(len(rows))]))
    by_name = {finding.name: finding for finding in parted.findings}
    assert by_name["similar_question_in_other_split"].count == 10
    assert by_name["answer_in_other_split"].count == 10
    example = by_name["similar_question_in_other_split"].examples[0]
    assert (example.row, example.other_row) == (3, 0)
    assert parted.fails
    apart = check(frame(rows, split=["dev" if n >= 32 else "train" for n in range(len(rows))]))
    assert "similar_question_in_other_split" not in {finding.name for finding in apart.findings}
