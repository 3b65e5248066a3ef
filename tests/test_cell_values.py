"""Cells as answers: what a person would write, words for missing values, and the file's own values on the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.validation import check
from foreknow.data.values import NULL_WORDS, holds_floats, in_order, is_null_word, quantity_of, spellings, text_of
from foreknow.errors import InputError


def facts_of(tmp_path: Path, answers: list[Any], name: str = "a.jsonl", **how: Any) -> Dataset:
    path = tmp_path / name
    questions = [f"question {n}?" for n in range(len(answers))]
    if path.suffix == ".parquet":
        pl.DataFrame({"question": questions, "answer": answers}).write_parquet(path)
    elif path.suffix == ".csv":
        pl.DataFrame({"question": questions, "answer": answers}).write_csv(path)
    else:
        lines = [json.dumps({"question": q, "answer": a}) for q, a in zip(questions, answers, strict=True)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return read_dataset(path, **how)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1912, "1912"), (1912.0, "1912"), (-3.0, "-3"), (-0.0, "0"), (0.5, "0.5"), (10000000.0, "10000000"),
        (1e15, "1000000000000000"), (1e21, "1e21"), (1.5e300, "1.5e300"), (1e-05, "0.00001"), (1e-10, "1e-10"),
        (2**70, str(2**70)), (Decimal("1912.00"), "1912"), (Decimal("1.50"), "1.5"), (Decimal("-0.00"), "0"),
        (Decimal("1E+3"), "1000"), (date(1912, 4, 15), "1912-04-15"), (datetime(1912, 4, 15), "1912-04-15"),
        (datetime(1912, 4, 15, tzinfo=UTC), "1912-04-15"), (datetime(1912, 4, 15, 2, 20), "1912-04-15 02:20"),
        (datetime(1912, 4, 15, 2, 20, 5), "1912-04-15 02:20:05"), (time(2, 20), "02:20"),
        (time(2, 20, 0, 500000), "02:20:00.5"), (b"Paris", "Paris"), (" Paris ", "Paris"), ("1,912", "1,912"),
        ("$5", "$5"), ("1912.0", "1912.0"), (float("nan"), None), (float("inf"), None), (Decimal("NaN"), None),
        (True, None), (None, None), ("", None), (" ", None), (b"\xff", None), ("\ud800", None), ([1], None),
    ],
)  # fmt: skip
def test_what_a_person_would_write(value: object, text: str | None) -> None:
    assert text_of(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_a_number_written_for_a_person_is_the_same_number(value: float | Decimal) -> None:
    text = text_of(value)
    assert text is not None
    assert type(value)(text) == value
    assert not text.endswith(".0")
    assert "+" not in text


@pytest.mark.parametrize(
    ("value", "of_floats", "texts"),
    [
        (True, False, ["yes", "Yes", "true", "True"]), (False, False, ["no", "No", "false", "False"]),
        ("True", False, ["True", "yes", "Yes", "true"]), 
        ("FALSE", False, ["FALSE", "no", "No", "false", "False"]), ("yes", False, ["yes"]),
        ("1912.0", True, ["1912", "1912.0"]), ("1912.0", False, ["1912.0", "1912"]),
        ("0.5", True, ["0.5"]), ("1912-04-15 00:00:00", False, ["1912-04-15", "1912-04-15 00:00:00"]),
        ("1912-04-15T00:00:00.000Z", False, ["1912-04-15", "1912-04-15T00:00:00.000Z"]),
        ("1912-04-15 02:20:00", False, ["1912-04-15 02:20:00"]), ("v2.0", False, ["v2.0"]), (None, False, []),
    ],
)  # fmt: skip
def test_an_answer_counts_in_each_of_its_spellings(value: object, of_floats: bool, texts: list[str]) -> None:
    assert spellings(value, of_floats=of_floats) == texts


def test_a_column_of_floats_is_known_by_all_its_cells() -> None:
    assert holds_floats(["1912.0", "", "0.5", None, "nan"])
    assert not holds_floats(["1912.0", "Paris"])
    assert not holds_floats(["1.5", "0.5"])
    assert not holds_floats(["1912", "1912.0"])
    assert not holds_floats([])


TYPED: dict[str, tuple[pl.Series, list[list[str]]]] = {
    "floats": (pl.Series([1912.0, 0.5, 1e21]), [["1912"], ["0.5"], ["1e21"]]),
    "float32": (pl.Series([0.1, 1912.0, 2.5], dtype=pl.Float32), [["0.1"], ["1912"], ["2.5"]]),
    "lists of float32": (pl.Series([[0.1], [1912.0, 7.0], [2.5]], dtype=pl.List(pl.Float32)),
                         [["0.1"], ["1912", "7"], ["2.5"]]),
    "integers": (pl.Series([1, 2**62, -7]), [["1"], [str(2**62)], ["-7"]]),
    "booleans": (pl.Series([True, False, True]), [["yes", "Yes", "true", "True"], ["no", "No", "false", "False"]]),
    "dates": (pl.Series([date(1912, 4, 15), date(1, 1, 1), date(2024, 2, 29)]), [["1912-04-15"], ["0001-01-01"]]),
    "timestamps": (pl.Series([datetime(1912, 4, 15), datetime(1912, 4, 15, 2, 20), datetime(1970, 1, 1)]),
                   [["1912-04-15"], ["1912-04-15 02:20"], ["1970-01-01"]]),
    "timestamps in a zone": (pl.Series([datetime(1912, 4, 15)] * 3, dtype=pl.Datetime("ns", "UTC")), [["1912-04-15"]]),
    "decimals": (pl.Series([Decimal("1912.00"), Decimal("1.50"), Decimal("0.00")]), [["1912"], ["1.5"], ["0"]]),
    "categories": (pl.Series(["a", "b", "a"], dtype=pl.Categorical()), [["a"], ["b"], ["a"]]),
    "bytes": (pl.Series([b"Paris", b"Lima", b"Rome"]), [["Paris"], ["Lima"], ["Rome"]]),
    "times": (pl.Series([time(2, 20), time(0), time(23, 59, 59)]), [["02:20"], ["00:00"], ["23:59:59"]]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPED)
def test_typed_answers_become_texts_and_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    values, answers = TYPED[kind]
    table = pl.DataFrame({"question": ["a?", "b?", "c?"], "answer": values})
    table.write_parquet(tmp_path / "a.parquet")
    facts = read_dataset(tmp_path / "a.parquet")
    assert facts.rows["answers"].to_list()[: len(answers)] == answers
    facts.annotate(pl.DataFrame({"row": [0, 1, 2], "category": ["Unknown"] * 3}), tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").drop("category").equals(table)


def test_json_values_become_texts_and_their_text_stays(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [1912.0, 1e21, True, [1912.0, "MCMXII"], "1912.0", 10**25])
    assert facts.rows["answers"].to_list() == [
        ["1912"], ["1e21"], ["yes", "Yes", "true", "True"], ["1912", "MCMXII"], ["1912.0", "1912"], [str(10**25)],
    ]  # fmt: skip
    facts.annotate(pl.DataFrame({"row": range(6), "category": ["Unknown"] * 6}), tmp_path / "out.jsonl")
    before = (tmp_path / "a.jsonl").read_text().splitlines()
    after = (tmp_path / "out.jsonl").read_text().splitlines()
    assert after == [f'{line[:-1]}, "category": "Unknown"}}' for line in before]


def test_a_csv_of_floats_with_gaps_as_pandas_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nWhen a?,1912.0\nWhen b?,\nWhen c?,1969.0\n")
    facts = read_dataset(path)
    assert facts.rows["answers"].to_list() == [["1912", "1912.0"], None, ["1969", "1969.0"]]
    assert "answers are numbers such as 1912.0, read as 1912" in facts.reason
    facts.annotate(pl.DataFrame({"row": [0], "category": ["Unknown"]}), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "When a?,1912.0,Unknown"
    path.write_text("question,answer\nWhich version?,2.0\nWho?,Ann\n")
    assert read_dataset(path).rows["answers"].to_list() == [["2.0", "2"], ["Ann"]]


FORMATS: dict[str, Callable[[list[Any]], list[Any]]] = {"a.jsonl": list, "a.csv": list, "a.parquet": list}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "word", ["nan", "NaN", "null", "NULL", "None", "N/A", "#N/A", "<NA>", "NaT", "nil", "-", "undefined"]
)
def test_a_word_for_a_missing_value_is_no_gold_unless_it_is_said_to_be(tmp_path: Path, name: str, word: str) -> None:
    facts = facts_of(tmp_path, ["Paris", word, f" {word} ", "Nonesuch"], name)
    assert facts.rows["answers"].to_list() == [["Paris"], None, None, ["Nonesuch"]]
    assert facts.rows["flags"].to_list() == [[], ["missing_value"], ["missing_value"], []]
    assert facts.left_out == {"missing_value": 2}
    assert facts.row_account == "4 records: 2 rows read, 2 left out (missing_value 2)"
    kept = facts_of(tmp_path, ["Paris", word, f" {word} ", "Nonesuch"], name, null_words="keep")
    assert kept.rows["answers"].to_list() == [["Paris"], [word], [word], ["Nonesuch"]]
    assert kept.rows["flags"].to_list() == [[], ["null_word"], ["null_word"], []]
    assert kept.left_out == {}


def test_null_words_in_check(tmp_path: Path) -> None:
    found = check(facts_of(tmp_path, ["Paris", "nan", "None", "Rome", "Lima", "Bern", "Oslo"]).rows)
    assert found.summary["left_out"] == {"missing_value": 2}
    told = next(finding for finding in found.findings if finding.name == "missing_value")
    assert (told.severity, told.count) == ("warning", 2)
    assert "--null-words keep" in told.message
    kept = check(facts_of(tmp_path, ["Paris", "nan", "None", "Rome", "Lima"], null_words="keep").rows)
    assert kept.summary["flags"] == {"null_word": 2}


def test_a_null_word_beside_other_answers_is_one_of_them_but_not_the_gold(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [["None", "0", "zero"], ["nan", "NaN"], [None, "Paris"]])
    assert facts.rows["answers"].to_list() == [["0", "zero", "None"], None, ["Paris"]]


def test_a_question_or_subject_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"question": "nan", "answer": "Paris", "subject": "France", "relation": "capital"},
        {"question": "Capital?", "answer": "Paris", "subject": "nan", "relation": "None"},
        {"question": "Of which country is the code NA?", "answer": "Namibia", "subject": "NA"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_dataset(path).rows
    assert found["flags"].to_list() == [["missing_value"], [], []]
    assert found["subject"].to_list() == ["France", None, "NA"]
    assert found["group"].to_list() == ["capital", "all", "all"]


def test_a_file_of_nothing_but_missing_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 2 rows can be used: found missing_value 2"):
        facts_of(tmp_path, ["nan", "None"])


def test_null_words_are_matched_letter_by_letter() -> None:
    assert all(is_null_word(f" {word}") for word in NULL_WORDS)
    assert not any(map(is_null_word, ["nana", "Nan", "Na", "none of them", "N.A.", "0", "?", "Nullarbor", "minus"]))
    assert in_order(["None", "a", "None", "b"]) == ["a", "b", "None"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("12,5", 12.5),
        ("-0,25", -0.25),
        ("1,912", None),
        ("1,9123", 1.9123),
        ("7", 7.0),
        (7, 7.0),
        ("x", None),
        (True, None),
    ],
)
def test_popularity_with_a_decimal_comma(value: object, number: float | None) -> None:
    assert quantity_of(value) == number


def test_popularity_in_a_european_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question;answer;popularity\na?;3,14;12,5\nb?;1,912;1,912\n")
    rows = read_dataset(tmp_path / "a.csv").rows
    assert rows["popularity"].to_list() == [12.5, None]
    assert rows["answers"].to_list() == [["3,14"], ["1,912"]]
