"""The types of an audit: its inputs, its prompts, and the executor protocol (this process, Ray, or a server)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import polars as pl

from foreknow.data import dataset
from foreknow.data.schema import ROWS
from foreknow.models import loading
from foreknow.models.fluency import Fluency
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.audit.span_plan import SpanPlan

if TYPE_CHECKING:
    from foreknow.inference.exact_probe import Chunk
    from foreknow.inference.packed_model import PackedModel
    from foreknow.inference.prompt_builder import PreparedPrompts, PromptBuilder


class AuditInputs(NamedTuple):
    """What an audit reads: the whole dataset, the rows to label, the exemplar pool and the prompt template.

    `facts`: the dataset as read. `rows`: the rows of it to label, unchanged. `shorts`: the short facts that these rows
    bring (`short_facts.py`). `pool`: the dataset that exemplars are drawn from, if not the input itself.
    """

    facts: dataset.Dataset
    rows: pl.DataFrame
    shorts: pl.DataFrame
    pool: dataset.Dataset | None
    template: Template
    licences: str | None = None

    @property
    def every(self) -> pl.DataFrame:
        """All rows of the input, followed by the short facts."""
        return pl.concat([self.facts.rows, self.shorts.select(*ROWS)])


class ChunkProber(Protocol):
    """Probes chunks; implemented by `Prober` and `Sampler`."""

    @property
    def prompts(self) -> PromptBuilder:
        """What makes the prompts."""
        ...

    def probe(self, rows: pl.DataFrame, prepared: PreparedPrompts | None = None) -> Chunk:
        """Probe rows that have a question and answers. `prepared`: what `prompts.build` returned, if it was called."""
        ...

    def halve_batches(self) -> int | None:
        """See `inference.engine.Engine.halve_batches`."""
        ...


class PromptPlan(NamedTuple):
    """The prompts of an audit, before a model answers them: rows to probe, rows with long answers, exemplars.

    `heads`: the text with which each group's questions begin. `every`: all rows, with flags on those that cannot be
    asked. `spans`: how the fact spans of `long` are labelled, if they are; its column `fact_spans` holds them then.
    `notes`: lines about rows that the chat template refuses. All values are plain, so that they can be sent to
    another process.
    """

    template: Template
    exemplars: few_shot.Exemplars
    rows: pl.DataFrame
    long: pl.DataFrame
    heads: dict[str, str]
    every: pl.DataFrame
    notes: tuple[str, ...] = ()
    spans: SpanPlan | None = None


class OpenProber(NamedTuple):
    """An open prober, its prompter, its engine's name, and the model with packed passes if the engine uses them."""

    prober: ChunkProber
    prompter: Prompter
    engine: str
    packed: PackedModel | None


class AuditContext(NamedTuple):
    """Everything that an audit computes with in this process."""

    loaded: loading.Loaded
    probing: OpenProber
    plan: PromptPlan
    protocol: dict[str, Any]
    fluency: Fluency


NumberedChunks = Sequence[tuple[int, pl.DataFrame]]
"""Parts of a plan, each with its number in the plan."""


class Executor(Protocol):
    """Does an audit's work: this process (`LocalExecutor`), a Ray cluster (`RayExecutor`) or a server
    (`ServerExecutor`). A result depends only on rows and settings, not on which executor computes it.

    `model`: name, fingerprint, folder and note of the model. `plan`: the prompts. `protocol`: how rows are asked, for
    the summary.
    """

    @property
    def model(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def plan(self) -> PromptPlan: ...  # noqa: D102
    @property
    def protocol(self) -> dict[str, Any]: ...  # noqa: D102

    def probe(self, chunks: NumberedChunks) -> Iterable[ChunkResult]:
        """Probe numbered chunks; yield each result when it is finished, in any order."""
        ...

    def score(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Score numbered rows with long answers (`surprisal.LONG`); yield each part when it is finished."""
        ...

    def label_spans(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Label the fact spans of numbered rows (`spans.schema.SPANS`); yield each part when it is finished."""
        ...

    def compare_precision(self, probes: pl.DataFrame) -> dict[str, Any] | None:
        """Count what the dtype changes in `probes`; return None if there is nothing to compare."""
        ...

    def fluency(self) -> dict[str, Any]:
        """Return how fluent the model's text is (`Fluency.summary`)."""
        ...


class ChunkResult(NamedTuple):
    """A finished chunk: its number in the plan, its frames, and a line of `COST`."""

    number: int
    chunk: Chunk
    cost: pl.DataFrame
