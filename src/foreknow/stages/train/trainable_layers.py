"""Chooses which weights of a model are trained (`--trainable`); the others stay as they are.

attention    the modules named attention or attn of every layer
mlp          the feed-forward modules of every layer, experts included
layers:A-B   the layers A to B, counted from 0, both included

Embeddings, output head and norms outside the layers are trained with `all` only. To train less than everything is no
remedy by itself: at the same number of facts learnt it forgets as much, or more (docs/remedies.md).
"""

from __future__ import annotations

import re
from typing import Any, Final

from foreknow.config.tune import layer_range
from foreknow.errors import ConfigError
from foreknow.stages.train.answer_loss import base_of

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.(.+)$")
_PARTS: Final = {
    "attention": re.compile(r"(?:^|\.)(?:self_attn|self_attention|attention|attn)\."),
    "mlp": re.compile(r"(?:^|\.)(?:mlp|feed_forward|ffn|block_sparse_moe|experts|dense_h_to_4h|dense_4h_to_h)\."),
}


def set_trainable(model: Any, setting: str) -> str:
    """Let only the weights that `setting` names be trained; return a line that counts them.

    Raises ConfigError if the model has no such weights, or not so many layers.
    """
    whole = base_of(model)
    parameters = dict(whole.named_parameters())
    if setting == "all":
        return f"all {sum(p.numel() for p in parameters.values()):,} weights are trained"
    layers = {int(match[1]) for name in parameters if (match := _LAYER.search(name))}
    span = layer_range(setting)
    if span is not None and (not layers or span[1] > max(layers)):
        raise ConfigError(f"--trainable {setting}: the model has {len(layers)} layers, numbered from 0")
    chosen = 0
    for name, parameter in parameters.items():
        match = _LAYER.search(name)
        wanted = match is not None and (
            span[0] <= int(match[1]) <= span[1] if span is not None else bool(_PARTS[setting].search(match[2]))
        )
        parameter.requires_grad_(wanted)
        chosen += parameter.numel() if wanted else 0
    if not chosen:
        raise ConfigError(f"--trainable {setting}: {type(whole).__name__} has no weights of that name; use all")
    total = sum(p.numel() for p in parameters.values())
    return f"{chosen:,} of {total:,} weights are trained (--trainable {setting})"
