"""Finds the columns of questions, choices and answers in a multiple-choice file, and the kind of its answers. Pure.

The choices are in one column (`choices`, `options`, ...) or each in its own (`A B C D`, `option_a`, `choice1`,
`ending0`, `sol1`). The kind of the answers (`multiple_choice.KINDS`) is the one that names a choice in most rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from foreknow.data.layouts.column_paths import field_of
from foreknow.data.layouts.multiple_choice import KINDS, LETTER, Choice, ChoiceScheme, Record, choices_of, place_of
from foreknow.errors import InputError

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
"""Other columns of lists or objects are tried if their name matches this."""
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
"""The columns of `_ANSWERS` that can only be the index of the right answer. If a file has one of them, its column
`answers` holds the choices (QuAIL)."""
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


def find_scheme(columns: Sequence[str], sample: Sequence[Record], where: str) -> ChoiceScheme | None:
    """The scheme of a multiple-choice file; None for any other file.

    Raises InputError if the answers can be read in two ways, or if no column says which choice is right; its messages
    begin with `where`.
    """
    names = _Names(columns, sample)
    question = names.first(_QUESTIONS, (str, int, float))
    if question is None:
        return None
    for choice_columns in _choice_columns(columns, names):
        rows = [(record, choices_of(record, choice_columns)) for record in sample]
        if sum(bool(choices) for _, choices in rows) * 2 < len(rows):
            continue
        best_answer = _best_answer(rows, choice_columns, names, where)
        if best_answer is not None:
            answer, kind, unsure = best_answer
            passage = names.first([name for name in _PASSAGES if name != question], (str,))
            choice_names = {each.lower() for each in choice_columns}
            return ChoiceScheme(
                question, passage if passage not in choice_names else None, choice_columns, answer, kind, unsure
            )
        if len(choice_columns) == 1 and _LIST_NAME.search(choice_columns[0]) and _only_marks(sample, names):
            raise InputError(
                f"{where}: the column {choice_columns[0]} holds choices, and which one is right cannot be told "
                "from the other columns.\nWrite the right choice's text into a column `answer`, and name "
                "--layout question."
            )
    return None


def _only_marks(sample: Sequence[Record], names: _Names) -> bool:
    """Whether all answers are letters or numbers, which mean nothing without the choices."""
    own = names.first(["answer", "correct_answer"], (str, int, float))
    values = [field_of(record, own) for record in sample if own and field_of(record, own) not in (None, "")]
    return bool(values) and all(
        isinstance(v, int) or (isinstance(v, str) and LETTER.fullmatch(v.strip())) for v in values
    )


class _Names:
    """Finds the columns of a file by name, ignoring case, and paths into its objects."""

    def __init__(self, columns: Sequence[str], sample: Sequence[Record]):
        self.columns = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
        self.sample = sample

    def own(self, name: str) -> str | None:
        """The name as the file spells it, if the file has the column, or if some record has the path; else None."""
        if "." in name:
            return name if any(field_of(record, name) is not None for record in self.sample) else None
        return self.columns.get(name, self.columns.get(name.lower()))

    def first(self, names: Sequence[str], kind: tuple[type, ...]) -> str | None:
        """The first of `names` of which most values are of a type in `kind`."""
        for name in names:
            own = self.own(name)
            values = [field_of(record, own) for record in self.sample] if own else []
            known = [value for value in values if value not in (None, "")]
            if own and known and sum(isinstance(value, kind) for value in known) * 2 > len(known):
                return own
        return None


def _choice_columns(columns: Sequence[str], names: _Names) -> Iterator[tuple[str, ...]]:
    """Yield the columns that may hold choices, the most likely first."""
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


def _best_answer(
    rows: Sequence[tuple[Record, list[Choice]]], choice_columns: tuple[str, ...], names: _Names, where: str
) -> tuple[str, str, bool] | None:
    """The column that says which choice is right, the kind of its values, and whether numbers from 1 fit as well.

    None if no column names a choice in most rows.
    """
    best: tuple[int, str, str, bool] | None = None
    only_places = [column.lower() for column in choice_columns] == ["answers"]
    for name in _ANSWERS:
        if only_places and name not in _PLACES:
            continue
        column = names.own(name)
        if column is None or column in choice_columns:
            continue
        known = [(field_of(record, column), choices) for record, choices in rows if choices]
        known = [(value, choices) for value, choices in known if value not in (None, "", -1, "-1")]
        places = {kind: [place_of(kind, value, choices) for value, choices in known] for kind in KINDS}
        fits = {kind: sum(place is not None for place in answer_places) for kind, answer_places in places.items()}
        kind = max(KINDS, key=lambda each: (fits[each], -KINDS.index(each)))
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
    """Raise InputError if the answers are texts of choices, but name other choices if read as letters or numbers."""
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
