"""Starts or joins the Ray cluster that audits and studies use, and divides its cores among workers.

    ray_resources.py                how many workers, with how many cores each
    ray_monitor.py                  which workers are alive, and which were lost
    ray_errors.py                   sends a worker's error to the driver, which raises it
    stages/audit/ray_executor.py    Ray Data: actors that hold the model compute chunks of rows
    stages/study/ray_executor.py    one Ray task per run

A cluster started here listens on this machine only and ends with this process, even if that is killed. A joined
cluster is left unchanged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from foreknow.distributed.ray_errors import as_foreknow_error
from foreknow.distributed.ray_resources import RayNode, WorkerSpec, worker_spec
from foreknow.errors import ConfigError, ForeknowError, MissingExtra, first_line
from foreknow.models import loading

logger = logging.getLogger(__name__)

OBJECTS: Final = 512 * 2**20
"""Bytes of shared memory for data in transfer, in a cluster started here."""
ANSWER: Final = 10.0
"""Seconds within which a cluster's address must accept a connection."""
_VARIABLES: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""With these variables, Ray sends no usage reports, starts no cluster implicitly, and logs only to its log files."""
_FEW_RETRIES: Final = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""With this variable, Ray tries an address twice, 40 seconds each, instead of twenty times."""


class RaySettings(Protocol):
    """Settings that choose a Ray cluster."""

    @property
    def ray(self) -> bool: ...  # noqa: D102
    @property
    def ray_address(self) -> str | None: ...  # noqa: D102
    @property
    def ray_workers(self) -> int | None: ...  # noqa: D102


