"""Loads a model's weights and tokenizer, checks them against their files, and finds the tokens that end an answer.

resolve.py             a name -> a folder, an adapter's base
weight_files.py        the tensors that the weight files list
checkpoint_check.py    compares the loaded model with them
model_checks.py        checks its weights, its attention and its vocabulary
adapters.py            puts an adapter on its base
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from foreknow.errors import ForeknowError, ModelError, first_line
from foreknow.models.adapters import attach
from foreknow.models.architectures import text_part
from foreknow.models.bfloat16_speed import is_bfloat16_faster
from foreknow.models.checkpoint_check import LoadedTensors, check_loaded
from foreknow.models.in_memory import ModelInMemory
from foreknow.models.model_checks import check_causal, check_finite, check_vocabulary, untie
from foreknow.models.model_folders import read_config
from foreknow.models.positions import positions_of
from foreknow.models.private_api import disable_word_cache, has_bfloat16_instructions
from foreknow.models.quiet import quiet
from foreknow.models.resolve import Resolved, resolve
from foreknow.prompts.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


MAP: Final = "map"
"""The device setting that spreads a model over all devices."""
TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A folder with a tokenizer holds at least one of these files."""


@dataclass(frozen=True)
class Loaded:
    """A loaded model: weights in `dtype` on `device`, its tokenizer, and a hash of both.

    `device`: where it computes; for a model spread over several devices, their kind. `folder`: the folder that the
    user named. `trained`: PEFT's model around `model`, if it has an adapter.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    folder: str
    note: str | None
    dtype: str
    device: str
    reasons: tuple[str, ...]
    resolved: Resolved | None = None
    trained: Any = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the notes on weights and tokenizer: the reasons without those for device and dtype."""
        return self.reasons[2:]

    @property
    def summary(self) -> dict[str, Any]:
        """Return name, fingerprint, folder and note, for a run's summary; for an adapter also its base."""
        summary = {key: getattr(self, key) for key in ("name", "fingerprint", "folder", "note")}
        return summary if self.resolved is None else {**self.resolved.summary, "note": self.note}


def format_load_error(error: Exception) -> str:
    """Return a loader's error in one line; for a model with custom code, what to do about it."""
    if "`trust_remote_code=True`" in str(error):
        return (
            "it contains custom code, which does not run unasked; read that code, and give --trust-remote-code if you "
            "trust it"
        )
    return first_line(error)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda _: None,
    base: str | None = None,
    force: bool | None = None,
    trainable: bool = False,
) -> Loaded:
    """Load a model for inference. Raises ModelError where it is not found, or differs from what its files hold.

    `device`: auto, a device's name, or map, which spreads the layers over all GPUs and, once those are full, main
    memory, by accelerate's `device_map="auto"`. `base`, `force`: see `resolve`. `trainable`: whether an adapter's
    weights can be trained.
    """
    resolved = resolve(name, log, trust_remote_code, base=base, force=force)
    return load_resolved_model(
        resolved, dtype=dtype, device=device, trust_remote_code=trust_remote_code, trainable=trainable
    )


class ModelSettings(Protocol):
    """Settings that name a model, its dtype and its device."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def base(self) -> str | None: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def trust_remote_code(self) -> bool: ...  # noqa: D102


def load_from_settings(config: ModelSettings, *, dtype: str | None = None) -> Loaded:
    """Load the model that settings name, for inference; see `load_model`. `dtype`: overrides that of the settings."""
    return load_model(
        config.model,
        dtype=dtype or config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        log=logger.info,
        base=config.base,
    )


def load_resolved_model(
    resolved: Resolved,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    trainable: bool = False,
) -> Loaded:
    """Load a resolved model; see `load_model`. An adapter is not merged into its base's weights."""
    if resolved.memory is not None and not resolved.memory.copied:
        return _load_from_memory(resolved, resolved.memory)
    # oneDNN caches a kernel for each shape; its default of 1,024 kernels takes half a gigabyte
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    called = f"--model {resolved.name}"
    compute_device, device_reason = _choose_device(device)
    compute_dtype, dtype_reason = _choose_dtype(dtype, compute_device)
    tokenizer = load_tokenizer(resolved, trust_remote_code)
    model, notes = _load_checked_model(
        called, resolved, compute_dtype, compute_device, spread=device == MAP, trust_remote_code=trust_remote_code
    )
    if device == MAP:
        device_reason = format_device_map(getattr(model, "hf_device_map", {"": compute_device}))
    trained: Any = None
    if resolved.adapter is not None:
        if any(weights.device.type == "meta" for weights in model.parameters()):
            raise ModelError(
                f"{called}: an adapter cannot be put on a base that does not lie on the GPUs as a whole "
                f"({device_reason}); use GPUs with more memory, or --device cpu"
            )
        base = str((resolved.base or {}).get("name", resolved.folder))
        trained, adapter_notes = attach(called, base, model, resolved.adapter, trainable=trainable)
        notes += adapter_notes
        model = trained.get_base_model()
    table = model.get_input_embeddings()
    if (vocabulary_note := check_vocabulary(called, tokenizer, int(table.weight.shape[0]))) is not None:
        notes.append(vocabulary_note)
    return Loaded(
        name=resolved.name,
        model=model.eval(),
        tokenizer=tokenizer,
        fingerprint=resolved.fingerprint,
        folder=str(resolved.path),
        note="; ".join([*([resolved.note] if resolved.note else []), *notes]) or None,
        dtype=compute_dtype,
        device=compute_device,
        reasons=(device_reason, dtype_reason, *notes),
        resolved=resolved,
        trained=trained,
    )


