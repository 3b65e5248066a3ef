"""Probe chunks one after the other, with smaller batches if memory runs out.

A chunk's result depends only on its rows and the settings, not on which process computes it or when.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import polars as pl

from foreknow.errors import ResourceError
from foreknow.inference.malloc import release_memory
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.models.positions import UNLIMITED, positions_of
from foreknow.stages.audit.executor import ChunkResult
from foreknow.stages.audit.prompts_ahead import prompts_ahead

if TYPE_CHECKING:
    from foreknow.config import AuditConfig
    from foreknow.inference.packed_model import PackedModel
    from foreknow.inference.span_probe import SpanProber
    from foreknow.models.loading import Loaded
    from foreknow.prompts.prompt_template import Prompter
    from foreknow.stages.audit.executor import NumberedChunks, OpenProber
    from foreknow.stages.audit.span_plan import SpanPlan

logger = logging.getLogger(__name__)

T = TypeVar("T")


class HalvesBatches(Protocol):
    """A prober or an engine that computes batches."""

    def halve_batches(self) -> int | None:
        """See `inference.engine.Engine.halve_batches`."""
        ...


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

    with frozen_heap(), closing(prompts_ahead(probing.prober.prompts, chunks)) as ahead:
        began = time.monotonic()
        for number, rows, prepared in ahead:
            chunk, halved = with_less_memory(
                partial(probing.prober.probe, rows, prepared),
                probing.prober,
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
            began = time.monotonic()


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep the garbage collector from objects that exist already: libraries, the model, the input's rows.

    A full collection visits hundreds of thousands of them, and a chunk's short-lived objects set one off.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def score_long_answers(
    loaded: Loaded, prompter: Prompter, chunks: NumberedChunks, batch_tokens: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Score (number, rows) with long answers in order; yield each number with a frame of `surprisal.LONG`."""
    from foreknow.inference.loglikelihood import LongScorer  # keeps torch out

    scorer = LongScorer(loaded.model, prompter, batch_tokens=batch_tokens)
    for number, rows in chunks:
        yield number, scorer.score(rows)


@contextmanager
def open_span_prober(
    loaded: Loaded, prompter: Prompter, config: AuditConfig, plan: SpanPlan, packed: PackedModel | None = None
) -> Iterator[SpanProber]:
    """Open the prober of fact spans. `packed`: the model with packed passes, if they are attached already."""
    from foreknow.inference.engine import Sampling  # keeps torch out
    from foreknow.inference.span_distributions import word_ending_tokens  # keeps torch out
    from foreknow.inference.span_engine import open_trees  # keeps torch out
    from foreknow.inference.span_probe import SpanProber, SpanSettings  # keeps torch out

    settings = SpanSettings(
        Sampling(config.temperature, config.top_k),
        config.samples,
        config.span_sets,
        config.span_shots,
        config.span_alternatives,
        positions=positions_of(loaded.model.config) or UNLIMITED,
    )
    size = int(loaded.model.get_output_embeddings().weight.shape[0])
    with open_trees(loaded.model, prompter, int(config.batch_tokens or 2048), packed) as engine:
        ends = word_ending_tokens(loaded.tokenizer, size)
        yield SpanProber(engine, prompter, plan.exemplars, settings, ends)


def label_spans(prober: SpanProber, finder: str, chunks: NumberedChunks) -> Iterator[tuple[int, pl.DataFrame]]:
    """Label the fact spans of (number, rows) in order; yield each number with a frame of `spans.schema.SPANS`."""
    for number, rows in chunks:
        frame, _ = with_less_memory(
            partial(prober.probe, rows, finder),
            prober.engine,
            "out of memory while labelling spans of long answers; finished parts are kept. Use a smaller model, or "
            "--spans none",
        )
        yield number, frame
        release_memory()


def with_less_memory(work: Callable[[], T], engine: HalvesBatches, too_large: str) -> tuple[T, int]:
    """Run `work`, halving the batches of its engine if memory runs out.

    Returns the result of `work` and the number of halvings; the batches stay halved. Raises ResourceError with the text
    `too_large` if they cannot be made smaller.
    """
    times = 0
    while True:
        try:
            return work(), times
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            tokens = engine.halve_batches()
            if tokens is None:
                raise ResourceError(too_large) from None
            logger.info(f"out of memory: going on with {tokens} tokens at once; bytes may differ from now on")
            times += 1
