"""Finds a model's files by name, folder, .gguf file or hub id, before any weight is read.

An adapter's folder counts as a model: its base with the adapter on top. Anything that is no model, or lacks some of
its files, is refused here, before a run folder is locked for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from foreknow.data.builtin.lab_world import NAME as LAB
from foreknow.errors import ConfigError, ModelError
from foreknow.io.remote import download
from foreknow.io.remote_paths import is_url
from foreknow.io.run_dir import fingerprint as hash_of
from foreknow.models import lab_recipe
from foreknow.models.adapters import about, base_of, read_adapter
from foreknow.models.architectures import check_architecture
from foreknow.models.checksums import sha256_of, verify_checksums
from foreknow.models.fingerprints import fingerprint
from foreknow.models.gguf_conversion import convert
from foreknow.models.gguf_files import check_gguf, read_gguf
from foreknow.models.hub import check_spelling, closest_name, hub_folder
from foreknow.models.in_memory import ModelInMemory
from foreknow.models.model_folders import check_folder, is_adapter, read_config
from foreknow.models.packaged import PACKAGED, packaged_folder
from foreknow.models.quantization import Quantization, check_quantization, quantization_of
from foreknow.models.weight_files import WeightFiles, read_weight_files

_ONE_FILE: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".json")


@dataclass(frozen=True)
class Resolved:
    """The files of a model.

    `folder`: a local transformers folder; the base's if there is an `adapter`. `note`: what a report must mention.
    `base`: name, fingerprint and folder of the whole model that it was tuned from, if known; `origin`: those of the
    adapter that training started from, if it did. `memory`: the model itself, if it lies in memory.
    """

    name: str
    folder: Path
    note: str | None
    weights: WeightFiles
    adapter: Path | None = None
    base: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] | None = None
    quantization: Quantization | None = None
    memory: ModelInMemory | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the files that decide answers, adapter included: of content, never of a name."""
        if self.memory is not None:
            return self.memory.fingerprint
        if self.adapter is None:
            return fingerprint(self.folder)
        return hash_of([fingerprint(self.adapter), fingerprint(self.folder)])

    @property
    def path(self) -> Path:
        """Return the folder that the user named: the adapter's if there is one."""
        return self.adapter or self.folder

    @property
    def summary(self) -> dict[str, Any]:
        """Return name, fingerprint, folder and note, for a run's summary; for an adapter also its base."""
        folder = None if self.memory is not None else str(self.path)
        summary = {"name": self.name, "fingerprint": self.fingerprint, "folder": folder, "note": self.note}
        return {**summary, "base": dict(self.base or {})} if self.adapter else summary


def resolve(
    name: str,
    log: Callable[[str], None] = lambda _: None,
    trust_remote_code: bool = False,
    *,
    base: str | None = None,
    force: bool | None = None,
    check: bool = True,
) -> Resolved:
    """Find a model by packaged name, folder (a model's or an adapter's), `.gguf` file or hub id; download and convert
    it where needed, also from object stores.

    `base` names an adapter's base if it cannot be found otherwise; `force` accepts another base than the adapter was
    trained on (None: the verb has no such setting). `check=False` leaves out whether transformers has the model's
    architecture, which only a model that is loaded needs, and which takes seconds to import. Raises ModelError for a
    model that is unknown, incomplete or altered, ConfigError for a base given to a whole model, MissingExtra for a
    missing package.
    """
    if isinstance(name, ModelInMemory):
        return _resolve_memory(name, base, trust_remote_code)
    label, path, note = _find_model(name, log, trust_remote_code)
    verify_checksums(path)
    if is_adapter(path):
        return _resolve_adapter(label, path, base, force, log, trust_remote_code, check)
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"--model {name}: the folder holds a whole model and an adapter (adapter_config.json), which would be put "
            "on top of it; name a folder that holds one of them"
        )
    if base is not None:
        raise ConfigError(f"--base {base}: {name} is a whole model, not an adapter; leave --base out")
    weights, quantization = _check_model(f"--model {name}", path, trust_remote_code, check)
    manifest = about(path)
    origin = manifest.get("base")
    return Resolved(
        name=_report_name(label, path, manifest),
        folder=path,
        note=note or _note_of(origin),
        weights=weights,
        base=origin,
        origin=manifest.get("from"),
        quantization=quantization,
    )


def _resolve_memory(memory: ModelInMemory, base: str | None, trust_remote_code: bool) -> Resolved:
    """Resolve a model in memory. A copy of it is checked as any folder."""
    if base is not None:
        raise ConfigError(f"--base {base}: {memory} is no adapter's folder; leave --base out")
    if memory.copied:
        weights, quantization = _check_model(f"model {memory}", memory.folder, trust_remote_code, True)
        note = "a copy of a model in memory"
        return Resolved(str(memory), memory.folder, note, weights, quantization=quantization, memory=memory)
    adapter = "" if memory.trained is None else f", with the PEFT adapter {', '.join(memory.trained.active_adapters)}"
    note = f"a model in memory{adapter}"
    return Resolved(str(memory), memory.folder, note, WeightFiles((), {}), memory=memory)


def check_name(name: str) -> None:
    """Raise ModelError for a misspelt name of a packaged model, before anything is read; other names pass."""
    if isinstance(name, ModelInMemory):
        return
    if name not in (*PACKAGED, LAB) and "/" not in name and not Path(name).expanduser().exists():
        check_spelling(name, [*PACKAGED, LAB])


@cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)


def _find_model(
    name: str, log: Callable[[str], None], trust_remote_code: bool, revision: str | None = None
) -> tuple[str, Path, str | None]:
    """Return a model's name, its folder, and a note for reports."""
    if is_url(name):
        name = str(download(name))
    if name in PACKAGED:
        packaged = PACKAGED[name]
        if packaged.terms:
            _print_once(packaged.terms)
        return name, packaged_folder(packaged, log), packaged.note
    if name == LAB and not Path(name).exists():
        return name, _lab_folder(log), lab_recipe.NOTE
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"--model {name}: no such file")
        return path.name, _convert_gguf(path, log), "dequantised from a GGUF file"
    if path.is_dir():
        folder = path.resolve()
        has_name = bool(path.name.strip("."))  # "." and ".." are no names
        return path.name if has_name else folder.name, folder, None
    if path.is_file():
        beside = path.parent / ("adapter_config.json" if path.name.startswith("adapter") else "config.json")
        hint = f"; name the folder: {path.parent}" if beside.is_file() else ""
        kind = "one file of weights" if path.suffix in _ONE_FILE[:-1] else "a file"
        raise ModelError(
            f"--model {name}: {kind}, and no model folder: expected one with config.json and a tokenizer{hint}"
        )
    known = [*PACKAGED, LAB]
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(_ONE_FILE)
    if looks_local or not name or any(c.isspace() for c in name):
        suggestion = closest_name(name, known) if name else None
        raise ModelError(
            f"--model {name}: no such folder or file{f'; did you mean {suggestion}?' if suggestion else ''}"
        )
    check_name(name)
    return name, hub_folder(name, trust_remote_code, revision, known), None


def _lab_folder(log: Callable[[str], None]) -> Path:
    """Return the folder of the lab's model in the user's cache; build it first if it is not there."""
    folder = lab_recipe.built_folder()
    if lab_recipe.is_built(folder):
        return folder
    from foreknow.models.lab_model import build  # keeps torch out

    return build(log=log)


def _convert_gguf(path: Path, log: Callable[[str], None]) -> Path:
    """Convert a GGUF file and return its safetensors folder."""
    gguf = read_gguf(path)
    check_gguf(path, gguf)
    return convert(path, sha256_of(path), path.name, log)


def _check_model(
    called: str, folder: Path, trust_remote_code: bool, architecture: bool
) -> tuple[WeightFiles, Quantization | None]:
    """Check a model without loading it; return its weight files and quantization. Raises ModelError, MissingExtra."""
    check_folder(called, folder)
    if architecture:
        check_architecture(called, read_config(folder), trust_remote_code)
    quantization = quantization_of(folder)
    if quantization is not None:
        check_quantization(called, quantization)
    return read_weight_files(folder), quantization


def _report_name(name: str, folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return a model's name in reports; a tuned model's has its run's name, as `early_stop` alone is ambiguous."""
    return f"{folder.parent.name}/{folder.name}" if manifest.get("stage") == "tune" else name


def _note_of(base: Mapping[str, Any] | None) -> str | None:
    packaged = PACKAGED.get((base or {}).get("name", ""))
    return f"tuned from {packaged.name}: {packaged.note}" if packaged else None


def _resolve_adapter(
    name: str,
    folder: Path,
    base_name: str | None,
    force: bool | None,
    log: Callable[[str], None],
    trust_remote_code: bool,
    check: bool,
) -> Resolved:
    """Resolve an adapter and its base."""
    adapter = read_adapter(f"--model {name}", folder)
    manifest = about(folder)
    known_base = manifest.get("base") or {}
    place = base_name or base_of(folder, adapter)
    called = known_base.get("name") or adapter.base or "a model it does not name"
    if place is None:
        raise ModelError(f"--model {name}: an adapter of {called}, which is not here; name its base with --base MODEL")
    try:
        # the base's own commit, where an adapter names it
        label, path, note = _find_model(place, log, trust_remote_code, None if base_name else adapter.revision)
        verify_checksums(path)
        if is_adapter(path):
            raise ModelError(
                f"--model {place}: an adapter itself, not a whole model; merge it (merge_and_unload) first"
            )
        weights, quantization = _check_model(f"--model {place}", path, trust_remote_code, check)
    except ModelError as error:
        first, *rest = str(error).removeprefix(f"--model {place}: ").splitlines()
        raise ModelError("\n".join([f"--model {name}: an adapter of {place}: {first}", *rest])) from None
    base_fingerprint = fingerprint(path)
    if not force and known_base.get("fingerprint") not in (None, base_fingerprint):
        forced = "" if force is None else ", or go on with --force"
        raise ModelError(
            f"--model {name}: an adapter of {called} ({known_base['fingerprint'][:19]}...), but {place} is another "
            f"model ({base_fingerprint[:19]}...); name the right one with --base MODEL{forced}"
        )
    label = _report_name(label, path, about(path))
    return Resolved(
        name=_report_name(name, folder, manifest),
        folder=path,
        note="; ".join(filter(None, (f"{adapter.kind} adapter on {label} ({base_fingerprint[:19]})", note))),
        weights=weights,
        adapter=folder,
        base={"name": label, "fingerprint": base_fingerprint, "folder": str(path)},
        origin=manifest.get("from"),
        quantization=quantization,
    )
