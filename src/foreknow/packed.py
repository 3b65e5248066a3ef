"""One forward pass over many short continuations behind shared prefixes.

A probe asks hundreds of questions behind the same exemplar prompt. The prompt's keys and values are computed
once (`Prefix`); the questions are laid end to end in one sequence without padding, and attention lets each
token see its prefix and its own ancestors only. Linear layers therefore never see a padded token, and the
output head only sees positions somebody asked for.

The model itself is the one transformers loads: the packing enters through its attention interface
(`AttentionInterface`), so any architecture that uses that interface works unchanged. `PackedModel.verify`
compares a small batch against the model's plain forward pass; an architecture that does not follow is
refused there, and `probe.py` falls back to plain forward passes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

ATTENTION = "foreknow_packed"


@dataclass(frozen=True)
class Kept:
    """Keys and values of a segment's own tokens, one pair a layer, each [kv heads, rows, slots, head size].

    `lengths`: tokens of each row that are filled; rows and slots beyond them are there to round the shape.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]


def gather_kept(rows: Sequence[tuple[Kept, int]], lengths: Sequence[int]) -> Kept:
    """The given rows of any number of `Kept`, in that order, cut to `lengths` tokens each."""
    slots, count = _round(max(lengths), 8), _round(len(rows), 8)
    sources: list[Kept] = []
    picks: list[list[int]] = []
    places: list[list[int]] = []
    seen: dict[int, int] = {}
    for place, (kept, row) in enumerate(rows):
        at = seen.setdefault(id(kept), len(sources))
        if at == len(sources):
            sources.append(kept)
            picks.append([])
            places.append([])
        picks[at].append(row)
        places[at].append(place)
    device = sources[0].layers[0][0].device
    picked = [torch.tensor(p, device=device) for p in picks]
    placed = [torch.tensor(p, device=device) for p in places]
    layers = []
    for layer in range(len(sources[0].layers)):
        pair = []
        for part in (0, 1):
            first = sources[0].layers[layer][part]
            out = first.new_zeros(first.shape[0], count, slots, first.shape[3])
            for source, pick, place_of in zip(sources, picked, placed, strict=True):
                x = source.layers[layer][part][:, :, :slots].index_select(1, pick)
                out[:, place_of, : x.shape[2]] = x
            pair.append(out)
        layers.append((pair[0], pair[1]))
    return Kept(layers, list(lengths))


