"""Computes many short continuations behind shared prefixes in one forward pass.

A probe asks hundreds of questions after the same exemplar prompt. The prompt's keys and values are computed once
(`CachedPrefix`). The questions are concatenated into one sequence without padding, and attention lets each token see
only its prefix and its own ancestors. So linear layers never compute a padded token, and the output head only
computes the positions that are needed.

The model is the one transformers loads: packing enters through transformers' `AttentionInterface`, so any
architecture that uses that interface works unchanged. `PackedModel.verify` compares a small batch with the model's
plain forward pass and refuses an architecture whose logits differ; `engine_choice.py` then uses plain passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from foreknow.errors import first_line
from foreknow.inference.lm_head import OutputHead
from foreknow.inference.malloc import keep_memory
from foreknow.inference.packed_attention import ATTENTION, UnsupportedModel
from foreknow.inference.packing import CachedPrefix, CachedTokens, Segment, TokenTree, pack_segments, round_up
from foreknow.inference.prepacked_linear import prepack_linears, restore_linears
from foreknow.models.loading import input_device
from foreknow.models.private_api import attention_of, set_attention


class PackedModel:
    """A causal LM that runs over packed segments. Use it as `with PackedModel(model).attached() as packed:`.

    Accelerate may spread the model over devices (`device_map`): each layer's attention then uses the batch on its
    own device, and keeps its keys and values there. `device`: the device of the input ids.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval()
        self.device = input_device(model)
        self.body = _body(model)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedModel("its output head is not a linear layer")
        self.head = OutputHead(head, model.config.get_text_config())

    @contextlib.contextmanager
    def attached(self) -> Iterator[PackedModel]:
        """Route attention through the packed function, and restore the model at the end."""
        before = attention_of(self.model)
        set_attention(self.model, ATTENTION)
        replaced: list[tuple[nn.Module, str, nn.Module]] = []
        if self.device.type == "cpu":
            keep_memory()
            if torch.backends.mkldnn.is_available() and not _is_spread(self.body):
                replaced = prepack_linears(self.body, self.model.config.get_text_config())
        try:
            yield self
        finally:
            restore_linears(replaced)
            set_attention(self.model, before)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], *, keep: bool = False) -> tuple[Tensor, list[list[CachedTokens]]]:
        """Return hidden states [wanted, hidden], in the order of segments, rows and `wanted`.

        `keep`: also return, for each row of each segment, its new tokens with their keys and values; else nothing.
        """
        batch = pack_segments(segments, keep)
        on_device = batch.on(self.device)
        states = self.body(
            input_ids=on_device.ids, position_ids=on_device.positions, use_cache=False, packing=batch
        ).last_hidden_state
        if keep and not batch.kept.layers:
            raise UnsupportedModel("its layers do not use the attention interface")
        return states[0].index_select(0, batch.on(states.device).wanted), batch.rows() if keep else []

    def prefixes(self, prompts: Sequence[Sequence[int]]) -> list[CachedPrefix]:
        """Compute the keys and values of prompts, all in one pass."""
        branches = [TokenTree.chain(p, [len(p) - 1]) for p in prompts]
        _, (rows,) = self.forward([Segment(None, branches)], keep=True)
        return [
            CachedPrefix(tuple(p), [(_by_head(k, row), _by_head(v, row)) for k, v in row.cache.layers])
            for p, row in zip(prompts, rows, strict=True)
        ]

    @torch.inference_mode()
    def verify(self, prompt: Sequence[int], continuation: Sequence[int]) -> None:
        """Compare a packed pass with the model's plain pass. Raises UnsupportedModel where they differ."""
        sequence = torch.tensor([[*prompt, *continuation]], device=self.device)
        try:
            prefix = self.prefixes([prompt])[0]
            branch = TokenTree.chain(continuation, range(len(continuation)))
            decoy = TokenTree.chain(continuation[:1], [0])
            states, _ = self.forward([Segment(prefix, [decoy, branch, decoy])])
            ours = self.head.full_logits(states[1:-1])
        except (TypeError, AttributeError, KeyError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(first_line(error)) from error
        packed = attention_of(self.model)
        set_attention(self.model, "eager")
        plain = self.model(sequence).logits[0, len(prompt) :].float()
        set_attention(self.model, packed)
        ours = ours.to(plain.device)
        scale = plain.std().clamp(min=1e-6)
        difference = float((ours - plain).abs().mean() / scale)
        limit = 1e-3 if self.head.weight.dtype == torch.float32 else 0.05
        if not difference <= limit:
            raise UnsupportedModel(f"packed logits differ from plain ones by {difference:.2g} standard deviations")


def _by_head(x: Tensor, row: CachedTokens) -> Tensor:
    """Copy a row's part of [tokens, kv heads, size] to [kv heads, slots, size], where slots are a multiple of 16."""
    own = x[row.first : row.first + row.length].transpose(0, 1)
    return nn.functional.pad(own, (0, 0, 0, round_up(row.length, 16) - row.length)).contiguous()


def _is_spread(body: nn.Module) -> bool:
    """Return whether accelerate's hooks or tensor parallelism spread the body over devices; then its layers stay."""
    return any(hasattr(m, "_hf_hook") for m in body.modules()) or any(isinstance(p, DTensor) for p in body.parameters())


def _body(model: PreTrainedModel) -> nn.Module:
    """Return the model without its output head."""
    body = getattr(model, model.base_model_prefix, None)
    if not isinstance(body, nn.Module) or body is model:
        raise UnsupportedModel("it has no separate body and output head")
    return body
