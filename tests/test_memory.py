"""The GPU's batch plan: held against the tensors that are really alive, and against what must always hold of it."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from foreknow.data.schema import common_heads
from foreknow.inference.engine import PackedEngine, Sampling
from foreknow.inference.exact_probe import Prober, ProbeSettings
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment, TokenTree
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.models import loading, memory_plan
from foreknow.models.memory_plan import GIB, LEAST, MOST, BatchSizes, ModelShape
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import Prompter

LLAMAS = {
    "SmolLM2-135M": (
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}, 30, 49152
    ),
    "Llama-2-7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
        32, 32000,
    ),
    "Llama-3-8B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
        32, 128256,
    ),
}  # fmt: skip


def config_of(name: str, layers: int | None = None) -> LlamaConfig:
    width, deep, vocabulary = LLAMAS[name]
    return LlamaConfig(**width, num_hidden_layers=layers or deep, vocab_size=vocabulary)


def shape(name: str) -> ModelShape:
    found = memory_plan.shape_of(config_of(name).to_dict())
    assert found is not None
    return found


class Alive(TorchDispatchMode):
    """Bytes of tensors made inside that are still alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensors, counts in ((self._tensors((args, kwargs)), False), (self._tensors(found), True)):
            for storage in [t.untyped_storage() for t in tensors]:
                if storage._cdata not in self.known:
                    size = storage.nbytes() if counts else 0
                    self.known.add(storage._cdata)
                    self.now += size
                    weakref.finalize(storage, self._gone, storage._cdata, size)
        self.most = max(self.most, self.now)
        return found

    @staticmethod
    def _tensors(tree: Any) -> list[torch.Tensor]:
        return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self.known.discard(key)


