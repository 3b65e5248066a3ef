"""Chats: find every answer in a list of turns, with its question and the turns before it. Pure.

Every turn of the assistant that answers a turn of the user is an answer. Its question is the user's last turn before
it; the system's text and all other turns before it are its context, earlier answers without their thoughts. A turn of
the assistant that cannot serve as an answer has the reason why (`LEFT_OUT`), and may be context of a later one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from foreknow.data.chat.loss_masks import is_masked, listed_marks, mark_of, mask_means_learnt
from foreknow.data.chat.reasoning import answer_parts
from foreknow.data.chat.turn_content import parse_turn_content, with_answer_text
from foreknow.data.layouts.python_reprs import decode_list
from foreknow.io.json_text import dumps

ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "person": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "llm": "assistant",
    "gpt4": "assistant", "gpt-4": "assistant", "claude": "assistant", "gemini": "assistant",
    "function_call": "call", "tool_call": "call", "tool_calls": "call",
    "thought": "thought", "thinking": "thought", "reasoning": "thought",
}  # fmt: skip
"""Roles by the names that data sets use. Others (tool, ipython, observation) are kept under their own."""
LEFT_OUT: Final = (
    "masked", "tool_call", "only_thought", "refusal", "not_text", "no_user_turn", "long_chat", "rejected",
    "unanswerable", "no_such_choice", "no_marks", "missing_value",
)  # fmt: skip
"""Why a turn of the assistant, or any answer, cannot serve; the first that holds counts.

