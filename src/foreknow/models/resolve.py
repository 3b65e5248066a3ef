"""A model's name, folder, .gguf file or hub id -> where it lies, before any weight is read.

An adapter's folder is a model too: its base, and the adapter on top. What is no model, or lacks some of its files, is
refused here, before a run folder is claimed for it.
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
from foreknow.models.adapters import about, base_of, read_adapter
from foreknow.models.architectures import check_architecture
from foreknow.models.fingerprints import fingerprint
from foreknow.models.gguf_files import check_gguf, read_gguf
from foreknow.models.hub import closest, hub_folder
from foreknow.models.model_folders import check_folder, is_adapter, read_config
from foreknow.models.packaged import PACKAGED, check, convert, packaged_folder, sha256_of
from foreknow.models.quantization import Quantization, check_quantization, quantization_of
from foreknow.models.weight_files import WeightFiles, read_weight_files

_ONE_FILE: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".json")


@dataclass(frozen=True)
class Resolved:
    """Where a model lies.

    `folder`: a local transformers folder; an adapter's base where there is an `adapter`. `note`: what a reader of a
    report must know. `base`: name, fingerprint and folder of the whole model that it was tuned from, if that is known;
    `origin`: of what training began from, where that was an adapter of it.
    """

    name: str
    folder: Path
    note: str | None
    weights: WeightFiles
    adapter: Path | None = None
    base: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] | None = None
    quantization: Quantization | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that answers: of content, never of a name."""
        if self.adapter is None:
            return fingerprint(self.folder)
        return hash_of([fingerprint(self.adapter), fingerprint(self.folder)])

    @property
    def path(self) -> Path:
        """The folder that was named: the adapter's where there is one."""
        return self.adapter or self.folder

    @property
    def told(self) -> dict[str, Any]:
        """Name, fingerprint, folder and note, for a summary; of an adapter its base too."""
        found = {"name": self.name, "fingerprint": self.fingerprint, "folder": str(self.path), "note": self.note}
        return {**found, "base": dict(self.base or {})} if self.adapter else found


def resolve(
    name: str,
    say: Callable[[str], None] = lambda _: None,
    trust_remote_code: bool = False,
    *,
    base: str | None = None,
    force: bool | None = None,
) -> Resolved:
    """Find a model by packaged name, folder (a model's or an adapter's), `.gguf` file or hub id; fetch and convert
    where needed. A store's folder or file is fetched.

    `base` names an adapter's base where it is not found by itself; `force` takes another than it was trained on (None:
    the verb has no such setting). Raises ModelError for a model that is unknown, incomplete or altered, ConfigError for
    a base that is not wanted, MissingExtra for a package that it takes.
    """
    label, path, note = _located(name, say, trust_remote_code)
    check(path)
    if is_adapter(path):
        return _with_base(label, path, base, force, say, trust_remote_code)
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"--model {name}: the folder holds a whole model and an adapter (adapter_config.json), which would be put "
            "on top of it; name a folder that holds one of them"
        )
    if base is not None:
        raise ConfigError(f"--base {base}: {name} is a whole model, not an adapter; leave --base out")
    weights, quantization = _checked(f"--model {name}", path, trust_remote_code)
    told = about(path)
    origin = told.get("base")
    return Resolved(
        name=_called(label, path, told),
        folder=path,
        note=note or _note_of(origin),
        weights=weights,
        base=origin,
        origin=told.get("from"),
        quantization=quantization,
    )


@cache
def _tell_once(text: str) -> None:
    print(text, file=sys.stderr)


def _located(
    name: str, say: Callable[[str], None], trust_remote_code: bool, revision: str | None = None
) -> tuple[str, Path, str | None]:
    """What a model is called, its folder, and what a reader must know of it."""
    if is_url(name):
        name = str(download(name))
    if name in PACKAGED:
        packaged = PACKAGED[name]
        if packaged.terms:
            _tell_once(packaged.terms)
        return name, packaged_folder(packaged, say), packaged.note
    if name == LAB and not Path(name).exists():
        from foreknow.models import lab_model as lab  # keeps torch out

        return name, lab.build(say=say), lab.NOTE
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"--model {name}: no such file")
        return path.name, _converted(path, say), "dequantised from a GGUF file"
    if path.is_dir():
        whole = path.resolve()
        named = bool(path.name.strip("."))  # "." and ".." are no names
        return path.name if named else whole.name, whole, None
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
        meant = closest(name, known) if name else None
        raise ModelError(f"--model {name}: no such folder or file{f'; did you mean {meant}?' if meant else ''}")
    return name, hub_folder(name, trust_remote_code, revision, known), None


def _converted(path: Path, say: Callable[[str], None]) -> Path:
    """A GGUF file's folder of safetensors."""
    gguf = read_gguf(path)
    check_gguf(path, gguf)
    return convert(path, sha256_of(path), path.name, say)


def _checked(called: str, folder: Path, trust_remote_code: bool) -> tuple[WeightFiles, Quantization | None]:
    """All that can be told of a model without loading it. Raises ModelError, MissingExtra."""
    check_folder(called, folder)
    check_architecture(called, read_config(folder), trust_remote_code)
    quantization = quantization_of(folder)
    if quantization is not None:
        check_quantization(called, quantization)
    return read_weight_files(folder), quantization


def _called(name: str, folder: Path, told: Mapping[str, Any]) -> str:
    """How reports call it: `early_stop` alone would not tell of which run."""
    return f"{folder.parent.name}/{folder.name}" if told.get("stage") == "tune" else name


def _note_of(base: Mapping[str, Any] | None) -> str | None:
    packaged = PACKAGED.get((base or {}).get("name", ""))
    return f"tuned from {packaged.name}: {packaged.note}" if packaged else None


def _with_base(
    name: str, folder: Path, asked: str | None, force: bool | None, say: Callable[[str], None], trust_remote_code: bool
) -> Resolved:
    """An adapter and its base."""
    adapter = read_adapter(f"--model {name}", folder)
    told = about(folder)
    known = told.get("base") or {}
    place = asked or base_of(folder, adapter)
    called = known.get("name") or adapter.base or "a model it does not name"
    if place is None:
        raise ModelError(f"--model {name}: an adapter of {called}, which is not here; name its base with --base MODEL")
    try:
        # the base's own commit, where an adapter names it
        label, path, note = _located(place, say, trust_remote_code, None if asked else adapter.revision)
        check(path)
        if is_adapter(path):
            raise ModelError(
                f"--model {place}: an adapter itself, not a whole model; merge it (merge_and_unload) first"
            )
        weights, quantization = _checked(f"--model {place}", path, trust_remote_code)
    except ModelError as error:
        first, *rest = str(error).removeprefix(f"--model {place}: ").splitlines()
        raise ModelError("\n".join([f"--model {name}: an adapter of {place}: {first}", *rest])) from None
    of_base = fingerprint(path)
    if not force and known.get("fingerprint") not in (None, of_base):
        forced = "" if force is None else ", or go on with --force"
        raise ModelError(
            f"--model {name}: an adapter of {called} ({known['fingerprint'][:19]}...), but {place} is another model "
            f"({of_base[:19]}...); name the right one with --base MODEL{forced}"
        )
    label = _called(label, path, about(path))
    return Resolved(
        name=_called(name, folder, told),
        folder=path,
        note="; ".join(filter(None, (f"{adapter.kind} adapter on {label} ({of_base[:19]})", note))),
        weights=weights,
        adapter=folder,
        base={"name": label, "fingerprint": of_base, "folder": str(path)},
        origin=told.get("from"),
        quantization=quantization,
    )
