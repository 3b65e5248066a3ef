"""A model that lies in memory already: what it is called, its fingerprint, and how it is asked without changing it.

`ModelInMemory` stands where settings name a model. `resolve` and `loading` hand it on; nothing is read from disk.
`borrowed` leaves a model as it was, so that a model in training can be asked between two steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foreknow.errors import ConfigError, ModelError, first_line
from foreknow.io.in_memory import InMemory, describe
from foreknow.models.fingerprints import fingerprint as folder_fingerprint
from foreknow.models.quiet import quiet
from foreknow.models.weight_files import read_weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

DTYPES: Final = ("float32", "bfloat16", "float16")
_NOT_CONTENT: Final = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
"""Keys of a config that do not change a model's answers."""


class ModelInMemory(InMemory):
    """The name of a model in memory, with the model. `trained`: PEFT's model around `model`, if it has an adapter.

    `folder`: holds its config; with `copied` also a copy of its weights and its tokenizer, which are loaded instead.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trained: Any
    fingerprint: str
    folder: Path
    copied: bool

    @property
    def place(self) -> tuple[str, str]:
        """Return the device and the dtype of the model."""
        weight = self.model.get_input_embeddings().weight
        return str(weight.device), str(weight.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        """Return the number of the model's parameters."""
        return sum(int(weights.numel()) for weights in self.model.parameters())


def model_in_memory(given: Any, tokenizer: Any, folder: Path, *, copy: bool = False) -> ModelInMemory:
    """Take a loaded model and its tokenizer. `folder`: a new folder; `copy`: save a copy of the model in it.

    The model may be a `PreTrainedModel`, a PEFT model, or either inside `torch.compile` or `DistributedDataParallel`.
    Raises ConfigError for what is no such model or without its tokenizer, ModelError for one that cannot be asked.
    """
    outer = _unwrapped(given)
    trained = outer if hasattr(outer, "get_base_model") and hasattr(outer, "peft_config") else None
    model = outer if trained is None else outer.get_base_model()
    called = _name_of(model)
    _check(called, model, trained, tokenizer)
    if copy and trained is not None:
        raise ConfigError(
            f"model: a PEFT model in memory ({called}), expected a whole model to train a copy of; save it "
            "(model.save_pretrained(FOLDER)) and name the folder: its training goes on with method='lora'"
        )
    folder.mkdir(parents=True)
    try:
        with quiet():
            if copy:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            else:
                model.config.save_pretrained(folder)
    except Exception as error:  # a model's own code can raise anything
        raise ModelError(f"model: {called}: cannot be saved as a copy to train: {first_line(error)}") from None
    memory = ModelInMemory(f"{called} (in memory)", f"{called} (in memory)")
    memory.model, memory.tokenizer, memory.trained = model, tokenizer, trained
    memory.folder, memory.copied = folder, copy
    stored = None if trained is not None else unchanged_folder(model, tokenizer)
    memory.fingerprint = stored or fingerprint(model, tokenizer, trained)
    return memory


def unchanged_folder(model: Any, tokenizer: Any) -> str | None:
    """Return the fingerprint of the folder that a model was loaded from, if the model is still what lies there.

    So an audit by name and one of the same model in memory are of one model. Every tensor is compared with its file's,
    in the model's dtype; config, end tokens and tokenizer too. None if anything differs, or cannot be compared.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder = _source_folder(str(getattr(model.config, "_name_or_path", "") or ""), model)
    if folder is None:
        return None
    try:
        stored = read_weight_files(folder)
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        pointers = {state[name].data_ptr() for name in stored.tensors if name in state}
        if not stored.tensors or not stored.tensors.keys() <= state.keys():
            return None
        if any(values.data_ptr() not in pointers for name, values in state.items() if name not in stored.tensors):
            return None  # a tensor that is not in the files, nor tied to one that is
        for file in stored.files:
            with safe_open(str(file), framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    values = state[name]
                    if not torch.equal(tensors.get_tensor(name).to(values.dtype), values.cpu()):
                        return None
        with quiet():
            config = AutoConfig.from_pretrained(str(folder))
            theirs = AutoTokenizer.from_pretrained(str(folder))
            has_ends = (folder / "generation_config.json").is_file()
            ends = GenerationConfig.from_pretrained(str(folder)).eos_token_id if has_ends else None
        own_ends = getattr(model.generation_config, "eos_token_id", None)
        same = (
            _config_content(config) == _config_content(model.config)
            and (not has_ends or ends == own_ends)
            and _tokenizer_content(theirs) == _tokenizer_content(tokenizer)
        )
    except Exception:  # files, and code of other libraries, can raise anything: then the weights themselves are hashed
        return None
    return folder_fingerprint(folder) if same else None


def _source_folder(name: str, model: Any) -> Path | None:
    """Return the folder that a model was loaded from: a local one, or the hub's snapshot in the cache."""
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=getattr(model.config, "_commit_hash", None), local_files_only=True)
        )
    except Exception:  # no hub id, or not in the cache
        return None


