"""Packed segments: questions laid end to end behind shared prefixes, and the attention that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "foreknow_packed"


@dataclass(frozen=True)
class Kept:
    """Keys and values of a segment's own tokens, one pair a layer, each [kv heads, rows, slots, head size].

    `lengths`: tokens of each row that are filled; rows and slots beyond them are there to round the shape.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]


def gather_kept(rows: Sequence[tuple[Kept, int]], lengths: Sequence[int]) -> Kept:
    """The given rows of any number of `Kept`, in that order, cut to `lengths` tokens each."""
    slots, count = round_up(max(lengths), 8), round_up(len(rows), 8)
    sources: list[Kept] = []
    picks: list[list[int]] = []
    places: list[list[int]] = []
    seen: dict[int, int] = {}
    for place, (kept, row) in enumerate(rows):
        at = seen.setdefault(id(kept), len(sources))
        if at == len(sources):
            sources.append(kept)
            picks.append([])
            places.append([])
        picks[at].append(row)
        places[at].append(place)
    device = sources[0].layers[0][0].device
    picked = [torch.tensor(p, device=device) for p in picks]
    placed = [torch.tensor(p, device=device) for p in places]
    layers = []
    for layer in range(len(sources[0].layers)):
        pair = []
        for part in (0, 1):
            first = sources[0].layers[layer][part]
            out = first.new_zeros(first.shape[0], count, slots, first.shape[3])
            for source, pick, place_of in zip(sources, picked, placed, strict=True):
                x = source.layers[layer][part][:, :, :slots].index_select(1, pick)
                out[:, place_of, : x.shape[2]] = x
            pair.append(out)
        layers.append((pair[0], pair[1]))
    return Kept(layers, list(lengths))


