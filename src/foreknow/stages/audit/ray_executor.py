"""The executor of an audit on Ray Data: actors that hold the model probe whole chunks with the same function as one
process does.

    driver   reads the input, draws exemplars (no weights), writes every chunk to the run folder when it arrives
    worker   loads the model once, computes with a fixed number of threads, returns chunks in any order

A chunk is a row of the Ray dataset: its number and its rows as Arrow. Ray restarts a worker that is lost and computes
its chunk again. A failure that Ray cannot repair ends a round; the next round computes the chunks that are missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

import polars as pl

from foreknow.config import AuditConfig
from foreknow.distributed.ray_cluster import Cluster, absolute
from foreknow.distributed.ray_errors import as_foreknow_error, check_version, error_from_dict, error_to_dict
from foreknow.distributed.ray_monitor import TRIES, ClusterMonitor, start_registry
from foreknow.distributed.ray_resources import WorkerSpec, fit_workers, limit_workers
from foreknow.errors import ModelError, ResourceError, first_line
from foreknow.inference.exact_probe import Chunk
from foreknow.models import loading
from foreknow.models.fluency import check_fluency
from foreknow.models.resolve import resolve
from foreknow.progress import log_to_stderr
from foreknow.prompts.prompt_template import Prompter
from foreknow.settings import settings_of
from foreknow.stages.audit import precision_check
from foreknow.stages.audit.chunks import COST, label_spans, open_span_prober, probe_chunks, score_long_answers
from foreknow.stages.audit.executor import AuditInputs, ChunkResult, NumberedChunks, PromptPlan
from foreknow.stages.audit.precision_check import sample
from foreknow.stages.audit.setup import build_prompt_plan, open_prober, print_choices, protocol_of
from foreknow.version import __version__

logger = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["probes", "long", "spans"]
BEHIND: Final = 2
"""Chunks that a worker holds at once: the one it computes and the next."""


class Task(NamedTuple):
    """Everything that a worker receives, as plain values. `plan` has no rows; they arrive chunk by chunk."""

    kind: Kind
    settings: dict[str, Any]
    plan: PromptPlan
    fingerprint: str
    threads: int
    version: str


class RayExecutor:
    """Has a cluster's workers do an audit's work. This process reads no weights."""

    def __init__(self, config: AuditConfig, inputs: AuditInputs, identity: dict[str, Any], cluster: Cluster):
        self.cluster, self.worker_spec = cluster, cluster.worker_spec(identity["device"])
        self.dtype, self.fingerprint = identity["dtype"], identity["model"]
        resolved_model = resolve(config.model, trust_remote_code=config.trust_remote_code, base=config.base)
        tokenizer = loading.load_tokenizer(resolved_model, config.trust_remote_code)
        positions = loading.max_positions(resolved_model, config.trust_remote_code)
        self.model: dict[str, Any] = resolved_model.summary
        self.plan = build_prompt_plan(config, inputs, tokenizer, positions)
        prompter = Prompter(tokenizer, self.plan.template, config.uses_chat_template, config.bos)
        print_choices(inputs, self.plan, prompter)
        cluster.start()
        logger.info(
            f"Ray {cluster.version}: {self.worker_spec}, on "
            f"{'this machine' if not cluster.address else cluster.address}"
        )
        self.settings = {**config.resolved(), "device": identity["device"], "dtype": self.dtype}
        self.settings |= {"model": absolute(config.model), "base": absolute(config.base)}
        plan = self.plan
        self.bare = plan._replace(every=plan.every.clear(), rows=plan.rows.clear(), long=plan.long.clear())
        self.protocol = protocol_of(config, plan, prompter, identity["device"], self.dtype)
        self.checked: dict[str, Any] = {}

    def probe(self, chunks: NumberedChunks) -> Iterator[ChunkResult]:
        """Probe numbered chunks; yield each result when a worker finishes it."""
        some = limit_workers(self.worker_spec, len(chunks), "chunk")
        by = {"workers": some.workers, "ray": self.cluster.version}
        for number, (probes, answers, cost) in self._parts("probes", some, chunks):
            whose = [pl.lit(value, COST[name]).alias(name) for name, value in by.items()]
            yield ChunkResult(number, Chunk(probes, answers), cost.with_columns(whose))

    def score(self, chunks: NumberedChunks) -> Iterator[tuple[int, pl.DataFrame]]:
        """Score numbered rows with long answers; yield each part when a worker finishes it."""
        for number, (lines,) in self._parts(
            "long", limit_workers(self.worker_spec, len(chunks), "long-answer chunk"), chunks
        ):
            yield number, lines

    def label_spans(self, chunks: NumberedChunks) -> Iterator[tuple[int, pl.DataFrame]]:
        """Label the fact spans of numbered rows; yield each part when a worker finishes it."""
        some = limit_workers(self.worker_spec, len(chunks), "long-answer chunk")
        for number, (lines,) in self._parts("spans", some, chunks):
            yield number, lines

    def compare_precision(self, probes: pl.DataFrame) -> dict[str, Any] | None:
        """Have a worker probe a few rows again in float32 and count what differs."""
        if self.dtype == "float32" or self.plan.rows.is_empty():
            return None
        few = self.bare._replace(rows=sample(self.plan.rows))
        ours = probes.join(few.rows.select("row"), on="row", how="semi")
        return self._once(partial(_compare, fingerprint=self.fingerprint, plan=few, probes=ours, dtype=self.dtype))

    def fluency(self) -> dict[str, Any]:
        """Return the model's fluency as the first worker measured it."""
        if not self.checked:  # every chunk was finished before, so no worker has loaded the model
            self.checked["fluency"] = self._once(partial(_fluency, fingerprint=self.fingerprint))
        return cast("dict[str, Any]", self.checked["fluency"])

    def _once(self, work: Callable[[AuditConfig], T]) -> T:
        """Run `work` in a process of the cluster, print here what it prints there, and return its result."""
        task = self.cluster.ray.remote(_once).options(
            num_cpus=self.worker_spec.threads, num_gpus=int(self.worker_spec.gpu)
        )
        try:
            lines, result = self.cluster.ray.get(task.remote(work, self.settings, self.worker_spec.threads))
        except self.cluster.ray.exceptions.RayError as error:
            raise as_foreknow_error(error) from None
        for line in lines:
            logger.info(line)
        return cast("T", result)

    def _parts(self, kind: Kind, some: WorkerSpec, chunks: NumberedChunks) -> Iterator[tuple[int, list[pl.DataFrame]]]:
        task = Task(kind, self.settings, self.bare, self.fingerprint, some.threads, __version__)
        return _parts(self.cluster, some, task, dict(chunks), self.checked)


