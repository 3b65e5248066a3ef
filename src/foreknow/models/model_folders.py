"""Tells whether a folder holds a loadable model; if not, what it holds and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from foreknow.errors import ModelError
from foreknow.models.weight_files import names_of, weight_files

MARKS: Final = ("config.json", "adapter_config.json")
"""A folder that holds one of these is a model, or an adapter of one."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json. Raises ModelError where it cannot be read."""
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs"):
            raise ModelError(f"{path}: a Git LFS pointer, not the file; run git lfs pull there")
        config = json.loads(text)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {str(error)[:120]}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: found a {type(config).__name__}, expected keys with values")
    return config


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return (folder / "adapter_config.json").is_file() and not whole


def check_folder(called: str, folder: Path) -> None:
    """Raise ModelError, saying what the folder is and what to do, unless `save_pretrained` saved a model in it."""
    has_config = (folder / "config.json").is_file()
    if has_config and _sentence_model(folder):
        raise ModelError(f"{called}: a sentence-transformers embedding model, which answers nothing; name a causal LM")
    if has_config and weight_files(folder)[0]:
        return
    missing = "no weights (*.safetensors)" if has_config else "no config.json"
    for fits, message in _KINDS:
        if fits(folder):
            raise ModelError(f"{called}: the folder has {missing}: {message(folder) if callable(message) else message}")
    raise ModelError(f"{called}: the folder has {missing}; expected a model saved by save_pretrained")


def _has_any(*patterns: str) -> Callable[[Path], bool]:
    return lambda folder: any(any(folder.glob(pattern)) for pattern in patterns)


def _models_inside(folder: Path) -> list[Path]:
    folders = [path for path in folder.iterdir() if path.is_dir() and any((path / mark).is_file() for mark in MARKS)]
    return sorted(folders, key=_step)


def _step(path: Path) -> tuple[int, str]:
    match = re.search(r"(\d+)$", path.name)
    return (int(match.group(1)) if match else -1, path.name)


def _checkpoints(folder: Path) -> list[Path]:
    return [
        path
        for path in _models_inside(folder)
        if re.fullmatch(r"(checkpoint|step|epoch|global_step)[-_]?\d+", path.name)
    ]


def _format_checkpoints(folder: Path) -> str:
    checkpoints = _checkpoints(folder)
    return f"the output of a trainer, whose checkpoints lie inside; name one, such as {checkpoints[-1]}"


def _format_inside(folder: Path) -> str:
    folders = _models_inside(folder)
    names = ", ".join(str(path) for path in folders[:3])
    return f"the model lies one level down; name {names}" + (
        f" or another of {len(folders)}" if len(folders) > 3 else ""
    )


def _variant_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("model.*.safetensors") if not re.search(r"-of-", path.name))


def _format_variant(folder: Path) -> str:
    name = _variant_files(folder)[0].name
    return f"its weights are of a variant, {name}, which is not read by itself; rename it to model.safetensors"


def _other_weights(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.safetensors") if not path.name.startswith(("adapter", "optimizer"))]


def _sentence_model(folder: Path) -> bool:
    return (folder / "config_sentence_transformers.json").is_file() or (
        (folder / "modules.json").is_file() and any(folder.glob("*_Pooling"))
    )


def _weights_of_run(folder: Path) -> str:
    return " or ".join(str(folder / name) for name in ("early_stop", "convergence") if (folder / name).is_dir())


_KINDS: Final[tuple[tuple[Callable[[Path], Any], str | Callable[[Path], str]], ...]] = (
    (
        lambda folder: (folder / "early_stop").is_dir() or (folder / "convergence").is_dir(),
        lambda folder: f"a run of foreknow tune; name {_weights_of_run(folder)}",
    ),
    (_checkpoints, _format_checkpoints),
    (_has_any("model_index.json"), "a diffusion pipeline, which makes images and no answers; name a causal LM"),
    (
        _has_any("zero_to_fp32.py", "global_step*", "*zero_pp_rank*"),
        "a DeepSpeed ZeRO checkpoint, whose weights lie in parts; make it whole: python zero_to_fp32.py . OUT, and put "
        "config.json and the tokenizer beside",
    ),
    (
        _has_any("*.distcp", "pytorch_model_fsdp*", "*/*.distcp", "*/.metadata"),
        "an FSDP checkpoint, whose weights lie in parts; make it whole: accelerate merge-weights FOLDER OUT, and put "
        "config.json and the tokenizer beside",
    ),
    (
        _has_any("*.gguf"),
        lambda folder: f"GGUF files; name one of them: {names_of(str(path) for path in folder.glob('*.gguf'))}",
    ),
    (
        _has_any("consolidated*.pth", "consolidated*.safetensors", "params.json"),
        "weights in Meta's or Mistral's own layout; name the folder in transformers' layout (the -hf one), or convert "
        "it with transformers' convert_llama_weights_to_hf.py",
    ),
    (_variant_files, _format_variant),
    (
        _has_any("*.onnx", "onnx/*.onnx"),
        "an ONNX export, which has no weights that torch loads; name the model it was made from",
    ),
    (
        _has_any("openvino_model.xml", "*.engine", "*.mlmodel", "*.mlpackage", "*.tflite", "coreml/*"),
        "an export for another runtime; name the model it was made from",
    ),
    (
        _has_any("tf_model*.h5", "*.h5", "flax_model*.msgpack", "*.msgpack", "saved_model.pb", "*.ckpt.index"),
        "weights of TensorFlow or Flax, which transformers 5 does not load; convert them with an older transformers "
        "(from_tf=True or from_flax=True, then save_pretrained)",
    ),
    (
        _has_any("optimizer.pt", "optimizer.bin", "scheduler.pt", "trainer_state.json", "rng_state*.pth"),
        "a trainer's checkpoint with its optimizer's state and without the model",
    ),
    (
        _has_any("*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin"),
        "weights pickled by torch under their own name, which is not read; load them into the model and "
        "save_pretrained",
    ),
    (
        _other_weights,
        lambda folder: (
            f"weights under another name: {names_of(_other_weights(folder))}; expected model.safetensors and "
            "config.json"
        ),
    ),
    (_models_inside, _format_inside),
    (
        lambda folder: (folder / "snapshots").is_dir(),
        lambda folder: (
            f"a folder of the hub's cache; name the model by its hub id, or a folder inside {folder / 'snapshots'}"
        ),
    ),
    (_has_any("tokenizer.json", "tokenizer_config.json", "tokenizer.model"), "a tokenizer without its model"),
    (_has_any("manifest.json", "summary.json", "results.json"), "a run's folder, not a model"),
)
"""Pairs of a test for a kind of folder and the message about that kind. The first test that passes counts."""
