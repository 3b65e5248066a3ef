"""An audit on Ray Data: actors that hold the model probe whole chunks, by the same function as one process does.

    driver   reads the input, draws exemplars (no weights), writes every chunk to the run folder as it comes
    worker   loads the model once, computes with a fixed number of threads, gives chunks back in any order

A chunk is a row of the data set: its number and its rows as Arrow. Ray starts a worker that is lost again and has its
chunk done again; what Ray cannot heal ends a round, and the next one does the chunks that have not come back.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

import polars as pl

from foreknow.audits import precision
from foreknow.audits.chunking import COST, Done, one_by_one, scored
from foreknow.audits.precision import sample
from foreknow.audits.prepare import Draw, Input, Job, Numbered, drawn, probing, protocol_of, tell
from foreknow.config import AuditConfig
from foreknow.errors import ModelError, ResourceError, first_line
from foreknow.lm import models
from foreknow.lm.cluster import Cluster, absolute
from foreknow.lm.crew import Crew, needed, smaller
from foreknow.lm.fluency import check_fluency
from foreknow.lm.model_names import resolve
from foreknow.lm.ray_errors import check_version, of_ours, raised, told
from foreknow.lm.ray_monitor import TRIES, Watch, desk_of
from foreknow.probing.probe import Chunk
from foreknow.progress import say
from foreknow.protocol.prompts import Prompter
from foreknow.settings import settings_of

T = TypeVar("T")
Kind = Literal["probes", "long"]
BEHIND: Final = 2
"""Chunks a worker has at hand: the one it computes and the next."""


class Task(NamedTuple):
    """All that a worker is given, as plain values. `draw`: without its rows, which come chunk by chunk."""

    kind: Kind
    settings: dict[str, Any]
    draw: Draw
    fingerprint: str
    threads: int
    version: str


@contextmanager
def job_on_ray(config: AuditConfig, given: Input, identity: dict[str, Any], cluster: Cluster) -> Iterator[Job]:
    """The work done by a cluster's workers. No weights are read here."""
    import foreknow

    device, dtype, fingerprint = identity["device"], identity["dtype"], identity["model"]
    crew = cluster.crew(device)
    found = resolve(config.model, trust_remote_code=config.trust_remote_code, base=config.base)
    tokenizer = models.tokenizer_of(found, config.trust_remote_code)
    positions = models.positions_of(found, config.trust_remote_code)
    draw = drawn(config, given, tokenizer, positions)
    prompter = Prompter(tokenizer, draw.template, config.chat_template, config.bos)
    tell(given, draw, prompter)
    cluster.start()
    say(f"Ray {cluster.version}: {crew}, on {'this machine' if not cluster.address else cluster.address}")
    settings = {**config.resolved(), "device": device, "dtype": dtype}
    settings |= {"model": absolute(config.model), "base": absolute(config.base)}
    bare = draw._replace(every=draw.every.clear(), rows=draw.rows.clear(), long=draw.long.clear())

    checked: dict[str, Any] = {}

    def once(work: Callable[[AuditConfig], T]) -> T:
        """What `work` returns in a process of the cluster; what it says there is said here."""
        task = cluster.ray.remote(_once).options(num_cpus=crew.threads, num_gpus=int(crew.gpu))
        try:
            lines, found = cluster.ray.get(task.remote(work, settings, crew.threads))
        except cluster.ray.exceptions.RayError as error:
            raise of_ours(error) from None
        for line in lines:
            say(line)
        return cast("T", found)

    def parts(kind: Kind, some: Crew, left: Numbered) -> Iterator[tuple[int, list[pl.DataFrame]]]:
        task = Task(kind, settings, bare, fingerprint, some.threads, foreknow.__version__)
        return _parts(cluster, some, task, dict(left), checked)

    def results(left: Numbered) -> Iterator[Done]:
        some = needed(crew, len(left), "chunk")
        by = {"workers": some.workers, "ray": cluster.version}
        for number, (probes, answers, cost) in parts("probes", some, left):
            whose = [pl.lit(value, COST[name]).alias(name) for name, value in by.items()]
            yield Done(number, Chunk(probes, answers), cost.with_columns(whose))

    def scores(left: Numbered) -> Iterator[tuple[int, pl.DataFrame]]:
        for number, (lines,) in parts("long", needed(crew, len(left), "long-answer chunk"), left):
            yield number, lines

    def compare(probes: pl.DataFrame) -> dict[str, Any] | None:
        if dtype == "float32" or draw.rows.is_empty():
            return None
        few = bare._replace(rows=sample(draw.rows))
        ours = probes.join(few.rows.select("row"), on="row", how="semi")
        return once(partial(_compare, fingerprint=fingerprint, draw=few, probes=ours, dtype=dtype))

    def fluency() -> dict[str, Any]:
        if not checked:  # every chunk was finished before, so no worker has loaded the model
            checked["fluency"] = once(partial(_fluency, fingerprint=fingerprint))
        return cast("dict[str, Any]", checked["fluency"])

    protocol = protocol_of(config, draw, prompter, device, dtype)
    yield Job(found.told, tokenizer, draw, protocol, results, scores, compare, fluency)


