"""How many tokens and rows a GPU takes at once, from the model's shape and the GPU's total memory.

    weights      the model's, in the dtype it computes in
    kept         keys and values of every question and answer of a chunk: the search goes on from them
    prefixes     keys and values of the exemplar prompts
    a pass       what one layer holds of a batch at its worst moment, in attention or in the feed-forward part
    the head     float32 logits, and the candidates' weights, of the answer positions

Total memory counts, not what is free: equal machines get equal sizes, so a run gives the same bytes on each of them
and goes on on another (design, section 8). What is free is only compared, and told. The terms of a pass are those of
`packed_attention._attend` and of a gated decoder layer, tensor by tensor; tests/test_memory.py compares them with
the tensors that are really alive.
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
"""Padded tokens of a question behind its prefix and of its answers' tree; 11 tokens in the packaged facts."""
GROUPS: Final = 4
"""Groups whose prefixes are held at once: those of a chunk."""
TOP_K: Final = 40
"""The paper's; what a pass holds hardly depends on it."""


class ModelShape(NamedTuple):
    """What of a model decides the memory of a pass. `size`: of a head; `inner`: of the feed-forward layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    size: int
    inner: int
    vocabulary: int


class BatchSizes(NamedTuple):
    """A batch plan: tokens computed at once, rows of a chunk."""

    batch_tokens: int
    chunk_rows: int


MOST: Final = BatchSizes(16384, 512)
"""More is not known to be faster: small models wait for Python by then, large ones for the products (docs/gpu.md)."""
LEAST: Final = BatchSizes(256, 8)


class Needs(NamedTuple):
    """Bytes of one GPU."""

    weights: int
    kept: int
    prefixes: int
    a_pass: int
    head: int

    @property
    def total(self) -> int:
        """All at the worst moment: the body and the head are never at work together."""
        return self.weights + self.kept + self.prefixes + max(self.a_pass, self.head)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a `config.json`; None where it is written in a way we do not know."""
    inside = config.get("text_config")
    found = {**config, **inside} if isinstance(inside, Mapping) else config

    def first(*names: str) -> int | None:
        values = (found.get(name) for name in names)
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
    """Numbers in a model folder's weights, from the headers of the files that are loaded.

    Older weights (`pytorch_model*.bin`), which have no header, are counted at two bytes each.
    """
    found = read_weight_files(folder)
    if not found.tensors:
        return sum(file.stat().st_size for file in found.files) // 2
    return sum(prod(tensor.shape) for tensor in found.tensors.values())


def needs(
    shape: ModelShape, parameters: int, itemsize: int, sizes: BatchSizes, *, sets: int, shots: int, gpus: int = 1
) -> Needs:
    """What an audit needs on each of `gpus` that share the layers; `itemsize`: bytes of a number."""
    prefix = shots * TOKENS_A_SHOT
    a_token = 2 * shape.layers * shape.kv_heads * shape.size * itemsize
    prompts = sizes.chunk_rows * sets
    gathered = min(prompts, sizes.batch_tokens)  # in the search, every question may be asked to go on
    return Needs(
        weights=parameters * itemsize // gpus,
        kept=(prompts + gathered) * SLOTS_A_PROMPT * a_token // gpus,
        prefixes=min(GROUPS, sizes.chunk_rows) * sets * prefix * a_token // gpus,
        a_pass=pass_bytes(shape, itemsize, min(sizes.batch_tokens, prompts * SLOTS_A_PROMPT), prefix, SLOTS_A_PROMPT),
        head=head_bytes(shape, itemsize, sizes.batch_tokens),
    )


def pass_bytes(shape: ModelShape, itemsize: int, tokens: int, prefix: int, width: int) -> int:
    """The worst moment of a layer for `tokens` padded tokens, all behind one prefix of so many tokens.

    Attention: three states (embeddings, residual, norm); queries as they are, scaled and cut, and the result four
    times on its way back; keys and values as they are and cut; scores against the prefix, those and the row's own
    in one, and their softmax. Feed-forward: four states, and three of the inner size.
    """
    queries, keys = shape.heads * shape.size, shape.kv_heads * shape.size
    scores = shape.heads * (3 * prefix + 2 * width)
    attention = 3 * shape.hidden + 7 * queries + 4 * keys + scores
    inner = 4 * shape.hidden + 3 * shape.inner
    return tokens * itemsize * max(attention, inner)


