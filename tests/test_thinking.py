"""Thoughts before answers: what is the answer of a text, and that all else of it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import write_jsonl
from foreknow.data.chat.reasoning import answer_parts
from foreknow.data.dataset import read_dataset

THOUGHTS = [
    "<think>\nThe user asks.\n</think>\n\nParis",
    "<think>\n\n</think>\n\nParis",
    "<think></think>Paris",
    "<think/>Paris",
    "  \n<Think>x</Think> Paris",
    "<thinking>x</thinking>\nParis",
    "<thought>x</thought>\nParis",
    "<thoughts>x</thoughts>\nParis",
    "<reasoning>x</reasoning>\nParis",
    "<reflection>x</reflection>\nParis",
    "<scratchpad>x</scratchpad>\nParis",
    "<analysis>x</analysis>\nParis",
    "<chain_of_thought>x</chain_of_thought>\nParis",
    "<inner_monologue>x</inner_monologue>\nParis",
    '<think duration="3 s">x</think>Paris',
    "<think>x</think><reflection>y</reflection>Paris",
    "<think>I open <think> twice</think>Paris",
    "<think>a <think>b</think> c</think>Paris",
    "<|begin_of_thought|>x<|end_of_thought|>\n\n<|begin_of_solution|>Paris<|end_of_solution|>",
    "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>",
    "<|thinking|>x<|/thinking|>Paris",
    "<|think_start|>x<|think_end|>Paris",
    "<|inner_prefix|>x<|inner_suffix|>Paris",
    "<|channel>thought\nx<channel|>Paris",
    "<unused94>thought\nx<unused95>Paris",
    "[THINK]x[/THINK]Paris",
    "[reasoning]x[/reasoning]Paris",
    "◁think▷x◁/think▷Paris",
    "<seed:think>x</seed:think>Paris",
    "<antThinking>x</antThinking>Paris",
    '<details type="reasoning" done="true">\n<summary>Thought</summary>\nx\n</details>\nParis',
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>",
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>Paris",
    "analysisThe user asks.assistantfinalParis",
    "Here is my thought process: x\nHere is my response: Paris",
    "## Thinking\n\nx\n\n## Final Response\n\nParis",
    "Thinking...\nx\n...done thinking.\n\nParis",
    # closed, never opened: the template has opened it
    "The user asks.\n</think>\n\nParis",
    "so it is Paris.</think>Paris",
    "so it is Paris.</think>\n\nParis",
    "x[/THINK]Paris",
    # an element around the answer
    "<think>x</think>\n<answer>Paris</answer>",
    "<think>x</think>\n<answer>\nParis\n</answer>\n",
    "<think>x</think>\nSo it is <answer>Paris</answer>.",
    "<think>x</think><response>Paris</response>",
    "<thinking>x</thinking><output>Paris</output>",
    "<think>x</think><final_answer>Paris",
    "<think>x <answer>Paris</answer>",
]
ONLY = ["<think>x", "<think>x</think>", "<think>\n</think>\n", "[THINK]x", "◁think▷x", "x\n</think>",
        "<|channel|>analysis<|message|>x", "<|begin_of_thought|>x"]  # fmt: skip
PLAIN = [
    "Paris", "", " ", "\\boxed{4}", "I think <think> is a mark", "Write <think>x</think> before it",
    "The mark `</think>` ends a thought", "Use the </think> mark here", 'He wrote "</think>" there',
    "```\n<think>x</think>\n```", "```\nx</think>\n```\nThat is code", "`<think>`", "[Thinking] Hm, Paris", "[THINKING",
    "<response>Paris</response>", "<thinker>x</thinker> Paris", "<p>Paris</p>", "Analysis shows x", "analysis of x",
    "Thinking is hard", "## Thinking\nx", "Here is my thought process: x", "<", "<think", "</", "[", "◁", "1 < 2",
]  # fmt: skip


@pytest.mark.parametrize("text", THOUGHTS)
def test_the_answer_stands_behind_the_thought(text: str) -> None:
    parts = answer_parts(text)
    assert (parts.answer, parts.thought) == ("Paris", True)
    assert answer_parts(parts.with_answer("Rome")).answer == "Rome"
    assert parts.with_answer("Paris") == text


@pytest.mark.parametrize("text", ONLY)
def test_a_thought_alone_has_no_answer(text: str) -> None:
    assert answer_parts(text)[1:] == ("", "", True)


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_that_only_mentions_a_mark_is_its_own_answer(text: str) -> None:
    assert answer_parts(text) == ("", text, "", False)


def test_an_answer_element_around_a_whole_text_is_taken_off_too() -> None:
    assert answer_parts("<answer>Paris</answer>")[:3] == ("<answer>", "Paris", "</answer>")
    assert answer_parts("<answer>Paris</answer> it is").answer == "<answer>Paris</answer> it is"


marks = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "[THINK]", "[/THINK]", "```", "`", "\n", " ", "x", "Paris",
     "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", "<|end|>", "◁think▷", "◁/think▷", "<think/>"]
)  # fmt: skip


@given(st.lists(marks | st.text(max_size=3), max_size=8).map("".join))
def test_the_three_parts_make_up_the_text_again(text: str) -> None:
    parts = answer_parts(text)
    assert parts.before + parts.answer + parts.after == text
    assert parts.thought <= bool(parts.before)


def said(answer: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: "user", content: "q?"}, {role: "assistant", content: answer}]


LAYOUTS: dict[str, Any] = {
    "question": lambda a: {"question": "q?", "answer": a},
    "answers": lambda a: {"question": "q?", "answers": [a]},
    "alpaca": lambda a: {"instruction": "q?", "input": "", "output": a},
    "prompt-completion": lambda a: {"prompt": "q?", "completion": a},
    "turns": lambda a: {"prompt": said(a)[:1], "completion": said(a)[1:]},
    "messages": lambda a: {"messages": said(a)},
    "sharegpt": lambda a: {"conversations": said(a, "from", "value")},
}  # fmt: skip
BEHIND = "<think>\nIt is Paris.\n</think>\n\n"


@pytest.mark.parametrize("name", LAYOUTS)
def test_in_every_layout_the_thought_is_no_part_of_the_gold_and_comes_back(tmp_path: Path, name: str) -> None:
    made = LAYOUTS[name]
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [made(f"{BEHIND}Paris"), made("Rome"), made("<think>x")]))
    assert facts.rows["answers"].to_list() == [["Paris"], ["Rome"], None]
    assert ["thought" in flags for flags in facts.rows["flags"]] == [True, False, True]
    assert (facts.left_out, facts.thoughts) == ({"only_thought": 1}, 2)
    assert facts.row_account == (
        "3 records: 2 rows read, 1 left out (only_thought 1); 2 answers hold a thought, which is not part of the gold"
    )
    out = tmp_path / "b.jsonl"
    facts.write(facts.rows.head(2).select("row"), out, {0: "I don't know."})
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == made(f"{BEHIND}I don't know.")
    assert lines[1] == made("Rome")
    assert read_dataset(out).rows["answers"].to_list() == [["I don't know."], ["Rome"]]


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ({"content": "Paris", "reasoning_content": "It is Paris."}, "Paris"),
        ({"content": "Paris", "reasoning": "It is Paris."}, "Paris"),
        ({"content": "Paris", "thinking": "It is Paris."}, "Paris"),
        ({"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Paris"}]}, "Paris"),
        ({"content": [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Paris"}]}, "Paris"),
        ({"content": None, "reasoning_content": "It is Paris."}, None),
        ({"content": "It is Paris.", "channel": "analysis"}, None),
        ({"content": [{"type": "thinking", "thinking": "Hm."}]}, None),
    ],
)
def test_a_thought_under_a_key_or_in_a_part_of_its_own(
    tmp_path: Path, turn: dict[str, Any], answer: str | None
) -> None:
    chat = [{"role": "user", "content": "q?"}, {"role": "assistant", **turn}]
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [{"messages": chat}, LAYOUTS["messages"]("Rome")]))
    assert facts.rows["answers"].to_list() == [answer and [answer], ["Rome"]]
    assert facts.left_out == ({} if answer else {"only_thought": 1})
    assert (facts.thoughts, facts.rows["context"].to_list()) == (1, [None, None])
    if answer:
        facts.write(facts.rows.select("row"), tmp_path / "b.jsonl", {0: "No."})
        back = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])["messages"][1]
        assert set(back) == {"role", *turn}
        assert "Hm." not in str(turn) or "Hm." in str(back)
        assert read_dataset(tmp_path / "b.jsonl").rows["answers"][0].to_list() == ["No."]


def test_an_earlier_answer_is_context_without_its_thought(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": f"{BEHIND}Paris"},
        {"role": "user", "content": "Of Peru?"}, {"role": "thought", "content": "It is Lima."},
        {"role": "assistant", "content": "Lima"},
    ]  # fmt: skip
    rows = read_dataset(write_jsonl(tmp_path / "a.jsonl", [{"messages": chat}])).rows
    assert [turn["content"] for turn in rows["context"][1]] == ["Capital of France?", "Paris"]
    assert [flags.to_list() for flags in rows["flags"]] == [["thought"], ["context", "thought"]]


OPEN = "<think>\nIt is Paris."


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"answers": [OPEN, "Paris"]}, {"answers": ["No."]}),
        ({"answers": [OPEN, f"{BEHIND}Paris", "Rome"]}, {"answers": [f"{BEHIND}No."]}),
        ({"answers": json.dumps([OPEN, "Paris"])}, {"answers": json.dumps(["No."])}),
        ({"answer": OPEN, "answers": ["Paris"]}, {"answer": "No.", "answers": ["No."]}),
        ({"answer": "Paris", "answers": [OPEN]}, {"answer": "No.", "answers": ["No."]}),
        (
            {"answer": "<think>Hm.</think>", "answers": ["Paris"]},
            {"answer": "<think>Hm.</think>No.", "answers": ["No."]},
        ),
    ],
)
def test_no_answer_is_put_behind_a_thought_that_never_closes(
    tmp_path: Path, record: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A row has an answer as soon as one of its accepted answers is more than a thought."""
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [{"question": "q?", **record}]))
    assert facts.rows["answers"][0][0] == "Paris"
    facts.write(facts.rows.select("row"), tmp_path / "b.jsonl", {0: "No."})
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {"question": "q?", **expected}
    assert read_dataset(tmp_path / "b.jsonl").rows["answers"].to_list() == [["No."]]


@given(st.lists(marks | st.text(max_size=3), max_size=8).map("".join))
def test_an_answer_put_behind_a_thought_is_read_there(text: str) -> None:
    if answer_parts(text).thought:
        assert answer_parts(answer_parts(text).with_answer("No.")).answer == "No."
