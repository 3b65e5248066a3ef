"""Runs a model over the token trees of rows whose fact spans are probed, each behind the exemplars of one set.

`PackedTrees` computes each exemplar prefix once and packs the trees behind it (`packed_model.py`). `PlainTrees` runs
every way through a tree through the model's own forward pass, for architectures that the packed pass does not fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreknow.inference.engine import halved
from foreknow.inference.engine_choice import open_engine
from foreknow.inference.loglikelihood import own_attention
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import CachedPrefix, CachedTokens, Segment, TokenTree, round_up
from foreknow.inference.span_tree import Branch, SpanTree
from foreknow.models.loading import input_device
from foreknow.prompts.prompt_template import Prompter

_PREFIXES: Final = 16
"""Exemplar prefixes that are kept for later rows."""
_TRUNKS: Final = 64
_BRANCHES: Final = 16
"""Trunks, and branches, of one prefix whose lengths round up to the same multiple are rows of one segment on a CPU: all
rows of a segment are as wide as its longest, and attention computes the width. On a GPU, calls cost more than that."""
_COPIES: Final = 4
"""The most keys and values that branches copy at once, in multiples of a batch's tokens."""


class SpanJob(NamedTuple):
    """A row behind one exemplar set: the first `shared` tokens of `prefix`, then the tree's tokens.

    `wanted`: indices in the tree of the tokens whose next-token distributions are needed.
    """

    prefix: tuple[int, ...]
    shared: int
    tree: SpanTree
    wanted: list[int]


