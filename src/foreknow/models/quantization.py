"""Checks quantised checkpoints: which method a config.json names, and which packages it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from foreknow.errors import ConfigError, MissingExtra, ModelError
from foreknow.io.run_dir import read_json


class Method(NamedTuple):
    """A quantisation method: the modules that load it (each with its pip package), and whether it needs a GPU."""

    modules: tuple[tuple[str, str], ...] = ()
    gpu: bool = False


METHODS: Final[dict[str, Method]] = {
    "aqlm": Method((("aqlm", "aqlm[gpu,cpu]"),)),
    "auto-round": Method((("auto_round", "auto-round"),)),
    "awq": Method((("gptqmodel", "gptqmodel"),)),
    "bitnet": Method(),
    "bitsandbytes": Method((("bitsandbytes", "bitsandbytes"),)),
    "compressed-tensors": Method((("compressed_tensors", "compressed-tensors"),)),
    "eetq": Method((("kernels", "kernels"),), gpu=True),
    "fbgemm_fp8": Method((("fbgemm_gpu", "fbgemm-gpu"),), gpu=True),
    "fouroversix": Method((("fouroversix", "fouroversix"),)),
    "fp8": Method(),
    "fp_quant": Method((("fp_quant", "fp_quant"),), gpu=True),
    "gemma": Method(),
    "gptq": Method((("optimum", "optimum"), ("gptqmodel", "gptqmodel"))),
    "higgs": Method((("flute", "flute-kernel"), ("fast_hadamard_transform", "fast_hadamard_transform")), gpu=True),
    "hqq": Method((("hqq", "hqq"),)),
    "metal": Method((("kernels", "kernels"),)),
    "mxfp4": Method(),
    "mxfp8": Method(),
    "nvfp4": Method((("kernels", "kernels"),), gpu=True),
    "quanto": Method((("optimum.quanto", "optimum-quanto"),)),
    "quark": Method((("quark", "amd-quark"),)),
    "sinq": Method((("sinq", "sinq"),)),
    "spqr": Method((("spqr_quant", "spqr_quant[gpu]"),), gpu=True),
    "torchao": Method((("torchao", "torchao"),)),
    "vptq": Method((("vptq", "vptq"),), gpu=True),
}
"""The methods that transformers loads, and what each one needs."""

_ELSEWHERE: Final = {
    "exl2": "ExLlamaV2 loads it, transformers does not",
    "exl3": "ExLlamaV3 loads it, transformers does not",
    "marlin": "vLLM loads it, transformers does not",
    "modelopt": "TensorRT-LLM and vLLM load it, transformers does not",
    "experts_int8": "vLLM loads it, transformers does not",
}
_OTHER_NAMES: Final = {
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "intel/auto-round": "auto-round",
}
UNQUANTISED: Final = "name the checkpoint that it was made from"


class Quantization(NamedTuple):
    """How a checkpoint is quantised: the method's name, and a description."""

    method: str
    words: str


def quantization_of(folder: Path) -> Quantization | None:
    """Return how the checkpoint in a folder is quantised; None if it is not."""
    config = read_json(folder / "config.json") or {}
    settings = _settings(config)
    if settings is None:
        return None
    method = str(settings.get("quant_method") or _guess_method(settings)).lower()
    method = _OTHER_NAMES.get(method, method)
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if method == "bitsandbytes":
        bits = 4 if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else 8
    return Quantization(method, f"{method}, {bits} bits" if isinstance(bits, int) else method)


def check_quantization(called: str, quantization: Quantization) -> None:
    """Raise MissingExtra, naming package and command, or ModelError, where a quantised checkpoint cannot be loaded."""
    name, words = quantization
    if name == "mlx":
        raise ModelError(f"{called}: quantised for MLX, which only Apple's mlx-lm loads; {UNQUANTISED}")
    if name in _ELSEWHERE:
        raise ModelError(f"{called}: quantised with {words}: {_ELSEWHERE[name]}; {UNQUANTISED}")
    if name not in METHODS:
        raise ModelError(
            f"{called}: quantised with {words}, which transformers {_version()} does not know; update it (pip install "
            f"-U transformers) or {UNQUANTISED}"
        )
    missing = [package for module, package in METHODS[name].modules if not _is_installed(module)]
    if missing:
        raise MissingExtra(
            f"{called}: quantised with {words}: pip install {' '.join(repr(p) if '[' in p else p for p in missing)}, "
            f"or {UNQUANTISED}"
        )
    if METHODS[name].gpu and not _has_gpu():
        raise ModelError(f"{called}: quantised with {words}, which runs on a GPU only; {UNQUANTISED}")


def check_trainable(called: str, quantization: Quantization | None, method: str) -> None:
    """Raise ConfigError where `method` would train every weight of a quantised checkpoint."""
    if quantization is not None and method == "full":
        raise ConfigError(
            f"{called}: quantised with {quantization.words}: its weights cannot all be trained. Use --method lora, "
            f"which trains adapters beside them, or {UNQUANTISED}"
        )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            settings = section.get(key)
            if isinstance(settings, Mapping) and settings:
                return settings
    return None


def _guess_method(settings: Mapping[str, Any]) -> str:
    """Guess the method of settings that do not name it."""
    if "load_in_4bit" in settings or "load_in_8bit" in settings:
        return "bitsandbytes"
    if "config_groups" in settings:
        return "compressed-tensors"
    if {"group_size", "bits"} <= set(settings):  # mlx-lm's `quantization`
        return "mlx"
    return "unknown"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _version() -> str:
    return importlib.metadata.version("transformers")
