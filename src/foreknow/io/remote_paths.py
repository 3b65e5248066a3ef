"""Names of things in object stores: `s3://bucket/run` <-> the local path that stands for it.

The mirror of `s3://bucket/a/run` is CACHE/remote/s3/bucket/a/run: neighbours in the store are neighbours here, and
nothing has to be looked up to go from one name to the other. No network here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from foreknow.errors import ConfigError

SCHEMES: Final = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "memory": ("fsspec", "s3")}
"""The supported stores: scheme -> the package that accesses it, and the extra of foreknow that installs it."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # PosixPath or WindowsPath: Path itself cannot be derived from before Python 3.12


class MirrorPath(_Path):
    """The local path of a mirror; formatted in a message, it shows the URL that it mirrors."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return format(url_of(self) or str(self), spec)


def cache_folder() -> Path:
    """The cache folder: FOREKNOW_CACHE, else `foreknow` in XDG_CACHE_HOME, else in `~/.cache`."""
    if chosen := os.environ.get("FOREKNOW_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foreknow"


def mirrors() -> Path:
    """The folder that holds all mirrors."""
    return cache_folder().absolute() / "remote"


def is_url(name: str) -> bool:
    """Whether a text is a URL: a scheme and `://`."""
    return "://" in name and _SCHEME.match(name) is not None


def place(name: str | Path) -> Path:
    """The path for a name: that of the mirror where it is a URL of a store, else the name as it is.

    `Path("s3://b/x")` has become `s3:/b/x` before it comes here, which is understood too. Raises ConfigError for
    another scheme, and for a URL that no object can have.
    """
    text = str(name)
    match = _SCHEME.match(text)
    if match is None or (isinstance(name, str) and not is_url(name)):
        return name if isinstance(name, Path) else Path(name)
    scheme, rest = match[1].lower(), text[match.end() :].rstrip("/")
    public_url = f"{scheme}://{rest.rpartition('@')[2]}"
    if isinstance(name, Path) and name.parts and Path(name.parts[0]).exists():
        return name
    if scheme not in SCHEMES:
        raise ConfigError(f"{public_url}: unknown scheme {scheme}://, expected s3:// or gs://, or a local path")
    bucket, *parts = rest.split("/")
    if "@" in bucket:
        raise ConfigError(
            f"{public_url}: found a user or password in the URL; credentials come from the environment or the store's "
            "own settings files"
        )
    if not bucket or ":" in bucket or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ConfigError(f"{public_url}: expected {scheme}://BUCKET/NAME, without empty, '.' or '..' parts")
    return MirrorPath(mirrors().joinpath(scheme, bucket, *parts))


def url_of(path: Path) -> str | None:
    """The URL that a local path mirrors; None for a path outside the mirrors."""
    try:
        scheme, *rest = path.relative_to(mirrors()).parts
    except ValueError:
        return None
    return f"{scheme}://{'/'.join(rest)}" if scheme in SCHEMES and rest else None
