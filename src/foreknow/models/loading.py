"""A model's weights and tokenizer in memory, held against their files; which tokens end an answer.

resolve.py     a name -> a folder, an adapter's base
weight_files.py         what the weight files list
checkpoint_check.py      what was loaded, held against them
adapters.py        an adapter on its base
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from foreknow.errors import ForeknowError, ModelError, first_line
from foreknow.models.adapters import attach
from foreknow.models.architectures import text_part
from foreknow.models.checkpoint_check import (
    LoadedTensors,
    check_causal,
    check_finite,
    check_loaded,
    check_vocabulary,
    untie,
)
from foreknow.models.model_folders import read_config
from foreknow.models.packaged import quiet
from foreknow.models.private_api import forget_words, has_bfloat16_instructions
from foreknow.models.resolve import Resolved, resolve
from foreknow.progress import say
from foreknow.prompts.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from foreknow.prompts.vocabulary import Vocabulary


MAP: Final = "map"
"""The device setting that spreads a model over all devices."""
TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which a folder with a tokenizer holds one."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to compute: weights in `dtype` on `device`, its tokenizer, a hash of both.

    `device`: where it computes; for a model spread over several, their kind. `folder`: the one that was named.
    `trained`: PEFT's model around `model`, where an adapter is on it.
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
        """What is said of the weights and the tokenizer, behind device and dtype."""
        return self.reasons[2:]

    @property
    def told(self) -> dict[str, Any]:
        """Name, fingerprint, folder and note, for a summary; of an adapter its base too."""
        own = {key: getattr(self, key) for key in ("name", "fingerprint", "folder", "note")}
        return own if self.resolved is None else {**self.resolved.told, "note": self.note}


def in_a_line(error: Exception) -> str:
    """What a loader's error says, in a line; of a model that brings code of its own, what to do."""
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
    say: Callable[[str], None] = lambda _: None,
    base: str | None = None,
    force: bool | None = None,
    trainable: bool = False,
) -> Loaded:
    """Load a model for inference. Raises ModelError where it cannot be had, or is not wholly what its files hold.

    `device`: auto, a device's name, or map: the layers spread over all GPUs and, where those are full, main memory,
    as accelerate's `device_map="auto"` lays them out. `base`, `force`: see `resolve`. `trainable`: an adapter's
    weights can be trained.
    """
    found = resolve(name, say, trust_remote_code, base=base, force=force)
    return load_resolved_model(
        found, dtype=dtype, device=device, trust_remote_code=trust_remote_code, trainable=trainable
    )


class ModelSettings(Protocol):
    """Settings that name a model and say what it is computed in."""

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
    """Load the model that settings name, for inference; see `load_model`. `dtype`: another than theirs."""
    return load_model(
        config.model,
        dtype=dtype or config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        say=say,
        base=config.base,
    )


def load_resolved_model(
    found: Resolved,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    trainable: bool = False,
) -> Loaded:
    """Load a model that was found; see `load_model`. Adapters stay beside the base's weights, as they were trained."""
    # kernels the CPU library keeps, one for each shape it has seen: 1,024 of them are half a gigabyte
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    called = f"--model {found.name}"
    on, device_reason = _device(device)
    kind, dtype_reason = _dtype(dtype, on)
    tokenizer = load_tokenizer(found, trust_remote_code)
    model, notes = _whole_model(called, found, kind, on, spread=device == MAP, trust_remote_code=trust_remote_code)
    if device == MAP:
        device_reason = spread_reason(getattr(model, "hf_device_map", {"": on}))
    trained: Any = None
    if found.adapter is not None:
        if any(weights.device.type == "meta" for weights in model.parameters()):
            raise ModelError(
                f"{called}: an adapter cannot be put on a base that does not lie on the GPUs as a whole "
                f"({device_reason}); use GPUs with more memory, or --device cpu"
            )
        base = str((found.base or {}).get("name", found.folder))
        trained, more = attach(called, base, model, found.adapter, trainable=trainable)
        notes += more
        model = trained.get_base_model()
    table = model.get_input_embeddings()
    if (odd := check_vocabulary(called, tokenizer, int(table.weight.shape[0]))) is not None:
        notes.append(odd)
    return Loaded(
        name=found.name,
        model=model.eval(),
        tokenizer=tokenizer,
        fingerprint=found.fingerprint,
        folder=str(found.path),
        note="; ".join([*([found.note] if found.note else []), *notes]) or None,
        dtype=kind,
        device=on,
        reasons=(device_reason, dtype_reason, *notes),
        resolved=found,
        trained=trained,
    )


