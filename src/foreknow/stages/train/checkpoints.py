"""Completes, finds and removes checkpoints, so that a killed run leaves no broken one that is used.

A checkpoint counts only if it has its mark, and the mark is written last.

DIR/.checkpoints/checkpoint-N/   weights, optimizer and random states after step N, as transformers.Trainer writes them
    complete.json                the mark: step, the notes needed to resume, the sha256 of every file, its own checksum
DIR/.best/step-N/                the weights of the best epoch so far; its foreknow.json has their sha256
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreknow.errors import RunFolderError
from foreknow.io.run_dir import read_checked, with_checksum, write_json
from foreknow.models.adapters import ABOUT, about
from foreknow.models.checksums import sha256_of

MARK = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """Holds the folder of a complete checkpoint, the step after which it was saved, and the notes saved with it."""

    path: Path
    step: int
    note: dict[str, Any]


def complete(path: Path, step: int, note: dict[str, Any]) -> None:
    """Write the mark of a checkpoint whose files are all written."""
    sums = {file.name: sha256_of(file) for file in _sync_files(path)}
    write_json(path / MARK, with_checksum({"step": step, "note": note, "files": sums}))


def latest(root: Path) -> Checkpoint | None:
    """Return the last complete checkpoint, or None if there is none; remove incomplete and damaged checkpoints."""
    checkpoints: list[Checkpoint] = []
    for path in root.glob("checkpoint-*"):
        checkpoint = _read(path)
        if checkpoint is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            checkpoints.append(checkpoint)
    return max(checkpoints, key=lambda c: c.step, default=None)


def prune(root: Path, keep: Path) -> None:
    """Remove all checkpoints in `root` except `keep`."""
    for path in root.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Checkpoint | None:
    try:
        mark = read_checked(path / MARK) or {}
        whole = all(sha256_of(path / name) == expected for name, expected in mark["files"].items())
        return Checkpoint(path, int(mark["step"]), mark["note"]) if whole else None
    except (OSError, RunFolderError, KeyError):
        return None


def is_whole(path: Path) -> bool:
    """Return whether a saved model's files are as they were saved."""
    sums = about(path).get("files", {})
    return bool(sums) and all((path / n).is_file() and sha256_of(path / n) == s for n, s in sums.items())


def save_model(path: Path, save: Callable[[Path], object], beside: dict[str, Any]) -> None:
    """Let `save` write a model into a new folder and move the folder to `path` when it is complete.

    `beside`: entries to write into the folder's foreknow.json.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(part)
        # a loader compares the folder with the checksums in `files`; to edit a file by hand, remove its entry there
        sums = {file.name: sha256_of(file) for file in sorted(part.iterdir()) if file.is_file()}
        text = json.dumps({**beside, "files": sums}, indent=1, ensure_ascii=False)
        (part / ABOUT).write_text(f"{text}\n", encoding="utf-8")
        for file in _sync_files(part):
            file.chmod(0o644)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync_files(path: Path) -> list[Path]:
    """Flush the files of a folder to the disk and return their paths, sorted."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return files
