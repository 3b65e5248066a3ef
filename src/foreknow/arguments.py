"""Turns the arguments of a Python call into the settings of its verb.

Rows in memory become a file in a temporary folder, a loaded model a name that carries it, a result the folder that it
reads. A result without `out` lies in a temporary folder that is removed once nothing refers to the result.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from foreknow.errors import ConfigError
from foreknow.io.in_memory import InMemory, describe, is_path, write_rows
from foreknow.io.remote import download
from foreknow.io.remote_paths import place
from foreknow.settings import Settings, settings_of
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.study.result import StudyResult, open_study

Result = TypeVar("Result")
Config = TypeVar("Config", bound=Settings)


class TemporaryFolder:
    """A new folder that is removed once nothing refers to this object, and at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="foreknow-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class OutFolder:
    """Where a call writes: `path`, a file or a folder. `keep`: the temporary folder around it, if none was named."""

    path: Path
    keep: TemporaryFolder | None

    def holding(self, result: Result) -> Result:
        """Return the result, with the temporary folder that lives as long as it does."""
        return result if self.keep is None else replace(result, keep=self.keep)  # type: ignore[type-var]


class CallArguments:
    """The arguments of one call of `function`, which take the form of settings step by step.

    `values`: the arguments by name. Those that equal the function's defaults are no settings that a user gave. `stack`:
    removes what was written for the call alone.
    """

    def __init__(self, function: Callable[..., Any], values: Mapping[str, Any], stack: ExitStack):
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        self.verb = function.__name__
        self.stack = stack
        self.values = {name: value for name, value in values.items() if not _is_default(value, defaults.get(name))}
        self.objects: dict[str, Any] = {}

    def take_rows(self, *names: str) -> None:
        """Write rows in memory to files, and name these; mappings `test` and `watch_known` hold rows by name."""
        for name in names:
            if name in self.values:
                value = self.values[name]
                if name in ("test", "watch_known") and isinstance(value, Mapping):
                    self.values[name] = {key: self._rows(f"{name}[{key!r}]", rows) for key, rows in value.items()}
                else:
                    self.values[name] = self._rows(name, value)

    def take_runs(self, *names: str) -> None:
        """Name the folders of results."""
        for name in names:
            if name in self.values:
                self.values[name] = run_folder(self.values[name], name)

    def take_model(self, *, copy: bool = False) -> None:
        """Take a loaded model with its tokenizer, and leave it as it was at the end. `copy`: use a copy of it."""
        model, tokenizer = self.values.get("model"), self.values.get("tokenizer")
        if model is not None and hasattr(model, "best") and hasattr(model, "folder"):
            self.values["model"] = model = model.best
        if isinstance(model, PathLike):
            self.values["model"] = model = fspath(model)
        if model is None or isinstance(model, str):
            if tokenizer is not None and not isinstance(tokenizer, str):
                raise ConfigError(
                    "tokenizer: found a loaded tokenizer without a loaded model; a model's name or path brings its own"
                )
            return
        from foreknow.models.in_memory import borrowed, model_in_memory  # keeps torch out

        self._check_fits_memory(copy)
        self.values.pop("tokenizer", None)
        memory = model_in_memory(model, tokenizer, self._new_folder() / "model", copy=copy)
        self.objects["model"] = memory
        self.values["model"] = str(memory)
        if not copy:
            self.stack.enter_context(borrowed(memory.trained or memory.model))
            self.values["device"], self.values["dtype"] = memory.place

    def take_run_folder(self) -> OutFolder:
        """Name the run folder to write: `out`, or a temporary one."""
        return self._take_out("run")

    def take_file(self, suffix: str) -> OutFolder:
        """Name the file to write: `out`, or a temporary one with this suffix."""
        return self._take_out(f"{self.verb}{suffix}")

    def suffix_of_audit(self, name: str) -> str:
        """Return the suffix of the files that are made of an audit's rows, such as ".jsonl.gz"."""
        files = sorted(Path(self.values[name]).glob("annotated*"))
        return files[0].name.removeprefix("annotated") if files and files[0].is_file() else ".jsonl"

    def config(self, model: type[Config]) -> Config:
        """Return the settings, with what lies in memory in its place. Raises ConfigError."""
        return settings_of(model, self.values).model_copy(update=self.objects)

    def _take_out(self, name: str) -> OutFolder:
        out = self.values.get("out")
        if out is not None:
            if not is_path(out):
                raise ConfigError(f"out: found {describe(out)}, expected a path")
            self.values["out"] = place(out if isinstance(out, Path) else fspath(out))
            return OutFolder(self.values["out"], None)
        keep = TemporaryFolder()
        self.values["out"] = keep.path / name
        return OutFolder(self.values["out"], keep)

    def _rows(self, name: str, value: Any) -> str:
        if name == "dev" and isinstance(value, (int, float)):
            return str(value)
        if hasattr(value, "records") and hasattr(value, "path"):  # what `mix` returns
            value = value.path
        if is_path(value):
            return str(fspath(value))
        file, label = write_rows(value, self._new_folder(), name)
        if name in ("data", "train", "dev"):
            self.objects[name] = InMemory(str(file), label)
        return str(file)

    def _new_folder(self) -> Path:
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="foreknow-")))

    def _check_fits_memory(self, copy: bool) -> None:
        """Raise ConfigError for settings that a loaded model does not go with."""
        expected = {"base": "None", "dtype": "auto", "device": "auto", "generator": "transformers", "ray": "False"}
        own = ("base", "generator", "ray", "ray_address") if copy else (*expected, "ray_address")
        for name in own:
            if name in self.values:
                raise ConfigError(
                    f"{name}={self.values[name]!r}: found with a model that is loaded already, expected "
                    f"{expected.get(name, 'None')}; name the model's folder to set it"
                )


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument is its default; types are compared first, because tables compare cell by cell."""
    return value is default or (type(value) is type(default) and isinstance(value, _PLAIN) and value == default)


_PLAIN = (str, int, float, bool, tuple)


def run_folder(run: Any, name: str) -> str:
    """Return the folder of a result, or a path as text. Raises ConfigError for what is neither."""
    if hasattr(run, "folder"):
        return str(fspath(run.folder))
    if is_path(run):
        return str(fspath(run))
    raise ConfigError(f"{name}: found {describe(run)}, expected a finished run: what foreknow returned, or its folder")


def audit_of(run: Any) -> AuditResult:
    """Return a finished audit: as it is, or opened from its folder. Raises what `open_audit` raises."""
    return run if isinstance(run, AuditResult) else open_audit(download(run_folder(run, "audit")))


def study_of(run: Any) -> StudyResult:
    """Return a finished study: as it is, or opened from its folder. Raises what `open_study` raises."""
    return run if isinstance(run, StudyResult) else open_study(download(run_folder(run, "study")))
