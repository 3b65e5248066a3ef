"""Names what decides a build of the lab's model, and finds a built one; imports no torch.

`lab_model.py` builds it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from foreknow.data.builtin import lab_world
from foreknow.data.builtin.lab_world import NAME, World
from foreknow.errors import RunFolderError
from foreknow.io.remote_paths import cache_folder
from foreknow.io.run_dir import fingerprint

BUILD: Final = 2
"""Raise this when a build's result changes for another reason than its recipe; older builds are then not used."""

NOTE: Final = "a small Llama trained here on a made-up world, every exposure of every fact counted; it knows no other"


@dataclass(frozen=True)
class Recipe:
    """The settings that decide a build. `rows` x `width`: whole documents are packed into rows of `width` tokens, and a
    step takes `rows` of them. `floor`: the share of the learning rate at the end of the cosine. Embeddings and head
    learn at `embedding_rate` times the rate without decay, as a name is one token and is seen only a few times."""

    world: World = field(default_factory=World)
    hidden: int = 128
    intermediate: int = 384
    layers: int = 2
    heads: int = 4
    positions: int = 512
    rows: int = 2
    width: int = 128
    learning_rate: float = 1.5e-3
    embedding_rate: float = 3.0
    warmup: float = 0.05
    floor: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0


LAB: Final = Recipe()


def facts(recipe: Recipe = LAB) -> pl.DataFrame:
    """Return every fact of the recipe's world (`lab_world.FACTS`); needs no built model."""
    return lab_world.facts(recipe.world)


def built_folder(recipe: Recipe = LAB) -> Path:
    """Return the folder in the user's cache for the built model of a recipe."""
    return cache_folder() / "models" / f"{NAME}-{key_of(recipe).removeprefix('sha256:')[:16]}"


def key_of(recipe: Recipe) -> str:
    """Return the fingerprint of what decides a build's bytes."""
    return fingerprint({"build": BUILD, **asdict(recipe)})


def is_built(folder: Path, recipe: Recipe = LAB) -> bool:
    """Return whether the folder holds the recipe's model. Raises RunFolderError if it holds anything else."""
    try:
        manifest = json.loads((folder / "lab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        if folder.exists():
            raise RunFolderError(f"{folder}: not empty and not a lab of foreknow; choose another folder") from None
        return False
    if manifest.get("key") != key_of(recipe):
        raise RunFolderError(f"{folder}: a lab built by another recipe; choose another folder, or delete it")
    return True
