"""The layouts that foreknow reads: for each, the columns that it needs and a check of their values. Pure.

    messages            a chat in the column `messages`: every assistant turn that answers a user turn is a row
    sharegpt            a chat in the column `conversations`, with turns as {from, value}
    preference          chosen and rejected answers: the chosen one is the answer (`formats.py`)
    alpaca              instruction, input and output, maybe system; the answers in `history` are rows too
    prompt-completion   prompt and completion, as text or as turns
    popqa               PopQA's table
    choices             multiple choice: the text of the right choice is the answer (`choice_columns.py`)
    reading             a question about a passage; the passage is part of the prompt (SQuAD, BoolQ)
    question            a question and its answers, in columns of their usual names or of the names in `--map`
    triples             subject, relation and object; the row has a question, or its relation has a template
    trees, instances    OpenAssistant's message trees, Self-Instruct's instances (`reply_trees.py`)
    text                one text with chat markup (`text_markup.py`)

`detection.py` chooses one of them for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from foreknow.data.chat.exchanges import looks_like_turns
from foreknow.data.chat.formats import codec_of, view_of
from foreknow.data.layouts.answer_objects import is_extractive, texts_of
from foreknow.data.layouts.column_paths import field_of
from foreknow.data.layouts.hints import is_rated
from foreknow.data.layouts.layout import Record
from foreknow.data.layouts.python_reprs import decode_object
from foreknow.data.values import text_of

Taken = Mapping[str, str]


Sample = Sequence[Record]


class LayoutKind(NamedTuple):
    """What a layout is recognised by. `needs`: the columns it must have, by our names; `also`: columns that it reads
    too; `fits`: the check of their values; `what`: the layout in words."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    fits: Callable[[Taken, Sample], bool]
    what: str


def _always(_taken: Taken, _sample: Sample) -> bool:
    return True


def _has_turns(name: str) -> Callable[[Taken, Sample], bool]:
    def fits(taken: Taken, sample: Sample) -> bool:
        values = [field_of(record, taken[name]) for record in sample]
        if taken[name].lower() == "turns" and any(values) and all(_is_texts(value) for value in values if value):
            return False  # MT-Bench: the user's turns alone, without answers
        lists = [v for v in values if not isinstance(v, str) or v.lstrip().startswith("[")]
        if any(looks_like_turns(v) or codec_of(v) is not None for v in lists):
            return True
        # a file in which every chat is broken is still a file of chats
        sure = taken[name].lower() in _CHAT_NAMES or not values
        return sure and not any(isinstance(v, str | Mapping) and v for v in values)

    return fits


def _is_texts(value: object) -> bool:
    """Whether a value is a list of texts, or a cell that spells one: no text names its speaker."""
    listed = decode_object(value)
    return isinstance(listed, list | tuple) and all(isinstance(item, str) for item in listed)


_CHAT_NAMES = ("messages", "conversations", "conversation", "dialog", "dialogue")


def _has_view(name: str) -> Callable[[Taken, Sample], bool]:
    def fits(taken: Taken, sample: Sample) -> bool:
        return any(view_of(name, taken, record) is not None for record in sample)

    return fits


def _has_answer_values(taken: Taken, sample: Sample) -> bool:
    """Whether the answer columns may hold answers: not class numbers in `label`, and not rated answers."""
    columns = [taken[ours] for ours in ("answer", "answers") if ours in taken]
    values = [value for record in sample for column in columns if (value := field_of(record, column)) is not None]
    if any(is_rated(value) for value in values):
        return False
    if columns == [taken.get("answer")] and columns[0].lower() == "label":
        return any(isinstance(value, str) and not value.strip().lstrip("-").isdecimal() for value in values)
    return True


def _is_reading(taken: Taken, sample: Sample) -> bool:
    """Whether the questions are about a passage: most answers occur in it, are marked in it, or are yes or no."""
    if not ({"answer", "answers"} & set(taken)) or not _has_answer_values(taken, sample):
        return False
    known = inside = 0
    for record in sample:
        passage = field_of(record, taken["passage"])
        if not isinstance(passage, str) or not passage.strip():
            continue
        values = [field_of(record, taken[ours]) for ours in ("answer", "answers") if ours in taken]
        golds = [text for value in values for text in texts_of(value) if text not in (None, "", [])]
        if not golds:
            continue
        known += 1
        stands = any((text := text_of(gold)) is not None and text.casefold() in passage.casefold() for gold in golds)
        inside += stands or any(map(is_extractive, values)) or any(isinstance(gold, bool) for gold in golds)
    return inside * 2 > known > 0


def _is_tree(taken: Taken, sample: Sample) -> bool:
    values = [decode_object(field_of(record, taken["tree"])) for record in sample]
    return any(isinstance(value, Mapping) and isinstance(value.get("replies"), list) for value in values)


def _has_instances(taken: Taken, sample: Sample) -> bool:
    values = [decode_object(field_of(record, taken["instances"])) for record in sample]
    listed = [item for value in values if isinstance(value, list | tuple) for item in value]
    return any(isinstance(item, Mapping) and "output" in item for item in listed)


_CHATS = "chats; each answer of the assistant is a row"


LAYOUT_KINDS: Mapping[str, LayoutKind] = {
    "messages": LayoutKind(("messages",), (), _has_turns("messages"), _CHATS),
    "sharegpt": LayoutKind(("conversations",), ("system",), _has_turns("conversations"), _CHATS),
    "preference": LayoutKind(
        ("chosen", "rejected"), ("system",), _has_view("preference"), "the chosen answer is the answer"
    ),
    "alpaca": LayoutKind(
        ("instruction", "answer"), ("context", "system", "history"), _has_answer_values, "instruction and output"
    ),
    "popqa": LayoutKind(("question", "answers", "subject", "object"), (), _always, "PopQA's columns"),
    "prompt-completion": LayoutKind(("prompt", "completion"), ("system",), _always, "prompt and completion"),
    "choices": LayoutKind(("choices",), (), _always, "multiple choice"),
    "reading": LayoutKind(
        ("question", "passage"),
        ("answer", "answers"),
        _is_reading,
        "questions about a passage, which is part of the question (--layout question asks without it)",
    ),
    "question": LayoutKind(("question",), ("answer", "answers"), _has_answer_values, "question and answer"),
    "triples": LayoutKind(("object",), ("subject", "relation", "question"), _always, "subject, relation, object"),
    "trees": LayoutKind(("tree",), (), _is_tree, "trees of messages; of several replies the best ranked is the answer"),
    "instances": LayoutKind(("instruction", "instances"), (), _has_instances, "an instruction and its instances"),
    "text": LayoutKind(("text",), (), _has_view("text"), "chats as texts with marks"),
}


LAYOUTS = tuple(LAYOUT_KINDS)
