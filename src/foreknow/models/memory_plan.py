"""Plans how many tokens and rows a GPU computes at once, from the model's shape and the GPU's total memory.

    weights      the model's weights, in the dtype it computes in
    kv_cache     keys and values of every question and answer of a chunk, and one layer's copies of those that the
                 search extends
    prefixes     keys and values of the exemplar prompts
    a_pass       the peak memory of one layer for a batch, in attention or in the feed-forward part
    head         float32 logits, and the candidates' weights, of the answer positions

The plan uses total memory, not free memory: equal machines get equal sizes, so a run gives the same bytes on each and
can be resumed on another (design, section 8). Free memory only decides a warning. The terms of a pass are those of
`packed_attention._attend` and of a gated decoder layer, tensor by tensor; tests/test_memory.py compares them with the
tensors that are actually alive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from foreknow.models.weight_files import read_weight_files

GIB: Final = 2**30

TOKENS_A_SHOT: Final = 24
"""Tokens of one exemplar in a prompt; 20 in the packaged facts."""
SLOTS_A_PROMPT: Final = 24
"""Padded tokens of a question after its prefix and of its answers' tree; 11 tokens in the packaged facts."""
GROUPS: Final = 4
"""Groups of a chunk, whose prefixes are cached at once."""
TOP_K: Final = 40
"""The paper's top k; the memory of a pass hardly depends on it."""