def head_bytes(shape: ModelShape, itemsize: int, tokens: int) -> int:
    """The output head for at most so many answer positions: float32 logits and what picks from them, candidates'
    weights, and its own weight in float32 where it is not (`lm_head.OutputHead`)."""
    whole = 0 if itemsize == 4 else shape.vocabulary * shape.hidden * 4
    at_once = max(1, 2**26 // max(2 * TOP_K * shape.hidden, shape.vocabulary))
    candidates = 3 * TOP_K // 2 * shape.hidden * (itemsize + 4)
    return whole + min(tokens, at_once) * (shape.vocabulary * (itemsize + 9) + candidates)


def budget(memory: int) -> int:
    """Of a GPU's bytes those we plan with: a tenth, and at least 2 GiB, are left to CUDA and to fragmentation."""
    return memory - max(2 * GIB, memory // 10)


def largest(
    shape: ModelShape, parameters: int, itemsize: int, memory: int, *, sets: int, shots: int, gpus: int = 1
) -> BatchSizes | None:
    """The largest plan, in powers of two, that fits GPUs of `memory` bytes; None where not even the least does.

    The larger of the two terms that a plan decides is halved until it fits.
    """
    room, sizes = budget(memory), MOST
    while True:
        found = needs(shape, parameters, itemsize, sizes, sets=sets, shots=shots, gpus=gpus)
        if found.total <= room:
            return sizes
        fewer_rows = found.kept >= max(found.a_pass, found.head) and sizes.chunk_rows > LEAST.chunk_rows
        if fewer_rows or sizes.batch_tokens == LEAST.batch_tokens:
            if sizes.chunk_rows == LEAST.chunk_rows:
                return None
            sizes = sizes._replace(chunk_rows=sizes.chunk_rows // 2)
        else:
            sizes = sizes._replace(batch_tokens=sizes.batch_tokens // 2)


class Planned(NamedTuple):
    """A batch plan, what it needs (None: the model's shape is not known), and the line that says so."""

    sizes: BatchSizes
    needs: Needs | None
    line: str


def planned(folder: Path, dtype: str, memory: int, *, sets: int, shots: int, gpus: int = 1) -> Planned:
    """The batch plan for a model's folder on GPUs of `memory` bytes; `dtype`: float32, bfloat16 or float16."""
    itemsize = 4 if dtype == "float32" else 2
    shape = shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if shape is None:
        least = f"batches of {MOST.batch_tokens} tokens, chunks of {MOST.chunk_rows} rows"
        return Planned(MOST, None, f"{least}: the model's config.json does not tell its shape in a way we know")
    parameters = parameters_of(folder)
    sizes = largest(shape, parameters, itemsize, memory, sets=sets, shots=shots, gpus=gpus)
    found = needs(shape, parameters, itemsize, sizes or LEAST, sets=sets, shots=shots, gpus=gpus)
    if sizes is None:
        return Planned(
            LEAST,
            found,
            f"the model may not fit: {found.total / GIB:.1f} GiB at the least, of the GPU's {memory / GIB:.0f} GiB "
            f"{budget(memory) / GIB:.1f} count; --device map spreads it over all GPUs",
        )
    return Planned(sizes, found, format_plan(sizes, found, memory))


def format_plan(sizes: BatchSizes, found: Needs, memory: int) -> str:
    """One line that says what was chosen, and from what."""
    parts = {"weights": found.weights, "kept keys and values": found.kept + found.prefixes, "a pass": found.a_pass}
    shares = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return (
        f"batches of {sizes.batch_tokens} tokens, chunks of {sizes.chunk_rows} rows: {found.total / GIB:.1f} of the "
        f"GPU's {memory / GIB:.0f} GiB at most ({shares}); equal GPUs get equal sizes"
    )


def tight(found: Needs, free: int) -> str | None:
    """What to say where another process holds so much that a plan may not fit; it is not changed for that."""
    if found.total <= free:
        return None
    return (
        f"only {free / GIB:.1f} GiB of the GPU are free and up to {found.total / GIB:.1f} may be needed: batches are "
        "halved if memory runs out, which may change bytes; --batch-tokens and --chunk-rows set less from the start"
    )