@dataclass(frozen=True)
class Prefix:
    """A prompt computed once: its token ids and, a layer, keys and values [kv heads, slots, head size].

    Slots beyond the tokens round the shape and are masked.
    """

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens; attention is causal, so nothing has to be computed again."""
        return self if length == len(self.ids) else Prefix(self.ids[:length], self.layers)


@dataclass(frozen=True)
class Branch:
    """New tokens of one row: a tree, given as ids and, for each, the index of its parent (-1 = the root).

    `wanted`: indices of the tokens whose hidden state is asked for.
    """

    ids: Sequence[int]
    parents: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def chain(cls, ids: Sequence[int], wanted: Sequence[int]) -> Branch:
        """A plain sequence."""
        return cls(ids, range(-1, len(ids) - 1), wanted)


@dataclass(frozen=True)
class Segment:
    """Rows behind one prefix (none: the rows start the text), with what they kept from an earlier pass."""

    prefix: Prefix | None
    branches: Sequence[Branch]
    past: Kept | None = None


@dataclass
class Laid:
    """A segment laid out in the batch: where its tokens lie and who may see whom."""

    prefix: Prefix | None
    past: Kept | None
    rows: int
    width: int
    gather: Tensor  # [rows * width] position in the batch of each padded slot
    bias: Tensor  # [rows, width, past + width], 0 or -inf
    query_positions: Tensor  # [rows, width]
    key_positions: Tensor  # [rows, past + width]
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Plan:
    """A batch: its segments, and where each token of it lies in their padded slots. `keep` keys and values."""

    segments: list[Laid]
    scatter: Tensor  # [tokens] padded slot of each token of the batch
    keep: bool


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
    """Attention of packed segments. Shapes: query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
    del attention_mask, dropout
    plan: Plan = kwargs["packing"]
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModel("attention sinks")
    window = kwargs.get("sliding_window")
    softcap = kwargs.get("softcap")
    layer = cast(int, module.layer_idx)
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    q_all = query[0].transpose(0, 1).reshape(tokens, kv_heads, group, size)
    q_all = q_all * (size**-0.5 if scaling is None else scaling)
    k_all, v_all = key[0].transpose(0, 1), value[0].transpose(0, 1)
    outputs = []
    for s in plan.segments:
        n, width = s.rows, s.width
        q = q_all.index_select(0, s.gather).view(n, width, kv_heads, group, size)
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads, n * group * width, size)
        k = k_all.index_select(0, s.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        v = v_all.index_select(0, s.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        if plan.keep:
            s.kept.append((k, v))
        if s.past is not None:
            past_k, past_v = s.past.layers[layer]
            k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        k = k.reshape(kv_heads * n, -1, size)
        v = v.reshape(kv_heads * n, -1, size)
        own = torch.bmm(q.reshape(kv_heads * n, group * width, size), k.transpose(1, 2))
        if softcap is not None:
            own = torch.tanh(own / softcap) * softcap
        own = own.view(kv_heads, n, group, width, -1)
        own = own + _bias(s, window).to(own.dtype)[None, :, None]
        own = own.view(kv_heads, n * group * width, -1)
        length = 0
        if s.prefix is not None:
            prefix_k, prefix_v = s.prefix.layers[layer]
            length = prefix_k.shape[1]
            shared = torch.bmm(q, prefix_k.transpose(1, 2))
            if softcap is not None:
                shared = torch.tanh(shared / softcap) * softcap
            shared[..., len(s.prefix.ids) :] = -torch.inf
            shared = _window_prefix(shared, s, window, length, group)
            own = torch.cat([shared, own], 2)
        weights = own.softmax(-1)
        out = torch.bmm(weights[..., length:].reshape(kv_heads * n, group * width, -1), v)
        out = out.view(kv_heads, n * group * width, size)
        if s.prefix is not None:
            out = torch.baddbmm(out, weights[..., :length], prefix_v)
        out = out.view(kv_heads, n, group, width, size).permute(1, 3, 0, 2, 4)
        outputs.append(out.reshape(n * width, heads, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return merged.index_select(0, plan.scatter)[None], None


def _bias(s: Laid, window: int | None) -> Tensor:
    """The segment's own mask; tokens further back than a sliding window are closed too."""
    if window is None or int(s.query_positions.max()) < window:
        return s.bias
    far = s.query_positions[:, :, None] - s.key_positions[:, None, :] >= window
    return s.bias.masked_fill(far, float("-inf"))


def _window_prefix(shared: Tensor, s: Laid, window: int | None, length: int, group: int) -> Tensor:
    if window is None or int(s.query_positions.max()) < window:
        return shared
    keys = torch.arange(length, device=shared.device)
    far = s.query_positions[:, None, :, None] - keys >= window  # [rows, 1, width, length]
    far = far.expand(-1, group, -1, -1).reshape(1, -1, length)
    return shared.masked_fill(far, float("-inf"))


AttentionInterface.register(ATTENTION, _attend)


class UnsupportedModel(Exception):
    """This architecture does not compute its attention through the interface, or adds to it."""


def round_up(n: int, to: int) -> int:
    """n rounded up. The CPU library builds a kernel for every new shape, which costs more than a little padding."""
    return -(-n // to) * to


def slots_of(x: Tensor, width: int) -> Tensor:
    """[kv heads, tokens, size] cut or padded to `width` tokens, in memory of its own."""
    return nn.functional.pad(x[:, :width], (0, 0, 0, width - min(width, x.shape[1]))).contiguous()


def lay(segments: Sequence[Segment], device: torch.device) -> tuple[list[int], list[int], list[int], list[Laid]]:
    """Token ids, positions and wanted indices of the whole batch, and each segment's layout."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    laid = []
    for s in segments:
        start = 0 if s.prefix is None else len(s.prefix.ids)
        longest = max(len(b.ids) for b in s.branches)
        width = longest if longest <= 2 else round_up(longest, 4)
        past = 0 if s.past is None else s.past.layers[0][0].shape[2]
        rows = round_up(len(s.branches), 8)
        gather = torch.zeros(rows, width, dtype=torch.long)
        visible = torch.zeros(rows, width, past + width, dtype=torch.bool)
        spot = torch.zeros(rows, width, dtype=torch.long)
        keys = torch.zeros(rows, past + width, dtype=torch.long)
        chain = torch.ones(width, width, dtype=torch.bool).tril()
        visible[len(s.branches) :, :, past] = True
        for r, b in enumerate(s.branches):
            n = len(b.ids)
            before = 0 if s.past is None else s.past.lengths[r]
            first = len(ids)
            gather[r, :n] = torch.arange(first, first + n)
            gather[r, n:] = first
            visible[r, :, :before] = True
            if isinstance(b.parents, range):
                visible[r, :, past:] = chain
                depth = list(range(n))
            else:
                depth = []
                for i, parent in enumerate(b.parents):
                    depth.append(0 if parent < 0 else depth[parent] + 1)
                    if parent >= 0:
                        visible[r, i, past:] = visible[r, parent, past:]
                    visible[r, i, past + i] = True
                visible[r, n:, past] = True
            spot[r, :n] = torch.tensor(depth) + (start + before)
            keys[r, :before] = torch.arange(before) + start
            keys[r, past : past + n] = spot[r, :n]
            ids.extend(b.ids)
            positions.extend(spot[r, :n].tolist())
            wanted.extend(first + w for w in b.wanted)
        bias = torch.zeros(rows, width, past + width).masked_fill_(~visible, float("-inf"))
        laid.append(
            Laid(
                s.prefix,
                s.past,
                rows,
                width,
                gather.view(-1).to(device),
                bias.to(device),
                spot.to(device),
                keys.to(device),
            )
        )
    return ids, positions, wanted, laid