@dataclass(frozen=True)
class Prefix:
    """A prompt computed once: its token ids and, a layer, keys and values [kv heads, slots, head size].

    Slots beyond the tokens round the shape and are masked.
    """

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens; attention is causal, so nothing has to be computed again."""
        return self if length == len(self.ids) else Prefix(self.ids[:length], self.layers)


@dataclass(frozen=True)
class Branch:
    """New tokens of one row: a tree, given as ids and, for each, the index of its parent (-1 = the root).

    `wanted`: indices of the tokens whose hidden state is asked for.
    """

    ids: Sequence[int]
    parents: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def chain(cls, ids: Sequence[int], wanted: Sequence[int]) -> Branch:
        """A plain sequence."""
        return cls(ids, range(-1, len(ids) - 1), wanted)


@dataclass(frozen=True)
class Segment:
    """Rows behind one prefix (none: the rows start the text), with what they kept from an earlier pass."""

    prefix: Prefix | None
    branches: Sequence[Branch]
    past: Kept | None = None


@dataclass
class _Laid:
    """A segment laid out in the batch: where its tokens lie and who may see whom."""

    prefix: Prefix | None
    past: Kept | None
    rows: int
    width: int
    gather: Tensor  # [rows * width] position in the batch of each padded slot
    bias: Tensor  # [rows, width, past + width], 0 or -inf
    query_positions: Tensor  # [rows, width]
    key_positions: Tensor  # [rows, past + width]
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class _Plan:
    segments: list[_Laid]
    scatter: Tensor  # [tokens] padded slot of each token of the batch
    keep: bool


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
    """Attention of packed segments. Shapes: query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
    del attention_mask, dropout
    plan: _Plan = kwargs["packing"]
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModel("attention sinks")
    window = kwargs.get("sliding_window")
    softcap = kwargs.get("softcap")
    layer = cast(int, module.layer_idx)
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    q_all = query[0].transpose(0, 1).reshape(tokens, kv_heads, group, size)
    q_all = q_all * (size**-0.5 if scaling is None else scaling)
    k_all, v_all = key[0].transpose(0, 1), value[0].transpose(0, 1)
    outputs = []
    for s in plan.segments:
        n, width = s.rows, s.width
        q = q_all.index_select(0, s.gather).view(n, width, kv_heads, group, size)
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads, n * group * width, size)
        k = k_all.index_select(0, s.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        v = v_all.index_select(0, s.gather).view(n, width, kv_heads, size).permute(2, 0, 1, 3)
        if plan.keep:
            s.kept.append((k, v))
        if s.past is not None:
            past_k, past_v = s.past.layers[layer]
            k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        k = k.reshape(kv_heads * n, -1, size)
        v = v.reshape(kv_heads * n, -1, size)
        own = torch.bmm(q.view(kv_heads * n, group * width, size), k.transpose(1, 2))
        if softcap is not None:
            own = torch.tanh(own / softcap) * softcap
        own = own.view(kv_heads, n, group, width, -1)
        own = own + _bias(s, window).to(own.dtype)[None, :, None]
        own = own.view(kv_heads, n * group * width, -1)
        length = 0
        if s.prefix is not None:
            prefix_k, prefix_v = s.prefix.layers[layer]
            length = prefix_k.shape[1]
            shared = torch.bmm(q, prefix_k.transpose(1, 2))
            if softcap is not None:
                shared = torch.tanh(shared / softcap) * softcap
            shared[..., len(s.prefix.ids) :] = -torch.inf
            shared = _window_prefix(shared, s, window, length, group)
            own = torch.cat([shared, own], 2)
        weights = own.softmax(-1)
        out = torch.bmm(weights[..., length:].reshape(kv_heads * n, group * width, -1), v)
        out = out.view(kv_heads, n * group * width, size)
        if s.prefix is not None:
            out = torch.baddbmm(out, weights[..., :length], prefix_v)
        out = out.view(kv_heads, n, group, width, size).permute(1, 3, 0, 2, 4)
        outputs.append(out.reshape(n * width, heads, size))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return merged.index_select(0, plan.scatter)[None], None


def _bias(s: _Laid, window: int | None) -> Tensor:
    """The segment's own mask; tokens further back than a sliding window are closed too."""
    if window is None or int(s.query_positions.max()) < window:
        return s.bias
    far = s.query_positions[:, :, None] - s.key_positions[:, None, :] >= window
    return s.bias.masked_fill(far, float("-inf"))


def _window_prefix(shared: Tensor, s: _Laid, window: int | None, length: int, group: int) -> Tensor:
    if window is None or int(s.query_positions.max()) < window:
        return shared
    keys = torch.arange(length, device=shared.device)
    far = s.query_positions[:, None, :, None] - keys >= window  # [rows, 1, width, length]
    far = far.expand(-1, group, -1, -1).reshape(1, -1, length)
    return shared.masked_fill(far, float("-inf"))


AttentionInterface.register(ATTENTION, _attend)


class UnsupportedModel(Exception):
    """This architecture does not compute its attention through the interface, or adds to it."""


class _OrderedLinear(nn.Module):
    """A bf16 linear layer whose weight lies in the CPU library's own tiled order, and what follows it.

    torch re-orders a plain weight at every call; ordering it once makes the products of small models 1.5 to
    2 times faster on CPUs with bf16 instructions. `after` is an activation ("swish", "gelu") computed while
    the product is still in the cache.
    """

    def __init__(self, linear: nn.Linear, after: str = "none", algorithm: str = ""):
        super().__init__()
        self.bias = linear.bias
        self.after, self.algorithm = after, algorithm
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1024)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.ordered, self.bias, self.after, [], self.algorithm
        )
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product, times `other` element by element."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.ordered, self.bias, "mul")
        return out


