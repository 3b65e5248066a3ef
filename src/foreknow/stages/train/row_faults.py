"""Rows that a model cannot be trained on or asked, each with its reason: counted, listed, refused or left out. Pure.

    template_refuses    the chat template raises an error for the row's chat
    template_drops      the chat template leaves out the question, or a turn, without an error
    no_question_tokens  the question gives the tokenizer no token to begin with
    no_answer_tokens    the answer is no token at all to the tokenizer
    answer_cut          prompt and answer are longer than the model's positions: the answer would be cut away
    no_label            the chat template's {% generation %} block marks no token of the answer
    weight_zero         the row's weight is 0: it is read, and teaches nothing
    answer_changed      the chat template would write the answer otherwise; it is taught as the row has it

Rows of the last two kinds are kept and counted. All others are refused, or left out by choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from foreknow.config import BadRows
from foreknow.errors import InputError

WEIGHT_ZERO: Final = "weight_zero"
ANSWER_CHANGED: Final = "answer_changed"
KEPT: Final = frozenset({WEIGHT_ZERO, ANSWER_CHANGED})
"""Reasons that leave a row in its set."""
OF_TRAINING: Final = KEPT | {"no_label"}
"""Reasons that matter to rows that are trained on, not to those that are only asked."""
LISTED: Final = 8
"""Rows of each reason that are named; the others are counted."""
_PHRASES: Final = {
    "template_refuses": "refused by the chat template",
    "template_drops": "with a text that the chat template leaves out",
    "no_question_tokens": "whose question gives no token to begin with",
    "no_answer_tokens": "whose answer is no token at all to this model's tokenizer",
    "answer_cut": "with no room for the whole answer",
    "no_label": "with no token of the answer marked by {% generation %} in the chat template",
    "no_label_left": "without any label",
    WEIGHT_ZERO: "with weight 0, from which nothing is learnt",
    ANSWER_CHANGED: "taught as the file has the answer, which the chat template would write otherwise",
}
"""What is said behind "2 rows"."""


class RowFault(NamedTuple):
    """A row (its number in the file), a reason, and what was found in words."""

    row: int
    reason: str
    detail: str = ""


def by_reason(faults: Iterable[RowFault]) -> dict[str, list[RowFault]]:
    """The faults of each reason, in the order of the reasons above."""
    faults_by_reason: dict[str, list[RowFault]] = {}
    for fault in faults:
        faults_by_reason.setdefault(fault.reason, []).append(fault)
    return {reason: faults_by_reason[reason] for reason in (*_PHRASES, *faults_by_reason) if reason in faults_by_reason}


def counts(faults: Iterable[RowFault]) -> dict[str, dict[str, Any]]:
    """By reason: `rows`, how many, and `first`, the numbers of the first of them. For `results.json`."""
    return {
        reason: {"rows": len(some), "first": [fault.row for fault in some[:LISTED]]}
        for reason, some in by_reason(faults).items()
    }


def fault_lines(faults: Iterable[RowFault]) -> list[str]:
    """A line for each reason: how many rows, which ones, and what was found in the first."""
    return [_line(reason, some) for reason, some in by_reason(faults).items()]


def _line(reason: str, some: Sequence[RowFault]) -> str:
    first, *others = some
    detail = f": {first.detail}" if first.detail else ""
    numbers = ", ".join(str(fault.row) for fault in others[: LISTED - 1])
    more = f"; then {numbers}{' ...' if len(some) > LISTED else ''}" if numbers else ""
    rows = f"{len(some):,} row{'s' * (len(some) != 1)}"
    return f"{rows} {_PHRASES[reason]}, first row {first.row}{detail}{more}"


def check(faults: Iterable[tuple[str, Sequence[RowFault]]], choice: BadRows, option: str = "--bad-rows skip") -> None:
    """Raise InputError for rows that cannot be used, unless they are to be left out.

    `faults`: a file or set, and what is wrong with its rows; a file may stand there twice.
    """
    if choice == "skip":
        return
    lines = [
        f"{where}: {'; '.join(fault_lines(bad))}"
        for where, some in faults
        if (bad := [fault for fault in some if fault.reason not in KEPT])
    ]
    if lines:
        raise InputError(f"{'; '.join(lines)}.\nLeave them out or shorten them, or go on without them: {option}")


def notes(name: str, faults: Sequence[RowFault]) -> list[str]:
    """What the terminal and the page say of a set's rows that are left out, or teach nothing."""
    return [
        f"{'' if reason in KEPT else 'warning: '}{name}: {_line(reason, some)}{'' if reason in KEPT else ': left out'}"
        for reason, some in by_reason(faults).items()
    ]
