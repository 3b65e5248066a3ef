"""Multiple choice: reads the text of a row's right choice, which is the gold, and writes another one back. Pure.

`choice_columns.py` finds the columns. The choices are in one column (a list, `{"text": [...], "label": [...]}`, an
object by letter, a list of such objects), or each in a column of its own. The answer is a letter, a label, a number
from 0 or from 1, the text itself, or a list with a single 1. The model does not see the choices, only the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from foreknow.data.layouts.column_paths import field_of, with_field
from foreknow.data.layouts.python_reprs import decode_object
from foreknow.data.values import text_of
from foreknow.io.json_text import dumps

Record = Mapping[str, object]
LETTER = re.compile(r"(?:option|choice|answer)?\s*[(\[]?([A-Za-z])[)\].:]?", re.IGNORECASE)
_OWN_MARK = re.compile(r"\s*[(\[]?([A-Ja-j])\s*[)\].:]\s*(.+)", re.DOTALL)
_FIRST_LETTER = re.compile(r"\(?\b([A-Ja-j])\s?[).:]")
_NEXT_LETTER = re.compile(rf"{_FIRST_LETTER.pattern}(?=\s)")
"""The letters before choices that are written in one text: "a ) 38 , b ) 27", "(A) Paris (B) Rome"."""
_TEXT_KEYS: Final = ("text", "option", "choice", "value", "content")
_LABEL_KEYS: Final = ("label", "key", "letter", "id")
KINDS: Final = ("one-hot", "label", "letter", "text", "index0", "index1")
"""The kinds of answers, in the order in which ties are decided."""
_WORDS: Final = {
    "one-hot": "the choice marked 1", "label": "the choice's label", "letter": "the choice's letter",
    "text": "the choice's own text", "index0": "the choice's number, from 0", "index1": "the choice's number, from 1",
}  # fmt: skip


class ChoiceScheme(NamedTuple):
    """The columns of questions, choices and answers, and the kind of the answers.

    `columns`: one column per choice, or the single column that holds all choices. `kind`: one of `KINDS`.
    """

    question: str
    passage: str | None
    columns: tuple[str, ...]
    answer: str
    kind: str
    unsure: bool = False
    """Whether numbers from 1 fit too, because no answer is 0 and none equals the number of choices."""

    @property
    def reason(self) -> str:
        """The scheme in words, for the user."""
        behind = f", behind the text in {self.passage}" if self.passage else ""
        if_wrong = " (no row tells it from a number from 1: look at the first row)" if self.unsure else ""
        return (
            f"multiple choice: the text of the right choice ({', '.join(self.columns)[:80]}) is the answer, the "
            f"choices are not shown to the model{behind}; {self.answer} is {_WORDS[self.kind]}{if_wrong}"
        )


class Choice(NamedTuple):
    """One choice: its text, and its label if the file has one."""

    label: str | None
    text: str


def choices_of(record: Record, columns: Sequence[str]) -> list[Choice]:
    """The choices of a row, without empty ones at the end; an empty list if fewer than two can be read."""
    choices = _all_choices(record, columns)
    return choices if len(choices) > 1 else []


def _all_choices(record: Record, columns: Sequence[str]) -> list[Choice]:
    if len(columns) > 1:
        texts = [text_of(record.get(column)) for column in columns]
        while texts and texts[-1] is None:
            texts.pop()
        return [Choice(None, text) for text in texts if text is not None] if None not in texts else []
    return _without_letters(_parse_choices(field_of(record, columns[0])))


def _parse_choices(value: object) -> list[Choice]:
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            spelled = decode_object(value)
            return [] if isinstance(spelled, str) else _parse_choices(spelled)
        return _choices_in_text(value)
    if isinstance(value, Mapping):
        texts, labels = value.get("text", value.get("choices")), value.get("label")
        if isinstance(texts, list | tuple):
            plain = [text_of(text) for text in texts]
            named = (
                list(labels) if isinstance(labels, list | tuple) and len(labels) == len(plain) else [None] * len(plain)
            )
            pairs = [(label if label is None else str(label), text) for label, text in zip(named, plain, strict=True)]
        else:
            pairs = [(str(label), text_of(text)) for label, text in value.items()]
        return [Choice(label, text) for label, text in pairs if text is not None] if all(t for _, t in pairs) else []
    if not isinstance(value, list | tuple):
        return []
    choices = []
    for item in value:
        if not isinstance(item, Mapping):
            text, label = text_of(item), None
        else:
            text = text_of(next((item[key] for key in _TEXT_KEYS if key in item), None))
            label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        if text is None:
            return []
        choices.append(Choice(None if label is None else str(label), text))
    return choices


def _choices_in_text(text: str) -> list[Choice]:
    """The choices in one text, each after its letter; an empty list if the letters are not A, B, C in order."""
    first = _FIRST_LETTER.search(text)
    if first is None:
        return []
    heads = [first, *_NEXT_LETTER.finditer(text, first.end())]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    choices = [
        Choice(head[1].upper(), text[head.end() : end].strip(" \t\r\n,;"))
        for head, end in zip(heads, ends, strict=True)
    ]
    in_order = [choice.label for choice in choices] == list("ABCDEFGHIJ"[: len(choices)])
    return choices if in_order and len(choices) > 1 else []


def _without_letters(choices: list[Choice]) -> list[Choice]:
    """Remove the letter at the beginning of each choice if all begin with their own: "A) 21", "(B) 22"."""
    matches = [_OWN_MARK.fullmatch(choice.text) for choice in choices]
    marks = [match[1].upper() for match in matches if match]
    if len(choices) > 1 and marks == list("ABCDEFGHIJ"[: len(choices)]):
        return [Choice(choice.label, match[2].strip()) for choice, match in zip(choices, matches, strict=True) if match]
    return choices


def place_of(kind: str, answer: object, choices: Sequence[Choice]) -> int | None:
    """The index of the choice that an answer of this kind names; None if it names none."""
    count = len(choices)
    if kind == "one-hot":
        if not isinstance(answer, list | tuple) or len(answer) != count:
            return None
        ones = [at for at, mark in enumerate(answer) if mark in (1, True)]
        return ones[0] if len(ones) == 1 else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    answer_text = str(answer).strip()
    if kind == "label":
        labels = [(choice.label or "").strip().lower() for choice in choices]
        return labels.index(answer_text.lower()) if answer_text and answer_text.lower() in labels else None
    if kind == "letter":
        match = LETTER.fullmatch(answer_text) if isinstance(answer, str) else None
        at = ord(match[1].upper()) - ord("A") if match else count
        return at if at < count else None
    if kind == "text":
        texts = [choice.text for choice in choices]
        return texts.index(answer_text) if isinstance(answer, str) and answer_text in texts else None
    if not re.fullmatch(r"\d{1,2}(\.0)?", answer_text):
        return None
    at = int(float(answer_text)) - (kind == "index1")
    return at if 0 <= at < count else None


def gold_of(record: Record, scheme: ChoiceScheme) -> tuple[str | None, bool]:
    """The text of a row's right choice (None if the row has none), and whether its answer names no choice."""
    answer = field_of(record, scheme.answer)
    if answer in (None, "", -1, "-1"):
        return None, False
    choices = choices_of(record, scheme.columns)
    at = place_of(scheme.kind, answer, choices)
    return (None, True) if at is None else (choices[at].text, False)


