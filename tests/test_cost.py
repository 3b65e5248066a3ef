"""The cost model: the arithmetic of a row by hand, what scales with what, and that every input names its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from foreknow.stages.audit import cost
from foreknow.stages.audit.cost import CLUSTER, H100, LAPTOP, MACHINES, PYTHON, Machine, Model, Range, Work

SMOL = Model(106_204_032, 28_311_552)
WORK = Work(SMOL, 126.0, 40.0, 10, 3300)
MEASURED: dict[str, Any] = {
    "rows": 5000, "seconds": 400.0, "measured_rows": 128, "tokens_a_row": 126.0, "positions_a_row": 40.0,
    "prefix_tokens": 3300, "exemplar_sets": 10, "memory_gib": 1.4,
}  # fmt: skip


def test_operations_of_a_row_are_two_for_each_weight_and_token() -> None:
    assert WORK.operations == 2 * 126 * 106_204_032 + 2 * 40 * 28_311_552


def test_the_measured_processor_comes_out_as_measured() -> None:
    """docs/speed.md: 32,243 tokens, their limit 6,751 a second, 27 % of it reached, 14.5 rows a second."""
    work = WORK._replace(tokens=32243 / 256, prefix_tokens=0)
    peak = work.operations * 256 / (32243 / 6751)
    here = Machine("the Xeon", 1, peak, Range(0.271, 0.271), False, Range(0, 0), "docs/speed.md")
    assert 1000 / cost.compute_cost(work, here, 1000).seconds.best == pytest.approx(14.5, rel=0.02)


def test_on_a_fast_machine_python_is_what_is_left() -> None:
    endless = H100._replace(peak=1e30)
    found = cost.compute_cost(WORK, endless, 10**6).seconds
    assert found.best == pytest.approx(10**6 * 10 * PYTHON.best)
    assert found.worst == pytest.approx(10**6 * 10 * PYTHON.worst)


@given(st.integers(1, 10**9), st.integers(2, 50), st.sampled_from(MACHINES))
def test_time_and_money_grow_with_rows_and_the_worse_end_is_worse(rows: int, times: int, machine: Machine) -> None:
    one, many = cost.compute_cost(WORK, machine, rows), cost.compute_cost(WORK, machine, rows * times)
    assert one.seconds.best < one.seconds.worst
    assert one.dollars.best < one.dollars.worst
    assert one.seconds.best <= many.seconds.best <= times * one.seconds.best * (1 + 1e-9)


def test_sixty_four_gpus_share_rows_but_not_prefixes() -> None:
    bare = WORK._replace(prefix_tokens=0)
    ratio = cost.compute_cost(bare, H100, 10**6).seconds.best / cost.compute_cost(bare, CLUSTER, 10**6).seconds.best
    assert ratio == pytest.approx(64)
    assert cost.compute_cost(WORK, CLUSTER, 1).seconds.best > cost.compute_cost(bare, H100, 1).seconds.best


def test_parameters_of_a_folder_are_split_into_layers_and_head(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 100}
    tables = {"embed": np.zeros((100, 8), "float32"), "layer": np.zeros((8, 8), "float16")}
    save_file(tables, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert cost.read_model_size(tmp_path) == Model(64, 800)
    save_file({**tables, "head": np.zeros((100, 8), "float32")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")
    assert cost.read_model_size(tmp_path) == Model(64, 800)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert cost.read_model_size(tmp_path) is None


def test_this_machine_is_scaled_from_its_own_rate() -> None:
    line = cost.scale_estimate(MEASURED, 10**7, SMOL).table.row(0, named=True)
    assert line == {"machine": "this machine", "rows/s": "12", "time": "9 days", "dollars": ""}


def test_every_machine_and_every_input_is_told_with_its_source() -> None:
    found = cost.scale_estimate(MEASURED, 10**9, SMOL)
    assert found.table["machine"].to_list() == ["this machine", *(m.name for m in MACHINES)]
    assert all(found.inputs["from"].str.len_chars() > 0)
    told = dict(found.inputs.select("input", "from").iter_rows())
    assert "measured now" in told["tokens a row"]
    for machine in (H100, LAPTOP):
        assert "assumed" in told[machine.name]
    assert "never measured" in told[H100.name]
    assert dict(found.inputs.select("input", "value").iter_rows())["operations a row"] == "2.9e+10"


def test_an_unknown_shape_leaves_out_the_other_machines() -> None:
    assert cost.scale_estimate(MEASURED, 1000, None).table.height == 1


@pytest.mark.parametrize(
    ("rows", "sets", "expected"),
    [
        (10**5, 10, ["on disk: 33.3 MB", "in main memory: 350 MB"]),
        (10**9, 10, ["on disk: 333 GB", "in main memory: 3.5 TB", "500 files of 2,000,000 rows"]),
        (10**9, 1, ["on disk: 90 GB"]),
    ],
)
def test_storage_memory_and_what_breaks(rows: int, sets: int, expected: list[str]) -> None:
    text = " ".join(cost.notes(rows, sets))
    assert all(part in text for part in expected)
    assert ("--exemplars" in text) == (rows > 2_000_000)
