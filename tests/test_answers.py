"""What answers come to: EM, wrong answers, collapse, refusals, moves; and what was known of rows before."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.categories import CATEGORIES
from foreknow.data.exact_match import Accepted
from foreknow.data.schema import ROWS
from foreknow.stages.evaluate import tables as evaluate_tables
from foreknow.stages.evaluate.metrics import ANSWERED, PREDICTIONS, answered, summarise_answers
from foreknow.stages.train.base_labels import LABELS, labels_of
from foreknow.stats import wilson

ONE = st.fixed_dictionaries(
    {
        "group": st.sampled_from(["capital", "river"]),
        "split": st.sampled_from(["test", "ood", None]),
        "answer": st.sampled_from(["Lima", "Paris", "Rhone", "I don't know."]),
        "prediction": st.sampled_from(["Lima", "lima", "Paris", "Rhone", "I don't know.", "", "Lima and\u2026"]),
        "category": st.sampled_from([*CATEGORIES, None]),
        "p": st.sampled_from([0.0, 0.3, 0.5, 1.0, None]),
    }
)


def frame(lines: list[dict[str, Any]], idk: str | None = None) -> pl.DataFrame:
    """Lines as `ANSWERED`, judged as generation judges them."""
    blank = dict.fromkeys(ROWS)
    rows = [
        {**blank, "row": n, "question": f"{n}?", "answers": [x["answer"]], "group": x["group"], "split": x["split"]}
        for n, x in enumerate(lines)
    ]
    said = [
        (n, x["prediction"], "\u2026" not in x["prediction"], *both(x["answer"], x["prediction"]), None, None)
        for n, x in enumerate(lines)
    ]
    labels = [(n, x["category"], x["p"], "Quito") for n, x in enumerate(lines) if x["category"]]
    return answered(
        pl.DataFrame(rows, schema=ROWS),
        pl.DataFrame(said, schema=PREDICTIONS, orient="row"),
        pl.DataFrame(labels, schema=LABELS, orient="row"),
        idk,
    )


def both(answer: str, said: str) -> tuple[bool, bool]:
    accepted = Accepted.of([answer])
    return accepted.right(said, "strict"), accepted.right(said, "lenient")


def line(said: str, answer: str, category: str | None = None, p: float | None = None, group: str = "a") -> Any:
    return {"group": group, "split": None, "answer": answer, "prediction": said, "category": category, "p": p}


@settings(max_examples=50)
@given(st.lists(ONE, max_size=30), st.booleans())
def test_every_row_is_counted_once_and_parts_add_up(lines: list[dict[str, Any]], lenient: bool) -> None:
    rows = frame(lines)
    assert dict(rows.schema) == ANSWERED
    found = summarise_answers(rows, lenient=lenient)
    json.dumps(found, allow_nan=False)
    counts = found["answers"]
    column = "correct_lenient" if lenient else "correct"
    both = rows.filter(pl.col(column) & pl.col("refused")).height
    assert counts["correct"] + counts["wrong"] + counts["refused"] - both == len(lines)
    by_relation = found["em"]["by_relation"].values()
    assert sum(of["strict"]["count"] for of in by_relation) == found["em"]["overall"]["strict"]["count"]
    assert sum(of["strict"]["rows"] for of in found["em"]["by_category"].values()) == found["labelled"]
    assert sum(of["strict"]["rows"] for of in found["em"]["by_split"].values()) == rows["split"].drop_nulls().len()
    of = found["answering"]["overall"]
    assert of["yield"]["count"] == of["accuracy"]["count"] == counts["correct"] - both
    assert of["accuracy"]["rows"] == of["coverage"]["count"] == len(lines) - counts["refused"]
    wrong = found["wrong_answers"]["overall"]
    assert sum(one["count"] for one in wrong) == counts["wrong"]
    assert sum(one["share"] for one in wrong) == pytest.approx(1.0 if wrong else 0.0)


@settings(max_examples=50)
@given(st.lists(ONE, max_size=30))
def test_moves_are_those_counted_one_by_one(lines: list[dict[str, Any]]) -> None:
    found = summarise_answers(frame(lines))["moves"]
    compared = [x for x in lines if x["category"] and x["p"] is not None]
    labelled = [x for x in lines if x["category"]]
    if not labelled:
        assert found is None
        return
    was = [x["p"] >= 0.5 for x in compared]
    now = [x["prediction"] == x["answer"] for x in compared]
    overall = found["overall"]
    assert overall["compared"] == len(compared)
    assert overall["correct_to_wrong"]["count"] == sum(a and not b for a, b in zip(was, now, strict=True))
    assert overall["wrong_to_correct"]["count"] == sum(b and not a for a, b in zip(was, now, strict=True))
    assert overall["correct_to_wrong"]["rows"] == sum(was)
    assert overall["net"] == sum(now) - sum(was)
    lost = [x["prediction"] != x["answer"] for x in labelled if x["category"] == "HighlyKnown"]
    assert (found["lost"]["count"], found["lost"]["rows"]) == (sum(lost), len(lost))
    gained = [x["prediction"] == x["answer"] for x in labelled if x["category"] == "Unknown"]
    assert (found["gained"]["count"], found["gained"]["rows"]) == (sum(gained), len(gained))
    assert list(found["by_category"]) == [c for c in CATEGORIES if any(x["category"] == c for x in labelled)]


def test_shares_carry_wilson_intervals_and_none_where_there_are_no_rows() -> None:
    found = summarise_answers(frame([line("Lima", "Lima"), line("x", "Lima"), line("x", "Lima")]))
    expected = wilson(1, 3)
    em = found["em"]["overall"]["strict"]
    assert (em["share"], em["ci_low"], em["ci_high"]) == (expected.value, expected.low, expected.high)
    nothing = found["refusals"]["over_refusal"]
    assert nothing == {"share": None, "ci_low": None, "ci_high": None, "count": 0, "rows": 0}
    assert found["moves"] is None


def test_collapse_is_told_against_the_golds() -> None:
    # always the same city, though every gold is another
    golds = ["Lima", "Paris", "Rome", "Lima", "Oslo"]
    found = summarise_answers(frame([line("Paris", gold) for gold in golds] + [line("I don't know.", "Bern")]))
    assert found["collapse"]["by_relation"]["a"] == {
        "rows": 5,
        "predictions": {"top": "Paris", "count": 5, "share": 1.0, "distinct": 1},
        "golds": {"top": "Lima", "count": 2, "share": 0.4, "distinct": 4},
    }
    assert found["wrong_answers"]["by_relation"]["a"] == [{"prediction": "Paris", "count": 4, "share": 1.0}]


def test_frequent_wrong_answers_come_first_and_ties_by_text() -> None:
    said = ["b", "a", "c", "c", "Lima", "I don't know."]
    found = summarise_answers(frame([line(text, "Lima") for text in said]))["wrong_answers"]["overall"]
    assert [(one["prediction"], one["count"], one["share"]) for one in found] == [
        ("c", 2, 0.5),
        ("a", 1, 0.25),
        ("b", 1, 0.25),
    ]


def test_a_refusal_that_was_taught_counts_as_one() -> None:
    lines = [
        line("No clue!", "Lima", "HighlyKnown", 1.0),
        line("no clue", "No clue!"),
        line("Lima", "Lima", "Unknown", 0),
    ]
    assert summarise_answers(frame(lines))["answers"]["refused"] == 0
    found = summarise_answers(frame(lines, "No clue!"), lenient=True)
    assert found["answers"] == {"correct": 2, "wrong": 0, "refused": 2, "empty": 0, "not_ended": 0}
    assert found["refusals"]["over_refusal"]["count"] == found["refusals"]["over_refusal"]["rows"] == 1
    # the gold of the second row is the refusal: right, but nothing was answered
    assert found["answering"]["overall"]["yield"]["count"] == 1
    assert found["answering"]["overall"]["coverage"]["share"] == pytest.approx(1 / 3)


def test_labels_are_found_by_number_in_the_same_file_else_by_question_and_gold() -> None:
    blank = dict.fromkeys(ROWS)
    rows = pl.DataFrame(
        [
            {**blank, "row": n, "question": q, "answers": [a]}
            for n, (q, a) in enumerate([("p", "1"), ("q", "2"), ("q", "3")])
        ],
        schema=ROWS,
    )
    audited = pl.DataFrame(
        {
            "row": [0, 1, 2, 3],
            "question": ["q", "q", "q", "p"],
            "earlier_turns": [None, None, None, None],
            "answer": ["2", "2", "3", "1"],
            "category": ["Unknown", "HighlyKnown", "MaybeKnown", None],
            "p_greedy": [0.0, 1.0, 0.5, None],
            "model_answer": ["x", "2", "3", None],
        },
        schema_overrides={"earlier_turns": pl.String},
    )
    by_text = labels_of(rows, audited, same_file=False)
    assert by_text.rows() == [(1, "Unknown", 0.0, "x"), (2, "MaybeKnown", 0.5, "3")]
    by_number = labels_of(rows, audited, same_file=True)
    assert by_number["category"].to_list() == ["Unknown", "HighlyKnown", "MaybeKnown"]
    assert dict(by_text.schema) == dict(by_number.schema) == LABELS


def test_the_tables_say_what_the_summary_says() -> None:
    lines = [
        line("Lima", "Lima", "HighlyKnown", 1.0),
        line("Paris", "Rome", "HighlyKnown", 0.9),
        line("Oslo", "Oslo", "Unknown", 0.0, "b"),
        line("I don't know.", "Bern", "Unknown", 0.2, "b"),
    ]
    found = summarise_answers(frame(lines))
    em = evaluate_tables.em_table(found)
    assert em["rows of"].to_list() == ["all", "HighlyKnown", "Unknown", "a", "b"]
    assert em["EM"].to_list() == ["50.0%"] * 5
    assert em["refused"].to_list() == ["25.0%", "0.0%", "50.0%", "0.0%", "50.0%"]
    moves = evaluate_tables.moves_table(found)
    assert moves is not None
    columns = ["before", "rows", "now right", "now wrong", "base right", "right to wrong", "wrong to right"]
    assert moves.select(columns).rows() == [
        ("HighlyKnown", "2", "1", "1", "2 of 2", "1", "0"),
        ("Unknown", "2", "1", "1", "0 of 2", "0", "1"),
    ]
    assert evaluate_tables.wrong_table(found).rows() == [], "a wrong answer that is given once is not frequent"
    twice = {"overall": [{"prediction": "Paris", "count": 2, "share": 1.0}]}
    assert evaluate_tables.wrong_table({**found, "wrong_answers": twice}).rows() == [("Paris", "2", "100.0%")]
    assert evaluate_tables.collapse_table(found)["distinct"].to_list() == ["3", "2", "1"]
    told = "\n".join(evaluate_tables.summary_lines(found))
    assert "2 right, 1 wrong, 1 refused (0 of them empty)" in told
    assert "coverage 75.0%, accuracy when answering 66.7%, yield 50.0%" in told
    assert "lost: 1 of 2 (50.0%, 9.5% to 90.5%) HighlyKnown rows; gained: 1 of 2" in told
    parts = evaluate_tables.em_table(summarise_answers(frame([{**one, "split": "ood"} for one in lines])))
    assert parts["rows of"].to_list() == ["all", "HighlyKnown", "Unknown", "split ood", "a", "b"]
    one_group = summarise_answers(frame(lines[:2]))
    assert evaluate_tables.em_table(one_group)["rows of"].to_list() == ["all", "HighlyKnown"]
    assert evaluate_tables.collapse_table(one_group)["relation"].to_list() == ["all"]
    empty = summarise_answers(frame([]))
    assert evaluate_tables.em_table(empty)["EM"].to_list() == ["-"]
    assert evaluate_tables.wrong_table(empty).is_empty()
    assert evaluate_tables.moves_table(empty) is None
    assert "no categories" in evaluate_tables.summary_lines(empty)[-1]