def _load_from_memory(resolved: Resolved, memory: ModelInMemory) -> Loaded:
    """Return a model that lies in memory as it is, with the checks that a loaded model passes."""
    called, (device, dtype) = f"model {memory}", memory.place
    check_finite(called, memory.model, dtype, resolved.weights)
    check_causal(called, memory.model)
    table = memory.model.get_input_embeddings()
    note = check_vocabulary(called, memory.tokenizer, int(table.weight.shape[0]))
    return Loaded(
        name=resolved.name,
        model=memory.model,
        tokenizer=memory.tokenizer,
        fingerprint=resolved.fingerprint,
        folder="",
        note="; ".join(filter(None, (resolved.note, note))),
        dtype=dtype,
        device=device,
        reasons=(f"device {device}: the model is there", f"dtype {dtype}: the model's", *([note] if note else [])),
        resolved=resolved,
        trained=memory.trained,
    )


def _load_checked_model(
    called: str, resolved: Resolved, dtype: str, device: str, *, spread: bool, trust_remote_code: bool
) -> tuple[Any, list[str]]:
    """Load the model of a folder and check it against its files; return it with notes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quantised = resolved.quantization is not None
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(str(resolved.folder), trust_remote_code=trust_remote_code)
            part = text_part(called, config, read_config(resolved.folder))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(resolved.folder),
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                device_map="auto" if spread else {"": device} if quantised else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `check_loaded` below names them
                **({} if part is None else {"config": part.config, "key_mapping": part.renames}),
            )
            model, info = loaded
            check_notes = check_loaded(
                called, model, LoadedTensors.of(info), resolved.weights, text_only=part is not None
            )
            if not spread and not quantised:
                model.to(device)
    except ForeknowError:
        raise
    except Exception as error:
        # a model's files can raise anything: report it in one line
        raise ModelError(f"{called}: cannot be loaded: {format_load_error(error)}") from None
    check_finite(called, model, dtype, resolved.weights)
    check_causal(called, model)
    notes = [*([resolved.weights.note] if resolved.weights.note else []), *check_notes]
    if part is not None:
        model._weight_conversions = None  # save it as a text model under its own tensor names
        notes.append(part.note)
    if (note := untie(model)) is not None:
        notes.append(note)
    if resolved.quantization is not None:
        notes.append(f"quantised weights: {resolved.quantization.words}")
    return model, notes


def load_tokenizer(resolved: Resolved, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer: the adapter's own if it has one. Raises ModelError."""
    if resolved.memory is not None:
        return resolved.memory.tokenizer
    folder = (
        resolved.adapter
        if resolved.adapter and (resolved.adapter / "tokenizer_config.json").is_file()
        else resolved.folder
    )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        has_tokenizer = (
            any(folder.glob("*.model"))
            or any(folder.glob("vocab*"))
            or any(folder.glob("*.tiktoken"))
            or any(folder.glob("*.py"))
        )
        if not has_tokenizer:
            raise ModelError(
                f"--model {resolved.name}: the folder has no tokenizer ({TOKENIZERS[0]}); copy the tokenizer's files "
                "of the model it was made from into it"
            )
    try:
        with quiet():
            return read_tokenizer(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"--model {resolved.name}: its tokenizer cannot be loaded: {format_load_error(error)}"
        ) from None


def max_positions(resolved: Resolved, trust_remote_code: bool = False) -> int | None:
    """Return how many positions a resolved model takes (`positions_of`). Raises ModelError."""
    from transformers import AutoConfig

    try:
        with quiet():
            config: Any = (
                AutoConfig.from_pretrained(str(resolved.folder), trust_remote_code=trust_remote_code)
                if resolved.memory is None
                else resolved.memory.model.config
            )
    except Exception as error:
        raise ModelError(
            f"--model {resolved.name}: its config.json cannot be read: {format_load_error(error)}"
        ) from None
    return positions_of(config)


