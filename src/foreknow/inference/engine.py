"""Next-token distributions after prompts and token paths: what the probe asks a model for.

`PackedEngine` computes each exemplar prefix once and packs the questions behind it (`packed_model.py`).
`PlainEngine` runs whole sequences through the model's own forward pass: slower by an order of magnitude, for
architectures the packed pass does not fit. Both give the same distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreknow.inference.answer_search import Node
from foreknow.inference.packed_attention import CachedPrefix, KVCache, Segment, TokenTree, gather_kv
from foreknow.inference.packed_model import PackedModel
from foreknow.models.loading import input_device
from foreknow.prompts.vocabulary import TokenPath

Family = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids: the first `shared` of them are also the first of `family[member]`.

    A family is a set of prefixes computed together, always in the same company, so that the same prefix has
    the same bytes wherever a run begins again.
    """

    family: Family
    member: int
    shared: int
    own: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole prompt."""
        return (*self.family[self.member][: self.shared], *self.own)


@dataclass(frozen=True)
class Sampling:
    """What is drawn from: softmax of logits / `temperature` over the `top_k` largest (0 = all) and ties."""

    temperature: float = 0.5
    top_k: int = 40


class Session(Protocol):
    """Prompts that were opened, ready to be extended."""

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> list[Node]:
        """The node after each (prompt number, path of tokens behind that prompt)."""
        ...


class Engine(Protocol):
    """Gives next-token distributions."""

    def open(self, prompts: Sequence[Prompt], trees: Sequence[Sequence[TokenPath]]) -> tuple[Session, list[list[Node]]]:
        """Run the prompts, each with a tree of paths (closed under prefixes); nodes: the root, then each path."""
        ...


def nodes_of(ids: Tensor, logits: Tensor, sampling: Sampling, log_total: Tensor | None = None) -> list[Node]:
    """Nodes from sorted top logits [n, width] (float32); `log_total`: log of the whole vocabulary's sum."""
    # a few dozen numbers a node: one copy from the device, and the rest in the host's float64
    ids, logits = ids.cpu(), logits.cpu()
    scaled = logits.double() / sampling.temperature
    total = scaled.logsumexp(-1) if log_total is None else log_total.cpu().double()
    p = (scaled - total[:, None]).exp()
    # the arg max of equal logits is the lowest id, as torch.argmax over the vocabulary has it
    top = logits == logits[:, :1]
    greedy = ids.masked_fill(~top, torch.iinfo(ids.dtype).max).amin(-1)
    kept = (p > 0).sum(-1).tolist()
    tails = (1.0 - p.sum(-1)).clamp(min=0.0).tolist() if log_total is not None else [0.0] * len(kept)
    return [
        Node(g, line[:n], q[:n], tail)
        for g, line, q, n, tail in zip(greedy.tolist(), ids.tolist(), p.tolist(), kept, tails, strict=True)
    ]


@dataclass(frozen=True)
class _Opened:
    """Where a prompt's question tokens are kept: `length` of them in `row`, behind `prefix`."""

    kept: KVCache
    prefix: CachedPrefix | None
    row: int
    length: int


