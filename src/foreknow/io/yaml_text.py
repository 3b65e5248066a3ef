"""Reads YAML as plain values: no Python objects, no aliases that expand without limit or contain themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from foreknow.errors import ConfigError

LARGEST: Final = 100_000
"""The most values of a text, where each alias counts as the values it stands for."""


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without merge keys (`<<`): a few lines of them can grow beyond all memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Do not merge keys, so that a merge key is an error."""


def loads(text: str) -> Any:
    """Parse a YAML text. Raises ValueError, in one line, if it is invalid or has more than the allowed values."""
    try:
        value = yaml.load(text, Loader=PlainLoader)
        size = _size(value, {}, set())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML raises the last three for a value that its explicit tag does not fit (`!!int ''`)
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"a value cannot be read ({type(error).__name__}{': ' if why else ''}{why})") from None
    if size > LARGEST:
        raise ValueError(f"its anchors grow to more than {LARGEST:,} values")
    return value


def read(path: Path, flag: str = "") -> Any:
    """Read a YAML file. `flag`: which flag named it, for messages. Raises ConfigError."""
    try:
        return loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{_called(path, flag)}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # including text that is not UTF-8
        raise ConfigError(f"{_called(path, flag)}: not YAML: {error}") from None


def read_keys(path: Path, flag: str = "") -> dict[str, Any]:
    """Read a YAML file of keys with values, none if it is empty. `flag`: as for `read`. Raises ConfigError."""
    found = read(path, flag)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{_called(path, flag)}: found a {type(found).__name__}, expected keys with values")
    return {str(key): value for key, value in found.items()}


def _called(path: Path, flag: str) -> str:
    return f"{flag} {path}".lstrip()


def _size(value: object, known: dict[int, int], above: set[int]) -> int:
    """The number of values in all, where a value that two aliases name counts twice."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    at = id(value)
    if at in above:
        raise ValueError("an anchor holds itself")
    if at not in known:
        above.add(at)
        inner = [*value, *value.values()] if isinstance(value, dict) else [*value]
        known[at] = 1 + sum(_size(each, known, above) for each in inner)
        above.remove(at)
    return known[at]
