"""Answers kept as objects: SQuAD's spans, TriviaQA's aliases, and the like -> their texts, and back. Pure.

    {"text": ["Paris"], "answer_start": [3]}, [{"text": "Paris", "answer_start": 3}]   SQuAD
    {"value": "Paris", "aliases": [...], "normalized_aliases": [...]}                   TriviaQA
    {"spans": ["Paris"]}, {"answer": "Paris"}, [{"answer": ["Paris"]}]                    others

In a cell of a table they are spelled, as JSON or as Python prints them. A text that is an answer in JSON stays a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from foreknow.data.layouts.python_reprs import decode_object
from foreknow.io.json_text import dumps

_KEYS: Final = ("value", "text", "texts", "spans", "span", "answer", "answers", "ground_truth", "content")
_ACCEPTED: Final = ("aliases", "Aliases", "alias")
_SIGNS: Final = ("answer_start", "aliases", "normalized_aliases", "normalized_value")
"""Keys that no answer in the form of JSON has by chance."""
_PLACES: Final = ("answer_start", "answer_end", "start", "end", "start_char", "end_char")


def is_struct(value: object) -> bool:
    """Whether a value is an object of answers, a list of such objects, or a cell that spells either."""
    value = decode_answer_object(value)
    if isinstance(value, Mapping):
        return any(key in value for key in _KEYS) and not _is_turn(value)
    return isinstance(value, list | tuple) and bool(value) and all(map(is_struct, value))


def texts_of(value: object) -> list[object]:
    """The answers in such a value, the gold first; a value of any other kind by itself."""
    value = decode_answer_object(value)
    if isinstance(value, Mapping) and not _is_turn(value):
        own = next((value[key] for key in _KEYS if value.get(key) not in (None, "")), None)
        more = next((value[key] for key in _ACCEPTED if value.get(key)), None)
        return [*_flat(own), *_flat(more)]
    if isinstance(value, list | tuple) and any(isinstance(decode_answer_object(item), Mapping) for item in value):
        return [text for item in value for text in texts_of(item)]
    return [value]


def _is_turn(value: Mapping[str, object]) -> bool:
    """Whether an object is a turn of a chat, which is no answer by itself."""
    return isinstance(value.get("role", value.get("from")), str)


def is_extractive(value: object) -> bool:
    """Whether a value says where its answers stand in a passage."""
    value = decode_answer_object(value)
    if isinstance(value, list | tuple):
        return any(map(is_extractive, value))
    return isinstance(value, Mapping) and "answer_start" in value


def says_none(value: object) -> bool:
    """Whether a value says that there is no answer: SQuAD 2's empty lists."""
    value = decode_answer_object(value)
    if isinstance(value, Mapping) and any(key in value for key in _KEYS):
        return not any(text not in (None, "") for text in texts_of(value))
    return False


def with_text(value: object, answer: str) -> object:
    """The value with one other answer in place of all; it stands nowhere in a passage (-1)."""
    if isinstance(value, str):
        return dumps(with_text(decode_answer_object(value), answer))
    if isinstance(value, list | tuple):
        return [with_text(value[0], answer)]
    if not isinstance(value, Mapping):
        return answer
    changed: dict[str, object] = {}
    filled = (key for key in _KEYS if value.get(key) not in (None, "", []))
    own = next(filled, None) or next((key for key in _KEYS if key in value), None)
    for key, old in value.items():
        listed = isinstance(old, list | tuple)
        if key == own or key in _ACCEPTED or key in ("normalized_value", "normalized_aliases"):
            text = answer.lower() if key.startswith("normalized") else answer
            changed[key] = [text] if listed else text
        elif key in _PLACES:
            changed[key] = [-1] if listed else -1
        else:
            changed[key] = old
    return changed


def _flat(value: object) -> Sequence[object]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def decode_answer_object(value: object) -> object:
    """What a cell spells as an object of SQuAD's or TriviaQA's, or a list of them; any other value as it is."""
    if value is None or (isinstance(value, str) and "{" not in value):
        return value
    decoded = decode_object(value) if isinstance(value, str) and any(key in value for key in _SIGNS) else value
    objects = decoded if isinstance(decoded, list) else [decoded]
    return (
        decoded if all(isinstance(item, Mapping) and any(key in item for key in _SIGNS) for item in objects) else value
    )
