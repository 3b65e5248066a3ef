"""Shapes of files as they are met in the wild: what a file holds wins over its name; what is not sure is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foreknow.config import CheckConfig
from foreknow.data.dataset import read_dataset
from foreknow.data.layouts.python_reprs import parse_python_repr
from foreknow.errors import ConfigError, InputError
from foreknow.io.json_shapes import shape_of
from foreknow.settings import settings_of
from shape_files import golds, read_and_back, write

Q, A, Q2, A2 = "Capital of France?", "Paris", "Of Italy?", "Rome"
ROW, ROW2 = {"question": Q, "answer": A}, {"question": Q2, "answer": A2}
BOTH = [(Q, A), (Q2, A2)]
CHAT, CHAT2 = ([{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in BOTH)

# benchmarks


def squad(question: str, answers: list[str]) -> dict[str, Any]:
    return {"id": question, "title": "t", "context": "It is Paris, and Rome.", "question": question,
            "answers": {"text": answers, "answer_start": [6] * len(answers)}}  # fmt: skip


def behind(question: str) -> str:
    return f"{question}\nIt is Paris, and Rome."


CHOICES: dict[str, list[dict[str, Any]]] = {
    "mmlu": [{"question": Q, "subject": "geography", "choices": ["Rome", "Paris", "Bern", "Oslo"], "answer": 1},
             {"question": Q2, "subject": "geography", "choices": ["Rome", "Paris", "Bern", "Oslo"], "answer": 0}],
    "letters": [{"question": Q, "choices": ["Rome", "Paris"], "answer": "B"},
                {"question": Q2, "choices": ["Rome", "Paris"], "answer": "a)"}],
    "from 1": [{"question": Q, "options": ["Rome", "Paris"], "answer": 2},
               {"question": Q2, "options": ["Rome", "Paris"], "answer": 1}],
    "texts": [{"question": Q, "options": ["Rome", "Paris"], "answer": "Paris"},
              {"question": Q2, "options": ["Rome", "Paris"], "answer": "Rome"}],
    "an object by letter (MedQA)": [
        {"question": Q, "options": {"A": "Rome", "B": "Paris"}, "answer": "Paris", "answer_idx": "B"},
        {"question": Q2, "options": {"A": "Rome", "B": "Paris"}, "answer": "Rome", "answer_idx": "A"}],
    "arc": [{"id": "1", "question": Q, "choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}, "answerKey": "B"},
            {"id": "2", "question": Q2, "choices": {"text": ["Rome", "Paris"], "label": ["1", "2"]}, "answerKey": "1"}],
    "arc, as published": [
        {"question": {"stem": q, "choices": [{"text": "Rome", "label": "A"}, {"text": "Paris", "label": "B"}]},
         "answerKey": key} for q, key in ((Q, "B"), (Q2, "A"))],
    "openbookqa": [{"question_stem": q, "choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}, "answerKey": key}
                   for q, key in ((Q, "B"), (Q2, "A"))],
    "commonsenseqa": [{"question": q, "question_concept": "x", "answerKey": key,
                       "choices": {"label": ["A", "B"], "text": ["Rome", "Paris"]}}
                      for q, key in ((Q, "B"), (Q2, "A"))],
    "hellaswag": [{"ind": 1, "activity_label": "x", "ctx": q, "endings": ["Rome", "Paris"], "label": key}
                  for q, key in ((Q, "1"), (Q2, "0"))],
    "piqa": [{"goal": q, "sol1": "Rome", "sol2": "Paris", "label": key} for q, key in ((Q, 1), (Q2, 0))],
    "A B C D": [{"question": q, "A": "Rome", "B": "Paris", "C": "x", "D": "y", "answer": key}
                for q, key in ((Q, "B"), (Q2, "A"))],
    "medmcqa": [{"question": q, "opa": "Rome", "opb": "Paris", "opc": "x", "opd": "y", "cop": key}
                for q, key in ((Q, 1), (Q2, 0))],
    "option_a": [{"question": q, "option_a": "Rome", "option_b": "Paris", "correct_option": key}
                 for q, key in ((Q, "b"), (Q2, "a"))],
    "winogrande": [{"sentence": q, "option1": "Rome", "option2": "Paris", "answer": key}
                   for q, key in ((Q, "2"), (Q2, "1"))],
    "aqua": [{"question": q, "options": ["A)Rome", "B)Paris"], "correct": key} for q, key in ((Q, "B"), (Q2, "A"))],
    "mathqa": [{"Problem": q, "options": "a ) Rome , b ) Paris", "correct": key} for q, key in ((Q, "b"), (Q2, "a"))],
    "truthfulqa": [{"question": q, "mc1_targets": {"choices": ["Rome", "Paris"], "labels": key}}
                   for q, key in ((Q, [0, 1]), (Q2, [1, 0]))],
    "quail": [{"question": q, "answers": ["Rome", "Paris", "x", "y"], "correct_answer_id": key}
              for q, key in ((Q, 1), (Q2, 0))],
    "a list under a name of one's own": [
        {"question": q, "answer_options": {"A": "Rome", "B": "Paris"}, "correct_answer": key}
        for q, key in ((Q, "B"), (Q2, "A"))],
    "objects": [{"question": q, "answer": key,
                 "options": [{"key": "A", "value": "Rome"}, {"key": "B", "value": "Paris"}]}
                for q, key in ((Q, "B"), (Q2, "A"))],
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_text_of_the_right_choice_is_the_answer(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(CHOICES[name]).write_parquet(path)
    else:
        write(path, CHOICES[name])
    facts = read_and_back(path)
    assert golds(facts) == BOTH
    assert facts.layout == "choices"
    assert "the choices are not shown" in facts.reason
    assert facts.rows["subject"].null_count() == 2
    assert ("from 1" in facts.reason) == (name in ("from 1", "winogrande"))


def test_choices_in_a_csv_are_read_from_its_cells(tmp_path: Path) -> None:
    table = f'question,choices,answer\n{Q},"[""Rome"", ""Paris""]",1\n{Q2},"[""Rome"", ""Paris""]",0\n'
    assert golds(read_and_back(write(tmp_path / "a.csv", table))) == BOTH
    assert golds(read_and_back(write(tmp_path / "b.csv", f"question,A,B,answer\n{Q},Rome,Paris,B\n"))) == BOTH[:1]


def cell(names: str, text: str, *more: str) -> str:
    """A table of one row: the question, a cell that holds this text, and others."""
    return f'{names}\n{Q},"{text}"{"".join(f",{each}" for each in more)}\n'


TURN = "{{'role': '{}', 'content': '{}'}}"
PRINTED: dict[str, tuple[str, list[Any]]] = {
    "a list": (cell("question,answers", "['Paris', 'Paname']"), [(Q, A)]),
    "an array": (cell("question,answers", "['Paris' 'Paname']"), [(Q, A)]),
    "an array of two lines": (cell("question,answers", "['Paris'\n 'Paname']"), [(Q, A)]),
    "squad": (
        cell("question,answers", "{'text': array(['Paris'], dtype=object), 'answer_start': array([3])}"), [(Q, A)]
    ),
 "squad, with brackets in the text": (
        cell("question,answers", "{'text': array(['Paris (array([x]))'], dtype=object), 'answer_start': array([3])}"),
        [(Q, "Paris (array([x]))")],
    ),
    "squad, an array that was cut": (
        cell("question,answers", "{'text': array(['Paris', ..., 'x'], dtype=object)}") + f"{Q2},Rome\n",
        [(Q, "{'text': array(['Paris', ..., 'x'], dtype=object)}"), (Q2, A2)],
    ),
    "triviaqa": (cell("question,answer", "{'value': 'Paris', 'aliases': ['Paname'], 'type': 'W'}"), [(Q, A)]),
    "choices": (cell("question,choices,answer", "['Rome' 'Paris']", "1"), [(Q, A)]),
    "a chat": (f'messages\n"[{TURN.format("user", Q)}, {TURN.format("assistant", A)}]"\n', [(Q, A)]),
    "an array of turns": (f'messages\n"[{TURN.format("user", Q)}\n {TURN.format("assistant", A)}]"\n', [(Q, A)]),
    "a list that was cut when it was printed": (
        cell("question,answers", "['Paris' 'Paname' ... 'x']") + f"{Q2},Rome\n", [(Q, None), (Q2, A2)]
    ),
    "an answer that is a list of Python's": (cell("question,answer", "['Paris']"), [(Q, "['Paris']")]),
    "an answer that is JSON": (cell("question,answer", '{""text"": ""Paris""}'), [(Q, '{"text": "Paris"}')]),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_cells_in_which_pandas_printed_lists_and_objects_are_read_as_them(tmp_path: Path, name: str) -> None:
    content, expected = PRINTED[name]
    facts = read_and_back(write(tmp_path / "a.csv", content))
    assert golds(facts) == expected
    if "Paname" in content and "..." not in content:
        assert facts.rows["answers"].to_list() == [[A, "Paname"]]


@given(st.lists(st.text(max_size=6) | st.integers(0, 9), max_size=4), st.booleans())
def test_what_python_and_numpy_print_is_read_as_it_was(values: list[str | int], numpy: bool) -> None:
    text = str(np.array(values, dtype=object)) if numpy else repr(values)
    assert parse_python_repr(text) == (values if "'" in text else None)


def test_an_answer_that_names_no_choice_is_counted(tmp_path: Path) -> None:
    odd = [{**CHOICES["mmlu"][0], "answer": answer} for answer in (4, None, -1, "x")]
    facts = read_and_back(write(tmp_path / "a.jsonl", [*CHOICES["mmlu"], *CHOICES["mmlu"], *odd]))
    assert golds(facts)[:4] == [*BOTH, *BOTH]
    assert facts.left_out == {"no_such_choice": 2, "no_answer": 2}


def test_answers_that_are_all_right_are_no_choices(tmp_path: Path) -> None:
    records = [{"question": Q, "answers": ["Paris", "Paname"], "label": 1, "correct_answer": "Paris"}]
    assert read_dataset(write(tmp_path / "a.jsonl", records)).rows["answers"].to_list() == [["Paris", "Paname"]]


def test_a_number_that_could_count_from_0_or_from_1_is_said_to_be_unsure(tmp_path: Path) -> None:
    unsure = [{"question": q, "choices": ["Oslo", "Paris", "Rome", "Bern"], "answer": n} for q, n in ((Q, 1), (Q2, 2))]
    facts = read_dataset(write(tmp_path / "a.jsonl", unsure))
    assert golds(facts) == BOTH
    assert "from 0 (no row tells it from a number from 1: look at the first row)" in facts.reason
    sure = read_dataset(write(tmp_path / "a.jsonl", [*unsure, {**unsure[0], "question": "x?", "answer": 0}]))
    assert "no row tells" not in sure.reason


def test_choices_in_one_text_are_read_however_many_blanks_are_in_it(tmp_path: Path) -> None:
    spelled = f"(A) Rome{' ' * 20_000}x (B) Paris"
    records = [{"question": q, "options": spelled, "answer": letter} for q, letter in ((Q, "B"), (Q2, "A"))]
    facts = read_dataset(write(tmp_path / "a.jsonl", records))
    assert golds(facts) == [(Q, A), (Q2, f"Rome{' ' * 20_000}x")]


def test_texts_without_marks_are_refused_however_many_rows_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the known marks"):
        read_dataset(write(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(8192)]))


def test_an_archive_that_has_a_member_twice_is_refused_however_many_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in (*(f"{n}.txt" for n in range(10_000)), "a.jsonl"):
            archive.writestr(name, LINE)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jsonl", LINE)
    with pytest.raises(InputError, match=r"the member 'a.jsonl' stands in the archive twice\. Pack the files anew"):
        read_dataset(path)


def test_a_number_that_is_a_text_of_another_choice_is_refused(tmp_path: Path) -> None:
    records = [{"question": "2 + 1?", "choices": ["1", "2", "3"], "answer": "2"}]
    with pytest.raises(
        InputError, match=r"texts of choices, and letters or numbers of other choices.*\n.*--layout question"
    ):
        read_dataset(write(tmp_path / "a.jsonl", records))
    whole = [{"question": "2 + 1?", "choices": ["1", "2", "3"], "answer": 2}]
    assert golds(read_and_back(write(tmp_path / "a.jsonl", whole))) == [("2 + 1?", "3")]


def test_choices_whose_answer_cannot_be_told_are_refused_and_never_answered_by_a_number(tmp_path: Path) -> None:
    records = [{"question": Q, "choices": ["Rome", "Paris"], "answer": 7}]
    with pytest.raises(InputError, match="which one is right cannot be told"):
        read_dataset(write(tmp_path / "a.jsonl", records))


READING: dict[str, tuple[list[dict[str, Any]], list[Any]]] = {
    "squad": ([squad(Q, ["Paris", "Paris"]), squad(Q2, ["Rome"])], [(behind(Q), A), (behind(Q2), A2)]),
    "squad 2": ([squad(Q, ["Paris"]), squad("Nowhere?", []), squad("None?", [])],
                [(behind(Q), A), (behind("Nowhere?"), None), (behind("None?"), None)]),
    "a passage and an answer in it": (
        [{"question": Q, "passage": "It is Paris, and Rome.", "answer": "Paris"}], [(behind(Q), A)]),
    "boolq": ([{"question": "is it so", "passage": "It is Paris, and Rome.", "answer": True}],
              [(behind("is it so"), "yes")]),
    "race": ([{"question": Q, "article": "It is Paris, and Rome.", "options": ["Rome", "Paris"], "answer": "B"}],
             [(behind(Q), A)]),
    "socialiqa": ([{"context": "It is Paris, and Rome.", "question": Q, "answerA": "x", "answerB": "y", "answerC": A,
                    "label": "3"}], [(behind(Q), A)]),
}  # fmt: skip


@pytest.mark.parametrize("name", READING)
def test_a_question_about_a_passage_is_asked_with_it(tmp_path: Path, name: str) -> None:
    records, expected = READING[name]
    facts = read_and_back(write(tmp_path / "a.jsonl", records))
    assert golds(facts) == expected
    assert "passage" in facts.reason or "behind the text in" in facts.reason
    assert facts.left_out == ({"unanswerable": 2} if name == "squad 2" else {})


def test_a_passage_is_left_away_where_the_layout_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", READING["squad"][0])
    facts = read_and_back(path, layout="question")
    assert golds(facts) == BOTH
    assert "not used: context" in facts.reason


def test_a_context_that_holds_no_answers_is_named_and_not_asked_with(tmp_path: Path) -> None:
    facts = read_and_back(write(tmp_path / "a.jsonl", [{**ROW, "context": "geography"}]))
    assert golds(facts) == BOTH[:1]
    assert "not used: context" in facts.reason


QUESTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "triviaqa": (
        {
            "question": Q,
            "answer": {
                "value": A,
                "aliases": ["Paris", "Paname"],
                "normalized_aliases": ["paris"],
                "normalized_value": "paris",
                "type": "W",
            },
        },
        [A, "Paname"],
    ),
    "nq_open": ({"question": Q, "answer": ["Paris", "paris"]}, ["Paris", "paris"]),
    "webquestions": ({"url": "u", "question": Q, "answers": ["Paris"]}, ["Paris"]),
    "hotpotqa": (
        {"question": Q, "answer": A, "type": "bridge", "context": {"title": ["x"], "sentences": [["y"]]}},
        [A],
    ),
    "truthfulqa": (
        {"question": Q, "best_answer": A, "correct_answers": [A, "It is Paris"], "incorrect_answers": [A2]},
        [A, "It is Paris"],
    ),
    "sciq": ({"question": Q, "correct_answer": A, "distractor1": "x", "distractor2": "y", "support": "z"}, [A]),
    "gsm8k": ({"question": Q, "answer": "So it is.\n#### 42"}, ["So it is.\n#### 42"]),
    "flan": ({"inputs": Q, "targets": A, "task": "x"}, [A]),
    "dolly": ({"instruction": Q, "context": "", "response": A, "category": "open_qa"}, [A]),
    "human and assistant": ({"human": Q, "assistant": A}, [A]),
    "Human and Assistant": ({"Human": Q, "Assistant": A}, [A]),
    "user and bot": ({"user": Q, "bot": A}, [A]),
    "input and output": ({"input": Q, "output": A}, [A]),
    "query and response": ({"query": Q, "response": A}, [A]),
    "src and tgt": ({"src": Q, "tgt": A}, [A]),
    "question_text": ({"question_text": Q, "answer_text": A}, [A]),
    "problem and solution": ({"problem": Q, "solution": A}, [A]),
    "openai evals": ({"input": [{"role": "user", "content": Q}], "ideal": A}, [A]),
    "answer and answers": ({"question": Q, "answer": A, "answers": ["Paname", A]}, [A, "Paname"]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_and_answers_under_the_names_of_known_sets(tmp_path: Path, name: str) -> None:
    record, answers = QUESTIONS[name]
    facts = read_and_back(write(tmp_path / "a.jsonl", [record]))
    assert facts.rows["question"].to_list() == [Q]
    assert facts.rows["answers"].to_list() == [answers]


# chats in other forms

SPOKEN = list(zip(["user", "assistant"] * 2, [Q, A, Q2, A2], strict=True))
TURNS: dict[str, dict[str, Any]] = {
    "question and answer in an item": {"conversation": [{"human": Q, "assistant": A}, {"human": Q2, "assistant": A2}]},
    "one item a turn": {"messages": [{"human": Q}, {"assistant": A}, {"human": Q2}, {"assistant": A2}]},
    "user and bot": {"dialogue": [{"user": Q, "bot": A}, {"user": Q2, "bot": A2}]},
    "input and output (xtuner)": {"conversation": [{"input": Q, "output": A}, {"input": Q2, "output": A2}]},
    "texts in turn (LIMA)": {"conversations": [Q, A, Q2, A2], "source": "x"},
    "texts in turn (UltraChat)": {"id": "1", "data": [Q, A, Q2, A2]},
    "pairs of texts": {"conversations": [[Q, A], [Q2, A2]]},
    "speaker and text": {"dialog": [{"speaker": s, "text": t} for s, t in SPOKEN]},
    "sender and message": {"chat": [{"sender": s.upper(), "message": t} for s, t in SPOKEN]},
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS)
def test_turns_in_other_forms_come_back_in_them(tmp_path: Path, name: str) -> None:
    facts = read_and_back(write(tmp_path / "a.jsonl", [TURNS[name]]))
    assert golds(facts) == BOTH
    assert facts.rows["turn"].to_list() == [1, 3]


def test_a_part_of_a_file_whose_answers_count_from_1_says_the_same_as_the_whole(tmp_path: Path) -> None:
    facts = read_dataset(write(tmp_path / "a.jsonl", CHOICES["from 1"]))
    facts.write(pl.DataFrame({"row": [1], "category": ["x"]}), tmp_path / "b.jsonl")
    assert golds(read_dataset(tmp_path / "b.jsonl")) == BOTH[1:]


def test_of_chats_in_other_forms_the_answers_not_drawn_are_marked(tmp_path: Path) -> None:
    for record in TURNS.values():
        facts = read_dataset(write(tmp_path / "a.jsonl", [record]))
        facts.write(pl.DataFrame({"row": [1], "category": ["x"]}), tmp_path / "b.jsonl")
        assert read_dataset(tmp_path / "b.jsonl").left_out == {"masked": 1}


def test_a_list_of_turns_is_a_chat_by_itself(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", [CHAT, CHAT2]), ("b.json", json.dumps([CHAT, CHAT2], indent=1)), ("c.jsonl", [CHAT]),
        ("d.json", json.dumps({"data": [CHAT, CHAT2]})), ("e.json", json.dumps({"conversations": [CHAT, CHAT2]})),
    ):  # fmt: skip
        facts = read_and_back(write(tmp_path / name, content))
        assert golds(facts) == (BOTH if name != "c.jsonl" else BOTH[:1])


TREE = {
    "message_tree_id": "t",
    "prompt": {"text": Q, "role": "prompter", "replies": [
        {"text": "Rome", "role": "assistant", "rank": 1, "replies": []},
        {"text": A, "role": "assistant", "rank": 0, "replies": [
            {"text": Q2, "role": "prompter", "replies": [{"text": A2, "role": "assistant", "replies": []}]}]}]},
}  # fmt: skip


def test_of_a_tree_the_best_reply_is_the_answer_and_what_follows_it_is_asked_behind_it(tmp_path: Path) -> None:
    facts = read_and_back(write(tmp_path / "a.jsonl", [TREE]))
    assert golds(facts) == [(Q, None), (Q, A), (Q2, A2)]
    assert facts.left_out == {"rejected": 1}
    assert [turn["content"] for turn in facts.rows["context"][2]] == [Q, A]
    facts.write(pl.DataFrame({"row": [2], "category": ["x"]}), tmp_path / "b.jsonl")
    back = read_dataset(tmp_path / "b.jsonl")
    assert golds(back) == [(Q, None), (Q, None), (Q2, A2)]
    assert back.left_out == {"masked": 1, "rejected": 1}


def test_every_instance_of_an_instruction_is_a_row(tmp_path: Path) -> None:
    record = {"id": "s", "instruction": "Name the capital.",
              "instances": [{"input": "France", "output": A}, {"input": "Italy", "output": A2}]}  # fmt: skip
    facts = read_and_back(write(tmp_path / "a.jsonl", [record]))
    assert golds(facts) == [("Name the capital.\nFrance", A), ("Name the capital.\nItaly", A2)]


# JSON that is not an array, and JSON under other names

WRAPPED: dict[str, tuple[str, str]] = {
    "data": (json.dumps({"version": "1", "data": [ROW, ROW2]}, indent=2), "the rows stand under 'data'"),
    "nested": (json.dumps({"result": {"n": 2, "rows": [ROW, ROW2]}}), "under 'result.rows'"),
    "nested columns": (json.dumps({"n": 2, "table": {"question": [Q, Q2], "answer": [A, A2]}}), "a table by columns"),
    "nested ids": (json.dumps({"n": 2, "all": {"x": ROW, "y": ROW2}}), "rows by their ids under 'all'"),
    "any one list": (json.dumps({"about": "x", "capitals": [ROW, ROW2]}), "under 'capitals'"),
    "server": (json.dumps({"features": [{"name": "question"}], "num_rows_total": 2, "rows": [
        {"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate([ROW, ROW2])]}), "data sets server"),
    "columns": (json.dumps({"question": [Q, Q2], "answer": [A, A2]}), "a table by columns"),
    "pandas": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(), "a table by columns and rows"),
    "pandas index": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(orient="index"), "rows by their ids"),
    "pandas split": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(orient="split"), "a table of columns and data"),
    "pandas table": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(orient="table"), "under 'data'"),
    "pandas records": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(orient="records"), ""),
    "pandas lines": (pl.DataFrame([ROW, ROW2]).to_pandas().to_json(orient="records", lines=True), "read as JSON lines"),
    "by id": (json.dumps({"q1": ROW, "q2": ROW2}), "rows by their ids"),
    "lines": (f"{json.dumps(ROW)}\n{json.dumps(ROW2)}\n", "is read as JSON lines, which it is"),
    "windows lines": (f"\ufeff{json.dumps(ROW)}\r\n{json.dumps(ROW2)}\r\n", "is read as JSON lines"),
    "pretty": (f"{json.dumps(ROW, indent=2)}\n{json.dumps(ROW2, indent=2)}\n", "objects one behind the other"),
    "without breaks": (f"{json.dumps(ROW)}{json.dumps(ROW2)}", "objects one behind the other"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("file", ["a.json", "a.jsonl", "a.txt", "part-0", "a.json.gz"])
def test_json_of_every_shape_is_read_and_comes_back_in_it(tmp_path: Path, name: str, file: str) -> None:
    content, reason = WRAPPED[name]
    strict = ("nested", "nested columns", "nested ids", "any one list", "pandas", "pandas index", "by id")
    if name in strict and file not in ("a.json", "a.json.gz"):
        pytest.skip("one line of such an object under another name is one row")
    path = write(tmp_path / file, gzip.compress(content.encode()) if file.endswith("gz") else content)
    facts = read_and_back(path)
    assert golds(facts) == BOTH
    if file == "a.json":
        assert reason in facts.reason


def test_what_stands_around_the_rows_of_a_wrapped_file_stays_as_it_is(tmp_path: Path) -> None:
    text = '{ "version" : 1,\n\t"data": [ {"question": "q", "answer": "a", "n": 1.0} ],  "by": "x" }\n'
    facts = read_dataset(write(tmp_path / "a.json", text))
    facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text() == text.replace("1.0}", '1.0, "category": "x"}')


def test_lists_under_the_names_of_splits_are_splits(tmp_path: Path) -> None:
    content = json.dumps({"train": [ROW, ROW2], "validation": [ROW], "test": [ROW2]})
    facts = read_and_back(write(tmp_path / "a.json", content))
    assert facts.rows["split"].to_list() == ["train", "train", "dev", "test"]


def test_the_nested_file_of_squad_is_flattened_and_written_back_nested(tmp_path: Path) -> None:
    def answer(text: str) -> list[dict[str, Any]]:
        return [{"text": text, "answer_start": 6}] if text else []

    qas = [{"id": q, "question": q, "answers": answer(a), "is_impossible": not a} for q, a in (*BOTH, ("None?", ""))]
    data = [{"title": "t", "paragraphs": [{"context": "It is Paris, and Rome.", "qas": qas[:2]}]},
            {"title": "u", "paragraphs": [{"context": "It is Paris, and Rome.", "qas": qas[2:]}]}]  # fmt: skip
    path = write(tmp_path / "train-v2.0.json", json.dumps({"version": "v2.0", "data": data}))
    facts = read_and_back(path)
    assert golds(facts) == [(behind(Q), A), (behind(Q2), A2), (behind("None?"), None)]
    assert facts.left_out == {"unanswerable": 1}
    facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), tmp_path / "b.json")
    back = json.loads((tmp_path / "b.json").read_text())
    assert [q.pop("category") for a in back["data"] for p in a["paragraphs"] for q in p["qas"]] == ["x", None, None]
    assert back == {"version": "v2.0", "data": data}


def test_cells_that_the_data_sets_server_cut_are_refused(tmp_path: Path) -> None:
    content = json.dumps({"rows": [{"row_idx": 0, "row": ROW, "truncated_cells": ["answer"]}]})
    with pytest.raises(InputError, match=r"a\.json: the data sets server cut the cells answer of a row"):
        read_dataset(write(tmp_path / "a.json", content))


def test_one_row_is_a_file_too_and_a_jsonl_line_is_never_taken_apart(tmp_path: Path) -> None:
    for file in ("a.json", "a.jsonl"):
        assert golds(read_and_back(write(tmp_path / file, json.dumps(ROW)))) == BOTH[:1]
        assert golds(read_and_back(write(tmp_path / file, json.dumps({"messages": CHAT})))) == BOTH[:1]
        assert read_dataset(write(tmp_path / file, json.dumps({**ROW, "facts": [ROW2, ROW2]}))).total == 1


BROKEN: dict[str, tuple[str, str]] = {
    "several lists": (json.dumps({"alpha": [ROW], "beta": [ROW2]}), r"it holds several, under 'alpha', 'beta'"),
    "objects under splits": (json.dumps({"train": {"x": 1}, "test": {"x": 2}}), r"an object for each of the splits"),
    "rows beside turns under splits": (
        json.dumps({"train": [{"question": "Q?", "answer": "A"}], "test": [{"question": "R?", "role": "guide"}]}),
        r"the split 'test' holds no rows such as those of 'train'",
    ),
    "no rows": (json.dumps({"data": []}), r"found an object, expected an array of objects.*it holds no rows"),
    "a comma too many": ('{"question": "q", "answer": "a",}', r"no comma before a closing bracket"),
    "python": ("{'question': 'q'}", r"how Python prints a value"),
    "python none": ('{"question": None}', r"how Python prints a value"),
    "comments": ('[\n// x\n{"question": "q"}]', r"JSON allows no comments"),
    "json5 keys": ('{question: "q"}', r"JSON allows no key without quotes"),
    "a table": (f"question,answer\n{Q},{A}\n", r"found 'question,answer', expected an array.*name it \.csv"),
    "cut": (json.dumps({"data": [ROW]})[:-4], r"broken JSON"),
    "a longer row": (
        json.dumps({"columns": ["question", "answer"], "data": [[Q, A, 1]]}),
        r"row 0 has 3 cells, expected 2",
    ),
    "a column that stands twice": (
        json.dumps({"columns": ["question", "answer", "answer"], "data": [[Q, A, A2]]}),
        r"the column 'answer' stands in `columns` twice; rename one of them",
    ),
    "numbers": ("[1, 2]", r"found a number, expected an object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_json_that_is_not_sure_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(write(tmp_path / "a.json", content))
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


KEYS = ["data", "rows", "train", "test", "question", "messages", "columns", "x", "0"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "row", "role"]), v, max_size=3)
    ),
    max_leaves=10,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["data", "rows", "train", "test", "question", "columns", "x", "0"]), json_values, max_size=4
    )
)
def test_any_object_has_a_shape(value: dict[str, Any]) -> None:
    shape = shape_of(value)
    assert (shape.name == "unknown") == bool(shape.fault)


# what is under a name

PACKED = {".bz2": bz2.compress, ".xz": lzma.compress, ".gz": gzip.compress}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_packed_files_come_back_packed(tmp_path: Path, suffix: str, kind: str) -> None:
    text = json.dumps(ROW) + "\n" if kind == ".jsonl" else f"question,answer\n{Q},{A}\n"
    facts = read_and_back(write(tmp_path / f"a{kind}{suffix}", PACKED[suffix](text.encode())))
    assert golds(facts) == BOTH[:1]
    assert facts.suffix == kind + suffix
    facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), tmp_path / "once")
    facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), tmp_path / "twice")
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()


def parquet() -> bytes:
    out = io.BytesIO()
    pl.DataFrame([ROW]).write_parquet(out)
    return out.getvalue()


def zipped(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return out.getvalue()


LINE = json.dumps(ROW).encode() + b"\n"
MISNAMED: dict[str, tuple[str, bytes, str]] = {
    "json lines as .txt": ("a.txt", LINE * 2, "JSON lines"),
    "json lines as .jsonl.txt": ("a.jsonl.txt", LINE, "JSON lines"),
    "json lines without a suffix": ("part-00000", LINE, "JSON lines"),
    "json lines as .csv": ("a.csv", LINE, "JSON lines"),
    "json lines as .json": ("a.json", LINE * 2, "JSON lines"),
    "an array as .jsonl": ("a.jsonl", b"[" + LINE.strip() + b"]", "JSON"),
    "an array of many lines as .jsonl": ("a.jsonl", b"[\n" + LINE.strip() + b"\n]\n", "JSON"),
    "parquet as .json": ("a.json", parquet(), "Parquet"),
    "parquet without a suffix": ("blob", parquet(), "Parquet"),
    "gzip without a suffix": ("a.jsonl", gzip.compress(LINE), "packed as .gz"),
    "zip under another name": ("a.jsonl", zipped({"x.jsonl": LINE}), ""),
    "not packed as .gz": ("a.jsonl.gz", LINE, "not packed"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_what_a_file_holds_wins_over_its_name_and_is_said(tmp_path: Path, name: str) -> None:
    file, content, said = MISNAMED[name]
    facts = read_and_back(write(tmp_path / file, content))
    assert set(golds(facts)) == {(Q, A)}
    assert said in facts.reason


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("000.json")
        info.size = len(LINE)
        archive.addfile(info, io.BytesIO(LINE))
    return out.getvalue()


def saved(function: Any, value: Any) -> bytes:
    out = io.BytesIO()
    function(out, value)
    return out.getvalue()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (question, answer)")
        return database.serialize()


OTHERS: dict[str, tuple[str, bytes, str]] = {
    "html": ("a.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is an HTML page.*Fetch the file again"),
    "html in lower case": ("a.csv", b"\n <html><head></head>", "is an HTML page"),
    "an error of a store": ("a.json", b'<?xml version="1.0"?>\n<Error><Code>Denied</Code></Error>', "an XML reply"),
    "git lfs": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "excel": ("a.xlsx", zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "an Excel workbook.*CSV"),
    "excel as .csv": ("a.csv", zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "an Excel workbook"),
    "old excel": ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "such as .xls"),
    "open document": ("a.ods", zipped({"mimetype": b"", "content.xml": b""}), "an OpenDocument file"),
    "sqlite": ("a.db", sqlite(), "an SQLite database.*sqlite3 -csv"),
    "pickle": ("a.pkl", pickle.dumps([ROW]), "a pickle.*never loaded"),
    "pickle as .json": ("a.json", pickle.dumps([ROW]), "a pickle"),
    "torch": ("a.pt", saved(lambda out, value: torch.save(value, out), [ROW]), "a PyTorch file.*never loaded"),
    "npz": ("a.npz", saved(lambda out, value: np.savez(out, x=value), np.zeros(2)), "a NumPy archive"),
    "npy": ("a.npy", saved(np.save, np.zeros(2)), "a NumPy array"),
    "tar": ("a.tar", tar(), "a tar archive.*tar xf"),
    "tar.gz": ("a.tar.gz", gzip.compress(tar()), "a tar archive"),
    "webdataset": ("shard-000000.tar", tar(), "a tar archive"),
    "7z": ("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(9), "a 7z archive"),
    "pdf": ("a.pdf", b"%PDF-1.7\n", "a PDF document"),
    "utf-16": ("a.jsonl", LINE.decode().encode("utf-16"), "UTF-16.*iconv -f UTF-16 "),
    "utf-16 without a mark": ("a.json", LINE.decode().encode("utf-16-be"), "iconv -f UTF-16BE"),
    "nothing but nul": ("a.jsonl", bytes(4096), "nothing but NUL bytes"),
    "nul at the end": ("a.jsonl", LINE + bytes(64), r"a\.jsonl:2: broken JSON"),
    "gguf": ("a.gguf", b"GGUF" + bytes(99), "a model's weights"),
    "plain text": ("a.txt", b"Paris is the capital of France.\n", "unknown suffix"),
    "yaml": ("a.yaml", b"---\nquestion: q\n", "a YAML file"),
    "empty": ("a.jsonl", b"", "is empty"),
    "blank": ("a.json", b"\n \n", "is empty"),
    "an empty zip": ("a.zip", zipped({}), "no data file in this zip"),
    "a zip of an excel sheet": ("a.zip", zipped({"xl/workbook.xml": b""}), "an Excel workbook"),
    "a zip in a zip": ("a.zip", zipped({"b.jsonl": zipped({"c.jsonl": LINE})}), "is a zip archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_data_file_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    file, content, message = OTHERS[name]
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(write(tmp_path / file, content))
    said = str(caught.value)
    assert file in said
    assert len(said.splitlines()) <= 2


def test_a_zip_made_on_a_mac_holds_its_data_only(tmp_path: Path) -> None:
    names = {"data/train.jsonl": LINE, "__MACOSX/data/._train.jsonl": b"\x00\x05\x16\x07", "data/.DS_Store": b"\x00"}
    assert golds(read_and_back(write(tmp_path / "a.zip", zipped(names)))) == BOTH[:1]


def test_a_pipe_is_refused_for_it_can_be_read_only_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl: is a pipe or a device\. Send it to standard input"):
        read_dataset(tmp_path / "a.jsonl")


# what is still not read

REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "another language": ([{"Frage": Q, "Antwort": A}], "--map question=Frage --map answer=Antwort"),
    "names with spaces": ([{"The Question": Q, "The Answer": A}],
                          "--map 'question=The Question' --map 'answer=The Answer'"),
    "nested": ([{"data": {"q": Q, "a": A}, "id": 1}], "--map question=data.q --map answer=data.a"),
    "verl": ([{"data_source": "x", "prompt": CHAT[:1], "reward_model": {"ground_truth": A}}],
             "--map question=prompt --map answer=reward_model.ground_truth"),
    "an instruction without an output": ([{"instruction": Q, "outcome": A}],
                                         "--map question=instruction --map answer=outcome"),
    "a question alone": ([{"question": Q, "id": 7}], "--map question=question --map answer=COLUMN"),
    "triples without a relation": ([{"subject": "France", "object": A}], "lacks relation"),
    "classes": ([{"question": Q, "label": 3}], "lacks answer"),
    "turns, one a row": ([{"role": "user", "content": Q}], r'{"messages": ['),
    "sharegpt turns": ([{"from": "human", "value": Q}], r'{"conversations": ['),
    "tokens": ([{"input_ids": [1], "labels": [1]}], "tokens already"),
    "natural questions": ([{"document": {}, "question": {"text": Q}, "annotations": {}, "long_answer_candidates": {}}],
                          "nq_open"),
    "oasst messages": ([{"message_id": "1", "parent_id": None, "text": Q, "role": "prompter"}],
                       "one message of a tree"),
    "batch requests": ([{"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": CHAT[:1]}}],
                       "requests to OpenAI"),
    "batch replies": ([{"custom_id": "1", "response": {"body": {}}, "error": None}], "replies of OpenAI"),
    "mt-bench": ([{"question_id": 81, "category": "writing", "turns": [Q, Q2]}], "MT-Bench's questions"),
    "indices": ([{"indices": 4}], "mapping of indices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_fits_no_layout_is_refused_with_what_it_resembles_and_what_would_read_it(
    tmp_path: Path, name: str
) -> None:
    import shlex

    records, advice = REFUSED[name]
    path = write(tmp_path / "a.jsonl", records)
    with pytest.raises(InputError, match=r"no known layout in the columns") as caught:
        read_dataset(path)
    said = str(caught.value)
    assert advice in said
    assert said.count("\n") == 1
    if "--map" in advice and "COLUMN" not in advice:
        flags = [word for word in shlex.split(said.rpartition("\n")[2].partition(":")[2]) if "=" in word]
        # as a shell would hand it over
        settings = settings_of(CheckConfig, {"data": str(path), "map": flags}, None)
        facts = read_and_back(path, columns=settings.map)
        assert golds(facts) == BOTH[:1]


def test_a_column_with_a_comma_can_be_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"Question, in short": Q, "b=c": A}])
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert "--map 'question=Question, in short' --map answer=b=c" in str(caught.value)
    settings = settings_of(CheckConfig, {"data": "x", "map": "question=Question, in short,answer=b=c"}, None)
    assert golds(read_dataset(path, columns=settings.map)) == BOTH[:1]


def test_a_path_that_no_record_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"data": {"q": Q, "a": A}}])
    with pytest.raises(InputError, match=r"--map answer=data\.b: there is no column 'data\.b'"):
        read_dataset(path, columns={"question": "data.q", "answer": "data.b"})
    with pytest.raises(ConfigError, match="is not one of our names"):
        read_dataset(path, columns={"asked": "data.q"})


def test_a_second_column_that_could_be_meant_is_named(tmp_path: Path) -> None:
    records = [{"question": Q, "query": "select 1", "answer": A, "output": "x"}]
    assert "not used: query, output" in read_and_back(write(tmp_path / "a.jsonl", records)).reason


def test_what_stands_before_a_question_and_is_not_read_is_named(tmp_path: Path) -> None:
    record = {"system": "Be brief.", "history": [["a?", "b"]], "query": Q, "response": A}
    assert "not used: system, history" in read_dataset(write(tmp_path / "a.jsonl", [record])).reason
    empty = {"system": "", "history": [], "query": Q, "response": A}
    assert "not used" not in read_dataset(write(tmp_path / "a.jsonl", [empty])).reason
    read = {"system": "Be brief.", "history": [["a?", "b"]], "instruction": Q, "output": A}
    assert "not used" not in read_dataset(write(tmp_path / "a.jsonl", [read])).reason


def test_the_first_row_is_shown_as_it_is_read(tmp_path: Path) -> None:
    facts = read_dataset(
        write(tmp_path / "a.jsonl", [{"question": None, "answer": A}, {"question": Q, "answers": [A, A2]}])
    )
    assert facts.first_row == "first row: Q 'Capital of France?' -> A 'Paris' (or 1 more)"
    long = read_dataset(write(tmp_path / "a.jsonl", [{"question": "q" * 999, "answer": "a\n\x1b[31m" * 99}])).first_row
    assert len(long) < 200
    assert re.fullmatch(r"[\x20-\x7e]+", long)


def test_the_layout_is_that_of_most_rows_not_of_the_first(tmp_path: Path) -> None:
    chats = [{"messages": CHAT}] * 9
    for records in ([ROW, *chats], [*chats, ROW]):
        facts = read_dataset(write(tmp_path / "a.jsonl", records))
        assert facts.layout == "messages"
        assert facts.left_out == {"no_question": 1}
    out_of_range = [{**CHOICES["mmlu"][0], "answer": 9}] * 5
    facts = read_dataset(write(tmp_path / "a.jsonl", [*CHOICES["mmlu"] * 3, *out_of_range]))
    assert (facts.layout, facts.left_out) == ("choices", {"no_such_choice": 5})


def test_rows_of_another_layout_among_many_are_counted_wherever_they_stand(tmp_path: Path) -> None:
    other = {"messages": CHAT}
    for records in ([other, ROW, ROW2], [ROW, ROW2, other], [*[ROW] * 300, other]):
        facts = read_dataset(write(tmp_path / "a.jsonl", records))
        assert facts.layout == "question"
        assert facts.left_out == {"no_question": 1}
