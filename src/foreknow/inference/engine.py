"""Computes the next-token distributions after prompts and token paths that the exact probe needs.

`PackedEngine` computes each exemplar prefix once and packs the questions behind it (`packed_model.py`).
`PlainEngine` runs whole sequences through the model's own forward pass: slower by an order of magnitude, for
architectures the packed pass does not fit. Both give the same distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from foreknow.inference.nodes import Nodes
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import CachedPrefix, CachedTokens, Segment, TokenTree
from foreknow.models.loading import input_device
from foreknow.prompts.vocabulary import TokenPath

Family = tuple[tuple[int, ...], ...]

LEAST_BATCH: Final = 64
"""Where memory runs out, no batch is made smaller than this many tokens."""


class Prompt(NamedTuple):
    """A prompt's token ids: the first `shared` ids of `family[member]`, then its `own`.

    A family is a set of prefixes that are always computed in one batch, so that a resumed run computes the same
    bytes for the same prefix.
    """

    family: Family
    member: int
    shared: int
    own: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the whole prompt."""
        return (*self.family[self.member][: self.shared], *self.own)


@dataclass(frozen=True)
class Sampling:
    """The sampling distribution: softmax of logits / `temperature` over the `top_k` largest (0 = all) and ties."""

    temperature: float = 0.5
    top_k: int = 40


class Session(Protocol):
    """Opened prompts, whose next-token distributions can be computed further along any path."""

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> Nodes:
        """Return the node after each (prompt number, path of tokens behind that prompt)."""
        ...


class Engine(Protocol):
    """Computes next-token distributions."""

    def open(
        self,
        prompts: Sequence[Prompt],
        trees: Sequence[Sequence[TokenPath]],
        targets: Sequence[Sequence[int]] | None = None,
        /,
    ) -> tuple[Session, Nodes]:
        """Run the prompts, each with a tree of paths (closed under prefixes).

        The nodes are those of the first prompt, then of the second, and so on: the root's, then each path's.
        `targets`: by prompt, a token for each of its nodes, whose log-probability is then the node's `log_p` if the
        engine finds it; an engine that does not leaves `log_p` None.
        """
        ...

    def halve_batches(self) -> int | None:
        """Compute half as many tokens at once; return how many. None if its batches cannot be made smaller."""
        ...


def halved(tokens: int) -> int | None:
    """Return half of the tokens of a batch; None if that is less than `LEAST_BATCH`."""
    return tokens // 2 if tokens >= 2 * LEAST_BATCH else None


def nodes_of(ids: Tensor, logits: Tensor, sampling: Sampling, log_total: Tensor | None = None) -> Nodes:
    """Make nodes from sorted top logits [n, width] (float32); `log_total`: logsumexp over the whole vocabulary."""
    # a node has a few dozen numbers: copy them from the device once and compute in float64 on the host
    ids, logits = ids.cpu(), logits.cpu()
    scaled = logits.double() / sampling.temperature
    total = scaled.logsumexp(-1) if log_total is None else log_total.cpu().double()
    p = (scaled - total[:, None]).exp()
    # of equal logits the lowest id wins, as in torch.argmax over the vocabulary
    top = logits == logits[:, :1]
    greedy = ids.masked_fill(~top, torch.iinfo(ids.dtype).max).amin(-1)
    tail = (1.0 - p.sum(-1)).clamp(min=0.0) if log_total is not None else torch.zeros_like(total)
    return Nodes(greedy.numpy(), ids.numpy(), p.numpy(), tail.numpy())


class _CachedQuestion(NamedTuple):
    """A prompt's own tokens, behind its prefix, with their keys and values."""

    prefix: CachedPrefix | None
    tokens: CachedTokens


