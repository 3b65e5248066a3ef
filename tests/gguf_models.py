"""Tiny GGUF files of a Llama, written as llama.cpp lays them out, in any block type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Block
from gguf import GGUFWriter

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
Array = np.ndarray[Any, np.dtype[Any]]


def interleaved(weights: Array, heads: int) -> Array:
    """Rows of a query or key projection in llama.cpp's order of rotary pairs."""
    size = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, size, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def halved(weights: Array, heads: int) -> Array:
    """The same back in transformers' order."""
    size = weights.shape[0] // heads // 2
    return weights.reshape(heads, size, 2, *weights.shape[1:]).swapaxes(2, 1).reshape(weights.shape)


def blocks(weights: Array, block: Block, draw: np.random.Generator) -> Array:
    """Bytes of a block type: what gguf quantises to; for a type it can only read, random blocks it reads as numbers."""
    try:
        return gguf.quantize(weights, block)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[block]
        shape = (weights.shape[0], weights.shape[1] // elements * size)
        found = draw.integers(0, 256, shape, dtype=np.uint8)
        for _ in range(200):
            with np.errstate(all="ignore"):
                read = gguf.dequantize(found, block)
            odd = ~np.isfinite(read) | (np.abs(read) > 1e3)
            per_block = odd.reshape(-1, elements).any(axis=1)
            if not per_block.any():
                return found
            flat = found.reshape(-1, size)
            flat[per_block] = draw.integers(0, 256, (int(per_block.sum()), size), dtype=np.uint8)
        raise AssertionError(f"no numbers of {block.name} were drawn") from None


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    block: Block = Block.F32,
    *,
    architecture: str = "llama",
    more: Callable[[GGUFWriter], object] = lambda _: None,
    tensors: Mapping[str, Array] | None = None,
    without: tuple[str, ...] = (),
    vocabulary: bool = True,
) -> dict[str, Array]:
    """Write a Llama model to `path`; returns each weight as the file holds it, by transformers' name and order.

    `more` writes further metadata, `tensors` are added as they are, names in `without` are left out.
    """
    config, draw = model.config, np.random.default_rng(0)
    heads = config.num_attention_heads, config.num_key_value_heads
    writer = GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(heads[1])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads[0])
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if vocabulary:
        _write_tokenizer(writer, tokenizer)
    more(writer)
    held: dict[str, Array] = {}
    for name, values in model.named_parameters():
        weights = np.ascontiguousarray(values.detach().float().numpy())
        count = heads[0] if "q_proj" in name else heads[1] if "k_proj" in name else 0
        ours = np.ascontiguousarray(interleaved(weights, count)) if count else weights
        theirs = _name(name)
        if theirs in without:
            continue
        if weights.ndim == 2 and block != Block.F32:
            raw = blocks(ours, block, draw)
            writer.add_tensor(theirs, raw, raw_dtype=block)
            read = gguf.dequantize(raw, block)
        else:
            writer.add_tensor(theirs, ours)
            read = ours
        held[name] = halved(read, count) if count else read
    for theirs, weights in (tensors or {}).items():
        writer.add_tensor(theirs, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _name(name: str) -> str:
    if not name.startswith("model.layers."):
        whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        return f"{whole[name.removesuffix('.weight')]}.weight"
    _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def _write_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_types([3 if text == tokenizer.eos_token else 1 for text in texts])
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
