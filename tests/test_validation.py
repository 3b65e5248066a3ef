from __future__ import annotations

import json
import random as rng
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.data.schema import ROWS, flag_rows
from foreknow.data.validation import check, concat_as_splits
from foreknow.data.validation_result import CheckResult, finding_lines, groups_table
from foreknow.data.validation_rules import MOST_SPLITS, Finding

BLANK: dict[str, Any] = {**dict.fromkeys(ROWS), "group": "all", "flags": []}


def frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{**BLANK, "row": n, "record": n, **row} for n, row in enumerate(rows)], schema=ROWS)


def fact(question: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "answers": list(answers), **more}


CITIES = {"Lyon": "France", "Cusco": "Peru", "Bergen": "Norway", "Tartu": "Estonia", "Osaka": "Japan", "Accra": "Ghana"}
SOUND = [fact(f"Which country is {city} in?", country, subject=city) for city, country in CITIES.items()]


def found(rows: Sequence[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(frame(rows)).findings}


def test_sound_rows_have_no_findings() -> None:
    checked = check(frame(SOUND))
    assert checked.findings == ()
    assert not checked.fails
    assert checked.flags.is_empty()
    assert finding_lines(checked)[-1] == "nothing found"
    assert checked.summary["fit_ceiling"] == 1
    assert checked.summary["answer_characters"] == {"min": 4, "median": 5.5, "p95": 7, "max": 7}


@pytest.mark.parametrize(
    ("name", "severity", "row", "other"),
    [
        ("no_question", "warning", {"question": " ", "answers": ["x"]}, None),
        ("no_answer", "warning", {"question": "Why?", "answers": ["", " "]}, None),
        ("conflicting", "error", fact("Which country is Lyon in?", "Gaul"), 0),
        ("duplicate", "warning", fact("Which country is Cusco in?", "Peru"), 1),
        ("near_duplicate", "warning", fact("which country is CUSCO in", "Peru"), 1),
        ("answer_in_subject", "warning", fact("Where is it?", "New Delhi", subject="Old new Delhi"), None),
        ("answer_newline", "warning", fact("Why?", "one\ntwo"), None),
        ("invisible_characters", "warning", fact("Why?", "be\u200bcause"), None),
        ("invisible_characters", "warning", fact("Why?", "because\ufeff"), None),
        ("odd_answer", "warning", fact("Why?", "because\u00a0"), None),
        ("invisible_characters", "warning", fact("Why?\u202e", "so"), None),
        ("invisible_characters", "warning", fact("Why?", "so\x07"), None),
        ("mixed_scripts", "note", fact("Where is M\u043escow?", "Rome"), None),
        ("odd_answer", "warning", fact("Why?", "Orl\ufffdans"), None),
        ("odd_answer", "warning", fact("Why?", "Orl\u00c3\u00a9ans"), None),
        ("unfilled_template", "warning", fact("Where is [X] located?", "Rome"), None),
        ("odd_question", "note", fact("Where is Orl\ufffdans?", "Rome"), None),
        ("bare_question", "note", fact("Tallinn?", "Estonia's", subject="Tallinn"), None),
        ("long_answer", "note", fact("Why?", "so " * 33), None),
    ],
)
def test_each_fault_is_found_once_with_its_row(
    name: str, severity: str, row: dict[str, Any], other: int | None
) -> None:
    finding = found([*SOUND, row])[name]
    both = name == "conflicting"
    assert (finding.severity, finding.count, finding.of) == (severity, 1 + both, "rows")
    assert (finding.examples[-1].row, finding.examples[-1].other_row) == (6, other)


@pytest.mark.parametrize(
    "answer",
    ["Ãvila", "naïve café", "می‌خواهم", "👩‍👧", "Zoë–Ann’s", "so " * 31 + "so"],
)
def test_unusual_but_sound_answers_are_left_alone(answer: str) -> None:
    assert found([*SOUND, fact("Why?", answer)]) == {}


def test_a_row_without_a_question_is_shown_with_its_answer() -> None:
    lines = finding_lines(check(frame([*SOUND, {"question": " ", "answers": ["x"]}])))
    assert f"    row {len(SOUND)}: (none) -> x" in lines
    assert lines[-1] == "rows are counted from 0: row 0 is the first record"


def test_the_flags_to_add_are_those_that_a_row_has_not() -> None:
    rows = [*SOUND, fact("Which country is Lyon in?", "France", flags=["duplicate", "mine"]), fact("Why?", "a\nb")]
    assert check(frame(rows)).flags.rows() == [(7, ["answer_newline"])]
    assert check(flag_rows(frame(rows))).flags.rows() == [(7, ["answer_newline"])]


def test_groups_that_are_small_or_guessable() -> None:
    rows = [fact(f"Which country is {city} in?", "Mali", group="guess") for city in CITIES]
    rows += [fact(f"Which sea is near {city}?", city[::-1], group="few") for city in list(CITIES)[:4]]
    findings = found(rows)
    assert {name: (f.count, f.share, f.of, f.examples[0].row) for name, f in findings.items()} == {
        "few_rows": (1, 0.5, "groups", 6),
        "majority_answer": (1, 0.5, "groups", 0),
    }
    checked = check(frame(rows))
    assert not checked.fails
    assert checked.by_group.select("group", "usable", "golds", "floor", "majority_answer").rows() == [
        ("few", 4, 4, 0.25, "negreB"),
        ("guess", 6, 1, 1.0, "Mali"),
    ]
    assert checked.summary["majority_floor"] == pytest.approx(0.7)


def test_splits_are_compared_pair_by_pair_in_the_order_of_their_use() -> None:
    rows = [
        fact("Q1?", "a", subject="Straße", split="test"),
        fact("Q1?", "a", subject="STRASSE", split="train"),
        fact("Q2?", "b", split="validation"),
        fact("Q2?", "c", split="test"),
        fact("Q2?", "c", split="test"),
        fact("q2", "c", split="test"),
        fact("Q3?", "d"),
    ]
    checked = check(frame(rows))
    assert checked.summary["splits"] == {"train": 1, "validation": 1, "test": 4}
    assert checked.summary["overlap"] == [
        {"earlier": "train", "later": "validation", "rows": 1, "questions": 0, "subjects": 0},
        {"earlier": "train", "later": "test", "rows": 4, "questions": 1, "subjects": 1},
        {"earlier": "validation", "later": "test", "rows": 4, "questions": 2, "subjects": 0},
    ]
    findings = {finding.name: finding for finding in checked.findings}
    overlap = findings["question_in_other_split"]
    assert (overlap.severity, overlap.count) == ("error", 3)
    assert [(one.row, one.other_row) for one in overlap.examples] == [(0, 1), (3, 2), (4, 2)]
    assert "train/test 1, validation/test 2" in overlap.message
    assert findings["subject_in_other_split"].count == 1
    near = findings["near_duplicate_in_other_split"]
    assert (near.count, near.examples[0].row, near.examples[0].other_row) == (1, 5, 2)
    assert findings["no_split"].count == 1


def test_an_overlap_that_leaves_training_out_is_a_warning() -> None:
    rows = [fact("Q1?", "a", split="dev"), fact("Q1?", "a", split="test")]
    assert found(rows)["question_in_other_split"].severity == "warning"


def test_another_turn_before_a_question_makes_it_another_input() -> None:
    turns = [[{"role": "user", "content": text}] for text in ("Tea?", "Coffee?")]
    rows = [fact("Sure?", "Yes.", split=s, context=c) for s, c in zip(("train", "test"), turns, strict=True)]
    assert "question_in_other_split" not in found(rows)
    assert "question_in_other_split" in found([rows[0], {**rows[0], "split": "test"}])


def test_more_splits_than_can_be_compared_are_counted_all_the_same() -> None:
    rows = [fact("Q?", "a", split=f"s{n:02}") for n in range(30) for _ in range(1 + (n == 29))]
    summary = check(frame(rows)).summary
    assert len(summary["splits"]) == 30
    assert len(summary["overlap"]) == MOST_SPLITS * (MOST_SPLITS - 1) // 2
    assert any(pair["later"] == "s29" for pair in summary["overlap"])


def test_files_put_together_are_splits_with_rows_of_their_own() -> None:
    train, test = frame(SOUND[:4]), flag_rows(frame([SOUND[3], *SOUND[4:]]))
    rows = concat_as_splits({"train": train, "test": test})
    assert rows.schema == pl.Schema(ROWS)
    assert rows["row"].to_list() == list(range(7))
    assert rows["split"].to_list() == ["train"] * 4 + ["test"] * 3
    checked = check(rows)
    assert checked.flags.rows() == [(4, ["duplicate", "question_in_other_split", "subject_in_other_split"])]
    assert concat_as_splits({}).schema == pl.Schema(ROWS)


def test_a_file_without_any_usable_row_fails() -> None:
    for rows in ([], [{"question": None, "answers": ["a"]}]):
        checked = check(frame(rows))
        assert checked.findings[0].name == "nothing_usable"
        assert checked.fails
        assert checked.summary["fit_ceiling"] is None
        assert finding_lines(checked)


def test_what_is_printed_is_short_and_cannot_steer_a_terminal() -> None:
    long = "\x1b[31mred " + "so " * 200
    rows = [fact(f"{long}{n}", "a\r\nb", "c", split="train", group="\x1b[2J") for n in range(9)]
    checked = check(frame([*rows, fact("\x1b]0;x\x07", "d", split="a\x1b[2J")]))
    printed = finding_lines(checked)
    assert all(line.isprintable() and len(line) < 450 for line in printed)
    assert any(line.startswith("    row 0: ") for line in printed)
    cells = groups_table(checked, most=1)
    assert cells.height == 1
    assert cells["group"].to_list() == ["\ufffd[2J"]


# properties

texts = st.sampled_from(
    ["Where was Anna Hawthorne born?", "where was anna hawthorne born", "Who is Bo?", "Is it?", "Qé?"]
)
made = st.lists(
    st.fixed_dictionaries({
        "question": st.none() | texts,
        "answers": st.none() | st.lists(st.sampled_from(["a", "b", "A", "Bo"]), max_size=2),
        "subject": st.sampled_from([None, "Bo", "BO", "x"]),
        "split": st.sampled_from([None, "train", "dev", "test"]),
        "group": st.sampled_from(["g", "h"]),
    }),
    max_size=14,
)  # fmt: skip


def told(checked: CheckResult) -> tuple[Any, ...]:
    """All that must not depend on the order of the rows. A copy counts in the group of the later row."""
    counts = {key: value for key, value in checked.summary.items() if key not in ("findings", "by_group")}
    kinds = [(f.name, f.severity, f.count, f.share, f.of, f.message) for f in checked.findings]
    return counts, kinds, checked.by_group.drop("duplicate").rows()


@settings(max_examples=25, deadline=None)
@given(made, st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_the_order_of_rows(rows: list[dict[str, Any]], random: rng.Random) -> None:
    before = told(check(frame(rows)))
    random.shuffle(rows)
    assert told(check(frame(rows))) == before


@settings(max_examples=25, deadline=None)
@given(made.filter(bool), st.data())
def test_a_copy_of_a_row_adds_one_duplicate_and_nothing_near(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    copied = data.draw(st.sampled_from(rows))
    before, after = (check(frame(those)).summary for those in (rows, [*rows, copied]))
    usable = copied["question"] is not None and bool(copied["answers"])
    assert after["rows"] == before["rows"] + 1
    assert after["usable"] == before["usable"] + usable
    assert after["flags"].get("duplicate", 0) == before["flags"].get("duplicate", 0) + usable
    assert after["flags"].get("near_duplicate", 0) == before["flags"].get("near_duplicate", 0)


@settings(max_examples=25, deadline=None)
@given(made)
def test_ceiling_and_overlap_against_brute_force(rows: list[dict[str, Any]]) -> None:
    checked = check(frame(rows))
    usable = [row for row in rows if row["question"] is not None and row["answers"]]
    counts = Counter((row["question"], row["answers"][0]) for row in usable)
    best = sum(max(n for (q, _), n in counts.items() if q == question) for question in {q for q, _ in counts})
    assert checked.summary["fit_ceiling"] == (best / len(usable) if usable else None)
    for pair in checked.summary["overlap"]:
        one, other = ([row for row in usable if row["split"] == pair[side]] for side in ("earlier", "later"))
        assert pair["rows"] == len(other)
        assert pair["questions"] == sum(row["question"] in {r["question"] for r in one} for row in other)
        subjects = {r["subject"].casefold() for r in one if r["subject"]}
        assert pair["subjects"] == sum(bool(row["subject"]) and row["subject"].casefold() in subjects for row in other)


odd = st.none() | st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(["", " ", "\n", "{}", "a" * 200])
anything = st.lists(
    st.fixed_dictionaries({
        "row": st.none() | st.integers(-3, 9),
        "question": odd,
        "answers": st.none() | st.lists(odd, max_size=3),
        "subject": odd,
        "relation": odd,
        "split": odd,
        "group": odd,
        "popularity": st.none() | st.floats(),
        "flags": st.none() | st.lists(odd, max_size=2),
        "context": st.none() | st.lists(st.none() | st.fixed_dictionaries({"role": odd, "content": odd}), max_size=2),
    }),
    max_size=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(anything)
def test_any_frame_is_checked_without_an_error_and_told_in_json(rows: list[dict[str, Any]]) -> None:
    checked = check(frame(rows))
    again = json.loads(json.dumps(checked.summary, allow_nan=False))
    assert again["rows"] == len(rows)
    assert again["flags"] == {f.name: f.count for f in checked.findings if f.name in again["flags"]}
    assert checked.flags["flags"].explode().null_count() == 0
    assert all(line.isprintable() for line in finding_lines(checked))
    assert groups_table(checked).height == min(len(again["by_group"]), 24)
    assert checked.fails == any(f.severity in ("error", "warning") for f in checked.findings)


def test_rows_of_chats_are_named_with_their_records() -> None:
    rows = [{**row, "record": n // 2} for n, row in enumerate([*SOUND, {"question": " ", "answers": ["x"]}])]
    lines = finding_lines(check(frame(rows)))
    assert f"    row {len(SOUND)} (record {len(SOUND) // 2}): (none) -> x" in lines
    assert lines[-1].startswith("rows and records are counted from 0")
