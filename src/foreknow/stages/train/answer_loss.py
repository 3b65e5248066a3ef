"""Computes the training loss of many short rows in one forward pass, at the answers' tokens only.

`PackedPass` puts the rows of a batch one after the other without padding, as the probe does (`packed_attention.py`).
Attention keeps the rows apart, and the output head runs at the answers' positions only. The beginning that all prompts
of the batch share is computed once, and every row attends to it: the gradients are those of separate rows, except that
dropout draws one mask for the shared tokens instead of one a row. `PlainPass` is the model's own
forward pass over padded rows, for architectures that the packed pass does not support. Both give the same losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from foreknow.distributed import process_group
from foreknow.errors import first_line
from foreknow.inference.lm_head import scaled
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import CachedPrefix, PackedBatch, Segment, TokenTree, pack_segments
from foreknow.models.private_api import attention_of, set_attention
from foreknow.stages.train.batches import runs_by_length
from foreknow.stages.train.training_examples import TrainingExample

ATTENTION = "foreknow_training"


class Pass(Protocol):
    """Computes the losses of rows."""

    def losses(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """Return the rows in the order of their losses, and -log p of each token of their answers, float32 [tokens]."""
        ...

    def logits(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """Return the rows in the order of their logits, and the logits at each token of their answers.

        The logits are float32 [tokens, vocabulary] and predict the token of the same place.
        """
        ...


class PackedPass:
    """Computes losses from packed rows; `attached` makes the model use `_attend` for its attention."""

    def __init__(self, model: PreTrainedModel):
        whole = base_of(model)
        self.model = whole
        training = model.training
        self.body = PackedModel(whole).body
        model.train(training)
        self.head = cast(nn.Linear, whole.get_output_embeddings())
        self.config: Any = whole.config.get_text_config()

    @contextmanager
    def attached(self) -> Iterator[PackedPass]:
        """Replace the model's attention with the packed one; restore its own attention at the end."""
        before = attention_of(self.model)
        set_attention(self.model, ATTENTION)
        try:
            yield self
        finally:
            set_attention(self.model, before)

    def losses(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """See `Pass.losses`."""
        ordered, logits = self.logits(rows)
        return ordered, cross_entropy(logits, ordered)

    def logits(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """See `Pass.logits`."""
        runs = runs_by_length(rows)
        ordered = [example for run in runs for example in run]
        device = self.head.weight.device
        shared = shared_beginning(rows)
        # without keys and values of its own: `_attend` finds them at the beginning of the batch
        prefix = CachedPrefix(rows[0].prompt[:shared], []) if shared else None
        segments = [Segment(None, [TokenTree.chain(prefix.ids, [])])] if prefix else []
        segments += [Segment(prefix, [_branch(example, shared) for example in run]) for run in runs]
        batch = pack_segments(segments, keep=False)
        here = batch.on(device)
        states = self.body(
            input_ids=here.ids, position_ids=here.positions, use_cache=False, packing=batch
        ).last_hidden_state[0]
        logits = self.head(states.index_select(0, here.wanted))
        return ordered, scaled(logits.float(), self.config)


class PlainPass:
    """Computes losses with the model's own forward pass over rows that are padded at their ends."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def losses(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """See `Pass.losses`."""
        ordered, logits = self.logits(rows)
        return ordered, cross_entropy(logits, ordered)

    def logits(self, rows: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """See `Pass.logits`."""
        device = next(self.model.parameters()).device
        width = max(example.length for example in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        wanted: list[int] = []
        for r, example in enumerate(rows):
            ids[r, : example.length] = torch.tensor(example.inputs)
            mask[r, : example.length] = 1
            wanted.extend(range(r * width + len(example.prompt) - 1, r * width + example.length))
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        chosen = logits.flatten(0, 1).index_select(0, torch.tensor(wanted, device=device))
        return list(rows), chosen.float()


@contextmanager
def open_pass(model: PreTrainedModel, some: Sequence[TrainingExample]) -> Iterator[tuple[Pass, str]]:
    """Choose the pass that fits the model; yield it and a line that says which pass it is.

    The losses of the rows `some` are first computed both ways and compared. Of several processes, the first one
    chooses, because it has the weights however they are loaded.
    """
    plain = PlainPass(model)
    fault: UnsupportedModel | None = None
    try:
        packed = PackedPass(model)
        if process_group.is_main_process():
            with packed.attached():
                _compare(packed, plain, some)
    except UnsupportedModel as why:
        fault = why
    if process_group.broadcast_from_main(fault is not None):
        yield plain, f"training on padded rows, the head on every position: {fault}"
        return
    with packed.attached():
        yield packed, "training on packed rows, the head on the answers' positions only"


def run_as_forward(wrapper: Any, work: Callable[[], Tensor]) -> Tensor:
    """Run `work` as the forward pass of a wrapper that shares gradients or weights between processes (DDP, FSDP)."""
    inner = getattr(wrapper, "module", wrapper)
    before = vars(inner).get("forward")

    def back() -> None:
        vars(inner).pop("forward", None)
        if before is not None:
            inner.forward = before

    def forward(_: int) -> Tensor:
        back()  # `work` may call the model itself
        return work()

    inner.forward = forward
    try:
        loss: Tensor = wrapper(0)  # the argument is unused, but on a GPU the wrapper expects at least one
        return loss
    finally:
        back()


def base_of(model: Any) -> PreTrainedModel:
    """Return the transformers model under adapters or wrappers."""
    model = getattr(model, "module", model)
    return cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)


@torch.no_grad()
def _compare(packed: PackedPass, plain: PlainPass, some: Sequence[TrainingExample]) -> None:
    """Raise UnsupportedModel if the packed losses differ from the model's own."""
    training = plain.model.training
    plain.model.eval()
    try:
        rows, ours = packed.losses(some)
        set_attention(packed.model, "eager")
        _, theirs = plain.losses(rows)
    except (TypeError, AttributeError, KeyError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(first_line(error)) from error
    finally:
        set_attention(packed.model, ATTENTION)
        plain.model.train(training)
    off = float((ours - theirs).abs().mean())
    limit = 1e-3 if packed.head.weight.dtype == torch.float32 else 0.1
    if not off <= limit:
        raise UnsupportedModel(f"packed losses differ from the model's own by {off:.2g}")


def shared_beginning(rows: Sequence[TrainingExample]) -> int:
    """Return how many tokens all prompts begin with; 0 if sharing saves nothing. Each prompt keeps its last token."""
    if len(rows) < 2:
        return 0
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 1
    count = next((n for n in range(most) if first[n] != last[n]), most)
    return count if count > 1 else 0


def _branch(example: TrainingExample, shared: int) -> TokenTree:
    return TokenTree.chain(example.inputs[shared:], range(len(example.prompt) - 1 - shared, example.length - shared))


def cross_entropy(logits: Tensor, rows: Sequence[TrainingExample]) -> Tensor:
    """Return -log p of each token of the rows' answers, float32 [tokens]. `logits`: see `Pass.logits`."""
    targets = torch.tensor([token for example in rows for token in example.answer], device=logits.device)
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of packed rows, with dropout.

    Shapes: query [1, heads, tokens, size], key and value [1, kv heads, tokens, size]; returns [1, tokens, heads, size]
    and None. This is the probe's attention (`packed_attention.py`) with two differences: no keys or values are stored,
    and a prefix is part of the batch, as its first tokens, so that gradients reach it. Raises UnsupportedModel for
    attention sinks.
    """
    del attention_mask
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModel("attention sinks")
    batch: PackedBatch = kwargs["packing"]
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    q_all = (query[0] * (size**-0.5 if scaling is None else scaling)).transpose(0, 1)
    q_all = q_all.reshape(tokens, kv_heads, group, size)
    k_all, v_all = key[0].transpose(0, 1), value[0].transpose(0, 1)
    here = batch.on(query.device)
    slots = [s.rows * s.width for s in batch.segments]
    padded = [_copy_rows(x, here.gather, here.slot_of_token).split(slots) for x in (q_all, k_all, v_all)]
    outputs = []
    for s, seat, q_own, k_own, v_own in zip(batch.segments, here.masks, *padded, strict=True):
        n, width = s.rows, s.width
        far_back = window if window is not None and s.last >= window else None
        q = q_own.view(n, width, kv_heads, group, size)
        q = q.permute(0, 2, 3, 1, 4).reshape(n * kv_heads, group * width, size)
        k = k_own.view(n, width, kv_heads, size).transpose(1, 2)
        v = v_own.view(n, width, kv_heads, size).transpose(1, 2)
        scores = torch.bmm(q, k.reshape(n * kv_heads, width, size).transpose(1, 2))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.view(n, kv_heads * group, width, width) + seat.bias(far_back, scores.dtype)[:, None]
        length = 0 if s.prefix is None else len(s.prefix.ids)
        if length:
            q_of_head = q.view(n, kv_heads, group * width, size).transpose(0, 1).reshape(kv_heads, -1, size)
            before = torch.bmm(q_of_head, k_all[:length].permute(1, 2, 0))
            if softcap is not None:
                before = torch.tanh(before / softcap) * softcap
            if far_back is not None:
                before = before.masked_fill(seat.far(far_back, length, group), float("-inf"))
            before = before.view(kv_heads, n, group, width, length).transpose(0, 1).flatten(1, 2)
            scores = torch.cat([before, scores], -1)
        weights = nn.functional.dropout(scores.softmax(-1), dropout, training=module.training).to(v.dtype)
        own = weights[..., length:].reshape(n * kv_heads, group * width, width)
        out = torch.bmm(own, v.reshape(n * kv_heads, width, size)).view(n, heads, width, size)
        if length:
            of_head = weights[..., :length].reshape(n, kv_heads, group * width, length).transpose(0, 1)
            part = torch.bmm(of_head.reshape(kv_heads, -1, length), v_all[:length].transpose(0, 1))
            out = out + part.view(kv_heads, n, group, width, size).transpose(0, 1).reshape(n, heads, width, size)
        outputs.append(out.transpose(1, 2).reshape(n * width, heads, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _copy_rows(merged, here.scatter, here.token_of_slot)[None], None


class _CopyRows(torch.autograd.Function):
    """x[index], whose gradient copies rows back; see `_copy_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, back.clamp(min=0))
        return gradient.index_fill_(0, (back < 0).nonzero()[:, 0], 0), None, None


def _copy_rows(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Return x[index], where gradients reach at most one copy of each row: copy `back[i]` of row i, or none at -1.

    torch's own gradient of `index_select` adds the copies up one row at a time, which is slow on a CPU.
    """
    copied: Tensor = _CopyRows.apply(x, index, back)  # type: ignore[no-untyped-call]
    return copied


AttentionInterface.register(ATTENTION, _attend)