class PackedEngine:
    """Computes nodes in packed forward passes of at most about `batch_tokens` new tokens."""

    def __init__(self, packed: PackedModel, sampling: Sampling, batch_tokens: int):
        self.packed = packed
        self.sampling = sampling
        self.batch_tokens = batch_tokens
        self._families: dict[Family, list[CachedPrefix]] = {}

    def open(
        self,
        prompts: Sequence[Prompt],
        trees: Sequence[Sequence[TokenPath]],
        targets: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Session, Nodes]:
        """See `Engine.open`. Prompts that share a prefix should be adjacent.

        `targets`: for a head of float32 and a `top_k`. Where a token is -1, its node's `log_p` is NaN.
        """
        made: dict[tuple[tuple[int, ...], int], TokenTree] = {}  # a row's prompts often differ in their prefix only
        for p, tree in zip(prompts, trees, strict=True):
            if (p.own, id(tree)) not in made:
                made[p.own, id(tree)] = _tree_branch(p.own, tree)
        branches = [made[p.own, id(tree)] for p, tree in zip(prompts, trees, strict=True)]
        # drop the prefixes of finished groups, so that memory does not grow with the run's rows
        needed = {id(p.family): p.family for p in prompts}.values()
        self._families = {family: prefixes for family, prefixes in self._families.items() if family in needed}
        questions: dict[int, _CachedQuestion] = {}
        nodes: list[Nodes] = []
        for batch in _batches(branches, self.batch_tokens):
            segments, parts = [], []
            for (family, member, shared), members in groupby(
                batch, key=lambda i: (prompts[i].family, prompts[i].member, prompts[i].shared)
            ):
                prefix = self._prefix(family, member, shared) if shared else None
                for rows in _similar_lengths(list(members), branches):
                    segments.append(Segment(prefix, [branches[i] for i in rows]))
                    parts.append(rows)
            states, caches = self.packed.forward(segments, keep=True)
            wanted = None if targets is None else [token for rows in parts for i in rows for token in targets[i]]
            nodes.append(self._nodes(states) if wanted is None else self._nodes_with_log_p(states, wanted))
            for segment, cache, rows in zip(segments, caches, parts, strict=True):
                for tokens, i in zip(cache, rows, strict=True):
                    questions[i] = _CachedQuestion(segment.prefix, tokens.cut(len(prompts[i].own)))
        session = _PackedSession(self, [questions[i] for i in range(len(prompts))])
        order = _in_order(list(questions), [len(branch.wanted) for branch in branches])
        return session, Nodes.concat(nodes).take(order)

    def halve_batches(self) -> int | None:
        """See `Engine.halve_batches`."""
        half = halved(self.batch_tokens)
        self.batch_tokens = half or self.batch_tokens
        return half

    def _prefix(self, family: Family, member: int, shared: int) -> CachedPrefix:
        prefixes = self._families.get(family)
        if prefixes is None:
            prefixes = []
            for part in _batches([TokenTree.chain(ids, []) for ids in family], self.batch_tokens):
                prefixes.extend(self.packed.prefixes([family[i] for i in part]))
            self._families[family] = prefixes
        return prefixes[member].cut(shared)

    def _nodes(self, states: Tensor) -> Nodes:
        if self.sampling.top_k:
            return nodes_of(*self.packed.head.top(states, self.sampling.top_k), self.sampling)
        nodes = []
        for part in states.split(64):
            logits = self.packed.head.full_logits(part)
            values, ids = logits.topk(min(512, logits.shape[1]), dim=-1)
            total = (logits.double() / self.sampling.temperature).logsumexp(-1)
            nodes.append(nodes_of(ids, values, self.sampling, total))
        return Nodes.concat(nodes)

    def _nodes_with_log_p(self, states: Tensor, targets: Sequence[int]) -> Nodes:
        tokens = torch.tensor(targets)
        ids, values, log_p = self.packed.head.top_with_log_p(states, self.sampling.top_k, tokens.clamp(min=0))
        found = log_p.cpu().double().masked_fill(tokens < 0, torch.nan)
        return replace(nodes_of(ids, values, self.sampling), log_p=found.numpy())


