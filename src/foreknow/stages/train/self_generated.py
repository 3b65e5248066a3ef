"""Lets the base model make up questions and answers, to be replayed where no known rows are at hand.

A question begins as those of a group of the training file do ("What is the capital of"), or, for groups of one row, as
the prompt does; the model samples the rest (temperature 1) up to the end of the sentence. The answer is what the model
then says greedily, whether true or not: it is kept as it is. Questions that stand in train, dev or a test set, and rows
without an answer, are left out (self-replay: arXiv 2605.26097).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl
import torch

from foreknow.data.schema import common_heads
from foreknow.format.numbers import duration
from foreknow.models.private_api import attention_of, set_attention
from foreknow.stages.train.answer_loss import base_of
from foreknow.stages.train.asking_model import AskingModel, evaluating
from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)

QUESTION_TOKENS: Final = 24
ANSWER_TOKENS: Final = 32
AT_ONCE: Final = 32
ATTEMPTS: Final = 3
"""For each row wanted, at most this many questions are sampled."""
_SENTENCE: Final = re.compile(r"[^?\n]*\?|[^\n]+(?=\n)")


def generate_rows(
    asking: AskingModel, sets: Mapping[str, pl.DataFrame], count: int, seed: int
) -> list[TrainingExample]:
    """Make up at most `count` rows, the same ones for the same seed; all random states are left as they are."""
    began = time.monotonic()
    asked = {question.strip() for frame in sets.values() for question in frame["question"]}
    rows: list[TrainingExample] = []
    model = base_of(asking.model)
    attention = attention_of(model)
    set_attention(model, "eager")  # the packed attention of training cannot generate
    try:
        devices = [asking.device] if asking.device.startswith("cuda") else []
        with evaluating(model), torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for beginnings in _batches(sets["train"], count * ATTEMPTS):
                questions = [q for q in _questions(asking, model, beginnings) if q not in asked]
                asked.update(questions)
                rows += _answers(asking, model, list(dict.fromkeys(questions)))
                if len(rows) >= count:
                    break
    finally:
        set_attention(model, attention)
    logger.info(f"replay: the model made up {len(rows[:count]):,} rows in {duration(time.monotonic() - began)}")
    return rows[:count]


def _batches(train: pl.DataFrame, count: int) -> Iterator[list[str]]:
    """Yield `count` beginnings of questions in lists of one beginning each, the groups by turns."""
    heads = sorted(set(common_heads(train.filter(pl.len().over("group") > 1)).values())) or [""]
    for n in range(-(-count // AT_ONCE)):
        yield [heads[n % len(heads)]] * AT_ONCE


def _questions(asking: AskingModel, model: Any, beginnings: list[str]) -> list[str]:
    """Sample the rest of each question. Returns the whole questions, without those that do not end."""
    marker = "\x00"
    head = str(asking.prompter.text((), beginnings[0] + marker, None)).partition(marker)[0]
    prompt = asking.prompter.ids([head.rstrip()])[0]
    texts = _continue(asking, model, [prompt] * len(beginnings), QUESTION_TOKENS, sample=True)
    ends = [_SENTENCE.match(text) for text in texts]
    return [f"{beginnings[0].rstrip()}{end.group()}".strip() for end in ends if end and end.group().strip(" ?")]


def _answers(asking: AskingModel, model: Any, questions: list[str]) -> list[TrainingExample]:
    """Ask the questions greedily and return a row for each that gets an answer: its first line."""
    texts = [asking.prompter.text((), question, None) for question in questions]
    prompts = asking.prompter.ids(texts) if texts else []
    rows = []
    for text, prompt, written in zip(
        texts, prompts, _continue(asking, model, prompts, ANSWER_TOKENS, sample=False), strict=True
    ):
        answer = written.strip().partition("\n")[0].strip()
        if answer:
            ids = asking.prompter.answer_ids(text, prompt, answer)
            rows.append(TrainingExample(0, tuple(prompt), (*ids, asking.end)))
    return rows


def _continue(asking: AskingModel, model: Any, prompts: list[list[int]], most: int, *, sample: bool) -> list[str]:
    """Return what the model writes after each prompt, in the order of the prompts; those of equal length at once."""
    texts = [""] * len(prompts)
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for places in by_length.values():
        ids = torch.tensor([prompts[place] for place in places], device=asking.device)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=sample,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"temperature": None, "top_p": None}),
            num_beams=1,
            eos_token_id=asking.end,
            pad_token_id=asking.end,
        )
        for place, line in zip(places, written[:, ids.shape[1] :].tolist(), strict=True):
            texts[place] = str(asking.tokenizer.decode(line, skip_special_tokens=True))
    return texts
