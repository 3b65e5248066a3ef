"""Computes checksums of files, and compares a converted model's files with those written beside them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from foreknow.errors import ModelError
from foreknow.io.remote_paths import cache_folder


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """Return the sha256 of a file, cached under its real path, size and time of change."""
    state = path.resolve().stat()
    if state.st_size < 1 << 22:
        return sha256_of(path)
    identity = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}"
    memo = cache_folder() / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    if memo.is_file() and len(checksum_text := memo.read_text(encoding="ascii").strip()) == 64:
        return checksum_text
    checksum = sha256_of(path)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as temporary:
            temporary.write(checksum)
        Path(temporary.name).replace(memo)
    except OSError:
        pass  # a cache that cannot be written only costs time
    return checksum


def checksums_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a converted model's folder by name, without that of `foreknow.json`."""
    return {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "foreknow.json"}


def verify_checksums(folder: Path) -> None:
    """Compare a converted model's files with their checksums. Raises ModelError naming the first that differs."""
    about = folder / "foreknow.json"
    if not about.is_file():
        return
    try:
        manifest = json.loads(about.read_text(encoding="utf-8"))
        checksums = {str(name): str(expected) for name, expected in manifest.get("files", {}).items()}
    except (ValueError, AttributeError):
        raise ModelError(f"{about}: not what foreknow wrote beside a model; delete {folder} to make it anew") from None
    folder_to_delete = folder.parent if manifest.get("stage") == "tune" else folder
    for name, expected in checksums.items():
        path = folder / name
        checksum = cached_sha256(path) if path.is_file() else "missing"
        if checksum != expected:
            raise ModelError(
                f"{path}: sha256 {checksum}, expected {expected}; the file was altered, delete {folder_to_delete} to "
                f"make it anew, or take its line out of {about.name} if you altered it yourself"
            )
