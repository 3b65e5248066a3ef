"""A model spread over devices gives what it gives on one: accelerate's hooks, a device without data, two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import foreknow
from foreknow.config import EvaluateConfig
from foreknow.data.schema import common_heads
from foreknow.errors import ModelError
from foreknow.inference.engine import Engine, PackedEngine, PlainEngine, Sampling
from foreknow.inference.exact_probe import Chunk, Prober, ProbeSettings
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment, TokenTree
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.models import loading
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import Prompter
from foreknow.settings import settings_of
from foreknow.stages.evaluate import run as evaluate_run

SAMPLING = Sampling(temperature=0.9, top_k=40)
MAPS = {
    "the last layer on disk": {"model.layers.1": "disk", "model.norm": "disk"},
    "embeddings and head on disk": {"model.embed_tokens": "disk", "lm_head": "disk", "model.layers.0": "disk"},
}
ALL_PARTS = ("model.embed_tokens", "lm_head", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm")


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> loading.Loaded:
    return loading.load_model(str(tiny_folder), dtype="float32", device="cpu")


@pytest.fixture(params=MAPS)
def spread(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path) -> PreTrainedModel:
    """The tiny model, part of it read from disk at every pass by accelerate's hooks."""
    places = {**dict.fromkeys(ALL_PARTS, "cpu"), **MAPS[request.param]}
    model = AutoModelForCausalLM.from_pretrained(
        str(tiny_folder), dtype=torch.float32, device_map=places, offload_folder=str(tmp_path)
    )
    assert any(p.device.type == "meta" for p in model.parameters())  # the hooks are needed
    return model.eval()


def probed(loaded: loading.Loaded, rows: pl.DataFrame, engine: Engine) -> Chunk:
    drawn = few_shot.draw_exemplars(rows, sorted(rows["group"].unique()), shots=2, sets=3, seed=0)
    vocabulary = loading.vocabulary_of(loaded)
    prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn, common_heads(rows))
    prober = Prober(engine, prompts, vocabulary, ProbeSettings())
    return prober.probe(rows.head(20))


def test_offloaded_parts_change_no_bit(loaded: loading.Loaded, spread: PreTrainedModel, frame: pl.DataFrame) -> None:
    found = []
    for model in (loaded.model, spread):
        with PackedModel(model).attached() as packed:
            packed.verify([5, 6, 7, 8], [9, 10])
            found.append(probed(loaded, frame, PackedEngine(packed, SAMPLING, 300)))
    assert found[0].probes["expansions"].sum() > 0  # kept keys and values were gathered, too
    assert found[1].probes.equals(found[0].probes)
    assert found[1].answers.equals(found[0].answers)


def test_offloaded_parts_under_plain_passes(
    loaded: loading.Loaded, spread: PreTrainedModel, frame: pl.DataFrame
) -> None:
    rows = frame.head(24)
    ours, theirs = (probed(loaded, rows, PlainEngine(model, SAMPLING)) for model in (spread, loaded.model))
    assert ours.probes.equals(theirs.probes)


def test_ids_go_where_the_embeddings_compute(spread: PreTrainedModel, loaded: loading.Loaded) -> None:
    assert loading.input_device(spread) == loading.input_device(loaded.model) == torch.device("cpu")


