"""The executor of an audit that computes in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from foreknow.config import AuditConfig
from foreknow.stages.audit.chunks import label_spans, open_span_prober, probe_chunks, score_long_answers
from foreknow.stages.audit.executor import AuditContext, AuditInputs, ChunkResult, NumberedChunks, PromptPlan
from foreknow.stages.audit.precision_check import compare_precision
from foreknow.stages.audit.setup import CheckedModel, open_context


@dataclass(frozen=True)
class LocalExecutor:
    """Does an audit's work in this process, one chunk after the other."""

    config: AuditConfig
    context: AuditContext

    @property
    def model(self) -> dict[str, Any]:
        """Name, fingerprint, folder and note of the model."""
        return self.context.loaded.summary

    @property
    def plan(self) -> PromptPlan:
        """The prompts of the audit."""
        return self.context.plan

    @property
    def protocol(self) -> dict[str, Any]:
        """How rows are asked, for the summary."""
        return self.context.protocol

    def probe(self, chunks: NumberedChunks) -> Iterable[ChunkResult]:
        """Probe numbered chunks in order."""
        return probe_chunks(self.context.probing, chunks)

    def score(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Score numbered rows with long answers in order."""
        tokens = int(self.config.batch_tokens or 2048)
        return score_long_answers(self.context.loaded, self.context.probing.prompter, chunks, tokens)

    def label_spans(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Label the fact spans of numbered rows in order."""
        context, plan = self.context, self.context.plan.spans
        if plan is None:
            return
        probing = context.probing
        with open_span_prober(context.loaded, probing.prompter, self.config, plan, probing.packed) as prober:
            yield from label_spans(prober, plan.finder, chunks)

    def compare_precision(self, probes: pl.DataFrame) -> dict[str, Any] | None:
        """Probe a few rows again in float32 and count what differs."""
        return compare_precision(self.config, self.context.plan, probes, self.context.loaded.dtype)

    def fluency(self) -> dict[str, Any]:
        """Return the model's fluency as measured when it was loaded."""
        return self.context.fluency.summary


@contextmanager
def open_local_executor(
    config: AuditConfig, inputs: AuditInputs, model: CheckedModel | None = None
) -> Iterator[LocalExecutor]:
    """Load the model, unless it is loaded already, and yield an executor for chunks. Raises what `open_context`
    raises."""
    with open_context(config, inputs, model) as context:
        yield LocalExecutor(config, context)
