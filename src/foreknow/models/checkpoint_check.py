"""Checks a loaded model against its checkpoint: no tensor is missing, unused, of another shape, or not finite.

transformers fills tensors that a checkpoint lacks with random numbers and skips those the architecture does not know;
a model loaded that way answers as if it knew nothing. Every loader of foreknow calls this check. Tensors that do not
change the language model (old buffers, value heads, vision towers, layers for multi-token prediction) may be skipped,
and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ModelError, first_line
from foreknow.models.weight_files import SHOWN, Tensor, WeightFiles, count_of, names_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

WRAPPERS: Final = {
    "_orig_mod.": "saved from a model compiled by torch.compile; save the model inside it (model._orig_mod)",
    "module.": "saved from a DistributedDataParallel or DataParallel wrapper; save the model inside it (model.module)",
    "base_model.model.": "saved from a PEFT model that was not merged; save model.merge_and_unload(), or the adapter "
    "alone, beside its adapter_config.json",
    "_fsdp_wrapped_module.": "saved from an FSDP wrapper; save its gathered state dict",
    "_forward_module.": "saved from a Lightning wrapper; save the model inside it",
}
"""Prefixes that wrappers add to every tensor name, and what to do about each."""

_OLD_BUFFERS: Final = re.compile(
    r"(rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias|(^|\.)position_ids|attn\.bias|attention\.bias)$"
)
_TOWERS: Final = re.compile(
    r"(^|\.)(vision|visual|image|audio|speech|video|multi_modal|multimodal|mm|embed_vision|embed_audio)\w*\."
    r"|(^|\.)(projector|connector|aligner|resampler|perceive\w*|qformer\w*|query_tokens|image_newline)(\.|$)"
)
_PREDICTION: Final = re.compile(r"(^|\.)(mtp|nextn|eagle|medusa)\w*[.\d]")
_VALUE_HEAD: Final = re.compile(r"^v_head\.|(^|\.)value_head\.")
_KV_SCALE: Final = re.compile(r"(self_attn|attention)\.((k|v)_scale|(k|v)_proj\.output_scale|kv_scale)$")
_INTEGERS: Final = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
_EXPERT: Final = re.compile(r"^(.*\bexperts)\.(\d+)\.(.+)$")


class LoadedTensors(NamedTuple):
    """transformers' report on a load (`output_loading_info`), in the model's own tensor names.

    `mismatched`: name, shape in the checkpoint, shape in the model.
    """

    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    errors: Sequence[str] = ()

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> LoadedTensors:
        """From the dictionary that `from_pretrained` returns."""
        return cls(
            sorted(info.get("missing_keys", ())),
            sorted(info.get("unexpected_keys", ())),
            sorted((name, tuple(was), tuple(now)) for name, was, now in info.get("mismatched_keys", ())),
            list(info.get("error_msgs", ())),
        )


def check_loaded(
    called: str, model: PreTrainedModel, info: LoadedTensors, files: WeightFiles, *, text_only: bool = False
) -> list[str]:
    """Raise ModelError, naming tensors, where `model` differs from its checkpoint; return notes otherwise.

    `called`: the beginning of messages, such as "--model NAME". `text_only`: the model is the text part of a larger
    checkpoint, whose other tensors may be unused.
    """
    config: Any = model.config.get_text_config()
    if info.errors:
        raise ModelError(f"{called}: its weights do not fit: {first_line(info.errors[0])}")
    missing = sorted({*info.missing, *_never_loaded(model, files)})
    mismatched = [*info.mismatched, *_offloaded_shapes(model, files)]
    unexpected: list[str] = []
    notes: dict[str, list[str]] = {}
    for name in info.unexpected:
        reason = _skip_reason(name, files, config, text_only)
        if reason is None:
            unexpected.append(name)
        else:
            notes.setdefault(reason, []).append(name)
    problems = []
    if integers := _integer_weights(model, files):
        problems.append(
            f"the checkpoint stores {count_of(integers)} as whole numbers and names no way to read them: "
            f"{names_of(integers)}"
        )
    if missing:
        problems.append(f"the checkpoint lacks {count_of(missing)} of the model: {names_of(missing)}")
    if unexpected:
        problems.append(f"the checkpoint holds {count_of(unexpected)} that the model lacks: {names_of(unexpected)}")
    if mismatched:
        shown = [
            f"{name} {_shape(stored_shape)}, expected {_shape(model_shape)}"
            for name, stored_shape, model_shape in mismatched[:SHOWN]
        ]
        rest = f" and {len(mismatched) - SHOWN:,} more" if len(mismatched) > SHOWN else ""
        problems.append(f"the checkpoint holds {count_of(mismatched)} of another shape: {'; '.join(shown)}{rest}")
    if problems:
        if any(file.suffix == ".gguf" for file in files.files):
            raise ModelError(f"{called}: {'; '.join(problems)}; the file is not whole, or of a layout that is not read")
        raise ModelError(f"{called}: {'; '.join(problems)}.\n{_advice(missing, unexpected, mismatched, model)}")
    if gaps := _expert_gaps(files):
        raise ModelError(f"{called}: the checkpoint lacks experts of the model: {names_of(gaps)}")
    return [f"left out {count_of(names)}: {reason} ({names_of(names, 1)})" for reason, names in notes.items()]


def untie(model: PreTrainedModel) -> str | None:
    """Untie embeddings that the config ties although the checkpoint holds two different ones; return a note, or None.

    The config is corrected, so that copies and saved models keep both too."""
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
    """Raise ModelError where a token changes the logits before it: an encoder loaded as a causal LM would see the
    answers it should predict. Makes one pass over a few short rows with the same beginning."""
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
    """Whether all numbers of a tensor are finite; True for a tensor that is not floating-point."""
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
    """Raise ModelError for a tokenizer with tokens beyond the embeddings (`rows` of them). Return a note where only
    special tokens that no text contains lie beyond them, or where it has far fewer tokens than the model."""
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
    """Whether a safetensors dtype holds numbers that `dtype` cannot."""
    return {"float16": stored in ("BF16", "F32", "F64"), "bfloat16": stored in ("F32", "F64")}.get(
        dtype, stored == "F64"
    )


def _finite_in_file(name: str, tensor: Tensor) -> bool:
    from safetensors import safe_open

    with safe_open(str(tensor.file), framework="pt") as opened:
        return is_finite(opened.get_tensor(name))


def _never_loaded(model: PreTrainedModel, files: WeightFiles) -> list[str]:
    """Parameters whose names are in no weight file, even if the loader does not report them as missing.

    Only for architectures that load tensors under their own names; one that converts names reports missing tensors.
    """
    if not files.tensors or getattr(model, "_weight_conversions", None) or getattr(model, "hf_quantizer", None):
        return []
    prefix = f"{model.base_model_prefix}."
    stored = set(files.tensors)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    tied |= set((getattr(model, "all_tied_weights_keys", None) or {}).values())
    optional = [re.compile(p) for p in (getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    missing = []
    for name, _ in model.named_parameters():
        bare = name.removeprefix(prefix)
        if stored & {name, bare, f"{prefix}{name}"} or name in tied:
            continue
        if _builtin(model) and any(pattern.search(name) for pattern in optional):
            continue
        missing.append(name)
    # the loader renamed all tensors of this checkpoint, so its own report counts
    return missing if len(missing) < len(list(model.named_parameters())) else []


def _builtin(model: PreTrainedModel) -> bool:
    return type(model).__module__.startswith("transformers.")


def _is_tied_class(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "_tied_weights_keys", None))


def _offloaded_shapes(model: PreTrainedModel, files: WeightFiles) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Offloaded weights of another shape than in their file, which the loader did not compare."""
    return [
        (name, files.tensors[name].shape, tuple(values.shape))
        for name, values in model.named_parameters()
        if values.device.type == "meta" and name in files.tensors and files.tensors[name].shape != tuple(values.shape)
    ]