def _whole_model(
    called: str, found: Resolved, dtype: str, on: str, *, spread: bool, trust_remote_code: bool
) -> tuple[Any, list[str]]:
    """The model of a folder, held against its files, and what is said of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quantised = found.quantization is not None
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(str(found.folder), trust_remote_code=trust_remote_code)
            part = text_part(called, config, read_config(found.folder))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(found.folder),
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                device_map="auto" if spread else {"": on} if quantised else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to tell of them by name, below
                **({} if part is None else {"config": part.config, "key_mapping": part.renames}),
            )
            model, info = loaded
            checked = check_loaded(called, model, LoadedTensors.of(info), found.weights, text_only=part is not None)
            if not spread and not quantised:
                model.to(on)
    except ForeknowError:
        raise
    except Exception as error:
        # whatever a model's files may raise, the user is told in one line
        raise ModelError(f"{called}: cannot be loaded: {in_a_line(error)}") from None
    check_finite(called, model, dtype, found.weights)
    check_causal(called, model)
    notes = [*([found.weights.note] if found.weights.note else []), *checked]
    if part is not None:
        model._weight_conversions = None  # saved again, it is a text model under its own names
        notes.append(part.note)
    if (odd := untie(model)) is not None:
        notes.append(odd)
    if found.quantization is not None:
        notes.append(f"quantised weights: {found.quantization.words}")
    return model, notes


def load_tokenizer(found: Resolved, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer: an adapter's own where it has one. Raises ModelError."""
    own = found.adapter if found.adapter and (found.adapter / "tokenizer_config.json").is_file() else found.folder
    if not any((own / name).is_file() for name in TOKENIZERS):
        there = (
            any(own.glob("*.model")) or any(own.glob("vocab*")) or any(own.glob("*.tiktoken")) or any(own.glob("*.py"))
        )
        if not there:
            raise ModelError(
                f"--model {found.name}: the folder has no tokenizer ({TOKENIZERS[0]}); copy the tokenizer's files of "
                "the model it was made from into it"
            )
    try:
        with quiet():
            return read_tokenizer(own, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"--model {found.name}: its tokenizer cannot be loaded: {in_a_line(error)}") from None


def positions_of(found: Resolved, trust_remote_code: bool = False) -> int | None:
    """How many tokens the model can take in, None where its config does not say. Raises ModelError."""
    from transformers import AutoConfig

    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(str(found.folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"--model {found.name}: its config.json cannot be read: {in_a_line(error)}") from None
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


def read_tokenizer(folder: str | Path, **reading: Any) -> PreTrainedTokenizerBase:
    """A folder's tokenizer. `reading`: passed on to `from_pretrained`, whose errors come through.

    It remembers no words: tokenizers keeps what one has seen, up to 10,000 words a thread, when the tokenizer itself is
    gone, so that every model loaded would cost a process more memory. Without, tokenizing takes half as long again.
    """
    from transformers import AutoTokenizer

    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), **reading)
    forget_words(made)
    return made


def spread_reason(parts: Mapping[str, str | int | torch.device]) -> str:
    """Where accelerate put a model's parts (`hf_device_map`: part -> GPU number, cpu or disk), and how many."""
    places = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in parts.values()]
    told = ", ".join(f"{places.count(place)} on {place}" for place in dict.fromkeys(places))
    slow = "; a part in main memory or on disk goes to the GPU and back at every pass"
    off = any(place.startswith("cuda") for place in places) and {"cpu", "disk"} & set(places)
    return f"device map: of the model's {len(places)} parts {told}{slow if off else ''}"


def resolve_device_dtype(device: str, dtype: str) -> tuple[str, str]:
    """The device and dtype that `load_model` would choose."""
    on, _ = _device(device)
    return on, _dtype(dtype, on)[0]


class GpuMemory(NamedTuple):
    """Bytes of the smallest GPU in use: all of it in whole GiB, as no driver's share shows in it, and what is free
    now. `gpus`: so many share the layers."""

    total: int
    free: int
    gpus: int


def gpu_memory(device: str) -> GpuMemory | None:
    """Memory of the GPU that a device setting (auto, cuda, cuda:1, map) means, or of all of them; None without one."""
    import torch

    if not torch.cuda.device_count():
        return None
    every = list(range(torch.cuda.device_count()))
    one = torch.device("cuda" if device == "auto" else device).index if device != MAP else None
    used = every if device == MAP else [torch.cuda.current_device() if one is None else one]
    found = [torch.cuda.mem_get_info(n) for n in used]
    total = min(total for _, total in found)
    return GpuMemory(total // 2**30 * 2**30, min(free for free, _ in found), len(used))


def _device(asked: str) -> tuple[str, str]:
    import torch

    if asked not in ("auto", MAP):
        try:
            torch.empty(1, device=asked)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"--device {asked}: not usable here: {first_line(error, 120)}") from None
        return asked, f"device {asked}: asked for"
    if torch.cuda.is_available():
        return "cuda", "device cuda: a GPU is there"
    return "cpu", "device cpu: no CUDA GPU was found"


def _dtype(asked: str, device: str) -> tuple[str, str]:
    import torch

    if asked != "auto":
        if asked not in ("float32", "bfloat16", "float16"):
            raise ModelError(f"--dtype {asked}: expected auto, float32, bfloat16 or float16")
        if asked == "bfloat16" and device == "cpu" and not has_bfloat16_instructions():
            return asked, (
                "dtype bfloat16: asked for, though the processor has no instructions for it; float32 is about ten "
                "times faster here"
            )
        return asked, f"dtype {asked}: asked for"
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "dtype bfloat16: the GPU computes in it"
        return "float16", "dtype float16: the GPU has no bfloat16"
    if has_bfloat16_instructions():
        return "bfloat16", "dtype bfloat16: the processor has instructions for it"
    return "float32", "dtype float32: the processor has no instructions for bfloat16"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go in. The first weight of a spread model may lie elsewhere, or nowhere until it is used."""
    import torch

    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device


def vocabulary_of(loaded: Loaded) -> Vocabulary:
    """What the search must know of the model's tokens: which end an answer (design, section 8)."""
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
    return Vocabulary(decode, frozenset(stops | blank), frozenset(newline - blank - stops))
