"""Do the runs of a study on Ray, each in a task with its own cores and, where there are GPUs, its own GPU.

A task does what a process of the local pool does (`one_run.train_one_run`), in the same folder. Ray starts a lost task
again, and the task resumes inside its run. So every node must be able to read and write the study's folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foreknow.config import TuneConfig
from foreknow.distributed.ray_cluster import Cluster, absolute
from foreknow.distributed.ray_errors import as_foreknow_error, check_version, error_from_dict, error_to_dict
from foreknow.distributed.ray_monitor import EVERY, TRIES, ClusterMonitor, start_registry
from foreknow.distributed.ray_resources import limit_workers, worker_capacity
from foreknow.errors import ResourceError, RunFolderError
from foreknow.progress import log_to_stderr
from foreknow.settings import settings_of
from foreknow.stages.study.one_run import train_one_run
from foreknow.version import __version__

logger = logging.getLogger(__name__)


def runs_on_ray(
    left: Mapping[str, TuneConfig], folder: Path, cluster: Cluster, keep_weights: bool, done: Callable[[str], None]
) -> None:
    """Do the runs in tasks of the cluster. `folder` is the study's.

    Raises the error of a run that failed; the runs beside it are ended, and the next call resumes them. Raises
    RunFolderError where a node does not share the folder.
    """

    spec = cluster.worker_spec("cuda" if _on_gpu(cluster, left) else "cpu")
    cluster.start()
    ray = cluster.ray
    _check_shared(cluster, folder)
    logger.info(
        f"Ray {cluster.version}: {spec}, one a run, on {'this machine' if not cluster.address else cluster.address}"
    )
    spec = limit_workers(spec, len(left), "run")
    registry = start_registry(cluster)
    task = ray.remote(_run).options(
        num_cpus=spec.threads, num_gpus=int(spec.gpu), max_retries=TRIES, scheduling_strategy="SPREAD"
    )
    ready: list[Any]
    with ClusterMonitor(cluster, registry, spec, "run"):
        names = {
            task.remote(_placed(config), keep_weights, spec.threads, name, registry, __version__): name
            for name, config in left.items()
        }
        try:
            while names:
                ready, _ = ray.wait(list(names), timeout=EVERY)
                for ref in ready:
                    if failed := ray.get(ref):
                        raise error_from_dict(failed)
                    done(names.pop(ref))
                if not ready and not worker_capacity(cluster.nodes(), spec.threads, spec.gpu):
                    raise ResourceError(
                        "no node of the Ray cluster that has room for a run is left; what is finished is kept, and "
                        "the same command goes on"
                    )
        except ray.exceptions.RayError as error:
            raise as_foreknow_error(error) from None
        finally:
            for ref in names:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)


def _placed(config: TuneConfig) -> dict[str, Any]:
    """Return a run's settings with file paths that are valid whatever folder a process runs in."""
    found = config.resolved()
    files = (
        *("train", "dev", "test", "model", "base", "audit", "prompt_template", "templates"),
        *("canaries", "watch_known", "replay_from"),
    )
    return {**found, **{name: absolute(found[name]) for name in files}, "out": str(Path(str(config.out)).resolve())}


def _run(
    settings: dict[str, Any], keep_weights: bool, threads: int, name: str, registry: Any, version: str
) -> dict[str, str] | None:
    """Do one run in a process of the cluster, and return an error as plain values."""
    import ray
    import torch

    log_to_stderr()
    try:
        check_version(version)
        if ray.get(registry.begin_task.remote(name)) > TRIES:
            raise ResourceError(
                f"run {name}: its process was lost {TRIES} times: out of memory? What is finished is kept; lower "
                "--ray-workers and run the same command again"
            )
        torch.set_num_threads(threads)
        train_one_run(settings_of(TuneConfig, settings), keep_weights)
    except Exception as error:
        return error_to_dict(error)
    return None


def _on_gpu(cluster: Cluster, left: Mapping[str, TuneConfig]) -> bool:
    """Return whether each run gets a GPU: it does where there are any, unless the settings ask for the CPU."""
    asked = {config.device.partition(":")[0] for config in left.values()}
    return "cuda" in asked or ("cpu" not in asked and any(node.gpus for node in cluster.nodes()))


def _check_shared(cluster: Cluster, folder: Path) -> None:
    """Check that every node reads what this process writes, and the other way round. Raises RunFolderError."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray, word = cluster.ray, secrets.token_hex(8)
    mark = folder.resolve() / f".shared.{word}"
    mark.write_text(word, encoding="utf-8")
    look = ray.remote(_sees)
    try:
        for node in ray.nodes():
            if not node["Alive"] or not node["Resources"].get("CPU"):
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                seen = ray.get(look.options(num_cpus=0, scheduling_strategy=there).remote(str(mark), word))
            except ray.exceptions.RayError as error:
                raise as_foreknow_error(error) from None
            answer = mark.with_name(f"{mark.name}.{seen}")
            if not seen or not answer.is_file():
                raise RunFolderError(
                    f"{folder}: node {node['NodeManagerAddress']} of the Ray cluster cannot read and write it; "
                    "expected a file system that all nodes share"
                )
    finally:
        for file in folder.resolve().glob(f"{mark.name}*"):
            file.unlink(missing_ok=True)


def _sees(mark: str, word: str) -> str:
    """Write a node's answer beside a file that it can read, and return the answer; "" where it cannot read the file."""
    path, mine = Path(mark), f"{os.getpid()}-{secrets.token_hex(4)}"
    try:
        if path.read_text(encoding="utf-8") != word:
            return ""
        path.with_name(f"{path.name}.{mine}").write_text(word, encoding="utf-8")
    except OSError:
        return ""
    return mine