class PackedEngine:
    """Nodes by packed forward passes of at most about `batch_tokens` new tokens."""

    def __init__(self, packed: PackedModel, sampling: Sampling, batch_tokens: int):
        self.packed = packed
        self.sampling = sampling
        self.batch_tokens = batch_tokens
        self._families: dict[Family, list[CachedPrefix]] = {}

    def open(self, prompts: Sequence[Prompt], trees: Sequence[Sequence[TokenPath]]) -> tuple[Session, list[list[Node]]]:
        """See `Engine.open`. Prompts behind one prefix should stand together."""
        branches = [_tree_branch(p.own, tree) for p, tree in zip(prompts, trees, strict=True)]
        # prefixes of groups that are done go; the memory of a run does not grow with its rows
        needed = {p.family for p in prompts}
        self._families = {family: found for family, found in self._families.items() if family in needed}
        opened: dict[int, _Opened] = {}
        nodes: dict[int, list[Node]] = {}
        for batch in _batches(branches, self.batch_tokens):
            segments, parts = [], []
            for (family, member, shared), part in groupby(
                batch, key=lambda i: (prompts[i].family, prompts[i].member, prompts[i].shared)
            ):
                prefix = self._prefix(family, member, shared) if shared else None
                for rows in _alike(list(part), branches):
                    segments.append(Segment(prefix, [branches[i] for i in rows]))
                    parts.append(rows)
            states, kept = self.packed.forward(segments, keep=True)
            flat = iter(self._nodes(states))
            for segment, keep, rows in zip(segments, kept, parts, strict=True):
                lengths = [len(prompts[i].own) for i in rows]
                for at, i in enumerate(rows):
                    opened[i] = _Opened(keep, segment.prefix, at, lengths[at])
                    nodes[i] = [next(flat) for _ in branches[i].wanted]
        every = range(len(prompts))
        return _PackedSession(self, [opened[i] for i in every]), [nodes[i] for i in every]

    def _prefix(self, family: Family, member: int, shared: int) -> CachedPrefix:
        found = self._families.get(family)
        if found is None:
            found = []
            for part in _batches([TokenTree.chain(ids, []) for ids in family], self.batch_tokens):
                found.extend(self.packed.prefixes([family[i] for i in part]))
            self._families[family] = found
        return found[member].cut(shared)

    def _nodes(self, states: Tensor) -> list[Node]:
        if self.sampling.top_k:
            return nodes_of(*self.packed.head.top(states, self.sampling.top_k), self.sampling)
        found = []
        for part in states.split(64):
            logits = self.packed.head.full_logits(part)
            values, ids = logits.topk(min(512, logits.shape[1]), dim=-1)
            total = (logits.double() / self.sampling.temperature).logsumexp(-1)
            found.extend(nodes_of(ids, values, self.sampling, total))
        return found


@dataclass(frozen=True)
class _PackedSession:
    engine: PackedEngine
    opened: list[_Opened]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> list[Node]:
        """See `Session.extend`: only the path is computed; the question is kept from `open`."""
        asked: dict[int, list[TokenPath]] = {}
        for i, path in requests:
            asked.setdefault(i, []).append(path)
        prompts = sorted(asked)
        branches = [_paths_branch(asked[i]) for i in prompts]
        found: dict[tuple[int, TokenPath], Node] = {}
        for batch in _batches(branches, self.engine.batch_tokens):
            segments, order = [], []
            for _, part in groupby(batch, key=lambda b: id(self.opened[prompts[b]].prefix)):
                rows = list(part)
                at = [self.opened[prompts[b]] for b in rows]
                past = gather_kv([(o.kept, o.row) for o in at], [o.length for o in at])
                segments.append(Segment(at[0].prefix, [branches[b] for b in rows], past))
                order += [(prompts[b], path) for b in rows for path in sorted(set(asked[prompts[b]]))]
            states, _ = self.engine.packed.forward(segments)
            found.update(zip(order, self.engine._nodes(states), strict=True))
        return [found[request] for request in requests]


