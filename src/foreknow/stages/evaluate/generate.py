"""Answers really generated, greedily, in the format a model was trained in (design, sections 2 and 8).

The tracker tells right from wrong without generating; what a wrong answer says, it does not see. A right answer
must end within the row's longest accepted answer's tokens and 4 more, as in the tracker, so that both agree. What
is said is read further, so that wrong answers and refusals can be told apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import polars as pl
import torch

from foreknow.data.exact_match import Accepted
from foreknow.errors import ResourceError
from foreknow.inference.exact_probe import ProbeSettings
from foreknow.inference.generate import GeneratedPath, Generator
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.vocabulary import Vocabulary
from foreknow.stages.evaluate.metrics import PREDICTIONS

logger = logging.getLogger(__name__)

READ: Final = 16
"""So many tokens of an answer are read at least, whether it can still be right or not."""


class GenerationPrompt(NamedTuple):
    """A row ready to be asked: `prompt` as token ids; an answer must end in `allowed` tokens, its end included."""

    row: int
    prompt: tuple[int, ...]
    allowed: int
    accepted: Accepted


def build_prompts(rows: pl.DataFrame, prompter: Prompter, max_new: int | None = None) -> list[GenerationPrompt]:
    """The rows (`rows.ROWS`, usable ones) ready to be asked, with no exemplars.

    `max_new`: tokens a right answer may have; by default the row's longest accepted answer's and
    `exact_probe.ProbeSettings.extra_tokens` more.
    """
    texts = [prompter.text((), question, turns) for question, turns in rows.select("question", "context").iter_rows()]
    prompts = []
    numbers, answers = rows["row"].to_list(), rows["answers"].to_list()
    for row, text, ids, accepted in zip(numbers, texts, prompter.ids(texts), answers, strict=True):
        allowed = max_new
        if allowed is None:
            spelled = [len(prompter.answer_ids(text, ids, a.strip())) for a in accepted if a.strip()]
            allowed = max([*spelled, 1]) + ProbeSettings().extra_tokens
        prompts.append(GenerationPrompt(row, tuple(ids), allowed, Accepted.of(accepted)))
    return prompts


def generate_answers(generator: Generator, rows: Sequence[GenerationPrompt]) -> pl.DataFrame:
    """What the model says to each row: `PREDICTIONS`, sorted by row.

    Rows of like allowance and length are generated together, `generator.batch` at a time, so the result depends
    on the rows and that number only.
    """
    ordered = sorted(rows, key=lambda prompt: (max(prompt.allowed, READ), len(prompt.prompt), prompt.row))
    lines = []
    for start in range(0, len(ordered), generator.batch):
        part = ordered[start : start + generator.batch]
        longest = max(READ, *(prompt.allowed for prompt in part))
        answers = generator.answers([prompt.prompt for prompt in part], longest, None)
        lines += [_judge(prompt, path, generator.vocabulary) for prompt, (path,) in zip(part, answers, strict=True)]
    return pl.DataFrame(lines, schema=PREDICTIONS, orient="row").sort("row")


def _judge(
    prompt: GenerationPrompt, generated_path: GeneratedPath, vocabulary: Vocabulary
) -> tuple[int, str | None, *tuple[bool | None, ...]]:
    path, sound = generated_path
    if not sound and len(path) < prompt.allowed:
        return (prompt.row, None, None, None, None)
    text = vocabulary.said(path)
    ended = vocabulary.ended(path) and len(path) <= prompt.allowed
    return (
        prompt.row,
        text,
        ended,
        ended and prompt.accepted.right(text, "strict"),
        ended and prompt.accepted.right(text, "lenient"),
    )


def generate_with_less_memory(generator: Generator, rows: Sequence[GenerationPrompt]) -> tuple[pl.DataFrame, Generator]:
    """As `generate_answers`; out of memory, with batches half as large. Returns the generator that did it."""
    while True:
        try:
            return generate_answers(generator, rows), generator
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "memory" not in str(error).lower():
                raise
            if generator.batch == 1:
                raise ResourceError(
                    "out of memory with one row at a time; finished chunks are kept. Use a smaller model, or another "
                    "--device"
                ) from None
            generator = replace(generator, batch=generator.batch // 2)
            logger.info(f"out of memory: going on with {generator.batch} rows at once; bytes may differ from now on")
