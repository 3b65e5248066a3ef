"""Packs segments (rows behind shared prefixes) into one batch without padding, with the arrays that keep rows apart.

Rows of one width, of any segments, are laid out in one go (`RowGroup`). From the groups come, on each device, every
segment's positions and mask (`SegmentMask`), and on a CPU the blocks whose attention is one call (`RowBlock`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHORT: Final = 32
"""Rows of more tokens are long: they are not padded to a multiple of eight."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a batch's own tokens, one pair per layer, each [tokens, kv heads, head size]."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class CachedTokens(NamedTuple):
    """One row's tokens in an earlier batch, whose keys and values are kept: `length` of `cache`, from `first` on."""

    cache: KVCache
    first: int
    length: int

    def cut(self, length: int) -> CachedTokens:
        """Return the first `length` tokens."""
        return self._replace(length=length)


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
    """Rows that follow one prefix (None: they start the text). `past`: each row's tokens from an earlier pass."""

    prefix: CachedPrefix | None
    branches: Sequence[TokenTree]
    past: Sequence[CachedTokens] | None = None


@dataclass
class SegmentShape:
    """A segment's shape, known on the host. `lengths`: the tokens of each row; `rows`: their number, rounded up.
    `past`: the slots of a row's cached tokens; `last`: the largest position of its tokens."""

    prefix: CachedPrefix | None
    lengths: list[int]
    rows: int
    width: int
    past: int
    last: int = 0

    @property
    def keys(self) -> int:
        """Return the number of keys of a row behind its prefix."""
        return self.past + self.width

    @property
    def prefix_length(self) -> int:
        """Return the number of tokens of the prefix; 0 without one."""
        return 0 if self.prefix is None else len(self.prefix.ids)


@dataclass(frozen=True)
class RowGroup:
    """Rows of one width and one number of past slots, of any segments, padding rows included.

    `members`: the numbers of their segments, whose rows follow each other. `queries`: the position in the batch of each
    slot; `keys`: that of each key in the past tokens, followed by the batch's own. `hidden`: True where a slot may not
    see a key. `filled`: True where a slot holds a token. `real`: True for rows that are not padding.
    """

    members: list[int]
    queries: Ints  # [rows, width]
    keys: Ints  # [rows, past + width]
    query_positions: Ints  # [rows, width]
    key_positions: Ints  # [rows, past + width]
    hidden: NDArray[np.bool_]  # [rows, width, past + width]
    filled: NDArray[np.bool_]  # [rows, width]
    real: NDArray[np.bool_]  # [rows]


@dataclass(frozen=True)
class SegmentMask:
    """A segment's token positions in the batch and its attention mask, on one device."""

    gather: Tensor  # [rows, width] position in the batch of each padded slot
    keys: Tensor  # [rows, keys] position of each key in the past tokens, followed by the batch's own
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
    """Rows of one width, of any segments, whose attention is one call. `keys` are indices into all prefixes' tokens,
    then the past tokens and then the batch's own; a row has as many as the longest prefix, the past and the width."""

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


