"""While chunks are probed, the garbage collector visits only what the probing makes."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from foreknow.stages.audit.chunks import probe_chunks

ROWS = pl.DataFrame({"row": [1]})


def probing(probe: Any) -> Any:
    return SimpleNamespace(
        prober=SimpleNamespace(probe=probe, prompts=SimpleNamespace(build=len)), packed=None, engine="plain"
    )


def test_what_was_loaded_before_is_left_alone_until_the_last_chunk() -> None:
    before = gc.get_freeze_count()
    loaded = len(gc.get_objects())

    def probe(_: pl.DataFrame, prompts: int) -> tuple[int, int]:
        assert prompts == 1
        return gc.get_freeze_count(), len(gc.get_objects())

    (result,) = probe_chunks(probing(probe), [(0, ROWS)])
    frozen, visited = result.chunk
    assert frozen > 0.9 * loaded
    assert visited < 0.1 * loaded
    assert gc.get_freeze_count() == before == 0


def test_an_error_ends_it_too() -> None:
    def probe(*_: object) -> None:
        raise KeyError("a row")

    with pytest.raises(KeyError):
        list(probe_chunks(probing(probe), [(0, ROWS)]))
    assert gc.get_freeze_count() == 0