class ModelShape(NamedTuple):
    """The sizes of a model that decide the memory of a pass. `size`: of a head; `inner`: of a feed-forward layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    size: int
    inner: int
    vocabulary: int


class BatchSizes(NamedTuple):
    """A batch plan: tokens per batch, rows per chunk."""

    batch_tokens: int
    chunk_rows: int


MOST: Final = BatchSizes(16384, 512)
"""No faster sizes are known above these: Python limits small models, matrix products large ones (docs/gpu.md)."""
LEAST: Final = BatchSizes(256, 8)


class MemoryNeeds(NamedTuple):
    """The memory that an audit needs on one GPU, in bytes."""

    weights: int
    kv_cache: int
    prefixes: int
    a_pass: int
    head: int

    @property
    def total(self) -> int:
        """Return the peak: body and head never compute at the same time."""
        return self.weights + self.kv_cache + self.prefixes + max(self.a_pass, self.head)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape from a `config.json`; None where its keys are unknown."""
    text_config = config.get("text_config")
    keys = {**config, **text_config} if isinstance(text_config, Mapping) else config

    def first(*names: str) -> int | None:
        values = (keys.get(name) for name in names)
        return next((v for v in values if isinstance(v, int) and v > 0), None)

    layers = first("num_hidden_layers", "n_layer", "num_layers")
    hidden = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "num_heads")
    vocabulary = first("vocab_size")
    if layers is None or hidden is None or heads is None or vocabulary is None:
        return None
    experts = (first("moe_intermediate_size") or 0) * (first("num_experts_per_tok") or 1)
    inner = max(first("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden, experts)
    kv_heads = first("num_key_value_heads") or heads
    return ModelShape(layers, hidden, heads, kv_heads, first("head_dim") or hidden // heads, inner, vocabulary)


def parameters_of(folder: Path) -> int:
    """Return the number of parameters in a model folder, from the headers of its weight files.

    Older weights (`pytorch_model*.bin`), which have no header, are counted at two bytes each.
    """
    weights = read_weight_files(folder)
    if not weights.tensors:
        return sum(file.stat().st_size for file in weights.files) // 2
    return sum(prod(tensor.shape) for tensor in weights.tensors.values())


def needs(
    shape: ModelShape, parameters: int, itemsize: int, sizes: BatchSizes, *, sets: int, shots: int, gpus: int = 1
) -> MemoryNeeds:
    """Return the memory an audit needs on each of `gpus` GPUs that share the layers; `itemsize`: bytes per number."""
    prefix = shots * TOKENS_A_SHOT
    a_token = 2 * shape.layers * shape.kv_heads * shape.size * itemsize
    prompts = sizes.chunk_rows * sets
    # the search may extend every question: a layer gathers their keys and joins them with the batch's own
    copies = 2 * min(prompts, sizes.batch_tokens) / shape.layers
    return MemoryNeeds(
        weights=parameters * itemsize // gpus,
        kv_cache=round((prompts + copies) * SLOTS_A_PROMPT * a_token) // gpus,
        prefixes=min(GROUPS, sizes.chunk_rows) * sets * prefix * a_token // gpus,
        a_pass=pass_bytes(shape, itemsize, min(sizes.batch_tokens, prompts * SLOTS_A_PROMPT), prefix, SLOTS_A_PROMPT),
        head=head_bytes(shape, itemsize, sizes.batch_tokens),
    )


def pass_bytes(shape: ModelShape, itemsize: int, tokens: int, prefix: int, width: int) -> int:
    """Return the peak bytes of a layer for `tokens` padded tokens after one prefix of `prefix` tokens.

    Attention: three states (embeddings, residual, norm); queries as computed, scaled and gathered, and four copies of
    the result on its way back; keys and values as computed and gathered; scores with the prefix, these concatenated
    with the row's own, and their softmax. Feed-forward: four states, and three of the inner size.
    """
    queries, keys = shape.heads * shape.size, shape.kv_heads * shape.size
    scores = shape.heads * (3 * prefix + 2 * width)
    attention = 3 * shape.hidden + 7 * queries + 4 * keys + scores
    inner = 4 * shape.hidden + 3 * shape.inner
    return tokens * itemsize * max(attention, inner)


def head_bytes(shape: ModelShape, itemsize: int, tokens: int) -> int:
    """Return the bytes of the output head for at most `tokens` answer positions.

    They are float32 logits and their top-k, candidates' weights, and a float32 copy of the head's weight unless it is
    float32 already (`lm_head.OutputHead`).
    """
    weight_copy = 0 if itemsize == 4 else shape.vocabulary * shape.hidden * 4
    at_once = max(1, 2**26 // max(2 * TOP_K * shape.hidden, shape.vocabulary))
    candidates = 3 * TOP_K // 2 * shape.hidden * (itemsize + 4)
    return weight_copy + min(tokens, at_once) * (shape.vocabulary * (itemsize + 9) + candidates)


def budget(memory: int) -> int:
    """Return the bytes of a GPU that a plan may use. A tenth, and at least 2 GiB, is left to CUDA and fragmentation."""
    return memory - max(2 * GIB, memory // 10)


def largest_plan(
    shape: ModelShape, parameters: int, itemsize: int, memory: int, *, sets: int, shots: int, gpus: int = 1
) -> BatchSizes | None:
    """Return the largest plan, in powers of two, that fits GPUs of `memory` bytes; None if even the smallest does not.

    Halves the size that causes the larger term until the plan fits.
    """
    room, sizes = budget(memory), MOST
    while True:
        needed = needs(shape, parameters, itemsize, sizes, sets=sets, shots=shots, gpus=gpus)
        if needed.total <= room:
            return sizes
        fewer_rows = needed.kv_cache >= max(needed.a_pass, needed.head) and sizes.chunk_rows > LEAST.chunk_rows
        if fewer_rows or sizes.batch_tokens == LEAST.batch_tokens:
            if sizes.chunk_rows == LEAST.chunk_rows:
                return None
            sizes = sizes._replace(chunk_rows=sizes.chunk_rows // 2)
        else:
            sizes = sizes._replace(batch_tokens=sizes.batch_tokens // 2)


class BatchPlan(NamedTuple):
    """A batch plan, the memory it needs (None: the model's shape is unknown), and a line that explains it."""

    sizes: BatchSizes
    needs: MemoryNeeds | None
    line: str


def plan_batches(
    folder: Path, dtype: str, memory: int, *, sets: int, shots: int, gpus: int = 1, parameters: int | None = None
) -> BatchPlan:
    """Return the batch plan for a model's folder on GPUs of `memory` bytes; `dtype`: float32, bfloat16 or float16.

    `parameters`: how many the model has, if its folder holds no weights.
    """
    itemsize = 4 if dtype == "float32" else 2
    shape = shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if shape is None:
        least = f"batches of {MOST.batch_tokens} tokens, chunks of {MOST.chunk_rows} rows"
        return BatchPlan(MOST, None, f"{least}: the model's config.json does not tell its shape in a way we know")
    parameters = parameters_of(folder) if parameters is None else parameters
    sizes = largest_plan(shape, parameters, itemsize, memory, sets=sets, shots=shots, gpus=gpus)
    needed = needs(shape, parameters, itemsize, sizes or LEAST, sets=sets, shots=shots, gpus=gpus)
    if sizes is None:
        return BatchPlan(
            LEAST,
            needed,
            f"the model may not fit: {needed.total / GIB:.1f} GiB at the least, of the GPU's {memory / GIB:.0f} GiB "
            f"{budget(memory) / GIB:.1f} count; --device map spreads it over all GPUs",
        )
    return BatchPlan(sizes, needed, format_plan(sizes, needed, memory))


def format_plan(sizes: BatchSizes, needed: MemoryNeeds, memory: int) -> str:
    """Return one line that says which sizes were chosen, and why."""
    parts = {
        "weights": needed.weights,
        "kept keys and values": needed.kv_cache + needed.prefixes,
        "a pass": needed.a_pass,
    }
    shares = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return (
        f"batches of {sizes.batch_tokens} tokens, chunks of {sizes.chunk_rows} rows: {needed.total / GIB:.1f} of the "
        f"GPU's {memory / GIB:.0f} GiB at most ({shares}); equal GPUs get equal sizes"
    )


def format_shortage(needed: MemoryNeeds, free: int) -> str | None:
    """Return a warning where another process holds so much memory that the plan may not fit; None otherwise."""
    if needed.total <= free:
        return None
    return (
        f"only {free / GIB:.1f} GiB of the GPU are free and up to {needed.total / GIB:.1f} may be needed: batches are "
        "halved if memory runs out, which may change bytes; --batch-tokens and --chunk-rows set less from the start"
    )