def with_gold(record: Record, scheme: ChoiceScheme, answer: str) -> Record:
    """The record with `answer` in place of the text of its right choice."""
    at = place_of(scheme.kind, field_of(record, scheme.answer), choices_of(record, scheme.columns))
    if at is None:
        return record
    changed = dict(record)
    if len(scheme.columns) > 1:
        changed[scheme.columns[at]] = answer
    else:
        changed = with_field(record, scheme.columns[0], _with_choice(field_of(record, scheme.columns[0]), at, answer))
    return with_field(changed, scheme.answer, answer) if scheme.kind in ("text", "index1") else changed


def with_text_answer(record: Record, scheme: ChoiceScheme) -> Record:
    """The record with its right choice's text as the answer, if answers are numbers from 1.

    A file with few rows may not show whether its numbers start at 0 or 1, so the written file holds the text.
    """
    gold, _ = gold_of(record, scheme)
    return record if gold is None or scheme.kind != "index1" else with_field(record, scheme.answer, gold)


def _with_choice(value: object, at: int, answer: str) -> object:
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            return dumps(_with_choice(decode_object(value), at, answer))
        return dumps([answer if place == at else choice.text for place, choice in enumerate(_parse_choices(value))])
    if isinstance(value, Mapping):
        key = next((key for key in ("text", "choices") if isinstance(value.get(key), list | tuple)), None)
        if key is not None:
            return {**value, key: _with_choice(value[key], at, answer)}
        return {label: answer if place == at else text for place, (label, text) in enumerate(value.items())}
    items = list(value)  # type: ignore[call-overload]
    old = items[at]
    if isinstance(old, Mapping):
        key = next(key for key in _TEXT_KEYS if key in old)
        items[at] = {**old, key: answer}
    else:
        items[at] = f"{_letter_prefix(old)}{answer}"
    return items


def _letter_prefix(text: object) -> str:
    """The letter at the beginning of a choice, with its punctuation: "A) "."""
    match = re.match(r"\s*[(\[]?[A-Ja-j]\s*[)\].:]\s*", str(text))
    return match.group() if match else ""
