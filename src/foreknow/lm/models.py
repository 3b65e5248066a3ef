"""A model name, folder, .gguf or hub id -> weights, tokenizer, fingerprint, and which tokens end an answer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ModelError
from foreknow.files.places import is_url
from foreknow.files.remote import fetched
from foreknow.files.runs import read_json
from foreknow.lab.world import NAME as LAB
from foreknow.lm.packaged import PACKAGED, cached_sha256, check, convert, packaged_folder, quiet, sha256_of
from foreknow.lm.private_api import forget_words, has_bfloat16_instructions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from foreknow.protocol.search import Vocabulary


MAP: Final = "map"
"""The device setting that spreads a model over all devices."""


@dataclass(frozen=True)
class Resolved:
    """Where a model lies, before any weight is read.

    `folder`: a local transformers folder. `note`: what a reader of a report must know.
    """

    name: str
    folder: Path
    note: str | None


@dataclass(frozen=True)
class Loaded:
    """A model ready to compute: weights in `dtype` on `device`, its tokenizer, a hash of both.

    `device`: where it computes; for a model spread over several, their kind.
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


def resolve(name: str, say: Callable[[str], None] = lambda _: None, trust_remote_code: bool = False) -> Resolved:
    """Find a model by packaged name, folder, `.gguf` file or hub id; fetch and convert where needed.

    A store's folder or file is fetched. Raises ModelError for a model that is unknown, incomplete or altered.
    """
    found = _located(name, say, trust_remote_code)
    check(found.folder)  # before a run folder is claimed for what an altered model would be
    return found


@cache
def _tell_once(text: str) -> None:
    print(text, file=sys.stderr)


def _located(name: str, say: Callable[[str], None], trust_remote_code: bool) -> Resolved:
    if is_url(name):
        name = str(fetched(name))
    if name in PACKAGED:
        packaged = PACKAGED[name]
        if packaged.terms:
            _tell_once(packaged.terms)
        return Resolved(name, packaged_folder(packaged, say), packaged.note)
    if name == LAB and not Path(name).exists():
        from foreknow.lab import building as lab

        return Resolved(name, lab.build(say=say), lab.NOTE)
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"--model {name}: no such file")
        note = "dequantised from a GGUF file"
        return Resolved(path.name, convert(path, sha256_of(path), path.name, say), note)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"--model {name}: the folder has no config.json; expected a model saved by save_pretrained"
            )
        if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
            raise ModelError(f"--model {name}: the folder has no weights (*.safetensors)")
        return Resolved(path.name, path.resolve(), None)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or not name or any(c.isspace() for c in name):
        raise ModelError(f"--model {name}: no such folder or file")
    return Resolved(name, _hub_folder(name, trust_remote_code), None)


def _hub_folder(hub_id: str, trust_remote_code: bool) -> Path:
    """A hub model's files in the hub's own cache: safetensors, or where there are none the older weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity(40)  # errors only: its retries would be told one by one
    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.txt"]
    wanted += ["*.py"] if trust_remote_code else []
    try:
        try:
            found = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
            if trust_remote_code and _lacks_code(found):
                raise FileNotFoundError(found)
            return found
        except (FileNotFoundError, HfHubHTTPError):
            names = HfApi().list_repo_files(hub_id)
            if not any(n.endswith(".safetensors") for n in names):
                wanted.append("*.bin")
            return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:
        # the hub's client raises many kinds of error for "no such model", "no access" and "no network"
        known = ", ".join(PACKAGED)
        raise ModelError(
            f"--model {hub_id}: not a folder here, and the hub did not give it: {in_a_line(error)}\n"
            f"Packaged models, which need no hub: {known}"
        ) from None


def _lacks_code(folder: Path) -> bool:
    """Whether a model's own code is not there, as it was fetched before it was trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        told = (read_json(folder / name) or {}).get("auto_map")
        if told and "--" not in json.dumps(told):  # else it lies in another repository
            return not any(folder.glob("*.py"))
    return False


def in_a_line(error: Exception) -> str:
    """What a loader's error says, in a line; of a model that brings code of its own, what to do."""
    text = str(error).strip()
    if "`trust_remote_code=True`" in text:
        return (
            "it contains custom code, which does not run unasked; read that code, and give --trust-remote-code if you "
            "trust it"
        )
    return text.splitlines()[0][:160] if text else type(error).__name__


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Loaded:
    """Load a model for inference. Raises ModelError where it cannot be had.

    `device`: auto, a device's name, or map: the layers spread over all GPUs and, where those are full, main memory,
    as accelerate's `device_map="auto"` lays them out.
    """
    # kernels the CPU library keeps, one for each shape it has seen: 1,024 of them are half a gigabyte
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    import torch
    from transformers import AutoModelForCausalLM

    found = resolve(name, say, trust_remote_code)
    on, device_reason = _device(device)
    kind, dtype_reason = _dtype(dtype, on)
    try:
        with quiet():
            tokenizer = read_tokenizer(found.folder, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(found.folder),
                dtype=getattr(torch, kind),
                trust_remote_code=trust_remote_code,
                device_map="auto" if device == MAP else None,
            )
            if device != MAP:
                model.to(on)
    except Exception as error:
        # whatever a model's files may raise, the user is told in one line
        raise ModelError(f"--model {name}: cannot be loaded: {in_a_line(error)}") from None
    if device == MAP:
        device_reason = spread_reason(getattr(model, "hf_device_map", {"": on}))
    return Loaded(
        name=found.name,
        model=model.eval(),
        tokenizer=tokenizer,
        fingerprint=fingerprint(found.folder),
        folder=str(found.folder),
        note=found.note,
        dtype=kind,
        device=on,
        reasons=(device_reason, dtype_reason),
    )


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


def computing_on(device: str, dtype: str) -> tuple[str, str]:
    """The device and dtype that `load` would choose."""
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
            raise ModelError(f"--device {asked}: not usable here: {str(error).splitlines()[0][:120]}") from None
        return asked, f"device {asked}: asked for"
    if torch.cuda.is_available():
        return "cuda", "device cuda: a GPU is there"
    return "cpu", "device cpu: no CUDA GPU was found"


def _dtype(asked: str, device: str) -> tuple[str, str]:
    import torch

    if asked != "auto":
        if asked not in ("float32", "bfloat16", "float16"):
            raise ModelError(f"--dtype {asked}: expected auto, float32, bfloat16 or float16")
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


def fingerprint(folder: Path) -> str:
    """A hash of a model folder's weights, configuration and tokenizer: of content, never of a name.

    Kept beside large weight files by size and time of change, so that a folder is read once.
    """
    kinds = (".safetensors", ".json", ".model", ".bin", ".jinja", ".txt")
    ignored = {"foreknow.json", "lab.json", "trainer_state.json", "README.md"}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in kinds and path.name not in ignored:
            digest.update(f"{path.name}\0{cached_sha256(path)}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def vocabulary_of(loaded: Loaded) -> Vocabulary:
    """What the search must know of the model's tokens: which end an answer (design, section 8)."""
    from foreknow.protocol.search import Vocabulary

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


def library_versions() -> dict[str, str]:
    """Versions of what computes, for the manifest."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "polars")}
