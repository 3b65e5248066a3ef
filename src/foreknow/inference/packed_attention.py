"""Packs segments (concatenated questions behind shared prefixes), and computes attention that masks them mutually."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "foreknow_packed"
_MOST_KEYS: Final = 32
_SHORT: Final = 32
"""Rows of more tokens are long: they are not padded to a multiple of eight."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a segment's own tokens, one pair per layer, each [kv heads, rows, slots, head size].

    `lengths`: the number of tokens of each row; the rows and slots beyond them are padding.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]


def gather_kv(rows: Sequence[tuple[KVCache, int]], lengths: Sequence[int]) -> KVCache:
    """Gather the given rows of any number of caches, in order, each cut to its `lengths` tokens."""
    width = round_up(max(lengths), 8)
    count = padded_rows(len(rows), width)
    sources: list[KVCache] = []
    picks: list[list[int]] = []
    slots: list[list[int]] = []
    seen: dict[int, int] = {}
    for slot, (cache, row) in enumerate(rows):
        index = seen.setdefault(id(cache), len(sources))
        if index == len(sources):
            sources.append(cache)
            picks.append([])
            slots.append([])
        picks[index].append(row)
        slots[index].append(slot)
    numbers = torch.tensor([n for both in zip(picks, slots, strict=True) for entries in both for n in entries])
    sizes = [len(p) for p in picks for _ in (0, 1)]
    on_device: dict[torch.device, tuple[Tensor, ...]] = {}
    layers = []
    for layer in range(len(sources[0].layers)):
        pair = []
        device = sources[0].layers[layer][0].device
        if device not in on_device:
            on_device[device] = numbers.to(device).split(sizes)
        for part in (0, 1):
            first = sources[0].layers[layer][part]
            out = first.new_zeros(first.shape[0], count, width, first.shape[3])
            for source, pick, at in zip(sources, on_device[device][::2], on_device[device][1::2], strict=True):
                x = source.layers[layer][part][:, :, :width].index_select(1, pick)
                out[:, :, : x.shape[2]].index_copy_(1, at, x)
            pair.append(out)
        layers.append((pair[0], pair[1]))
    return KVCache(layers, list(lengths))


@dataclass(frozen=True)
class CachedPrefix:
    """A prompt that is computed once: its token ids and, per layer, keys and values [kv heads, slots, head size].

    Slots beyond the tokens are padding and are masked.
    """

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]

    def cut(self, length: int) -> CachedPrefix:
        """Return the first `length` tokens. As attention is causal, nothing is computed again."""
        return self if length == len(self.ids) else CachedPrefix(self.ids[:length], self.layers)


@dataclass(frozen=True)
class TokenTree:
    """The new tokens of one row as a tree: their ids and the index of each one's parent (-1 = the root).

    `wanted`: indices of the tokens whose hidden states are returned.
    """

    ids: Sequence[int]
    parents: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def chain(cls, ids: Sequence[int], wanted: Sequence[int]) -> TokenTree:
        """Return a tree that is one sequence."""
        return cls(ids, range(-1, len(ids) - 1), wanted)


@dataclass(frozen=True)
class Segment:
    """Rows that follow one prefix (None: they start the text), with their cache from an earlier pass."""

    prefix: CachedPrefix | None
    branches: Sequence[TokenTree]
    past: KVCache | None = None


@dataclass
class SegmentShape:
    """A segment's shape, known on the host. `lengths`: the tokens of each row; `rows`: their number, rounded up.
    `keys`: the cached keys of a row plus its own; `last`: the largest position of its tokens; `new_kv`: its new keys
    and values, one pair per layer."""

    prefix: CachedPrefix | None
    past: KVCache | None
    lengths: list[int]
    rows: int
    width: int
    keys: int
    last: int
    new_kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def prefix_length(self) -> int:
        """Return the number of tokens of the prefix; 0 without one."""
        return 0 if self.prefix is None else len(self.prefix.ids)