masked        it is marked not to be trained on (`loss_masks`)
tool_call     it calls a tool
only_thought  it is a thought without an answer
refusal       it is a refusal, by its own word (OpenAI's `refusal`)
not_text      it, or a turn before it, holds pictures, sounds or files
no_user_turn  no turn of the user, and no tool's result, stands between it and the last answer, or the beginning
long_chat     too much stands before it (`MOST_TURNS`, `MOST_CHARACTERS`)
rejected      it is marked as a bad answer (KTO's `label: false`), or another reply to the same message is ranked better
unanswerable  the row says that its question has no answer (SQuAD 2)
no_such_choice  the answer of a multiple choice names none of its choices
no_marks      the text has no known marks of a chat (`text_markup.py`)
missing_value  it, or the question, is a word that files write for a missing value (`values.NULL_WORDS`)
"""
MOST_TURNS: Final = 256
"""An answer behind more turns is left out: contexts would take the square of a chat's size in memory."""
MOST_CHARACTERS: Final = 2**17
"""As is one behind more characters."""
_SPEAKERS: Final = frozenset({*ROLES.values()})
"""Roles that are no tool's: all others hand over what a tool, an interpreter or a search returned."""
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")


class Turn(NamedTuple):
    """One turn of a chat, its thought taken off.

    `fault`: why a turn of the assistant is no answer, as far as the turn alone tells. `answers`: whether it says
    something to the user. `others`: whether it holds pictures and the like. `place`: its index in the record's list.
    """

    role: str
    content: str
    place: int | None = None
    fault: str | None = None
    answers: bool = False
    others: bool = False
    thought: bool = False


class Exchange(NamedTuple):
    """A question of a chat and its answer; either is None if it is missing.

    `turn`: the answer's index in the record's list. `left_out`: why it cannot serve; its answer is None then.
    """

    question: str | None
    answer: str | None
    context: list[Turn]
    turn: int | None = None
    left_out: str | None = None
    thought: bool = False


def turns_of(value: object, record: Mapping[str, object] | None = None) -> list[Turn] | None:
    """The turns in a list of `{role, content}` or `{from, value}` (or its JSON text); None if it is none.

    `record`: what holds the chat, where a list beside it may mask turns.
    """
    turn_list = _list_of(value)
    if turn_list is None:
        return None
    items: list[tuple[str, Mapping[str, object]]] = []
    for item in turn_list:
        if not isinstance(item, Mapping):
            return None
        role = _first_value(item, _ROLE_KEYS)
        if not isinstance(role, str):
            return None
        items.append((ROLES.get(role.strip().lower(), role), item))
    learnt = mask_means_learnt(items)
    turns = [_parse_turn(item, role, place, learnt) for place, (role, item) in enumerate(items)]
    marks = listed_marks(record, [turn.role for turn in turns]) if record else None
    if marks is not None:
        turns = [turn._replace(fault="masked") if mark else turn for turn, mark in zip(turns, marks, strict=True)]
    return turns


def _parse_turn(item: Mapping[str, object], role: str, place: int, learnt: Collection[str]) -> Turn:
    content = parse_turn_content(item, _first_value(item, _CONTENT_KEYS))
    if role == "user" and content.result:
        role = "tool"  # Anthropic's and Qwen's way to hand over a tool's result
    if role not in ("assistant", "call"):
        return Turn(role, content.text, place, others=content.others)
    parts = answer_parts(content.text)
    text = parts.answer.strip()
    thought = parts.thought or content.thought
    channel = str(item.get("channel") or "").strip().lower()
    calls = content.calls or role == "call" or (channel == "commentary" and bool(item.get("recipient")))
    thinks = channel in ("analysis", "commentary") and not calls
    answers = not calls and not thinks and (bool(text) or content.refusal or content.others)
    if is_masked(item, learnt):
        fault: str | None = "masked"
    elif calls:
        fault = "tool_call"
    elif thinks or (not text and thought):
        fault = "only_thought"
    elif not text and content.refusal:
        fault = "refusal"
    else:
        fault = "not_text" if content.others else None
    text_shown = "" if thinks or role == "call" else text
    return Turn("assistant", text_shown, place, fault, answers, content.others, thought or thinks)


def looks_like_turns(value: object) -> bool:
    """Whether a value is a chat: a list of turns that is not empty."""
    return bool(turns_of(value))


def exchanges(turns: Sequence[Turn], *, first: int = 0, last: bool = False) -> list[Exchange]:
    """Every turn of the assistant from the turn `first` on, as an answer or with the reason why it is none.

    `last`: only the last of them. A chat without any is one exchange without an answer. Turns after the last answer
    are not asked about.
    """
    answer_places = [at for at, turn in enumerate(turns) if at >= first and turn.role == "assistant"]
    if not answer_places:
        question_place = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=None)
        question = None if question_place is None else turns[question_place].content.strip() or None
        left_out = "not_text" if any(turn.others for turn in turns) else None
        context = [turn for at, turn in enumerate(turns) if at != question_place and _is_context(turn)]
        return [Exchange(question, None, context, left_out=left_out)]
    return list(_exchanges(turns, answer_places[-1:] if last else answer_places))


def _exchanges(turns: Sequence[Turn], wanted: Sequence[int]) -> Iterator[Exchange]:
    before: list[Turn] = []
    question_index: int | None = None  # in `before`
    latest: int | None = None  # that of the last question, answered or not
    characters, blind, thought = 0, False, False
    chosen, end = set(wanted), wanted[-1]
    for at, turn in enumerate(turns[: end + 1]):
        if at in chosen:
            long = len(chosen) > 1 and (len(before) > MOST_TURNS or characters > MOST_CHARACTERS)
            turn_thought = turn._replace(thought=turn.thought or thought)
            yield _make_exchange(turn_thought, before, question_index, blind=blind, long=long)
        if turn.role == "assistant" and turn.answers:
            question_index = None
        if turn.role == "user":
            question_index = latest = len(before)
        elif turn.role not in _SPEAKERS:
            question_index = latest  # what a tool returned is answered to the user who asked before it
        blind |= turn.others
        thought = turn.role == "thought" or (thought if turn.role != "assistant" else turn.thought and not turn.answers)
        if _is_context(turn) or turn.role == "user":
            before.append(turn)
            characters += len(turn.content)


def _make_exchange(
    turn: Turn, before: Sequence[Turn], question_index: int | None, *, blind: bool, long: bool
) -> Exchange:
    question = None if question_index is None else before[question_index].content.strip() or None
    left_out = turn.fault
    if left_out is None and turn.content.strip():
        if blind:
            left_out = "not_text"
        elif question_index is None:
            left_out = "no_user_turn"
        elif long:
            left_out = "long_chat"
    context = [] if long else [other for at, other in enumerate(before) if at != question_index and _is_context(other)]
    answer = turn.content.strip() or None if left_out is None else None
    return Exchange(question, answer, context, turn.place, left_out, turn.thought)


def _is_context(turn: Turn) -> bool:
    """Whether a turn is context for what comes after it: a thought is not, nor is an empty turn."""
    return turn.role != "thought" and bool(turn.content.strip())


def replace_answers(value: object, answers: Mapping[int, str], learnable: Collection[int] | None = None) -> object:
    """The chat with the answers of these turns replaced; all else, keys and order, stays.

    `learnable`: the turns of the assistant that may be learnt from. The chat ends with the last of them, and the others
    are marked (`loss_masks.mark_of`). None: the chat is whole, and no mark is added.
    """
    if isinstance(value, str):
        return dumps(replace_answers(_list_of(value), answers, learnable))
    turns = [dict(turn) for turn in value]  # type: ignore[attr-defined]
    for place, answer in answers.items():
        present = [key for key in _CONTENT_KEYS if key in turns[place]] or [*_CONTENT_KEYS[:1]]
        key = next((key for key in present if turns[place].get(key) is not None), present[0])
        turns[place][key] = with_answer_text(turns[place].get(key), answer)
    if learnable is None:
        return turns
    roles = [str(_first_value(turn, _ROLE_KEYS)).strip().lower() for turn in turns]
    learnt = mask_means_learnt([(ROLES.get(role, role), turn) for role, turn in zip(roles, turns, strict=True)])
    turns = turns[: max(learnable) + 1]
    name, mark = mark_of(turns, learnt)
    for place, (role, turn) in enumerate(zip(roles, turns, strict=False)):
        if ROLES.get(role) in ("assistant", "call") and place not in learnable and not is_masked(turn, learnt):
            turn[name] = mark
    return turns


def last_answer(value: object) -> int:
    """The index of the assistant's last turn in a chat, or its JSON text."""
    turns = turns_of(value) or []
    return max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns) - 1)


def _first_value(item: Mapping[str, object], keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _list_of(value: object) -> list[object] | None:
    decoded = decode_list(value)
    return list(decoded) if isinstance(decoded, list | tuple) else None
