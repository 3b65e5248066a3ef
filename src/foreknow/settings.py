"""What all settings have in common: strict and frozen, read from YAML with the given ones on top. YAML < flags.

A key that does not exist is an error, and what is wrong is said in a line that names file and key.
"""

from __future__ import annotations

from enum import Enum
from os import fspath
from pathlib import Path, PurePath
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from foreknow.errors import ConfigError
from foreknow.io.in_memory import InMemory, describe
from foreknow.io.remote_paths import MirrorPath, place
from foreknow.io.yaml_text import read_keys


class Group(Enum):
    """The headings under which help and settings files list the settings, in this order.

    A field names its group in its annotation: `Annotated[str, Group.DATA]`.
    """

    DATA = "Data"
    MODEL = "Model"
    OUTPUT = "Output"
    PROTOCOL = "Protocol"
    SETS = "Training sets"
    TRAINING = "Training"
    SERVER = "Servers"
    RAY = "Ray"
    SPEED = "Speed"


COMMON: Final = "common"
"""Marks, in a field's annotation, a setting that `--help` shows; `--help-all` shows every setting."""
FILE_ONLY: Final = "file only"
"""Marks, in a field's annotation, a setting that has no flag: only a settings file or a Python call gives it."""


_SHOWN: Final = 80
"""Number of characters of a wrong value that a message shows."""


def group_of(field: FieldInfo) -> Group:
    """The group that the field's annotation names."""
    return next(mark for mark in field.metadata if isinstance(mark, Group))


class Settings(BaseModel):
    """What all stages' settings have in common: frozen, and strict about their names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    writes_a_file: ClassVar[bool] = False
    """Whether `out` is a file and not a run folder."""

    @field_validator("*", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        """A path where a text is expected becomes its text."""
        kind = cls.model_fields[str(info.field_name)].annotation
        return fspath(value) if isinstance(value, PurePath) and kind in (str, str | None) else value

    @field_validator("*")
    @classmethod
    def _placed(cls, value: Any) -> Any:
        """A path given as a URL becomes that of its mirror (`remote_paths.py`)."""
        return place(value) if isinstance(value, Path) else value

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for `config.yaml`: what lies in a store by its URL, in memory by its label."""
        values = self.model_dump(mode="json") | {name: f"{v}" for name, v in self if isinstance(v, MirrorPath)}
        return values | {name: value.label for name, value in self if isinstance(value, InMemory)}


S = TypeVar("S", bound=Settings)


def settings_of(model: type[S], given: dict[str, Any], file: Path | None = None) -> S:
    """A stage's settings from a YAML file, if any, and those given on top. Raises ConfigError naming the key.

    Files and folders in a store that the settings name are fetched; a run folder to write is when it is held. Raises
    the errors of `remote.download` too.
    """
    from foreknow.io.remote import download  # keeps filelock out

    found = read_keys(download(file), "--config") if file else {}
    found = {key.replace("-", "_"): value for key, value in found.items()} | given
    try:
        settings = model(**found)
    except ValidationError as error:
        raise ConfigError(_first_fault(error, model, file, set(given))) from None
    for name, value in settings:
        if isinstance(value, MirrorPath) and (name != "out" or model.writes_a_file):
            download(value, needed=name != "out")
    return settings


def read_settings(folder: Path, *, needed: bool = False) -> dict[str, Any]:
    """Read a run's settings from its `config.yaml`; without one they are empty.

    Raises ConfigError if the file is not YAML, and with `needed` if there is none.
    """
    path = folder / "config.yaml"
    return read_keys(path) if needed or path.is_file() else {}


def _first_fault(error: ValidationError, model: type[Settings], file: Path | None, given: set[str]) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"][:1]) or "settings"
    where = f"--{key.replace('_', '-')}" if key in given or file is None else f"{file}: {key}"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"{where}: no such setting; known are {known}"
    if fault["type"] == "missing":
        return f"{key}: missing; give it as an argument or in --config"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault.get("input")
    text = repr(found) if found is None or isinstance(found, (str, int, float, tuple)) else describe(found)
    if len(text) > _SHOWN:
        message, text = message.replace(text, f"{text[:_SHOWN]}..."), f"{text[:_SHOWN]}..."
    shown = "" if isinstance(found, (dict, list)) or "found" in message else f"found {text}: "
    return f"{where}: {shown}{message[0].lower()}{message[1:]}"
