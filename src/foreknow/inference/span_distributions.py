"""Reads off a model's next-token distributions what the spans of one text need: arg max, P(sample) and log p."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foreknow.inference.engine import Sampling
from foreknow.inference.lm_head import top_with_ties
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
        # of equal logits the lowest id wins: torch.max gives the first
        top, greedy = logits.max(-1)
        total, ending = _log_sums(logits, top, ends)
        self.logp |= zip(keys, (logits[lines, tokens] - total[lines]).double().tolist(), strict=True)
        self.end_logp |= zip(nodes, (ending - total).double().tolist(), strict=True)
        sampled = [n for n, node in enumerate(nodes) if node in spelled]
        if not sampled:
            return
        self.greedy |= zip([nodes[n] for n in sampled], greedy[sampled].tolist(), strict=True)
        line_of = {nodes[n]: at for at, n in enumerate(sampled)}
        own = [key for key in keys if key[0] in line_of]
        places = ([line_of[node] for node, _ in own], [token for _, token in own])
        end_p, p = self._sampled(logits[sampled], ends, places)
        self.end_p |= zip([nodes[n] for n in sampled], end_p.double().tolist(), strict=True)
        self.p |= zip(own, p.double().tolist(), strict=True)

    def _sampled(
        self, logits: Tensor, ends: Tensor, places: tuple[Sequence[int], Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return P(the next sampled token ends a word), [lines], and P of the tokens at `places` (lines, tokens)."""
        temperature, top_k = self.sampling.temperature, self.sampling.top_k
        wanted = logits[places] / temperature if places[0] else logits.new_zeros(0)
        if not top_k:
            p = (logits / temperature).softmax(-1)
            return (p * ends).sum(-1), p[places] if places[0] else wanted
        ids, values = top_with_ties(logits, min(top_k, logits.shape[1]))
        scaled = values / temperature
        total = scaled.logsumexp(-1)
        end_p = ((scaled - total[:, None]).exp() * ends[ids]).sum(-1)
        least = values.masked_fill(values.isinf(), torch.inf).amin(-1)  # what is below it cannot be drawn
        on = torch.tensor(places[0], dtype=torch.long, device=logits.device)
        drawn = wanted >= least[on] / temperature
        return end_p, (wanted - total[on]).exp() * drawn

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


def _log_sums(logits: Tensor, top: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the sum of exp(logits) of each line, over all tokens and over those that end a word.

    One exponential serves both. `top`: each line's largest logit. Where all ending tokens lie so far below it that
    their sum is 0 in float32, theirs is computed apart.
    """
    both = torch.stack([torch.ones_like(ends, dtype=logits.dtype), ends.to(logits.dtype)], 1)
    sums = (logits - top[:, None]).exp_() @ both
    total, ending = (sums.log() + top[:, None]).unbind(1)
    lost = sums[:, 1] == 0
    if bool(lost.any()):
        ending = ending.clone()
        ending[lost] = logits[lost].masked_fill(~ends, -torch.inf).logsumexp(-1)
    return total, ending


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
