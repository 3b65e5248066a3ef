"""Multiple choice: a question, its choices, and which of them is right -> the right choice's text is the gold. Pure.

Choices stand in one column (a list, `{"text": [...], "label": [...]}`, an object by letter, a list of such objects) or
each in its own (`A B C D`, `option_a`, `choice1`, `ending0`, `sol1`). The answer is a letter, a label, a number from 0
or from 1, the text itself, or a list with a single 1. The choices are not shown to the model: it is asked as any other
question is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from foreknow.data.answer_structs import decoded_object
from foreknow.data.paths import field_of, with_field
from foreknow.data.values import text_of
from foreknow.errors import InputError
from foreknow.files.jsontext import dumps

Record = Mapping[str, object]
_LISTS: Final = [
    "choices",
    "options",
    "endings",
    "candidates",
    "answer_choices",
    "alternatives",
    "mc1_targets",
    "multiple_choice_targets",
    "question.choices",
]
_LIST_NAME: Final = re.compile(r"choice|option|alternative|candidate", re.IGNORECASE)
"""Other columns of lists or objects are tried where their name says that one may choose."""
_ANSWERS: Final = [
    "answerKey",
    "answer_key",
    "answer_idx",
    "answer_index",
    "correct_option",
    "correct_idx",
    "correct_index",
    "correct_answer_id",
    "correct_answer_index",
    "correct_choice",
    "cop",
    "label",
    "answer",
    "correct_answer",
    "correct",
    "gold",
    "gold_index",
    "target",
    "answer_id",
    "answer_label",
    "ans",
    "gt",
    "multiple_choice_scores",
    "mc1_targets.labels",
]
_PLACES: Final = frozenset(
    {"answer_idx", "answer_index", "answer_id", "answerKey", "answer_key", "correct_option", "correct_idx"}
    | {"correct_index", "correct_answer_id", "correct_answer_index"}
)
"""Of these, columns that can only say which of several answers is right: beside one, `answers` are choices (QuAIL)."""
_QUESTIONS: Final = [
    "question.stem",
    "question",
    "question_stem",
    "stem",
    "query",
    "goal",
    "ctx",
    "sentence",
    "premise",
    "prompt",
    "input",
    "startphrase",
    "problem",
    "context",
]
_PASSAGES: Final = ("passage", "article", "context", "story", "paragraph", "premise")
_FAMILY = re.compile(
    r"(option|opt|op|choice|ending|answer|sol|solution|alternative|candidate)[ _-]?([a-j]|\d)", re.IGNORECASE
)
_LETTER = re.compile(r"(?:option|choice|answer)?\s*[(\[]?([A-Za-z])[)\].:]?", re.IGNORECASE)
_OWN_MARK = re.compile(r"\s*[(\[]?([A-Ja-j])\s*[)\].:]\s*(.+)", re.DOTALL)
_FIRST_LETTER = re.compile(r"\(?\b([A-Ja-j])\s?[).:]")
_NEXT_LETTER = re.compile(rf"{_FIRST_LETTER.pattern}(?=\s)")
"""What choices spelled in one text begin with: "a ) 38 , b ) 27", "(A) Paris (B) Rome"."""
_TEXT_KEYS: Final = ("text", "option", "choice", "value", "content")
_LABEL_KEYS: Final = ("label", "key", "letter", "id")
_KINDS: Final = ("one-hot", "label", "letter", "text", "index0", "index1")
_WORDS: Final = {
    "one-hot": "the choice marked 1", "label": "the choice's label", "letter": "the choice's letter",
    "text": "the choice's own text", "index0": "the choice's number, from 0", "index1": "the choice's number, from 1",
}  # fmt: skip


class ChoiceScheme(NamedTuple):
    """Where a file keeps questions, choices and answers, and what its answers are.

    `columns`: of the choices, where each has its own; else the one that holds them all. `kind`: one of `_KINDS`.
    """

    question: str
    passage: str | None
    columns: tuple[str, ...]
    answer: str
    kind: str
    unsure: bool = False
    """Whether numbers from 1 would fit as well: no answer is 0, and none is the number of choices."""

    @property
    def reason(self) -> str:
        """What was decided, for the user to read."""
        behind = f", behind the text in {self.passage}" if self.passage else ""
        if_wrong = " (no row tells it from a number from 1: look at the first row)" if self.unsure else ""
        return (
            f"multiple choice: the text of the right choice ({', '.join(self.columns)[:80]}) is the answer, the "
            f"choices are not shown to the model{behind}; {self.answer} is {_WORDS[self.kind]}{if_wrong}"
        )


class _Choice(NamedTuple):
    label: str | None
    text: str


def find_scheme(columns: Sequence[str], sample: Sequence[Record], where: str) -> ChoiceScheme | None:
    """The scheme of a file of multiple choice; None where it is none. Raises InputError where it could be two."""
    places = _Names(columns, sample)
    question = places.first(_QUESTIONS, (str, int, float))
    if question is None:
        return None
    for own in _choice_columns(columns, places):
        rows = [(record, _choices(record, own)) for record in sample]
        if sum(bool(choices) for _, choices in rows) * 2 < len(rows):
            continue
        found = _best_answer(rows, own, places, where)
        if found is not None:
            answer, kind, unsure = found
            passage = places.first([name for name in _PASSAGES if name != question], (str,))
            own_names = {each.lower() for each in own}
            return ChoiceScheme(question, passage if passage not in own_names else None, own, answer, kind, unsure)
        if len(own) == 1 and _LIST_NAME.search(own[0]) and _only_marks(sample, places):
            raise InputError(
                f"{where}: the column {own[0]} holds choices, and which one is right cannot be told from the other "
                "columns.\nWrite the right choice's text into a column `answer`, and name --layout question."
            )
    return None


def _only_marks(sample: Sequence[Record], names: _Names) -> bool:
    """Whether the answers are but letters or numbers, which say nothing without their choices."""
    own = names.first(["answer", "correct_answer"], (str, int, float))
    values = [field_of(record, own) for record in sample if own and field_of(record, own) not in (None, "")]
    return bool(values) and all(
        isinstance(v, int) or (isinstance(v, str) and _LETTER.fullmatch(v.strip())) for v in values
    )


class _Names:
    """The columns of a file by their names, capitals aside, and paths into its objects."""

    def __init__(self, columns: Sequence[str], sample: Sequence[Record]):
        self.columns = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
        self.sample = sample

    def own(self, name: str) -> str | None:
        """The file's spelling of a name, if it has the column, or the path in some record."""
        if "." in name:
            return name if any(field_of(record, name) is not None for record in self.sample) else None
        return self.columns.get(name, self.columns.get(name.lower()))

    def first(self, names: Sequence[str], kind: tuple[type, ...]) -> str | None:
        """The first of these that holds values of these kinds."""
        for name in names:
            own = self.own(name)
            values = [field_of(record, own) for record in self.sample] if own else []
            known = [value for value in values if value not in (None, "")]
            if own and known and sum(isinstance(value, kind) for value in known) * 2 > len(known):
                return own
        return None


