"""The executor of an audit that computes in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from foreknow.config import AuditConfig
from foreknow.stages.audit.chunks import one_by_one, scored
from foreknow.stages.audit.executor import AuditContext, AuditInputs, ChunkResult, NumberedChunks, PromptPlan
from foreknow.stages.audit.precision_check import compare_precision
from foreknow.stages.audit.setup import open_context


@dataclass(frozen=True)
class LocalExecutor:
    """Does an audit's work in this process, chunk after chunk."""

    config: AuditConfig
    context: AuditContext

    @property
    def model(self) -> dict[str, Any]:
        """Name, fingerprint, folder and note of the model."""
        return self.context.loaded.summary

    @property
    def plan(self) -> PromptPlan:
        """What is asked."""
        return self.context.plan

    @property
    def protocol(self) -> dict[str, Any]:
        """How it is asked."""
        return self.context.protocol

    def probe(self, chunks: NumberedChunks) -> Iterable[ChunkResult]:
        """Probe numbered chunks in order."""
        return one_by_one(self.context.probing, chunks)

    def score(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Score numbered rows with long answers in order."""
        tokens = int(self.config.batch_tokens or 2048)
        return scored(self.context.loaded, self.context.probing.prompter, chunks, tokens)

    def compare_precision(self, probes: pl.DataFrame) -> dict[str, Any] | None:
        """Probe a few rows again in float32 and count what differs."""
        return compare_precision(self.config, self.context.plan, probes, self.context.loaded.dtype)

    def fluency(self) -> dict[str, Any]:
        """Tell whether the model speaks, as measured when it was loaded."""
        return self.context.fluency.summary


@contextmanager
def open_local_executor(config: AuditConfig, given: AuditInputs) -> Iterator[LocalExecutor]:
    """Load the model and be ready for chunks. Raises what `open_context` raises."""
    with open_context(config, given) as context:
        yield LocalExecutor(config, context)
