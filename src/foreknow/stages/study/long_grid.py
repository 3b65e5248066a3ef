"""List the training sets of a study of long answers, and how each is made. Pure.

D of a share has rows in which that share of all labelled spans is new to the model. Each remedy changes the same rows:

    mask    the rows stay whole, and their new spans leave the loss
    cut     sentences go whose only spans are new; a row of which nothing is left goes
    drop    rows with a new span go
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from foreknow.config import MixConfig
from foreknow.settings import settings_of
from foreknow.stages.study.grid import Run, Variant, percent_text
from foreknow.stages.study.settings import StudyConfig


def long_variants(config: StudyConfig) -> list[Variant]:
    """Return D of each share, and every remedy of each share above 0. A remedy's kind is its name."""
    sets = [Variant(f"new-{percent_text(share)}", "shares", share) for share in config.unknown]
    remedies = [
        Variant(f"{remedy}-of-{percent_text(share)}", remedy, share, known_of=f"new-{percent_text(share)}")
        for share in config.unknown
        if share > 0
        for remedy in config.remedies
    ]
    return [*sets, *remedies]


def long_runs(config: StudyConfig) -> list[Run]:
    """Return every run of the grid: all runs of the first seed before those of the second."""
    return [Run(variant, seed) for seed in range(config.seeds) for variant in long_variants(config)]


def long_mix_of(run: Run, audit: Path, folder: Path, size: int) -> MixConfig:
    """Return how the rows of a run's set are drawn. A remedy draws the rows of its D, as it has its seed and size."""
    given: dict[str, Any] = {"audit": audit, "out": folder / f"{run.variant.name}.jsonl", "seed": run.seed}
    given |= {"force": True, "new_share": run.variant.share, "size": size}
    given |= {run.variant.kind: "new"} if run.variant.kind in ("mask", "cut") else {}
    return settings_of(MixConfig, given)


def without_new(text: str, questions_with_new: Collection[str]) -> str:
    """Return the lines of a JSONL text whose question is not among `questions_with_new`."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if json.loads(line)["question"] not in questions_with_new)
