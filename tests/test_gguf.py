"""GGUF: every block type is dequantised as gguf has it or refused in a line, and so is what is no language model."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Block
from gguf import GGUFWriter
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from foreknow.errors import ModelError
from foreknow.io.remote_paths import cache_folder
from foreknow.models import gguf_files, loading
from foreknow.models.resolve import resolve
from gguf_models import write_gguf


def llama(**given: Any) -> LlamaForCausalLM:
    """One layer, as wide as the largest block."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": 420, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**common, **given})).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(autouse=True)
def converted_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / "cache"))


def load(path: Path) -> loading.Loaded:
    return loading.load_model(str(path), dtype="float32", device="cpu")


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


READ = [block for block in Block if block.name not in ("Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64", "F64")]
"""Block types that gguf reads."""


@pytest.mark.parametrize("block", READ, ids=lambda block: block.name)
def test_a_block_type_is_read_as_gguf_has_it(block: Block, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / f"tiny-{block.name}.gguf"
    held = write_gguf(path, llama(), tokenizer, block)
    loaded = load(path)
    found = dict(loaded.model.named_parameters())
    assert set(found) == set(held)
    for name, values in held.items():
        assert torch.equal(found[name], torch.tensor(np.ascontiguousarray(values, dtype=np.float32))), name
    assert loaded.name == path.name
    assert str(loaded.note).startswith("dequantised from a GGUF file")


@pytest.mark.parametrize("number", [9, 15, 24, 28, 41, 99])
def test_a_block_type_that_is_not_read_is_refused_in_a_line(number: int, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_gguf(path, llama(), tokenizer, Block.F16)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight")
    at += 4 + 2 * 8  # the number of dimensions, and two of them
    raw[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(raw)
    told = refusal(path)
    assert "block type" in told or "cannot be read as GGUF" in told or "not a GGUF file transformers can read" in told


def test_a_file_cut_short_is_told(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(path, llama(), tokenizer)
    whole = path.read_bytes()
    for size in (len(whole) - 1000, len(whole) // 2, 4000, 30, 4):
        path.write_bytes(whole[:size])
        assert f"cannot be read as GGUF ({size:,} bytes): it is cut short or damaged" in refusal(path)
    path.write_bytes(b"GGML" + whole[4:])
    assert "not a GGUF file (it does not begin with GGUF)" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "a Git LFS pointer" in refusal(path)


def kind_of_file(what: str) -> Any:
    return lambda writer: writer.add_type(what)


def test_what_is_no_language_model_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, llama(), tokenizer, architecture="wonder")
    assert "GGUF of architecture 'wonder', which transformers " in refusal(path)
    write_gguf(path, llama(), tokenizer, architecture="clip")
    assert "a projector for images (mmproj), not a language model" in refusal(path)
    write_gguf(path, llama(), tokenizer, more=kind_of_file("mmproj"))
    assert "a projector for images (mmproj), not a language model" in refusal(path)
    write_gguf(path, llama(), tokenizer, more=kind_of_file("adapter"))
    assert "a LoRA adapter in GGUF, which is not read" in refusal(path)
    write_gguf(path, llama(), tokenizer, more=kind_of_file("imatrix"))
    assert "GGUF of type 'imatrix', not a model" in refusal(path)
    write_gguf(path, llama(), tokenizer, without=("token_embd.weight",))
    assert "holds no token embeddings" in refusal(path)
    write_gguf(path, llama(), tokenizer, vocabulary=False)
    assert "holds no tokenizer" in refusal(path)
    only_vocabulary = GGUFWriter(str(path), "llama")
    only_vocabulary.add_token_list(["a"])
    only_vocabulary.write_header_to_file()
    only_vocabulary.write_kv_data_to_file()
    only_vocabulary.write_tensors_to_file()
    only_vocabulary.close()
    assert "holds a vocabulary and no weights" in refusal(path)
    write_gguf(path, llama(), tokenizer, architecture="t5")
    assert "GGUF of architecture 't5'" in refusal(path)


def test_one_part_of_several_is_named_with_the_command(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "tiny-00001-of-00003.gguf"
    write_gguf(path, llama(), tokenizer, more=lambda writer: writer.add_uint16("split.count", 3))
    assert "one part of 3: join them first (llama-gguf-split --merge " in refusal(path)
    by_name = shutil.copy(path, tmp_path / "other-00002-of-00002.gguf")
    assert "one part of 3" in refusal(Path(by_name))
    write_gguf(path, llama(), tokenizer)  # whole, whatever it is called
    load(path.rename(tmp_path / "tiny-00001-of-00001.gguf"))


def test_missing_and_damaged_tensors_are_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, llama(), tokenizer, without=("blk.0.ffn_up.weight",))
    assert "the checkpoint lacks 1 tensor of the model: model.layers.0.mlp.up_proj.weight" in refusal(path)
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    write_gguf(path, model, tokenizer)
    assert "NaN or infinite numbers: model.norm.weight" in refusal(path)
    left = cache_folder() / "models"
    assert [p for p in left.iterdir() if not p.name.endswith(".lock")] == []  # nothing of them is kept


def test_tensors_that_have_no_place_are_not_left_out_in_silence(tokenizer: Any, tmp_path: Path) -> None:
    """A bias of an attention that has none in the config: the loader knows no place for it."""
    path = tmp_path / "a.gguf"
    bias = {"blk.0.attn_q.bias": np.ones(256, dtype=np.float32)}
    write_gguf(path, llama(), tokenizer, tensors=bias)
    told = refusal(path)
    assert re.search(r"the file holds [\d,]+ numbers, and transformers \S+ takes [\d,]+ of them", told)
    assert "blk.N.attn_q.bias" in told


def llama3_factors(factor: float, original: int, theta: float, count: int) -> Any:
    """As llama.cpp writes them for Llama 3.1: what each frequency is divided by."""
    found = []
    for n in range(count):
        wave = 2 * math.pi * theta ** (n / count)
        if wave < original / 4:
            found.append(1.0)
        elif wave > original:
            found.append(factor)
        else:
            smooth = (original / wave - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


STRETCHED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", list(STRETCHED))
def test_stretched_rotary_positions_are_kept(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """transformers' GGUF loader leaves them out, and the model answers as another."""
    theta = 500000.0
    model = llama(rope_parameters={"rope_theta": theta, **STRETCHED[kind]})
    tensors = {"rope_freqs.weight": llama3_factors(8.0, 8192, theta, 32)} if kind == "llama3" else {}

    def metadata(writer: GGUFWriter) -> None:
        if kind != "llama3":
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(STRETCHED[kind]["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(128)

    path = tmp_path / "a.gguf"
    write_gguf(path, model, tokenizer, more=metadata, tensors=tensors)
    ids = torch.randint(0, 420, (1, 200), generator=torch.Generator().manual_seed(0))
    loaded = load(path)
    with torch.no_grad():
        expected, plain = (
            model(ids).logits,
            llama(rope_parameters={"rope_theta": theta, "rope_type": "default"})(ids).logits,
        )
        assert torch.allclose(loaded.model(ids).logits, expected, atol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-3)


def test_stretching_that_has_no_counterpart_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    odd = {"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)}
    write_gguf(path, llama(), tokenizer, tensors=odd)
    assert "by factors of its own (rope_freqs.weight) that are not Llama 3's" in refusal(path)
    write_gguf(
        path, llama(), tokenizer, more=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    )
    assert "stretches rotary positions in a way that is not read from GGUF ('longrope')" in refusal(path)


def test_a_file_is_converted_once_and_checked_before(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, llama(), tokenizer, Block.Q8_0)
    said: list[str] = []
    first = resolve(str(path), said.append)
    assert [line for line in said if "converting" in line]
    again = resolve(str(path), said.append)
    assert len([line for line in said if "converting" in line]) == 1
    assert again.fingerprint == first.fingerprint


def test_the_architectures_are_those_that_transformers_dequantises() -> None:
    known = gguf_files.known_architectures()
    assert {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"} <= known
    assert not known & {"t5", "clip"}
