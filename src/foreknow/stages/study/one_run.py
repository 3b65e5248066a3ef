"""Train one run of a study, and delete its weights unless they are wanted."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from foreknow.config import TuneConfig
from foreknow.errors import ForeknowError
from foreknow.stages.train.result import weight_folders
from foreknow.stages.train.run import AVERAGED
from foreknow.stages.train.run import run as tune


def train_one_run(config: TuneConfig, keep_weights: bool) -> None:
    """Train one run and write its messages to its log."""
    folder = _folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            tune(config, page=False)
        except ForeknowError as error:
            error.args = (f"run {folder.name}: {error}",)
            raise
    if not keep_weights:
        drop_weights(folder)


def drop_weights(folder: Path) -> None:
    """Delete a finished run's weights, but keep what it measured."""
    for name in (*weight_folders("both"), AVERAGED):
        shutil.rmtree(folder / name, ignore_errors=True)


def _folder(config: TuneConfig) -> Path:
    assert config.out is not None
    return config.out
