"""Generates a model's answers greedily, in the format that the model was trained in (design, sections 2 and 8).

The tracker tells right answers from wrong ones without generating, so it does not see what a wrong answer says. A right
answer must end within the tokens of the row's longest accepted answer and 4 more. The tracker has the same limit, so
both agree. Generation goes on beyond the limit (`READ`), so that wrong answers and refusals can be told apart.
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
"""At least this many tokens of an answer are generated, even if it can no longer be right."""


class GenerationPrompt(NamedTuple):
    """Holds a row that is ready to be asked.

    `prompt`: its token ids. `allowed`: the number of tokens, including the end token, within which an answer must end.
    """

    row: int
    prompt: tuple[int, ...]
    allowed: int
    accepted: Accepted


def build_prompts(rows: pl.DataFrame, prompter: Prompter, max_new: int | None = None) -> list[GenerationPrompt]:
    """Turn usable rows (`rows.ROWS`) into prompts without exemplars.

    `max_new`: how many tokens a right answer may have. By default this is the number of tokens of the row's longest
    accepted answer and `exact_probe.ProbeSettings.extra_tokens` more.
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
    """Generate the model's answer to each row; return `PREDICTIONS`, sorted by row.

    Rows with similar `allowed` and length are generated together, `generator.batch` at a time. The result therefore
    depends only on the rows and on that number.
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
    """Generate answers as `generate_answers` does; if memory runs out, try again with batches half as large.

    Returns the answers and the generator that made them. Raises ResourceError if one row at a time is too much.
    """
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
