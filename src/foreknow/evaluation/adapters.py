"""A tuned model by name: a whole model, or an adapter (PEFT) and the base model it belongs to.

What `foreknow tune` saves tells in `foreknow.json` which model it was tuned from; others' adapters tell it in
`adapter_config.json`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foreknow.errors import ConfigError, MissingExtra, ModelError
from foreknow.files.places import is_url
from foreknow.files.remote import fetched
from foreknow.files.runs import fingerprint
from foreknow.lm import models
from foreknow.lm.packaged import PACKAGED, check, quiet
from foreknow.progress import say
from foreknow.training.checkpoints import about

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Found(NamedTuple):
    """Where a tuned model lies, before any weight is read.

    `whole`: what `models.load` takes, `folder`: where that lies; the adapter's base, where there is an `adapter`.
    `fingerprint`: of all that answers. `base`: name and fingerprint of the model it was tuned from, if it is known.
    """

    name: str
    whole: str
    folder: Path
    adapter: Path | None
    fingerprint: str
    base: Mapping[str, Any] | None
    note: str | None


def find(name: str, base: str | None = None, *, force: bool = False, trust_remote_code: bool = False) -> Found:
    """Find a tuned model by folder, packaged name or hub id, and an adapter's base.

    `base` names the adapter's base where it is not found by itself. Raises ModelError, ConfigError, MissingExtra.
    """
    name = str(fetched(name)) if is_url(name) else name
    base = str(fetched(base)) if base and is_url(base) else base
    path = Path(name).expanduser()
    if path.is_dir():
        check(path)
    if _is_adapter(path):
        return _adapter(name, path.resolve(), base, force, trust_remote_code)
    if path.is_dir() and not (path / "config.json").is_file() and (path / "early_stop").is_dir():
        raise ModelError(
            f"--model {name}: a run of foreknow tune; name {path / 'early_stop'} or {path / 'convergence'}"
        )
    found = models.resolve(name, say, trust_remote_code)
    if _is_adapter(found.folder):  # from the hub
        return _adapter(name, found.folder, base, force, trust_remote_code)
    if base is not None:
        raise ConfigError(f"--base {base}: {name} is a whole model, not an adapter; leave --base out")
    whole = str(path) if path.is_dir() else name
    told = about(found.folder)
    return Found(
        name=_called(found.name, found.folder, told),
        whole=whole,
        folder=found.folder,
        adapter=None,
        fingerprint=models.fingerprint(found.folder),
        base=told.get("base"),
        note=found.note or _note(told.get("base")),
    )


def _is_adapter(folder: Path) -> bool:
    whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return (folder / "adapter_config.json").is_file() and not whole


def _called(name: str, folder: Path, told: Mapping[str, Any]) -> str:
    """How reports call it: `early_stop` alone would not tell of which run."""
    return f"{folder.parent.name}/{folder.name}" if told.get("stage") == "tune" else name


def _note(base: Mapping[str, Any] | None) -> str | None:
    packaged = PACKAGED.get((base or {}).get("name", ""))
    return f"tuned from {packaged.name}: {packaged.note}" if packaged else None


def _adapter(name: str, folder: Path, asked: str | None, force: bool, trust_remote_code: bool) -> Found:
    if not any(folder.glob("adapter_model*.safetensors")):
        raise ModelError(f"--model {name}: an adapter without weights (adapter_model.safetensors)")
    told = about(folder)
    known = told.get("base") or {}
    config = _checked(name, folder)
    base = asked or _base_here(known, str(config.get("base_model_name_or_path") or ""))
    called = known.get("name") or config.get("base_model_name_or_path") or "a model it does not name"
    if base is None:
        raise ModelError(f"--model {name}: an adapter of {called}, which is not here; name its base with --base MODEL")
    found = models.resolve(base, say, trust_remote_code)
    of_base = models.fingerprint(found.folder)
    if not force and known.get("fingerprint") not in (None, of_base):
        raise ModelError(
            f"--model {name}: an adapter of {called} ({known['fingerprint'][:19]}...), but {base} is another model "
            f"({of_base[:19]}...); name the right one with --base MODEL, or go on with --force"
        )
    return Found(
        name=_called(folder.name if Path(name).expanduser().is_dir() else name, folder, told),
        whole=base,
        folder=found.folder,
        adapter=folder,
        fingerprint=fingerprint([models.fingerprint(folder), of_base]),
        base={"name": found.name, "fingerprint": of_base, "folder": str(found.folder)},
        note=found.note,
    )


def _base_here(known: Mapping[str, Any], configured: str) -> str | None:
    """The base that an adapter names: a packaged model, a folder that is here, or a hub id."""
    if known.get("name") in PACKAGED:
        return str(known["name"])
    for folder in (known.get("folder"), configured):
        if folder and (Path(folder).expanduser() / "config.json").is_file():
            return str(folder)
    is_hub_id = configured.count("/") == 1 and configured[0] not in "./~"
    return configured if is_hub_id or configured in PACKAGED else None


def _checked(name: str, folder: Path) -> dict[str, Any]:
    """The adapter's settings; refused where its base answers with more than its layers changed."""
    try:
        from peft import PeftConfig
    except ImportError:
        raise MissingExtra(f"--model {name}: an adapter needs PEFT: pip install 'foreknow[train]'") from None
    try:
        with _hushed():
            read = PeftConfig.from_pretrained(str(folder))
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except Exception as error:
        # whatever its file may raise, the user is told in one line
        raise ModelError(f"--model {name}: adapter_config.json cannot be read: {models.in_a_line(error)}") from None
    if read.is_prompt_learning:
        raise ModelError(f"--model {name}: a {config.get('peft_type')} adapter; expected one of layers, such as LORA")
    return config


