"""Ray, as audits and studies use it: a cluster started or joined, and its cores shared out.

    ray_resources.py             how many workers, with how many cores each
    ray_monitor.py      which workers are there, and what was lost
    ray_errors.py       a worker's error, raised again by the driver
    stages/audit/ray_executor.py    Ray Data: actors that hold the model, chunks of rows
    stages/study/ray_executor.py   one Ray task a run

A cluster started here listens on this machine only and ends with this process, however that ends. One that was
joined is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from foreknow.distributed.ray_errors import of_ours
from foreknow.distributed.ray_resources import RayNode, WorkerSpec, worker_spec
from foreknow.errors import ConfigError, ForeknowError, MissingExtra, first_line
from foreknow.models import loading
from foreknow.progress import say

OBJECTS: Final = 512 * 2**20
"""Bytes of shared memory for what is under way, of a cluster started here."""
ANSWER: Final = 10.0
"""Seconds in which something must answer at a cluster's address."""
_OURS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Nothing is reported to anyone; no call starts a cluster by itself; Ray's own log lines stay in its log files."""
_FEW: Final = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""What is at an address is asked twice whether it is Ray, 40 seconds each, not twenty times."""


class RaySettings(Protocol):
    """Settings that say where to compute."""

    @property
    def ray(self) -> bool: ...  # noqa: D102
    @property
    def ray_address(self) -> str | None: ...  # noqa: D102
    @property
    def ray_workers(self) -> int | None: ...  # noqa: D102


def package() -> Any:
    """Ray. Raises MissingExtra where it is not installed."""
    for name, value in _OURS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("--ray: Ray is not installed: pip install 'foreknow[ray]'") from None
    return ray


@contextlib.contextmanager
def joined(config: RaySettings) -> Iterator[Cluster | None]:
    """The cluster that the settings ask for, started when it is first needed; None where they ask for none."""
    if not config.ray and config.ray_address is None:
        yield None
        return
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    cluster = Cluster(None if address == "local" else address, config.ray_workers)
    try:
        yield cluster
    finally:
        cluster.leave()


class Cluster:
    """A Ray cluster. `address`: where it runs; None: on this machine, for this process."""

    def __init__(self, address: str | None, workers: int | None):
        if address is not None and address.startswith("ray:"):
            raise ConfigError(
                f"--ray-address {address}: Ray's client addresses cannot be used; run the same command on a machine "
                "of the cluster, or through 'ray job submit'"
            )
        self.address, self.workers = address, workers
        threads = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(threads) if threads.isdigit() and int(threads) else None
        ahead = _FEW if address else _for_this_machine()
        self._alone = {name: value for name, value in ahead.items() if name not in os.environ}
        os.environ.update(self._alone)
        self.ray = package()
        self.running = self.ray.is_initialized()
        self.ours = not self.running
        self._undo: Callable[[], None] = lambda: None

    @property
    def version(self) -> str:
        """Ray's version."""
        return str(self.ray.__version__)

    def start(self) -> None:
        """Start or join the cluster, if that is not done."""
        if self.running:
            return
        started = {"include_dashboard": False, "object_store_memory": OBJECTS, "num_cpus": os.cpu_count() or 1}
        where = {"address": self.address} if self.address else {"address": "local", **started}
        try:
            with _sigterm_kept(), _mute_start():
                if self.address:
                    _check_answers(self.address)
                self.ray.init(**where, log_to_driver=False, logging_level="CRITICAL")
        except ForeknowError:
            raise
        except (Exception, SystemExit) as error:
            what = f"--ray-address {self.address}: cannot be joined" if self.address else "Ray could not be started"
            raise ConfigError(f"{what}: {first_line(error)}") from None
        self.running = True
        self._undo = _mute()
        at = self.ray.util.get_node_ip_address()
        if not self.address and not at.startswith("127."):
            say(f"Ray was in use before: its cluster listens on {at}, not on this machine only")

    def leave(self) -> None:
        """End the cluster that was started here, or part from the one that was joined."""
        if self.running and self.ours:
            self._undo()
            self.ray.shutdown()
            self.running = False
        for name in self._alone:
            os.environ.pop(name, None)

    def nodes(self) -> list[RayNode]:
        """The machines that are alive; this one's, before a cluster of its own is started."""
        if not self.running and not self.address:
            return [RayNode(os.cpu_count() or 1, _gpus_here())]
        self.start()
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [RayNode(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in alive]

    def crew(self, device: str) -> WorkerSpec:
        """How the cluster's cores are shared out for computing on `device`. Raises ConfigError for too few."""
        gpu = device.startswith("cuda")
        return worker_spec(self.nodes(), self.workers, self.threads, gpu, here=not self.address)

    def resolve_device_dtype(self, device: str, dtype: str) -> tuple[str, str]:
        """The device and dtype that workers compute in, as `loading.resolve_device_dtype` chooses there."""
        device = device.partition(":")[0]  # Ray chooses which GPU a worker sees
        if not self.address:
            return loading.resolve_device_dtype(device, dtype)
        self.start()
        gpu = device != "cpu" and any(node.gpus for node in self.nodes())
        ask = self.ray.remote(loading.resolve_device_dtype).options(num_cpus=0, num_gpus=0.01 if gpu else 0)
        try:
            found: tuple[str, str] = self.ray.get(ask.remote(device, dtype))
        except self.ray.exceptions.RayError as error:
            raise of_ours(error) from None
        return found


def absolute(value: Any) -> Any:
    """The name of a file that exists here, or a mapping to such names, so that it is found from any folder; any other
    value as it is."""
    if isinstance(value, dict):
        return {key: absolute(one) for key, one in value.items()}
    path = Path(value).expanduser() if isinstance(value, str) and value else None
    return str(path.resolve()) if path is not None and path.exists() else value


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _for_this_machine() -> dict[str, str]:
    """What Ray must know before it is imported: to listen on this machine only, behind a token of this process."""
    # what Ray calls clusters that are for more than one machine
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        alone |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return alone


def _check_answers(address: str) -> None:
    """Raises ConfigError where nothing answers at `address`: Ray would ask for a quarter of an hour."""
    if "://" in address:
        return
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:  # a private name: without it, Ray itself asks, and takes its time
        return
    try:  # Ray takes this machine's address for localhost, and looks up 'auto'
        found = canonicalize_bootstrap_address(address)
        host, _, port = (found or "").rpartition(":")
        at = host.strip("[]"), int(port or 0)
    except TypeError:  # another version's takes other arguments
        return
    except ValueError:
        raise ConfigError(f"--ray-address: found {address}, expected host:port, 'auto' or 'local'") from None
    if found is None:
        return
    try:
        socket.create_connection(at, ANSWER).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--ray-address {address}: nothing answers there ({why}); give the address that 'ray start --head' printed"
        ) from None


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give SIGTERM back to whom Ray takes it from: Ray would print a stack trace of C++ at one and exit with 15.

    One that comes meanwhile is sent again. Ray's reports of real faults (SIGSEGV, SIGABRT) stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, came = signal.getsignal(signal.SIGTERM), None
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        came = error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if came:
        signal.raise_signal(signal.SIGTERM)
        raise came


@contextlib.contextmanager
def _mute_start() -> Iterator[None]:
    """Keep what Ray's processes print while they start off the terminal; an error comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _mute() -> Callable[[], None]:
    """Keep Ray's own reports off the terminal: they go to standard output, which is for results. Returns the undo."""
    import importlib
    import logging

    logger = logging.getLogger("ray.data")
    before, logger.handlers = logger.handlers, [h for h in logger.handlers if type(h).__name__ == "SessionFileHandler"]
    driver: Any = None
    with contextlib.suppress(ImportError):
        driver = importlib.import_module("ray._private.worker")
    # a private name: where it is another, Ray's reports are seen
    printed = getattr(driver, "print_to_stdstream", None)
    if printed is not None:
        driver.print_to_stdstream = lambda *_, **__: None

    def undo() -> None:
        logger.handlers = before
        if printed is not None:
            driver.print_to_stdstream = printed

    return undo
