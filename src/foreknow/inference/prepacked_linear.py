"""Replaces linear layers by ones with prepacked weights, which make small models fast on CPUs with bf16 instructions.

Prepacking uses private operators that some processors and some versions of torch lack. So each kind of layer (its
shape and activation) is tried once before it is used: it is prepacked, computed on a few inputs and compared with
the plain layer. A kind that raises or gives other numbers stays a plain torch layer, and a message says so once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from foreknow.errors import first_line
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.models.private_api import CHANGED
from foreknow.progress import log_once


class _PrepackedLinear(nn.Module):
    """A bf16 linear layer whose weight is stored in oneDNN's tiled order, with its activation.

    torch reorders a plain weight at every call; reordering it once makes the products of small models 1.5 to 2 times
    faster on CPUs with bf16 instructions. `after`: an activation ("swish", "gelu") that is computed while the product
    is still in the cache.
    """

    def __init__(self, linear: nn.Linear, after: str = "none", algorithm: str = ""):
        super().__init__()
        self.bias = linear.bias
        self.after, self.algorithm = after, algorithm
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1024)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, self.after, [], self.algorithm)
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the layer's output multiplied by `other`, element by element."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.ordered, self.bias, "mul")
        return out


class _PrepackedGate(nn.Module):
    """down(act(gate(x)) * up(x)), the feed-forward layer of most decoders, in three calls."""

    def __init__(self, mlp: nn.Module, after: str, algorithm: str):
        super().__init__()
        self.gate = _PrepackedLinear(cast(nn.Linear, mlp.gate_proj), after, algorithm)
        self.up = _PrepackedLinear(cast(nn.Linear, mlp.up_proj))
        self.down = _PrepackedLinear(cast(nn.Linear, mlp.down_proj))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up.times(x, self.gate(x)))
        return out


_ACTIVATIONS = {"silu": ("swish", ""), "gelu_pytorch_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none")}
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TRIED_ROWS: Final = (1, 33)
"""Batch sizes of a trial: one row, and more rows than a tile holds."""
_TOLERANCE: Final = 0.05
"""bf16 rounding moves each output by less than this share of the outputs' root mean square plus its own size."""


class _Kind(NamedTuple):
    """What decides whether a layer can be prepacked: shapes (out, in) and biases of its weights, and its activation."""

    shapes: tuple[tuple[int, ...], ...]
    biases: tuple[bool, ...]
    activation: tuple[str, str] | None


class _Trials:
    """Tries each kind of layer of one body once. `problem`: why the first failing kind failed."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._works: dict[_Kind, bool] = {}

    def replacement(self, layer: nn.Module, activation: tuple[str, str] | None) -> nn.Module | None:
        """Return the prepacked layer; None where its kind does not work. `activation`: a gated feed-forward layer's."""
        linears = [m for m in layer.modules() if type(m) is nn.Linear]
        kind = _Kind(
            tuple(tuple(m.weight.shape) for m in linears), tuple(m.bias is not None for m in linears), activation
        )
        if self._works.get(kind) is False:
            return None
        make = _make_gate(layer, activation) if activation else _make_linear(layer)
        try:
            replacement = make()
            if kind not in self._works:
                _check_same(replacement, layer, linears[0])
        except CHANGED as error:
            if is_out_of_memory(error):
                raise
            self._works[kind] = False
            self.problem = self.problem or f"{type(error).__name__}: {first_line(error, 120)}"
            return None
        self._works[kind] = True
        return replacement


def _make_gate(layer: nn.Module, activation: tuple[str, str]) -> Callable[[], nn.Module]:
    return lambda: _PrepackedGate(layer, *activation)


def _make_linear(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: _PrepackedLinear(cast(nn.Linear, layer))


@torch.inference_mode()
def _check_same(prepacked: nn.Module, plain: nn.Module, first: nn.Linear) -> None:
    """Raise RuntimeError where a prepacked layer computes other numbers than the plain one."""
    generator = torch.Generator().manual_seed(0)
    for rows in _TRIED_ROWS:
        x = torch.randn(1, rows, first.in_features, generator=generator).to(first.weight.dtype)
        ours, theirs = prepacked(x), plain(x)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise RuntimeError(f"gave {ours.dtype} {tuple(ours.shape)}, expected {theirs.dtype} {tuple(theirs.shape)}")
        ours, theirs = ours.float(), theirs.float()
        finite = theirs.isfinite()  # outputs of damaged weights cannot be compared
        ours, theirs = ours[finite], theirs[finite]
        if not theirs.numel():
            continue
        scale = theirs.pow(2).mean().sqrt()
        if not bool(((ours - theirs).abs() <= _TOLERANCE * (scale + theirs.abs())).all()):
            raise RuntimeError("the operator's numbers are not those of the plain layer")


def prepack_linears(body: nn.Module, config: Any) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace the body's bf16 linear layers by prepacked ones where those work; return what `restore_linears` needs.

    Prepacked weights are held in addition to the plain ones, so bodies over 4 GiB are left unchanged.
    """
    linears = [m for m in body.modules() if type(m) is nn.Linear and m.weight.dtype == torch.bfloat16]
    if not linears or sum(m.weight.nbytes for m in linears) > 4 << 30:
        return []
    name_of = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    activation = _ACTIVATIONS.get(str(name_of))
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    trials = _Trials()

    def swap(parent: nn.Module, name: str, child: nn.Module, after: tuple[str, str] | None) -> bool:
        replacement = trials.replacement(child, after)
        if replacement is not None:
            replaced.append((parent, name, child))
            setattr(parent, name, replacement)
        return replacement is not None

    def visit(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            if activation and _is_gated(child) and swap(parent, name, child, activation):
                continue
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                swap(parent, name, child, None)
            else:
                visit(child)

    try:
        visit(body)
    except BaseException:
        restore_linears(replaced)
        raise
    if trials.problem:
        which = "some bfloat16 layers" if replaced else "bfloat16 layers"
        log_once(
            "ordered weights",
            f"{which} are computed as torch has them, which is slower: their weights cannot be laid out for this "
            f"processor ({trials.problem})",
        )
    return replaced


def restore_linears(replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    """Undo `prepack_linears`."""
    for parent, name, child in replaced:
        setattr(parent, name, child)


def _is_gated(layer: nn.Module) -> bool:
    """Return whether a layer looks like a gated feed-forward layer of bf16 weights; a trial decides if it is one."""
    parts = dict(layer.named_children())
    gates = [parts.get(name) for name in ("gate_proj", "up_proj", "down_proj")]
    plain = all(type(part) is nn.Linear and part.weight.dtype == torch.bfloat16 for part in gates)
    return plain and type(layer).__name__.endswith("MLP") and set(parts) <= _GATED
