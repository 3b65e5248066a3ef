"""Explains the flags of rows: what each means, and what to do about it.

Its functions have no side effects. Flags for faults of the data take their text from `data/validation_rules.py`;
this file has the texts of the flags that an audit adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from foreknow.data.row_accounting import THOUGHT, account
from foreknow.data.validation_rules import RULES, SEVERITIES, Rule
from foreknow.format.numbers import count, row_numbers

MEANINGS: Final = {
    "answer_in_exemplars": "another row's exemplar has the same answer, which makes a lucky hit likelier",
    "seen_in_exemplars": "this row is itself an exemplar; in its own prompt a reserve exemplar takes its place",
    "few_exemplars": "its group is too small; the exemplars come from all groups",
    "no_exemplars": "the file has too few short rows to ask this one behind exemplars; no category",
    "context": "asked after the system's text or earlier turns of its own chat, which may give the answer away",
    "long_answer": "the answer is longer than the protocol allows; no category",
    "long_prompt": "question and exemplars do not fit in the model's positions; no category",
    "unspellable": "the tokenizer cannot spell the answer as it is written (it lower-cases, say); no category",
    "template_refuses": "the chat template raises an error for the row's chat (roles out of order, say); no category",
    "template_drops": "the chat template leaves out a part of the row's chat without an error; no category",
    "template_changes": "the chat template writes the question differently from the row",
    "not_finite": "the model's logits were not finite (NaN or infinity) for one of its prompts; no category",
    "undecided": "too close to call between WeaklyKnown and Unknown; the row gets the likelier one",
}
"""The flags that say how the audit asked a row and read its answer, with their meanings."""
FAULTS: Final = {
    "template_refuses": "left out: the chat template refuses them",
    "template_drops": "left out: the chat template leaves out one of their texts",
    "no_question_tokens": "left out: the question has no tokens",
    "no_answer_tokens": "left out: the answer has no tokens",
    "answer_cut": "left out: longer than the model's positions, so that the answer would be cut away",
    "no_label": "left out: the chat template marks no token of the answer as learnt",
    "weight_zero": "with weight 0, which teach nothing",
    "answer_changed": "whose answer the chat template would change, taught as they are",
}
"""The reasons for which training or an evaluation leaves rows out, or for which rows teach nothing
(`stages/train/row_faults.py`)."""
_RULES: Final = {rule.name: rule for rule in RULES}
_CHAT_FORMAT_RULES: Final = ("masked", "tool_call", "refusal", "not_text", "no_user_turn", "long_chat", THOUGHT)
"""Rules that describe how a chat is written and do not mean that something is wrong with it."""


@dataclass(frozen=True)
class FlagLine:
    """A flag, the number of rows that have it, its meaning, and what to do about it if the data is at fault."""

    name: str
    rows: int
    meaning: str
    advice: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether the flag says that something is wrong with the data."""
        return self.name in _RULES and self.name not in _CHAT_FORMAT_RULES


def flag_lines(rows: pl.DataFrame) -> tuple[FlagLine, ...]:
    """Every flag that occurs, most frequent first."""
    table = (
        rows.select(pl.col("flags").list.unique())
        .explode("flags", empty_as_null=True)
        .drop_nulls()
        .group_by("flags")
        .len("rows")
        .sort(["rows", "flags"], descending=[True, False])
    )
    return tuple(FlagLine(name, rows, *_explanation(name)) for name, rows in table.iter_rows())


def accounted(data: Mapping[str, Any]) -> str:
    """A sentence part that accounts for the input, from a summary's `data`; "" if that has no counts.

    Rows in the file = rows read + rows left out for each reason.
    """
    if "left_out" not in data:
        return ""
    return account(data["records"], data["rows_in_file"], data["left_out"], data.get("thoughts", 0))


def findings(lines: tuple[FlagLine, ...]) -> tuple[FlagLine, ...]:
    """The flags that are faults of the data, gravest first."""
    grave = {name: SEVERITIES.index(rule.severity) for name, rule in _RULES.items()}
    return tuple(sorted((line for line in lines if line.is_finding), key=lambda line: grave[line.name]))


def meaning_and_advice(rule: Rule) -> tuple[str, str]:
    """The meaning and the advice from a rule's message, without its figures, which are for a whole file."""
    message = re.sub(r" \(\{\w+\}\)", "", rule.message)
    meaning, _, advice = re.sub(r"\{\w+\}", "some", message).partition(": ")
    return meaning, advice


def _explanation(name: str) -> tuple[str, str]:
    return meaning_and_advice(_RULES[name]) if name in _RULES else (MEANINGS.get(name, ""), "")


def fault_lines(name: str, counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each reason for which rows of the set `name` are left out or teach nothing.

    `counts`: for each reason, the number of `rows`, and the row numbers of the `first` few.
    """
    lines = []
    for reason, of in counts.items():
        numbers = row_numbers(of["first"], of["rows"])
        lines.append(f"{name}: {count(of['rows'], 'row')} {FAULTS.get(reason, reason)} ({numbers})")
    return lines