def _skip_reason(name: str, files: WeightFiles, config: Any, text_only: bool) -> str | None:
    """Why a tensor of the checkpoint may be skipped; None if it may not."""
    stored = files.tensors.get(name) or files.tensors.get(name.partition(".")[2])
    if _OLD_BUFFERS.search(name):
        is_bias = name.endswith((".attn.bias", ".attention.bias"))
        if not is_bias or (stored is not None and len(stored.shape) == 4):
            return "buffers that older versions saved and newer ones compute"
        return None
    if _VALUE_HEAD.search(name):
        return "a value head, which answers do not use"
    if _PREDICTION.search(name) or _beyond_the_last_layer(name, config):
        return "layers for multi-token prediction, which answers do not use"
    if _KV_SCALE.search(name):
        return "scales of a quantised cache, which is not used here"
    if text_only and _TOWERS.search(name):
        return "the parts for images and sound, which text does not use"
    return None


def _beyond_the_last_layer(name: str, config: Any) -> bool:
    """Whether a tensor belongs to a prediction layer that some configs number after the last layer."""
    extra = getattr(config, "num_nextn_predict_layers", None) or getattr(config, "num_mtp_layers", None)
    layers = getattr(config, "num_hidden_layers", None)
    match = re.search(r"(^|\.)layers\.(\d+)\.", name)
    if not isinstance(extra, int) or not isinstance(layers, int) or match is None:
        return False
    return layers <= int(match.group(2)) < layers + extra


