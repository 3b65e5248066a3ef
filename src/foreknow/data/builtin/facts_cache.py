"""Keeps the compiled packaged facts in the user's cache: compiling them takes ten seconds of processor time.

`facts/KEY.SHA256.parquet`: KEY is a hash of the packages' versions and of the code that compiles them, SHA256 the
content's own. A file that is damaged, or of other versions, is not read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import polars as pl

from foreknow.errors import ForeknowError
from foreknow.io.remote_paths import cache_folder
from foreknow.io.run_dir import write_whole


def cached_frame(
    compile_frame: Callable[[], pl.DataFrame], packages: Iterable[str], code: Iterable[Path]
) -> pl.DataFrame:
    """Return `compile_frame()`, from the cache if these versions of `packages` and this `code` were compiled before.

    A cache that cannot be written is no error. Raises what `compile_frame` raises, as for a missing package.
    """
    try:
        key = _key(packages, code)
    except (PackageNotFoundError, OSError):
        return compile_frame()
    folder = cache_folder() / "facts"
    if (frame := _read(folder, key)) is not None:
        return frame
    frame = compile_frame()
    body = io.BytesIO()
    frame.write_parquet(body, compression="zstd")
    content = body.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key}.{hashlib.sha256(content).hexdigest()}.parquet"
        write_whole(path, partial(_write_bytes, content))
    except (OSError, ForeknowError):
        pass
    return frame


def _key(packages: Iterable[str], code: Iterable[Path]) -> str:
    versions = json.dumps({name: version(name) for name in sorted(packages)})
    parts = [versions.encode(), *(path.read_bytes() for path in code)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _read(folder: Path, key: str) -> pl.DataFrame | None:
    """Return the cached frame; None if there is none, or its content is not what its name says."""
    for path in folder.glob(f"{key}.*.parquet"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(content).hexdigest() == path.name.split(".")[1]:
            return pl.read_parquet(io.BytesIO(content))
    return None


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)
