"""Forms of chats: a value that spells turns in any known way -> turns as `{role, content}`, and back. Pure.

    [{"role": ..., "content": ...}]          as it is; under other names (speaker and text, sender and message) too
    [{"human": ..., "assistant": ...}]       one item a turn, or a question and its answer
    [["question", "answer"], ...]            pairs of texts
    ["question", "answer", ...]              texts in turn, the user's first
    "<|im_start|>user ..."                   one text with marks (`text_markup.py`)

`view_of` reads a record of the layouts `text` and `preference`, among others, as one chat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from foreknow.data.chat.exchanges import ROLES, looks_like_turns
from foreknow.data.chat.text_markup import find_markup, turns_in, with_turns
from foreknow.data.layouts.python_reprs import decode_object
from foreknow.data.values import spellings
from foreknow.io.json_text import dumps

Record = Mapping[str, object]
Turns = list[dict[str, object]]
_USER: Final = ("user", "human", "prompter", "question", "q", "input", "instruction", "prompt", "query")
_ASSISTANT: Final = (
    "assistant",
    "gpt",
    "bot",
    "chatbot",
    "ai",
    "model",
    "answer",
    "a",
    "output",
    "response",
    "completion",
)
_SPEAKER: Final = ("role", "from", "speaker", "author", "sender", "user_type", "type", "name")
_CONTENT: Final = ("content", "value", "text", "message", "utterance", "body", "msg")


class Codec(NamedTuple):
    """The turns that a value spells, and the function that spells turns in the value's own form."""

    turns: Turns
    encode: Callable[[Turns], object]


class ChatView(NamedTuple):
    """A record as one chat. `first`: turns from there on may be answers. `put`: turns -> the record with them."""

    turns: Turns
    first: int
    put: Callable[[Turns], Record]


def codec_of(value: object) -> Codec | None:
    """The turns in a value of any known form; None where there are none."""
    if isinstance(value, str):
        return _codec_of_text(value)
    if isinstance(value, Mapping):
        return _codec_of_mapping(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    if looks_like_turns(value):
        return Codec([dict(turn) for turn in value], lambda turns: turns)
    if all(isinstance(item, Mapping) for item in value):
        return _codec_of_speakers(value) or _codec_of_role_keys(value)
    if all(isinstance(item, str) for item in value) and len(value) > 1:
        return Codec(_alternating(value), lambda turns: [turn["content"] for turn in turns])
    if all(
        isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(t, str) for t in item) for item in value
    ):
        flat = [text for item in value for text in item]
        return Codec(
            _alternating(flat),
            lambda turns: [[each["content"] for each in turns[at : at + 2]] for at in range(0, len(turns), 2)],
        )
    return None


def _alternating(texts: Sequence[str]) -> Turns:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def _codec_of_text(value: str) -> Codec | None:
    if value.lstrip().startswith("["):
        spelled = decode_object(value)
        inner = None if isinstance(spelled, str) else codec_of(spelled)
        if inner is not None:
            encode = inner.encode
            return Codec(inner.turns, lambda turns: dumps(encode(turns)))
    turns = turns_in(value)
    if turns is None:
        return None
    return Codec([dict(turn) for turn in turns], lambda changed: with_turns(value, changed))


def _codec_of_mapping(value: Mapping[str, object]) -> Codec | None:
    if isinstance(value.get("messages"), list):
        inner = codec_of(value["messages"])
        if inner is None:
            return None
        encode = inner.encode
        return Codec(inner.turns, lambda turns: {**value, "messages": encode(turns)})
    if looks_like_turns([value]):
        return Codec([dict(value)], lambda turns: turns[0])
    return None


def _find_key(item: Mapping[str, object], names: Sequence[str]) -> str | None:
    return next((key for name in names for key in item if isinstance(key, str) and key.lower() == name), None)


def _codec_of_speakers(items: Sequence[Mapping[str, object]]) -> Codec | None:
    """Items that name their speaker and text by other keys than role and content."""
    keys = [(_find_key(item, _SPEAKER), _find_key(item, _CONTENT)) for item in items]
    turns: Turns = []
    for item, (speaker, content) in zip(items, keys, strict=True):
        if speaker is None or content is None or speaker == content:
            return None
        who = item[speaker]
        role = who.get("role") if isinstance(who, Mapping) else who
        if not isinstance(role, str):
            return None
        turns.append({**item, "role": role, "content": item[content]})
    roles = {ROLES.get(str(turn["role"]).strip().lower()) for turn in turns}
    if not {"user", "assistant"} & roles:
        return None

    def encode(changed: Turns) -> object:
        items_out = []
        for item, turn, (_, content) in zip(items, changed, keys, strict=False):
            more = {key: value for key, value in turn.items() if key in item or key not in ("role", "content")}
            items_out.append(
                {**more, **{k: item[k] for k in ("role", "content") if k in item}, str(content): turn["content"]}
            )
        return items_out

    return Codec(turns, encode)


def _codec_of_role_keys(items: Sequence[Mapping[str, object]]) -> Codec | None:
    """Items whose keys say who speaks: one turn each, or several."""
    turns: Turns = []
    places: list[tuple[int, str]] = []
    for at, item in enumerate(items):
        own = [
            (role, key)
            for role, names in _BY_ROLE
            if (key := _find_key(item, names)) is not None and _is_text_or_null(item[key])
        ]
        if not any(role != "system" for role, _ in own):
            return None
        taken = {key for _, key in own}
        more = {key: value for key, value in item.items() if key not in taken and key not in ("role", "content")}
        for role, key in own:
            turns.append({"role": role, "content": item[key], **(more if role == "assistant" else {})})
            places.append((at, key))
    if {turn["role"] for turn in turns} < {"user", "assistant"}:
        return None

    def encode(changed: Turns) -> object:
        items_out: dict[int, dict[str, object]] = {}
        for (at, key), turn in zip(places, changed, strict=False):
            new_item = items_out.setdefault(at, dict(items[at]))
            new_item[key] = turn["content"]
            new_item |= {name: value for name, value in turn.items() if name not in ("role", "content")}
        return list(items_out.values())

    return Codec(turns, encode)


