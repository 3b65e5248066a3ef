"""Recommends a recipe from a study of remedies, or says that its runs cannot tell. Pure.

Recipes are compared where each has learnt the same share of the new facts. The one that keeps the most known rows is
compared with every other, on the same rows and seeds. Those that it keeps more than, by an interval of 95 % over all
comparisons together (Bonferroni), are worse; the others cannot be told from it. If plain training is among these, no
recipe is recommended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreknow.stages.remedies.matching import LEVEL, Estimate, Matched, difference


@dataclass(frozen=True)
class Recommendation:
    """What a study recommends.

    `recipe`: the recipe to take; None if the runs cannot tell any from plain training, or none reached the share.
    `best`: the one that keeps the most. `alike`: those that cannot be told from it. `worse`: by recipe, how much more
    the best keeps, with its interval. `reason`: one sentence where `recipe` is None.
    """

    target: float
    recipe: Matched | None
    best: Matched | None
    alike: tuple[str, ...]
    worse: Mapping[str, Estimate]
    reason: str = ""


def recommend(matched: Sequence[Matched], target: float) -> Recommendation:
    """Recommend one of the recipes that reached the share `target`. `matched`: each recipe there."""
    whole = [one for one in matched if one.seeds == one.of_seeds]
    if not whole:
        reason = f"No recipe learnt {target:.0%} of the new facts with every seed: train longer, or at a higher rate."
        return Recommendation(target, None, None, (), {}, reason)
    best = max(whole, key=lambda one: one.kept.value)
    others = [one for one in whole if one is not best]
    level = 1 - (1 - LEVEL) / max(len(others), 1)
    alike, worse = [], {}
    for one in others:
        apart = difference(best, one, level)
        if apart is not None and apart.low is not None and apart.low > 0:
            worse[one.recipe] = apart
        else:
            alike.append(one.recipe)
    if best.recipe == "plain" or "plain" in alike:
        reason = "These runs cannot tell any recipe from plain training."
        return Recommendation(target, None, best, tuple(alike), worse, reason)
    if not others:
        return Recommendation(target, None, best, (), {}, "Only one recipe learnt enough to be compared.")
    return Recommendation(target, best, best, tuple(alike), worse)