@dataclass(frozen=True)
class DeviceBatch:
    """A batch's tensors on one device."""

    ids: Tensor  # [1, tokens]
    positions: Tensor  # [1, tokens]
    scatter: Tensor  # [tokens] padded slot of each token
    wanted: Tensor  # [wanted] tokens whose hidden states are returned
    past: list[Tensor]  # for each earlier cache, the tokens of it that this batch needs
    groups: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]  # each `RowGroup`'s queries, keys, positions, hidden
    segments: list[tuple[int, slice]]  # each segment's group, and its rows there
    filled: int  # the number of tokens that are not padding

    @cached_property
    def masks(self) -> list[SegmentMask]:
        """Return each segment's mask."""
        masks = []
        for group, rows in self.segments:
            queries, keys, query_positions, key_positions, hidden = self.groups[group]
            masks.append(
                SegmentMask(queries[rows], keys[rows], query_positions[rows], key_positions[rows], hidden[rows])
            )
        return masks

    @cached_property
    def gather(self) -> Tensor:
        """Return the position in the batch of each padded slot, of all segments: [slots]."""
        return torch.cat([mask.gather.flatten() for mask in self.masks])

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
    """A batch on the host: its segments, and whether to keep its keys and values in `kept`.

    `caches`: the earlier caches that it goes on from, and the tokens of each that it needs. A device needs two arrays,
    each copied to it once. A model that is spread over devices asks for several copies.
    """

    segments: list[SegmentShape]
    groups: list[RowGroup]
    caches: list[tuple[KVCache, Ints]]
    ids: Ints  # [tokens]
    positions: Ints  # [tokens]
    wanted: Ints
    filled: int
    keep: bool
    kept: KVCache = field(default_factory=KVCache)
    _on_device: dict[torch.device, DeviceBatch] = field(default_factory=dict)
    _row_blocks: dict[int, RowBlocks] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Return the number of tokens, padding included."""
        return len(self.ids)

    def rows(self) -> list[list[CachedTokens]]:
        """Return where the rows of each segment lie in `kept`."""
        first, rows = 0, list[list[CachedTokens]]()
        for s in self.segments:
            rows.append([])
            for length in s.lengths:
                rows[-1].append(CachedTokens(self.kept, first, length))
                first += length
        return rows

    def row_blocks(self, group: int) -> RowBlocks:
        """Return the batch as blocks of rows, on the CPU. `group`: the query heads of a key head."""
        if group not in self._row_blocks:
            self._row_blocks[group] = _row_blocks(self, group)
        return self._row_blocks[group]

    def on(self, device: torch.device) -> DeviceBatch:
        """Return the batch on a device."""
        if device not in self._on_device:
            self._on_device[device] = self._copy_to(device)
        return self._on_device[device]

    def _copy_to(self, device: torch.device) -> DeviceBatch:
        few = [self.ids, self.positions, self._scatter(), self.wanted, *(tokens for _, tokens in self.caches)]
        many = [a for g in self.groups for a in (g.queries, g.keys, g.query_positions, g.key_positions)]
        ids, positions, scatter, wanted, *rest = _copy([*few, *many], device)
        past, of_groups = rest[: len(self.caches)], rest[len(self.caches) :]
        hidden = _copy([g.hidden for g in self.groups], device)
        groups = list(zip(*(of_groups[part::4] for part in range(4)), hidden, strict=True))
        places = {s: (n, rows) for n, g in enumerate(self.groups) for s, rows in _slices(g.members, self.segments)}
        segments = [places[n] for n in range(len(self.segments))]
        return DeviceBatch(ids[None], positions[None], scatter, wanted, past, groups, segments, self.filled)

    def _scatter(self) -> Ints:
        """Return the padded slot of each token, where the segments' slots follow each other."""
        scatter = np.zeros(self.tokens, dtype=np.int64)
        begins = list(itertools.accumulate((s.rows * s.width for s in self.segments), initial=0))
        for g in self.groups:
            slots = np.concatenate([np.arange(begins[n], begins[n + 1]) for n in g.members])
            scatter[g.queries[g.filled]] = slots[g.filled.reshape(-1)]
        return scatter


