"""Rows that a model cannot be asked at all: flagged, so that none of them is called Unknown for it or stops a run.

long_prompt         question and exemplars do not fit in the model's positions
unspellable         the tokenizer gives none of the accepted answers back: it lower-cases, or has no such character
template_refuses    the chat template raises an error for the row's chat
template_drops      the chat template leaves out the question, or a turn of the row's chat, without an error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from foreknow.data.exact_match import Accepted
from foreknow.data.schema import USABLE, add_flag, has_flag
from foreknow.errors import InputError
from foreknow.prompts.chat_templates import CHANGES, DROPS, REFUSES
from foreknow.prompts.few_shot import Exemplars
from foreknow.prompts.prompt_template import Prompter

if TYPE_CHECKING:
    from foreknow.prompts.chat_templates import TemplateRefusal

UNASKABLE: Final = ("long_prompt", "unspellable", REFUSES, DROPS)
"""The flags, and what rows with one of them lack: a category."""
_REFUSED: Final = has_flag(REFUSES, DROPS)
LONGEST_TOKEN: Final = 64
"""A text of more characters a token than this is too long whatever its tokens."""


class TemplateFaults(NamedTuple):
    """Rows flagged for what the chat template does to them (`rows`), and a line about each kind of fault.

    `first`: the first row that it refuses or drops a text of, with the reason in words; None where there is none.
    """

    rows: pl.DataFrame
    notes: tuple[str, ...]
    first: tuple[int, str] | None


def flag_template_faults(rows: pl.DataFrame, prompter: Prompter, drawn: Exemplars | None = None) -> TemplateFaults:
    """Flag rows (`rows.ROWS`) that the chat template refuses, drops a text of, or whose question it changes.

    `drawn`: the exemplars that stand before each row's question; without it, rows are asked alone. Rows that are
    flagged already are not asked again.
    """
    if prompter.chat_template is None:
        return TemplateFaults(rows, (), None)
    asked = rows.filter(pl.col("question").is_not_null() & ~_REFUSED)
    if drawn is not None:
        behind = ~has_flag("long_answer") & pl.col("group").is_in(list(drawn.groups))  # long answers stand alone
        asked = asked.filter(USABLE & behind)
    found: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    first: tuple[int, str] | None = None
    of_sets = {} if drawn is None else {group: _fault_of_sets(prompter, drawn, group) for group in drawn.groups}
    for row, group, question, context in asked.select("row", "group", "question", "context").iter_rows():
        shots = drawn.groups[group].sets[0] if drawn is not None and drawn.groups[group].sets else ()
        fault = of_sets.get(group) or prompter.fault(shots, question, context)
        if fault is None:
            continue
        found.setdefault(fault.flag, []).append(row)
        reasons.setdefault(fault.flag, str(fault).removeprefix("--chat-template: "))
        if first is None and fault.flag != CHANGES:
            first = row, str(fault)
    notes = []
    for flag, numbers in found.items():
        rows = add_flag(rows, flag, rows["row"].is_in(numbers))
        what = "asked all the same" if flag == CHANGES else "left without a category"
        several = f"{len(numbers):,} {'row is' if len(numbers) == 1 else 'rows are'} {what}"
        notes.append(f"warning: {several} ({flag}; first row {numbers[0]}): {reasons[flag]}")
    return TemplateFaults(rows, tuple(notes), first)


def _fault_of_sets(prompter: Prompter, drawn: Exemplars, group: str) -> TemplateRefusal | None:
    """What is wrong with a group's exemplars themselves, whatever is asked behind them."""
    faults = (prompter.fault(shots, "x", None) for shots in drawn.groups[group].sets)
    return next((fault for fault in faults if fault is not None and fault.flag != CHANGES), None)


def check_any_askable(rows: pl.DataFrame, first: tuple[int, str] | None) -> None:
    """Raise InputError where the chat template lets none of the usable rows be asked. `first`: `TemplateFaults`'s."""
    usable = rows.filter(USABLE)
    if first is not None and usable.filter(~_REFUSED).is_empty():
        raise InputError(
            f"all {usable.height:,} rows are refused by the chat template; row {first[0]}: "
            f"{first[1].removeprefix('--chat-template: ')}. Ask without --chat-template, or give the rows roles that "
            "it takes"
        )


def flag_long_prompts(
    rows: pl.DataFrame, prompter: Prompter, most: int, before: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Flag rows (`rows.ROWS`) whose question, with its own chat before it, has more than `most` tokens.

    `before`: by group, tokens that exemplars take of them (`exemplar_tokens`).
    """
    asked = rows.filter(pl.col("question").is_not_null() & ~_REFUSED).select("row", "group", "question", "context")
    long: set[int] = set()
    for part in asked.iter_slices(1024):
        texts = {}
        for row, group, question, context in part.iter_rows():
            text = prompter.text((), question, context)
            room = most - (before or {}).get(group, 0)
            if len(text) > max(room, 0) * LONGEST_TOKEN:
                long.add(row)
            else:
                texts[row] = (text, room)
        for (row, (_, room)), ids in zip(texts.items(), prompter.ids([t for t, _ in texts.values()]), strict=True):
            if len(ids) > room:
                long.add(row)
    return add_flag(rows, "long_prompt", rows["row"].is_in(sorted(long)))


def exemplar_tokens(prompter: Prompter, drawn: Exemplars) -> dict[str, int]:
    """By group, the tokens of its longest set of exemplars, reserve exemplars in their places.

    Groups whose exemplars the chat template refuses are left out: none of their rows is asked.
    """
    found = {}
    for group, exemplars in drawn.groups.items():
        if _fault_of_sets(prompter, drawn, group) is not None:
            continue
        sets = [prompter.text(shots, "x") for shots in exemplars.sets]
        bare = len(prompter.ids([prompter.text((), "x")])[0])
        found[group] = max((len(ids) - bare for ids in prompter.ids(sets)), default=0)
    return found


def flag_unspellable(rows: pl.DataFrame, prompter: Prompter, *, lenient: bool) -> pl.DataFrame:
    """Flag usable rows (`rows.ROWS`) none of whose accepted answers comes back from the tokenizer as an accepted one.

    `lenient`: whether case and punctuation may differ.
    """
    usable = rows.filter(USABLE)
    left = dict(zip(usable["row"], usable["answers"].to_list(), strict=True))
    for at in range(max(map(len, left.values()), default=0)):
        asked = {row: answers for row, answers in left.items() if at < len(answers)}
        texts = [answers[at].strip() for answers in asked.values()]
        for (row, answers), back in zip(asked.items(), _given_back(texts, prompter), strict=True):
            if Accepted.of(answers).right(back, "lenient" if lenient else "strict"):
                del left[row]
    return add_flag(rows, "unspellable", rows["row"].is_in(sorted(left)))


def _given_back(texts: Sequence[str], prompter: Prompter) -> list[str]:
    """What the tokenizer makes of texts and gives back, as an answer is read."""
    ids = [encoded.ids for encoded in prompter.special.encode([prompter.gap + text for text in texts], around=False)]
    return [str(prompter.tokenizer.decode(line, clean_up_tokenization_spaces=False)).strip() for line in ids]
