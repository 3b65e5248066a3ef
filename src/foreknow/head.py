"""The output head: float32 logits for the few tokens that matter, without the cost of a float32 vocabulary.

bf16 logits tie at the top-k boundary at every other position, so they cannot say what a sampler may draw
(design, section 8). They only choose candidates here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OutputHead:
    """A causal LM's output head: `weight` [vocabulary, hidden], and what its config does to logits."""

    def __init__(self, head: nn.Linear, config: Any):
        self.weight = head.weight.detach()
        self.bias = None if head.bias is None else head.bias.detach().float()
        self.config = config

    @torch.inference_mode()
    def top(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest next-token logits of each state and all that tie with the k-th: ids and float32 values.

        Returned sorted, largest first (equal ones by id), padded with -inf where fewer tie: [states, >= k].
        In bf16 the product over the vocabulary only chooses candidates; theirs are computed again in float32,
        and a state whose candidates could leave out a true one is computed in float32 over the whole
        vocabulary.
        """
        k = min(k, self.weight.shape[0])
        # gathered candidate weights and float32 logits stay near 256 MB
        at_once = max(1, 2**26 // max(2 * k * self.weight.shape[1], self.weight.shape[0]))
        parts = [self._top(part, k) for part in states.split(at_once)]
        width = max(ids.shape[1] for ids, _ in parts)
        parts = [_widen(ids, values, width) for ids, values in parts]
        return torch.cat([ids for ids, _ in parts]), torch.cat([values for _, values in parts])

    def full_logits(self, states: Tensor) -> Tensor:
        """All next-token logits in float32, [states, vocabulary]."""
        return self._finish(states.float() @ self.weight.float().T, slice(None))

    def _finish(self, logits: Tensor, ids: Tensor | slice) -> Tensor:
        """What some models do to logits after the head: a bias, a scale, a soft cap."""
        config = self.config
        if self.bias is not None:
            logits = logits + self.bias[ids]
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _top(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vocabulary = self.weight.shape[0]
        exact = self.weight.dtype == torch.float32 or vocabulary <= 4096 or self.bias is not None
        if exact:
            return _sorted_top(self.full_logits(states), k, None)
        candidates = min(vocabulary, k + max(24, k // 2))
        rough, ids = nn.functional.linear(states, self.weight).topk(candidates, dim=-1)
        weights = self.weight[ids].float()
        raw = torch.bmm(weights, states.float()[:, :, None])[:, :, 0]
        values = self._finish(raw, ids)
        # a left-out token's rough logit is at most the last candidate's; rounding moves each by one part in 2^8
        slack = rough[:, -1].float().abs().clamp(min=1.0) * 2.0**-7
        certain = rough[:, -1].float() + slack < raw.sort(dim=-1, descending=True).values[:, k - 1]
        ids_top, values_top = _sorted_top(values, k, ids)
        if not bool(certain.all()):
            doubtful = (~certain).nonzero()[:, 0]
            ids_full, values_full = _sorted_top(self.full_logits(states[doubtful]), k, None)
            width = max(ids_full.shape[1], ids_top.shape[1])
            ids_top, values_top = _widen(ids_top, values_top, width)
            ids_top[doubtful], values_top[doubtful] = _widen(ids_full, values_full, width)
        return ids_top, values_top


def _widen(ids: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Pad to `width` columns with tokens that cannot be drawn."""
    spare = width - ids.shape[1]
    return nn.functional.pad(ids, (0, spare)), nn.functional.pad(values, (0, spare), value=-torch.inf)


def _sorted_top(values: Tensor, k: int, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k largest of each line and the ties of the k-th, sorted; `ids` names the columns."""
    k = min(k, values.shape[1])
    kth = values.topk(k, dim=-1).values[:, -1:]
    width = int((values >= kth).sum(-1).max())
    top, index = values.topk(width, dim=-1)
    top = top.masked_fill(top < kth, -torch.inf)
    return (index if ids is None else ids.gather(1, index)), top
