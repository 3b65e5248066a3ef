"""Rows that a model cannot be asked at all: flagged, so that none of them is called Unknown for it or stops a run.

long_prompt    question and exemplars do not fit in the model's positions
unspellable    the tokenizer gives none of the accepted answers back: it lower-cases, say, or has no such character
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from foreknow.data.rows import USABLE, add_flag
from foreknow.protocol.exemplars import Exemplars
from foreknow.protocol.match import Accepted
from foreknow.protocol.prompts import Prompter

UNASKABLE: Final = ("long_prompt", "unspellable")
"""The flags, and what rows with one of them lack: a category."""
LONGEST_TOKEN: Final = 64
"""A text of more characters a token than this is too long whatever its tokens."""


def flag_long_prompts(
    rows: pl.DataFrame, prompter: Prompter, most: int, before: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Flag rows (`rows.ROWS`) whose question, with its own chat before it, has more than `most` tokens.

    `before`: by group, tokens that exemplars take of them (`exemplar_tokens`).
    """
    asked = rows.filter(pl.col("question").is_not_null()).select("row", "group", "question", "context")
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
    """By group, the tokens of its longest set of exemplars, reserve exemplars in their places."""
    found = {}
    for group, exemplars in drawn.groups.items():
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
    gap = "" if prompter.chat else prompter.template.gap
    ids = [encoded.ids for encoded in prompter.special.encode([gap + text for text in texts], around=False)]
    return [str(prompter.tokenizer.decode(line, clean_up_tokenization_spaces=False)).strip() for line in ids]
