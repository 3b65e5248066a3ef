"""Coordinates several processes that train one model: which one writes, how they join, and how they end together.

`accelerate launch` and `torchrun` start the same command once per process and number the processes in the
environment. The main process (rank 0) locks the run folder, writes files and prints; the others are silent. The first
process that fails reports its error and ends all others, so that none waits for one that is gone. With a single
process, nothing here has any effect.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

from foreknow.errors import ConfigError, ForeknowError, first_line

T = TypeVar("T")

WAIT: Final = timedelta(hours=1)
"""The longest time that processes wait for each other, as while one saves or downloads a model."""

_LOST: Final = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
_POLL: Final = 0.5
_GRACE: Final = 2.0
_RELEASE: Final = 0.1
"""Seconds for gloo's threads to release the last tensors."""
_REPORTER, _EXIT_CODE = "foreknow_reporter", "foreknow_exit_code"


def world_size() -> int:
    """Return the number of processes that train together."""
    return _int_from_env("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", default=1)


def rank() -> int:
    """Return the number of this process, from 0."""
    return (
        _int_from_env("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", default=0)
        if is_distributed()
        else 0
    )


def is_distributed() -> bool:
    """Return whether there is more than one process."""
    return world_size() > 1


def is_main_process() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def sharded() -> bool:
    """Return whether each process holds only a part of the weights (FSDP)."""
    return is_distributed() and _flag_from_env("ACCELERATE_USE_FSDP")


def can_shard() -> bool:
    """Return whether accelerate can shard between these processes, once they have joined: only on accelerators."""
    from accelerate import PartialState

    return str(PartialState().distributed_type.value) != "MULTI_CPU"


def uses_cpus() -> bool:
    """Return whether the launcher was told to use CPUs."""
    return is_distributed() and _flag_from_env("ACCELERATE_USE_CPU")


