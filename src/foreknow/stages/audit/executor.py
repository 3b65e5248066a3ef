"""What an audit asks, and the executor that asks it: this process, Ray, or a server."""

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

if TYPE_CHECKING:
    from foreknow.inference.engine import PackedEngine, Prompt
    from foreknow.inference.exact_probe import Chunk, PreparedRow


class AuditInputs(NamedTuple):
    """What an audit reads: the rows to label and those beside them, the exemplar pool, the prompt template.

    `audited`: rows as they came. `shorts`: the short facts that audited rows bring (`short_facts.py`).
    """

    facts: dataset.Dataset
    audited: pl.DataFrame
    shorts: pl.DataFrame
    pool: dataset.Dataset | None
    template: Template
    licences: str | None = None

    @property
    def every(self) -> pl.DataFrame:
        """All rows at hand: those of the input, then the short facts."""
        return pl.concat([self.facts.rows, self.shorts.select(*ROWS)])


class ChunkProber(Protocol):
    """What probes chunks: `Prober`, or `Sampler` in its place."""

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """Probe rows that have a question and answers."""
        ...

    def prompts(self, rows: pl.DataFrame) -> tuple[list[PreparedRow], list[list[Prompt]]]:
        """Each row made ready, and its prompts."""
        ...


class PromptPlan(NamedTuple):
    """The prompts of an audit, before a model answers them: rows to probe, rows with long answers, exemplars.

    `heads`: how a group's questions begin. `every`: all rows, with the flags of those that cannot be asked. `notes`:
    lines about rows that the chat template refuses. All values are plain, so that another process can be given them.
    """

    template: Template
    exemplars: few_shot.Exemplars
    rows: pl.DataFrame
    long: pl.DataFrame
    heads: dict[str, str]
    every: pl.DataFrame
    notes: tuple[str, ...] = ()


class OpenProber(NamedTuple):
    """What probes chunks, which engine does it, and the packed engine itself where that is it."""

    prober: ChunkProber
    prompter: Prompter
    engine: str
    packed: PackedEngine | None


class AuditContext(NamedTuple):
    """All that an audit computes with in this process."""

    loaded: loading.Loaded
    probing: OpenProber
    plan: PromptPlan
    protocol: dict[str, Any]
    fluency: Fluency


NumberedChunks = Sequence[tuple[int, pl.DataFrame]]
"""Parts of a plan with their numbers in it."""


class Executor(Protocol):
    """Who does an audit's work: this process (`LocalExecutor`), a Ray cluster (`RayExecutor`) or a server
    (`ServerExecutor`). A result depends on rows and settings only, never on which of them computes it.

    `model`: name, fingerprint, folder, note. `plan`: what is asked. `protocol`: how, for the summary.
    """

    @property
    def model(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def plan(self) -> PromptPlan: ...  # noqa: D102
    @property
    def protocol(self) -> dict[str, Any]: ...  # noqa: D102

    def probe(self, chunks: NumberedChunks) -> Iterable[ChunkResult]:
        """Probe numbered chunks; each comes back as it is finished, in any order."""
        ...

    def score(self, chunks: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Score numbered rows with long answers (`surprisal.LONG`); each comes back as it is finished."""
        ...

    def compare_precision(self, probes: pl.DataFrame) -> dict[str, Any] | None:
        """Count what the dtype changes in `probes`; None where there is nothing to compare."""
        ...

    def fluency(self) -> dict[str, Any]:
        """Tell whether the model speaks at all (`Fluency.summary`)."""
        ...


class ChunkResult(NamedTuple):
    """A finished chunk: its number in the plan, its frames, and a line of `COST`."""

    number: int
    chunk: Chunk
    cost: pl.DataFrame
