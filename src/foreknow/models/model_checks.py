"""Checks a loaded model: its weights are finite, it sees no later tokens, and its tokenizer fits its embeddings.

`checkpoint_check.py` compares the names and shapes of its tensors with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from foreknow.errors import ModelError, first_line
from foreknow.models.weight_files import Tensor, WeightFiles, names_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def untie(model: PreTrainedModel) -> str | None:
    """Untie embeddings that the config ties although the checkpoint holds two different ones; return a note, or None.

    The config is corrected, so that copies and saved models keep both too.
    """
    config: Any = model.config.get_text_config()
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) or getattr(config, "tie_word_embeddings", False)
    if not tied or head is None or embeddings is None or not hasattr(head, "weight"):
        return None
    if head.weight is embeddings.weight or head.weight.device.type == "meta" or not _is_tied_class(model):
        return None
    if head.weight.shape == embeddings.weight.shape and bool((head.weight == embeddings.weight).all()):
        return None
    model.config.tie_word_embeddings = False
    config.tie_word_embeddings = False
    return "config.json ties the output head to the embeddings, but the checkpoint holds two that differ: both are used"


def check_finite(called: str, model: nn.Module, dtype: str, files: WeightFiles) -> None:
    """Raise ModelError, naming tensors, where weights are NaN or infinite, including offloaded weights.

    Makes one pass over the weights. If the cast to `dtype` made a number infinite, the message says so.
    """
    bad, total = [], 0
    for name, values in _weights(model):
        total += 1
        if not is_finite(values):
            bad.append(name)
    if not bad:
        return
    cast = [
        name
        for name in bad
        if (stored := files.tensors.get(name)) and _wider(stored.dtype, dtype) and _finite_in_file(name, stored)
    ]
    if len(cast) == len(bad):
        wide = files.tensors[cast[0]].dtype
        raise ModelError(
            f"{called}: {len(bad):,} of {total:,} tensors do not fit into {dtype}: {names_of(bad)} (they are "
            f"{wide} in the checkpoint); use --dtype {'bfloat16 or float32' if dtype == 'float16' else 'float32'}"
        )
    or_cast = ", or it needs --dtype bfloat16 or float32" if dtype == "float16" else ""
    raise ModelError(
        f"{called}: {len(bad):,} of {total:,} tensors hold NaN or infinite numbers: {names_of(bad)}; the checkpoint "
        f"is damaged, or its training diverged{or_cast}"
    )


def check_causal(called: str, model: PreTrainedModel) -> None:
    """Raise ModelError where a token changes the logits before it.

    An encoder loaded as a causal LM would see the answers it should predict. Makes one pass over a few short rows with
    the same beginning.
    """
    import torch

    embeddings: Any = model.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None) or embeddings.weight.device
    begins = [size // 7, size // 5, size // 3]
    ids = torch.tensor([[*begins, *(size * (2 * row + n) // 11 for n in range(4))] for row in range(4)], device=device)
    forward: Any = model.eval()
    try:
        with torch.no_grad():
            logits = forward(input_ids=ids).logits[:, : len(begins)].float()
    except Exception as error:
        # a model's own code, or a missing operator, can raise anything
        raise ModelError(f"{called}: cannot compute: {first_line(error)}") from None
    difference = (logits - logits[:1]).abs().mean(-1).max() / logits.std().clamp(min=1e-6)
    if bool(difference > (1e-3 if embeddings.weight.dtype == torch.float32 else 0.05)):
        raise ModelError(
            f"{called}: {type(model).__name__} sees the tokens behind the one it foretells (an encoder, or a prefix "
            "model): it would be shown the answers; name a causal LM"
        )


def is_finite(values: torch.Tensor) -> bool:
    """Return whether all numbers of a tensor are finite; True for a tensor that is not floating-point."""
    import torch

    if not values.is_floating_point() or values.numel() == 0:
        return True
    with torch.no_grad():
        try:
            low, high = torch.aminmax(values.detach())
        except (RuntimeError, NotImplementedError):  # float8, and quantised tensors that unpack themselves
            try:
                low, high = torch.aminmax(values.detach().to(torch.float32))
            except (RuntimeError, NotImplementedError):
                return True
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def check_vocabulary(called: str, tokenizer: Any, rows: int) -> str | None:
    """Raise ModelError for a tokenizer with tokens beyond the embeddings (`rows` of them).

    Returns a note where only special tokens that no text contains lie beyond them, or where the tokenizer has far fewer
    tokens than the model.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    beyond = {text: number for text, number in vocabulary.items() if number >= rows}
    largest = max(vocabulary.values(), default=-1) + 1
    if beyond:
        added = tokenizer.added_tokens_decoder
        used = {tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer("x")["input_ids"]}
        template = str(tokenizer.chat_template or "")
        serious = [
            text
            for text, number in beyond.items()
            if number not in added or not added[number].special or number in used or text in template
        ]
        if serious:
            raise ModelError(
                f"{called}: its tokenizer has {largest:,} tokens and its embeddings {rows:,} rows: {names_of(serious)} "
                "have none. Take the tokenizer that belongs to these weights, or resize the model "
                "(resize_token_embeddings) and train the new rows"
            )
        return f"the special tokens {names_of(beyond)} have no embeddings ({rows:,} rows); no text is made of them"
    if largest < 0.9 * rows:
        return (
            f"the tokenizer has {largest:,} tokens, the model {rows:,} embeddings: is it the tokenizer of this model?"
        )
    return None


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and saved buffer once; fetch those that accelerate offloads."""
    saved = set(model.state_dict().keys()) if not _is_spread(model) else None
    seen: set[int] = set()
    for name, module in model.named_modules():
        fetch = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for short, values in own:
            full = f"{name}.{short}" if name else short
            if id(values) in seen or (saved is not None and full not in saved):
                continue
            seen.add(id(values))
            if values.device.type != "meta":
                yield full, values
            elif fetch is not None:
                try:
                    yield full, fetch[short]
                except KeyError:
                    continue


def _is_spread(model: nn.Module) -> bool:
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _wider(stored: str, dtype: str) -> bool:
    """Return whether a safetensors dtype holds numbers that `dtype` cannot."""
    return {"float16": stored in ("BF16", "F32", "F64"), "bfloat16": stored in ("F32", "F64")}.get(
        dtype, stored == "F64"
    )


def _finite_in_file(name: str, tensor: Tensor) -> bool:
    from safetensors import safe_open

    with safe_open(str(tensor.file), framework="pt") as opened:
        return is_finite(opened.get_tensor(name))


def _is_tied_class(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "_tied_weights_keys", None))
