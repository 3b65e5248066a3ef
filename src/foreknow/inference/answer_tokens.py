"""Tokenise prompts with their long answers, and find the answer's tokens and their characters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foreknow.inference.surprisal import Offsets, offsets_of
from foreknow.prompts.prompt_template import Prompter, common_prefix


class Text(NamedTuple):
    """A prompt and an answer tokenised together: `ids[first:last]` are the answer's tokens.

    `offsets`: for each of them, its characters in the answer.
    """

    ids: list[int]
    first: int
    last: int
    offsets: list[Offsets]


def tokenize_answers(prompter: Prompter, pairs: Sequence[tuple[str, str]]) -> list[Text]:
    """Tokenise each prompt and answer together.

    A token that spans the end of the prompt counts as the answer's. With a tokenizer that gives no offsets, the
    answer begins where the ids differ from those of the prompt alone.
    """
    prompts = [prompt for prompt, _ in pairs]
    full_texts = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    encodings = prompter.encoded(full_texts)
    if not prompter.tokenizer.is_fast:
        prompt_ids = prompter.ids(prompts)
        answers = (answer for _, answer in pairs)
        return [
            _align_by_ids(prompter, encoding.ids, ids, answer_text)
            for encoding, ids, answer_text in zip(encodings, prompt_ids, answers, strict=True)
        ]
    return [
        _align_by_offsets(encoding.ids, encoding.offsets, len(prompt))
        for encoding, prompt in zip(encodings, prompts, strict=True)
    ]


def _align_by_ids(prompter: Prompter, ids: list[int], prompt: Sequence[int], answer: str) -> Text:
    """Find the answer's tokens by ids alone: those after the prompt's, without final special tokens."""
    tokenizer = prompter.tokenizer
    special = set(tokenizer.all_special_ids)
    texts = [str(tokenizer.decode([i])) for i in ids]
    last = len(ids)
    while last and ids[last - 1] in special and not answer.endswith(texts[last - 1]):
        last -= 1
    first = min(common_prefix(prompt, ids), last)
    return Text(ids, first, last, offsets_of(texts[first:last], answer))


def _align_by_offsets(ids: list[int], offsets: Sequence[Offsets], start: int) -> Text:
    """Find the answer's tokens by offsets, in a text whose answer begins at character `start`."""
    inside = [t for t, (_, end) in enumerate(offsets) if end > start]
    first, last = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
    return Text(ids, first, last, [(max(a - start, 0), b - start) for a, b in offsets[first:last]])
