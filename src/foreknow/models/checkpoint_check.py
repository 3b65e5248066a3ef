"""Compares a loaded model with its checkpoint: no tensor is missing, unused or of another shape.

transformers fills tensors that a checkpoint lacks with random numbers and skips those the architecture does not know;
a model loaded that way answers as if it knew nothing. Every loader of foreknow calls this check. Tensors that do not
change the language model (old buffers, value heads, vision towers, layers for multi-token prediction) may be skipped,
and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ModelError, first_line
from foreknow.models.weight_files import SHOWN, WeightFiles, count_of, names_of

if TYPE_CHECKING:
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
        """Convert the dictionary that `from_pretrained` returns."""
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
        differences = [
            f"{name} {_shape(stored_shape)}, expected {_shape(model_shape)}"
            for name, stored_shape, model_shape in mismatched[:SHOWN]
        ]
        rest = f" and {len(mismatched) - SHOWN:,} more" if len(mismatched) > SHOWN else ""
        problems.append(f"the checkpoint holds {count_of(mismatched)} of another shape: {'; '.join(differences)}{rest}")
    if problems:
        if any(file.suffix == ".gguf" for file in files.files):
            raise ModelError(f"{called}: {'; '.join(problems)}; the file is not whole, or of a layout that is not read")
        raise ModelError(f"{called}: {'; '.join(problems)}.\n{_advice(missing, unexpected, mismatched, model)}")
    if gaps := _expert_gaps(files):
        raise ModelError(f"{called}: the checkpoint lacks experts of the model: {names_of(gaps)}")
    return [f"left out {count_of(names)}: {reason} ({names_of(names, 1)})" for reason, names in notes.items()]


def _never_loaded(model: PreTrainedModel, files: WeightFiles) -> list[str]:
    """Return parameters whose names are in no weight file, even if the loader does not report them as missing.

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


def _offloaded_shapes(model: PreTrainedModel, files: WeightFiles) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Return offloaded weights of another shape than in their file, which the loader did not compare."""
    return [
        (name, files.tensors[name].shape, tuple(values.shape))
        for name, values in model.named_parameters()
        if values.device.type == "meta" and name in files.tensors and files.tensors[name].shape != tuple(values.shape)
    ]


def _skip_reason(name: str, files: WeightFiles, config: Any, text_only: bool) -> str | None:
    """Return why a tensor of the checkpoint may be skipped; None if it may not."""
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
    """Return whether a tensor belongs to a prediction layer that some configs number after the last layer."""
    extra = getattr(config, "num_nextn_predict_layers", None) or getattr(config, "num_mtp_layers", None)
    layers = getattr(config, "num_hidden_layers", None)
    match = re.search(r"(^|\.)layers\.(\d+)\.", name)
    if not isinstance(extra, int) or not isinstance(layers, int) or match is None:
        return False
    return layers <= int(match.group(2)) < layers + extra


def _integer_weights(model: PreTrainedModel, files: WeightFiles) -> list[str]:
    """Return weights stored as integers where the model has floats: without a scale their values mean nothing."""
    if getattr(model, "hf_quantizer", None) is not None:
        return []
    parameters = dict(model.named_parameters())
    return [
        name
        for name, stored in files.tensors.items()
        if stored.dtype in _INTEGERS and (values := parameters.get(name)) is not None and values.is_floating_point()
    ]


def _expert_gaps(files: WeightFiles) -> list[str]:
    """Return experts that the checkpoint's numbering skips: the loader would move later experts into their places."""
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
    """Return the most likely cause, and what to do."""
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
    """Return the layers that tensors belong to: `model.layers.3`."""
    return {layer.group() for name in names if (layer := re.match(r".*?\.\d+(?=\.)", name))}


def _names(model: Any) -> set[str]:
    return set(model.state_dict())


def _shape(sizes: Iterable[int]) -> str:
    return f"[{', '.join(str(n) for n in sizes)}]"
