"""How the cores and GPUs of a Ray cluster are shared out among worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foreknow.errors import ConfigError, ResourceError
from foreknow.progress import say


class RayNode(NamedTuple):
    """A machine of the cluster: cores and GPUs that Ray may give away."""

    cpus: int
    gpus: int


class WorkerSpec(NamedTuple):
    """So many worker processes, the threads each computes with, and whether each has a GPU of its own."""

    workers: int
    threads: int
    gpu: bool

    def __str__(self) -> str:
        """As it is told."""
        processes = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{processes} with {self.threads} thread{'s' if self.threads > 1 else ''}{' and a GPU' * self.gpu} each"


def room(nodes: Sequence[RayNode], threads: int, gpu: bool) -> int:
    """How many workers fit on these machines."""
    return sum(min(n.cpus // threads, n.gpus) if gpu else n.cpus // threads for n in nodes)


def worker_spec(
    nodes: Sequence[RayNode], workers: int | None, threads: int | None, gpu: bool, *, here: bool = False
) -> WorkerSpec:
    """How the cores are shared out: as many threads each as leave room for all workers, unless `threads` is given.

    Without `workers`: one a GPU, else one for every 4 cores of a machine and at least one. `here`: the nodes are this
    machine. Raises ConfigError where there is no room for so many.
    """
    some = [node for node in nodes if node.cpus and (node.gpus or not gpu)]
    wanted = workers or sum(node.gpus if gpu else max(1, node.cpus // 4) for node in some)
    most = max((node.cpus for node in some), default=0)
    fitting = [n for n in range(most, 0, -1) if room(some, n, gpu) >= max(wanted, 1)]
    if threads is None and fitting:
        return WorkerSpec(wanted, fitting[0], gpu)
    if threads is not None and 0 < wanted <= room(some, threads, gpu):
        return WorkerSpec(wanted, threads, gpu)
    cores, gpus, wanted = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes), max(wanted, 1)
    have = f"{cores} core{'s' * (cores != 1)}" + (f" and {gpus} GPU{'s' * (gpus != 1)}" if gpu else "")
    where = "this machine" if here else f"{len(nodes)} node{'s' * (len(nodes) != 1)} of the Ray cluster"
    each = f" of {threads} thread{'s' * (threads > 1)} each (OMP_NUM_THREADS)" if threads else ""
    raise ConfigError(
        f"--ray{f'-workers {workers}' if workers else ''}: found {have} on {where}, expected room for {wanted} "
        f"worker{'s' * (wanted != 1)}{each}; {_remedy(some, threads, gpu, here)}"
    )


def _remedy(nodes: Sequence[RayNode], threads: int | None, gpu: bool, here: bool) -> str:
    """What to do where there is no room for so many workers."""
    most = room(nodes, threads or 1, gpu)
    fewer = f"give --ray-workers {most}{' or fewer' * (most > 1)}" if most else ""
    smaller = "lower OMP_NUM_THREADS" if threads and threads > 1 and room(nodes, 1, gpu) > most else ""
    added = "" if here else "add nodes to the cluster"
    return " or ".join(filter(None, (fewer, smaller, added))) or "leave --ray out"


def needed(crew: WorkerSpec, parts: int, what: str) -> WorkerSpec:
    """The crew without the workers that would have nothing to do; `parts`: how many pieces of work, each a `what`."""
    if not 0 < parts < crew.workers:
        return crew
    some = f"{parts:,} {what}s are" if parts > 1 else f"1 {what} is"
    say(f"{some} left, so {parts:,} of the {crew.workers:,} workers start{'s' * (parts == 1)}")
    return crew._replace(workers=parts)


def smaller(crew: WorkerSpec, nodes: Sequence[RayNode]) -> WorkerSpec:
    """The crew that still fits, with the same threads each. Raises ResourceError where not one worker does."""
    left = min(crew.workers, room(nodes, crew.threads, crew.gpu))
    if not left:
        raise ResourceError(
            "no node of the Ray cluster that has room for a worker is left; what is finished is kept, and the same "
            "command goes on"
        )
    return crew._replace(workers=left)
