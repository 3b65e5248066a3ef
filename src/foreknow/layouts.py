"""Layouts: which columns of a file hold the question, the answers and the rest; pure.

A layout is found from the column names (`detect`) and then read record by record (`extract`):

    question    a question and its answer(s) under their usual names, or under `--map` names
    triples     subject, relation and object; the question is the row's own, or the relation's template
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foreknow.errors import ConfigError, InputError
from foreknow.templates import question as fill
from foreknow.templates import subject_of

# our name -> the names it goes by, the first one that the file has is taken
USUAL: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query", "q", "prompt", "input"),
    "answer": ("answer", "gold", "gold_answer", "target", "completion", "output", "response", "label"),
    "answers": ("answers", "possible_answers", "accepted_answers", "gold_answers", "targets", "golds"),
    "subject": ("subject", "subj"),
    "relation": ("relation", "rel", "prop", "predicate", "property"),
    "object": ("object", "obj"),
    "split": ("split",),
    "popularity": ("popularity", "s_pop", "pop"),
}
NUMBERS = (int, float)


@dataclass(frozen=True)
class Layout:
    """A layout's name, the columns taken (our name -> theirs), and the reason, for the user to read."""

    name: str
    columns: Mapping[str, str]
    reason: str


class Extracted(NamedTuple):
    """One record as a row of the frame; question and answers are None where the record has none."""

    question: str | None
    answers: list[str] | None
    subject: str | None
    relation: str | None
    split: str | None
    popularity: float | None


def detect(columns: Sequence[str], mapped: Mapping[str, str], where: str) -> Layout:
    """The layout of a file with these columns; InputError if none fits. `where` opens the messages."""
    _check_map(columns, mapped, where)
    found = {ours: _first(columns, names) for ours, names in USUAL.items()} | dict(mapped)
    if "instruction" in columns and found["question"] == "input" and "question" not in mapped:
        found["question"] = None  # alpaca: `input` is the context of the instruction, not the question
    taken = {ours: theirs for ours, theirs in found.items() if theirs is not None}
    triple = {"subject", "relation", "object"} <= set(taken)
    if "question" in taken and ("answer" in taken or "answers" in taken):
        taken.pop("object", None)
        return Layout("question", taken, _reason("question and answer", taken))
    if triple or {"question", "object"} <= set(taken):
        taken.pop("answer", None)
        return Layout("triples", taken, _reason("subject, relation, object", taken))
    raise InputError(
        f"{where}: no known layout in the columns {_list(columns)}. Expected a question and an answer, or "
        "subject, relation and object.\nName yours: --map question=COLUMN --map answer=COLUMN."
    )


def extract(layout: Layout, record: Mapping[str, object], templates: Mapping[str, str]) -> Extracted:
    """One record read by its layout. A subject's `aliases` are never taken for answers."""

    def value(ours: str) -> object:
        return record.get(layout.columns[ours]) if ours in layout.columns else None

    question, subject, relation = (
        text_of(value("question")),
        text_of(value("subject")),
        text_of(value("relation")),
    )
    template = templates.get(relation) if relation is not None else None
    if layout.name == "triples" and question is None and subject is not None and relation is not None:
        if template is None:
            raise InputError(
                f"relation {relation!r} has no template (templates given for {_list(sorted(templates))}).\n"
                "Give --templates FILE with a line such as "
                f'"{relation}": "Which country is [X] in?".'
            )
        question = fill(template, subject)
    if subject is None and template is not None and question is not None:
        subject = subject_of(template, question)
    golds = [value("answer"), value("object") if layout.name == "triples" else None]
    listed = _decoded(value("answers"))
    answers = _texts([*golds, listed])
    popularity = _number(value("popularity"))
    return Extracted(question, answers or None, subject, relation, text_of(value("split")), popularity)


def text_of(value: object) -> str | None:
    """A value as text stripped at its ends; None where it is empty, a truth value or no text at all."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return None
    return text or None


def _texts(values: Sequence[object]) -> list[str]:
    """The texts among values and lists of values: stripped, the empty ones dropped, each once, in order."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return list(dict.fromkeys(text for text in map(text_of, flat) if text is not None))


def _decoded(value: object) -> object:
    """A list that a cell holds as JSON text (`["Paris", "paris"]`), decoded; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return decoded if isinstance(decoded, list) else value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of `names` among the columns, capitals aside; a column spelled alike wins."""
    lowered = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _check_map(columns: Sequence[str], mapped: Mapping[str, str], where: str) -> None:
    for ours, theirs in mapped.items():
        if ours not in USUAL:
            raise ConfigError(f"--map {ours}={theirs}: {ours!r} is not one of our names: {_list(list(USUAL))}.")
        check_column(columns, theirs, f"--map {ours}={theirs}", where)


def check_column(columns: Sequence[str], column: str, flag: str, where: str) -> None:
    """InputError unless the file has this column."""
    if column not in columns:
        raise InputError(f"{where}: {flag}: there is no column {column!r}. Columns found: {_list(columns)}.")


def _reason(what: str, taken: Mapping[str, str]) -> str:
    pairs = ", ".join(ours if ours == theirs else f"{ours}={theirs}" for ours, theirs in taken.items())
    return f"{what}, from the columns {pairs}"


def _list(names: Sequence[str], most: int = 20) -> str:
    """Names for a message: quoted only where needed, cut after `most`."""
    shown = ", ".join(name if name.isidentifier() else repr(name) for name in names[:most])
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return shown + rest if names else "none"
