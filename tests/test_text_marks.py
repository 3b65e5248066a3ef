from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.chat.text_markup import MARKS, find_markup, turns_in, with_turns
from foreknow.data.dataset import read_dataset
from foreknow.errors import InputError
from shape_files import golds, read_and_back, write

Q, A, Q2, A2 = "Capital of France?", "Paris", "And of Italy?", "Rome"


def eos(user: str, assistant: str, end: str, opening: str = "") -> str:
    """A question and its answer, each behind its own mark and before the same one."""
    return f"{opening}{user}{Q}{end}{assistant}{A}{end}"


SYSTEM = "Be brief."
ONE: dict[str, str] = {
    "chatml": eos(
        "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n",
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
    ),
    "llama-3": eos(
        "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>", "<|begin_of_text|>",
    ),
    "llama-4": eos("<|header_start|>user<|header_end|>\n\n", "<|header_start|>assistant<|header_end|>\n\n", "<|eot|>"),
    "llama-2": f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{Q} [/INST] {A} </s>",
    "mistral": f"<s>[INST] {Q} [/INST]{A}</s>",
    "mistral 7": f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]{Q}[/INST]{A}</s>",
    "gemma": eos("<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n", "<bos>"),
    "zephyr": eos("<|user|>\n", "<|assistant|>\n", "</s>\n", f"<|system|>\n{SYSTEM}</s>\n"),
    "phi": eos("<|user|>\n", "<|assistant|>\n", "<|end|>\n"),
    "granite": eos(
        "<|start_of_role|>user<|end_of_role|>", "<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"
    ),
    "harmony": (
        f"<|start|>user<|message|>{Q}<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{A}<|return|>"
    ),
    "cohere": eos(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
    ),
    "deepseek": f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{Q}<｜Assistant｜>{A}<｜end▁of▁sentence｜>",
    "oasst": eos("<|prompter|>", "<|assistant|>", "<|endoftext|>"),
    "alpaca": f"Below is an instruction that describes a task.\n\n### Instruction:\n{Q}\n\n### Response:\n{A}",
    "alpaca end": f"### Instruction: {Q}\n### Response: {A}</s>",
    "guanaco": f"### Human: {Q}### Assistant: {A}",
    "solar": f"### User:\n{Q}\n\n### Assistant:\n{A}",
    "vicuna": f"A chat between a user and an assistant. USER: {Q} ASSISTANT: {A}</s>",
    "hh": f"\n\nHuman: {Q}\n\nAssistant: {A}",
    "user-assistant": f"User: {Q}\nAssistant: {A}",
    "redpajama": f"<human>: {Q}\n<bot>: {A}",
    "question-answer": f"Question: {Q}\nAnswer: {A}",
    "q-a": f"Q: {Q}\nA: {A}",
    "input-output": f"Input: {Q}\nOutput: {A}",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_a_text_with_marks_is_a_chat_that_comes_back_in_its_own_marks(tmp_path: Path, name: str) -> None:
    facts = read_and_back(write(tmp_path / "a.jsonl", [{"text": ONE[name], "id": 7}]))
    assert golds(facts) == [(Q, A)]
    assert facts.layout == "text"
    systems = [turn["content"] for turn in facts.rows["context"].to_list()[0] or [] if turn["role"] == "system"]
    assert systems in ([], ["Be brief."], ["A chat between a user and an assistant."])
    assert ("Be brief." in ONE[name]) == (systems == ["Be brief."])


@pytest.mark.parametrize("name", ["chatml", "llama-3", "llama-2", "gemma", "guanaco", "vicuna", "hh", "q-a"])
def test_every_answer_of_a_text_is_a_row(tmp_path: Path, name: str) -> None:
    text = ONE[name]
    second = text.replace("<|begin_of_text|>", "").replace("A chat between a user and an assistant.", "")
    second = second.replace("<|im_start|>system\nBe brief.<|im_end|>\n", "").replace(
        "<<SYS>>\nBe brief.\n<</SYS>>\n\n", ""
    )
    second = ("\n" if name == "q-a" else "") + second.replace("<bos>", "").replace(Q, Q2).replace(A, A2)
    facts = read_and_back(write(tmp_path / "a.jsonl", [{"text": text + second}]))
    assert golds(facts) == [(Q, A), (Q2, A2)]
    assert facts.rows["context"][1].to_list()[-2:] == [
        {"role": "user", "content": Q}, {"role": "assistant", "content": A},
    ]  # fmt: skip
    assert golds(read_dataset(tmp_path / "a.jsonl", turns="last")) == [(Q2, A2)]


def test_an_instruction_and_its_input_are_one_question(tmp_path: Path) -> None:
    text = "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\nParis"
    facts = read_and_back(write(tmp_path / "a.jsonl", [{"text": text}]))
    assert golds(facts) == [("Name the capital.\nFrance", "Paris")]


def test_headings_of_an_answer_are_no_marks() -> None:
    text = "<|im_start|>user\nWrite.<|im_end|>\n<|im_start|>assistant\n# A\n### Context:\nB<|im_end|>\n"
    assert turns_in(text) == [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": "# A\n### Context:\nB"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "Paris is the capital of France.", "Ann asked: why? Answer: no.", "A text.\nQuestion: one?\nAnswer: two.",
        "USER: alone", "ASSISTANT: alone", "<|im_start|>assistant\nParis<|im_end|>", "### Response:\nParis",
        "<|im_start|>user\nCapital?<|im_end|>", "[INST] open", "Human: \n\nQ", "def user(): pass  # Q: A:",
    ],
)  # fmt: skip
def test_a_text_without_marks_is_never_guessed_at(tmp_path: Path, text: str) -> None:
    assert find_markup(text) is None
    path = write(tmp_path / "a.jsonl", [{"text": text}])
    with pytest.raises(InputError, match=r"a\.jsonl: no known layout.*\n.*none of the known marks of a chat"):
        read_dataset(path)