@dataclass(frozen=True)
class SegmentMask:
    """A segment's token positions in the batch and its attention mask, on one device."""

    gather: Tensor  # [rows * width] position in the batch of each padded slot
    query_positions: Tensor  # [rows, width]
    key_positions: Tensor  # [rows, keys]
    hidden: Tensor  # [rows, width, keys] True where a slot may not see a key
    _biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _far: dict[int, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive mask, 0 or -inf, [rows, width, keys]; it also closes keys outside a sliding window."""
        if (window, dtype) not in self._biases:
            hidden = self.hidden
            if window is not None:
                hidden = hidden | (self.query_positions[:, :, None] - self.key_positions[:, None, :] >= window)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._biases[window, dtype] = zeros.masked_fill_(hidden, float("-inf"))
        return self._biases[window, dtype]

    def far(self, window: int, length: int, group: int) -> Tensor:
        """Return True for the prefix's slots that lie outside a sliding window: [1, rows * group * width, length]."""
        if window not in self._far:
            keys = torch.arange(length, device=self.gather.device)
            far = self.query_positions[:, None, :, None] - keys >= window  # [rows, 1, width, length]
            self._far[window] = far.expand(-1, group, -1, -1).reshape(1, -1, length)
        return self._far[window]


@dataclass(frozen=True)
class RowBlock:
    """Rows of one width, of any segments, whose attention is one call. `keys` are indices into all prefixes' tokens and
    then the batch's own; a row has as many as the longest prefix and the width."""

    rows: int
    queries: Tensor  # [rows * width] position in the batch of each padded slot
    keys: Tensor  # [rows * keys]
    bias: Tensor  # [rows, 1, group * width, keys] 0 or -inf


@dataclass(frozen=True)
class RowBlocks:
    """A batch as blocks of rows. `prefixes`: each prefix once. `scatter`: the slot of each token in the blocks."""

    blocks: list[RowBlock]
    prefixes: list[CachedPrefix]
    scatter: Tensor  # [tokens]
    slots: list[tuple[int, int]]  # each segment's first slot in the blocks, and the number of its slots


@dataclass(frozen=True)
class DeviceBatch:
    """A batch's tensors on one device."""

    ids: Tensor  # [1, tokens]
    positions: Tensor  # [1, tokens]
    scatter: Tensor  # [tokens] padded slot of each token
    wanted: Tensor  # [wanted] tokens whose hidden states are returned
    masks: list[SegmentMask]
    filled: int  # the number of tokens that are not padding

    @cached_property
    def gather(self) -> Tensor:
        """Return the position in the batch of each padded slot, of all segments: [slots]."""
        return torch.cat([mask.gather for mask in self.masks])

    @cached_property
    def slot_of_token(self) -> Tensor:
        """Return the padded slot of each token, -1 for tokens that are padding: [tokens]."""
        slots = self.scatter.clone()
        slots[self.filled :] = -1
        return slots

    @cached_property
    def token_of_slot(self) -> Tensor:
        """Return the token of each padded slot, -1 for slots that are padding: [slots]."""
        tokens = torch.full_like(self.gather, -1)
        tokens[self.scatter[: self.filled]] = torch.arange(self.filled, device=tokens.device)
        return tokens


@dataclass(frozen=True)
class PackedBatch:
    """A batch on the host: its segments, and whether to keep their keys and values.

    A device needs two arrays, each copied to it once. A model that is spread over devices asks for several copies.
    """

    segments: list[SegmentShape]
    keep: bool
    numbers: Tensor  # int64: ids, positions, scatter, wanted, then each segment's gather and positions, end to end
    hidden: Tensor  # bool: each segment's, end to end
    tokens: int
    wanted: int
    _on_device: dict[torch.device, DeviceBatch] = field(default_factory=dict)
    _row_blocks: dict[int, RowBlocks] = field(default_factory=dict)

    def row_blocks(self, group: int) -> RowBlocks:
        """Return the batch as blocks of rows, on the CPU. `group`: the query heads of a key head."""
        if group not in self._row_blocks:
            masks = self.on(torch.device("cpu")).masks
            self._row_blocks[group] = _row_blocks(self.segments, masks, self.tokens, group)
        return self._row_blocks[group]

    def on(self, device: torch.device) -> DeviceBatch:
        """Return the batch on a device."""
        if device not in self._on_device:
            self._on_device[device] = self._copy_to(device)
        return self._on_device[device]

    def _copy_to(self, device: torch.device) -> DeviceBatch:
        sizes = [self.tokens, self.tokens, self.tokens, self.wanted]
        for s in self.segments:
            sizes += [s.rows * s.width, s.rows * s.width, s.rows * s.keys]
        ids, positions, scatter, wanted, *rest = self.numbers.to(device).split(sizes)
        hidden_masks = self.hidden.to(device).split([s.rows * s.width * s.keys for s in self.segments])
        masks = [
            SegmentMask(
                rest[3 * n],
                rest[3 * n + 1].view(s.rows, s.width),
                rest[3 * n + 2].view(s.rows, s.keys),
                hidden.view(s.rows, s.width, s.keys),
            )
            for n, (s, hidden) in enumerate(zip(self.segments, hidden_masks, strict=True))
        ]
        filled = sum(length for s in self.segments for length in s.lengths)
        return DeviceBatch(ids[None], positions[None], scatter, wanted, masks, filled)


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
    if _takes_row_blocks(batch, query, window, softcap):
        return _attend_in_blocks(batch, layer, q_all, k_all, v_all, scaling), None
    q_all = q_all * (size**-0.5 if scaling is None else scaling)
    on_device = batch.on(query.device)
    outputs = []
    for s, mask in zip(batch.segments, on_device.masks, strict=True):
        n, width = s.rows, s.width
        far_back = window if window is not None and s.last >= window else None
        q = q_all.index_select(0, mask.gather).view(n, width, kv_heads, group, size)
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads, n * group * width, size)
        k = k_all.index_select(0, mask.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        v = v_all.index_select(0, mask.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        if batch.keep:
            s.new_kv.append((k, v))
        if s.past is not None:
            past_k, past_v = s.past.layers[layer]
            k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
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


def _takes_row_blocks(batch: PackedBatch, query: Tensor, window: int | None, softcap: float | None) -> bool:
    """Return whether one fused call computes rows of all segments: in float32 on a CPU, behind short prefixes.

    Every row holds a copy of its prefix's keys and values, so the keys may be `_MOST_KEYS` times the tokens at most.
    """
    if query.device.type != "cpu" or query.dtype != torch.float32 or softcap is not None:
        return False
    keys = sum(len(s.lengths) * (s.width + s.prefix_length) for s in batch.segments)
    if keys > _MOST_KEYS * batch.tokens:
        return False
    return all(s.past is None and (window is None or s.last < window) for s in batch.segments)


def _attend_in_blocks(
    batch: PackedBatch, layer: int, q_all: Tensor, k_all: Tensor, v_all: Tensor, scaling: float | None
) -> Tensor:
    """Attend like `_attend`, row by row, each behind its own copy of its prefix's keys: a few calls for all segments.

    Shapes: q_all [tokens, kv heads, group, size], k_all and v_all [tokens, kv heads, size].
    """
    kv_heads, group, size = q_all.shape[1:]
    packed = batch.row_blocks(group)
    if batch.keep:
        own = torch.cat([block.queries for block in packed.blocks])
        new_k, new_v = k_all.index_select(0, own), v_all.index_select(0, own)
        for s, (start, count) in zip(batch.segments, packed.slots, strict=True):
            k, v = (x[start : start + count].view(-1, s.width, kv_heads, size) for x in (new_k, new_v))
            s.new_kv.append((k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)))
    prefixes = [[x[:, : len(p.ids)].transpose(0, 1) for x in p.layers[layer]] for p in packed.prefixes]
    k_all = torch.cat([*(k for k, _ in prefixes), k_all])
    v_all = torch.cat([*(v for _, v in prefixes), v_all])
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


def _row_blocks(segments: Sequence[SegmentShape], masks: Sequence[SegmentMask], tokens: int, group: int) -> RowBlocks:
    """Sort the rows of segments into blocks of one width."""
    prefixes: dict[tuple[int, int], tuple[CachedPrefix, int]] = {}
    total = 0
    for s in segments:
        key = (id(s.prefix and s.prefix.layers), s.prefix_length)
        if s.prefix is not None and key not in prefixes:
            prefixes[key] = (s.prefix, total)
            total += len(s.prefix.ids)
    widths = sorted({s.width for s in segments})
    blocks, slots, start = [], [(0, 0)] * len(segments), 0
    for width in widths:
        members = [n for n, s in enumerate(segments) if s.width == width]
        longest = max(segments[n].prefix_length for n in members)
        places = torch.arange(longest)
        queries, keys, hidden_parts = [], [], []
        for n in members:
            s, count = segments[n], len(segments[n].lengths)
            gather = masks[n].gather[: count * width]
            length = s.prefix_length
            first = 0 if s.prefix is None else prefixes[id(s.prefix.layers), length][1]
            shared = (first + places.clamp(max=max(length - 1, 0))).expand(count, -1)
            queries.append(gather)
            keys.append(torch.cat([shared, total + gather.view(count, width)], 1))
            closed = (places >= length).expand(count, width, -1)
            hidden_parts.append(torch.cat([closed, masks[n].hidden[:count]], 2))
            slots[n] = (start, count * width)
            start += count * width
        hidden = torch.cat(hidden_parts)
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        bias = bias[:, None].repeat(1, 1, group, 1)
        blocks.append(RowBlock(len(hidden), torch.cat(queries), torch.cat(keys).view(-1), bias))
    scatter = torch.zeros(tokens, dtype=torch.int64)
    at = 0
    for s, (first_slot, _) in zip(segments, slots, strict=True):
        for row, length in enumerate(s.lengths):
            begin = first_slot + row * s.width
            scatter[at : at + length] = torch.arange(begin, begin + length)
            at += length
    return RowBlocks(blocks, [prefix for prefix, _ in prefixes.values()], scatter, slots)


class UnsupportedModel(Exception):
    """The architecture does not compute its attention through transformers' interface, or adds to it."""


def round_up(n: int, to: int) -> int:
    """Round n up to a multiple. oneDNN builds a kernel for every new shape, which costs more than a little padding."""
    return -(-n // to) * to


def padded_rows(rows: int, width: int) -> int:
    """Return the number of rows, padding included, to compute at once for `rows` rows of up to `width` tokens.

    Short rows come in eights, so that there are few shapes. Padding a long row costs more than a new shape: of long
    rows, at most a quarter more are computed than there are.
    """
    if width <= _SHORT:
        return round_up(rows, 8)
    return round_up(rows, min(8, max(1, 2 ** (rows.bit_length() - 3))))


def slots_of(x: Tensor, width: int) -> Tensor:
    """Cut or pad [kv heads, tokens, size] to `width` tokens, as a contiguous copy."""
    return nn.functional.pad(x[:, :width], (0, 0, 0, width - min(width, x.shape[1]))).contiguous()


def pack_segments(segments: Sequence[Segment], keep: bool) -> PackedBatch:
    """Concatenate segments into one batch, padded to a multiple of 64 tokens."""
    ids: list[int] = []
    wanted: list[int] = []
    positions, scatter, indices, hidden_masks = [], [], [], []
    shapes = []
    trees: dict[tuple[int, int], tuple[list[int], NDArray[np.bool_]]] = {}  # prompts of a row share their answers' tree
    slots = 0
    for s in segments:
        start = 0 if s.prefix is None else len(s.prefix.ids)
        longest = max(len(b.ids) for b in s.branches)
        width = longest if longest <= 2 else round_up(longest, 4)
        past = 0 if s.past is None else s.past.layers[0][0].shape[2]
        rows = padded_rows(len(s.branches), width) if s.past is None else s.past.layers[0][0].shape[1]
        lengths, before, first = np.zeros((3, rows, 1), dtype=np.int64)
        slots_of_row = np.arange(width)
        depth = np.tile(slots_of_row, (rows, 1))
        hidden = np.ones((rows, width, past + width), dtype=bool)
        hidden[:, :, past:] = slots_of_row > slots_of_row[:, None]
        hidden[len(s.branches) :, :, past + 1 :] = True
        sizes = [len(b.ids) for b in s.branches]
        begins = list(itertools.accumulate(sizes, initial=len(ids)))[:-1]
        first[: len(sizes), 0], lengths[: len(sizes), 0] = begins, sizes
        if s.past is not None:
            before[: len(sizes), 0] = s.past.lengths[: len(sizes)]
        for r, (b, begin) in enumerate(zip(s.branches, begins, strict=True)):
            if not isinstance(b.parents, range):
                key = (id(b.parents), width)
                if key not in trees:
                    trees[key] = _family_tree(b.parents, width)
                depth[r, : len(b.ids)], hidden[r, :, past:] = trees[key]
            if isinstance(b.wanted, range):
                wanted.extend(range(begin + b.wanted.start, begin + b.wanted.stop, b.wanted.step))
            else:
                wanted.extend([begin + w for w in b.wanted])
            ids.extend(b.ids)
        filled = slots_of_row < lengths
        query = (depth + (start + before)) * filled
        keys = query
        if past:
            slots_of_past = np.arange(past)
            old = slots_of_past < before
            hidden[: len(s.branches), :, :past] = ~old[: len(s.branches), None]
            keys = np.concatenate([(slots_of_past + start) * old, query], axis=1)
        positions.append(query[filled])
        scatter.append(np.flatnonzero(filled) + slots)
        indices += [(first + slots_of_row * filled).ravel(), query.ravel(), keys.ravel()]
        hidden_masks.append(hidden.ravel())
        slots += rows * width
        shapes.append(SegmentShape(s.prefix, s.past, sizes, rows, width, past + width, int(query.max())))
    padding = np.zeros(round_up(len(ids), 64) - len(ids), dtype=np.int64)
    head = [np.asarray(ids), padding, *positions, padding, *scatter, padding, np.asarray(wanted, dtype=np.int64)]
    return PackedBatch(
        shapes,
        keep,
        torch.from_numpy(np.concatenate([*head, *indices])),
        torch.from_numpy(np.concatenate(hidden_masks)),
        len(ids) + len(padding),
        len(wanted),
    )


def _family_tree(parents: Sequence[int], width: int) -> tuple[list[int], NDArray[np.bool_]]:
    """Return each token's depth, and its mask over `width` slots: True for all but its ancestors and itself."""
    hidden = np.ones((width, width), dtype=bool)
    depth: list[int] = []
    for i, parent in enumerate(parents):
        depth.append(0 if parent < 0 else depth[parent] + 1)
        if parent >= 0:
            hidden[i] = hidden[parent]
        hidden[i, i] = False
    hidden[len(depth) :, 0] = False
    return depth, hidden