class TreeEngine(Protocol):
    """Runs a model over trees of tokens."""

    def run(self, jobs: Sequence[SpanJob]) -> Iterator[tuple[int, Tensor]]:
        """Yield each job's number, once, with the model's states at its wanted tokens, [wanted, ...]."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """Return next-token logits in float32, [states, vocabulary]."""
        ...

    def halve_batches(self) -> int | None:
        """See `engine.Engine.halve_batches`."""
        ...


class _Part(NamedTuple):
    """Tokens of a job that one pass computes: its trunk, or a branch of it behind `past`."""

    job: int
    tree: TokenTree
    past: CachedTokens | None = None


class PackedTrees:
    """Runs trees in packed passes behind cached prefixes, up to about `batch_tokens` tokens at once.

    A first pass computes the trunks of several rows, each behind the exemplars of its set, and keeps their keys and
    values; then the branches of these rows follow, each behind its own trunk up to where it leaves it. So attention
    never spans a whole tree.
    """

    def __init__(self, packed: PackedModel, batch_tokens: int):
        self.packed = packed
        self.batch_tokens = batch_tokens
        self._prefixes: dict[tuple[int, ...], CachedPrefix] = {}

    def run(self, jobs: Sequence[SpanJob]) -> Iterator[tuple[int, Tensor]]:
        """See `TreeEngine.run`."""
        for batch in self._batches(jobs):
            trunks = [_Part(n, _trunk_tree(jobs[n])) for n in batch]
            branches = [(n, branch) for n in batch for branch in jobs[n].tree.branches()]
            found, caches = self._forward(jobs, trunks, keep=bool(branches))
            states = {part.job: [part_states] for part, part_states in zip(trunks, found, strict=True)}
            nodes = {part.job: list(part.tree.wanted) for part in trunks}
            trunk_of = dict(zip(batch, caches, strict=True)) if branches else {}
            for few in self._branch_batches(branches):
                parts = [_Part(n, _branch_tree(jobs[n], branch), trunk_of[n].cut(branch.at + 1)) for n, branch in few]
                found, _ = self._forward(jobs, parts)
                for (n, branch), part, part_states in zip(few, parts, found, strict=True):
                    states[n].append(part_states)
                    nodes[n] += [branch.nodes[at] for at in part.tree.wanted]
            for n in batch:
                order = {node: at for at, node in enumerate(nodes[n])}
                yield n, torch.cat(states[n])[[order[node] for node in jobs[n].wanted]]

    def logits(self, states: Tensor) -> Tensor:
        """See `TreeEngine.logits`."""
        return self.packed.head.full_logits(states)

    def halve_batches(self) -> int | None:
        """See `engine.Engine.halve_batches`."""
        half = halved(self.batch_tokens)
        self.batch_tokens = half or self.batch_tokens
        return half

    def _forward(
        self, jobs: Sequence[SpanJob], parts: Sequence[_Part], *, keep: bool = False
    ) -> tuple[list[Tensor], list[CachedTokens]]:
        """Compute parts of jobs in one pass, each behind its job's prefix.

        Returns the states at the wanted tokens of each part, and with `keep` where the tokens of each are kept.
        """
        keys = [self._segment_key(jobs[part.job], part) for part in parts]
        order = sorted(range(len(parts)), key=keys.__getitem__)
        segments = []
        for _, group in itertools.groupby(order, key=keys.__getitem__):
            own = [parts[at] for at in group]
            job = jobs[own[0].job]
            prefix = self._prefix(job.prefix).cut(job.shared) if job.shared else None
            past = [part.past for part in own if part.past is not None]
            segments.append(Segment(prefix, [part.tree for part in own], past or None))
        states, rows = self.packed.forward(segments, keep=keep)
        sizes = [len(parts[at].tree.wanted) for at in order]
        by_part = dict(zip(order, states.split(sizes), strict=True))
        kept = dict(zip(order, itertools.chain.from_iterable(rows), strict=True)) if keep else {}
        return [by_part[at] for at in range(len(parts))], [kept[at] for at in range(len(kept))]

    def _segment_key(self, job: SpanJob, part: _Part) -> tuple[tuple[int, ...], int, int]:
        """Return what the parts of one segment share: their prefix and, on a CPU, about their length."""
        step = _TRUNKS if part.past is None else _BRANCHES
        width = round_up(len(part.tree.ids), step) if self.packed.device.type == "cpu" else 0
        return job.prefix, job.shared, width

    def _prefix(self, ids: tuple[int, ...]) -> CachedPrefix:
        """Return a prefix, computed in a pass of its own, so that its bits do not depend on what was probed before."""
        prefix = self._prefixes.pop(ids, None)
        if prefix is None:
            (prefix,) = self.packed.prefixes([ids])
        self._prefixes[ids] = prefix
        while len(self._prefixes) > _PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]  # the one that was not used for longest
        return prefix

    def _batches(self, jobs: Sequence[SpanJob]) -> list[list[int]]:
        """Split jobs into runs whose trunks have at most about `batch_tokens` tokens; those of one prefix are near."""
        order = sorted(range(len(jobs)), key=lambda n: (jobs[n].prefix, jobs[n].shared, jobs[n].tree.trunk, n))
        batches: list[list[int]] = []
        tokens = 0
        for n in order:
            tokens += jobs[n].tree.trunk
            if not batches or tokens > self.batch_tokens:
                batches.append([])
                tokens = jobs[n].tree.trunk
            batches[-1].append(n)
        return batches

    def _branch_batches(self, branches: Sequence[tuple[int, Branch]]) -> list[list[tuple[int, Branch]]]:
        """Split branches into runs whose tokens, and copies of the keys and values before them, stay small."""
        batches: list[list[tuple[int, Branch]]] = []
        tokens = 0
        for n, branch in sorted(branches, key=lambda pair: (pair[1].at, pair[0])):
            tokens += len(branch.nodes)
            copies = (len(batches[-1]) + 1) * (branch.at + 1) if batches else 0
            if not batches or tokens > self.batch_tokens or copies > _COPIES * self.batch_tokens:
                batches.append([])
                tokens = len(branch.nodes)
            batches[-1].append((n, branch))
        return batches


class PlainTrees:
    """Runs every way through a tree as a sequence of its own, by the model's own forward pass: many times slower."""

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval()
        self.device = input_device(model)

    @torch.inference_mode()
    def run(self, jobs: Sequence[SpanJob]) -> Iterator[tuple[int, Tensor]]:
        """See `TreeEngine.run`. The states are the logits themselves."""
        for number, job in enumerate(jobs):
            remaining = set(job.wanted)
            states: dict[int, Tensor] = {}
            for way in job.tree.sequences():
                own = [node for node in way if node in remaining]
                if not own:
                    continue
                ids = [*job.prefix[: job.shared], *(job.tree.ids[node] for node in way)]
                with own_attention(self.model):
                    logits = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0]
                depth = {node: job.shared + n for n, node in enumerate(way)}
                states |= {node: logits[depth[node]].float() for node in own}
                remaining -= set(own)
            yield number, torch.stack([states[node] for node in job.wanted])

    def logits(self, states: Tensor) -> Tensor:
        """See `TreeEngine.logits`."""
        return states

    def halve_batches(self) -> None:
        """See `engine.Engine.halve_batches`."""


def _trunk_tree(job: SpanJob) -> TokenTree:
    wanted = [node for node in job.wanted if node < job.tree.trunk]
    return TokenTree.chain(job.tree.ids[: job.tree.trunk], wanted)


def _branch_tree(job: SpanJob, branch: Branch) -> TokenTree:
    number = {node: at for at, node in enumerate(branch.nodes)}
    wanted = set(job.wanted)
    return TokenTree(
        [job.tree.ids[node] for node in branch.nodes],
        [number.get(job.tree.parents[node], -1) for node in branch.nodes],
        [at for at, node in enumerate(branch.nodes) if node in wanted],
    )


@contextmanager
def open_trees(
    model: PreTrainedModel, prompter: Prompter, batch_tokens: int, packed: PackedModel | None = None
) -> Iterator[TreeEngine]:
    """Choose the engine for trees. `packed`: the model with packed passes, if they are attached.

    Without it they are attached and checked here, and plain passes are used where packed ones do not fit.
    """
    with ExitStack() as stack:
        if packed is None:
            packed = stack.enter_context(open_engine(model, prompter, batch_tokens)).packed
        yield PlainTrees(model) if packed is None else PackedTrees(packed, batch_tokens)
