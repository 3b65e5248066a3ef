"""Conversations: every answer is a row, what cannot serve is counted, and a file of chats comes back as it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import foreknow
from builders import write_jsonl
from conftest import fact_rows
from foreknow.config import AuditConfig, MixConfig, TuneConfig
from foreknow.config.shared import DataSettings
from foreknow.data.chat import exchanges
from foreknow.data.chat.exchanges import LEFT_OUT, MOST_TURNS
from foreknow.data.chat.turn_content import parse_turn_content
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.load import read_data
from foreknow.data.row_accounting import REASONS, WHAT_TO_DO
from foreknow.data.schema import USABLE, earlier_turns
from foreknow.data.validation import check, check_files
from foreknow.data.validation_result import finding_lines
from foreknow.errors import InputError
from foreknow.io.run_dir import FORMAT, write_frame, write_json
from foreknow.prompts import few_shot
from foreknow.stages.audit.aggregate import rows_frame
from foreknow.stages.mix.run import write_mix
from foreknow.stages.mix.sampling import conflicts
from foreknow.stages.train.base_labels import labels_of
from foreknow.stages.train.dataset import check_overlap, read_set
from foreknow.stages.train.inputs import read_inputs

Turn = dict[str, Any]


def user(content: Any, **more: Any) -> Turn:
    return {"role": "user", "content": content, **more}


def says(content: Any, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


CAPITALS = {"France": "Paris", "Peru": "Lima", "Ghana": "Accra", "Japan": "Tokyo"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    user("Capital of France?"), says("Paris"),
    user("And of Peru?"), says("Lima"),
    user("Of Ghana?"), says("Accra"),
]  # fmt: skip


def read(path: Path, *conversations: Sequence[Turn], **how: Any) -> Dataset:
    return read_dataset(write_jsonl(path / "a.jsonl", [{"messages": list(chat)} for chat in conversations]), **how)


def texts(context: Sequence[Mapping[str, str]] | None) -> list[str]:
    return [turn["content"] for turn in (() if context is None else context)]


# every answer is a row


def test_every_answer_is_a_row_with_what_came_before_as_context(tmp_path: Path) -> None:
    facts = read(tmp_path, CHAT, CHAT[1:3])
    assert (facts.records, facts.total) == (2, 4)
    rows = facts.rows
    assert rows.select("row", "record", "turn").rows() == [(0, 0, 2), (1, 0, 4), (2, 0, 6), (3, 1, 1)]
    assert rows["question"].to_list() == ["Capital of France?", "And of Peru?", "Of Ghana?", "Capital of France?"]
    assert rows["answers"].to_list() == [["Paris"], ["Lima"], ["Accra"], ["Paris"]]
    assert texts(rows["context"][2]) == ["Be brief.", "Capital of France?", "Paris", "And of Peru?", "Lima"]
    assert rows["context"][3] is None
    assert facts.row_account == "2 records: 4 rows read, 0 left out"


def before_turns_were_rows(turns: Sequence[Turn]) -> tuple[str | None, list[str] | None, list[dict[str, str]]]:
    """What a chat was read as when only its last answer was a row, written down again from what it promised."""
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    asked = max(i for i, turn in enumerate(turns[:last]) if turn["role"] == "user")
    context = [turn for i, turn in enumerate(turns[:last]) if i != asked]
    return turns[asked]["content"], [turns[last]["content"]], context


word = st.text("abcxyz", min_size=1, max_size=5)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(word, word, st.booleans()), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_the_last_turns_alone_are_the_rows_that_chats_used_to_give(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[bool, list[tuple[str, str, bool]]]]
) -> None:
    conversations = []
    for system, pairs in made:
        turns = [{"role": "system", "content": "Be brief."}] if system else []
        for asked, answered, tool in pairs:
            turns += [user(asked), *([{"role": "tool", "content": "looked up"}] if tool else []), says(answered)]
        conversations.append(turns)
    facts = read(tmp_path_factory.mktemp("last"), *conversations, turns="last")
    expected = [before_turns_were_rows(turns) for turns in conversations]
    found = facts.rows.select("question", "answers", pl.col("context").fill_null([])).rows()
    assert found == [(question, answers, context) for question, answers, context in expected]
    assert facts.rows["row"].to_list() == facts.rows["record"].to_list() == list(range(len(conversations)))
    every = read(tmp_path_factory.mktemp("all"), *conversations)
    same = ["question", "answers", "context", "record", "turn"]
    last = every.rows.group_by("record", maintain_order=True).last().select(same)
    assert last.equals(facts.rows.select(same))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    records = [{"id": n, "messages": CHAT[: 3 + 2 * n]} for n in range(3)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [["id", "messages"], *([n, json.dumps(r["messages"])] for n, r in enumerate(records))]
            )
    elif suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    else:
        path.write_text(json.dumps(records))
    assert read_dataset(path).rows.equals(read_dataset(write_jsonl(tmp_path / "b.jsonl", records)).rows)


def test_sharegpt_prompt_completion_and_history_give_rows_too(tmp_path: Path) -> None:
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = {"conversations": [{"from": roles[turn["role"]], "value": turn["content"]} for turn in CHAT]}
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [shared]))
    assert facts.rows["answers"].to_list() == [["Paris"], ["Lima"], ["Accra"]]
    facts = read_dataset(write_jsonl(tmp_path / "b.jsonl", [{"prompt": CHAT[:4], "completion": CHAT[4:]}]))
    # the prompt's own answers are not trained on
    assert facts.rows.select("turn", "answers").rows() == [(0, ["Lima"]), (2, ["Accra"])]
    assert texts(facts.rows["context"][1]) == [turn["content"] for turn in CHAT[:5]]
    # LLaMA-Factory learns the answers of a history
    record = {
        "instruction": "Of Ghana?",
        "input": "",
        "output": "Accra",
        "history": [["Of France?", "Paris"], ["Of Peru?", "Lima"]],
    }
    facts = read_dataset(write_jsonl(tmp_path / "c.jsonl", [record]))
    assert facts.rows.select("turn", "question", "answers").rows() == [
        (0, "Of France?", ["Paris"]), (1, "Of Peru?", ["Lima"]), (2, "Of Ghana?", ["Accra"]),
    ]  # fmt: skip
    assert texts(facts.rows["context"][2]) == ["Of France?", "Paris", "Of Peru?", "Lima"]
    (row,) = read_dataset(tmp_path / "c.jsonl", turns="last").rows.rows(named=True)
    assert (row["question"], texts(row["context"])) == ("Of Ghana?", texts(facts.rows["context"][2]))


# what is context and no answer


MASKS = [
    {"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"training": False}, {"trainable": False},
    {"train_on_turn": False}, {"loss": False}, {"loss": "false"}, {"loss_mask": 0}, {"loss_mask": False},
    {"learn": False}, {"loss_weight": 0.0}, {"masked": True}, {"mask": True}, {"ignore_loss": True}, {"Train": False},
    {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
]  # fmt: skip
LEARNT = [
    {"weight": 1}, {"weight": None}, {"weight": 0.5}, {"train": True}, {"loss": True}, {"loss_mask": 1},
    {"mask": False}, {"masked": None}, {"train": None}, {"name": "0"}, {"mask": "User"}, {"id": 0},
    {"train_detail": []}, {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": True}]},
]  # fmt: skip


@pytest.mark.parametrize("mark", MASKS, ids=str)
def test_a_masked_turn_is_context_and_never_gold(tmp_path: Path, mark: dict[str, Any]) -> None:
    facts = read(tmp_path, [user("Of France?"), says("Paris", **mark), user("Of Peru?"), says("Lima")])
    assert facts.rows["answers"].to_list() == [None, ["Lima"]]
    assert texts(facts.rows["context"][1]) == ["Of France?", "Paris"]
    assert (facts.left_out, facts.rows["flags"][0].to_list()) == ({"masked": 1}, ["masked"])


@pytest.mark.parametrize("mark", LEARNT, ids=str)
def test_a_mark_that_does_not_say_so_masks_nothing(tmp_path: Path, mark: dict[str, Any]) -> None:
    assert read(tmp_path, [user("Of France?"), says("Paris", **mark)]).rows["answers"].to_list() == [["Paris"]]


@pytest.mark.parametrize(
    ("user_mask", "answers"), [(0, [["Paris"], None]), (1, [None, ["Lima"]]), (None, [None, ["Lima"]])]
)
def test_what_a_mask_of_1_means_is_told_by_the_users_turns(
    tmp_path: Path, user_mask: int | None, answers: list[Any]
) -> None:
    chat = [user("Of France?", mask=user_mask), says("Paris", mask=1), user("Of Peru?", mask=user_mask)]
    assert read(tmp_path, [*chat, says("Lima", mask=0)]).rows["answers"].to_list() == answers


@pytest.mark.parametrize("marks", [[1, 0], [0, 0, 0, 1, 0, 0, 0][:4]])
def test_marks_in_a_list_beside_the_chat(tmp_path: Path, marks: list[int]) -> None:
    chat = [user("Of France?"), says("Paris"), user("Of Peru?"), says("Lima")]
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [{"messages": chat, "loss_mask": marks}]))
    expected = [["Paris"], None] if len(marks) == 2 else [None, ["Lima"]]
    assert facts.rows["answers"].to_list() == expected
    assert facts.left_out == {"masked": 1}


def test_a_chat_that_is_masked_as_a_whole(tmp_path: Path) -> None:
    records = [{"messages": CHAT, "train": False}, {"messages": CHAT, "train": True}, {"messages": CHAT, "loss": 0.0}]
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", records))
    assert facts.left_out == {"masked": 3}
    assert set(facts.rows.filter(USABLE)["record"]) == {1, 2}
    # of another layout, `train` may be no more than a split
    assert not read_dataset(
        write_jsonl(tmp_path / "b.jsonl", [{"question": "q?", "answer": "a", "train": False}])
    ).left_out


def test_a_call_is_found_behind_blank_lines_however_many_they_are() -> None:
    lines = "\n" * 200_000
    assert parse_turn_content({}, f"I look.{lines} <tool_call>{{}}</tool_call>").calls
    assert not parse_turn_content({}, f"Lima{lines}.").calls


def test_a_file_whose_rows_are_all_left_out_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert set(WHAT_TO_DO) == set(LEFT_OUT)
    with pytest.raises(InputError, match=r"none of the 3 rows can be used: found masked 3\.\nTake the marks"):
        read_dataset(write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT, "train": False}]))


CALL = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
PICTURE = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
ASKED = user("Capital of Peru?")
REASON: dict[str, tuple[list[Turn], str | None]] = {
    "a call without words": ([ASKED, says(None, **CALL)], "tool_call"),
    "a call with words": ([ASKED, says("Let me look.", **CALL)], "tool_call"),
    "the old form of a call": ([ASKED, says(None, function_call={"name": "f", "arguments": "{}"})], "tool_call"),
    "a call in a part": ([ASKED, says([{"type": "tool_use", "id": "1", "name": "f", "input": {}}])], "tool_call"),
    "a call as a turn": ([ASKED, {"role": "function_call", "content": "{}"}], "tool_call"),
    "a call in the text": ([ASKED, says('<tool_call>\n{"name": "f"}\n</tool_call>')], "tool_call"),
    "a call in Mistral's text": ([ASKED, says('[TOOL_CALLS] [{"name": "f"}]')], "tool_call"),
    "no tool calls after all": ([ASKED, says("Lima", tool_calls=[])], None),
    "null": ([ASKED, says(None)], "no_answer"),
    "no content": ([ASKED, {"role": "assistant"}], "no_answer"),
    "blank": ([ASKED, says(" \n")], "no_answer"),
    "no parts": ([ASKED, says([])], "no_answer"),
    "a refusal beside": ([ASKED, says(None, refusal="I will not.")], "refusal"),
    "a refusal as a part": ([ASKED, says([{"type": "refusal", "refusal": "I will not."}])], "refusal"),
    "no refusal": ([ASKED, says("Lima", refusal=None)], None),
    "a picture in the question": ([user(PICTURE), says("Lima")], "not_text"),
    "a picture before the question": ([user(PICTURE), says("A map"), ASKED, says("Lima")], "not_text"),
    "only a picture": ([user(PICTURE[1:]), says("Lima")], "not_text"),
    "sound": (
        [user([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]), says("Lima")],
        "not_text",
    ),
    "a picture as the answer": ([ASKED, says([{"type": "image"}])], "not_text"),
    "a picture in the answer": ([ASKED, says([{"type": "text", "text": "Lima"}, {"type": "image"}])], "not_text"),
    "a greeting": ([says("Hello, how can I help?")], "no_user_turn"),
    "a greeting after the system's text": ([CHAT[0], says("Hello!")], "no_user_turn"),
    "a second answer": ([ASKED, says("Lima"), says("That is all.")], "no_user_turn"),
    "an empty question": ([user(""), says("Lima")], "no_question"),
    "a developer's text": ([{"role": "developer", "content": "Be brief."}, ASKED, says("Lima")], None),
    "names": ([user("Capital of Peru?", name="Ann"), says("Lima", name="bot")], None),
    "output text": ([ASKED, says([{"type": "output_text", "text": "Lima", "annotations": []}])], None),
    "a text of its own": ([ASKED, says({"type": "text", "text": "Lima"})], None),
    "a number": ([ASKED, says(1535)], None),
    "another role": ([{"role": "narrator", "content": "Night."}, ASKED, says("Lima")], None),
}


@pytest.mark.parametrize("name", REASON)
def test_what_a_turn_is(tmp_path: Path, name: str) -> None:
    turns, reason = REASON[name]
    facts = read(tmp_path, turns, CHAT)
    row = facts.rows.filter(record=0).row(-1, named=True)
    if reason is None:
        assert row["answers"] == ["1535" if name == "a number" else "Lima"]
        assert not facts.left_out
    else:
        assert row["answers"] is None or reason == "no_question"
        assert reason in row["flags"]
        assert facts.left_out[reason] >= 1
        others = set(row["flags"]) & set(REASONS) - {reason}
        assert not others
    assert facts.total == facts.rows.filter(USABLE).height + sum(facts.left_out.values())


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython", "environment"])
def test_an_answer_after_a_tool_has_the_tools_text_before_it(tmp_path: Path, role: str) -> None:
    chat = [ASKED, says(None, **CALL), {"role": role, "content": '{"capital": "Lima"}'}, says("Lima")]
    facts = read(tmp_path, chat)
    assert facts.rows["answers"].to_list() == [None, ["Lima"]]
    assert facts.rows["question"].to_list() == ["Capital of Peru?"] * 2
    assert texts(facts.rows["context"][1]) == ['{"capital": "Lima"}']
    assert facts.left_out == {"tool_call": 1}


def test_a_tools_result_is_answered_to_the_user_who_asked_before_it(tmp_path: Path) -> None:
    chat = [ASKED, says("I look it up."), {"role": "ipython", "content": "Lima"}, says("It is Lima"), says("Bye")]
    facts = read(tmp_path, chat)
    assert facts.rows["answers"].to_list() == [["I look it up."], ["It is Lima"], None]
    assert facts.rows["question"].to_list()[:2] == ["Capital of Peru?"] * 2
    assert texts(facts.rows["context"][1]) == ["I look it up.", "Lima"]
    assert facts.left_out == {"no_user_turn": 1}


def test_a_tools_result_in_the_users_name_is_no_question(tmp_path: Path) -> None:
    for result in (
        [{"type": "tool_result", "tool_use_id": "1", "content": "Lima"}],
        "<tool_response>Lima</tool_response>",
    ):
        facts = read(tmp_path, [ASKED, says(None, **CALL), user(result), says("It is Lima")])
        assert facts.rows["question"].to_list() == ["Capital of Peru?"] * 2
        assert "Lima" in texts(facts.rows["context"][1])[0]


def test_pictures_beside_a_chat_belong_to_where_they_are_named(tmp_path: Path) -> None:
    chat = [ASKED, says("Lima"), user("<image>\nWhat is this?"), says("A map")]
    records = [{"messages": chat, "images": ["x.png"]}, {"messages": chat, "images": []},
               {"messages": chat[:2], "images": ["x.png"]}]  # fmt: skip
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", records))
    assert facts.rows["answers"].to_list() == [["Lima"], None, ["Lima"], ["A map"], None]
    seen = {"question": "What is this?", "answer": "A map", "image": {"path": "x.png", "bytes": None}}
    assert read_dataset(write_jsonl(tmp_path / "b.jsonl", [seen, {**seen, "image": None}])).left_out == {"not_text": 1}


def test_several_turns_of_the_user_in_a_row(tmp_path: Path) -> None:
    """The last is the question, the others are context: nothing is lost, and nothing is glued together."""
    (row,) = read(tmp_path, [user("Here is a map."), ASKED, says("Lima")]).rows.rows(named=True)
    assert (row["question"], texts(row["context"])) == ("Capital of Peru?", ["Here is a map."])


def test_a_chat_of_any_length_takes_room_in_proportion(tmp_path: Path) -> None:
    chat = [turn for n in range(400) for turn in (user(f"q{n}?"), says(f"a{n}"))]
    facts = read(tmp_path, chat)
    assert facts.total == 400
    assert facts.left_out == {"long_chat": 400 - facts.rows.filter(USABLE).height}
    assert MOST_TURNS - 3 < facts.rows["context"].list.len().max() <= MOST_TURNS
    (row,) = read(tmp_path, chat, turns="last").rows.rows(named=True)
    assert (row["answers"], len(row["context"])) == (["a399"], 798)


# rows in = rows read + rows left out


turn = st.one_of(
    st.builds(user, st.sampled_from(["q?", "", None, PICTURE])),
    st.builds(says, st.sampled_from(["a", "<think>x</think>a", "<think>x", None, "", [{"type": "text", "text": "a"}]])),
    st.builds(lambda mark: says("a", **mark), st.sampled_from([*MASKS, *LEARNT])),
    st.sampled_from([says(None, **CALL), says(None, refusal="no"), {"role": "tool", "content": "x"}, CHAT[0]]),
    st.sampled_from([{"role": "function_call", "content": "{}"}, {"role": "thought", "content": "x"}]),
)


@settings(max_examples=80)
@given(st.lists(st.lists(turn, max_size=7), min_size=1, max_size=5))
def test_every_answer_is_a_row_or_left_out_for_a_reason(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[list[Turn]]
) -> None:
    folder = tmp_path_factory.mktemp("units")
    facts = read(folder, *conversations, CHAT)
    own = [sum(turn["role"] in ("assistant", "function_call") for turn in chat) for chat in (*conversations, CHAT)]
    units = sum(max(1, count) for count in own)  # a chat without an answer is one row that cannot be used
    usable = facts.rows.filter(USABLE).height
    assert units == facts.total == facts.rows.height == usable + sum(facts.left_out.values())
    assert facts.records == len(conversations) + 1
    assert set(facts.left_out) <= set(REASONS)
    found = check(facts.rows).summary
    assert (found["records"], found["rows"], found["usable"]) == (facts.records, units, usable)
    assert found["left_out"] == facts.left_out
    drawn = read(folder, *conversations, CHAT, limit=2)
    assert (drawn.total, drawn.left_out, drawn.records) == (facts.total, facts.left_out, facts.records)
    # and it comes back: the same rows, read from the file with labels beside it
    facts.annotate(pl.DataFrame({"row": [0], "category": ["Unknown"]}), folder / "b.jsonl")
    assert read_dataset(folder / "b.jsonl").rows.equals(facts.rows)


def test_the_terminal_and_the_json_of_a_check_account_for_the_file(tmp_path: Path) -> None:
    chat = [says("Hello!"), *CHAT[1:3], user("Of Peru?"), says("Lima", weight=0)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat}, {"messages": CHAT}])
    checked = check_files([DataSettings(data=str(path))])
    assert finding_lines(checked)[0] == "2 records: 4 rows read, 2 left out (masked 1, no_user_turn 1)"
    assert checked.summary["left_out"] == {"masked": 1, "no_user_turn": 1}
    assert {finding.name for finding in checked.findings} >= {"masked", "no_user_turn"}
    both = check_files(
        [DataSettings(data=str(path)), DataSettings(data=str(write_jsonl(tmp_path / "b.jsonl", [{"messages": CHAT}])))]
    )
    assert (both.summary["records"], both.summary["rows"]) == (3, 9)


def test_a_file_of_which_nothing_can_serve_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl: none of the 2 rows can be used: found masked 1, tool_call 1\."):
        read(tmp_path, [ASKED, says("Lima", weight=0)], [ASKED, says(None, **CALL)])
    # a strict reader takes what was left out on purpose, and nothing that is missing
    read(tmp_path, [ASKED, says("Lima", weight=0)], CHAT, strict_rows=True)
    with pytest.raises(InputError, match="no answer: messages is"):
        read(tmp_path, [ASKED, says("")], CHAT, strict_rows=True)


def test_turns_of_one_chat_do_not_flood_a_check(tmp_path: Path) -> None:
    more = [user("Yes?"), says("Yes."), user("Yes?"), says("No."), user("Yes!"), says("Yes.")]
    found = check(read(tmp_path, [*CHAT, *more], [*CHAT[:5], *more]).rows).summary
    assert not {"near_duplicate", "conflicting"} & set(found["flags"])
    assert found["flags"]["duplicate"] == 2  # the two chats begin alike


# back again


def test_labels_by_turn_come_back_as_lists_and_single_ones_as_values(tmp_path: Path) -> None:
    facts = read(tmp_path, CHAT, CHAT[:3])
    labels = pl.DataFrame({
        "row": [0, 1, 2, 3], "category": ["Unknown", None, "MaybeKnown", "HighlyKnown"],
        "p_greedy": [0.0, None, 0.5, float("nan")],
        "flags": [["a"], [], ["b", "c"], []],
    })  # fmt: skip
    facts.annotate(labels, tmp_path / "b.jsonl")
    first, second = (json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines())
    assert first == {
        "messages": CHAT, "labelled_turns": [2, 4, 6], "category": ["Unknown", None, "MaybeKnown"],
        "p_greedy": [0.0, None, 0.5], "flags": [["a"], [], ["b", "c"]],
    }  # fmt: skip
    assert second == {
        "messages": CHAT[:3],
        "labelled_turns": [2],
        "category": ["HighlyKnown"],
        "p_greedy": [None],
        "flags": [[]],
    }
    back = read_dataset(tmp_path / "b.jsonl")
    assert back.rows.equals(facts.rows)
    assert back.extra(["category"])["category"].to_list() == labels["category"].to_list()
    assert back.extra(["p_greedy"])["p_greedy"].to_list() == [0.0, None, 0.5, None]
    single = read(tmp_path, CHAT[:3], CHAT[:3])
    single.annotate(labels.head(2), tmp_path / "c.jsonl")
    assert json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["category"] == "Unknown"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_lists_of_labels_are_read_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    path, out = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], [json.dumps(CHAT)], [json.dumps(CHAT[:3])]])
    elif suffix == ".parquet":
        pl.DataFrame({"messages": [CHAT, CHAT[:3]]}).write_parquet(path)
    else:
        write_jsonl(path, [{"messages": CHAT}, {"messages": CHAT[:3]}])
    facts = read_dataset(path)
    names = ["Unknown", None, "MaybeKnown", "HighlyKnown"]
    facts.annotate(pl.DataFrame({"row": range(4), "category": names, "weight": [1.0, 0.5, None, 2.0]}), out)
    assert read_dataset(out).rows.equals(facts.rows)
    assert read_dataset(out).extra(["category"])["category"].to_list() == names
    again = tmp_path / f"c{suffix}"
    read_dataset(out).annotate(pl.DataFrame({"row": range(4), "category": names[::-1]}), again)
    both = read_dataset(again).extra(["category", "foreknow_category"])
    assert both["category"].to_list() == names
    assert both["foreknow_category"].to_list() == names[::-1]


def test_the_annotated_file_loads_as_one_table(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    facts = read(tmp_path, CHAT, CHAT[:3])
    facts.annotate(pl.DataFrame({"row": range(4), "category": ["Unknown", None, None, None]}), tmp_path / "b.jsonl")
    table = datasets.load_dataset("json", data_files=str(tmp_path / "b.jsonl"), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert table["category"][:] == [["Unknown", None, None], [None]]
    assert table["labelled_turns"][:] == [[2, 4, 6], [2]]


# a part of a chat


def written(
    folder: Path, facts: Dataset, kept: list[int], answers: dict[int, str] | None = None
) -> list[dict[str, Any]]:
    out = folder / "part.jsonl"
    facts.write(pl.DataFrame({"row": kept}), out, answers)
    back = read_dataset(out)
    same = ["question", "turn"]
    assert back.rows.filter(USABLE).select(same).equals(facts.rows[kept].select(same))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_answers_that_are_not_in_a_set_are_cut_off_or_marked(tmp_path: Path) -> None:
    facts = read(tmp_path, CHAT, CHAT)
    (first,) = written(tmp_path, facts, [0])
    assert first["messages"] == CHAT[:3]
    (second,) = written(tmp_path, facts, [1])
    assert second["messages"] == [*CHAT[:2], says("Paris", weight=0), *CHAT[3:5]]
    whole, last = written(tmp_path, facts, [0, 1, 2, 5], {1: "I don't know."})
    assert whole["messages"] == [*CHAT[:4], says("I don't know."), *CHAT[5:]]
    assert [turn.get("weight") for turn in last["messages"]] == [None, None, 0, None, 0, None, None]
    assert facts.in_part(pl.Series([0, 1, 2, 5])) == [1]


@pytest.mark.parametrize(
    ("mark", "written_as"),
    [({"train": True}, {"train": False}), ({"weight": 1.0}, {"weight": 0.0}), ({"loss": "true"}, {"loss": "false"}),
     ({"masked": False}, {"masked": True}), ({"loss_mask": 1}, {"loss_mask": 0}), ({"id": 7}, {"id": 7, "weight": 0})],
)  # fmt: skip
def test_the_mark_is_the_one_that_the_chat_uses(tmp_path: Path, mark: Turn, written_as: Turn) -> None:
    chat = [user("Of France?"), says("Paris", **mark), user("Of Peru?"), says("Lima", **mark)]
    (record,) = written(tmp_path, read(tmp_path, chat), [1])
    assert record["messages"] == [chat[0], says("Paris", **written_as), *chat[2:]]


def test_calls_and_greetings_of_a_chat_in_part_are_marked_too_and_others_stay(tmp_path: Path) -> None:
    chat = [
        says("Hello!"),
        user("Of France?"),
        says(None, **CALL),
        {"role": "tool", "content": "x"},
        says("Paris"),
        *CHAT[3:5],
    ]
    facts = read(tmp_path, chat)
    usable = facts.rows.filter(USABLE)["row"].to_list()
    (record,) = written(tmp_path, facts, usable)
    assert record["messages"] == chat
    (record,) = written(tmp_path, facts, usable[:1])
    assert [turn.get("weight") for turn in record["messages"]] == [0, None, 0, None, None]


@pytest.mark.parametrize("weights", [None, [None, 1.0], [None, 1]])
def test_parquet_chats_are_marked_too(tmp_path: Path, weights: list[Any] | None) -> None:
    chat = CHAT[1:5]
    if weights:
        chat = [{**turn, "weight": weights[n % 2]} for n, turn in enumerate(chat)]
    table = pl.DataFrame({"messages": [chat, chat[:2]], "n": [1, 2]})
    table.write_parquet(tmp_path / "a.parquet")
    facts = read_dataset(tmp_path / "a.parquet")
    facts.write(pl.DataFrame({"row": [1, 2]}), tmp_path / "b.parquet")
    back = pl.read_parquet(tmp_path / "b.parquet")
    assert [turn["weight"] for turn in back["messages"][0]] == [None, 0, None, weights and 1]
    assert back["messages"].dtype.inner.fields[:2] == table["messages"].dtype.inner.fields[:2]
    if weights:
        assert back["messages"].dtype == table["messages"].dtype
    again = read_dataset(tmp_path / "b.parquet")
    assert again.rows["answers"].to_list() == [None, ["Lima"], ["Paris"]]


def test_a_history_in_part_ends_with_what_is_kept_and_has_a_list_of_marks(tmp_path: Path) -> None:
    record = {
        "instruction": "Of Ghana",
        "input": "?",
        "output": "Accra",
        "history": [["Of France?", "Paris"], ["Of Peru?", "Lima"]],
    }
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [record]))
    (first,) = written(tmp_path, facts, [0], {0: "No."})
    assert first == {"instruction": "Of France?", "input": "", "output": "No.", "history": []}
    (second,) = written(tmp_path, facts, [1])
    assert second == {"instruction": "Of Peru?", "input": "", "output": "Lima", "history": [["Of France?", "Paris"]],
                      "loss_mask": [0, 0, 0, 1]}  # fmt: skip
    (third,) = written(tmp_path, facts, [0, 2], {0: "No."})
    assert third == {
        **record,
        "history": [["Of France?", "No."], ["Of Peru?", "Lima"]],
        "loss_mask": [0, 1, 0, 0, 0, 1],
    }
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(record), [*list(record.values())[:3], json.dumps(record["history"])]])
    table = read_dataset(tmp_path / "a.csv")
    table.write(pl.DataFrame({"row": [0, 1, 2]}), tmp_path / "b.csv")
    with pytest.raises(InputError, match="a table has no room for the marks of single turns"):
        table.write(pl.DataFrame({"row": [2]}), tmp_path / "b.csv")


def test_short_facts_by_turn_come_back_to_their_turn(tmp_path: Path) -> None:
    facts = read(tmp_path, CHAT)
    own = [{"question": "Capital of Peru?", "answer": "Lima"}]
    facts.annotate(pl.DataFrame({"row": [1], "facts": [own]}), tmp_path / "b.jsonl")
    assert read_dataset(tmp_path / "b.jsonl").rows["facts"].to_list() == [None, own, None]
    # facts of the whole record belong to its last answer
    record = {"messages": CHAT, "facts": own}
    assert read_dataset(write_jsonl(tmp_path / "c.jsonl", [record])).rows["facts"].to_list() == [None, None, own]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_short_facts_of_the_last_answer_are_not_told_of_the_one_that_a_part_ends_with(
    tmp_path: Path, suffix: str
) -> None:
    own = [{"question": "Capital of Peru?", "answer": "Lima"}]
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, [{"messages": CHAT, "facts": own}] * 2)
    else:
        cells = (json.dumps(CHAT), json.dumps(own)) if suffix == ".csv" else (CHAT, own)
        frame = pl.DataFrame({"messages": [cells[0]] * 2, "facts": [cells[1]] * 2})
        frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    facts = read_dataset(path)
    assert facts.rows["facts"].to_list() == [None, None, own] * 2
    facts.write(pl.DataFrame({"row": [0, 3, 5]}), tmp_path / f"b{suffix}", {0: "I don't know."})
    rows = read_dataset(tmp_path / f"b{suffix}").rows.filter(USABLE)
    assert rows["answers"].to_list() == [["I don't know."], *facts.rows["answers"].to_list()[3::2]]
    assert rows["facts"].to_list() == [None, None, own]


# audit -> mix -> tune


def audited(folder: Path, records: Sequence[Mapping[str, Any]], kinds: Sequence[str | None], **how: Any) -> Path:
    """A finished audit's folder, as `foreknow audit` leaves it, with these categories in turn."""
    config = AuditConfig(data=str(write_jsonl(folder / "in.jsonl", list(records))), out=folder / "audit", **how)
    facts = read_data(config)
    category = pl.Series([kinds[n % len(kinds)] for n in range(facts.total)], dtype=pl.String)
    probed = pl.DataFrame({
        "row": facts.rows["row"], "category": category, "category_lenient": category,
        **{name: pl.Series([None] * facts.total, dtype=pl.Float64) for name in (
            "p_greedy", "p_greedy_lenient", "p_sampled", "p_sampled_width", "p_hit", "p_hit_upper", "p_hit_lenient")},
        "undecided": [False] * facts.total, "not_finite": [False] * facts.total,
    }).filter(facts.rows.select(USABLE).to_series())  # fmt: skip
    groups = {"all": few_shot.GroupExemplars((), ())}
    said = pl.DataFrame({"row": facts.rows["row"], "model_answer": ["x"] * facts.total})
    rows = rows_frame(facts.rows, probed, said, few_shot.Exemplars(groups, ""))
    (folder / "audit").mkdir()
    write_frame(folder / "audit" / "rows.parquet", rows)
    facts.annotate(rows.select("row", "category", "model_answer"), folder / "audit" / "annotated.jsonl")
    (folder / "audit" / "config.yaml").write_text(yaml.safe_dump(config.resolved()))
    manifest = {"format": FORMAT, "identity": {"data": facts.digest}, "rows": "x", "model": {}}
    write_json(folder / "audit" / "manifest.json", manifest)
    return folder / "audit"


