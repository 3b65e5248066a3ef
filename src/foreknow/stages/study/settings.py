"""Define the settings of `foreknow study`, and its presets: settings files that the package contains.

The defaults are the paper's numbers (section 3): seven shares of Unknown rows, D_Known of each, one set per category,
the natural mix, Unknown rows relabelled, and an evaluation after 20 epochs besides the best and the last one.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from foreknow.categories import CATEGORIES
from foreknow.config import AuditConfig, TuneConfig
from foreknow.config.shared import (
    BASE,
    DRY_RUN,
    MODEL,
    OUT,
    RAY,
    RAY_ADDRESS,
    RAY_SETTINGS,
    RAY_WORKERS,
    check_workers,
    stage_settings,
)
from foreknow.errors import ConfigError
from foreknow.io.remote import download
from foreknow.io.yaml_text import read_keys
from foreknow.settings import COMMON, FILE_ONLY, Group, Settings, settings_of

SETS: Final = ("train", "dev", "test", "ood")
"""The sets that a study reads rows for. `ood` has relations that no training set has (paper, section 2)."""
_OWN_AUDIT: Final = frozenset(
    {"data", "out", "model", "base", "limit", "minutes", "max_unknown", "dry_run", "seed", *RAY_SETTINGS}
)
_OWN_TUNE: Final = frozenset(
    {"train", "dev", "test", "out", "model", "base", "audit", "seed", "dry_run", "force", "patience", "watch_rows"}
)
"""Settings of the stages that the study itself sets. Runs are compared row by row, so each measures all rows."""


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


Nested = Annotated[dict[str, Any], BeforeValidator(_none_is_empty)]


def _some_categories(value: Any) -> Any:
    if isinstance(value, bool):
        return CATEGORIES if value else ()
    return () if value in ("none", ["none"], ("none",)) else value


Categories = Annotated[tuple[str, ...], BeforeValidator(_some_categories)]


def _some_shares(value: Any) -> Any:
    """Read shares as a user writes them: 0.5, 50%, a list of these, with commas between them, or none."""
    if value is None or value in ("none", ["none"], ("none",)):
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    shares: list[float] = []
    for one in [part for text in values for part in (text.split(",") if isinstance(text, str) else [text])]:
        text = str(one).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if isinstance(one, bool) or not 0 <= share <= 1:
            raise ValueError(f"found {one!r}, expected shares from 0 to 1, such as 0.5, or none")
        shares.append(share)
    return tuple(sorted(set(shares)))


Shares = Annotated[tuple[float, ...], BeforeValidator(_some_shares)]


class StudyConfig(Settings):
    """Settings of `foreknow study`."""

    data: Annotated[str, Group.DATA, COMMON] = Field(
        description="The rows, as for foreknow audit; a hash splits them if they have no splits train, dev and test."
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
    ood: Annotated[tuple[str, ...], Group.DATA, COMMON] = Field(
        (), description="Hold these relations out of training; rows of a split ood or test_ood are held out too."
    )
    rows: Annotated[dict[str, int], Group.DATA, FILE_ONLY] = Field(
        {}, description="Use at most this many rows of train, dev, test and ood; only a settings file can give them."
    )
    above_floor: Annotated[float | None, Group.DATA] = Field(
        None,
        ge=-1,
        le=1,
        description="Leave out a relation unless greedy answers are right on a share of its rows that is at least this "
        "much above the share that its most frequent answer gets right.",
    )
    unknown: Annotated[Shares, Group.SETS, COMMON] = Field(
        (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0), description="Train a set with each of these shares of Unknown rows."
    )
    known: Annotated[bool, Group.SETS, COMMON] = Field(
        True, description="Also train D_Known of each share: no Unknown rows."
    )
    only: Annotated[Categories, Group.SETS, COMMON] = Field(
        CATEGORIES, description="Also train a set of each of these categories alone, or none."
    )
    natural: Annotated[bool, Group.SETS, COMMON] = Field(
        True, description="Also train a set with the shares that the audit found."
    )
    idk: Annotated[Shares, Group.SETS, COMMON] = Field(
        (0.5,), description="Also train sets of these shares whose Unknown rows answer with a refusal, or none."
    )
    idk_answer: Annotated[str, Group.SETS] = Field("I don't know.", description="The refusal that --idk sets use.")
    size: Annotated[int | None, Group.SETS, COMMON] = Field(
        None, ge=1, description="How many rows each set has (default: as many as all sets can have)."
    )
    spans: Annotated[bool, Group.SETS, FILE_ONLY] = Field(
        False,
        description="Study the spans inside long answers: --unknown are shares of new spans, and --known, --only, "
        "--natural, --idk and --p-true do not apply; only a settings file can give it.",
    )
    remedies: Annotated[tuple[Literal["mask", "cut", "drop"], ...], Group.SETS, FILE_ONLY] = Field(
        (),
        description="With spans: also train each set with its new spans masked, their sentences cut, or their rows "
        "dropped; only a settings file can give it.",
    )
    seeds: Annotated[int, Group.SETS, COMMON] = Field(
        1, ge=1, description="How often to repeat everything; each seed draws other rows and trains in another order."
    )
    until: Annotated[Literal["decided"] | None, Group.SETS] = Field(
        None,
        description="Add seeds until every claim that the sets can test is decided, or --most-seeds are reached; looks "
        "after every seed from the third on, at stricter levels than 95 %, so that the error stays 5 %.",
    )
    most_seeds: Annotated[int, Group.SETS] = Field(
        10, ge=3, description="How many seeds --until decided adds at most; fixed by the first look."
    )
    fixed_epochs: Annotated[tuple[int, ...], Group.TRAINING] = Field(
        (20,), description="Report the models after these epochs, besides the best and the last one."
    )
    margin: Annotated[float, Group.PROTOCOL] = Field(
        0.02, gt=0, lt=1, description="The claims call a loss of exact match up to this size no harm."
    )
    p_true: Annotated[bool, Group.PROTOCOL] = Field(True, description="Also score every audited row by P(True).")
    workers: Annotated[int, Group.SPEED] = Field(
        1, ge=1, description="How many trainings run at once; they share the cores."
    )
    ray: Annotated[bool, Group.RAY] = Field(False, description=RAY)
    ray_address: Annotated[str | None, Group.RAY] = Field(None, description=RAY_ADDRESS)
    ray_workers: Annotated[int | None, Group.RAY] = Field(None, ge=1, description=RAY_WORKERS)
    keep_weights: Annotated[bool, Group.OUTPUT] = Field(
        False, description="Keep the weights of every training; the study deletes them once it has measured them."
    )
    dry_run: Annotated[bool, Group.OUTPUT, COMMON] = Field(False, description=DRY_RUN)
    pilot: Annotated[Path | None, Group.OUTPUT] = Field(
        None,
        description="The study whose errors --dry-run supposes, to say what this one could decide (default: --out).",
    )

    @field_validator("only")
    @classmethod
    def _known_categories(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in CATEGORIES:
                raise ValueError(f"found {name!r}, expected {', '.join(CATEGORIES)}, or none")
        return tuple(name for name in CATEGORIES if name in value)

    @field_validator("rows")
    @classmethod
    def _known_sets(cls, value: dict[str, int]) -> dict[str, int]:
        for name, count in value.items():
            if name not in SETS or count < 1:
                raise ValueError(f"found {name}: {count}, expected a number from 1 on for {', '.join(SETS)}")
        return value

    @field_validator("audit")
    @classmethod
    def _audit_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return stage_settings(AuditConfig, value, _OWN_AUDIT, {"data": "data"})

    @field_validator("tune")
    @classmethod
    def _tune_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return stage_settings(TuneConfig, value, _OWN_TUNE, {"train": "train", "dev": "dev"})

    @model_validator(mode="after")
    def _one_kind_of_workers(self) -> StudyConfig:
        check_workers(self.workers, self.ray, self.ray_address)
        return self

    @model_validator(mode="after")
    def _spans_or_rows(self) -> StudyConfig:
        """Raise ConfigError for settings of rows in a study of spans, or the reverse."""
        if self.remedies and not self.spans:
            raise ConfigError("remedies: found without spans: true, which they belong to")
        settings = {"known": self.known, "only": self.only, "natural": self.natural, "idk": self.idk}
        settings |= {"p_true": self.p_true, "ood": self.ood, "above_floor": self.above_floor is not None}
        settings |= {"until": self.until is not None, "pilot": self.pilot is not None}
        if self.spans and (other := next((name for name, is_set in settings.items() if is_set), None)):
            raise ConfigError(f"{other}: found with spans: true; it is for rows with a category of their own")
        return self

    @property
    def long_tune_settings(self) -> dict[str, Any]:
        """Return the settings for foreknow tune in a study of spans: EARLY_STOP by dev loss, as EM of a long answer is
        nearly always 0."""
        return {**self.tune_settings, "metric": "dev_loss", **self.tune}

    @property
    def tune_settings(self) -> dict[str, Any]:
        """Return the settings for foreknow tune; by default, the paper's training and its EARLY_STOP by dev EM.

        Weights are kept at both of the paper's points; a study without `keep_weights` deletes them after each run. No
        claim is about made-up subjects, so they are not asked.
        """
        defaults = {"preset": "paper", "metric": "dev_em", "keep": "both", "watch_rows": "all", "canaries": "none"}
        return {**defaults, "made_up_subjects": 0, **self.tune}

    @property
    def family(self) -> tuple[Literal["shares", "categories"], tuple[str, ...]]:
        """Return what limits |D| (paper, section 3): with sets of one category, the rarest of these and of Unknown."""
        if not self.only:
            return "shares", CATEGORIES
        return "categories", tuple(name for name in CATEGORIES if name in (*self.only, CATEGORIES[-1]))


def preset_names() -> list[str]:
    """Return the names of the presets in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("foreknow.presets").iterdir() if p.name.endswith(".yaml"))


def study_settings(which: str, given: dict[str, Any]) -> StudyConfig:
    """Return the settings of a preset or file, overridden by those given. Raises ConfigError.

    A prompt template's path is resolved against the settings file's folder if the file exists there.
    """
    file = settings_file(which)
    tune = {**read_keys(file, "--config"), **given}.get("tune")
    if isinstance(tune, dict) and isinstance(template := tune.get("prompt_template"), str):
        beside = file.parent / template
        if beside.is_file():
            given = {**given, "tune": {**tune, "prompt_template": str(beside)}}
    return settings_of(StudyConfig, given, file)


def settings_file(name: str) -> Path:
    """Return the settings file that a preset's name or a path means. Raises ConfigError where there is none."""
    if name in preset_names():
        return Path(str(files("foreknow.presets").joinpath(f"{name}.yaml")))
    path = download(name)
    if not path.is_file():
        raise ConfigError(f"{name}: found no such file, expected one of {', '.join(preset_names())} or a YAML file")
    return path