def measured(name: str, layers: int, tokens: int, width: int, prefix: int, rows: int) -> int:
    """The most bytes alive in a pass of a model without data; `rows` in a segment."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name, layers), dtype=torch.bfloat16)
    packed = PackedModel(model)
    with packed.attached():
        (shared,) = packed.prefixes([range(prefix)])
        chain = TokenTree.chain(range(width), range(width - 4, width))
        segments = [Segment(shared, [chain] * rows) for _ in range(tokens // width // rows)]
        with Alive() as alive:
            packed.forward(segments, keep=True)
    return alive.most


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("rows", [256, 64], ids=["one segment", "four"])
def test_a_pass_and_what_it_keeps_are_estimated_closely(name: str, rows: int) -> None:
    tokens, width, prefix = 4096, 16, 80
    two, four = (measured(name, layers, tokens, width, prefix, rows) for layers in (2, 4))
    a_layer = (four - two) / 2
    of = shape(name)
    assert a_layer == pytest.approx(2 * of.kv_heads * of.size * 2 * tokens, rel=0.05)  # keys and values, kept
    estimate = memory_plan.pass_bytes(of, 2, tokens, prefix, width)
    assert 0.97 < estimate / (two - 2 * a_layer) < 1.4


def test_a_probe_stays_within_its_estimate(tiny_folder: Path, frame: pl.DataFrame) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    drawn = few_shot.draw_exemplars(frame, sorted(frame["group"].unique()), shots=4, sets=6, seed=0)
    with PackedModel(loaded.model).attached() as packed:
        engine = PackedEngine(packed, Sampling(), 512)
        vocabulary = loading.vocabulary_of(loaded)
        prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn, common_heads(frame))
        prober = Prober(engine, prompts, vocabulary, ProbeSettings())
        with Alive() as alive:
            prober.probe(frame)
    of = memory_plan.shape_of(loaded.model.config.to_dict())
    assert of is not None
    need = memory_plan.needs(of, 0, 4, BatchSizes(512, frame.height), sets=6, shots=4)
    assert alive.most <= need.total < 6 * alive.most


def test_parameters_are_counted_from_headers(tiny_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder))
    assert memory_plan.parameters_of(tiny_folder) == sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert memory_plan.parameters_of(tmp_path) == memory_plan.parameters_of(tiny_folder)
    shutil.copy(tiny_folder / "model.safetensors", tmp_path / "consolidated.safetensors")  # which is not loaded
    assert memory_plan.parameters_of(tmp_path) == memory_plan.parameters_of(tiny_folder)


def test_shapes_of_other_spellings() -> None:
    gpt2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_inner": None}
    assert memory_plan.shape_of(gpt2) == ModelShape(12, 768, 12, 12, 64, 3072, 50257)
    inside = {"vocab_size": 7, "text_config": {**config_of("Llama-3-8B").to_dict(), "head_dim": 256}}
    assert memory_plan.shape_of(inside) == shape("Llama-3-8B")._replace(size=256)
    assert memory_plan.shape_of({"model_type": "something new"}) is None


SHAPES = st.builds(
    ModelShape,
    layers=st.integers(1, 96),
    hidden=st.integers(64, 16384),
    heads=st.integers(1, 128),
    kv_heads=st.integers(1, 16),
    size=st.integers(16, 256),
    inner=st.integers(64, 65536),
    vocabulary=st.integers(300, 300_000),
)
WEIGHTS = st.integers(10**6, 10**11)
MEMORY = st.integers(4, 192).map(lambda n: n * GIB)


def fits(of: ModelShape, parameters: int, total: int, sizes: BatchSizes, gpus: int) -> bool:
    return memory_plan.needs(of, parameters, 2, sizes, sets=10, shots=4, gpus=gpus).total <= memory_plan.budget(total)


@given(SHAPES, WEIGHTS, MEMORY, st.sampled_from([1, 2, 8]))
def test_a_plan_fits_is_a_power_of_two_and_there_is_one_wherever_the_least_fits(
    of: ModelShape, parameters: int, total: int, gpus: int
) -> None:
    sizes = memory_plan.largest_plan(of, parameters, 2, total, sets=10, shots=4, gpus=gpus)
    assert (sizes is not None) == fits(of, parameters, total, LEAST, gpus)
    if sizes is not None:
        assert fits(of, parameters, total, sizes, gpus)
        for value, least, most in zip(sizes, LEAST, MOST, strict=True):
            assert value & (value - 1) == 0
            assert least <= value <= most
        if sizes != MOST:  # the next larger plan that halving came through does not fit
            assert not fits(
                of, parameters, total, BatchSizes(min(2 * sizes[0], MOST[0]), min(2 * sizes[1], MOST[1])), gpus
            )


@pytest.mark.parametrize(
    ("name", "parameters", "gib", "gpus", "expected"),
    [
        ("SmolLM2-135M", 134_515_008, 16, 1, MOST),
        ("Llama-3-8B", 8_030_261_248, 79, 1, MOST),
        ("Llama-3-8B", 8_030_261_248, 24, 1, BatchSizes(16384, 64)),
        ("Llama-3-8B", 8_030_261_248, 16, 1, None),
        ("Llama-3-8B", 8_030_261_248, 16, 2, BatchSizes(16384, 128)),
    ],
)
def test_plans_of_known_models(name: str, parameters: int, gib: int, gpus: int, expected: BatchSizes | None) -> None:
    found = memory_plan.largest_plan(shape(name), parameters, 2, gib * GIB, sets=10, shots=4, gpus=gpus)
    assert found == expected


def test_a_plan_for_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    found = memory_plan.plan_batches(tiny_folder, "bfloat16", 16 * GIB, sets=10, shots=4)
    assert found.sizes == MOST
    assert found.needs is not None
    assert found.needs.weights == 2 * memory_plan.parameters_of(tiny_folder)
    (tmp_path / "config.json").write_text('{"model_type": "something new"}', encoding="utf-8")
    odd = memory_plan.plan_batches(tmp_path, "bfloat16", 16 * GIB, sets=10, shots=4)
    assert (odd.sizes, odd.needs) == (MOST, None)
    assert "does not tell its shape" in odd.line


def test_a_model_that_does_not_fit_is_said_to(tiny_folder: Path) -> None:
    found = memory_plan.plan_batches(tiny_folder, "float32", 2 * GIB, sets=10, shots=4)
    assert found.sizes == LEAST
    assert "--device map" in found.line


def test_memory_of_gpus_is_whole_gib_of_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    totals, frees = [79 * GIB + 12345, 47 * GIB + 99], [70 * GIB, 40 * GIB]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (frees[n], totals[n]))
    assert loading.gpu_memory("map") == loading.GpuMemory(47 * GIB, 40 * GIB, 2)
    assert loading.gpu_memory("auto") == loading.gpu_memory("cuda") == loading.GpuMemory(79 * GIB, 70 * GIB, 1)
    assert loading.gpu_memory("cuda:1") == loading.GpuMemory(47 * GIB, 40 * GIB, 1)


def test_what_is_told() -> None:
    of, parameters = shape("Llama-3-8B"), 8_030_261_248
    sizes = BatchSizes(16384, 512)
    need = memory_plan.needs(of, parameters, 2, sizes, sets=10, shots=4)
    line = memory_plan.format_plan(sizes, need, 79 * GIB)
    assert line.startswith("batches of 16384 tokens, chunks of 512 rows: ")
    assert "weights 15.0" in line
    assert "equal GPUs get equal sizes" in line
    assert memory_plan.format_shortage(need, 79 * GIB) is None
    warning = memory_plan.format_shortage(need, 20 * GIB)
    assert warning is not None
    assert "only 20.0 GiB of the GPU are free" in warning


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
