"""Probe chunks one after the other, with smaller batches if memory runs out.

A chunk's result depends only on its rows and the settings, not on which process computes it or when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from foreknow.errors import ResourceError
from foreknow.inference.malloc import release_memory
from foreknow.stages.audit.executor import ChunkResult

if TYPE_CHECKING:
    from foreknow.inference.engine import PackedEngine
    from foreknow.models.loading import Loaded
    from foreknow.prompts.prompt_template import Prompter
    from foreknow.stages.audit.executor import NumberedChunks, OpenProber

logger = logging.getLogger(__name__)

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
"""Schema of a finished chunk's cost, and of how it was computed."""


def probe_chunks(probing: OpenProber, chunks: NumberedChunks) -> Iterator[ChunkResult]:
    """Probe (number, rows) in order. Raises ResourceError if even small batches are too large for the memory."""
    import torch

    for number, rows in chunks:
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


def score_long_answers(
    loaded: Loaded, prompter: Prompter, chunks: NumberedChunks, batch_tokens: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Score (number, rows) with long answers in order; yield each number with a frame of `surprisal.LONG`."""
    from foreknow.inference.loglikelihood import LongScorer  # keeps torch out

    scorer = LongScorer(loaded.model, prompter, batch_tokens=batch_tokens)
    for number, rows in chunks:
        yield number, scorer.score(rows)


def with_less_memory(work: Callable[[], T], engine: PackedEngine | None, too_large: str) -> tuple[T, int]:
    """Run `work`, halving its engine's batches down to 64 tokens if memory runs out.

    Returns the result of `work` and the number of halvings; the batches stay halved. Raises ResourceError with the text
    `too_large` if there is no packed engine, or if 64 tokens are still too many.
    """
    import torch

    times = 0
    while True:
        try:
            return work(), times
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            text = str(error).lower()
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
                phrase in text for phrase in ("memory", "alloc_failed")
            ):
                raise
            if engine is None or engine.batch_tokens < 128:
                raise ResourceError(too_large) from None
            engine.batch_tokens //= 2
            logger.info(
                f"out of memory: going on with {engine.batch_tokens} tokens at once; bytes may differ from now on"
            )
            times += 1
