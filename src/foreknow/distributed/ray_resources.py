"""Divides the cores and GPUs of a Ray cluster among worker processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from foreknow.errors import ConfigError, ResourceError

logger = logging.getLogger(__name__)


class RayNode(NamedTuple):
    """A machine of the cluster: the cores and GPUs that Ray may assign."""

    cpus: int
    gpus: int


class WorkerSpec(NamedTuple):
    """The number of worker processes, the threads of each, and whether each has its own GPU."""

    workers: int
    threads: int
    gpu: bool

    def __str__(self) -> str:
        """Return the spec as text for messages."""
        processes = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{processes} with {self.threads} thread{'s' if self.threads > 1 else ''}{' and a GPU' * self.gpu} each"


def worker_capacity(nodes: Sequence[RayNode], threads: int, gpu: bool) -> int:
    """Return how many workers fit on these machines."""
    return sum(min(n.cpus // threads, n.gpus) if gpu else n.cpus // threads for n in nodes)


def worker_spec(
    nodes: Sequence[RayNode], workers: int | None, threads: int | None, gpu: bool, *, here: bool = False
) -> WorkerSpec:
    """Divide the cores: each worker gets as many threads as leave room for all workers, unless `threads` is given.

    Without `workers`: one per GPU, else one per 4 cores of a machine and at least one. `here`: the nodes are this
    machine. Raises ConfigError where the workers do not fit.
    """
    usable = [node for node in nodes if node.cpus and (node.gpus or not gpu)]
    wanted = workers or sum(node.gpus if gpu else max(1, node.cpus // 4) for node in usable)
    most = max((node.cpus for node in usable), default=0)
    fitting = [n for n in range(most, 0, -1) if worker_capacity(usable, n, gpu) >= max(wanted, 1)]
    if threads is None and fitting:
        return WorkerSpec(wanted, fitting[0], gpu)
    if threads is not None and 0 < wanted <= worker_capacity(usable, threads, gpu):
        return WorkerSpec(wanted, threads, gpu)
    cores, gpus, wanted = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes), max(wanted, 1)
    available = f"{cores} core{'s' * (cores != 1)}" + (f" and {gpus} GPU{'s' * (gpus != 1)}" if gpu else "")
    place = "this machine" if here else f"{len(nodes)} node{'s' * (len(nodes) != 1)} of the Ray cluster"
    threads_each = f" of {threads} thread{'s' * (threads > 1)} each (OMP_NUM_THREADS)" if threads else ""
    raise ConfigError(
        f"--ray{f'-workers {workers}' if workers else ''}: found {available} on {place}, expected room for {wanted} "
        f"worker{'s' * (wanted != 1)}{threads_each}; {_remedy(usable, threads, gpu, here)}"
    )


def _remedy(nodes: Sequence[RayNode], threads: int | None, gpu: bool, here: bool) -> str:
    """Return advice for the user where the workers do not fit."""
    most = worker_capacity(nodes, threads or 1, gpu)
    fewer = f"give --ray-workers {most}{' or fewer' * (most > 1)}" if most else ""
    fit_workers = "lower OMP_NUM_THREADS" if threads and threads > 1 and worker_capacity(nodes, 1, gpu) > most else ""
    added = "" if here else "add nodes to the cluster"
    return " or ".join(filter(None, (fewer, fit_workers, added))) or "leave --ray out"


def limit_workers(spec: WorkerSpec, parts: int, what: str) -> WorkerSpec:
    """Return the spec without idle workers; `parts`: the number of work items, each a `what`."""
    if not 0 < parts < spec.workers:
        return spec
    count = f"{parts:,} {what}s are" if parts > 1 else f"1 {what} is"
    logger.info(f"{count} left, so {parts:,} of the {spec.workers:,} workers start{'s' * (parts == 1)}")
    return spec._replace(workers=parts)


def fit_workers(spec: WorkerSpec, nodes: Sequence[RayNode]) -> WorkerSpec:
    """Return the spec that still fits, with the same threads each. Raises ResourceError where no worker fits."""
    left = min(spec.workers, worker_capacity(nodes, spec.threads, spec.gpu))
    if not left:
        raise ResourceError(
            "no node of the Ray cluster that has room for a worker is left; what is finished is kept, and the same "
            "command goes on"
        )
    return spec._replace(workers=left)