def conversation(n: int) -> list[Turn]:
    return [
        user(f"Capital of {n}?"),
        says(f"City {n}"),
        user("And its river?"),
        says(f"River {n}"),
        user("Sure?"),
        says("Yes"),
    ]


def test_a_mix_of_turns_is_tuned_on_with_its_categories(tmp_path: Path) -> None:
    kinds = ["HighlyKnown", "Unknown", "MaybeKnown", "Unknown"]
    audit = audited(tmp_path, [{"id": n, "messages": conversation(n)} for n in range(12)], kinds)
    labels = pl.read_parquet(audit / "rows.parquet")
    out = tmp_path / "mix.jsonl"
    mix = write_mix(MixConfig(audit=audit, out=out, unknown=0.5, size=12, idk=True, weight={"Unknown": 0.5})).mix
    kept = labels[mix.rows["row"].to_list()]
    back = read_set("train", str(out), None)
    assert back.rows["category"].to_list() == kept["category"].to_list()
    assert back.rows["weight"].to_list() == [0.5 if name == "Unknown" else 1.0 for name in kept["category"]]
    refused = [
        ["I don't know."] if name == "Unknown" else [gold]
        for name, gold in kept.select("category", "answer").iter_rows()
    ]
    assert back.rows["answers"].to_list() == refused
    assert set(back.left_out) <= {"masked"}
    assert any("chats have only some of their answers in the set" in note for note in mix.notes)
    assert mix.manifest["turns"] == "all"
    # the audit knows them too, by question, earlier turns and gold; "Sure?" alone would be many rows
    known = write_mix(MixConfig(audit=audit, out=tmp_path / "known.jsonl", known_of=out)).path
    found = read_set("train", str(known), labels, "the audit")
    assert set(found.rows["category"]) <= {"HighlyKnown", "MaybeKnown"}
    everything = read_set("train", str(tmp_path / "in.jsonl"), labels, "the audit")
    assert everything.rows["category"].to_list() == labels["category"].to_list()