def _choice_columns(columns: Sequence[str], names: _Names) -> Iterator[tuple[str, ...]]:
    """The columns that may hold choices, the likeliest first."""
    for name in _LISTS:
        if (own := names.own(name)) is not None:
            yield (own,)
    yield from ((column,) for column in columns if column.lower() not in _LISTS and _LIST_NAME.search(column))
    if (own := names.own("answers")) is not None:
        yield (own,)
    letters = [column for column in "ABCDEFGHIJ" if column in columns]
    if len(letters) > 1 and letters == list("ABCDEFGHIJ"[: len(letters)]):
        yield tuple(letters)
    families: dict[str, dict[str, str]] = {}
    for column in columns:
        if match := _FAMILY.fullmatch(column):
            families.setdefault(match[1].lower(), {})[match[2].lower()] = column
    for family in families.values():
        labels = sorted(family)
        if len(labels) > 1 and "".join(labels) in (
            "abcdefghij"[: len(labels)],
            "0123456789"[: len(labels)],
            "123456789"[: len(labels)],
        ):
            yield tuple(family[label] for label in labels)


def _choices(record: Record, columns: Sequence[str]) -> list[_Choice]:
    """The choices of a row, two at least, empty ones at the end left out; none where they cannot be read."""
    found = _all_choices(record, columns)
    return found if len(found) > 1 else []