def _unwrapped(model: Any) -> Any:
    """Return the model inside `torch.compile` and `DistributedDataParallel`."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _name_of(model: Any) -> str:
    """Return what a model is called: the last part of the name or path that it was loaded from, else its class."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return Path(str(name)).name or type(model).__name__


def _check(called: str, model: Any, trained: Any, tokenizer: Any) -> None:
    """Raise ConfigError or ModelError for what cannot be asked."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"model: found {describe(model)}, expected a name, a path, or a loaded PreTrainedModel or PEFT model"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        found = "none" if tokenizer is None else describe(tokenizer)
        raise ConfigError(f"tokenizer: found {found}, expected the tokenizer of {called}: tokenizer=AutoTokenizer...")
    if trained is not None and getattr(trained.active_peft_config, "is_prompt_learning", False):
        kind = getattr(trained.active_peft_config.peft_type, "value", "prompt")
        raise ModelError(f"model: {called}: a {kind} adapter adds a prompt, expected one of layers, such as LORA")
    places = {weights.device.type for weights in model.parameters()}
    if "meta" in places:
        raise ModelError(f"model: {called}: some of its weights are on no device (offloaded, or meta); name its folder")
    if any(type(weights).__name__ == "DTensor" for weights in model.parameters()):
        raise ModelError(
            f"model: {called}: its weights are sharded over processes; name its folder, or gather them first"
        )
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"model: {called}: its weights are {dtype}, expected {', '.join(DTYPES)}")


def fingerprint(model: Any, tokenizer: Any, trained: Any = None) -> str:
    """Return a hash of everything that decides a model's answers: weights, config, tokenizer, active adapters."""
    import torch

    digest = hashlib.sha256()
    pointers: set[tuple[int, torch.Size]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor!r}\0".encode())
            continue
        values = tensor.detach()
        if (key := (values.data_ptr(), values.shape)) in pointers and values.numel():
            continue  # tied to one that is hashed
        pointers.add(key)
        digest.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        digest.update(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    config = _config_content(model.config)
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    adapters = None if trained is None else [str(trained.active_adapters), _is_disabled(trained)]
    for part in (config, ends, adapters, _tokenizer_content(tokenizer)):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return f"memory:{digest.hexdigest()}"


def _config_content(config: Any) -> dict[str, Any]:
    """Return what of a config decides answers."""
    return {key: value for key, value in config.to_dict().items() if key not in _NOT_CONTENT}


def _is_disabled(trained: Any) -> bool:
    """Whether a PEFT model's adapters are switched off now."""
    return any(getattr(module, "disable_adapters", None) is True for module in trained.modules())


def _tokenizer_content(tokenizer: Any) -> Any:
    """Return all that a tokenizer does, without the truncation and padding that its last call left behind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return [content, tokenizer.chat_template, {key: str(value) for key, value in tokenizer.special_tokens_map.items()}]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and leave it, and torch's random state, as they were: every module's mode and buffers.

    Weights, gradients and `requires_grad` are not touched by asking. Autocast is off meanwhile, so that the model
    computes in its own dtype. Hooks stay, and see the passes.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    devices = {weights.device for weights in model.parameters()}
    with ExitStack() as stack:
        gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        for kind in {device.type for device in devices} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, own in buffers:
                # a pass in inference mode may have put a buffer of its own there, which could not be trained with
                module._buffers.update(own)