def read_tokenizer(folder: str | Path, **reading: Any) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer. `reading`: passed to `from_pretrained`, whose errors propagate.

    Its word cache is turned off: tokenizers keeps up to 10,000 words per thread even after the tokenizer is deleted,
    so that each loaded model would cost the process more memory. Without the cache, tokenizing takes 1.5 times as long.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), **reading)
    disable_word_cache(tokenizer)
    return tokenizer


def format_device_map(parts: Mapping[str, str | int | torch.device]) -> str:
    """Return a line that says how many parts accelerate put where (`hf_device_map`: part -> GPU number, cpu, disk)."""
    places = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in parts.values()]
    counts = ", ".join(f"{places.count(place)} on {place}" for place in dict.fromkeys(places))
    slow = "; a part in main memory or on disk goes to the GPU and back at every pass"
    off = any(place.startswith("cuda") for place in places) and {"cpu", "disk"} & set(places)
    return f"device map: of the model's {len(places)} parts {counts}{slow if off else ''}"


def resolve_device_dtype(device: str, dtype: str) -> tuple[str, str]:
    """Return the device and dtype that `load_model` would choose."""
    compute_device, _ = _choose_device(device)
    return compute_device, _choose_dtype(dtype, compute_device)[0]


class GpuMemory(NamedTuple):
    """Bytes of the smallest GPU in use: `total` in whole GiB, so that the driver's share does not show, and `free`
    now. `gpus`: the number of GPUs that share the layers."""

    total: int
    free: int
    gpus: int


def gpu_memory(device: str) -> GpuMemory | None:
    """Return memory of the GPU, or GPUs, that a device setting (auto, cuda, cuda:1, map) means; None without a GPU."""
    import torch

    if not torch.cuda.device_count():
        return None
    numbers = list(range(torch.cuda.device_count()))
    number = torch.device("cuda" if device == "auto" else device).index if device != MAP else None
    used = numbers if device == MAP else [torch.cuda.current_device() if number is None else number]
    memory = [torch.cuda.mem_get_info(n) for n in used]
    total = min(total for _, total in memory)
    return GpuMemory(total // 2**30 * 2**30, min(free for free, _ in memory), len(used))


def _choose_device(setting: str) -> tuple[str, str]:
    import torch

    if setting not in ("auto", MAP):
        try:
            torch.empty(1, device=setting)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"--device {setting}: not usable here: {first_line(error, 120)}") from None
        return setting, f"device {setting}: asked for"
    if torch.cuda.is_available():
        return "cuda", "device cuda: a GPU is there"
    other = "; --device mps takes Apple's, which is not tried yet" if torch.backends.mps.is_available() else ""
    return "cpu", f"device cpu: no CUDA GPU was found{other}"


def _choose_dtype(setting: str, device: str) -> tuple[str, str]:
    import torch

    if setting != "auto":
        if setting not in ("float32", "bfloat16", "float16"):
            raise ModelError(f"--dtype {setting}: expected auto, float32, bfloat16 or float16")
        if setting == "bfloat16" and device == "cpu" and not has_bfloat16_instructions():
            return setting, (
                "dtype bfloat16: asked for, though the processor has no instructions for it; float32 is about ten "
                "times faster here"
            )
        return setting, f"dtype {setting}: asked for"
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "dtype bfloat16: the GPU computes in it"
        return "float16", "dtype float16: the GPU has no bfloat16"
    if device != "cpu":
        return "float32", f"dtype float32: no other was tried on {device}"
    if not has_bfloat16_instructions():
        return "float32", "dtype float32: the processor has no instructions for bfloat16"
    if not is_bfloat16_faster():
        return "float32", "dtype float32: this processor multiplies matrices faster in it than in bfloat16"
    return "bfloat16", "dtype bfloat16: this processor multiplies matrices faster in it than in float32"


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device of the input ids. A spread model's first weight may be on another device, or offloaded."""
    import torch

    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device


def vocabulary_of(loaded: Loaded) -> Vocabulary:
    """Return the vocabulary for the search: how to decode tokens and which end an answer (design, section 8)."""
    tokenizer = loaded.tokenizer

    def decode(path: Sequence[int]) -> str:
        text = tokenizer.decode(list(path), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    stops: set[int] = set()
    generation = getattr(loaded.model, "generation_config", None)
    for eos in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        if eos is not None:
            stops.update([eos] if isinstance(eos, int) else eos)
    size = int(loaded.model.get_output_embeddings().weight.shape[0])
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    newline = {i for i, text in enumerate(texts) if "\n" in text}
    blank = {i for i in newline if not texts[i].strip()}
    pieces = texts if _joins_bytes(tokenizer) else None
    return Vocabulary(decode, frozenset(stops | blank), frozenset(newline - blank - stops), pieces)


def _joins_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer decodes ids by joining the bytes that each of them stands for, and does no more."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