def _integer_weights(model: PreTrainedModel, files: WeightFiles) -> list[str]:
    """Weights stored as integers where the model has floats: without a scale their values mean nothing."""
    if getattr(model, "hf_quantizer", None) is not None:
        return []
    parameters = dict(model.named_parameters())
    return [
        name
        for name, stored in files.tensors.items()
        if stored.dtype in _INTEGERS and (values := parameters.get(name)) is not None and values.is_floating_point()
    ]


def _expert_gaps(files: WeightFiles) -> list[str]:
    """Experts that the checkpoint's numbering skips: the loader would move later experts into their places."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in files.tensors:
        if match := _EXPERT.match(name):
            numbers.setdefault((match.group(1), match.group(3)), set()).add(int(match.group(2)))
    return [
        f"{prefix}.{number}.{suffix}"
        for (prefix, suffix), present in numbers.items()
        for number in sorted(set(range(max(present) + 1)) - present)
    ]


def _advice(missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[Any], model: Any) -> str:
    """The most likely cause, and what to do."""
    for prefix, what in WRAPPERS.items():
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return f"The names begin with {prefix!r}: {what}"
    if any(".lora_A." in name or ".lora_B." in name for name in unexpected):
        return f"The checkpoint holds LoRA weights that were not merged: {WRAPPERS['base_model.model.']}"
    heads = [
        name
        for name in unexpected
        if re.search(r"(^|\.)(score|classifier|qa_outputs|classification_head|pooler)\.", name)
    ]
    if heads:
        return f"{heads[0]} is a head for classification or reward: not a model that answers"
    if getattr(model, "hf_quantizer", None) is not None:
        return "Its quantised weights are laid out in another way than the installed package has it; update the package"
    config: Any = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", "?")
    if missing and not unexpected and not mismatched and _layers(missing) & _layers(_names(model) - set(missing)):
        return "Layers of which other tensors are there lack these: they were not saved whole; copy the weights again"
    if any(re.search(r"\.\d+\.", name) for name in (*missing, *unexpected)) and not mismatched:
        only = "more" if unexpected and not missing else "fewer" if missing and not unexpected else "other"
        return (
            f"config.json names {layers} layers of {type(model).__name__}, and the weights have {only}: take the "
            "config.json that was saved with them, or copy the weights again"
        )
    head = model.get_output_embeddings()
    if mismatched and any("embed" in name or "lm_head" in name or "wte" in name for name, *_ in mismatched):
        return (
            f"config.json says vocab_size {getattr(config, 'vocab_size', '?')}: take the config.json that was saved "
            "with the weights (a tokenizer with added tokens changes it)"
        )
    if head is not None and all(name.startswith(("lm_head", "output")) for name in missing) and missing:
        return "Without its output head it is no language model: a base or embedding model, or a classifier, was saved"
    return "The weights are those of another config.json, or were not saved whole; take both from the same save"


def _layers(names: Iterable[str]) -> set[str]:
    """The layers that tensors belong to: `model.layers.3`."""
    return {layer.group() for name in names if (layer := re.match(r".*?\.\d+(?=\.)", name))}


def _names(model: Any) -> set[str]:
    return set(model.state_dict())


def _shape(sizes: Iterable[int]) -> str:
    return f"[{', '.join(str(n) for n in sizes)}]"
