"""Tracks the workers of a Ray cluster: which are alive, how often each task was started, and what was lost."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from foreknow.distributed.ray_resources import WorkerSpec, worker_capacity

if TYPE_CHECKING:
    from foreknow.distributed.ray_cluster import Cluster

logger = logging.getLogger(__name__)

TRIES: Final = 3
"""How often the same chunk or run may end its process before it counts as failed."""
EVERY: Final = 2.0
"""Seconds between checks of the cluster."""


class WorkerRegistry:
    """An actor on the driver's machine to which workers report: which are alive, and how often each task started."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.arrivals: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.restarts = 0

    def arrive(self, worker: str, handle: Sequence[Any]) -> int:
        """Register a worker's start; return how often it started since it last began a task."""
        self.restarts += worker in self.handles
        self.handles[worker] = handle[0]
        self.arrivals[worker] += 1
        return self.arrivals[worker]

    def begin(self, worker: str, what: str) -> int:
        """Record that a worker begins `what`; return how often that was begun."""
        self.arrivals[worker] = 0
        self.begun[what] += 1
        return self.begun[what]

    def begin_task(self, what: str) -> int:
        """Record that a Ray task without a worker begins `what`; return how often that was begun."""
        self.begun[what] += 1
        self.restarts += self.begun[what] > 1
        return self.begun[what]

    def status(self) -> tuple[int, list[Any]]:
        """Return the number of restarts so far, and the workers' handles."""
        return self.restarts, list(self.handles.values())


def start_registry(cluster: Cluster) -> Any:
    """Start the registry on the driver's own machine, so that it lives as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=False)
    return cluster.ray.remote(WorkerRegistry).options(num_cpus=0, scheduling_strategy=here).remote()


class ClusterMonitor:
    """Checks the cluster regularly: reports losses, and ends workers that can no longer continue.

    `what`: what a lost process was computing. Workers that would wait for ever for a lost machine are killed, so that
    the code that waits for them gets an error; `lost` is True then.
    """

    def __init__(self, cluster: Cluster, registry: Any, spec: WorkerSpec, what: str):
        self.cluster, self.registry, self.spec, self.what = cluster, registry, spec, what
        self.lost = False
        self.restarts, self.size = 0, len(cluster.nodes())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ClusterMonitor:
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        if error is None:
            self._try_check()

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._try_check()

    def _try_check(self) -> None:
        with contextlib.suppress(Exception):  # the next check follows a failed one
            self.check_once()

    def check_once(self) -> None:
        """Check the cluster once."""
        nodes = self.cluster.nodes()
        restarts, workers = self.cluster.ray.get(self.registry.status.remote(), timeout=10)
        if restarts > self.restarts:
            logger.info(f"a Ray worker was lost (killed, or out of memory): started again, with its {self.what}")
        self.restarts = restarts
        if len(nodes) < self.size:
            logger.info(f"a node of the Ray cluster was lost: {len(nodes)} of {self.size} are left")
            if workers and worker_capacity(nodes, self.spec.threads, self.spec.gpu) < self.spec.workers:
                self.lost = True
                for worker in workers:
                    self.cluster.ray.kill(worker)
        self.size = len(nodes)
