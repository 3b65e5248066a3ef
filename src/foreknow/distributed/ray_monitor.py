"""Which workers of a Ray cluster are there, how often each piece of work was begun, and what was lost on the way."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from foreknow.distributed.ray_resources import WorkerSpec, room
from foreknow.progress import say

if TYPE_CHECKING:
    from foreknow.distributed.ray_cluster import Cluster

TRIES: Final = 3
"""How often the same chunk or run may end its process before it is given up."""
EVERY: Final = 2.0
"""Seconds between looks at the cluster."""


class WorkerRegistry:
    """An actor beside the driver that workers report to: who is at work, and what was begun how often."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.arrivals: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.restarts = 0

    def arrive(self, worker: str, handle: Sequence[Any]) -> int:
        """A worker is here; how often it has been since it last began something."""
        self.restarts += worker in self.handles
        self.handles[worker] = handle[0]
        self.arrivals[worker] += 1
        return self.arrivals[worker]

    def begin(self, worker: str, what: str) -> int:
        """A worker begins something; how often that was begun."""
        self.arrivals[worker] = 0
        self.begun[what] += 1
        return self.begun[what]

    def again(self, what: str) -> int:
        """A task begins something that has no worker; how often it was begun."""
        self.begun[what] += 1
        self.restarts += self.begun[what] > 1
        return self.begun[what]

    def found(self) -> tuple[int, list[Any]]:
        """Restarts so far, and the workers."""
        return self.restarts, list(self.handles.values())


def start_registry(cluster: Cluster) -> Any:
    """A desk on the driver's own machine, which is not lost while the driver is there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=False)
    return cluster.ray.remote(WorkerRegistry).options(num_cpus=0, scheduling_strategy=here).remote()


class ClusterMonitor:
    """Looks at the cluster now and then: tells what was lost, and ends what can no longer be done.

    `what`: what a lost process was doing. Workers that would wait for ever for a machine that is gone are ended, so
    that whoever waits for them is told; `lost` says so.
    """

    def __init__(self, cluster: Cluster, desk: Any, crew: WorkerSpec, what: str):
        self.cluster, self.desk, self.crew, self.what = cluster, desk, crew, what
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
            self._try()

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._try()

    def _try(self) -> None:
        with contextlib.suppress(Exception):  # a look that fails is followed by another
            self.look()

    def look(self) -> None:
        """One look."""
        nodes = self.cluster.nodes()
        restarts, workers = self.cluster.ray.get(self.desk.found.remote(), timeout=10)
        if restarts > self.restarts:
            say(f"a Ray worker was lost (killed, or out of memory): started again, with its {self.what}")
        self.restarts = restarts
        if len(nodes) < self.size:
            say(f"a node of the Ray cluster was lost: {len(nodes)} of {self.size} are left")
            if workers and room(nodes, self.crew.threads, self.crew.gpu) < self.crew.workers:
                self.lost = True
                for worker in workers:
                    self.cluster.ray.kill(worker)
        self.size = len(nodes)
