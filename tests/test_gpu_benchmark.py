"""benchmarks/gpu.py on the CPU: every section runs and holds what it says, and a section that cannot is named."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module, as it is where its folder is on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_every_section_runs_without_a_gpu(gpu: Any, tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    gpu.main(["--tiny", "--model", str(tiny_folder), "--data", str(facts_file), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [name for name, part in found.items() if "failed" in part or "left out" in part] == []
    probes = [f"probe: {name}" for name in (str(tiny_folder), *gpu.TINY)]
    assert list(found) == ["device", "peak", "agreement", *probes, "generate", "training", "halving"]
    agreement = found["agreement"]
    assert agreement["twice on the device: the same bytes"] is True
    both = agreement["device (float32) against the CPU in float32"]
    assert (both["labels that differ"], both["largest difference of a probability"]) == (0, 0.0)
    for name in probes:
        part = found[name]
        assert part["rows"] == gpu.SMALL.rows
        assert part["rows a second"] > 0
        assert 0 < part["share of the matrix peak"] < 1
        assert 0 <= part["host's share of the time"] < 1
    losses = [found["training"][f"{name}: loss of the first step"] for name in ("ours", "transformers.Trainer")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert found["halving"]["halved"] >= 1
    assert found["halving"]["labels that differ"] == 0
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}" in page for name in ("device", "peak", "agreement", "generate", "training", "halving"))
    assert f"| | {tiny_folder} | tiny Llama | tiny Qwen3 |" in page


def test_a_section_that_fails_or_comes_too_late_is_named_and_the_rest_goes_on(gpu: Any, tmp_path: Path) -> None:
    bench = gpu.Bench("m", "d", "cpu", "float32", gpu.SMALL, tmp_path, time.monotonic() + 100)
    bench.section("odd", lambda: {}["nothing"])
    bench.section("even", lambda: {"value": 2})
    bench.ends = time.monotonic() - 1
    bench.section("late", lambda: {"value": 3})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "KeyError" in found["odd"]["failed"]
    assert found["even"]["value"] == 2
    assert found["late"] == {"left out": "0 s were left"}


def test_without_a_gpu_it_says_what_to_do(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--tiny runs the same code on the CPU"):
        gpu.main([])


def test_the_large_shapes_have_the_weights_that_their_names_say(gpu: Any) -> None:
    billions = [gpu.parameters_in(config()) / 1e9 for config in gpu.SHAPES.values()]
    assert billions == pytest.approx([1.24, 8.03, 32.8], rel=0.01)
