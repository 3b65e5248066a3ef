"""Checkpoints that a kill cannot spoil: one counts once its mark stands, and its mark is written last.

DIR/.checkpoints/checkpoint-N/   weights, optimizer, random states after step N, as transformers.Trainer has them
    complete.json                the mark: step, what goes on from there, the sha256 of every file, its own seal
DIR/.best/step-N/                the weights of the best epoch so far; their sha256 in its foreknow.json
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
from foreknow.models.packaged import sha256_of

MARK = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: where it lies, the step it was taken after, and what was noted with it."""

    path: Path
    step: int
    note: dict[str, Any]


def complete(path: Path, step: int, note: dict[str, Any]) -> None:
    """Put the mark on a checkpoint whose files are all written."""
    sums = {file.name: sha256_of(file) for file in _sync_files(path)}
    write_json(path / MARK, with_checksum({"step": step, "note": note, "files": sums}))


def latest(root: Path) -> Checkpoint | None:
    """The last complete checkpoint; torn and damaged ones are removed."""
    checkpoints: list[Checkpoint] = []
    for path in root.glob("checkpoint-*"):
        checkpoint = _read(path)
        if checkpoint is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            checkpoints.append(checkpoint)
    return max(checkpoints, key=lambda c: c.step, default=None)


def prune(root: Path, keep: Path) -> None:
    """Remove all checkpoints but one."""
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
    """Whether a saved model's weights are as they were saved."""
    sums = about(path).get("files", {})
    return bool(sums) and all((path / n).is_file() and sha256_of(path / n) == s for n, s in sums.items())


def save_model(path: Path, save: Callable[[Path], object], beside: dict[str, Any]) -> None:
    """Let `save` fill a folder with a model and put it at `path`, whole or not at all; `beside` goes into its
    foreknow.json."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(part)
        # `files`: the checksums a loader holds the folder to; who edits a file takes its line out
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
    """The files of a folder, each on the disk and not only in memory."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return files
