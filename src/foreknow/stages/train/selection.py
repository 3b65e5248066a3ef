"""Chooses the epoch to keep (EARLY_STOP; paper, section 3) and says what decided. Pure.

A metric that is a share of rows (dev EM) decides if the rows can tell two epochs apart. With `--metric auto` they can
if McNemar's exact test over the same rows gives p below `stats.CHANCE` (`Line["paired"]` has the counts). A metric that
the user names always decides by its value. If the rows cannot tell the epochs apart, or the values are equal, the epoch
with the lower dev loss is kept. Without a loss, or with equal losses, the higher value of the metric decides, and of
equal values the earlier epoch is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from foreknow.stages.train.curves import Line, epochs, flat
from foreknow.stats import CHANCE, mcnemar

LEAST_GAIN: Final = 1e-4
"""A loss counts as lower than another only if it is lower by at least this much, in nats a token."""
AUTO: Final = "auto"
LOSS: Final = "dev_loss"

Chooser = Literal["metric", "loss", "tie", "chance", "nothing"]
"""What decided which epoch is kept. metric: the metric. loss: the dev loss, which is the metric. tie: the dev loss,
because the metric is the same at every epoch. chance: the dev loss, because the rows cannot tell epochs apart. nothing:
neither, because there is a tie and no loss."""


def best(lines: Sequence[Line], metric: str) -> Line | None:
    """Return the epoch to keep, or None if no epoch has ended.

    Compares each epoch with the one kept until then, by the rule at the top of this file.
    """
    leader: Line | None = None
    for line in epochs(lines):
        if leader is None or is_better(line, leader, metric):
            leader = line
    return leader


def is_better(line: Line, leader: Line, metric: str) -> bool:
    """Return whether a later epoch (`line`) is to be kept instead of the one kept so far (`leader`)."""
    if is_loss(metric):
        return flat(line)[metric] < flat(leader)[metric] - LEAST_GAIN
    new, old = flat(line)[metric], flat(leader)[metric]
    if new != old and _can_tell(line, leader):
        return new > old
    losses = flat(line).get(LOSS), flat(leader).get(LOSS)
    if losses[0] is None or losses[1] is None or abs(losses[0] - losses[1]) < LEAST_GAIN:
        return new > old
    return losses[0] < losses[1]


def is_loss(metric: str) -> bool:
    """Return whether a metric is better when it is smaller."""
    return metric.endswith("_loss")


def chooser(lines: Sequence[Line], metric: str) -> Chooser:
    """Return what decided for the epoch that `best` returns."""
    ends, leader = epochs(lines), best(lines, metric)
    if is_loss(metric) or leader is None:
        return "loss"
    value = flat(leader)[metric]
    others = [line for line in ends if line is not leader]
    if others and all(flat(line)[metric] == value for line in others):
        return "tie" if LOSS in flat(leader) else "nothing"
    told_apart = all(_differ(line) for line in [leader, *others] if _compares(line, leader))
    return "metric" if told_apart and all(flat(line)[metric] < value for line in others) else "chance"


def mark_of(lines: Sequence[Line], metric: str) -> str:
    """Return a mark for the last of `lines` if it is the epoch to keep so far.

    Returns "" if it is not, if it is the only epoch, or if nothing decided.
    """
    kind = chooser(lines, metric)
    if best(lines, metric) is not lines[-1] or len(epochs(lines)) == 1 or kind == "nothing":
        return ""
    return "best" if kind == "metric" else "lowest loss"


def out_of_patience(lines: Sequence[Line], metric: str, patience: int) -> bool:
    """Return whether none of the last `patience` epochs is to be kept; False if `patience` is 0."""
    leader = best(lines, metric)
    return patience > 0 and leader is not None and epochs(lines)[-1]["epoch"] - leader["epoch"] >= patience


def format_choice(lines: Sequence[Line], metric: str) -> str:
    """Write a sentence on what decided which epoch is kept."""
    leader = best(lines, metric)
    assert leader is not None
    values, name = flat(leader), metric.replace("_", " ").replace(" em", " EM")
    loss = f"dev loss {values[LOSS]:.3f}" if LOSS in values else ""
    kind = chooser(lines, metric)
    if len(epochs(lines)) == 1:
        return "it is the only epoch"
    if kind == "loss":
        return f"it has the lowest {name}, {values[metric]:.3f}"
    if kind == "tie":
        return f"{name} is {values[metric]:.1%} at every epoch and chooses none; this one has the lowest {loss}"
    if kind == "nothing":
        return f"{name} is {values[metric]:.1%} at every epoch and chooses none; the earliest is kept"
    if kind == "chance":
        return f"{name} is {values[metric]:.1%}, which its rows cannot tell from other epochs; {loss} chose it"
    return f"it has the best {name}, {values[metric]:.1%}"


def _can_tell(line: Line, leader: Line) -> bool:
    paired = line.get("paired")
    return not paired or paired["step"] != leader["step"] or _differ(line)


def _compares(line: Line, leader: Line) -> bool:
    """Return whether a line has counts that compare `leader` with another epoch: its own, or a later line's."""
    paired = line.get("paired")
    return paired is not None and (line is leader or paired["step"] == leader["step"])


def _differ(line: Line) -> bool:
    """Return whether the rows tell a line's epoch from the one that it is compared with."""
    return mcnemar(line["paired"]["won"], line["paired"]["lost"]) < CHANCE