def test_texts_without_marks_among_others_are_counted(tmp_path: Path) -> None:
    records: list[Any] = [{"text": "none"}, {"text": ONE["chatml"]}, {"text": None}, {"text": ""}]
    facts = read_and_back(write(tmp_path / "a.jsonl", records))
    assert golds(facts)[1] == (Q, A)
    assert facts.left_out == {"no_marks": 1, "no_question": 2}


def test_an_open_answer_is_no_answer(tmp_path: Path) -> None:
    records = [{"text": ONE["chatml"]}, {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"}]
    assert read_and_back(write(tmp_path / "a.jsonl", records)).left_out == {"no_answer": 1}


def test_a_thought_is_taken_off_the_answer_of_a_text_too(tmp_path: Path) -> None:
    text = f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n<think>Hm.</think>\n{A}<|im_end|>\n"
    facts = read_and_back(write(tmp_path / "a.jsonl", [{"text": text}]))
    assert golds(facts) == [(Q, A)]
    assert facts.thoughts == 1


def test_a_prompt_with_marks_and_its_completion_are_one_chat(tmp_path: Path) -> None:
    record = {"prompt": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n", "completion": f"{A}<|im_end|>"}
    assert golds(read_and_back(write(tmp_path / "a.jsonl", [record]))) == [(Q, A)]
    other = {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "completion": f" {A}"}
    assert golds(read_and_back(write(tmp_path / "a.jsonl", [other]))) == [(Q, A)]


def test_of_chats_in_part_the_other_answers_are_marked_beside_the_text(tmp_path: Path) -> None:
    import polars as pl

    from foreknow.data.schema import USABLE

    text = f"### Human: {Q}### Assistant: {A}### Human: {Q2}### Assistant: {A2}"
    write(tmp_path / "a.jsonl", [{"text": text}] * 2)
    pl.DataFrame({"text": [text] * 2}).write_parquet(tmp_path / "a.parquet")
    for suffix in (".jsonl", ".parquet"):
        facts = read_dataset(tmp_path / f"a{suffix}")
        facts.write(pl.DataFrame({"row": [0, 1, 3], "category": ["x"] * 3}), tmp_path / f"b{suffix}")
        back = read_dataset(tmp_path / f"b{suffix}")
        assert back.rows.filter(USABLE)["question"].to_list() == [Q, Q2, Q2]
        assert back.left_out == {"masked": 1}


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), words)
def test_what_is_put_in_a_text_is_what_it_then_says(pairs: list[tuple[str, str]], other: str) -> None:
    forms = [
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n", "### Human: {}### Assistant: {}",
        "[INST] {} [/INST] {} </s>", "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n",
        "<|user|>\n{}</s>\n<|assistant|>\n{}</s>\n", "\n\nHuman: {}\n\nAssistant: {}", "USER: {} ASSISTANT: {}</s>",
    ]  # fmt: skip
    for form in forms:
        text = "".join(form.format(*pair) for pair in pairs)
        turns = turns_in(text)
        assert turns is not None
        assert [turn["content"] for turn in turns] == [each for pair in pairs for each in pair]
        assert with_turns(text, turns) == text
        changed = [*turns[:-1], {**turns[-1], "content": other}]
        assert turns_in(with_turns(text, changed)) == changed
        assert turns_in(with_turns(text, turns[:2])) == turns[:2]


@given(st.text(max_size=60), st.sampled_from(list(ONE.values())))
def test_any_text_is_marked_or_not(noise: str, text: str) -> None:
    for one in (noise, noise + text, text + noise):
        found = find_markup(one)
        if found is not None:
            assert found.marks in MARKS
            turns = turns_in(one) or []
            assert with_turns(one, turns) == one
            ends = [(span.start, span.end, span.stop) for span in found.spans]
            assert all(0 <= a <= b <= c <= len(one) for a, b, c in ends)


def test_marks_that_never_close_take_no_longer_than_a_look_at_the_text() -> None:
    assert turns_in("[INST]" * 100_000) is None
    blanks = "\n" * 100_000
    text = f"### Instruction:\na{blanks}b\n\n### Input:\nc\n\n### Response:\nd"
    assert [turn["content"] for turn in turns_in(text) or []] == [f"a{blanks}b\nc", "d"]


def test_the_mark_that_opens_the_next_instruction_is_no_part_of_the_answer_before_it() -> None:
    text = f"<s>[INST] {Q} [/INST] {A} <s>\n<s> [INST] {Q2} [/INST] {A2}"
    assert [turn["content"] for turn in turns_in(text) or []] == [Q, A, Q2, A2]


@pytest.mark.parametrize("name", ["completion", "chosen"])
def test_a_new_answer_stands_behind_a_prompt_that_began_the_old_one(tmp_path: Path, name: str) -> None:
    opening = f"<|user|>\n{Q}<|end|>\n<|assistant|>\n"
    beside = {"rejected": " Rome<|end|>"} if name == "chosen" else {}
    record = {"prompt": f"{opening}It is", name: " Paris<|end|>", **beside}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    facts = read_dataset(path)
    assert facts.rows.select("question", "answers").row(0) == (Q, ["It is Paris"])
    facts.write(facts.rows.select("row"), tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == record
    facts.write(facts.rows.select("row"), tmp_path / "c.jsonl", {0: "I don't know."})
    moved = {"rejected": "It is Rome<|end|>"} if name == "chosen" else {}
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {"prompt": opening, name: "I don't know.<|end|>", **moved}
    assert read_dataset(tmp_path / "c.jsonl").rows.select("question", "answers").row(0) == (Q, ["I don't know."])