def test_an_audit_with_a_device_map_writes_the_same_bytes(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    written = []
    for device in ("cpu", "map"):
        out = tmp_path / device
        common = {"model": str(tiny_folder), "dtype": "float32", "exemplar_sets": 2, "limit": 12}
        foreknow.audit(str(facts_file), out=str(out), device=device, **common)
        written.append([(out / name).read_bytes() for name in ("rows.parquet", "probes.parquet")])
    assert written[0] == written[1]


@pytest.fixture(params=["as accelerate has it", *MAPS])
def mapped(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`--device map` as it is here, where all is on the processor, or with parts of the model on disk."""
    load = AutoModelForCausalLM.from_pretrained

    def laid_out(folder: str, **given: Any) -> PreTrainedModel:
        if given["device_map"] == "auto" and request.param in MAPS:
            places = {**dict.fromkeys(ALL_PARTS, "cpu"), **MAPS[request.param]}
            given |= {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
        found: PreTrainedModel = load(folder, **given)
        return found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", laid_out)
    return str(request.param)


def evaluated(model: Path, facts_file: Path, out: Path, device: str) -> pl.DataFrame:
    given = {"model": str(model), "data": str(facts_file), "out": out / device, "dtype": "float32", "device": device}
    return evaluate_run.run(settings_of(EvaluateConfig, given)).rows


@pytest.mark.usefixtures("mapped")
def test_an_evaluation_with_a_device_map_says_the_same(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    on_one, spread_out = (evaluated(tiny_folder, facts_file, tmp_path, device) for device in ("cpu", "map"))
    assert spread_out.equals(on_one)
    assert on_one["prediction"].n_unique() > 20


@pytest.mark.usefixtures("mapped")
def test_answers_drawn_with_a_device_map_are_the_same(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    common = {"model": str(tiny_folder), "dtype": "float32", "exemplar_sets": 2, "limit": 8, "samples": 4}
    found = [
        foreknow.audit(str(facts_file), out=str(tmp_path / device), device=device, protocol="sampled", **common)
        for device in ("cpu", "map")
    ]
    assert found[1].probes.equals(found[0].probes)
    assert found[1].rows["model_answer"].equals(found[0].rows["model_answer"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_evaluated_on_a_spread_base_that_is_whole_and_refused_on_another(
    tiny_folder: Path, facts_file: Path, tmp_path: Path, mapped: str
) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder), dtype=torch.float32, device_map=None)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    on_one = evaluated(tmp_path / "adapter", facts_file, tmp_path, "cpu")
    assert not on_one["prediction"].equals(evaluated(tiny_folder, facts_file, tmp_path / "base", "cpu")["prediction"])
    if mapped in MAPS:
        with pytest.raises(ModelError, match=r"does not lie on the GPUs as a whole \(device map: .*or --device cpu"):
            evaluated(tmp_path / "adapter", facts_file, tmp_path, "map")
    else:
        assert evaluated(tmp_path / "adapter", facts_file, tmp_path, "map").equals(on_one)


def test_the_reason_names_every_place_and_warns_of_slow_ones() -> None:
    assert loading.format_device_map({"a": 0, "b": 0, "c": 1}) == (
        "device map: of the model's 3 parts 2 on cuda:0, 1 on cuda:1"
    )
    assert "goes to the GPU and back" in loading.format_device_map({"a": 0, "b": "cpu"})
    assert "goes to" not in loading.format_device_map({"": "cpu"})


class Watched(TorchDispatchMode):
    """Refuses an operator whose tensors lie on two devices, and counts copies from the host to `meta`.

    `meta` stands for a GPU: it holds no data, so that a read of it by the host is an error of torch's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy):
            if given[0].device.type == "cpu" and found.device.type == "meta":
                self.copies.append((given[0].dtype, given[0].dim()))
        else:
            devices = {t.device.type for t in given if t.dim()}
            assert len(devices) <= 1, f"{func} mixes {devices}"
        return found

    @property
    def of_the_batch(self) -> int:
        """Copies of a batch's own two arrays; accelerate's copies of activations have other shapes."""
        return self.copies.count((torch.int64, 1)) + self.copies.count((torch.bool, 1))


def llama(layers: int = 3) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=120, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, sliding_window=9,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def halves() -> LlamaForCausalLM:
    """The first layer on the processor; the others, the norm and the head on a device that holds no data."""
    model = llama()
    for part in (*model.model.layers[1:], model.model.norm, model.lm_head):
        add_hook_to_module(part, AlignDevicesHook(execution_device=torch.device("meta"), place_submodules=True))
    return model


def work(packed: PackedModel, segments: int) -> torch.Tensor:
    """Two prefixes, several segments, a tree, and a second pass behind what was kept."""
    first, second = packed.prefixes([list(range(3, 14)), list(range(4, 21))])
    tree = TokenTree([7, 8, 9, 10], [-1, 0, 1, 1], [2, 3])
    chains = [Segment(second, [TokenTree.chain([5, 6, 7], [2])]) for _ in range(segments)]
    _, kept = packed.forward([Segment(first, [tree, TokenTree.chain([5], [0])]), *chains], keep=True)
    past = [kept[1][0], kept[0][1]]
    states, _ = packed.forward([Segment(second, [TokenTree.chain([11], [0]), TokenTree.chain([12], [0])], past)])
    return states


def test_each_layer_computes_on_its_own_device(halves: LlamaForCausalLM) -> None:
    packed = PackedModel(halves)
    assert packed.device.type == "cpu"
    with packed.attached(), Watched():
        (prefix,) = packed.prefixes([list(range(3, 14))])
        assert [k.device.type for k, _ in prefix.layers] == ["cpu", "meta", "meta"]
        assert work(packed, 2).device.type == "meta"


def on_meta(_: LlamaForCausalLM) -> LlamaForCausalLM:
    return llama().to("meta")


@pytest.mark.parametrize("build", [on_meta, lambda halves: halves], ids=["whole", "in two"])
def test_a_batch_is_two_copies_and_no_read_whatever_its_segments(
    halves: LlamaForCausalLM, build: Callable[[LlamaForCausalLM], LlamaForCausalLM]
) -> None:
    counted = []
    for segments in (1, 12):
        packed = PackedModel(build(halves))
        with packed.attached(), Watched() as watched:
            work(packed, segments)
        counted.append(watched.of_the_batch)
    # three forward passes of two arrays
    assert counted == [3 * 2] * 2


TENSOR_PARALLEL = """
import sys, torch, torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from foreknow.inference.engine import PackedEngine, Prompt, Sampling
from foreknow.errors import ModelError
from foreknow.inference.packed_model import PackedModel

torch.set_num_threads(1)
folder = sys.argv[1]
family = (tuple(range(3, 20)), tuple(range(5, 16)))
prompts = [Prompt(family, n % 2, len(family[n % 2]), (30 + n, 31, 32)) for n in range(6)]
trees = [[(40,), (40, 41), (42,)]] * 6

def nodes(model):
    with PackedModel(model).attached() as packed:
        packed.verify(list(range(3, 12)), [4, 5, 6])
        session, opened = PackedEngine(packed, Sampling(), 64).open(prompts, trees)
        return [*opened, *session.extend([(2, (9, 8)), (5, (7,))])]

alone = nodes(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
config = DistributedConfig(tp_plan="auto", tp_size=2)
ours = nodes(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=config))
everyones = [None, None]
dist.all_gather_object(everyones, ours)
assert everyones[0] == everyones[1], "the processes disagree"
assert [n.greedy for n in ours] == [n.greedy for n in alone]
tables = [[dict(zip(n.tokens, n.p)) for n in some] for some in (ours, alone)]
off = max(abs(a.get(t, 0) - b.get(t, 0)) for a, b in zip(*tables) for t in {*a, *b})
assert off < 1e-4, off
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_each_layer(tiny_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(TENSOR_PARALLEL, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    done = subprocess.run(
        [*command, f"--master-port={port}", str(script), str(tiny_folder)],
        check=False, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