def _all_choices(record: Record, columns: Sequence[str]) -> list[_Choice]:
    if len(columns) > 1:
        texts = [text_of(record.get(column)) for column in columns]
        while texts and texts[-1] is None:
            texts.pop()
        return [_Choice(None, text) for text in texts if text is not None] if None not in texts else []
    return _unmarked(_listed(field_of(record, columns[0])))


def _listed(value: object) -> list[_Choice]:
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            spelled = decoded_object(value)
            return [] if isinstance(spelled, str) else _listed(spelled)
        return _spelled(value)
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
        return [_Choice(label, text) for label, text in pairs if text is not None] if all(t for _, t in pairs) else []
    if not isinstance(value, list | tuple):
        return []
    made = []
    for item in value:
        if not isinstance(item, Mapping):
            text, label = text_of(item), None
        else:
            text = text_of(next((item[key] for key in _TEXT_KEYS if key in item), None))
            label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        if text is None:
            return []
        made.append(_Choice(None if label is None else str(label), text))
    return made


def _spelled(text: str) -> list[_Choice]:
    """The choices that one text spells, each behind its letter; none where the letters are not A, B, C in order."""
    first = _FIRST_LETTER.search(text)
    if first is None:
        return []
    heads = [first, *_NEXT_LETTER.finditer(text, first.end())]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    found = [
        _Choice(head[1].upper(), text[head.end() : end].strip(" \t\r\n,;"))
        for head, end in zip(heads, ends, strict=True)
    ]
    in_order = [choice.label for choice in found] == list("ABCDEFGHIJ"[: len(found)])
    return found if in_order and len(found) > 1 else []


def _unmarked(choices: list[_Choice]) -> list[_Choice]:
    """The choices without the letters they begin with, where each begins with its own: "A) 21", "(B) 22"."""
    found = [_OWN_MARK.fullmatch(choice.text) for choice in choices]
    marks = [match[1].upper() for match in found if match]
    if len(choices) > 1 and marks == list("ABCDEFGHIJ"[: len(choices)]):
        return [_Choice(choice.label, match[2].strip()) for choice, match in zip(choices, found, strict=True) if match]
    return choices


def _place(kind: str, answer: object, choices: Sequence[_Choice]) -> int | None:
    """Which of the choices an answer names, if answers are of this kind."""
    count = len(choices)
    if kind == "one-hot":
        if not isinstance(answer, list | tuple) or len(answer) != count:
            return None
        ones = [at for at, mark in enumerate(answer) if mark in (1, True)]
        return ones[0] if len(ones) == 1 else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    said = str(answer).strip()
    if kind == "label":
        labels = [(choice.label or "").strip().lower() for choice in choices]
        return labels.index(said.lower()) if said and said.lower() in labels else None
    if kind == "letter":
        match = _LETTER.fullmatch(said) if isinstance(answer, str) else None
        at = ord(match[1].upper()) - ord("A") if match else count
        return at if at < count else None
    if kind == "text":
        texts = [choice.text for choice in choices]
        return texts.index(said) if isinstance(answer, str) and said in texts else None
    if not re.fullmatch(r"\d{1,2}(\.0)?", said):
        return None
    at = int(float(said)) - (kind == "index1")
    return at if 0 <= at < count else None


