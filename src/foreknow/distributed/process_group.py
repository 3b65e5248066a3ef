"""Several processes that train one model: which of them writes and speaks, where they meet, how they end together.

`accelerate launch` and `torchrun` start the same command once for each process and number them in the environment.
The first process holds the run folder, writes and speaks; the others are silent. One that fails speaks, if it is
alone in that, and ends them all: no process waits for one that is gone. In one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from foreknow.errors import ConfigError, ForeknowError, first_line

WAIT: Final = timedelta(hours=1)
"""The longest that processes wait for each other: one may save, or fetch a model, while the others wait."""

_LOST: Final = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
_POLL: Final = 0.5
_GRACE: Final = 2.0
_LET_GO: Final = 0.1
"""Seconds for gloo's threads to let go of the last tensors."""
_SPEAKS, _ENDED = "foreknow_speaks", "foreknow_ended"


def world_size() -> int:
    """How many processes train together."""
    return _number("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", default=1)


def rank() -> int:
    """The number of this process, from 0."""
    return (
        _number("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", default=0) if is_distributed() else 0
    )


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return world_size() > 1


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def sharded() -> bool:
    """Whether each process is to hold a part of the weights only (FSDP)."""
    return is_distributed() and _is_set("ACCELERATE_USE_FSDP")


def can_shard() -> bool:
    """Whether accelerate shards between these processes, once they have met: it does so on accelerators only."""
    from accelerate import PartialState

    return str(PartialState().distributed_type.value) != "MULTI_CPU"


def on_cpus() -> bool:
    """Whether the launcher was told to use CPUs."""
    return is_distributed() and _is_set("ACCELERATE_USE_CPU")


def started_alone() -> bool:
    """Whether accelerate was asked for several processes on CPUs but started one: without MPI it starts no more."""
    asked = _is_set("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ
    return asked and not is_distributed() and "RANK" not in os.environ


def silence_ranks() -> None:
    """Where there are several processes: close standard output and error of all but the first, to their end.

    A launcher ends all as soon as one ends badly: one that ends before all have met leaves the first time to speak.
    """
    if not is_distributed():
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once, and warns from every process
    if is_main_process() or getattr(sys.stderr, "name", None) == os.devnull:
        return
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    atexit.register(_let_the_first_speak)


def totals(numbers: Sequence[float]) -> list[float]:
    """Each number summed over all processes; all of them must ask. The same bits in every process."""
    if not is_distributed():
        return list(numbers)
    import torch
    from accelerate import PartialState

    held = torch.tensor(list(numbers), dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(held)
    found: list[float] = held.tolist()
    return found


def broadcast_from_main(value: int) -> int:
    """What the first process gave; all of them must ask."""
    return round(totals([value if is_main_process() else 0])[0])


def barrier() -> None:
    """Wait until every process is here."""
    totals([0])


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Let all processes begin here, and end together: they wait for each other at the end.

    `device`: as in the settings. Where one fails, it alone says why, and the others end with its exit code.
    """
    if not is_distributed():
        yield
        return
    silence_ranks()
    store = _meet(device)
    over = threading.Event()
    watching = threading.Thread(target=_end_when_told, args=(store, over), daemon=True)
    watching.start()
    try:
        yield
        barrier()
    except BaseException as error:
        over.set()
        _end(error, store)
    over.set()
    watching.join()
    barrier()  # the first process may be where the others ask: it leaves when nobody asks any more
    atexit.register(_part)


def _meet(device: str) -> Any:
    """Join the process group and return its store, which holds what processes tell each other outside of it."""
    import torch
    import torch.distributed.nn  # if first imported later, by DDP, its functions' defaults hold the group for ever
    from accelerate import PartialState

    if sharded():  # a checkpoint is one file of the first process; accelerate reads this when processes meet
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    try:
        state = PartialState(cpu=device == "cpu" or on_cpus() or not torch.cuda.is_available(), timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise ForeknowError(
            f"process {rank()} of {world_size()} could not meet the others: {first_line(error)}"
        ) from None
    if state.num_processes != world_size():
        raise ConfigError(f"{world_size()} processes are announced, {state.num_processes} came: is LOCAL_RANK set?")
    return torch.distributed.distributed_c10d._get_default_store()


def _end_when_told(store: Any, over: threading.Event) -> None:
    """End this process once another has said why all must end: it may wait for that one in the depths of a library."""
    while not over.wait(_POLL):
        try:
            code = int(store.get(_ENDED)) if store.check([_ENDED]) else None
        except RuntimeError:  # the store was in a process that is gone
            code = 1
        if code is not None:
            os._exit(code)


def _end(error: BaseException, store: Any) -> NoReturn:
    """Speak, if nobody does, and raise; else wait until it is said, and leave with the speaker's exit code."""
    lost = isinstance(error, RuntimeError) and not isinstance(error, ForeknowError) and bool(_LOST.search(str(error)))
    if (
        not is_main_process() or lost
    ):  # what failed in the first process too is for that one to say; a loss, for who caused it
        _wait(store, _SPEAKS, _GRACE)
    if not _claim(store):
        raise SystemExit(_wait(store, _ENDED, 30.0) or 1) from None
    if sys.__stderr__ is not None and not is_main_process():
        sys.stderr = sys.__stderr__
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    atexit.register(_tell, store, code)
    if lost:
        raise ForeknowError(
            f"another of the {world_size()} processes was lost; the same command goes on from the last checkpoint"
        ) from None
    if isinstance(error, ForeknowError) and not is_main_process():
        error.args = (f"process {rank()} of {world_size()}: {error}",)
    raise error


def _claim(store: Any) -> bool:
    """Whether this process is the first to ask for the word."""
    try:
        return bool(store.add(_SPEAKS, 1) == 1)
    except RuntimeError:  # the store was in the first process, which is gone
        return rank() == 1


def _wait(store: Any, key: str, seconds: float) -> int | None:
    """What another process tells under `key`; None if it tells nothing in time."""
    with suppress(RuntimeError):
        store.wait([key], timedelta(seconds=seconds))
        return int(store.get(key))
    return None


def _tell(store: Any, code: int) -> None:
    """The last act of the process that spoke; it stays until the others have heard."""
    with suppress(RuntimeError):
        store.set(_ENDED, str(code))
        time.sleep(2 * _POLL)


def _part() -> None:
    """Leave the group, and end gloo's threads while Python still runs.

    A thread that lets go of a tensor takes Python's lock; where Python is ending it cannot, and aborts the process.
    A model wrapped for training holds the group, and is itself held by a cycle of references. DTensor's caches hold
    it to the end: there the threads get the lock, and time to use it.
    """
    import torch

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
        time.sleep(_LET_GO)


def _let_the_first_speak() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        time.sleep(_GRACE)


def _number(*names: str, default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(found, default))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