def test_a_mix_of_last_answers_is_not_read_as_one_of_all(tmp_path: Path) -> None:
    audit = audited(
        tmp_path, [{"messages": conversation(n)} for n in range(8)], ["HighlyKnown", "Unknown"], turns="last"
    )
    out = tmp_path / "mix.jsonl"
    mix = write_mix(MixConfig(audit=audit, out=out, natural=True)).mix
    assert any("8 chats have earlier answers, to which --turns last gave no label" in note for note in mix.notes)
    assert [json.loads(line)["category"] for line in out.read_text().splitlines()] == ["HighlyKnown", "Unknown"] * 4
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"question": f"q{n}?", "answer": "a"} for n in range(4)])
    with pytest.raises(InputError, match="mixed from an audit with --turns last, but read with --turns all"):
        read_inputs(TuneConfig(train=str(out), dev=str(dev)))
    given_sets = read_inputs(TuneConfig(train=str(out), dev=str(dev), turns="last"))
    assert given_sets.train.rows["category"].to_list() == ["HighlyKnown", "Unknown"] * 4
    # a label that is one value for a chat of several rows is that of its last one
    every = read_set("train", str(out), None)
    assert every.rows["category"].to_list() == [None, None, "HighlyKnown", None, None, "Unknown"] * 4