def _once(work: Callable[[AuditConfig], T], settings: dict[str, Any], threads: int) -> tuple[list[str], T]:
    """Run `work` in this process of the cluster, and return the lines it prints and its result."""
    import torch

    torch.set_num_threads(threads)
    log_to_stderr()
    lines = io.StringIO()
    with contextlib.redirect_stderr(lines):
        result = work(settings_of(AuditConfig, settings))
    return lines.getvalue().splitlines(), result


def _compare(
    config: AuditConfig, *, fingerprint: str, plan: PromptPlan, probes: pl.DataFrame, dtype: str
) -> dict[str, Any] | None:
    """Run `precision_check.compare_precision` for the model with this fingerprint. Raises ModelError for other
    files."""
    resolved_model = resolve(config.model, trust_remote_code=config.trust_remote_code, base=config.base)
    _check_same(config, resolved_model.fingerprint, fingerprint)
    return precision_check.compare_precision(config, plan, probes, dtype)


def _fluency(config: AuditConfig, *, fingerprint: str) -> dict[str, Any]:
    """Measure how fluent the model with this fingerprint is (`Fluency.summary`). Raises ModelError for other files."""
    return check_fluency(_load_checked(config, fingerprint), logger.info).summary


def _load_checked(config: AuditConfig, fingerprint: str) -> loading.Loaded:
    """Load the model from the files of this node. Raises ModelError if they are not the same as the driver's."""
    loaded = loading.load_from_settings(config)
    _check_same(config, loaded.fingerprint, fingerprint)
    return loaded


def _check_same(config: AuditConfig, fingerprint: str, expected: str) -> None:
    if fingerprint != expected:
        raise ModelError(
            f"--model {config.model}: found other files on a node of the Ray cluster ({fingerprint[:19]}, expected "
            f"{expected[:19]}); copy the model's files to every node, or name a folder that all of them read"
        )


def _parts(
    cluster: Cluster, spec: WorkerSpec, task: Task, remaining: dict[int, pl.DataFrame], checked: dict[str, Any]
) -> Iterator[tuple[int, list[pl.DataFrame]]]:
    """Yield each part's number and frames once, in any order.

    `checked`: receives the first worker's `fluency` of the model. Raises a worker's error, and ResourceError if no
    worker stays alive.
    """
    printed_lines: set[str] = set()
    idle = 0
    while remaining:
        before = len(remaining)
        failure: Exception = ResourceError("Ray Data ended before every chunk had come back")
        try:
            for part in _round(cluster, spec, task, remaining):
                for line in (part["said"] or "").splitlines():
                    if line not in printed_lines:
                        logger.info(line)
                    printed_lines.add(line)
                if part["failed"]:
                    raise error_from_dict(part["failed"])
                checked.setdefault("fluency", json.loads(part["fluency"]))
                if remaining.pop(part["number"], None) is not None:
                    yield part["number"], [pl.read_ipc(frame) for frame in part["frames"]]
        except cluster.ray.exceptions.RayError as error:
            failure = as_foreknow_error(error)
        if not remaining:
            return
        idle = 0 if len(remaining) < before else idle + 1
        if idle == TRIES or not isinstance(failure, ResourceError):
            raise failure
        spec = fit_workers(spec, cluster.nodes())
        logger.info(
            f"{first_line(failure).partition('; what is finished')[0]}: going on with {spec}, "
            f"{len(remaining):,} chunks are left"
        )


