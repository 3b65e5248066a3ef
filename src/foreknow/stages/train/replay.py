"""Draws known rows into every batch (`--replay`), so that training on new facts does not overwrite old ones. Pure.

A batch keeps its rows and gets further ones from a pool of rows that the base model knows, until they are the share of
the batch that the user asks for. Which ones depends on the seed and the step only, so that a resumed run draws the same
rows. Every row of the pool is drawn once before one is drawn again. With `--kl` and without `--replay` the same rows
are drawn, as many as there are new ones, but their answers are not learnt: they have weight 0 (`kl_loss.py`).

Rows of a pool are numbered -1, -2, ..., so that no row of the training file has the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.io.run_dir import fingerprint, write_frame
from foreknow.stages.train.training_examples import TrainingExample

FOLDER: Final = ".replay"
"""The folder, within the folder of an unfinished run, that holds the pool and the teacher's probabilities."""
_STREAM: Final = 7_919
"""Separates the random draws of the pool from those of the training rows, which have the same seed."""

POOL: Final[dict[str, pl.DataType]] = {
    "prompt": pl.List(pl.Int64()),
    "answer": pl.List(pl.Int64()),
    "source": pl.String(),
    "teacher_prompt": pl.List(pl.Int64()),
}
"""The columns of a stored pool: token ids of prompt and answer (with the end token), and words for where it is from.

`teacher_prompt`: the prompt behind which the teacher of `--kl` reads the answer; null if it is `prompt`.
"""


class ReplayPool(NamedTuple):
    """Holds known rows as token ids, and words for where they are from. Row n of the pool has the number -1 - n.

    `teacher_prompts`: for each row, the prompt behind which the teacher of `--kl` reads the answer; None if it is the
    row's own.
    """

    examples: tuple[TrainingExample, ...]
    source: str
    teacher_prompts: tuple[tuple[int, ...], ...] | None = None

    @property
    def fingerprint(self) -> str:
        """Return a hash of the rows' token ids."""
        pairs = zip(self.examples, self.taught, strict=True)
        return fingerprint([[list(e.prompt), list(e.answer), list(taught.prompt)] for e, taught in pairs])

    @property
    def taught(self) -> tuple[TrainingExample, ...]:
        """Return the rows as the teacher reads them."""
        prompts = self.teacher_prompts or tuple(example.prompt for example in self.examples)
        return tuple(e._replace(prompt=prompt) for e, prompt in zip(self.examples, prompts, strict=True))


def pool_of(
    examples: Sequence[TrainingExample], source: str, teacher_prompts: Sequence[tuple[int, ...]] | None = None
) -> ReplayPool:
    """Number the rows of a pool from -1 downwards and give each the weight 1."""
    numbered = tuple(e._replace(row=-1 - n, weight=1.0) for n, e in enumerate(examples))
    return ReplayPool(numbered, source, None if teacher_prompts is None else tuple(teacher_prompts))


def write_pool(path: Path, pool: ReplayPool) -> None:
    """Write a pool as Parquet (`POOL`)."""
    prompts = pool.teacher_prompts or [None] * len(pool.examples)
    rows = [
        (list(e.prompt), list(e.answer), pool.source, None if prompt is None else list(prompt))
        for e, prompt in zip(pool.examples, prompts, strict=True)
    ]
    write_frame(path, pl.DataFrame(rows, schema=POOL, orient="row"))


def read_pool(path: Path) -> ReplayPool:
    """Read a pool that `write_pool` wrote."""
    frame = pl.read_parquet(path)
    examples = [TrainingExample(0, tuple(p), tuple(a)) for p, a in frame.select("prompt", "answer").iter_rows()]
    prompts = frame["teacher_prompt"]
    taught = None if prompts.null_count() else [tuple(prompt) for prompt in prompts]
    return pool_of(examples, frame["source"][0] if frame.height else "", taught)


def replay_count(share: float, new: int) -> int:
    """Return how many rows of the pool make up `share` (0 to 1) of a batch that has `new` other rows; at least 1."""
    return max(1, round(share / (1 - share) * new))


def replay_rows(seed: int, start: int, size: int, count: int) -> list[int]:
    """Return the places `start` to `start + size` of an endless sequence of shuffled passes over `count` rows."""
    places: list[int] = []
    while len(places) < size:
        cycle, within = divmod(start + len(places), count)
        order = np.random.default_rng([seed, _STREAM, cycle]).permutation(count)
        places += order[within : within + size - len(places)].tolist()
    return places


class ReplayPlan(NamedTuple):
    """Says which rows of a pool join which step.

    `share`: their share of a batch, 0 to 1. `rows`, `batch_size`: the rows to train on, and how many a step takes.
    `learns`: whether the answers of the pool's rows are learnt (`--replay`), or only held to the base model (`--kl`).
    """

    pool: ReplayPool
    share: float
    seed: int
    rows: int
    batch_size: int
    learns: bool

    def examples(self, step: int) -> list[TrainingExample]:
        """Return the rows of the pool for optimizer step `step`, counted from 0 over all epochs."""
        steps = math.ceil(self.rows / self.batch_size)
        full = replay_count(self.share, min(self.batch_size, self.rows))
        last = replay_count(self.share, self.rows - (steps - 1) * self.batch_size)
        epoch, within = divmod(step, steps)
        start = epoch * ((steps - 1) * full + last) + within * full
        size = last if within == steps - 1 else full
        places = replay_rows(self.seed, start, size, len(self.pool.examples))
        weight = 1.0 if self.learns else 0.0
        # a small pool can give a row twice to one batch: it then counts twice
        return [self.pool.examples[place]._replace(weight=weight) for place in places]


def is_replay(example: TrainingExample) -> bool:
    """Return whether a row is from a pool and not from the training file."""
    return example.row < 0
