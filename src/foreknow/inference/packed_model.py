"""One forward pass over many short continuations behind shared prefixes.

A probe asks hundreds of questions behind the same exemplar prompt. The prompt's keys and values are computed
once (`CachedPrefix`); the questions are laid end to end in one sequence without padding, and attention lets each
token see its prefix and its own ancestors only. Linear layers therefore never see a padded token, and the
output head only sees positions somebody asked for.

The model itself is the one transformers loads: the packing enters through its attention interface
(`AttentionInterface`), so any architecture that uses that interface works unchanged. `PackedModel.verify`
compares a small batch against the model's plain forward pass; an architecture that does not follow is
refused there, and `exact_probe.py` falls back to plain forward passes.
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
from foreknow.inference.packed_attention import (
    ATTENTION,
    CachedPrefix,
    KVCache,
    Segment,
    TokenTree,
    UnsupportedModel,
    lay_out,
    round_up,
    slots_of,
)
from foreknow.inference.prepacked_linear import order_weights, put_back
from foreknow.models.loading import input_device
from foreknow.models.private_api import attention_of, set_attention


class PackedModel:
    """A causal LM run over packed segments. Use as `with PackedModel(model).attached() as packed:`.

    The model may be spread over devices by accelerate (`device_map`): each layer's attention then asks for the
    batch on its own device, and keeps its keys and values there. `device`: where token ids go in.
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
        """Route attention through the packed function, and put the model back as it was at the end."""
        before = attention_of(self.model)
        set_attention(self.model, ATTENTION)
        swapped: list[tuple[nn.Module, str, nn.Module]] = []
        if self.device.type == "cpu":
            keep_memory()
            if torch.backends.mkldnn.is_available() and not _spread(self.body):
                swapped = order_weights(self.body, self.model.config.get_text_config())
        try:
            yield self
        finally:
            put_back(swapped)
            set_attention(self.model, before)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], *, keep: bool = False) -> tuple[Tensor, list[KVCache]]:
        """Hidden states [wanted, hidden], in the order of segments, rows and `wanted`; kept keys and values.

        `keep`: return, for each segment, the keys and values of the new tokens.
        """
        batch = lay_out(segments, keep)
        here = batch.on(self.device)
        states = self.body(
            input_ids=here.ids, position_ids=here.positions, use_cache=False, packing=batch
        ).last_hidden_state
        parts = batch.segments
        if keep and any(len(s.kept) != len(parts[0].kept) or not s.kept for s in parts):
            raise UnsupportedModel("its layers do not use the attention interface")
        kept = [KVCache(s.kept, [len(b.ids) for b in g.branches]) for s, g in zip(parts, segments, strict=True)]
        return states[0].index_select(0, batch.on(states.device).wanted), kept

    def prefixes(self, prompts: Sequence[Sequence[int]]) -> list[CachedPrefix]:
        """Compute prompts once, all in one pass."""
        branches = [TokenTree.chain(p, [len(p) - 1]) for p in prompts]
        _, (kept,) = self.forward([Segment(None, branches)], keep=True)
        widths = [round_up(len(p), 16) for p in prompts]
        return [
            CachedPrefix(tuple(p), [(slots_of(k[:, r], w), slots_of(v[:, r], w)) for k, v in kept.layers])
            for r, (p, w) in enumerate(zip(prompts, widths, strict=True))
        ]

    @torch.inference_mode()
    def verify(self, prompt: Sequence[int], continuation: Sequence[int]) -> None:
        """Compare a packed pass against the model's plain one. Raises UnsupportedModel where they differ."""
        whole = torch.tensor([[*prompt, *continuation]], device=self.device)
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
        plain = self.model(whole).logits[0, len(prompt) :].float()
        set_attention(self.model, packed)
        ours = ours.to(plain.device)
        scale = plain.std().clamp(min=1e-6)
        off = float((ours - plain).abs().mean() / scale)
        limit = 1e-3 if self.head.weight.dtype == torch.float32 else 0.05
        if not off <= limit:
            raise UnsupportedModel(f"packed logits differ from plain ones by {off:.2g} standard deviations")


def _spread(body: nn.Module) -> bool:
    """Whether accelerate's hooks or tensor parallelism spread the body over devices: its layers stay as they are."""
    return any(hasattr(m, "_hf_hook") for m in body.modules()) or any(isinstance(p, DTensor) for p in body.parameters())


def _body(model: PreTrainedModel) -> nn.Module:
    """The model without its output head."""
    body = getattr(model, model.base_model_prefix, None)
    if not isinstance(body, nn.Module) or body is model:
        raise UnsupportedModel("it has no separate body and output head")
    return body