def _best_answer(
    rows: Sequence[tuple[Record, list[_Choice]]], own: tuple[str, ...], names: _Names, where: str
) -> tuple[str, str, bool] | None:
    """The column that says which choice is right, how, and whether another number could be meant just as well.

    None where no column says it for most rows.
    """
    best: tuple[int, str, str, bool] | None = None
    only_places = [column.lower() for column in own] == ["answers"]
    for name in _ANSWERS:
        if only_places and name not in _PLACES:
            continue
        column = names.own(name)
        if column is None or column in own:
            continue
        known = [(field_of(record, column), choices) for record, choices in rows if choices]
        known = [(value, choices) for value, choices in known if value not in (None, "", -1, "-1")]
        places = {kind: [_place(kind, value, choices) for value, choices in known] for kind in _KINDS}
        fits = {kind: sum(place is not None for place in found) for kind, found in places.items()}
        kind = max(_KINDS, key=lambda each: (fits[each], -_KINDS.index(each)))
        if fits[kind] * 2 < len(known) or not fits[kind]:
            continue
        unsure = kind == "index0" and fits["index1"] == fits[kind]
        _check_one_meaning(kind, places, [value for value, _ in known], column, where)
        if best is None or fits[kind] > best[0]:
            best = (fits[kind], column, kind, unsure)
    return best and best[1:]


def _check_one_meaning(
    kind: str, places: Mapping[str, list[int | None]], values: Sequence[object], column: str, where: str
) -> None:
    """Raise InputError where answers are texts of choices, and as letters or numbers would name other ones."""
    if kind not in ("text", "letter"):
        return
    others = ("index0", "index1") if kind == "text" else ("text",)
    for other in others:
        if all(place is not None for place in places[other]) and places[other] != places[kind]:
            raise InputError(
                f"{where}: the answers in {column} ({str(values[0])[:20]!r}) are texts of choices, and letters or "
                "numbers of other choices as well.\nWrite the right choice's text into a column `answer`, and name "
                "--layout question."
            )


def gold_of(record: Record, scheme: ChoiceScheme) -> tuple[str | None, bool]:
    """The text of a row's right choice, None where it has none; and whether its answer names no choice."""
    answer = field_of(record, scheme.answer)
    if answer in (None, "", -1, "-1"):
        return None, False
    choices = _choices(record, scheme.columns)
    at = _place(scheme.kind, answer, choices)
    return (None, True) if at is None else (choices[at].text, False)


def with_gold(record: Record, scheme: ChoiceScheme, answer: str) -> Record:
    """The record with another text in the place of its right choice."""
    at = _place(scheme.kind, field_of(record, scheme.answer), _choices(record, scheme.columns))
    if at is None:
        return record
    changed = dict(record)
    if len(scheme.columns) > 1:
        changed[scheme.columns[at]] = answer
    else:
        changed = with_field(record, scheme.columns[0], _with_choice(field_of(record, scheme.columns[0]), at, answer))
    return with_field(changed, scheme.answer, answer) if scheme.kind in ("text", "index1") else changed


def with_text_answer(record: Record, scheme: ChoiceScheme) -> Record:
    """The record with its right choice's text as its answer, where that is a number from 1: few rows do not tell it."""
    gold, _ = gold_of(record, scheme)
    return record if gold is None or scheme.kind != "index1" else with_field(record, scheme.answer, gold)


def _with_choice(value: object, at: int, answer: str) -> object:
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            return dumps(_with_choice(decoded_object(value), at, answer))
        return dumps([answer if place == at else choice.text for place, choice in enumerate(_listed(value))])
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
        items[at] = f"{_mark_of(old)}{answer}"
    return items


def _mark_of(text: object) -> str:
    """The letter that a choice begins with, as it is written: "A) "."""
    match = re.match(r"\s*[(\[]?[A-Ja-j]\s*[)\].:]\s*", str(text))
    return match.group() if match else ""