@contextmanager
def _hushed() -> Iterator[list[warnings.WarningMessage]]:
    """What PEFT warns of goes to a list; it reads some names by their old form."""
    with quiet(), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield heard


def tokenizer_of(found: Found, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tuned model's tokenizer: an adapter's own where it has one. Raises ModelError."""
    own = found.adapter if found.adapter and (found.adapter / "tokenizer_config.json").is_file() else found.folder
    try:
        with quiet():
            return models.read_tokenizer(own, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"--model {found.name}: its tokenizer cannot be loaded: {models.in_a_line(error)}") from None


def positions_of(found: Found, trust_remote_code: bool = False) -> int | None:
    """How many tokens the model can take in, None where its config does not say. Raises ModelError."""
    from transformers import AutoConfig

    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(str(found.folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"--model {found.name}: its config.json cannot be read: {models.in_a_line(error)}") from None
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


def load(found: Found, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> models.Loaded:
    """Load a tuned model for inference; adapters stay beside the base's weights, as they were trained.

    Raises ModelError where it cannot be had.
    """
    loaded = models.load(found.whole, dtype=dtype, device=device, trust_remote_code=trust_remote_code, say=say)
    model: Any = loaded.model
    if found.adapter is not None:
        if any(weights.device.type == "meta" for weights in model.parameters()):
            raise ModelError(
                f"--model {found.name}: an adapter cannot be put on a base that does not lie on the GPUs as a whole "
                f"({loaded.reasons[0]}); use GPUs with more memory, or --device cpu"
            )
        from peft import PeftModel

        try:
            with _hushed() as heard:
                model = PeftModel.from_pretrained(model, str(found.adapter)).get_base_model().eval()
        except Exception as error:
            told = models.in_a_line(error)
            raise ModelError(f"--model {found.name}: cannot be put on {found.whole}: {told}") from None
        missing = [text for one in heard if "missing adapter keys" in (text := str(one.message))]
        if missing:
            raise ModelError(f"--model {found.name}: does not fit {found.whole}: {missing[0].splitlines()[0][:160]}")
    return replace(
        loaded,
        name=found.name,
        model=model,
        tokenizer=tokenizer_of(found, trust_remote_code),
        fingerprint=found.fingerprint,
        note=found.note,
    )
