"""The run folder: one run at a time, chunks written whole or not at all, the manifest last.

DIR/config.yaml       the resolved settings; written first
DIR/.chunks/N.parquet what is finished; removed once the manifest stands
DIR/manifest.json     fingerprints and versions; written last: its presence means the run is complete

A folder in an object store (`remote.py`) is written here, in its mirror, and put there file by file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from filelock import FileLock, Timeout

from foreknow import remote
from foreknow.errors import ResourceError, RunFolderError
from foreknow.places import place

MANIFEST = "manifest.json"
_TORN = re.compile(r"\.[\w.]+\.[a-z0-9_]{8}\.\w+")
"""What `write_whole` leaves behind if it is killed."""


def fingerprint(value: Any) -> str:
    """A hash of content: of a JSON-like value, or of a frame's rows."""
    if isinstance(value, pl.DataFrame):
        value = value.to_dicts()
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{path}: the disk is full; finished chunks are kept, free some space and run the same command again"
            ) from None
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise RunFolderError(f"{path}: cannot be written: {os.strerror(number)}") from None
        raise


def _errno(error: Exception) -> int | None:
    """The operating system's number for a failed write; Polars gives it in its text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told.group(1)) if told else None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then rename it: readers see all of it or nothing."""
    with _disk(path):
        remote.make_room(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            part.chmod(0o644)
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    remote.written(path)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour folder of `path`, then put it in the place of what stood there."""
    with _disk(path):
        remote.make_room(path)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            part.chmod(0o755)
            write(part)
            if path.exists():
                shutil.rmtree(path)
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    remote.written(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write Parquet whole or not at all; the same frame gives the same bytes."""
    write_whole(path, lambda part: frame.write_parquet(part, compression="zstd", statistics=True))


@dataclass(frozen=True)
class RunFolder:
    """A folder held by this process. Get one from `hold`."""

    path: Path

    @property
    def chunks(self) -> Path:
        """Where finished chunks wait until the run is complete."""
        return self.path / ".chunks"

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a complete run, else None."""
        return read_json(self.path / MANIFEST)

    def begin(self, identity: dict[str, Any], config: dict[str, Any]) -> bool:
        """Check that the folder is new or belongs to the same run; True if that run is complete.

        `identity`: what makes two runs the same (input, model, settings), by key. Raises RunFolderError
        naming the keys that differ.
        """
        known = self.manifest or read_json(self.path / ".run.json")
        if known is not None:
            differ = differences(known.get("identity", {}), identity)
            if differ:
                shown = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")
                raise RunFolderError(
                    f"{self.path}: made by another run: {shown}. Choose another --out, or delete the folder"
                )
            if self.manifest is not None:
                return True
        elif any(p for p in self.path.iterdir() if p.name != ".lock" and not p.name.startswith("..run.json.")):
            raise RunFolderError(f"{self.path}: not empty and not a run of foreknow; choose another --out")
        # whose folder it is comes first: a run stopped right here can be taken up again
        write_json(self.path / ".run.json", {"identity": identity})
        with _disk(self.path):
            self.chunks.mkdir(exist_ok=True)
            for torn in (*self.path.iterdir(), *self.chunks.iterdir()):
                if _TORN.fullmatch(torn.name):
                    shutil.rmtree(torn) if torn.is_dir() else torn.unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return False

    def reopen(self, config: dict[str, Any]) -> None:
        """Make a complete run unfinished again, to do more of the same; its outputs stay until they are replaced."""
        identity = (self.manifest or {}).get("identity", {})
        write_json(self.path / ".run.json", {"identity": identity})
        (self.path / MANIFEST).unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def chunk(self, number: int, part: str) -> pl.DataFrame | None:
        """A finished chunk's frame, or None. A file that cannot be read counts as not finished."""
        path = self.chunks / f"{number:06d}.{part}.parquet"
        if not path.is_file():
            return None
        try:
            return pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError):
            path.unlink(missing_ok=True)
            return None

    def keep(self, number: int, part: str, frame: pl.DataFrame) -> None:
        """Write a finished chunk's frame."""
        write_frame(self.chunks / f"{number:06d}.{part}.parquet", frame)

    def gather(self, part: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        """All finished chunks' frames, one under the other in chunk order."""
        files = sorted(self.chunks.glob(f"*.{part}.parquet"))
        return pl.concat([pl.DataFrame(schema=schema), *(pl.read_parquet(file) for file in files)])

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and drop what only an unfinished run needs."""
        write_json(self.path / MANIFEST, manifest)
        shutil.rmtree(self.chunks, ignore_errors=True)
        (self.path / ".run.json").unlink(missing_ok=True)
        remote.written(self.path)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[RunFolder]:
    """Make the folder if need be and hold it until the end. Raises RunFolderError if another process does.

    The lock is the operating system's: a process that is killed lets go of it. A folder in an object store is locked
    there too (`leases.py`), and fetched. Raises the errors of `remote.held`.
    """
    path = place(path)
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path}: is a file, expected a folder (--out)")
    with _disk(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path / ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunFolderError(f"{path}: held by another run; wait for it to end, or choose another --out") from None
    try:
        with remote.held(path):
            yield RunFolder(path)
    finally:
        lock.release()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Keys whose values differ, as `key: then -> now`, depth first."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where there is no file, or nothing of the kind in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
