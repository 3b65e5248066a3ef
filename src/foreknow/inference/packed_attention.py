"""Computes the attention of packed segments, which masks rows mutually and lets each see its prefix and its past."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from foreknow.inference.packing import PackedBatch

ATTENTION = "foreknow_packed"
_MOST_KEYS: Final = 32


class UnsupportedModel(Exception):
    """The architecture does not compute its attention through transformers' interface, or adds to it."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in packed segments. Shapes: query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
    del attention_mask, dropout
    batch: PackedBatch = kwargs["packing"]
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModel("attention sinks")
    window = kwargs.get("sliding_window")
    softcap = kwargs.get("softcap")
    layer = cast(int, module.layer_idx)
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    q_all = query[0].transpose(0, 1).reshape(tokens, kv_heads, group, size)
    k_all, v_all = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if batch.keep:
        k_all, v_all = k_all.contiguous(), v_all.contiguous()  # not a part of what also holds the queries
        batch.kept.layers.append((k_all, v_all))
    if _takes_row_blocks(batch, query, window, softcap):
        return _attend_in_blocks(batch, layer, q_all, k_all, v_all, scaling), None
    q_all = q_all * (size**-0.5 if scaling is None else scaling)
    on_device = batch.on(query.device)
    past_k, past_v = _past_tokens(batch, layer, query.device)
    if past_k:
        k_all, v_all = torch.cat([*past_k, k_all]), torch.cat([*past_v, v_all])
    outputs = []
    for s, mask in zip(batch.segments, on_device.masks, strict=True):
        n, width = s.rows, s.width
        far_back = window if window is not None and s.last >= window else None
        q = q_all.index_select(0, mask.gather.reshape(-1)).view(n, width, kv_heads, group, size)
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads, n * group * width, size)
        k = k_all.index_select(0, mask.keys.reshape(-1)).view(n, -1, kv_heads, size).permute(2, 0, 1, 3)
        v = v_all.index_select(0, mask.keys.reshape(-1)).view(n, -1, kv_heads, size).permute(2, 0, 1, 3)
        k = k.reshape(kv_heads * n, -1, size)
        v = v.reshape(kv_heads * n, -1, size)
        own = torch.bmm(q.reshape(kv_heads * n, group * width, size), k.transpose(1, 2))
        if softcap is not None:
            own = torch.tanh(own / softcap) * softcap
        own = own.view(kv_heads, n, group, width, -1)
        own = own + mask.bias(far_back, own.dtype)[None, :, None]
        own = own.view(kv_heads, n * group * width, -1)
        length = 0
        if s.prefix is not None:
            prefix_k, prefix_v = s.prefix.layers[layer]
            length = prefix_k.shape[1]
            shared = torch.bmm(q, prefix_k.transpose(1, 2))
            if softcap is not None:
                shared = torch.tanh(shared / softcap) * softcap
            shared[..., len(s.prefix.ids) :] = -torch.inf
            if far_back is not None:
                shared = shared.masked_fill(mask.far(far_back, length, group), float("-inf"))
            own = torch.cat([shared, own], 2)
        weights = own.softmax(-1)
        out = torch.bmm(weights[..., length:].reshape(kv_heads * n, group * width, -1), v)
        out = out.view(kv_heads, n * group * width, size)
        if s.prefix is not None:
            out = torch.baddbmm(out, weights[..., :length], prefix_v)
        out = out.view(kv_heads, n, group, width, size).permute(1, 3, 0, 2, 4)
        outputs.append(out.reshape(n * width, heads, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return merged.index_select(0, on_device.scatter)[None], None


AttentionInterface.register(ATTENTION, _attend)


def _past_tokens(batch: PackedBatch, layer: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return the keys and the values of the tokens of earlier batches that this one needs, [tokens, kv heads, size]."""
    needed = [(*cache.layers[layer], at) for (cache, _), at in zip(batch.caches, batch.on(device).past, strict=True)]
    return [k.index_select(0, at) for k, _, at in needed], [v.index_select(0, at) for _, v, at in needed]


def _takes_row_blocks(batch: PackedBatch, query: Tensor, window: int | None, softcap: float | None) -> bool:
    """Return whether one fused call computes rows of all segments: in float32 on a CPU, behind short prefixes.

    Every row holds a copy of its prefix's keys and values, so the keys may be `_MOST_KEYS` times the tokens at most.
    """
    if query.device.type != "cpu" or query.dtype != torch.float32 or softcap is not None:
        return False
    keys = sum(len(s.lengths) * (s.keys + s.prefix_length) for s in batch.segments)
    if keys > _MOST_KEYS * batch.tokens:
        return False
    return all(window is None or s.last < window for s in batch.segments)


def _attend_in_blocks(
    batch: PackedBatch, layer: int, q_all: Tensor, k_all: Tensor, v_all: Tensor, scaling: float | None
) -> Tensor:
    """Attend like `_attend`, row by row, each behind its own copy of its prefix's keys: a few calls for all segments.

    Shapes: q_all [tokens, kv heads, group, size], k_all and v_all [tokens, kv heads, size].
    """
    kv_heads, group, size = q_all.shape[1:]
    packed = batch.row_blocks(group)
    prefixes = [[x[:, : len(p.ids)].transpose(0, 1) for x in p.layers[layer]] for p in packed.prefixes]
    past_k, past_v = _past_tokens(batch, layer, q_all.device)
    k_all = torch.cat([*(k for k, _ in prefixes), *past_k, k_all])
    v_all = torch.cat([*(v for _, v in prefixes), *past_v, v_all])
    outputs = []
    for block in packed.blocks:
        n = block.rows
        q = q_all.index_select(0, block.queries).view(n, -1, kv_heads, group, size)
        q = q.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, size)
        k = k_all.index_select(0, block.keys).view(n, -1, kv_heads, size).transpose(1, 2)
        v = v_all.index_select(0, block.keys).view(n, -1, kv_heads, size).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=block.bias, scale=scaling)
        out = out.view(n, kv_heads, group, -1, size).permute(0, 3, 1, 2, 4)
        outputs.append(out.reshape(-1, kv_heads * group, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return merged.index_select(0, packed.scatter)[None]