def _copy(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Copy arrays of one type to a device, in one go."""
    flat = torch.from_numpy(np.concatenate([a.reshape(-1) for a in arrays])).to(device)
    return [part.view(a.shape) for part, a in zip(flat.split([a.size for a in arrays]), arrays, strict=True)]


def _slices(members: Iterable[int], segments: Sequence[SegmentShape]) -> Iterator[tuple[int, slice]]:
    """Yield the number of each segment of a group, and its rows in the group."""
    first = 0
    for number in members:
        yield number, slice(first, first + segments[number].rows)
        first += segments[number].rows


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


def pack_segments(segments: Sequence[Segment], keep: bool) -> PackedBatch:
    """Concatenate segments into one batch, padded to a multiple of 64 tokens."""
    ids = [token for s in segments for b in s.branches for token in b.ids]
    wanted: list[int] = []
    begin = 0
    for s in segments:
        for b in s.branches:
            wanted.extend([begin + w for w in b.wanted])
            begin += len(b.ids)
    caches, firsts = _past_tokens(segments)
    past_tokens = sum(len(tokens) for _, tokens in caches)
    shapes = [_shape(s) for s in segments]
    begins = np.cumsum([0, *(sum(shape.lengths) for shape in shapes)])
    same: dict[tuple[int, int], list[int]] = {}
    for n, shape in enumerate(shapes):
        same.setdefault((shape.width, shape.past), []).append(n)
    groups = [_group(members, segments, shapes, begins, firsts, past_tokens) for members in same.values()]
    positions = np.zeros(round_up(len(ids), 64), dtype=np.int64)
    for g in groups:
        positions[g.queries[g.filled]] = g.query_positions[g.filled]
        for n, rows in _slices(g.members, shapes):
            shapes[n].last = int(g.query_positions[rows].max())
    ids += [0] * (len(positions) - len(ids))
    return PackedBatch(
        shapes, groups, caches, np.array(ids, dtype=np.int64), positions, np.array(wanted, dtype=np.int64), begin, keep
    )


def _shape(s: Segment) -> SegmentShape:
    lengths = [len(b.ids) for b in s.branches]
    longest = max(lengths)
    width = longest if longest <= 2 else round_up(longest, 4)
    past = 0 if s.past is None else round_up(max(tokens.length for tokens in s.past), 8)
    return SegmentShape(s.prefix, lengths, padded_rows(len(lengths), max(width, past)), width, past)


def _past_tokens(segments: Sequence[Segment]) -> tuple[list[tuple[KVCache, Ints]], list[list[int]]]:
    """Return the earlier caches with the tokens needed of each, once; and where each row's begin in all of them."""
    caches: dict[int, KVCache] = {}
    longest: dict[int, dict[int, int]] = {}  # of each cache: the most tokens needed of the row that begins at a token
    for s in segments:
        for cache, first, length in s.past or ():
            caches[id(cache)] = cache
            rows = longest.setdefault(id(cache), {})
            rows[first] = max(rows.get(first, 0), length)
    places: dict[tuple[int, int], int] = {}
    needed = []
    total = 0
    for key, rows in longest.items():
        needed.append((caches[key], np.concatenate([np.arange(first, first + n) for first, n in rows.items()])))
        for first, length in rows.items():
            places[key, first] = total
            total += length
    return needed, [[places[id(cache), first] for cache, first, _ in s.past or ()] for s in segments]


def _group(
    members: list[int],
    segments: Sequence[Segment],
    shapes: Sequence[SegmentShape],
    begins: Ints,
    firsts: Sequence[Sequence[int]],
    past_tokens: int,
) -> RowGroup:
    """Lay out the rows of segments of one width and one number of past slots.

    `begins`: each segment's first token in the batch; `firsts`: each row's first past token, of `past_tokens` in all.
    """
    width, past = shapes[members[0]].width, shapes[members[0]].past
    count = sum(shapes[n].rows for n in members)
    first, lengths, start, before, first_before = np.zeros((5, count, 1), dtype=np.int64)
    real = np.zeros(count, dtype=bool)
    slots = np.arange(width)
    depth = np.tile(slots, (count, 1))
    hidden = np.ones((count, width, past + width), dtype=bool)
    hidden[:, :, past:] = slots > slots[:, None]
    trees: dict[int, tuple[list[int], NDArray[np.bool_]]] = {}  # prompts of a row share their answers' tree
    for n, rows in _slices(members, shapes):
        s, sizes = segments[n], shapes[n].lengths
        own = slice(rows.start, rows.start + len(sizes))
        real[own] = True
        lengths[own, 0] = sizes
        first[own, 0] = begins[n] + np.cumsum([0, *sizes[:-1]])
        start[own] = shapes[n].prefix_length
        if s.past is not None:
            before[own, 0] = [tokens.length for tokens in s.past]
            first_before[own, 0] = firsts[n]
        for r, b in enumerate(s.branches, rows.start):
            if not isinstance(b.parents, range):
                if id(b.parents) not in trees:
                    trees[id(b.parents)] = _family_tree(b.parents, width)
                depth[r, : len(b.ids)], hidden[r, :, past:] = trees[id(b.parents)]
    hidden[~real, :, past + 1 :] = True
    filled = slots < lengths
    queries = first + slots * filled
    query_positions = (depth + (start + before)) * filled
    keys, key_positions = past_tokens + queries, query_positions
    if past:
        slots_of_past = np.arange(past)
        old = slots_of_past < before
        hidden[:, :, :past] = ~old[:, None]
        keys = np.concatenate([first_before + slots_of_past * old, keys], axis=1)
        key_positions = np.concatenate([(slots_of_past + start) * old, key_positions], axis=1)
    return RowGroup(members, queries, keys, query_positions, key_positions, hidden, filled, real)


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


def _row_blocks(batch: PackedBatch, group: int) -> RowBlocks:
    """Make a block of the rows of each group, without padding rows."""
    prefixes: dict[tuple[int, int], tuple[CachedPrefix, int]] = {}
    total = 0
    for s in batch.segments:
        if s.prefix is not None and (id(s.prefix.layers), s.prefix_length) not in prefixes:
            prefixes[id(s.prefix.layers), s.prefix_length] = (s.prefix, total)
            total += s.prefix_length
    scatter = np.zeros(batch.tokens, dtype=np.int64)
    blocks, slots = [], 0
    for g in batch.groups:
        first, length = np.zeros((2, len(g.real), 1), dtype=np.int64)
        for n, rows in _slices(g.members, batch.segments):
            s = batch.segments[n]
            if s.prefix is not None:
                first[rows], length[rows] = prefixes[id(s.prefix.layers), s.prefix_length][1], s.prefix_length
        first, length, hidden = first[g.real], length[g.real], g.hidden[g.real]
        places = np.arange(length.max())
        shared = first + np.minimum(places, np.maximum(length - 1, 0))
        closed = np.broadcast_to((places >= length)[:, None], (*hidden.shape[:2], len(places)))
        shut = torch.from_numpy(np.concatenate([closed, hidden], axis=2))
        bias = torch.zeros(shut.shape).masked_fill_(shut, -torch.inf)[:, None].repeat(1, 1, group, 1)
        keys = np.concatenate([shared, total + g.keys[g.real]], axis=1)
        queries, filled = g.queries[g.real], g.filled[g.real]
        flat_queries, flat_keys = torch.from_numpy(queries.reshape(-1)), torch.from_numpy(keys.reshape(-1))
        blocks.append(RowBlock(len(queries), flat_queries, flat_keys, bias))
        scatter[queries[filled]] = slots + np.flatnonzero(filled)
        slots += queries.size
    return RowBlocks(blocks, [prefix for prefix, _ in prefixes.values()], torch.from_numpy(scatter))
