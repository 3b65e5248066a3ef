"""Private names of torch, transformers and tokenizers that foreknow uses, and what it does where one is missing.

Each name may be absent, or take other arguments, in another version of its library. Whatever is called here then
falls back on public names, or goes without what was only faster. The private operators that multiply matrices have a
file of their own (`inference/prepacked_linear.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHANGED: Final = (AttributeError, TypeError, ImportError, RuntimeError, NotImplementedError)
"""What a call of a private name raises where the name is missing, takes other arguments, or does not work here."""

_SET: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The attention function that each model was last given by `set_attention`."""


def has_bfloat16_instructions() -> bool:
    """Whether the processor, and oneDNN, which multiplies matrices on it, have instructions for bfloat16.

    False where the processor cannot be asked. `ONEDNN_MAX_CPU_ISA` keeps oneDNN from instructions that are there.
    """
    import torch

    try:
        on_processor = bool(torch.cpu._is_avx512_bf16_supported())
    except CHANGED:
        try:
            on_processor = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        except CHANGED:
            return False
    if not on_processor or not torch.backends.mkldnn.is_available():
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except CHANGED:
        return True


def plain_attention(model: PreTrainedModel) -> str:
    """The attention function of transformers that a model is computed with outside our own: "sdpa" or "eager"."""
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def attention_of(model: PreTrainedModel) -> str:
    """The attention function that a model is set to: by its config, else by the last `set_attention`."""
    in_config = getattr(model.config, "_attn_implementation", None)
    return str(in_config) if in_config else _SET.get(model) or plain_attention(model)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Let a model use another attention function."""
    model.set_attn_implementation(name)
    _SET[model] = name


def model_of_config(like: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model of `like`'s class and config in `dtype`, with new weights and the plain attention."""
    import torch

    config: Any = type(like.config).from_dict(like.config.to_dict())
    kind: Any = type(like)
    attention = plain_attention(like)
    try:
        config._attn_implementation = attention
        made: PreTrainedModel = kind._from_config(config, dtype=dtype)
    except (AttributeError, TypeError):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # and not .to(dtype), which would round the positions' frequencies
        try:
            made = kind(config)
        finally:
            torch.set_default_dtype(usual)
        set_attention(made, attention)
    return made


def forget_words(tokenizer: Any) -> None:
    """Keep a tokenizer of BPE or Unigram from remembering the words that it has seen."""
    backend = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    try:
        resize = backend._resize_cache  # type: ignore[union-attr]
    except AttributeError:  # one that remembers nothing, or another version of tokenizers
        return
    try:
        resize(0)
    except Exception:  # it raises what its Rust code likes; words that are remembered only cost memory
        return