def _once(work: Callable[[AuditConfig], T], settings: dict[str, Any], threads: int) -> tuple[list[str], T]:
    """`work` in a process of the cluster: what it says, and what it returns."""
    import torch

    torch.set_num_threads(threads)
    lines = io.StringIO()
    with contextlib.redirect_stderr(lines):
        found = work(settings_of(AuditConfig, settings))
    return lines.getvalue().splitlines(), found


def _compare(
    config: AuditConfig, *, fingerprint: str, draw: Draw, probes: pl.DataFrame, dtype: str
) -> dict[str, Any] | None:
    """`precision.compare` of the model with this fingerprint."""
    found = resolve(config.model, trust_remote_code=config.trust_remote_code, base=config.base)
    _check_same(config, found.fingerprint, fingerprint)
    return precision.compare(config, draw, probes, dtype)


def _fluency(config: AuditConfig, *, fingerprint: str) -> dict[str, Any]:
    """Whether the model with this fingerprint speaks (`Fluency.summary`)."""
    return check_fluency(_loaded(config, fingerprint), say).summary


def _loaded(config: AuditConfig, fingerprint: str) -> models.Loaded:
    """The model, from the files of the node that this runs on. Raises ModelError where they are not the driver's."""
    loaded = models.load_as_set(config)
    _check_same(config, loaded.fingerprint, fingerprint)
    return loaded


def _check_same(config: AuditConfig, found: str, expected: str) -> None:
    if found != expected:
        raise ModelError(
            f"--model {config.model}: found other files on a node of the Ray cluster ({found[:19]}, expected "
            f"{expected[:19]}); copy the model's files to every node, or name a folder that all of them read"
        )


def _parts(
    cluster: Cluster, crew: Crew, task: Task, left: dict[int, pl.DataFrame], checked: dict[str, Any]
) -> Iterator[tuple[int, list[pl.DataFrame]]]:
    """Each part's number and frames, once, in any order. Raises a worker's error, and ResourceError where none stay.

    `checked` takes the first worker's `fluency` of the model.
    """
    heard: set[str] = set()
    idle = 0
    while left:
        before = len(left)
        why: Exception = ResourceError("Ray Data ended before every chunk had come back")
        try:
            for found in _round(cluster, crew, task, left):
                for line in (found["said"] or "").splitlines():
                    if line not in heard:
                        say(line)
                    heard.add(line)
                if found["failed"]:
                    raise raised(found["failed"])
                checked.setdefault("fluency", json.loads(found["fluency"]))
                if left.pop(found["number"], None) is not None:
                    yield found["number"], [pl.read_ipc(frame) for frame in found["frames"]]
        except cluster.ray.exceptions.RayError as error:
            why = of_ours(error)
        if not left:
            return
        idle = 0 if len(left) < before else idle + 1
        if idle == TRIES or not isinstance(why, ResourceError):
            raise why
        crew = smaller(crew, cluster.nodes())
        say(
            f"{first_line(why).partition('; what is finished')[0]}: going on with {crew}, {len(left):,} chunks are left"
        )


