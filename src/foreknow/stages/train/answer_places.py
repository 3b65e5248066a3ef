"""Finds the characters of an answer that each of its tokens stands for, and the tokens that stand for characters. Pure.

A token belongs to a range of characters if it stands for at least one of them. A token that is only a part of a
character belongs to that character.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foreknow.inference.surprisal import offsets_of
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.special_tokens import Encoded, PromptText

Place = tuple[int, int]
"""Characters of an answer: start and end (exclusive)."""


def answer_places(prompter: Prompter, prompt: PromptText, answer: str, ids: Sequence[int]) -> list[Place]:
    """Return the characters of `answer` that each of its token `ids` behind `prompt` stands for.

    `ids`: the tokens that the answer adds to the prompt, without the token that ends it. A tokenizer that gives no
    offsets is asked for the text of each token instead.
    """
    whole = prompter.encoded([prompt + prompter.gap + answer])[0]
    alone = prompter.special.encode([prompter.gap + answer], around=False, offsets=True)[0]
    texts: list[tuple[Encoded, int]] = [(whole, len(prompt) + len(prompter.gap)), (alone, len(prompter.gap))]
    for encoded, begin in texts:
        if encoded.offsets and encoded.ids[len(encoded.ids) - len(ids) :] == list(ids):
            places = encoded.offsets[len(encoded.offsets) - len(ids) :]
            return [(max(start - begin, 0), max(end - begin, 0)) for start, end in places]
    return offsets_of([str(prompter.tokenizer.decode([token])) for token in ids], answer)


def tokens_in(places: Sequence[Place], ranges: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the indices of the tokens (`answer_places`) that belong to one of the ranges of characters, ascending."""
    wanted = [(start, end) for start, end in ranges if start < end]
    return tuple(
        at
        for at, (start, end) in enumerate(places)
        if any(start < last and first < max(end, start + 1) for first, last in wanted)
    )