class _OrderedGate(nn.Module):
    """down(act(gate(x)) * up(x)), the feed-forward layer of most decoders, in three calls."""

    def __init__(self, mlp: nn.Module, after: str, algorithm: str):
        super().__init__()
        self.gate = _OrderedLinear(cast(nn.Linear, mlp.gate_proj), after, algorithm)
        self.up = _OrderedLinear(cast(nn.Linear, mlp.up_proj))
        self.down = _OrderedLinear(cast(nn.Linear, mlp.down_proj))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up.times(x, self.gate(x)))
        return out


_ACTIVATIONS = {"silu": ("swish", ""), "gelu_pytorch_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none")}


def _order_weights(body: nn.Module, config: Any) -> list[tuple[nn.Module, str, nn.Module]]:
    """Swap the body's bf16 linear layers for ordered ones; returns what to put back.

    Ordered weights stand beside the plain ones, so bodies over 4 GiB are left as they are.
    """
    linears = [m for m in body.modules() if type(m) is nn.Linear and m.weight.dtype == torch.bfloat16]
    if sum(m.weight.nbytes for m in linears) > 4 << 30:
        return []
    name_of = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    after = _ACTIVATIONS.get(str(name_of))
    swapped: list[tuple[nn.Module, str, nn.Module]] = []

    def visit(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            parts = dict(child.named_children())
            plain = all(type(parts.get(k)) is nn.Linear for k in ("gate_proj", "up_proj", "down_proj"))
            if after and plain and type(child).__name__.endswith("MLP") and set(parts) <= _GATED:
                swapped.append((parent, name, child))
                setattr(parent, name, _OrderedGate(child, *after))
            elif type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                swapped.append((parent, name, child))
                setattr(parent, name, _OrderedLinear(child))
            else:
                visit(child)

    if linears:
        visit(body)
    return swapped


_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def _keep_memory() -> None:
    """Have the C library keep freed blocks: giving each layer's back and faulting it in again costs a fifth."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


class PackedModel:
    """A causal LM run over packed segments. Use as `with PackedModel(model).attached() as packed:`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.body = _body(model)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedModel("its output head is not a linear layer")
        self.head_weight = head.weight.detach()
        self.head_bias = None if head.bias is None else head.bias.detach().float()

    @contextlib.contextmanager
    def attached(self) -> Iterator[PackedModel]:
        """Route attention through the packed function, and put the model back as it was at the end."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        swapped: list[tuple[nn.Module, str, nn.Module]] = []
        if self.device.type == "cpu":
            _keep_memory()
            if torch.backends.mkldnn.is_available():
                swapped = _order_weights(self.body, self.model.config.get_text_config())
        try:
            yield self
        finally:
            for parent, name, child in swapped:
                setattr(parent, name, child)
            self.model.set_attn_implementation(before)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], *, keep: bool = False) -> tuple[Tensor, list[Kept]]:
        """Hidden states [wanted, hidden], in the order of segments, rows and `wanted`; kept keys and values.

        `keep`: return, for each segment, the keys and values of the new tokens.
        """
        ids, positions, wanted, laid = _lay(segments, self.device)
        offset, scatter = 0, []
        for s, segment in zip(laid, segments, strict=True):
            for r, b in enumerate(segment.branches):
                scatter.extend(range(offset + r * s.width, offset + r * s.width + len(b.ids)))
            offset += s.rows * s.width
        spare = _round(len(ids), 64) - len(ids)
        ids, positions, scatter = ids + [0] * spare, positions + [0] * spare, scatter + [0] * spare
        plan = _Plan(laid, torch.tensor(scatter, device=self.device), keep)
        states = self.body(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            packing=plan,
        ).last_hidden_state
        if keep and any(len(s.kept) != len(laid[0].kept) or not s.kept for s in laid):
            raise UnsupportedModel("its layers do not use the attention interface")
        kept = [Kept(s.kept, [len(b.ids) for b in g.branches]) for s, g in zip(laid, segments, strict=True)]
        return states[0].index_select(0, torch.tensor(wanted, device=self.device, dtype=torch.long)), kept

    def prefixes(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Compute prompts once, all in one pass."""
        branches = [Branch.chain(p, [len(p) - 1]) for p in prompts]
        _, (kept,) = self.forward([Segment(None, branches)], keep=True)
        widths = [_round(len(p), 16) for p in prompts]
        return [
            Prefix(tuple(p), [(_slots(k[:, r], w), _slots(v[:, r], w)) for k, v in kept.layers])
            for r, (p, w) in enumerate(zip(prompts, widths, strict=True))
        ]

    @torch.inference_mode()
    def top_logits(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest next-token logits of each state and all that tie with the k-th: ids and float32 values.

        Returned sorted, largest first (equal ones by id), padded with -inf where fewer tie: [states, >= k].
        In bf16 the product over the vocabulary only chooses candidates; theirs are computed again in float32,
        and a state whose candidates could leave out a true one is computed in float32 over the whole
        vocabulary.
        """
        k = min(k, self.head_weight.shape[0])
        ids_out, values_out = [], []
        for part in states.split(512):
            ids, values = self._top(part, k)
            ids_out.append(ids)
            values_out.append(values)
        width = max(i.shape[1] for i in ids_out)
        ids_out = [nn.functional.pad(i, (0, width - i.shape[1])) for i in ids_out]
        values_out = [nn.functional.pad(v, (0, width - v.shape[1]), value=-torch.inf) for v in values_out]
        return torch.cat(ids_out), torch.cat(values_out)

    def full_logits(self, states: Tensor) -> Tensor:
        """All next-token logits in float32, [states, vocabulary]."""
        return self._finish(states.float() @ self.head_weight.float().T, slice(None))

    def _finish(self, logits: Tensor, ids: Tensor | slice) -> Tensor:
        """What some models do to logits after the head: a bias, a scale, a soft cap."""
        config = self.model.config.get_text_config()
        if self.head_bias is not None:
            logits = logits + self.head_bias[ids]
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _top(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vocabulary = self.head_weight.shape[0]
        exact = self.head_weight.dtype == torch.float32 or vocabulary <= 4096 or self.head_bias is not None
        if exact:
            return _sorted_top(self.full_logits(states), k, None)
        candidates = min(vocabulary, k + max(24, k // 2))
        rough, ids = nn.functional.linear(states, self.head_weight).topk(candidates, dim=-1)
        weights = self.head_weight[ids].float()
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
            ids_top = nn.functional.pad(ids_top, (0, width - ids_top.shape[1]))
            values_top = nn.functional.pad(values_top, (0, width - values_top.shape[1]), value=-torch.inf)
            ids_full = nn.functional.pad(ids_full, (0, width - ids_full.shape[1]))
            values_full = nn.functional.pad(values_full, (0, width - values_full.shape[1]), value=-torch.inf)
            ids_top[doubtful], values_top[doubtful] = ids_full, values_full
        return ids_top, values_top

    @torch.inference_mode()
    def verify(self, prompt: Sequence[int], continuation: Sequence[int]) -> None:
        """Compare a packed pass against the model's plain one. Raises UnsupportedModel where they differ."""
        whole = torch.tensor([[*prompt, *continuation]], device=self.device)
        try:
            prefix = self.prefixes([prompt])[0]
            branch = Branch.chain(continuation, range(len(continuation)))
            decoy = Branch.chain(continuation[:1], [0])
            states, _ = self.forward([Segment(prefix, [decoy, branch, decoy])])
            ours = self.full_logits(states[1:-1])
        except (TypeError, AttributeError, KeyError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(str(error).split("\n", 1)[0]) from error
        packed = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        plain = self.model(whole).logits[0, len(prompt) :].float()
        self.model.set_attn_implementation(packed)
        scale = plain.std().clamp(min=1e-6)
        off = float((ours - plain).abs().mean() / scale)
        limit = 1e-3 if self.head_weight.dtype == torch.float32 else 0.05
        if not off <= limit:
            raise UnsupportedModel(f"packed logits differ from plain ones by {off:.2g} standard deviations")


def _sorted_top(values: Tensor, k: int, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k largest of each line and the ties of the k-th, sorted; `ids` names the columns."""
    k = min(k, values.shape[1])
    kth = values.topk(k, dim=-1).values[:, -1:]
    width = int((values >= kth).sum(-1).max())
    top, index = values.topk(width, dim=-1)
    top = top.masked_fill(top < kth, -torch.inf)
    return (index if ids is None else ids.gather(1, index)), top


def _body(model: PreTrainedModel) -> nn.Module:
    """The model without its output head."""
    body = getattr(model, model.base_model_prefix, None)
    if not isinstance(body, nn.Module) or body is model:
        raise UnsupportedModel("it has no separate body and output head")
    return body


def _round(n: int, to: int) -> int:
    """n rounded up. The CPU library builds a kernel for every new shape, which costs more than a little padding."""
    return -(-n // to) * to


def _slots(x: Tensor, width: int) -> Tensor:
    """[kv heads, tokens, size] cut or padded to `width` tokens, in memory of its own."""
    return nn.functional.pad(x[:, :width], (0, 0, 0, width - min(width, x.shape[1]))).contiguous()


def _lay(segments: Sequence[Segment], device: torch.device) -> tuple[list[int], list[int], list[int], list[_Laid]]:
    """Token ids, positions and wanted indices of the whole batch, and each segment's layout."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    laid = []
    for s in segments:
        start = 0 if s.prefix is None else len(s.prefix.ids)
        longest = max(len(b.ids) for b in s.branches)
        width = longest if longest <= 2 else _round(longest, 4)
        past = 0 if s.past is None else s.past.layers[0][0].shape[2]
        rows = _round(len(s.branches), 8)
        gather = torch.zeros(rows, width, dtype=torch.long)
        visible = torch.zeros(rows, width, past + width, dtype=torch.bool)
        spot = torch.zeros(rows, width, dtype=torch.long)
        keys = torch.zeros(rows, past + width, dtype=torch.long)
        chain = torch.ones(width, width, dtype=torch.bool).tril()
        visible[len(s.branches) :, :, past] = True
        for r, b in enumerate(s.branches):
            n = len(b.ids)
            before = 0 if s.past is None else s.past.lengths[r]
            first = len(ids)
            gather[r, :n] = torch.arange(first, first + n)
            gather[r, n:] = first
            visible[r, :, :before] = True
            if isinstance(b.parents, range):
                visible[r, :, past:] = chain
                depth = list(range(n))
            else:
                depth = []
                for i, parent in enumerate(b.parents):
                    depth.append(0 if parent < 0 else depth[parent] + 1)
                    if parent >= 0:
                        visible[r, i, past:] = visible[r, parent, past:]
                    visible[r, i, past + i] = True
                visible[r, n:, past] = True
            spot[r, :n] = torch.tensor(depth) + (start + before)
            keys[r, :before] = torch.arange(before) + start
            keys[r, past : past + n] = spot[r, :n]
            ids.extend(b.ids)
            positions.extend(spot[r, :n].tolist())
            wanted.extend(first + w for w in b.wanted)
        bias = torch.zeros(rows, width, past + width).masked_fill_(~visible, float("-inf"))
        laid.append(
            _Laid(
                s.prefix,
                s.past,
                rows,
                width,
                gather.view(-1).to(device),
                bias.to(device),
                spot.to(device),
                keys.to(device),
            )
        )
    return ids, positions, wanted, laid