@dataclass(frozen=True)
class _PackedSession:
    engine: PackedEngine
    questions: list[_CachedQuestion]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> Nodes:
        """See `Session.extend`. Computes only the path's tokens; `open` cached the question's."""
        paths: dict[int, list[TokenPath]] = {}
        for i, path in requests:
            paths.setdefault(i, []).append(path)
        prompts = sorted(paths)
        branches = [_paths_branch(paths[i]) for i in prompts]
        nodes: list[Nodes] = []
        places: dict[tuple[int, TokenPath], int] = {}
        for batch in _batches(branches, self.engine.batch_tokens):
            segments = []
            for _, part in groupby(batch, key=lambda b: id(self.questions[prompts[b]].prefix)):
                rows = list(part)
                cached = [self.questions[prompts[b]] for b in rows]
                past = [question.tokens for question in cached]
                segments.append(Segment(cached[0].prefix, [branches[b] for b in rows], past))
                for b in rows:
                    for path in sorted(set(paths[prompts[b]])):
                        places[prompts[b], path] = len(places)
            states, _ = self.engine.packed.forward(segments)
            nodes.append(self.engine._nodes(states))
        return Nodes.concat(nodes).take(np.array([places[request] for request in requests], dtype=np.int64))


class PlainEngine:
    """Computes nodes by the model's own forward pass over whole sequences, `rows` at a time."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, rows: int = 8):
        self.model = model.eval()
        self.sampling = sampling
        self.rows = rows
        self.device = input_device(model)

    def open(
        self,
        prompts: Sequence[Prompt],
        trees: Sequence[Sequence[TokenPath]],
        _targets: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Session, Nodes]:
        """See `Engine.open`. Computes every path as a sequence of its own, and no `log_p`."""
        session = _PlainSession(self, [p.ids for p in prompts])
        return session, session.extend([(i, path) for i, tree in enumerate(trees) for path in ((), *tree)])

    def halve_batches(self) -> None:
        """See `Engine.halve_batches`."""

    @torch.inference_mode()
    def run(self, sequences: Sequence[Sequence[int]]) -> Nodes:
        """Return the node after each whole sequence."""
        nodes: list[Nodes] = []
        for start in range(0, len(sequences), self.rows):
            part = sequences[start : start + self.rows]
            width = max(len(s) for s in part)
            # right padding: in a causal model it never changes the tokens before it
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
            nodes.append(nodes_of(index, values, self.sampling, total))
        return Nodes.concat(nodes)


@dataclass(frozen=True)
class _PlainSession:
    engine: PlainEngine
    prompts: list[tuple[int, ...]]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> Nodes:
        """See `Session.extend`."""
        return self.engine.run([(*self.prompts[i], *path) for i, path in requests])


def _in_order(numbers: list[int], sizes: list[int]) -> NDArray[np.int64]:
    """Return the indices that put groups in order of their number. `numbers`: as they are; `sizes`: by number."""
    lengths = np.asarray(sizes, dtype=np.int64)
    begins = np.empty_like(lengths)
    begins[numbers] = np.cumsum(lengths[numbers]) - lengths[numbers]
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())


def _tree_branch(own: Sequence[int], tree: Sequence[TokenPath]) -> TokenTree:
    """Return a question and its answer paths as one branch. `wanted`: the question's end, then every path's end."""
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
    """Return paths after an already cached question as one branch. `wanted`: the end of each, in sorted order."""
    if len(paths) == 1 and paths[0]:
        return TokenTree.chain(paths[0], [len(paths[0]) - 1])
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


def _similar_lengths(rows: list[int], branches: Sequence[TokenTree]) -> list[list[int]]:
    """Split rows into runs of similar length, as attention pads each run to its longest row."""
    ordered = sorted(rows, key=lambda i: (len(branches[i].ids), i))
    runs: list[list[int]] = []
    shortest = 0
    for i in ordered:
        length = len(branches[i].ids)
        if not runs or length > max(2 * shortest, shortest + 12):
            runs.append([])
            shortest = length
        runs[-1].append(i)
    return runs


def _batches(branches: Iterable[TokenTree], tokens: int) -> list[list[int]]:
    """Split branches into runs of about `tokens` tokens. The split depends on nothing else."""
    batches: list[list[int]] = []
    filled = tokens
    for i, branch in enumerate(branches):
        if filled + len(branch.ids) > tokens and (filled or not batches):
            batches.append([])
            filled = 0
        batches[-1].append(i)
        filled += len(branch.ids)
    return batches
