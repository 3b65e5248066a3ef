"""The prompts of a chunk are made while the one before it is probed, one chunk ahead, and in order."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from foreknow.stages.audit.prompts_ahead import prompts_ahead

CHUNKS = [(n, pl.DataFrame({"row": [n]})) for n in (3, 4, 5)]


class Prompts:
    """Makes prompts that name their chunk and thread, and fails at some."""

    def __init__(self, failing: int | None = None):
        self.failing = failing
        self.started = {n: threading.Event() for n, _ in CHUNKS}

    def __call__(self, rows: pl.DataFrame) -> tuple[int, str]:
        number = rows["row"].item()
        self.started[number].set()
        if number == self.failing:
            raise KeyError("a row")
        return number, threading.current_thread().name


def opened(prompts: Prompts, chunks: list[Any]) -> Any:
    return prompts_ahead(SimpleNamespace(build=prompts), chunks)  # type: ignore[arg-type]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prompts")]


def test_the_next_prompts_are_made_while_a_chunk_is_in_use_and_no_more() -> None:
    prompts = Prompts()
    ahead = opened(prompts, CHUNKS)
    number, rows, (of, thread) = next(ahead)
    assert (number, rows["row"].item(), of) == (3, 3, 3)
    assert thread != threading.current_thread().name
    assert prompts.started[4].wait(30)
    assert not prompts.started[5].is_set()
    assert [(number, of) for number, _, (of, _) in ahead] == [(4, 4), (5, 5)]
    assert threads() == []


def test_an_error_comes_at_its_own_chunk() -> None:
    ahead = opened(Prompts(failing=4), CHUNKS)
    assert next(ahead)[0] == 3
    with pytest.raises(KeyError, match="a row"):
        next(ahead)
    assert threads() == []


def test_the_thread_ends_with_an_interruption_and_without_chunks() -> None:
    ahead = opened(Prompts(), CHUNKS)
    next(ahead)
    with pytest.raises(KeyboardInterrupt):
        ahead.throw(KeyboardInterrupt)
    assert threads() == []
    assert list(opened(Prompts(), [])) == []
