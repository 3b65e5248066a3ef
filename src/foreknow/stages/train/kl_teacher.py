"""Chooses behind which prompts the model before training gives the predictions to which `--kl` holds it.

A model that already answers in the form in which the run trains is asked in that form. A base model is not: SmolLM2
answers hardly anything without exemplars, and a run that held it to that learnt neither the form nor the new facts, and
lost more known ones than plain training. Such a model is asked behind exemplars, other rows of the same relation, and
the trained model, which has none, is held to what it said there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import polars as pl

from foreknow.stages.train.canary_check import SHOTS, CanaryCheck
from foreknow.stats import CHANCE, mcnemar

if TYPE_CHECKING:
    from foreknow.stages.train.training_examples import TrainingExample

ASKED: Final = 256
"""How many rows are asked in both forms, to choose one: of rows of every category the model knows few."""


def exemplars_for_teacher(
    setting: str,
    rows: pl.DataFrame,
    check: Callable[[pl.DataFrame, int], CanaryCheck],
    right: Callable[[CanaryCheck], set[int]],
) -> tuple[int, str]:
    """Return behind how many exemplars the teacher is asked, and a line that says why, if it was measured.

    `setting`: `--kl-exemplars`. `check`: prepares rows to be asked behind so many exemplars. `right`: asks them, and
    returns the rows whose answers begin rightly. Exemplars are taken if more rows are answered behind them, and chance
    alone seldom gives so many (McNemar).
    """
    if setting != "auto":
        return (SHOTS if setting == "yes" else 0), ""
    some = rows.head(ASKED)
    alone, behind = (right(check(some, shots)) for shots in (0, SHOTS))
    more, fewer = len(behind - alone), len(alone - behind)
    shots = SHOTS if more > fewer and mcnemar(more, fewer) < CHANCE else 0
    form = f"behind {shots} examples" if shots else "in the form in which the run trains"
    return shots, (
        f"kl: the model before training is asked {form}: it answers {len(behind)} of {some.height} rows behind "
        f"{SHOTS} examples, and {len(alone)} without"
    )


def paired_rows(
    alone: dict[int, TrainingExample], behind: dict[int, TrainingExample]
) -> tuple[list[TrainingExample], list[tuple[int, ...]]]:
    """Return the rows that have the same answer tokens in both forms, and their prompts with exemplars."""
    same = [row for row, example in alone.items() if row in behind and behind[row].answer == example.answer]
    return [alone[row] for row in same], [behind[row].prompt for row in same]
