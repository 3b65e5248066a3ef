"""The settings of `foreknow mix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from foreknow.categories import CATEGORIES
from foreknow.config.shared import BadRows, OneLine, column_pairs
from foreknow.errors import ConfigError
from foreknow.settings import COMMON, Group, Settings

WEIGHTS = {
    "half-unknown": {"Unknown": 0.5},
    "fading": {"WeaklyKnown": 0.5, "Unknown": 0.25},
}
"""Named weights: ours, for a start; a category that is not named weighs 1."""


def _category(text: str) -> str:
    """A category by its name in any case, `Known` left off or not: `weakly`, `WEAKLYKNOWN`, `WeaklyKnown`."""
    names = {name.removesuffix("Known").casefold(): name for name in CATEGORIES}
    names |= {name.casefold(): name for name in CATEGORIES}
    if (bare := text.strip().casefold()) in names:
        return names[bare]
    raise ValueError(f"found {text!r}, expected {', '.join(CATEGORIES[:3])} or {CATEGORIES[3]}")


class MixConfig(Settings):
    """Settings of `foreknow mix`. One of unknown, only, natural, known_of, drop, new_share, drop_new_above and
    drop_facts_above says which rows are drawn.

    With `idk`, `weight`, `mask` or `cut` and none of the eight, the audit's rows are taken as they are (natural).
    """

    writes_a_file: ClassVar[bool] = True

    audit: Annotated[Path, Group.DATA, COMMON] = Field(description="The folder of a finished audit.")
    out: Annotated[Path, Group.OUTPUT, COMMON] = Field(
        description="The file to write, in the audited file's layout; FILE.manifest.json is written beside it."
    )
    unknown: Annotated[float | None, Group.SETS, COMMON] = Field(
        None, ge=0, le=1, description="Draw this share of Unknown rows (0 to 1) in every relation."
    )
    only: Annotated[str | None, Group.SETS, COMMON] = Field(
        None, description="Draw rows of one category only: HighlyKnown, MaybeKnown, WeaklyKnown or Unknown."
    )
    natural: Annotated[bool, Group.SETS, COMMON] = Field(
        False, description="Draw every relation's categories in the shares that the audit found."
    )
    known_of: Annotated[Path | None, Group.SETS, COMMON] = Field(
        None, description="Take the rows of this file, which mix wrote before, without its Unknown ones."
    )
    drop: Annotated[tuple[str, ...], Group.SETS, COMMON] = Field(
        (), description="Take all rows but those of these categories, such as unknown,weakly."
    )
    new_share: Annotated[float | None, Group.SETS] = Field(
        None,
        ge=0,
        le=1,
        description="Draw rows with long answers so that this share (0 to 1) of all their labelled spans is new to the "
        "model.",
    )
    drop_new_above: Annotated[float | None, Group.SETS] = Field(
        None,
        ge=0,
        le=1,
        description="Take all rows but those with long answers in which a larger share of the labelled spans is new.",
    )
    drop_facts_above: Annotated[float | None, Group.SETS] = Field(
        None,
        ge=0,
        le=1,
        description="Take all rows but those with long answers in which a larger share of the facts that foreknow "
        "extract wrote is Unknown.",
    )
    mask: Annotated[Literal["new", "unknown"] | None, Group.SETS, COMMON] = Field(
        None,
        description="Keep long answers whole and take spans out of the loss: those that are new to the model, or all "
        "that are Unknown. Writes the column loss_exclude, and FILE.tokens.parquet for other trainers.",
    )
    cut: Annotated[Literal["new"] | None, Group.SETS, COMMON] = Field(
        None, description="Cut the sentences of long answers that have spans, all of which are new to the model."
    )
    model: Annotated[str | None, Group.MODEL] = Field(
        None, description="The model whose tokenizer writes FILE.tokens.parquet (default: the audit's)."
    )
    idk: Annotated[bool, Group.SETS, COMMON] = Field(
        False, description="Replace the answer of each Unknown row by a refusal, and keep its question."
    )
    idk_answer: Annotated[OneLine, Group.SETS] = Field("I don't know.", description="The refusal that --idk writes.")
    weight: Annotated[dict[str, float], Group.SETS, COMMON] = Field(
        {},
        description="Add a column that weights rows by category: HighlyKnown=0.5,Unknown=2 (others 1), half-unknown or "
        "fading.",
    )
    relations: Annotated[tuple[str, ...], Group.DATA, COMMON] = Field(
        (), description="Take only rows of these relations."
    )
    size: Annotated[int | None, Group.SETS, COMMON] = Field(
        None, ge=1, description="How many rows the set has (default: as many as possible)."
    )
    family: Annotated[Literal["own", "shares", "categories"] | None, Group.SETS] = Field(
        None,
        description="Which sets must reach the same size and mix of relations: only this one (own), all that differ in "
        "their Unknown share (shares), or all of one category each (categories), as a study's do. Default: own.",
    )
    family_of: Annotated[tuple[str, ...], Group.SETS] = Field(
        CATEGORIES, description="The categories that have a set of their own, with --family categories."
    )
    bad_rows: Annotated[BadRows, Group.DATA] = Field(
        "skip",
        description="What happens to rows that teach nothing (no answer, or the chat template refuses the row): skip "
        "never draws them but counts them, refuse makes them an error.",
    )
    seed: Annotated[int, Group.SETS] = Field(0, ge=0, description="The seed of every random draw.")
    force: Annotated[bool, Group.OUTPUT] = Field(
        False, description="Write over a file that mix wrote with other settings."
    )

    @property
    def kind(self) -> str:
        """Which rows are drawn: the name of one of eight settings."""
        return next(iter(self._kinds()), "natural")

    @property
    def uses_spans(self) -> bool:
        """Whether the set depends on labels of spans inside long answers."""
        return self.kind in ("new_share", "drop_new_above") or self.mask is not None or self.cut is not None

    @property
    def draws_long_answers(self) -> bool:
        """Whether rows with long answers are drawn, by the labels of spans or facts inside them."""
        return self.uses_spans or self.kind == "drop_facts_above"

    @property
    def limited_by(self) -> Literal["own", "shares", "categories"]:
        """The family whose limit holds."""
        return self.family or "own"

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that rows are drawn from."""
        if self.only is not None:
            return (self.only,)
        left_out = ("Unknown",) if self.kind == "known_of" else self.drop
        return tuple(name for name in CATEGORIES if name not in left_out)

    def _kinds(self) -> list[str]:
        given = {
            "unknown": self.unknown is not None,
            "only": self.only is not None,
            "natural": self.natural,
            "known_of": self.known_of is not None,
            "drop": bool(self.drop),
            "new_share": self.new_share is not None,
            "drop_new_above": self.drop_new_above is not None,
            "drop_facts_above": self.drop_facts_above is not None,
        }
        return [kind for kind, is_given in given.items() if is_given]

    @field_validator("only")
    @classmethod
    def _known_category(cls, value: str | None) -> str | None:
        return None if value is None else _category(value)

    @field_validator("drop", "family_of", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)):
            return value
        names = {_category(name) for text in texts for name in str(text).split(",") if name.strip()}
        return tuple(name for name in CATEGORIES if name in names)

    @field_validator("weight", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, (list, tuple)) and len(texts) == 1 and "=" not in str(texts[0]):
            if texts[0] not in WEIGHTS:
                raise ValueError(f"found {texts[0]!r}, expected CATEGORY=WEIGHT,... or one of {', '.join(WEIGHTS)}")
            return WEIGHTS[texts[0]]
        found = column_pairs(value)
        return {_category(str(name)): weight for name, weight in found.items()} if isinstance(found, dict) else found

    @field_validator("weight")
    @classmethod
    def _usable_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"found {name}={weight}, expected a number that is not negative")
        if len(value) == len(CATEGORIES) and not any(value.values()):
            raise ValueError("found 0 for every category, expected at least one weight above 0")
        return value

    @model_validator(mode="after")
    def _agree(self) -> MixConfig:
        """Settings that exclude each other. Raises ConfigError, which names both."""
        kinds = [f"--{kind.replace('_', '-')}" for kind in self._kinds()]
        if len(kinds) > 1:
            raise ConfigError(f"{kinds[0]} and {kinds[1]}: found both, expected one of them")
        if not kinds and not self.idk and not self.weight and not self.draws_long_answers:
            raise ConfigError(
                "which rows: found nothing, expected one of --unknown SHARE, --only CATEGORY, --natural, "
                "--known-of FILE, --drop CATEGORY; for long answers --new-share SHARE, --drop-new-above SHARE, "
                "--drop-facts-above SHARE, --mask new, --cut new"
            )
        self._check_spans(kinds)
        if not self.categories:
            raise ConfigError("--drop: found all four categories, expected at least one to be left")
        if self.kind == "known_of" and (self.size is not None or self.family is not None or self.relations):
            raise ConfigError(
                "--known-of: found --size, --family or --relations too; the set has all Known rows of its file"
            )
        if (self.kind, self.family) in (("only", "shares"), ("drop", "shares"), ("drop", "categories")):
            raise ConfigError(
                f"--{self.kind} with --family {self.family}: such a set cannot always be filled to that size; "
                f"expected --family own{' or categories' if self.kind == 'only' else ''}"
            )
        if self.idk and "Unknown" not in self.categories:
            raise ConfigError(f"--idk with {kinds[0]}: the set has no Unknown rows whose answer could become a refusal")
        if not self.idk and self.idk_answer != "I don't know.":
            raise ConfigError("--idk-answer: found without --idk, which it belongs to")
        return self

    def _check_spans(self, kinds: list[str]) -> None:
        """Raise ConfigError for settings that labels of spans do not go with."""
        if self.model is not None and self.mask is None:
            raise ConfigError("--model: found without --mask, whose tokens it writes")
        if not self.draws_long_answers:
            return
        if self.mask and self.cut:
            raise ConfigError("--mask and --cut: found both, expected one of them")
        ours = f"--mask {self.mask}" if self.mask else f"--cut {self.cut}" if self.cut else kinds[0]
        if self.kind in ("unknown", "only", "known_of"):
            raise ConfigError(
                f"{kinds[0]} with {ours}: draws rows by their own category, which rows with long answers do not have; "
                "expected --new-share, --drop-new-above, --drop-facts-above, --drop, or no other"
            )
        others = {"idk": self.idk, "weight": bool(self.weight), "family": self.family is not None}
        if other := next((name for name, is_set in others.items() if is_set), None):
            raise ConfigError(f"--{other} with {ours}: found both; --{other} is for rows with a category of their own")
