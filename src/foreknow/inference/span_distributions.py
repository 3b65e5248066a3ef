"""Reads off a model's next-token distributions what the spans of one text need: arg max, P(sample) and log p."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foreknow.inference.engine import Sampling
from foreknow.inference.span_tree import PathStates, SpanPaths, word_ends

_FLOATS: Final = 2**23
"""Numbers in one block of logits (32 MB). Blocks of 128 MB leave the processor's cache and take a third longer."""


class SpanStates(NamedTuple):
    """Where a span's paths stand in the tree of one job."""

    paths: SpanPaths
    spellings: list[PathStates]
    alternatives: list[PathStates]


class SpanScore(NamedTuple):
    """A span behind one set: whether the greedy path says it, P(sample), and log p of it and of each alternative."""

    greedy: bool
    p: float
    logp: float
    alternatives: list[float]


class SpanDistributions:
    """The figures of one job's next-token distributions that its spans need, computed block by block.

    `logits_of`: the model's logits after states. `sampling`: the audit's temperature and top-k. `ends`: by token,
    whether it ends a word (`word_ending_tokens`). `states`: those of the tree's tokens `wanted`. `spelled`: nodes of
    which the sampling distribution and the arg max are needed. `pairs`: (node, token) whose probabilities are needed.
    """

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        sampling: Sampling,
        ends: Tensor,
        states: Tensor,
        wanted: Sequence[int],
        spelled: set[int],
        pairs: Sequence[tuple[int, int]],
    ):
        self.logp: dict[tuple[int, int], float] = {}
        self.p: dict[tuple[int, int], float] = {}
        self.end_logp: dict[int, float] = {}
        self.end_p: dict[int, float] = {}
        self.greedy: dict[int, int] = {}
        self.logits_of, self.sampling, self.is_end = logits_of, sampling, ends
        of_node: dict[int, list[int]] = {}
        for node, token in pairs:
            of_node.setdefault(node, []).append(token)
        size = max(1, _FLOATS // len(ends))
        for start in range(0, len(wanted), size):
            nodes = wanted[start : start + size]
            self._add_block(states[start : start + size], nodes, spelled, of_node)

    def _add_block(
        self,
        states: Tensor,
        nodes: Sequence[int],
        spelled: set[int],
        of_node: dict[int, list[int]],
    ) -> None:
        logits = self.logits_of(states)
        ends = self.is_end.to(logits.device)
        lines = torch.tensor([n for n, node in enumerate(nodes) for _ in of_node.get(node, ())], dtype=torch.long)
        tokens = torch.tensor([token for node in nodes for token in of_node.get(node, ())], dtype=torch.long)
        keys = [(node, token) for node in nodes for token in of_node.get(node, ())]
        lines, tokens = lines.to(logits.device), tokens.to(logits.device)
        total = logits.logsumexp(-1)
        self.logp |= zip(keys, (logits[lines, tokens] - total[lines]).double().tolist(), strict=True)
        ending = logits.masked_fill(~ends, -torch.inf).logsumexp(-1) - total
        self.end_logp |= zip(nodes, ending.double().tolist(), strict=True)
        sampled = [n for n, node in enumerate(nodes) if node in spelled]
        if not sampled:
            return
        logits = logits[sampled]
        top = logits.amax(-1, keepdim=True)
        ids = torch.arange(logits.shape[1], device=logits.device)
        # of equal logits the lowest id wins, as in torch.argmax over the vocabulary
        greedy = torch.where(logits == top, ids, logits.shape[1] - 1).amin(-1)
        self.greedy |= zip([nodes[n] for n in sampled], greedy.tolist(), strict=True)
        sampling = self.sampling
        if sampling.top_k:
            kth = logits.topk(min(sampling.top_k, logits.shape[1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        p = (logits / sampling.temperature).softmax(-1)
        self.end_p |= zip([nodes[n] for n in sampled], (p * ends).sum(-1).double().tolist(), strict=True)
        line_of = {nodes[n]: at for at, n in enumerate(sampled)}
        own = [key for key in keys if key[0] in line_of]
        values = p[[line_of[node] for node, _ in own], [token for _, token in own]] if own else p.new_zeros(0)
        self.p |= zip(own, values.double().tolist(), strict=True)

    def score(self, span: SpanStates) -> SpanScore:
        """Score a span behind this job's set."""
        paths = span.paths
        greedy, p = False, 0.0
        for path in span.spellings:
            says = all(self.greedy[node] == token for node, token in zip(path.before, path.tokens, strict=True))
            greedy = greedy or (says and (not paths.asks_end or self._ends(self.greedy[path.last], paths.after)))
            share = math.prod(self.p[pair] for pair in zip(path.before, path.tokens, strict=True))
            p += share * self._end_p(path, paths)
        return SpanScore(
            greedy,
            min(p, 1.0) if math.isfinite(p) else math.nan,
            self._path_logp(span.spellings[0], paths),
            [self._path_logp(path, paths) for path in span.alternatives],
        )

    def _ends(self, token: int, after: int | None) -> bool:
        return token == after or bool(self.is_end[token])

    def _end_p(self, path: PathStates, paths: SpanPaths) -> float:
        if not paths.asks_end:
            return 1.0
        after = paths.after
        more = 0.0 if after is None or self.is_end[after] else self.p[path.last, after]
        return min(self.end_p[path.last] + more, 1.0)

    def _path_logp(self, path: PathStates, paths: SpanPaths) -> float:
        total = math.fsum(self.logp[pair] for pair in zip(path.before, path.tokens, strict=True))
        if not paths.asks_end:
            return total
        end, after = self.end_logp[path.last], paths.after
        if after is not None and not self.is_end[after]:
            more = self.logp[path.last, after]
            end = max(end, more) + math.log1p(math.exp(-abs(end - more)))
        return total + end


def word_ending_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Return for each of the `size` tokens of a model's vocabulary whether it ends a word that stands before it.

    A token is judged by the text that it adds behind a letter. Ids that the tokenizer does not know end nothing.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    known = min(size, len(tokenizer))
    alone = str(tokenizer.decode([letter], clean_up_tokenization_spaces=False))
    pairs = tokenizer.batch_decode([[letter, n] for n in range(known)], clean_up_tokenization_spaces=False)
    ends = word_ends(text[len(alone) :] if text.startswith(alone) else text for text in pairs)
    return torch.tensor([*ends, *[False] * (size - known)])
