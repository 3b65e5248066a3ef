from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreknow.data.dataset import read_dataset
from foreknow.errors import InputError
from shape_files import golds, read_and_back, write

Q, A, BAD = "Capital of France?", "Paris", "Rome"
USER = {"role": "user", "content": Q}
GOOD, WORSE = ({"role": "assistant", "content": text} for text in (A, BAD))
CHATS = {"chosen": [USER, GOOD], "rejected": [USER, WORSE]}
HH = "\n\nHuman: {}\n\nAssistant: {}"
BEFORE = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]

PREFERENCES: dict[str, dict[str, Any]] = {
    "texts": {"prompt": Q, "chosen": A, "rejected": BAD, "margin": 0.5},
    "turns": {"prompt": [USER], "chosen": [GOOD], "rejected": [WORSE], "score_chosen": 9.0},
    "turns before": {"prompt": [*BEFORE, USER], "chosen": [GOOD], "rejected": [WORSE]},
    "whole chats": CHATS,
    "a text prompt and whole chats": {"prompt": Q, "prompt_id": "x", **CHATS},
    "and messages (UltraFeedback)": {"prompt": Q, "messages": [USER, GOOD], **CHATS},
    "whole texts (HH)": {"chosen": HH.format(Q, A), "rejected": HH.format(Q, BAD)},
    "a prompt with marks": {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": f" {A}", "rejected": f" {BAD}"},
    "chatml": {"prompt": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n", "chosen": f"{A}<|im_end|>\n",
               "rejected": f"{BAD}<|im_end|>\n"},
    "orca": {"system": "Be brief.", "question": Q, "chosen": A, "rejected": BAD},
    "distilabel": {"instruction": Q, "chosen_response": A, "rejected_response": BAD},
    "openai": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [WORSE]},
    "llama-factory": {"conversations": [{"from": "human", "value": Q}], "chosen": {"from": "gpt", "value": A},
                      "rejected": {"from": "gpt", "value": BAD}},
    "stack exchange": {"qid": 1, "question": Q, "response_j": A, "response_k": BAD},
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_chosen_answer_is_the_answer_and_the_rejected_one_is_never_read(
    tmp_path: Path, name: str, suffix: str
) -> None:
    import polars as pl

    record = PREFERENCES[name]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pl.DataFrame([record]).write_parquet(path)
    else:
        write(path, [record])
    facts = read_and_back(path)
    assert golds(facts) == [(Q, A)]
    assert facts.layout == "preference"
    assert not facts.rows["answers"].explode().str.contains(BAD).any()


def test_only_the_last_turn_of_a_preferred_chat_is_the_answer(tmp_path: Path) -> None:
    record = {"chosen": [*BEFORE, USER, GOOD], "rejected": [*BEFORE, USER, WORSE]}
    facts = read_and_back(write(tmp_path / "a.jsonl", [record]))
    assert golds(facts) == [(Q, A)]
    assert facts.rows["context"][0].to_list() == BEFORE


KTO: dict[str, list[dict[str, Any]]] = {
    "texts": [{"prompt": Q, "completion": A, "label": True}, {"prompt": Q, "completion": BAD, "label": False}],
    "turns": [{"prompt": [USER], "completion": [GOOD], "label": True},
              {"prompt": [USER], "completion": [WORSE], "label": False}],
    "chats": [{"messages": [USER, GOOD], "kto_tag": True}, {"messages": [USER, WORSE], "kto_tag": False}],
    "numbers": [{"prompt": Q, "completion": A, "label": 1}, {"prompt": Q, "completion": BAD, "label": 0}],
    "wikiqa": [{"question": Q, "answer": A, "label": 1}, {"question": Q, "answer": BAD, "label": 0}],
    "alpaca": [{"instruction": Q, "input": "", "output": A, "label": True},
               {"instruction": Q, "input": "", "output": BAD, "label": False}],
}  # fmt: skip


@pytest.mark.parametrize("name", KTO)
def test_an_answer_that_is_labelled_a_bad_one_is_never_gold(tmp_path: Path, name: str) -> None:
    facts = read_and_back(write(tmp_path / "a.jsonl", KTO[name]))
    assert golds(facts) == [(Q, A), (Q, None)]
    assert facts.left_out == {"rejected": 1}
    assert "calls its answer a bad one is left out" in facts.reason


def test_labels_in_csv_are_read_as_they_are_written_there(tmp_path: Path) -> None:
    facts = read_and_back(write(tmp_path / "a.csv", f"prompt,completion,label\n{Q},{A},True\n{Q},{BAD},False\n"))
    assert golds(facts) == [(Q, A), (Q, None)]


def test_a_file_of_bad_answers_alone_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [KTO["texts"][1]])
    with pytest.raises(InputError, match=r"none of the 1 rows? can be used: found rejected 1"):
        read_dataset(path)


def test_a_label_of_several_classes_is_no_verdict(tmp_path: Path) -> None:
    records = [{"question": f"{Q}{n}", "answer": A, "label": n} for n in range(3)]
    assert golds(read_and_back(write(tmp_path / "a.jsonl", records))) == [(f"{Q}{n}", A) for n in range(3)]
    same = [{"question": Q, "answer": A, "label": 0}]
    assert golds(read_and_back(write(tmp_path / "a.jsonl", same))) == [(Q, A)]


RATED = {
    "ultrafeedback": {"instruction": Q, "models": ["m"], "completions": [{"response": A, "overall_score": 9.0}]},
    "nectar": {
        "prompt": Q,
        "answers": [{"answer": A, "rank": 1.0, "model": "m"}, {"answer": BAD, "rank": 2.0, "model": "n"}],
    },
    "responses": {"question": Q, "responses": [{"text": A, "score": 1}, {"text": BAD, "score": 0}]},
}


@pytest.mark.parametrize("name", RATED)
def test_rated_answers_are_refused_for_some_of_them_are_bad(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.jsonl", [RATED[name]])
    with pytest.raises(InputError, match=r"(?s)no known layout.*write rows of prompt, chosen and rejected"):
        read_dataset(path)


def test_a_chosen_text_without_a_prompt_or_marks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"chosen": A, "rejected": BAD}])
    with pytest.raises(InputError, match="no known layout"):
        read_dataset(path)