def _round(cluster: Cluster, spec: WorkerSpec, task: Task, left: dict[int, pl.DataFrame]) -> Iterator[dict[str, Any]]:
    """Execute Ray Data once over the remaining parts, and yield each result when it arrives.

    Ray Data stops reading ahead while the caller does not consume results.
    """
    import pyarrow as pa
    import ray.data

    registry = start_registry(cluster)
    tables = (pa.table({"number": [number], "rows": [_bytes(frame)]}) for number, frame in left.items())
    held: list[Any] = [ray.put(table) for table in tables]
    data = ray.data.from_arrow_refs(held)
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_no_progress_timeout_s = -1  # a chunk may take any time
    workers = min(spec.workers, len(left))
    done = data.map_batches(
        Worker,
        fn_constructor_args=(task, registry),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=BEHIND),
        num_cpus=spec.threads,
        num_gpus=1 if spec.gpu else 0,
    )
    batch: Any
    with ClusterMonitor(cluster, registry, spec._replace(workers=workers), "chunk"):
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


class Worker:
    """An actor of Ray Data that loads the model once and computes one part of the work at each call.

    It returns an error as plain values, so that the driver can raise the same error. Ray handles only what ends the
    process.
    """

    def __init__(self, task: Task, registry: Any):
        import ray

        log_to_stderr()

        self.registry, self.name = registry, ray.get_runtime_context().get_actor_id()
        self.failed: dict[str, str] | None = None
        self.fluency: dict[str, Any] = {}
        self.log = io.StringIO()
        arrived = ray.get(registry.arrive.remote(self.name, [ray.get_runtime_context().current_actor]))
        self.work = self._capture(lambda: self._load(task, arrived))

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """Compute one part. `batch`: an Arrow table with the part's number and its rows."""
        (part,) = batch.to_pylist()
        number, frames = part["number"], None
        if self.work is not None:
            frames = self._capture(lambda: self._run_chunk(number, part["rows"]))
        log, self.log = self.log.getvalue(), io.StringIO()
        fluency = json.dumps(self.fluency)
        return {
            "number": [number],
            "frames": [frames],
            "said": [log],
            "failed": [self.failed],
            "fluency": [fluency],
        }

    def _load(self, task: Task, arrived: int) -> Callable[[int, pl.DataFrame], Sequence[pl.DataFrame]]:
        """Load the model, and return the function that computes a part. Raises ResourceError after too many tries."""
        import torch

        check_version(task.version)
        if arrived > TRIES:
            raise ResourceError(
                f"a Ray worker was lost {TRIES} times while it loaded the model: out of memory? Lower --ray-workers"
            )
        torch.set_num_threads(task.threads)
        config = settings_of(AuditConfig, task.settings)
        loaded = _load_checked(config, task.fingerprint)
        self.fluency = check_fluency(loaded, logger.info).summary
        if task.kind == "long":
            prompter = Prompter(loaded.tokenizer, task.plan.template, config.uses_chat_template, config.bos)
            tokens = int(config.batch_tokens or 2048)
            return lambda number, rows: [
                lines for _, lines in score_long_answers(loaded, prompter, [(number, rows)], tokens)
            ]
        self.open = contextlib.ExitStack()
        if task.kind == "spans":
            plan = task.plan.spans
            assert plan is not None
            prompter = Prompter(loaded.tokenizer, task.plan.template, config.uses_chat_template, config.bos)
            prober = self.open.enter_context(open_span_prober(loaded, prompter, config, plan))
            return lambda number, rows: [lines for _, lines in label_spans(prober, plan.finder, [(number, rows)])]
        probing = self.open.enter_context(open_prober(config, loaded, task.plan))

        def probe(number: int, rows: pl.DataFrame) -> Sequence[pl.DataFrame]:
            (done,) = probe_chunks(probing, [(number, rows)])
            return (*done.chunk, done.cost)

        return probe

    def _run_chunk(self, number: int, rows: bytes) -> list[bytes]:
        import ray

        assert self.work is not None
        if ray.get(self.registry.begin.remote(self.name, str(number))) > TRIES:
            raise ResourceError(
                f"chunk {number} ended its Ray worker {TRIES} times: out of memory? Finished chunks are kept; lower "
                "--batch-tokens or --ray-workers and run the same command again"
            )
        return [_bytes(frame) for frame in self.work(number, pl.read_ipc(rows))]

    def _capture(self, do: Callable[[], T]) -> T | None:
        """Return what `do` returns, or None after an error. The error and printed lines are stored for the driver."""
        with contextlib.redirect_stderr(self.log):
            try:
                return do()
            except Exception as error:
                self.failed = error_to_dict(error)
                return None


def _bytes(frame: pl.DataFrame) -> bytes:
    return frame.write_ipc(None).getvalue()
