"""Packed segments: questions laid end to end behind shared prefixes, and the attention that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "foreknow_packed"


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a segment's own tokens, one pair a layer, each [kv heads, rows, slots, head size].

    `lengths`: tokens of each row that are filled; rows and slots beyond them are there to round the shape.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]


def gather_kv(rows: Sequence[tuple[KVCache, int]], lengths: Sequence[int]) -> KVCache:
    """The given rows of any number of `KVCache`, in that order, cut to `lengths` tokens each."""
    slots, count = round_up(max(lengths), 8), round_up(len(rows), 8)
    sources: list[KVCache] = []
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
    numbers = torch.tensor([n for both in zip(picks, places, strict=True) for some in both for n in some])
    sizes = [len(p) for p in picks for _ in (0, 1)]
    sent: dict[torch.device, tuple[Tensor, ...]] = {}
    layers = []
    for layer in range(len(sources[0].layers)):
        pair = []
        device = sources[0].layers[layer][0].device
        if device not in sent:
            sent[device] = numbers.to(device).split(sizes)
        for part in (0, 1):
            first = sources[0].layers[layer][part]
            out = first.new_zeros(first.shape[0], count, slots, first.shape[3])
            for source, pick, place_of in zip(sources, sent[device][::2], sent[device][1::2], strict=True):
                x = source.layers[layer][part][:, :, :slots].index_select(1, pick)
                out[:, place_of, : x.shape[2]] = x
            pair.append(out)
        layers.append((pair[0], pair[1]))
    return KVCache(layers, list(lengths))


@dataclass(frozen=True)
class CachedPrefix:
    """A prompt computed once: its token ids and, a layer, keys and values [kv heads, slots, head size].

    Slots beyond the tokens round the shape and are masked.
    """

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]

    def cut(self, length: int) -> CachedPrefix:
        """The first `length` tokens; attention is causal, so nothing has to be computed again."""
        return self if length == len(self.ids) else CachedPrefix(self.ids[:length], self.layers)


@dataclass(frozen=True)
class TokenTree:
    """New tokens of one row: a tree, given as ids and, for each, the index of its parent (-1 = the root).

    `wanted`: indices of the tokens whose hidden state is asked for.
    """

    ids: Sequence[int]
    parents: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def chain(cls, ids: Sequence[int], wanted: Sequence[int]) -> TokenTree:
        """A plain sequence."""
        return cls(ids, range(-1, len(ids) - 1), wanted)


@dataclass(frozen=True)
class Segment:
    """Rows behind one prefix (none: the rows start the text), with what they kept from an earlier pass."""

    prefix: CachedPrefix | None
    branches: Sequence[TokenTree]
    past: KVCache | None = None


@dataclass
class SegmentShape:
    """A segment as the host knows it. `keys`: those of what was kept earlier, then its own; `last`: the largest
    position of its tokens."""

    prefix: CachedPrefix | None
    past: KVCache | None
    rows: int
    width: int
    keys: int
    last: int
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class SegmentMask:
    """Where a segment's tokens lie in the batch and who may see whom, on one device."""

    gather: Tensor  # [rows * width] position in the batch of each padded slot
    query_positions: Tensor  # [rows, width]
    key_positions: Tensor  # [rows, keys]
    hidden: Tensor  # [rows, width, keys] whom a slot may not see
    _biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _far: dict[int, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 or -inf [rows, width, keys]; tokens further back than a sliding window are closed too."""
        if (window, dtype) not in self._biases:
            hidden = self.hidden
            if window is not None:
                hidden = hidden | (self.query_positions[:, :, None] - self.key_positions[:, None, :] >= window)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._biases[window, dtype] = zeros.masked_fill_(hidden, float("-inf"))
        return self._biases[window, dtype]

    def far(self, window: int, length: int, group: int) -> Tensor:
        """Which of a prefix's slots lie further back than a sliding window: [1, rows * group * width, length]."""
        if window not in self._far:
            keys = torch.arange(length, device=self.gather.device)
            far = self.query_positions[:, None, :, None] - keys >= window  # [rows, 1, width, length]
            self._far[window] = far.expand(-1, group, -1, -1).reshape(1, -1, length)
        return self._far[window]


@dataclass(frozen=True)
class DeviceBatch:
    """A batch's tensors on one device."""

    ids: Tensor  # [1, tokens]
    positions: Tensor  # [1, tokens]
    scatter: Tensor  # [tokens] padded slot of each token
    wanted: Tensor  # [wanted] tokens whose hidden state is asked for
    seats: list[SegmentMask]


@dataclass(frozen=True)
class PackedBatch:
    """A batch laid out on the host: its segments, and whether their keys and values are kept.

    Everything a device needs is two arrays, copied to it at once: a model spread over devices asks for each of them.
    """

    segments: list[SegmentShape]
    keep: bool
    numbers: Tensor  # int64: ids, positions, scatter, wanted, then each segment's gather and positions, end to end
    hidden: Tensor  # bool: each segment's, end to end
    tokens: int
    wanted: int
    _placed: dict[torch.device, DeviceBatch] = field(default_factory=dict)

    def on(self, device: torch.device) -> DeviceBatch:
        """The batch on a device."""
        if device not in self._placed:
            self._placed[device] = self._place(device)
        return self._placed[device]

    def _place(self, device: torch.device) -> DeviceBatch:
        sizes = [self.tokens, self.tokens, self.tokens, self.wanted]
        for s in self.segments:
            sizes += [s.rows * s.width, s.rows * s.width, s.rows * s.keys]
        ids, positions, scatter, wanted, *rest = self.numbers.to(device).split(sizes)
        masks = self.hidden.to(device).split([s.rows * s.width * s.keys for s in self.segments])
        seats = [
            SegmentMask(
                rest[3 * n],
                rest[3 * n + 1].view(s.rows, s.width),
                rest[3 * n + 2].view(s.rows, s.keys),
                mask.view(s.rows, s.width, s.keys),
            )
            for n, (s, mask) in enumerate(zip(self.segments, masks, strict=True))
        ]
        return DeviceBatch(ids[None], positions[None], scatter, wanted, seats)


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
    q_all = q_all * (size**-0.5 if scaling is None else scaling)
    k_all, v_all = key[0].transpose(0, 1), value[0].transpose(0, 1)
    here = batch.on(query.device)
    outputs = []
    for s, seat in zip(batch.segments, here.seats, strict=True):
        n, width = s.rows, s.width
        far_back = window if window is not None and s.last >= window else None
        q = q_all.index_select(0, seat.gather).view(n, width, kv_heads, group, size)
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads, n * group * width, size)
        k = k_all.index_select(0, seat.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        v = v_all.index_select(0, seat.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        if batch.keep:
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
        own = own + seat.bias(far_back, own.dtype)[None, :, None]
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
                shared = shared.masked_fill(seat.far(far_back, length, group), float("-inf"))
            own = torch.cat([shared, own], 2)
        weights = own.softmax(-1)
        out = torch.bmm(weights[..., length:].reshape(kv_heads * n, group * width, -1), v)
        out = out.view(kv_heads, n * group * width, size)
        if s.prefix is not None:
            out = torch.baddbmm(out, weights[..., :length], prefix_v)
        out = out.view(kv_heads, n, group, width, size).permute(1, 3, 0, 2, 4)
        outputs.append(out.reshape(n * width, heads, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return merged.index_select(0, here.scatter)[None], None


AttentionInterface.register(ATTENTION, _attend)


class UnsupportedModel(Exception):
    """This architecture does not compute its attention through the interface, or adds to it."""


def round_up(n: int, to: int) -> int:
    """n rounded up. The CPU library builds a kernel for every new shape, which costs more than a little padding."""
    return -(-n // to) * to


def slots_of(x: Tensor, width: int) -> Tensor:
    """[kv heads, tokens, size] cut or padded to `width` tokens, in memory of its own."""
    return nn.functional.pad(x[:, :width], (0, 0, 0, width - min(width, x.shape[1]))).contiguous()


def lay_out(segments: Sequence[Segment], keep: bool) -> PackedBatch:
    """Lay segments end to end, rounded up to 64 tokens."""
    ids: list[int] = []
    wanted: list[int] = []
    positions, scatter, seats, masks = [], [], [], []
    laid = []
    slots = 0
    for s in segments:
        start = 0 if s.prefix is None else len(s.prefix.ids)
        longest = max(len(b.ids) for b in s.branches)
        width = longest if longest <= 2 else round_up(longest, 4)
        past = 0 if s.past is None else s.past.layers[0][0].shape[2]
        rows = round_up(len(s.branches), 8)
        lengths, before, first = np.zeros((3, rows, 1), dtype=np.int64)
        depth = np.tile(np.arange(width), (rows, 1))
        hidden = np.ones((rows, width, past + width), dtype=bool)
        hidden[:, :, past:] = np.triu(hidden[0, :, past:], 1)
        hidden[len(s.branches) :, :, past + 1 :] = True
        for r, b in enumerate(s.branches):
            first[r], lengths[r] = len(ids), len(b.ids)
            before[r] = 0 if s.past is None else s.past.lengths[r]
            if not isinstance(b.parents, range):
                depth[r, : len(b.ids)], hidden[r, :, past:] = _family_tree(b.parents, width)
            wanted.extend(len(ids) + w for w in b.wanted)
            ids.extend(b.ids)
        filled = np.arange(width) < lengths
        old = np.arange(past) < before
        hidden[: len(s.branches), :, :past] = ~old[: len(s.branches), None]
        gather = np.where(filled, first + np.arange(width), first)
        query = np.where(filled, depth + start + before, 0)
        keys = np.concatenate([np.where(old, np.arange(past) + start, 0), query], axis=1)
        positions.append(query[filled])
        scatter.append(np.flatnonzero(filled) + slots)
        seats += [gather.ravel(), query.ravel(), keys.ravel()]
        masks.append(hidden.ravel())
        slots += rows * width
        laid.append(SegmentShape(s.prefix, s.past, rows, width, past + width, int(query.max())))
    spare = np.zeros(round_up(len(ids), 64) - len(ids), dtype=np.int64)
    head = [np.asarray(ids), spare, *positions, spare, *scatter, spare, np.asarray(wanted, dtype=np.int64)]
    return PackedBatch(
        laid,
        keep,
        torch.from_numpy(np.concatenate([*head, *seats])),
        torch.from_numpy(np.concatenate(masks)),
        len(ids) + len(spare),
        len(wanted),
    )


def _family_tree(parents: Sequence[int], width: int) -> tuple[list[int], NDArray[np.bool_]]:
    """Each token's depth, and whom it may not see of `width` slots: all but its ancestors and itself."""
    hidden = np.ones((width, width), dtype=bool)
    depth: list[int] = []
    for i, parent in enumerate(parents):
        depth.append(0 if parent < 0 else depth[parent] + 1)
        if parent >= 0:
            hidden[i] = hidden[parent]
        hidden[i, i] = False
    hidden[len(depth) :, 0] = False
    return depth, hidden
