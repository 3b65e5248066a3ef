"""Uses private names of torch, transformers and tokenizers, with a fallback where one is missing.

A private name may be missing, or take other arguments, in another version of its library. The functions here then
fall back on public names, or skip an optimisation. `inference/prepacked_linear.py` holds the private operators that
multiply matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHANGED: Final = (AttributeError, TypeError, ImportError, RuntimeError, NotImplementedError)
"""The errors of a private name that is missing, takes other arguments, or does not work on this machine."""

_SET: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The attention function that each model was last given by `set_attention`."""


def has_bfloat16_instructions() -> bool:
    """Return whether the processor, and oneDNN, which multiplies matrices on it, have instructions for bfloat16.

    False if that cannot be found out. `ONEDNN_MAX_CPU_ISA` can forbid oneDNN instructions that the processor has.
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
    """Return the attention function of transformers that a model uses outside our own: "sdpa" or "eager"."""
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def attention_of(model: PreTrainedModel) -> str:
    """Return the attention function that a model is set to: by its config, else by the last `set_attention`."""
    in_config = getattr(model.config, "_attn_implementation", None)
    return str(in_config) if in_config else _SET.get(model) or plain_attention(model)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Let a model use another attention function."""
    model.set_attn_implementation(name)
    _SET[model] = name


def model_of_config(like: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of `like`'s class and config in `dtype`, with new weights and the plain attention."""
    import torch

    config: Any = type(like.config).from_dict(like.config.to_dict())
    model_class: Any = type(like)
    attention = plain_attention(like)
    try:
        config._attn_implementation = attention
        model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    except (AttributeError, TypeError):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # .to(dtype) would round the positions' frequencies
        try:
            model = model_class(config)
        finally:
            torch.set_default_dtype(usual)
        set_attention(model, attention)
    return model


def disable_word_cache(tokenizer: Any) -> None:
    """Turn off the word cache of a BPE or Unigram tokenizer."""
    backend = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    try:
        resize = backend._resize_cache  # type: ignore[union-attr]
    except AttributeError:  # it has no cache, or it is another version of tokenizers
        return
    try:
        resize(0)
    except Exception:  # its Rust code can raise anything; a word cache only costs memory
        return
