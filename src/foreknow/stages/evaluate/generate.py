"""Generates a model's answers greedily, in the format that the model was trained in (design, sections 2 and 8).

The tracker tells right answers from wrong ones without generating, so it does not see what a wrong answer says. A right
answer must end within the tokens of the row's longest accepted answer and 4 more. The tracker has the same limit, so
both agree. Generation goes on beyond the limit (`READ`), so that wrong answers and refusals can be told apart.

A row whose long answer has labelled spans is asked in the same way, but its text goes on past line breaks, in batches
of such rows only; what stands before the first line break is judged as every answer is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import polars as pl

from foreknow.data.exact_match import Accepted
from foreknow.errors import ResourceError
from foreknow.inference.generate import GeneratedPath, Generator
from foreknow.inference.prompt_builder import EXTRA_TOKENS
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.vocabulary import Vocabulary
from foreknow.stages.evaluate.metrics import PREDICTIONS

logger = logging.getLogger(__name__)

READ: Final = 16
"""At least this many tokens of an answer are generated, even if it can no longer be right."""


class GenerationPrompt(NamedTuple):
    """Holds a row that is ready to be asked.

    `prompt`: its token ids. `allowed`: the number of tokens, including the end token, within which an answer must end.
    `past_lines`: whether the text goes on past line breaks, up to `allowed` tokens.
    """

    row: int
    prompt: tuple[int, ...]
    allowed: int
    accepted: Accepted
    past_lines: bool = False


def build_prompts(
    rows: pl.DataFrame, prompter: Prompter, max_new: int | None = None, past_lines: Collection[int] = ()
) -> list[GenerationPrompt]:
    """Turn usable rows (`rows.ROWS`) into prompts without exemplars.

    `max_new`: how many tokens a right answer may have. By default this is the number of tokens of the row's longest
    accepted answer and `prompt_builder.EXTRA_TOKENS` more. `past_lines`: numbers of rows whose text goes on
    past line breaks.
    """
    texts = [prompter.text((), question, turns) for question, turns in rows.select("question", "context").iter_rows()]
    prompts = []
    numbers, answers = rows["row"].to_list(), rows["answers"].to_list()
    for row, text, ids, accepted in zip(numbers, texts, prompter.ids(texts), answers, strict=True):
        allowed = max_new
        if allowed is None:
            spelled = [len(prompter.answer_ids(text, ids, a.strip())) for a in accepted if a.strip()]
            allowed = max([*spelled, 1]) + EXTRA_TOKENS
        prompts.append(GenerationPrompt(row, tuple(ids), allowed, Accepted.of(accepted), row in past_lines))
    return prompts


def generate_answers(
    generator: Generator, rows: Sequence[GenerationPrompt], done: Callable[[int], None] = lambda _: None
) -> pl.DataFrame:
    """Generate the model's answer to each row; return `PREDICTIONS`, sorted by row.

    Rows with similar `allowed` and length are generated together, `generator.batch` at a time. The result therefore
    depends only on the rows and on that number. `done` is called with the number of rows just answered.
    """
    lines: list[tuple[object, ...]] = []
    beyond = _past_lines(generator)
    for past_lines in (False, True):
        own = [prompt for prompt in rows if prompt.past_lines == past_lines]
        ordered = sorted(own, key=lambda prompt: (max(prompt.allowed, READ), len(prompt.prompt), prompt.row))
        for start in range(0, len(ordered), generator.batch):
            part = ordered[start : start + generator.batch]
            longest = max(READ, *(prompt.allowed for prompt in part))
            prompts = [prompt.prompt for prompt in part]
            answers = (beyond if past_lines else generator).answers(prompts, longest, None)
            for prompt, (path,) in zip(part, answers, strict=True):
                text = _whole_text(prompt, path, beyond.vocabulary) if past_lines else (None, None)
                lines.append((*_judge(prompt, _first_line(path, generator.vocabulary), generator.vocabulary), *text))
            done(len(part))
    return pl.DataFrame(lines, schema=PREDICTIONS, orient="row").sort("row")


def _past_lines(generator: Generator) -> Generator:
    """Return the generator for texts that only an end-of-text token ends; the same one if the model has none."""
    vocabulary = generator.vocabulary
    ends = frozenset(token for token in vocabulary.ends if "\n" not in vocabulary.decode((token,)))
    return replace(generator, vocabulary=replace(vocabulary, ends=ends, breaks=frozenset())) if ends else generator


def _first_line(generated_path: GeneratedPath, vocabulary: Vocabulary) -> GeneratedPath:
    """Cut a path behind the first token that ends an answer: greedily, the answer alone would have had this path."""
    path = generated_path.path
    end = next((at for at, token in enumerate(path) if vocabulary.is_end(token)), None)
    return generated_path if end is None else GeneratedPath(path[: end + 1], True)


def _whole_text(
    prompt: GenerationPrompt, generated_path: GeneratedPath, vocabulary: Vocabulary
) -> tuple[str | None, bool | None]:
    """Return the text of at most `allowed` tokens and whether it ended by itself; nulls if logits were not finite."""
    path, sound = generated_path
    if not sound and len(path) < prompt.allowed:
        return None, None
    path = path[: prompt.allowed]
    ended = vocabulary.ended(path)
    return vocabulary.decode(path[:-1] if ended else path).strip(), ended


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


def generate_with_less_memory(
    generator: Generator, rows: Sequence[GenerationPrompt], done: Callable[[int], None] = lambda _: None
) -> tuple[pl.DataFrame, Generator]:
    """Generate answers as `generate_answers` does; if memory runs out, try again with batches half as large.

    Returns the answers and the generator that made them. Raises ResourceError if one row at a time is too much.
    """
    while True:
        answered = 0

        def advance(count: int) -> None:
            nonlocal answered
            answered += count
            done(count)

        try:
            return generate_answers(generator, rows, advance), generator
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            done(-answered)
            if generator.batch == 1:
                raise ResourceError(
                    "out of memory with one row at a time; finished chunks are kept. Use a smaller model, or another "
                    "--device"
                ) from None
            generator = replace(generator, batch=generator.batch // 2)
            logger.info(f"out of memory: going on with {generator.batch} rows at once; bytes may differ from now on")
