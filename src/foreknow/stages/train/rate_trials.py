"""Tries three learning rates for a tenth of the steps each and chooses one (`--learning-rate auto`).

The rates are tune's own for the rows and the model (`defaults.py`), three times that, and a third of it. Each trial
starts from the weights before training, with the seed, rows and loss of the run itself, and ends with one measurement.
The rule, in this order:

1. A rate whose loss was not finite is out.
2. Those stay that lose no canaries against the rate that keeps the most, as far as the canaries can tell (McNemar's
   exact test, p < 0.05). Without canaries all stay.
3. Of these, the one with the lowest dev loss is chosen; of equal ones, the smallest.

A tenth of the steps shows whether a rate is far too large or far too small, not which of two near ones is better.

DIR/.rates/RATE.json has a finished trial, so that a run that was killed does it not again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from foreknow.distributed import process_group
from foreknow.errors import ForeknowError, NotFinite
from foreknow.io.run_dir import read_checked, with_checksum, write_json
from foreknow.stages.train.trainer import QuietTrainer
from foreknow.stats import loses

if TYPE_CHECKING:
    from foreknow.config import TuneConfig

logger = logging.getLogger(__name__)

FOLDER: Final = ".rates"
FACTORS: Final = (1 / 3, 1.0, 3.0)
SHARE: Final = 0.1
"""The share of the run's steps that each trial takes."""


class Trial(NamedTuple):
    """What a rate came to. `dev_loss`: nats a token; None if its loss was not finite. `fitted`, `dev_em`: shares.

    `canaries`: whether each canary is right at the end, in a fixed order; empty without canaries.
    """

    rate: float
    steps: int
    dev_loss: float | None
    dev_em: float
    fitted: float
    canaries: tuple[bool, ...]


def rates_around(rate: float) -> tuple[float, ...]:
    """Return the rates to try, the smallest first."""
    return tuple(float(f"{factor * rate:.2g}") for factor in FACTORS)


def trial_steps(steps: int) -> int:
    """Return how many of a run's `steps` each trial takes; at least 1."""
    return max(1, math.ceil(SHARE * steps))


def format_cost(rate: float, steps: int) -> str:
    """Write what the trials cost, before they begin. `rate`: the middle one. `steps`: those of the whole run."""
    rates = ", ".join(f"{one:g}" for one in rates_around(rate))
    own = trial_steps(steps)
    share = len(FACTORS) * own / max(steps, 1)
    return (
        f"--learning-rate auto: {rates} are tried for {own:,} steps each, which adds {share:.0%} to "
        f"the {steps:,} steps of the run, if it does not stop early"
    )


def choose(trials: Sequence[Trial]) -> tuple[Trial, str]:
    """Return the trial to take, by the rule at the top of this file, and a sentence that says why.

    Raises NotFinite if no trial ended with a finite loss.
    """
    ended = [trial for trial in trials if trial.dev_loss is not None]
    if not ended:
        raise NotFinite("--learning-rate auto: the loss of every rate tried was not finite; give a smaller one")
    most = max(ended, key=lambda trial: (sum(trial.canaries), -trial.rate))
    equal = [trial for trial in ended if not loses(most.canaries, trial.canaries)]
    best = min(equal, key=lambda trial: (trial.dev_loss or 0.0, trial.rate))
    out = [f"{trial.rate:g}" for trial in ended if trial not in equal]
    why = f"the lowest dev loss, {best.dev_loss:.3f}"
    if out:
        why += f", of those that lose no more canaries than {most.rate:g} ({', '.join(out)}: more lost)"
    return best, why


def run_trials(
    config: TuneConfig,
    rate: float,
    steps: int,
    model: Any,
    folder: Path,
    open_trainer: Callable[[TuneConfig, int], QuietTrainer],
    measure: Callable[[], Mapping[str, Any]],
) -> tuple[float, dict[str, Any]]:
    """Do the trials that are missing and return the rate chosen, and what `results.json` says of them.

    `rate`: the middle one. `steps`: those of the whole run. `model`: its weights are as before training, and are so
    again at the end. `folder`: the run's. `open_trainer`: makes a trainer for settings and a number of steps.
    `measure`: measures the model at the end of a trial (a line of `metrics.jsonl`, and `canaries_right`).
    """
    own = trial_steps(steps)
    before = {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}
    trials = []
    for one in rates_around(rate):
        path = folder / FOLDER / f"{one:g}.json"
        stored = process_group.from_main(partial(read_checked, path))
        if stored is None:
            found = _trial(config.model_copy(update={"learning_rate": one}), one, own, open_trainer, measure)
            _restore(model, before)
            if process_group.is_main_process():
                path.parent.mkdir(exist_ok=True)
                write_json(path, with_checksum(found._asdict()))
        else:
            found = Trial(**{name: stored[name] for name in Trial._fields})._replace(canaries=tuple(stored["canaries"]))
        trials.append(found)
        logger.info(_format(found))
    best, why = choose(trials)
    logger.info(f"learning rate {best.rate:g}: {why}")
    set_seed(config.seed)
    kept = [{**trial._asdict(), "canaries": sum(trial.canaries) if trial.canaries else None} for trial in trials]
    return best.rate, {"chosen": best.rate, "reason": why, "trials": kept}


def _trial(
    config: TuneConfig,
    rate: float,
    steps: int,
    open_trainer: Callable[[TuneConfig, int], QuietTrainer],
    measure: Callable[[], Mapping[str, Any]],
) -> Trial:
    set_seed(config.seed)
    trainer = open_trainer(config, steps)
    try:
        trainer.train()
        line = measure()
    except NotFinite:
        return Trial(rate, trainer.state.global_step, None, 0.0, 0.0, ())
    right = tuple(bool(value) for value in line["canaries_right"])
    loss = float(line["loss"]["dev"])
    return Trial(rate, steps, loss if math.isfinite(loss) else None, line["em"]["dev"], line["fitted_overall"], right)


@torch.no_grad()
def _restore(model: Any, before: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    if missing := [name for name in before if name not in parameters]:
        raise ForeknowError(f"--learning-rate auto: the model lost its weight {missing[0]}")
    for name, value in before.items():
        parameters[name].copy_(value)
        parameters[name].grad = None


def _format(trial: Trial) -> str:
    if trial.dev_loss is None:
        return f"learning rate {trial.rate:g}: the loss is not finite after {trial.steps:,} steps"
    kept = f", canaries {sum(trial.canaries):,} of {len(trial.canaries):,} right" if trial.canaries else ""
    return (
        f"learning rate {trial.rate:g}: after {trial.steps:,} steps dev loss {trial.dev_loss:.3f}, dev EM "
        f"{trial.dev_em:.1%}, {trial.fitted:.0%} of train fitted{kept}"
    )