class PlainEngine:
    """Nodes by the model's own forward pass over whole sequences, `rows` of them at a time."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, rows: int = 8):
        self.model = model.eval()
        self.sampling = sampling
        self.rows = rows
        self.device = input_device(model)

    def open(self, prompts: Sequence[Prompt], trees: Sequence[Sequence[TokenPath]]) -> tuple[Session, list[list[Node]]]:
        """See `Engine.open`: every path is a sequence of its own."""
        session = _PlainSession(self, [p.ids for p in prompts])
        flat = [(i, path) for i, tree in enumerate(trees) for path in ((), *tree)]
        found = iter(session.extend(flat))
        return session, [[next(found) for _ in ((), *tree)] for tree in trees]

    @torch.inference_mode()
    def run(self, sequences: Sequence[Sequence[int]]) -> list[Node]:
        """The node after each whole sequence."""
        found: list[Node] = []
        for start in range(0, len(sequences), self.rows):
            part = sequences[start : start + self.rows]
            width = max(len(s) for s in part)
            # padded at the end: what stands behind a token never reaches it
            ids = torch.zeros(len(part), width, dtype=torch.long)
            for r, s in enumerate(part):
                ids[r, : len(s)] = torch.tensor(s)
            out = self.model(input_ids=ids.to(self.device), use_cache=False).logits
            last = torch.tensor([len(s) - 1 for s in part], device=self.device)
            logits = out[torch.arange(len(part), device=self.device), last].float()
            total = None
            k = min(self.sampling.top_k or 512, logits.shape[1])
            values, index = logits.topk(k, dim=-1)
            if self.sampling.top_k:
                width = max(k, int((logits >= values[:, -1:]).sum(-1).max()))  # nothing reaches NaN
                values, index = logits.topk(width, dim=-1)
                values = values.masked_fill(values < values[:, k - 1 : k], -torch.inf)
            else:
                total = (logits.double() / self.sampling.temperature).logsumexp(-1)
            found.extend(nodes_of(index, values, self.sampling, total))
        return found


@dataclass(frozen=True)
class _PlainSession:
    engine: PlainEngine
    prompts: list[tuple[int, ...]]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> list[Node]:
        """See `Session.extend`."""
        return self.engine.run([(*self.prompts[i], *path) for i, path in requests])


def _tree_branch(own: Sequence[int], tree: Sequence[TokenPath]) -> TokenTree:
    """A question and its answer paths as one branch; wanted: the question's end, then every path's end."""
    base = len(own)
    if len(tree) == 0 or all(len(path) == n + 1 for n, path in enumerate(tree)):
        chain = (*own, *(tree[-1] if tree else ()))
        return TokenTree.chain(chain, range(base - 1, len(chain)))
    spots: dict[TokenPath, int] = {(): base - 1}
    ids, parents = list(own), list(range(-1, base - 1))
    for path in tree:
        spots[path] = len(ids)
        ids.append(path[-1])
        parents.append(spots[path[:-1]])
    return TokenTree(ids, parents, list(spots.values()))


def _paths_branch(paths: Sequence[TokenPath]) -> TokenTree:
    """Paths behind a question already kept, as one branch; wanted: the end of each, in sorted order."""
    spots: dict[TokenPath, int] = {(): -1}
    ids: list[int] = []
    parents: list[int] = []
    for path in sorted(set(paths)):
        for n in range(1, len(path) + 1):
            if path[:n] not in spots:
                spots[path[:n]] = len(ids)
                ids.append(path[n - 1])
                parents.append(spots[path[: n - 1]])
    return TokenTree(ids, parents, [spots[path] for path in sorted(set(paths))])


def _alike(rows: list[int], branches: Sequence[TokenTree]) -> list[list[int]]:
    """Cut rows into runs of like length: attention pads each run to its longest row."""
    ordered = sorted(rows, key=lambda i: (len(branches[i].ids), i))
    found: list[list[int]] = []
    shortest = 0
    for i in ordered:
        length = len(branches[i].ids)
        if not found or length > max(2 * shortest, shortest + 12):
            found.append([])
            shortest = length
        found[-1].append(i)
    return found


def _batches(branches: Iterable[TokenTree], tokens: int) -> list[list[int]]:
    """Cut a list of branches into runs of about `tokens` tokens; depends on nothing else."""
    found: list[list[int]] = []
    filled = tokens
    for i, branch in enumerate(branches):
        if filled + len(branch.ids) > tokens and (filled or not found):
            found.append([])
            filled = 0
        found[-1].append(i)
        filled += len(branch.ids)
    return found
