"""Computes the fingerprint of a model folder: a hash of all the files that decide its answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from foreknow.models.checksums import cached_sha256


def fingerprint(folder: Path) -> str:
    """Return a hash of the content of a model folder's weights, configuration, tokenizer and code, never of its name.

    Hashes of large files are cached by size and time of change, so that a folder is read once.
    """
    kinds = (".safetensors", ".json", ".model", ".bin", ".jinja", ".txt", ".tiktoken", ".py")
    ignored = {"foreknow.json", "lab.json", "trainer_state.json"}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in kinds and path.name not in ignored:
            digest.update(f"{path.name}\0{cached_sha256(path)}\0".encode())
    return f"sha256:{digest.hexdigest()}"
