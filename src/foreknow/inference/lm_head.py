"""The output head: float32 logits for the few tokens that matter, without float32 logits of the whole vocabulary.

bf16 logits tie at the top-k boundary at every other position, so they cannot say what a sampler may draw
(design, section 8). Here they only choose candidates.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class OutputHead:
    """A causal LM's output head: `weight` [vocabulary, hidden], and the scaling of logits that its config sets.

    Methods move states to the weight's device and return tensors there. They fetch a weight that accelerate offloads
    to main memory or disk at each call, and gather one that tensor parallelism shards once.
    """

    def __init__(self, head: nn.Linear, config: Any):
        self.layer = head
        self.config = config
        self._read_weights()

    def _read_weights(self) -> None:
        self.weight = _full_tensor(self.layer.weight.detach())
        self.bias = None if self.layer.bias is None else _full_tensor(self.layer.bias.detach()).float()

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[OutputHead]:
        if self.weight.device.type != "meta":
            yield self
            return
        with align_module_device(self.layer):
            head = copy.copy(self)
            head._read_weights()
            yield head

    @torch.inference_mode()
    def top(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k largest next-token logits of each state and all that tie with the k-th: ids and float32 values.

        Both are [states, >= k], sorted largest first (equal values by id) and padded with -inf where fewer tie. In
        bf16, the product over the vocabulary only chooses candidates; their logits are computed again in float32. A
        state whose candidates might miss a true one is computed in float32 over the whole vocabulary.
        """
        k = min(k, self.weight.shape[0])
        # gathered candidate weights and float32 logits stay near 256 MB
        at_once = max(1, 2**26 // max(2 * k * self.weight.shape[1], self.weight.shape[0]))
        with self._loaded() as head:
            return _joined([head._top(part, k) for part in states.to(head.weight.device).split(at_once)])

    @torch.inference_mode()
    def top_with_log_p(self, states: Tensor, k: int, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `top` does, and the log-probability of one token of each state, float32 [states].

        `targets`: token ids, int64 [states]. The logits of the whole vocabulary are computed in float32 for both, so
        ids and values are those of `top` for a head of float32.
        """
        k = min(k, self.weight.shape[0])
        at_once = max(1, 2**26 // self.weight.shape[0])
        tops, log_ps = [], []
        with self._loaded() as head:
            targets = targets.to(head.weight.device)
            for part, wanted in zip(states.split(at_once), targets.split(at_once), strict=True):
                logits = head._full(part.to(head.weight.device))
                tops.append(top_with_ties(logits, k))
                log_ps.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
        return *_joined(tops), torch.cat(log_ps)

    def full_logits(self, states: Tensor) -> Tensor:
        """Compute all next-token logits in float32, [states, vocabulary]."""
        with self._loaded() as head:
            return head._full(states.to(head.weight.device))

    def _full(self, states: Tensor) -> Tensor:
        return self._finish(states.float() @ self.weight.float().T, slice(None))

    def _finish(self, logits: Tensor, ids: Tensor | slice) -> Tensor:
        """Apply the changes that some models make to logits after the head: a bias, a scale, a soft cap."""
        return scaled(logits if self.bias is None else logits + self.bias[ids], self.config)

    def _top(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vocabulary = self.weight.shape[0]
        exact = self.weight.dtype == torch.float32 or vocabulary <= 4096 or self.bias is not None
        if exact:
            return top_with_ties(self._full(states), k)
        candidates = min(vocabulary, k + max(24, k // 2))
        rough_logits, ids = nn.functional.linear(states, self.weight).topk(candidates, dim=-1)
        weights = self.weight[ids].float()
        raw = torch.bmm(weights, states.float()[:, :, None])[:, :, 0]
        values = self._finish(raw, ids)
        # a left-out token's rough logit is at most the last candidate's; rounding moves each by one part in 2^8
        slack = rough_logits[:, -1].float().abs().clamp(min=1.0) * 2.0**-7
        certain = rough_logits[:, -1].float() + slack < raw.sort(dim=-1, descending=True).values[:, k - 1]
        # copy what the host needs from the device in one go
        width, all_certain = torch.stack([_ties(values, k).max(), certain.all()]).tolist()
        ids_top, values_top = _sorted_top(values, k, ids, width)
        if not all_certain:
            doubtful = (~certain).nonzero()[:, 0]
            logits = self._full(states[doubtful])
            ids_full, values_full = _sorted_top(logits, k, None, int(_ties(logits, k).max()))
            width = max(ids_full.shape[1], ids_top.shape[1])
            ids_top, values_top = _widen(ids_top, values_top, width)
            ids_top[doubtful], values_top[doubtful] = _widen(ids_full, values_full, width)
        return ids_top, values_top


def _full_tensor(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the ids and the values of all parts, as wide as the widest of them."""
    width = max(ids.shape[1] for ids, _ in parts)
    wide = [_widen(ids, values, width) for ids, values in parts]
    return torch.cat([ids for ids, _ in wide]), torch.cat([values for _, values in wide])


def _widen(ids: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Pad to `width` columns with tokens that cannot be drawn."""
    padding = width - ids.shape[1]
    return nn.functional.pad(ids, (0, padding)), nn.functional.pad(values, (0, padding), value=-torch.inf)


def _ties(values: Tensor, k: int) -> Tensor:
    """Return how many values of each line are at least its k-th largest; k where that is NaN."""
    return (values >= values.topk(k, dim=-1).values[:, -1:]).sum(-1).clamp(min=k)


def top_with_ties(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each line and ties of the k-th: ids and values. Few lines need a second pass."""
    values, ids = logits.topk(min(logits.shape[1], k + 8), dim=-1)
    least = values[:, k - 1 : k]
    if values.shape[1] < logits.shape[1] and bool((values[:, -1:] >= least).any()):
        return _sorted_top(logits, k, None, int(_ties(logits, k).max()))
    width = int((values >= least).sum(-1).clamp(min=k).max())
    values, ids = values[:, :width], ids[:, :width]
    return ids, values.masked_fill(values < least, -torch.inf)


def _sorted_top(values: Tensor, k: int, ids: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each line and ties of the k-th, sorted, at most `width`. `ids`: of the columns."""
    top, index = values.topk(width, dim=-1)
    top = top.masked_fill(top < top[:, k - 1 : k], -torch.inf)
    return (index if ids is None else ids.gather(1, index)), top


def scaled(logits: Tensor, config: Any) -> Tensor:
    """Scale or cap logits after the head, as some models do."""
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits
