"""List a study's grid: the training sets, how each is made, and the seeds. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from foreknow.config import MixConfig
from foreknow.settings import settings_of
from foreknow.stages.study.settings import StudyConfig

Kind = Literal["shares", "known", "single", "natural", "idk", "mask", "cut", "drop"]
"""How a set is made. The last three are of studies of long answers (`long_grid.py`)."""


class Variant(NamedTuple):
    """One training set of the grid: nominal `share` of Unknown, `trained` category, and the variant it is made from."""

    name: str
    kind: Kind
    share: float | None = None
    trained: str | None = None
    known_of: str | None = None


class Run(NamedTuple):
    """One fine-tuning run: a variant that is drawn and trained with a seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return f"{self.variant.name}-seed{self.seed}"


def variants(config: StudyConfig) -> list[Variant]:
    """Return the training sets of the grid in the order in which they are trained (see `_telling`).

    D_Known is made of every share except 0 (where it is D itself) and 1 (where no row would be left).
    """
    found = [Variant(f"unknown-{percent_text(share)}", "shares", share) for share in config.unknown]
    if config.known:
        between = [share for share in config.unknown if 0 < share < 1]
        found += [
            Variant(f"known-of-{percent_text(s)}", "known", s, known_of=f"unknown-{percent_text(s)}") for s in between
        ]
    found += [Variant(f"only-{name}", "single", trained=name) for name in config.only]
    if config.natural:
        found.append(Variant("natural", "natural"))
    found += [Variant(f"idk-{percent_text(share)}", "idk", share) for share in config.idk]
    return sorted(found, key=_telling)


def _telling(variant: Variant) -> tuple[float, str]:
    """Return a sort key: the half-Unknown set and its D_Known first, then the ends, then the rest."""
    first = {0.5: 0.0, 0.0: 1.0, 1.0: 2.0}
    share = 9.0 if variant.share is None else variant.share
    kind = 0.0 if variant.kind == "shares" else 0.5 if variant.kind == "known" else 4.0
    return first.get(share, 3.0) + kind, variant.name


def runs(config: StudyConfig) -> list[Run]:
    """Return every run of the grid: all runs of the first seed before those of the second."""
    return [Run(variant, seed) for seed in range(config.seeds) for variant in variants(config)]


def mix_of(
    run: Run, config: StudyConfig, audit: Path, folder: Path, relations: tuple[str, ...], size: int
) -> MixConfig:
    """Return how the run's training set is drawn (paper, section 3). `folder` holds the seed's sets."""
    variant, (family, among) = run.variant, config.family
    given: dict[str, Any] = {"audit": audit, "out": folder / f"{variant.name}.jsonl", "seed": run.seed, "force": True}
    if variant.kind == "known":
        return settings_of(MixConfig, {**given, "known_of": folder / f"{variant.known_of}.jsonl"})
    given |= {"relations": relations, "size": size, "family": family, "family_of": among}
    if variant.kind == "single":
        return settings_of(MixConfig, {**given, "only": variant.trained})
    if variant.kind == "natural":
        return settings_of(MixConfig, {**given, "natural": True})
    relabelled = {"idk": True, "idk_answer": config.idk_answer} if variant.kind == "idk" else {}
    return settings_of(MixConfig, {**given, "unknown": variant.share, **relabelled})


def percent_text(share: float) -> str:
    """Return a share in per cent, as the names of variants have it."""
    return f"{100 * share:g}"
