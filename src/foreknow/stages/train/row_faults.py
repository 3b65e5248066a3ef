"""Counts and lists rows that a model cannot be trained on or asked, by reason, and refuses them on request. Pure.

    template_refuses    the chat template raises an error for the row's chat
    template_drops      the chat template leaves out the question, or a turn, without an error
    no_question_tokens  the question gives the tokenizer no token to begin with
    no_answer_tokens    the tokenizer turns the answer into no token at all
    answer_cut          prompt and answer are longer than the model's positions: the answer would be cut away
    no_label            the chat template's {% generation %} block marks no token of the answer
    weight_zero         the row's weight is 0: it is read, and teaches nothing
    answer_masked       all of the answer is left out of the loss (`loss_exclude`): it is read, and teaches nothing
    answer_changed      the chat template would write the answer in another way; it is taught as the row has it

Rows with the last three reasons are kept and counted. All others are refused, or left out if the user chooses so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from foreknow.config.shared import BadRows
from foreknow.errors import InputError

WEIGHT_ZERO: Final = "weight_zero"
ANSWER_MASKED: Final = "answer_masked"
ANSWER_CHANGED: Final = "answer_changed"
KEPT: Final = frozenset({WEIGHT_ZERO, ANSWER_MASKED, ANSWER_CHANGED})
"""The reasons for which a row stays in its set."""
OF_TRAINING: Final = KEPT | {"no_label"}
"""The reasons that matter only for rows that are trained on, and not for rows that are only asked."""
LISTED: Final = 8
"""How many rows of each reason are named; the others are only counted."""
_PHRASES: Final = {
    "template_refuses": "refused by the chat template",
    "template_drops": "with a text that the chat template leaves out",
    "no_question_tokens": "whose question gives no token to begin with",
    "no_answer_tokens": "whose answer is no token at all to this model's tokenizer",
    "answer_cut": "with no room for the whole answer",
    "no_label": "with no token of the answer marked by {% generation %} in the chat template",
    "no_label_left": "without any label",
    WEIGHT_ZERO: "with weight 0, from which nothing is learnt",
    ANSWER_MASKED: "whose whole answer is left out of the loss (loss_exclude), from which nothing is learnt",
    ANSWER_CHANGED: "taught as the file has the answer, which the chat template would write otherwise",
}
"""Maps each reason to the words that follow a number of rows, such as "2 rows"."""


class RowFault(NamedTuple):
    """Holds a row's number in the file, the reason why it cannot be used, and words for what was found in it."""

    row: int
    reason: str
    detail: str = ""


def by_reason(faults: Iterable[RowFault]) -> dict[str, list[RowFault]]:
    """Group the faults by reason, in the order of the reasons above."""
    faults_by_reason: dict[str, list[RowFault]] = {}
    for fault in faults:
        faults_by_reason.setdefault(fault.reason, []).append(fault)
    return {reason: faults_by_reason[reason] for reason in (*_PHRASES, *faults_by_reason) if reason in faults_by_reason}


def counts(faults: Iterable[RowFault]) -> dict[str, dict[str, Any]]:
    """Count the faults by reason for `results.json`.

    Each reason maps to `rows`, the number of rows, and `first`, the row numbers of the first `LISTED` of them.
    """
    return {
        reason: {"rows": len(some), "first": [fault.row for fault in some[:LISTED]]}
        for reason, some in by_reason(faults).items()
    }


def fault_lines(faults: Iterable[RowFault]) -> list[str]:
    """Return a line for each reason with the number of rows, which rows they are, and what was found in the first."""
    return [_line(reason, some) for reason, some in by_reason(faults).items()]


def _line(reason: str, some: Sequence[RowFault]) -> str:
    first, *others = some
    detail = f": {first.detail}" if first.detail else ""
    numbers = ", ".join(str(fault.row) for fault in others[: LISTED - 1])
    more = f"; then {numbers}{' ...' if len(some) > LISTED else ''}" if numbers else ""
    rows = f"{len(some):,} row{'s' * (len(some) != 1)}"
    return f"{rows} {_PHRASES[reason]}, first row {first.row}, counted from 0{detail}{more}"


def check(faults: Iterable[tuple[str, Sequence[RowFault]]], choice: BadRows, option: str = "--bad-rows skip") -> None:
    """Raise InputError for rows that cannot be used, unless `choice` is "skip".

    `faults`: pairs of a file or set and the faults of its rows; a file may occur twice. `option`: the setting that the
    message names for going on without these rows.
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
    """Return the lines that the terminal and the page show about a set's rows that are left out or teach nothing."""
    return [
        f"{'' if reason in KEPT else 'warning: '}{name}: {_line(reason, some)}{'' if reason in KEPT else ': left out'}"
        for reason, some in by_reason(faults).items()
    ]
