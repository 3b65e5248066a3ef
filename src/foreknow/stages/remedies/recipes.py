"""Lists the runs of a study of remedies: recipes, learning rates and seeds, and the settings of each. Pure.

Two recipes may be views of one run: `average` is read from the points between the weights before and after a plain run
(`weight_average.py`), so that it costs no training of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from foreknow.config import RemediesConfig
from foreknow.config.remedies import RECIPES

View = Literal["epochs", "average"]
ALPHAS: Final = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""The points between the weights before and after training that are measured."""
SMALLER: Final = 0.2
"""The factor by which the rates of the recipe small-rate are smaller."""
LONGER: Final = 3
"""The factor by which it trains more epochs."""
ADAPTER_FACTOR: Final = 10
"""The factor by which the rates for LoRA adapters are larger, as in tune's own choice (`train/defaults.py`)."""
LATE: Final = 0.2
"""The last share of the steps in which known-late trains on known rows (KnownPatch, arXiv 2511.02626)."""
SHARE: Final = 0.5
"""The share of known rows in a batch of recipes with replay."""
AVERAGED: Final = frozenset(name.removesuffix("+average") for name in RECIPES if name.endswith("+average")) | {"plain"}
"""The trainings whose points between the weights are measured, whether or not these are asked for now."""
MADE_UP: Final = 24
"""How many questions on made-up subjects a run asks: few enough to ask them after every epoch."""
RECIPE_FILE: Final = "recipe.yaml"
"""The file, in the study's folder, of the settings for tune that train by the recommended recipe."""
LEARNT: Final = 0.99
"""A run ends when it has learnt this share of the new facts."""


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    `training`: the name of its trainings, which it may share with another recipe. `view`: whether its curve goes over
    epochs or over the points between the weights before and after. `flags`: how tune is told to train so.
    """

    name: str
    training: str
    view: View
    flags: str


class Training(NamedTuple):
    """One training: the name its recipes share, the study's learning rate (`learning_rate` is the run's), the seed."""

    training: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return f"{self.training}-rate{self.rate:g}-seed{self.seed}"

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the run."""
        factor = {"small-rate": SMALLER, "lora": ADAPTER_FACTOR}.get(self.training, 1.0)
        return float(f"{self.rate * factor:.6g}")


def recipe(name: str, kl: float = 10.0) -> Recipe:
    """Return the recipe of this name (`config.remedies.RECIPES`)."""
    if name == "average" or name.endswith("+average"):
        training = "plain" if name == "average" else name.removesuffix("+average")
        return Recipe(name, training, "average", f"{_flags(training, kl)} --average 0.7,0.8,0.9,1".strip())
    return Recipe(name, name, "epochs", _flags(name, kl))


def _flags(training: str, kl: float) -> str:
    return {
        "plain": "",
        "small-rate": "--learning-rate RATE",
        "replay": f"--replay {SHARE:g}",
        "known-late": f"--known-late {LATE:g}",
        "kl": f"--kl {kl:g} --kl-rows known",
        "kl-all": f"--kl {kl:g}",
        "kl-known-epoch": f"--kl {kl:g} --kl-teacher known-epoch",
        "replay+kl": f"--replay {SHARE:g} --kl {kl:g}",
        "flow": "--loss-weights flow",
        "attention": "--trainable attention",
        "lora": "--method lora",
    }[training]


def recipes(config: RemediesConfig) -> list[Recipe]:
    """Return the recipes to compare, in a fixed order."""
    return [recipe(name, config.kl) for name in config.recipes]


def trainings(config: RemediesConfig, rates: Sequence[float]) -> list[Training]:
    """Return every training: all of the first seed before those of the second, each rate after the other."""
    names = list(dict.fromkeys(one.training for one in recipes(config)))
    return [Training(name, rate, seed) for seed in range(config.seeds) for rate in rates for name in names]


def tune_settings(training: Training, config: RemediesConfig) -> dict[str, Any]:
    """Return the settings for tune that make the recipe; the files are not among them."""
    own: dict[str, dict[str, Any]] = {
        "plain": {},
        "small-rate": {"epochs": LONGER * config.epochs},
        "replay": {"replay": SHARE},
        "known-late": {"known_late": LATE, "epochs": config.known_late_epochs, "stop_fitted": None, "patience": 0},
        "kl": {"kl": config.kl},
        "kl-all": {"kl": config.kl},
        "kl-known-epoch": {"kl": config.kl, "kl_teacher": "known-epoch"},
        "replay+kl": {"replay": SHARE, "kl": config.kl},
        "flow": {"loss_weights": "flow"},
        "attention": {"trainable": "attention"},
        "lora": {"method": "lora"},
    }
    return {
        "made_up_subjects": MADE_UP,
        **config.tune,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "epochs": config.epochs,
        "patience": 15,
        "metric": "train_fitted",
        "stop_fitted": LEARNT,
        "watch_rows": "all",
        "keep": "last",
        "average": ALPHAS if training.training in AVERAGED else (),
        **own[training.training],
    }


_OWN_TO_A_STUDY: Final = ("seed", "made_up_subjects", "watch_rows", "canaries", "device")


def advised_settings(name: str, rate: float, config: RemediesConfig) -> dict[str, Any]:
    """Return the settings for tune that train by the recipe `name` as the study did, on files of the user's own.

    `rate`: the study's learning rate. Only what the study sets for its measurements is left out.
    """
    one = recipe(name)
    settings = tune_settings(Training(one.training, rate, 0), config)
    settings["average"] = list(ALPHAS) if one.view == "average" else []
    if one.training == "kl":
        settings["kl_rows"] = "known"
    return {key: value for key, value in settings.items() if key not in _OWN_TO_A_STUDY and value is not None}