_BY_ROLE: Final = (("system", ("system",)), ("user", _USER), ("assistant", _ASSISTANT))


def _is_text_or_null(value: object) -> bool:
    return isinstance(value, str) or value is None


def view_of(name: str, columns: Mapping[str, str], record: Record) -> ChatView | None:
    """A record of a layout as one chat, where it is one that is not read column by column; else None."""
    if name == "text":
        column = columns["text"]
        codec = codec_of(record.get(column)) if isinstance(record.get(column), str) else None
        return codec and ChatView(codec.turns, 0, _column_writer(record, column, codec.encode))
    if name == "preference":
        return _view_of_preference(columns, record)
    if name in ("messages", "sharegpt"):
        column = columns["messages" if name == "messages" else "conversations"]
        codec = None if looks_like_turns(record.get(column)) else codec_of(record.get(column))
        return codec and ChatView(codec.turns, 0, _column_writer(record, column, codec.encode))
    if name == "prompt-completion":
        return _view_of_completion(columns, record)
    return None


def _column_writer(record: Record, column: str, encode: Callable[[Turns], object]) -> Callable[[Turns], Record]:
    return lambda turns: {**record, column: encode(turns)}


def _view_of_completion(columns: Mapping[str, str], record: Record) -> ChatView | None:
    """A prompt with marks, and what the assistant says behind it."""
    prompt, completion = record.get(columns["prompt"]), record.get(columns["completion"])
    answer = completion if isinstance(completion, str) else next(iter(spellings(completion)), None)
    if not isinstance(prompt, str) or answer is None:
        return None
    return _view_behind_prompt(prompt, answer, record, columns, "completion")


def _view_behind_prompt(
    prompt: str, answer: str, record: Record, columns: Mapping[str, str], name: str
) -> ChatView | None:
    """The chat of a prompt with marks and of the text behind it, which the column of this name of ours holds."""
    if not answer.strip() or turns_in(prompt) is None:
        return None
    text = prompt + answer
    turns, markup = turns_in(text), find_markup(text)
    if turns is None or markup is None:
        return None
    begins = markup.spans[-1].start

    def put(changed: Turns) -> Record:
        new_text = with_turns(text, changed)
        if begins >= len(prompt) or len(changed) < len(turns) or changed[-1]["content"] == turns[-1]["content"]:
            return {**record, columns[name]: new_text[len(prompt) :]}
        # the prompt begins the answer: another answer stands behind the prompt as a whole, and so do those beside it
        moved = {columns["prompt"]: prompt[:begins], columns[name]: new_text[begins:]}
        beside = columns.get("rejected")
        if beside is not None and isinstance(other := record.get(beside), str):
            moved[beside] = prompt[begins:] + other
        return {**record, **moved}

    return ChatView([dict(turn) for turn in turns], len(turns) - 1, put)


def _view_of_preference(columns: Mapping[str, str], record: Record) -> ChatView | None:
    """The prompt and the better answer of a preference row, whichever of them are texts or turns."""
    column = columns["chosen"]
    prompt = record.get(columns["prompt"]) if "prompt" in columns else None
    chosen = record.get(column)
    if (
        isinstance(prompt, str)
        and isinstance(chosen, str)
        and (view := _view_behind_prompt(prompt, chosen, record, columns, "chosen"))
    ):
        return view
    prompt_codec = codec_of(prompt)
    prompt_turns: Turns = prompt_codec.turns if prompt_codec else []
    if prompt_codec is None and isinstance(prompt, str) and prompt.strip():
        prompt_turns = [{"role": "user", "content": prompt}]
    chosen_codec = codec_of(chosen)
    if chosen_codec is None:
        if not isinstance(chosen, str) or not prompt_turns:
            return None
        return ChatView(
            [*prompt_turns, {"role": "assistant", "content": chosen}], len(prompt_turns), _answer_writer(record, column)
        )
    if len(chosen_codec.turns) > 1 or not prompt_turns:
        return ChatView(
            chosen_codec.turns, len(chosen_codec.turns) - 1, _column_writer(record, column, chosen_codec.encode)
        )
    encode = chosen_codec.encode
    return ChatView(
        [*prompt_turns, *chosen_codec.turns],
        len(prompt_turns),
        _column_writer(record, column, lambda turns: encode(turns[len(prompt_turns) :])),
    )


def _answer_writer(record: Record, column: str) -> Callable[[Turns], Record]:
    """The answer put between the blanks around the old one."""
    old = str(record[column])
    text = old.strip()
    before, _, after = old.partition(text) if text else ("", "", "")
    return lambda turns: {**record, column: f"{before}{str(turns[-1]['content']).strip()}{after}"}


def verdict(value: object) -> bool | None:
    """What a label (KTO's, say) tells of its row's answer: a good one, a bad one, or nothing (None)."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return None if value not in (0, 1, -1) else value == 1
    if isinstance(value, str):
        return {
            "true": True, "false": False, "1": True, "0": False, "desirable": True, "undesirable": False,
            "chosen": True, "rejected": False,
        }.get(value.strip().lower())  # fmt: skip
    return None