def test_the_same_question_in_another_chat_is_another_row(tmp_path: Path) -> None:
    first = read(tmp_path, conversation(1), conversation(2)).rows
    second = read(tmp_path, conversation(2)).rows
    named = lambda rows: read_set("x", str(write_jsonl(tmp_path / "x.jsonl", [{"messages": m} for m in rows])), None)  # noqa: E731
    assert check_overlap(named([conversation(1)]), [named([conversation(2)])], allowed=False) is None
    with pytest.raises(InputError, match=r"3 \(3 questions\) in x, first row 3: 'Capital of 2\?'"):
        check_overlap(named([conversation(1), conversation(2)]), [named([conversation(2)])], allowed=False)
    audited_rows = first.select(
        "row", "question", earlier_turns(first), answer=pl.col("answers").list.first(),
        category=pl.Series(["Unknown"] * 3 + ["HighlyKnown"] * 3), p_greedy=pl.lit(0.0), model_answer=pl.lit("x"),
    )  # fmt: skip
    assert labels_of(second, audited_rows, same_file=False)["category"].to_list() == ["HighlyKnown"] * 3
    mixed = pl.DataFrame({"question": ["Sure?", "Sure?"], "new_answer": [None, "I don't know."]})
    assert conflicts(mixed, pl.Series(["a", "b"]))["questions"] == 0
    assert conflicts(mixed, pl.Series(["a", "a"]))["questions"] == 1


