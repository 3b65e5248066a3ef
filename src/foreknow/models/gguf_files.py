"""Checks GGUF files before conversion: complete, a language model, of an architecture that transformers knows."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from foreknow.errors import ModelError
from foreknow.models.weight_files import names_of

_PARTS: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
ROPE_FACTORS: Final = "rope_freqs.weight"
"""The tensor of divisors for the frequencies of rotary positions, in models that scale them."""


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file: its block type by name (Q4_K, F16, ...) and its shape, slowest dimension first.

    `values`: only read for `ROPE_FACTORS`.
    """

    name: str
    block: str
    shape: tuple[int, ...]
    values: tuple[float, ...] = ()


class GgufFile(NamedTuple):
    """A GGUF file's header. `metadata`: scalar values by key."""

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Sequence[GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file. Raises ModelError where the file is incomplete or not GGUF."""
    with path.open("rb") as opened:
        start = opened.read(64)
    called = f"--model {path.name}"
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{called}: a Git LFS pointer, not the file; run git lfs pull there")
    if not start.startswith(b"GGUF"):
        raise ModelError(f"{called}: not a GGUF file (it does not begin with GGUF); copy or download it again")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        metadata = {name: _scalar(field) for name, field in reader.fields.items()}
        tensors = [
            GgufTensor(
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(n) for n in reversed(tensor.shape.tolist())),
                tuple(float(x) for x in tensor.data) if tensor.name == ROPE_FACTORS else (),
            )
            for tensor in reader.tensors
        ]
    except Exception as error:
        # a file cut short, or of another version, can raise anything in the reader
        unknown = re.search(r"(\d+) is not a valid GGMLQuantizationType", str(error))
        if unknown:
            raise ModelError(
                f"{called}: holds tensors of block type {unknown.group(1)}, which gguf {_version('gguf')} does not "
                "know; pip install -U gguf, or take a file of another block type"
            ) from None
        raise ModelError(
            f"{called}: cannot be read as GGUF ({path.stat().st_size:,} bytes): it is cut short or damaged; copy or "
            "download it again"
        ) from None
    return GgufFile(str(metadata.get("general.architecture") or ""), metadata, tensors)


def check_gguf(path: Path, gguf: GgufFile) -> None:
    """Raise ModelError, in a line, for a GGUF file that is no language model transformers can dequantise."""
    called = f"--model {path.name}"
    kind = str(gguf.metadata.get("general.type") or "model")
    if kind == "mmproj" or gguf.architecture == "clip":
        raise ModelError(f"{called}: a projector for images (mmproj), not a language model; name the model's own file")
    if kind == "adapter":
        raise ModelError(
            f"{called}: a LoRA adapter in GGUF, which is not read; name the adapter's folder as PEFT saved it"
        )
    if kind != "model":
        raise ModelError(f"{called}: GGUF of type {kind!r}, not a model")
    numbered = _PARTS.search(path.name)
    parts = int(gguf.metadata.get("split.count") or (numbered.group(2) if numbered else 0))
    if parts > 1:
        raise ModelError(
            f"{called}: one part of {parts}: join them first (llama-gguf-split --merge FIRST-PART OUT.gguf), and name "
            "OUT.gguf"
        )
    if not gguf.tensors:
        raise ModelError(f"{called}: holds a vocabulary and no weights")
    if "token_embd.weight" not in {tensor.name for tensor in gguf.tensors}:
        raise ModelError(f"{called}: holds no token embeddings; found {names_of(t.name for t in gguf.tensors)}")
    if not any(name.startswith("tokenizer.ggml.tokens") for name in gguf.metadata):
        raise ModelError(f"{called}: holds no tokenizer (tokenizer.ggml.tokens); it cannot be asked anything")
    if gguf.architecture not in known_architectures():
        raise ModelError(
            f"{called}: GGUF of architecture {gguf.architecture!r}, which transformers {_version('transformers')} does "
            "not dequantise; pip install -U transformers, or name the model in its own format (safetensors)"
        )


def check_tensor_count(called: str, gguf: GgufFile, model: Any) -> None:
    """Raise ModelError where a converted model has fewer numbers than its file.

    The loader silently skips tensors that it does not know.
    """
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0)
    read = [
        tensor for tensor in gguf.tensors if tensor.name != ROPE_FACTORS and not _is_prediction(tensor.name, layers)
    ]
    file_count = sum(prod(tensor.shape) for tensor in read)
    parameters = {id(values): values.numel() for values in model.parameters()}
    buffers = {id(values): values.numel() for values in model.buffers()}
    count = sum(parameters.values())
    if count <= file_count <= count + sum(buffers.values()):
        return
    kinds = sorted({re.sub(r"^blk\.\d+\.", "blk.N.", tensor.name) for tensor in read})
    suspects = [kind for kind in kinds if "rope" in kind or "bias" in kind or "exps" in kind] or kinds
    raise ModelError(
        f"{called}: the file holds {file_count:,} numbers, and transformers {_version('transformers')} takes {count:,} "
        f"of them for {type(model).__name__}: it knows no place for some tensors (look at {names_of(suspects)}); name "
        "the model in its own format (safetensors)"
    )


def scale_rope(called: str, gguf: GgufFile, config: Any) -> None:
    """Write a file's scaling of rotary positions into `config`, which transformers' loader leaves out.

    Raises ModelError for a scaling that transformers does not support.
    """
    name = gguf.architecture
    kind = str(gguf.metadata.get(f"{name}.rope.scaling.type") or "none")
    factors = next((tensor.values for tensor in gguf.tensors if tensor.name == ROPE_FACTORS), None)
    if kind in ("none", "") and factors is None:
        return
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    nested = parameters.get("full_attention")
    rope: dict[str, Any] = dict(nested) if isinstance(nested, dict) else parameters
    if rope.get("rope_type", "default") != "default":
        return  # the loader has read it
    if factors is not None:
        scaled = _llama3_settings(factors, rope, config)
        if scaled is None:
            raise ModelError(
                f"{called}: it stretches rotary positions by factors of its own ({ROPE_FACTORS}) that are not Llama "
                "3's; name the model in its own format (safetensors)"
            )
        rope |= scaled
    elif kind in ("linear", "yarn"):
        factor = float(gguf.metadata.get(f"{name}.rope.scaling.factor") or 1.0)
        rope |= {"rope_type": kind, "factor": factor}
        if kind == "yarn" and (original := gguf.metadata.get(f"{name}.rope.scaling.original_context_length")):
            rope["original_max_position_embeddings"] = int(original)
    else:
        raise ModelError(
            f"{called}: it stretches rotary positions in a way that is not read from GGUF ({kind!r}); name the model "
            "in its own format (safetensors)"
        )
    config.rope_parameters = {**parameters, "full_attention": rope} if isinstance(nested, dict) else rope


def _llama3_settings(factors: Sequence[float], own: Mapping[str, Any], config: Any) -> dict[str, Any] | None:
    """Return the settings of Llama 3's scaling that give these factors by frequency; None if none do.

    Files hold only the factors: the largest is the setting's factor; the others follow from Llama 3's context lengths.
    """
    theta, count = float(own.get("rope_theta", 10000.0)), len(factors)
    factor = max(factors)
    settings = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for original in (8192, int(getattr(config, "max_position_embeddings", 8192))):
        expected: list[float] = []
        for n in range(count):
            wave = 2 * math.pi * theta ** (n / count)
            smooth = (original / wave - 1.0) / (4.0 - 1.0)
            between = 1 / ((1 - smooth) / factor + smooth)
            expected.append(1.0 if wave < original / 4 else factor if wave > original else between)
        if all(abs(a - b) <= 1e-3 * abs(b) for a, b in zip(factors, expected, strict=True)):
            return {**settings, "original_max_position_embeddings": original}
    return None


def _is_prediction(name: str, layers: int) -> bool:
    match = re.match(r"blk\.(\d+)\.", name)
    return "nextn" in name or (match is not None and int(match.group(1)) >= layers > 0)


def known_architectures() -> set[str]:
    """Return the GGUF architectures that the installed transformers dequantises as causal LMs."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:  # newer versions move architectures to this loader
        newer = set(importlib.import_module("transformers.integrations.gguf").GGUF_ARCHS)
    except (ImportError, AttributeError):
        newer = set()
    aliases = {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2", "command-r"}
    return ({*GGUF_SUPPORTED_ARCHITECTURES, *newer} | aliases) - {"t5", "t5encoder", "umt5"}


def _scalar(field: Any) -> Any:
    """Return a scalar field's value; an array's length."""
    from gguf import GGUFValueType

    if field.types and field.types[0] == GGUFValueType.ARRAY:
        return len(field.data)
    return field.contents()


def _version(package: str) -> str:
    return importlib.metadata.version(package)
