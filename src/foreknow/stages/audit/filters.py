"""Flag the rows that a model cannot be asked at all, so that none of them is called Unknown for it or stops a run.

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

NO_EXEMPLARS: Final = "no_exemplars"
"""Flag of the few short rows of a file of long answers, which are too few to show one another in prompts."""
CANNOT_BE_ASKED: Final = ("long_prompt", "unspellable", NO_EXEMPLARS, REFUSES, DROPS)
"""Flags of rows that cannot be asked; rows with one of them have no category."""
_REFUSED: Final = has_flag(REFUSES, DROPS)
LONGEST_TOKEN: Final = 64
"""A text with more characters per allowed token than this is too long whatever its tokens are."""


class TemplateFaults(NamedTuple):
    """Rows with flags for the faults of the chat template (`rows`), and a line about each kind of fault (`notes`).

    `first`: the first row that the template refuses or drops a text of, with the reason in words; None if there is
    none.
    """

    rows: pl.DataFrame
    notes: tuple[str, ...]
    first: tuple[int, str] | None


def flag_template_faults(rows: pl.DataFrame, prompter: Prompter, exemplars: Exemplars | None = None) -> TemplateFaults:
    """Flag rows (`rows.ROWS`) that the chat template refuses, drops a text of, or whose question it changes.

    `exemplars`: the exemplars that stand before each row's question; without them, rows are asked alone. Rows that
    already have such a flag are not checked again.
    """
    if prompter.chat_template is None:
        return TemplateFaults(rows, (), None)
    candidates = rows.filter(pl.col("question").is_not_null() & ~_REFUSED)
    if exemplars is not None:
        behind = ~has_flag("long_answer") & pl.col("group").is_in(list(exemplars.groups))  # long answers stand alone
        candidates = candidates.filter(USABLE & behind)
    rows_by_flag: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    first: tuple[int, str] | None = None
    faults_of_sets = (
        {} if exemplars is None else {group: _fault_of_sets(prompter, exemplars, group) for group in exemplars.groups}
    )
    for row, group, question, context in candidates.select("row", "group", "question", "context").iter_rows():
        shots = exemplars.groups[group].sets[0] if exemplars is not None and exemplars.groups[group].sets else ()
        fault = faults_of_sets.get(group) or prompter.fault(shots, question, context)
        if fault is None:
            continue
        rows_by_flag.setdefault(fault.flag, []).append(row)
        reasons.setdefault(fault.flag, str(fault).removeprefix("--chat-template: "))
        if first is None and fault.flag != CHANGES:
            first = row, str(fault)
    notes = []
    for flag, numbers in rows_by_flag.items():
        rows = add_flag(rows, flag, rows["row"].is_in(numbers))
        what = "asked all the same" if flag == CHANGES else "left without a category"
        several = f"{len(numbers):,} {'row is' if len(numbers) == 1 else 'rows are'} {what}"
        notes.append(f"warning: {several} ({flag}; first row {numbers[0]}, counted from 0): {reasons[flag]}")
    return TemplateFaults(rows, tuple(notes), first)


def _fault_of_sets(prompter: Prompter, exemplars: Exemplars, group: str) -> TemplateRefusal | None:
    """Return what is wrong with a group's exemplars themselves, whatever is asked behind them; None if nothing is."""
    faults = (prompter.fault(shots, "x", None) for shots in exemplars.groups[group].sets)
    return next((fault for fault in faults if fault is not None and fault.flag != CHANGES), None)


def check_some_rows_usable(rows: pl.DataFrame, first: tuple[int, str] | None) -> None:
    """Raise InputError if the chat template lets none of the usable rows be asked. `first`: as in `TemplateFaults`."""
    usable = rows.filter(USABLE)
    if first is not None and usable.filter(~_REFUSED).is_empty():
        raise InputError(
            f"all {usable.height:,} rows are refused by the chat template; row {first[0]}: "
            f"{first[1].removeprefix('--chat-template: ')}. Ask with --chat-template no, or give the rows roles that "
            "it takes"
        )


def flag_long_prompts(
    rows: pl.DataFrame, prompter: Prompter, most: int, before: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Flag rows (`schema.ROWS`) whose question, with its own chat before it, has more than `most` tokens.

    `before`: by group, the number of those tokens that exemplars take (`exemplar_tokens`).
    """
    candidates = rows.filter(pl.col("question").is_not_null() & ~_REFUSED).select("row", "group", "question", "context")
    long: set[int] = set()
    for part in candidates.iter_slices(1024):
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


def exemplar_tokens(prompter: Prompter, exemplars: Exemplars) -> dict[str, int]:
    """Return, by group, the number of tokens of its longest exemplar set.

    Groups whose exemplars the chat template refuses are left out, because none of their rows is asked.
    """
    tokens = {}
    for group, group_exemplars in exemplars.groups.items():
        if _fault_of_sets(prompter, exemplars, group) is not None:
            continue
        sets = [prompter.text(shots, "x") for shots in group_exemplars.sets]
        bare = len(prompter.ids([prompter.text((), "x")])[0])
        tokens[group] = max((len(ids) - bare for ids in prompter.ids(sets)), default=0)
    return tokens


def flag_unspellable(rows: pl.DataFrame, prompter: Prompter, *, lenient: bool) -> pl.DataFrame:
    """Flag usable rows (`rows.ROWS`) none of whose accepted answers comes back from the tokenizer as an accepted one.

    `lenient`: whether case and punctuation may differ.
    """
    usable = rows.filter(USABLE)
    left = dict(zip(usable["row"], usable["answers"].to_list(), strict=True))
    for at in range(max(map(len, left.values()), default=0)):
        candidates = {row: answers for row, answers in left.items() if at < len(answers)}
        texts = [answers[at].strip() for answers in candidates.values()]
        for (row, answers), back in zip(candidates.items(), _round_trip(texts, prompter), strict=True):
            if Accepted.of(answers).right(back, "lenient" if lenient else "strict"):
                del left[row]
    return add_flag(rows, "unspellable", rows["row"].is_in(sorted(left)))


def _round_trip(texts: Sequence[str], prompter: Prompter) -> list[str]:
    """Encode texts and decode them again, the way an answer is read."""
    ids = [encoded.ids for encoded in prompter.special.encode([prompter.gap + text for text in texts], around=False)]
    return [str(prompter.tokenizer.decode(line, clean_up_tokenization_spaces=False)).strip() for line in ids]