def is_single_process_launch() -> bool:
    """Return whether accelerate was asked for several processes on CPUs but started one, as it does without MPI."""
    asked = _flag_from_env("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ
    return asked and not is_distributed() and "RANK" not in os.environ


def silence_ranks() -> None:
    """Close standard output and error of all but the main process, if there are several processes.

    A launcher ends all processes once one fails, so a rank that fails before all have joined waits before it exits,
    which gives the main process time to report.
    """
    if not is_distributed():
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once, and warns from every process
    if is_main_process() or getattr(sys.stderr, "name", None) == os.devnull:
        return
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    atexit.register(_wait_for_main_process)


def totals(numbers: Sequence[float]) -> list[float]:
    """Sum each number over all processes, which must all call this; every process gets the same bits."""
    if not is_distributed():
        return list(numbers)
    import torch
    from accelerate import PartialState

    tensor = torch.tensor(list(numbers), dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(tensor)
    sums: list[float] = tensor.tolist()
    return sums


def broadcast_from_main(value: int) -> int:
    """Return the main process's `value`; all processes must call this."""
    return round(totals([value if is_main_process() else 0])[0])


def from_main(work: Callable[[], T]) -> T:
    """Do `work` in the main process only, and return what it returned in every process; all processes must call this.

    The others wait meanwhile, an hour at most (`WAIT`). What is returned must be picklable.
    """
    if not is_distributed():
        return work()
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([work() if is_main_process() else None])
    return cast(T, found)


def barrier() -> None:
    """Wait until every process has called this."""
    totals([0])


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join all processes into a group, and wait for all of them at the end of the block.

    `device`: as in the settings. If a process fails, it alone reports the error, and the others end with its exit code.
    """
    if not is_distributed():
        yield
        return
    silence_ranks()
    store = _join_group(device)
    over = threading.Event()
    watcher = threading.Thread(target=_exit_with_group, args=(store, over), daemon=True)
    watcher.start()
    try:
        yield
        barrier()
    except BaseException as error:
        over.set()
        _raise_or_exit(error, store)
    over.set()
    watcher.join()
    barrier()  # the main process hosts the store: it may leave only when no other process uses it
    atexit.register(_leave_group)


def _join_group(device: str) -> Any:
    """Join the process group and return its store, through which processes exchange values outside the group."""
    import torch
    import torch.distributed.nn  # imported later, by DDP, its functions' defaults would hold the group for ever
    from accelerate import PartialState

    if sharded():  # the main process writes checkpoints as one file; accelerate reads this as processes join
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    try:
        state = PartialState(cpu=device == "cpu" or uses_cpus() or not torch.cuda.is_available(), timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise ForeknowError(
            f"process {rank()} of {world_size()} could not meet the others: {first_line(error)}"
        ) from None
    if state.num_processes != world_size():
        raise ConfigError(f"{world_size()} processes are announced, {state.num_processes} came: is LOCAL_RANK set?")
    return torch.distributed.distributed_c10d._get_default_store()


def _exit_with_group(store: Any, over: threading.Event) -> None:
    """Exit this process once another has reported an error: its main thread may be blocked inside a library."""
    while not over.wait(_POLL):
        try:
            code = int(store.get(_EXIT_CODE)) if store.check([_EXIT_CODE]) else None
        except RuntimeError:  # the process that hosted the store is gone: the main thread reports it, if it can
            if over.wait(_GRACE):
                return
            print(f"foreknow: {_lost_line()}", file=sys.__stderr__, flush=True)
            code = 1
        if code is not None:
            os._exit(code)


def _raise_or_exit(error: BaseException, store: Any) -> NoReturn:
    """Raise the error if this process is the first to report one; else exit with the reporting process's exit code.

    The main process reports errors that all processes raise; the rank that caused a lost connection reports it.
    """
    lost = isinstance(error, RuntimeError) and not isinstance(error, ForeknowError) and bool(_LOST.search(str(error)))
    if not is_main_process() or lost:  # give the main process, or the rank that caused the loss, time to report first
        _wait_for_value(store, _REPORTER, _GRACE)
    if not _claim_report(store):
        raise SystemExit(_wait_for_value(store, _EXIT_CODE, 30.0) or 1) from None
    if sys.__stderr__ is not None and not is_main_process():
        sys.stderr = sys.__stderr__
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    atexit.register(_publish_exit_code, store, code)
    if lost:
        raise ForeknowError(_lost_line()) from None
    if isinstance(error, ForeknowError) and not is_main_process():
        error.args = (f"process {rank()} of {world_size()}: {error}",)
    raise error


def _lost_line() -> str:
    return f"another of the {world_size()} processes was lost; the same command goes on from the last checkpoint"


def _claim_report(store: Any) -> bool:
    """Return whether this process is the first that reports an error."""
    try:
        return bool(store.add(_REPORTER, 1) == 1)
    except RuntimeError:  # the main process, which hosted the store, is gone
        return rank() == 1


def _wait_for_value(store: Any, key: str, seconds: float) -> int | None:
    """Return the value that another process sets under `key`; None if none is set in time."""
    with suppress(RuntimeError):
        store.wait([key], timedelta(seconds=seconds))
        return int(store.get(key))
    return None


def _publish_exit_code(store: Any, code: int) -> None:
    """Publish the exit code as this process exits, and wait until the others have read it."""
    with suppress(RuntimeError):
        store.set(_EXIT_CODE, str(code))
        time.sleep(2 * _POLL)


def _leave_group() -> None:
    """Leave the group, and end gloo's threads while Python still runs.

    A thread that releases a tensor takes the GIL; while Python shuts down it cannot, and aborts the process. A model
    wrapped for training holds the group, and a reference cycle holds the model, so garbage is collected first.
    DTensor's caches hold the group to the end: the sleep gives its threads the GIL and time to finish.
    """
    import torch

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
        time.sleep(_RELEASE)


def _wait_for_main_process() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        time.sleep(_GRACE)


def _int_from_env(*names: str, default: int) -> int:
    values = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(values, default))


def _flag_from_env(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
