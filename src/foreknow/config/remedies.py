"""The settings of `foreknow study remedies`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, field_validator, model_validator

from foreknow.config.audit import AuditConfig
from foreknow.config.shared import (
    BASE,
    DRY_RUN,
    MODEL,
    OUT,
    RAY,
    RAY_ADDRESS,
    RAY_SETTINGS,
    RAY_WORKERS,
    Numbers,
    check_workers,
    stage_settings,
)
from foreknow.config.tune import TuneConfig
from foreknow.settings import COMMON, FILE_ONLY, Group, Settings

RECIPES: Final[dict[str, str]] = {
    "plain": "as tune trains by default",
    "average": "plain, then part of the way back to the weights before",
    "replay": "as many known rows as new ones in each batch",
    "kl": "held to the predictions before training on known rows",
    "kl+average": "the same, then part of the way back",
    "kl-all": "held to the predictions before training on rows of every category",
    "kl-all+average": "the same, then part of the way back",
    "kl-known-epoch": "kl-all to the predictions after an epoch on known rows, which comes first",
    "kl-known-epoch+average": "the same, then part of the way back",
    "replay+kl": "known rows replayed and held to the predictions before training",
    "replay+kl+average": "the same, then part of the way back",
    "lora": "LoRA adapters, at ten times each learning rate",
    "attention": "the attention modules' weights alone are trained",
    "known-late": "known rows in the training file, trained on in the last fifth of the steps only",
    "flow": "rows that the model finds easy before training weigh more in the loss",
    "small-rate": "plain, at a fifth of each learning rate, for three times the epochs",
}
"""The recipes that a study can compare, and what each does."""
ALL: Final = "all"
"""Stands for every recipe."""
_OWN_AUDIT: Final = frozenset(
    {"data", "out", "model", "base", "limit", "minutes", "max_unknown", "dry_run", *RAY_SETTINGS}
)
_OWN_TUNE: Final = frozenset(
    {"train", "dev", "test", "out", "model", "base", "audit", "seed", "dry_run", "force", "patience", "metric", "keep"}
    | {"replay", "replay_from", "kl", "kl_teacher", "known_late", "average", "trainable", "method", "watch_known"}
    | {"learning_rate", "loss_weights", "epochs", "stop_fitted", "watch_rows", "preset", "allow_overlap"}
)
"""Settings of the stages that the study itself sets."""


def _names(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    return (
        [name for part in value for name in str(part).split(",") if name] if isinstance(value, (list, tuple)) else value
    )


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Nested = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class RemediesConfig(Settings):
    """Settings of `foreknow study remedies`."""

    data: Annotated[str, Group.DATA, COMMON] = Field(
        description="The rows, as for foreknow audit: the Unknown ones are taught, the HighlyKnown ones watched and "
        "replayed."
    )
    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(None, description=OUT)
    model: Annotated[str, Group.MODEL, COMMON] = Field("smollm2-135m", description=MODEL)
    base: Annotated[str | None, Group.MODEL] = Field(None, description=BASE)
    audit: Annotated[Nested, Group.PROTOCOL, FILE_ONLY] = Field(
        {}, description="Settings that the study hands to foreknow audit; only a settings file can give them."
    )
    tune: Annotated[Nested, Group.TRAINING, FILE_ONLY] = Field(
        {}, description="Settings that the study hands to foreknow tune; only a settings file can give them."
    )
    reworded: Annotated[str | None, Group.DATA, COMMON] = Field(
        None,
        description="A data file that asks for the same facts in other words, to see whether they are learnt beyond "
        "their wording; its rows need the subjects and answers of the others.",
    )
    ood: Annotated[tuple[str, ...], Group.DATA, COMMON] = Field(
        (), description="Neither teach nor replay rows of these relations, and watch their HighlyKnown ones apart."
    )
    recipes: Annotated[Names, Group.SETS, COMMON] = Field(
        (ALL,), description="The recipes to compare, with commas or blanks between them."
    )
    rates: Annotated[Numbers, Group.SETS, COMMON] = Field(
        (), description="The learning rates of each recipe (default: tune's own for the model, and half and twice it)."
    )
    seeds: Annotated[int, Group.SETS, COMMON] = Field(3, ge=1, description="How often to repeat everything.")
    facts: Annotated[int, Group.SETS, COMMON] = Field(80, ge=8, description="Teach at most this many Unknown rows.")
    held_out: Annotated[int, Group.SETS] = Field(
        200, ge=20, description="Watch at most this many HighlyKnown rows, and as many of --ood relations."
    )
    epochs: Annotated[int, Group.TRAINING, COMMON] = Field(
        60, ge=2, description="Train at most this many epochs; a run ends when it has learnt 99% of the new facts."
    )
    known_late_epochs: Annotated[int, Group.TRAINING] = Field(
        20, ge=5, description="How many epochs the recipe known-late trains; it always trains all of them."
    )
    kl: Annotated[float, Group.TRAINING] = Field(
        10.0, gt=0, description="The weight of the divergence in recipes with kl."
    )
    workers: Annotated[int, Group.SPEED] = Field(
        1, ge=1, description="How many trainings run at once; they share the cores."
    )
    ray: Annotated[bool, Group.RAY] = Field(False, description=RAY)
    ray_address: Annotated[str | None, Group.RAY] = Field(None, description=RAY_ADDRESS)
    ray_workers: Annotated[int | None, Group.RAY] = Field(None, ge=1, description=RAY_WORKERS)
    dry_run: Annotated[bool, Group.OUTPUT, COMMON] = Field(False, description=DRY_RUN)

    @model_validator(mode="after")
    def _one_kind_of_workers(self) -> RemediesConfig:
        check_workers(self.workers, self.ray, self.ray_address)
        return self

    @field_validator("recipes")
    @classmethod
    def _known_recipes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == (ALL,):
            return tuple(RECIPES)
        for name in value:
            if name not in RECIPES:
                raise ValueError(f"found {name!r}, expected {ALL}, or some of {', '.join(RECIPES)}")
        if not value:
            raise ValueError(f"found none, expected some of {', '.join(RECIPES)}")
        return tuple(name for name in RECIPES if name in value)

    @field_validator("rates")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not rate > 0 for rate in value):
            raise ValueError(f"found {', '.join(map(str, value))}, expected numbers above 0")
        return tuple(sorted(set(value), reverse=True))

    @field_validator("audit")
    @classmethod
    def _audit_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return stage_settings(AuditConfig, value, _OWN_AUDIT, {"data": "data"})

    @field_validator("tune")
    @classmethod
    def _tune_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return stage_settings(TuneConfig, value, _OWN_TUNE, {"train": "train", "dev": "dev"})
