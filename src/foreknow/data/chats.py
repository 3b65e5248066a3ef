"""Chats: rows written as turns -> a question, its answer, and the turns before it. Pure.

The answer is the last turn of the assistant, the question the turn of the user before it; the system's text
and earlier turns are its context. Contents may be text or a list of parts, of which the texts are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foreknow.files.jsontext import dumps, loads

ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant",
}  # fmt: skip
"""Roles by the names that data sets use. Others (tool, function_call, observation) are kept under their own."""


class Turn(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


class Exchange(NamedTuple):
    """What a chat asks and answers; None where it does neither."""

    question: str | None
    answer: str | None
    context: list[Turn]


def turns_of(value: object) -> list[Turn] | None:
    """The turns in a list of `{role, content}` or `{from, value}` (or its JSON text); None if it is none."""
    listed = _list_of(value)
    if listed is None:
        return None
    turns = []
    for item in listed:
        if not isinstance(item, Mapping):
            return None
        role = item.get("role", item.get("from"))
        content = text_in(item.get("content", item.get("value")))
        if not isinstance(role, str):
            return None
        turns.append(Turn(ROLES.get(role.strip().lower(), role), content or ""))
    return turns


def looks_like_turns(value: object) -> bool:
    """Whether a value is a chat: a list of turns that is not empty."""
    return bool(turns_of(value))


def exchange(turns: Sequence[Turn]) -> Exchange:
    """The last answer of the assistant, the question it answers, and all that was said before that.

    Turns after the last answer are not asked about. A tool's turns between question and answer are context.
    """
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    before = turns if last is None else turns[:last]
    asked = max((i for i, turn in enumerate(before) if turn.role == "user"), default=None)
    question = None if asked is None else before[asked].content.strip() or None
    answer = None if last is None else turns[last].content.strip() or None
    context = [turn for i, turn in enumerate(before) if i != asked and turn.content.strip()]
    return Exchange(question, answer, context)


def answered(turns: object, answer: str) -> object:
    """The chat with its last answer replaced; all else, keys and order, stays."""
    if isinstance(turns, str):
        return dumps(answered(loads(turns), answer))
    changed = [dict(turn) for turn in turns]  # type: ignore[attr-defined]
    for turn in reversed(changed):
        role = turn.get("role", turn.get("from"))
        if ROLES.get(str(role).strip().lower()) == "assistant":
            key = "content" if "content" in turn else "value"
            turn[key] = answer if isinstance(turn[key], str) else [{"type": "text", "text": answer}]
            break
    return changed


def text_in(content: object) -> str | None:
    """The text of a turn: itself, or the text parts of a list such as `[{"type": "text", "text": ...}]`."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        found = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [text for text in found if isinstance(text, str)]
        return "\n".join(texts) or None
    return None


def _list_of(value: object) -> list[object] | None:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = loads(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, list | tuple) else None