def test_no_row_sees_another_answer_of_its_own_chat(tmp_path: Path) -> None:
    rows = read(tmp_path, *(conversation(n) for n in range(12))).rows
    drawn = few_shot.draw_exemplars(rows, ["all"], shots=3, sets=6, seed=0)
    pool = [e for one in drawn.groups["all"].sets for e in one]
    assert {e.question for e in pool} <= {f"Capital of {n}?" for n in range(12)}  # none that needs earlier turns
    for row in rows.iter_rows(named=True):
        for shots, _ in drawn.groups["all"].for_row(row["question"], None, row["record"]):
            assert len({shot.record for shot in shots}) == 3
            assert row["record"] not in {shot.record for shot in shots}


def test_a_limit_draws_rows_of_chats(tmp_path: Path) -> None:
    conversations = [conversation(n) for n in range(30)]
    whole = read(tmp_path, *conversations)
    part = read(tmp_path, *conversations, limit=10)
    assert part.audited.len() == 10
    assert part.rows.equals(whole.rows.filter(pl.col("row").is_in(part.rows["row"].implode())))
    assert part.rows.filter(pl.col("row").is_in(part.audited.implode()))["record"].n_unique() > 4


def test_an_audit_of_chats_ends_to_end(tmp_path: Path, tiny_folder: Path) -> None:
    rows = fact_rows()[:16]
    records = [
        {
            "messages": [
                user(a["question"]),
                says(a["answer"]),
                user(b["question"]),
                says(f"<think>Hm.</think>{b['answer']}"),
            ]
        }
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]
    records[0]["messages"][1]["weight"] = 0
    path = write_jsonl(tmp_path / "a.jsonl", records)
    out = tmp_path / "run"
    done = foreknow.audit(str(path), model=str(tiny_folder), out=str(out), dtype="float32", shots=2)
    assert done.rows.select("row", "record", "turn").rows() == [(n, n // 2, 1 + 2 * (n % 2)) for n in range(16)]
    assert done.rows["category"].null_count() == 1
    data = done.summary["data"]
    assert (data["records"], data["rows_in_file"], data["left_out"], data["thoughts"]) == (8, 16, {"masked": 1}, 8)
    page = (out / "report.html").read_text()
    assert "8 records: 15 rows read, 1 left out (masked 1); 8 answers hold a thought" in page
    for line, before in zip((out / "annotated.jsonl").read_text().splitlines(), records, strict=True):
        record = json.loads(line)
        assert record["messages"] == before["messages"]
        assert record["labelled_turns"] == [1, 3]
    assert json.loads((out / "annotated.jsonl").read_text().splitlines()[0])["category"][0] is None
    own = read_set("train", str(out / "annotated.jsonl"), None)
    assert own.rows["category"].to_list() == done.rows["category"].drop_nulls().to_list()


def test_reasons_and_roles_are_of_a_piece() -> None:
    assert set(LEFT_OUT) < set(REASONS)
    assert set(exchanges.ROLES.values()) == {"system", "user", "assistant", "call", "thought"}
