"""The run folder: one run at a time; chunks are written atomically; the manifest is written last.

DIR/config.yaml       the resolved settings; written first
DIR/.chunks/N.SHA256.PART.parquet   finished chunks, named by the hash of their content; removed once the manifest is
                      written
DIR/manifest.json     fingerprints and versions; written last: its presence means the run is complete

A run writes a folder of an object store (`remote.py`) to its local mirror first, and uploads it file by file.

Every file is checked against a checksum before it is read again. A truncated or changed file is named in an error, and
a damaged chunk is computed again. `manifest.json` and `.run.json` hold a checksum of their own content (`seal`),
`manifest.json` also the sha256 of every output (`files`), and a chunk's name holds the chunk's. Both also carry
the `format` of the columns in the run's files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import yaml
from filelock import FileLock, Timeout

from foreknow.errors import ConfigError, InputError, ResourceError, RunFolderError
from foreknow.io import remote
from foreknow.io.remote_paths import place
from foreknow.io.yaml_text import read_keys

MANIFEST = "manifest.json"
FORMAT: Final = 2
"""The names of the columns and keys in a run's files. Raise it where one changes: a run of another format is refused,
so that no file is read by names that it does not have."""
COMMANDS = {"remedies": "study remedies", "long study": "study"}
"""The words of the command that runs a stage, where they are not the name of the stage in its manifest."""
SEAL = "seal"
"""The key under which a JSON file holds the fingerprint of its other keys."""
_TEMPORARY = re.compile(r"\.[\w.]+\.[a-z0-9_]{8}\.\w+")
"""Temporary files that `write_whole` leaves behind if the process is killed."""


def fingerprint(value: Any) -> str:
    """A hash of content: of a JSON-like value, or of a frame's rows."""
    if isinstance(value, pl.DataFrame):
        value = value.to_dicts()
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
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
    """The operating system's error number of a failed write; Polars gives it only in its message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match.group(1)) if match else None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a temporary file beside `path`, which is then renamed to `path`."""
    with _disk_errors(path):
        remote.make_mirror_parent(path)
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
    remote.push_written(path)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder atomically: `write` fills a temporary folder beside `path`, which then replaces `path`."""
    with _disk_errors(path):
        remote.make_mirror_parent(path)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            part.chmod(0o755)
            write(part)
            if path.exists():
                shutil.rmtree(path)
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    remote.push_written(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write Parquet atomically; the same frame gives the same bytes."""
    write_whole(path, lambda part: frame.write_parquet(part, compression="zstd", statistics=True))


@dataclass(frozen=True)
class RunDir:
    """A run folder that this process has locked. `lock_run_dir` makes one."""

    path: Path

    @property
    def chunks(self) -> Path:
        """The folder of the finished chunks of an unfinished run."""
        return self.path / ".chunks"

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a complete run, else None."""
        return read_json(self.path / MANIFEST)

    def open_run(self, identity: dict[str, Any], config: dict[str, Any], *, partial: bool = False) -> bool:
        """Check that the folder is new or belongs to the same run; True if that run is complete (see `verify`).

        `identity`: what makes two runs the same (input, model, settings), by key. Raises RunFolderError
        naming the keys that differ, or the folder where its files have the columns of another format.
        """
        if self.check_identity(identity, config):
            if self.manifest is not None:
                verify(self.path, partial=partial)
                return True
        elif any(p for p in self.path.iterdir() if p.name != ".lock" and not p.name.startswith("..run.json.")):
            raise RunFolderError(
                f"{self.path}: not empty and not a run of foreknow (no {MANIFEST}, no .run.json); choose another "
                "--out, or delete the folder if it was one"
            )
        # write the identity first: a run that is stopped right here can be resumed
        write_json(self.path / ".run.json", with_checksum({"format": FORMAT, "identity": identity}))
        with _disk_errors(self.path):
            self.chunks.mkdir(exist_ok=True)
            for leftover in (*self.path.iterdir(), *self.chunks.iterdir()):
                if _TEMPORARY.fullmatch(leftover.name):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return False

    def check_identity(self, identity: dict[str, Any], config: dict[str, Any]) -> bool:
        """Return whether the folder holds a run, complete or not. Raises RunFolderError if it is another one."""
        known = read_checked(self.path / MANIFEST) or read_checked(self.path / ".run.json")
        if known is None:
            return False
        _check_format(self.path, known)
        differ = differences(*self._named(known.get("identity", {}), identity, config))
        if differ:
            changes = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")
            raise RunFolderError(
                f"{self.path}: made by another run: {changes}. Choose another --out, or delete the folder"
            )
        return True

    def _named(
        self, old: dict[str, Any], new: dict[str, Any], config: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both identities, with the settings' names in place of fingerprints that differ, where the names tell more."""
        try:
            before = read_keys(self.path / "config.yaml")
        except ConfigError:
            before = {}
        old, new = dict(old), dict(new)
        for key in ("model", "data", "exemplars"):
            both = old.get(key), new.get(key)
            if both[0] == both[1] or not all(str(value).startswith("sha256:") for value in both):
                continue
            names = before.get(key), config.get(key)
            if None not in names:
                changed = " (its content has changed)" if names[0] == names[1] else ""
                old[key], new[key] = names[0], f"{names[1]}{changed}"
        return old, new

    def reopen(self, config: dict[str, Any]) -> None:
        """Mark a complete run as unfinished so that it can continue; its outputs stay until they are replaced."""
        identity = (self.manifest or {}).get("identity", {})
        write_json(self.path / ".run.json", with_checksum({"format": FORMAT, "identity": identity}))
        (self.path / MANIFEST).unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def chunk(self, number: int, part: str) -> pl.DataFrame | None:
        """Return a finished chunk's frame, or None. A chunk that fails its checksum is deleted and not returned."""
        for path in self.chunks.glob(f"{number:06d}.*.{part}.parquet"):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == path.name.split(".")[1]:
                return pl.read_parquet(io.BytesIO(content))
            path.unlink(missing_ok=True)
        return None

    def save_chunk(self, number: int, part: str, frame: pl.DataFrame) -> None:
        """Write a finished chunk's frame."""
        body = io.BytesIO()
        frame.write_parquet(body, compression="zstd", statistics=True)
        content = body.getvalue()
        path = self.chunks / f"{number:06d}.{hashlib.sha256(content).hexdigest()}.{part}.parquet"
        write_whole(path, lambda part: part.write_bytes(content))
        for older in self.chunks.glob(f"{number:06d}.*.{part}.parquet"):
            if older != path:
                older.unlink()

    def load_chunks(self, part: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        """Concatenate the frames of all finished chunks in chunk order.

        Raises RunFolderError for a damaged chunk, and deletes it so that the next run computes it again.
        """
        frames = [pl.DataFrame(schema=schema)]
        for number in sorted({int(path.name.split(".")[0]) for path in self.chunks.glob(f"*.*.{part}.parquet")}):
            frame = self.chunk(number, part)
            if frame is None:
                raise RunFolderError(
                    f"{self.chunks}: chunk {number} ({part}) was damaged, and is removed; run the same command again"
                )
            frames.append(frame)
        return pl.concat(frames)

    def finish(self, manifest: dict[str, Any], outputs: Iterable[str] = ()) -> None:
        """Write the manifest with the sha256 of the `outputs`, and delete the files that only an unfinished run needs.

        `outputs`: names or patterns. Missing files are skipped; a folder stands for all files in it.
        """
        with _disk_errors(self.path):
            files = checksums_of(self.path, outputs)
        write_json(self.path / MANIFEST, with_checksum({"format": FORMAT, **manifest, "files": files}))
        shutil.rmtree(self.chunks, ignore_errors=True)
        (self.path / ".run.json").unlink(missing_ok=True)
        remote.push_written(self.path)


@contextlib.contextmanager
def lock_run_dir(path: Path) -> Iterator[RunDir]:
    """Create the folder if it is missing and lock it. Raises RunFolderError if another process holds the lock.

    The operating system releases the lock when the process ends, even if it is killed. A folder in an object store is
    also locked there (`remote_lock.py`) and downloaded. Raises the errors of `remote.hold_remote`.
    """
    path = place(path)
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path}: is a file, expected a folder (--out)")
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path / ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunFolderError(f"{path}: held by another run; wait for it to end, or choose another --out") from None
    try:
        with remote.hold_remote(path):
            yield RunDir(path)
    finally:
        lock.release()


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Add a fingerprint of its content to a JSON object, so that `read_checked` can detect changes."""
    return {**value, SEAL: fingerprint(json.loads(json.dumps(value)))}


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read a JSON file written `with_checksum`; None if there is no file. Raises RunFolderError if it was changed.

    A file that has neither a checksum nor the key `files` is returned unchecked.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if value is None:
        raise RunFolderError(f"{path}: damaged, not a JSON object; {_remedy(path.parent)}")
    seal = value.pop(SEAL, None)
    if (seal is not None or "files" in value) and seal != fingerprint(value):
        raise RunFolderError(f"{path}: damaged or edited: not as it was written; {_remedy(path.parent)}")
    return value


def not_finished(folder: Path, stage: str, missing: str = MANIFEST) -> str:
    """Say why a folder is not that of a finished run of `stage`, and what to do.

    `stage`: as the stage's manifest names it; or several, in words. `missing`: the file that was not found.
    """
    what = f"{folder}: not a finished {stage} run"
    if not folder.exists():
        return f"{what}: there is no such folder; check the path"
    other = (read_json(folder / MANIFEST) or {}).get("stage")
    if other == stage:
        return f"{folder / missing}: missing, though the run was finished; put it back, or {_remedy(folder)}"
    command = COMMANDS.get(stage, stage)
    if other is not None:
        return f"{what}: {other} wrote it; name the --out of a foreknow {command} command"
    if (folder / ".run.json").is_file():
        return f"{what}: it was begun and has not ended; give the command that began it again, and it goes on"
    return f"{what}: it has no {MANIFEST}; name the --out of a foreknow {command} command"


def verify(folder: Path, *, partial: bool = False) -> dict[str, Any]:
    """Check that the outputs of a complete run are unchanged, byte for byte, and return its manifest.

    Call this before the outputs are read: a flipped bit in Parquet can crash the process, or silently change rows.
    `partial`: missing files are allowed, because they can be made again from the others. Raises InputError if there is
    no manifest, or naming an output that is missing or was changed; RunFolderError where the outputs have the columns
    of another format.
    """
    manifest = read_checked(folder / MANIFEST)
    if manifest is None:
        raise InputError(f"{folder}: not a finished run (no {MANIFEST})")
    _check_format(folder, manifest)
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            if partial:
                continue
            raise InputError(f"{path}: missing, though the run was finished; put it back, or {_remedy(folder)}")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != expected:
            raise InputError(
                f"{path}: damaged or edited: sha256 {sha256[:12]}..., expected {expected[:12]}...; put the file back, "
                f"or {_remedy(path if partial else folder)}"
            )
    return manifest


def _check_format(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise RunFolderError where the run's files have the columns of another format than `FORMAT`."""
    run_format = manifest.get("format", 1)
    if run_format != FORMAT:
        raise RunFolderError(
            f"{folder}: made by another version of foreknow (format {run_format} of its columns, expected {FORMAT}); "
            f"{_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run the same command again"


def checksums_of(folder: Path, outputs: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every file of `folder` that a pattern of `outputs` names, by its path in `folder`."""
    paths = {path for pattern in outputs for path in folder.glob(pattern)}
    files = {f for path in paths for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()}
    sums = {}
    for path in sorted(files):
        with path.open("rb") as file:
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The keys whose values differ, as `key: old -> new`, depth first."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted({*old, *new}):
            changes += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return changes
    return [] if old == new else [f"{name}: {_short_json(old)} -> {_short_json(new)}"]


def _short_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file, or it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