def package() -> Any:
    """Import and return Ray. Raises MissingExtra where it is not installed."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("--ray: Ray is not installed: pip install 'foreknow[ray]'") from None
    return ray


@contextlib.contextmanager
def open_cluster(config: RaySettings) -> Iterator[Cluster | None]:
    """Yield the cluster that the settings ask for, which starts when first needed; None if they ask for none."""
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
    """A Ray cluster. `address`: of a cluster to join; None: start one on this machine for this process."""

    def __init__(self, address: str | None, workers: int | None):
        if address is not None and address.startswith("ray:"):
            raise ConfigError(
                f"--ray-address {address}: Ray's client addresses cannot be used; run the same command on a machine "
                "of the cluster, or through 'ray job submit'"
            )
        self.address, self.workers = address, workers
        threads = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(threads) if threads.isdigit() and int(threads) else None
        ahead = _FEW_RETRIES if address else _local_only_variables()
        self._variables = {name: value for name, value in ahead.items() if name not in os.environ}
        os.environ.update(self._variables)
        self.ray = package()
        self.running = self.ray.is_initialized()
        self.ours = not self.running
        self._unmute: Callable[[], None] = lambda: None

    @property
    def version(self) -> str:
        """Return Ray's version."""
        return str(self.ray.__version__)

    def start(self) -> None:
        """Start or join the cluster, unless it is already running."""
        if self.running:
            return
        local_options = {"include_dashboard": False, "object_store_memory": OBJECTS, "num_cpus": os.cpu_count() or 1}
        options = {"address": self.address} if self.address else {"address": "local", **local_options}
        try:
            with _sigterm_kept(), _mute_start():
                if self.address:
                    _check_answers(self.address)
                self.ray.init(**options, log_to_driver=False, logging_level="CRITICAL")
        except ForeknowError:
            raise
        except (Exception, SystemExit) as error:
            problem = f"--ray-address {self.address}: cannot be joined" if self.address else "Ray could not be started"
            raise ConfigError(f"{problem}: {first_line(error)}") from None
        self.running = True
        self._unmute = _mute()
        ip_address = self.ray.util.get_node_ip_address()
        if not self.address and not ip_address.startswith("127."):
            logger.info(f"Ray was in use before: its cluster listens on {ip_address}, not on this machine only")

    def leave(self) -> None:
        """Shut down a cluster that was started here, or disconnect from one that was joined."""
        if self.running and self.ours:
            self._unmute()
            self.ray.shutdown()
            self.running = False
        for name in self._variables:
            os.environ.pop(name, None)

    def nodes(self) -> list[RayNode]:
        """Return the alive machines of the cluster; this machine, before its own cluster is started."""
        if not self.running and not self.address:
            return [RayNode(os.cpu_count() or 1, _local_gpu_count())]
        self.start()
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [RayNode(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]

    def worker_spec(self, device: str) -> WorkerSpec:
        """Divide the cluster's cores among workers that compute on `device`. Raises ConfigError for too few cores."""
        gpu = device.startswith("cuda")
        return worker_spec(self.nodes(), self.workers, self.threads, gpu, here=not self.address)

    def resolve_device_dtype(self, device: str, dtype: str) -> tuple[str, str]:
        """Return the device and dtype of workers, as `loading.resolve_device_dtype` chooses them on their machine."""
        device = device.partition(":")[0]  # Ray chooses which GPU a worker sees
        if not self.address:
            return loading.resolve_device_dtype(device, dtype)
        self.start()
        gpu = device != "cpu" and any(node.gpus for node in self.nodes())
        task = self.ray.remote(loading.resolve_device_dtype).options(num_cpus=0, num_gpus=0.01 if gpu else 0)
        try:
            resolved: tuple[str, str] = self.ray.get(task.remote(device, dtype))
        except self.ray.exceptions.RayError as error:
            raise as_foreknow_error(error) from None
        return resolved


def absolute(value: Any) -> Any:
    """Make the path of an existing file absolute, also in a mapping's values, so that workers find it from any folder.

    Returns any other value unchanged.
    """
    if isinstance(value, dict):
        return {key: absolute(item) for key, item in value.items()}
    path = Path(value).expanduser() if isinstance(value, str) and value else None
    return str(path.resolve()) if path is not None and path.exists() else value


def _local_gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _local_only_variables() -> dict[str, str]:
    """Return variables that Ray reads on import: listen on this machine only, and require a token of this process."""
    # Ray's name for clusters of more than one machine
    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return variables


def _check_answers(address: str) -> None:
    """Raise ConfigError where nothing answers at `address`: Ray would try for a quarter of an hour."""
    if "://" in address:
        return
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:  # a private name: without it, Ray itself tries, which takes long
        return
    try:  # Ray takes this machine's address for localhost, and looks up 'auto'
        resolved = canonicalize_bootstrap_address(address)
        host, _, port = (resolved or "").rpartition(":")
        host_port = host.strip("[]"), int(port or 0)
    except TypeError:  # another version's takes other arguments
        return
    except ValueError:
        raise ConfigError(f"--ray-address: found {address}, expected host:port, 'auto' or 'local'") from None
    if resolved is None:
        return
    try:
        socket.create_connection(host_port, ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--ray-address {address}: nothing answers there ({reason}); give the address that 'ray start --head' "
            "printed"
        ) from None


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the SIGTERM handler that Ray replaces: Ray's would print a C++ stack trace and exit with 15.

    Raises a SIGTERM that arrives meanwhile again. Ray's handlers of SIGSEGV and SIGABRT stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, terminated = signal.getsignal(signal.SIGTERM), None
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        terminated = error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if terminated:
        signal.raise_signal(signal.SIGTERM)
        raise terminated


@contextlib.contextmanager
def _mute_start() -> Iterator[None]:
    """Discard what Ray's processes print while they start; errors still arrive as exceptions."""
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)


def _mute() -> Callable[[], None]:
    """Silence Ray's own reports on standard output, which is for results; return a function that undoes this."""
    import importlib
    import logging

    logger = logging.getLogger("ray.data")
    before, logger.handlers = logger.handlers, [h for h in logger.handlers if type(h).__name__ == "SessionFileHandler"]
    driver: Any = None
    with contextlib.suppress(ImportError):
        driver = importlib.import_module("ray._private.worker")
    # a private name: if Ray renames it, its reports appear
    print_function = getattr(driver, "print_to_stdstream", None)
    if print_function is not None:
        driver.print_to_stdstream = lambda *_, **__: None

    def undo() -> None:
        logger.handlers = before
        if print_function is not None:
            driver.print_to_stdstream = print_function

    return undo