def _round(cluster: Cluster, crew: Crew, task: Task, left: dict[int, pl.DataFrame]) -> Iterator[dict[str, Any]]:
    """One execution of Ray Data over what is left. What comes back is handed on at once; Ray Data stops reading ahead
    where it is not taken."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import ray.data

    desk = desk_of(cluster)
    tables = (pa.table({"number": [number], "rows": [_bytes(frame)]}) for number, frame in left.items())
    held: list[Any] = [ray.put(table) for table in tables]
    data = ray.data.from_arrow_refs(held)
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_no_progress_timeout_s = -1  # a chunk may take as long as it takes
    workers = min(crew.workers, len(left))
    done = data.map_batches(
        Worker,
        fn_constructor_args=(task, desk),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=BEHIND),
        num_cpus=crew.threads,
        num_gpus=1 if crew.gpu else 0,
    )
    batch: Any
    with Watch(cluster, desk, crew._replace(workers=workers), "chunk"):
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


class Worker:
    """An actor of Ray Data: loads the model once, then does a part of the work at each call.

    An error is given back as plain values, so that the driver raises it as it was; only what ends the process is
    left to Ray.
    """

    def __init__(self, task: Task, desk: Any):
        import ray

        self.desk, self.name = desk, ray.get_runtime_context().get_actor_id()
        self.failed: dict[str, str] | None = None
        self.fluency: dict[str, Any] = {}
        self.said = io.StringIO()
        arrived = ray.get(desk.arrive.remote(self.name, [ray.get_runtime_context().current_actor]))
        self.work = self._kept(lambda: self._ready(task, arrived))

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """One part: a table with its number and its rows."""
        (part,) = batch.to_pylist()
        number, frames = part["number"], None
        if self.work is not None:
            frames = self._kept(lambda: self._done(number, part["rows"]))
        said, self.said = self.said.getvalue(), io.StringIO()
        fluency = json.dumps(self.fluency)
        return {
            "number": [number],
            "frames": [frames],
            "said": [said],
            "failed": [self.failed],
            "fluency": [fluency],
        }

    def _ready(self, task: Task, arrived: int) -> Callable[[int, pl.DataFrame], Sequence[pl.DataFrame]]:
        """Load the model. Returns what does a part."""
        import torch

        check_version(task.version)
        if arrived > TRIES:
            raise ResourceError(
                f"a Ray worker was lost {TRIES} times while it loaded the model: out of memory? Lower --ray-workers"
            )
        torch.set_num_threads(task.threads)
        config = settings_of(AuditConfig, task.settings)
        loaded = _loaded(config, task.fingerprint)
        self.fluency = check_fluency(loaded, say).summary
        if task.kind == "long":
            prompter = Prompter(loaded.tokenizer, task.draw.template, config.chat_template, config.bos)
            tokens = int(config.batch_tokens or 2048)
            return lambda number, rows: [lines for _, lines in scored(loaded, prompter, [(number, rows)], tokens)]
        self.open = contextlib.ExitStack()
        found = self.open.enter_context(probing(config, loaded, task.draw))

        def probed(number: int, rows: pl.DataFrame) -> Sequence[pl.DataFrame]:
            (done,) = one_by_one(found, [(number, rows)])
            return (*done.chunk, done.cost)

        return probed

    def _done(self, number: int, rows: bytes) -> list[bytes]:
        import ray

        assert self.work is not None
        if ray.get(self.desk.begin.remote(self.name, str(number))) > TRIES:
            raise ResourceError(
                f"chunk {number} ended its Ray worker {TRIES} times: out of memory? Finished chunks are kept; lower "
                "--batch-tokens or --ray-workers and run the same command again"
            )
        return [_bytes(frame) for frame in self.work(number, pl.read_ipc(rows))]

    def _kept(self, do: Callable[[], T]) -> T | None:
        """What `do` returns; an error is kept for the driver, and so is what is said."""
        with contextlib.redirect_stderr(self.said):
            try:
                return do()
            except Exception as error:
                self.failed = told(error)
                return None


def _bytes(frame: pl.DataFrame) -> bytes:
    return frame.write_ipc(None).getvalue()
