"""Probing chunks one after the other, with less memory where there is not enough.

A chunk's result depends on its rows and the settings only, never on who computes it or when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from foreknow.errors import ResourceError
from foreknow.inference.malloc import release_memory
from foreknow.progress import say
from foreknow.stages.audit.executor import ChunkResult

if TYPE_CHECKING:
    from foreknow.inference.engine import PackedEngine
    from foreknow.models.loading import Loaded
    from foreknow.prompts.prompt_template import Prompter
    from foreknow.stages.audit.executor import NumberedChunks, OpenProber

T = TypeVar("T")

COST: dict[str, pl.DataType] = {
    "seconds": pl.Float64(),
    "rows": pl.Int64(),
    "halved": pl.Int64(),  # how often its batches were halved for want of memory
    "engine": pl.String(),  # packed, plain or generate
    "threads": pl.Int64(),  # that computed it
    "workers": pl.Int64(),  # processes at once; 1: this one
    "ray": pl.String(),  # Ray's version, where its processes computed it
}
"""What a finished chunk took, and how it was computed."""


def one_by_one(probing: OpenProber, left: NumberedChunks) -> Iterator[ChunkResult]:
    """Probe (number, rows) in order. Raises ResourceError where even small batches are too large for the memory."""
    import torch

    for number, rows in left:
        began = time.monotonic()
        chunk, halved = with_less_memory(
            partial(probing.prober.probe, rows),
            probing.packed,
            "out of memory; finished chunks are kept. Lower --chunk-rows, or use a smaller model",
        )
        cost = {
            "seconds": time.monotonic() - began,
            "rows": rows.height,
            "halved": halved,
            "engine": probing.engine,
            "threads": torch.get_num_threads(),
            "workers": 1,
            "ray": None,
        }
        yield ChunkResult(number, chunk, pl.DataFrame([cost], schema=COST))
        del chunk
        release_memory()


def scored(
    loaded: Loaded, prompter: Prompter, left: NumberedChunks, batch_tokens: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Score (number, rows) with long answers in order: lines of `surprisal.LONG`."""
    from foreknow.inference.loglikelihood import LongScorer  # keeps torch out

    scorer = LongScorer(loaded.model, prompter, batch_tokens=batch_tokens)
    for number, rows in left:
        yield number, scorer.score(rows)


def with_less_memory(work: Callable[[], T], engine: PackedEngine | None, too_large: str) -> tuple[T, int]:
    """What `work` comes to, and how often its engine's batches were halved for it: out of memory, down to 64 tokens.

    They stay halved. Raises ResourceError, saying `too_large`, where there is no such engine or that is too many.
    """
    import torch

    times = 0
    while True:
        try:
            return work(), times
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            text = str(error).lower()
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
                told in text for told in ("memory", "alloc_failed")
            ):
                raise
            if engine is None or engine.batch_tokens < 128:
                raise ResourceError(too_large) from None
            engine.batch_tokens //= 2
            say(f"out of memory: going on with {engine.batch_tokens} tokens at once; bytes may differ from now on")
            times += 1
