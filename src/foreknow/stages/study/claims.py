"""Test the paper's nine claims (section 5) on a study and return a scorecard. Pure. `contrasts.py` has the contrasts.

Each part of a claim gets a verdict from its 95 % interval:

directional   The part holds when the interval lies wholly on the claimed side of 0, and fails when wholly on the other.
no harm       The part holds when the interval lies wholly above -margin, which rules out a harm larger than the margin,
              and fails when the interval lies wholly below -margin. An improvement is no harm.

A claim of several parts holds when every part holds, and fails when any part fails. The scorecard gives the figures of
the part that lies least on its side, in standard errors. Where all parts lie on their sides, the claim's p is the
largest p of its parts; where that part does not, its p is multiplied by the number of parts. The note lists all parts.
Holm's correction covers the claims that are tested; verdicts do not use it.

The minimum detectable effect is the standard error times the sum of the 97.5 % and the 80 % quantile of Student's t
with the error's degrees of freedom (2.8 with many, 14 with one): a test at 5 % detects a true effect of that size about
four times in five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from foreknow.stages.study import contrasts
from foreknow.stages.study.contrasts import Contrast, ContrastPart, Evidence, StudyData
from foreknow.stages.study.linear_model import LinearModel
from foreknow.stages.study.paired import DRAWS, LEVEL

MARGIN: Final = 0.02
Verdict = Literal["holds", "fails", "not decided", "not tested"]

SCORECARD: Final[dict[str, pl.DataType]] = {
    "claim": pl.Int64(),
    "text": pl.String(),
    "contrast": pl.String(),
    "estimate": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "p": pl.Float64(),
    "p_holm": pl.Float64(),
    "margin": pl.Float64(),
    "verdict": pl.String(),
    "mde": pl.Float64(),
    "note": pl.String(),
}
"""One row per claim. Estimate, interval ends, margin and mde are shares. `margin` is null if the claim needs none."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. `contrast` describes it in words; `margin` is the harm, as a share, that counts as none."""

    number: int
    text: str
    contrast: str
    kind: Literal["directional", "no_harm"]
    margin: float = MARGIN


CLAIMS: Final = (
    Claim(
        1,
        "More Unknown rows in D, lower test EM.",
        "slope of test EM on the Unknown share at CONVERGENCE, below 0",
        "directional",
    ),
    Claim(
        2,
        "The damage needs long training.",
        "D - D_Known: no harm at EARLY_STOP, below 0 at CONVERGENCE",
        "no_harm",
    ),
    Claim(
        3,
        "Unknown rows are fitted much later than Known ones.",
        "fitted share of Known - Unknown train rows at EARLY_STOP, above 0",
        "directional",
    ),
    Claim(
        4,
        "Fitted Known rows help, fitted Unknown rows harm.",
        "linear model, test: b_kn above 0, b_unk below 0",
        "directional",
    ),
    Claim(
        5,
        "The same on unseen relations, smaller.",
        "linear model, OOD: b_kn above 0, b_unk below 0 and above b_unk of test",
        "directional",
    ),
    Claim(
        6,
        "MaybeKnown rows are the best single category; HighlyKnown alone is not enough.",
        "test EM at EARLY_STOP of only-MaybeKnown - each other category, above 0",
        "directional",
    ),
    Claim(
        7,
        "Unknown test facts stay wrong.",
        "EM on Unknown test rows at CONVERGENCE, below 3.2 % + margin",
        "no_harm",
    ),
    Claim(
        8,
        "Dropping Unknown rows removes the overfitting without loss.",
        "D_Known at CONVERGENCE: no harm against D at EARLY_STOP, above D at CONVERGENCE",
        "no_harm",
    ),
    Claim(
        9,
        'Relabelling Unknown rows as "I don\'t know" keeps accuracy-when-answering flat.',
        "IDK: right / answered at CONVERGENCE - at EARLY_STOP, no harm",
        "no_harm",
    ),
)

CONTRASTS: Final[Mapping[int, Contrast]] = {
    1: contrasts.unknown_lowers_accuracy,
    2: contrasts.damage_needs_long_training,
    3: contrasts.unknown_is_fitted_later,
    4: contrasts.coefficients_have_their_signs,
    5: contrasts.same_on_unseen_relations,
    6: contrasts.maybe_known_is_best,
    7: contrasts.unknown_stays_wrong,
    8: contrasts.dropping_unknown_costs_nothing,
    9: contrasts.refusing_keeps_answers_right,
}


def scorecard(
    results: pl.DataFrame,
    outcomes: pl.DataFrame,
    linear_id: LinearModel,
    linear_ood: LinearModel,
    claims: Sequence[Claim] = CLAIMS,
    seed: int = 0,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> pl.DataFrame:
    """Return `SCORECARD` with a row for each claim, tested or not. The bootstrap uses `seed` and `draws`.

    `level`: the confidence level (0 to 1) of the intervals, and so of the verdicts; a study that stops when it has
    decided has a stricter one than 95 % (`stopping_rule.py`).
    Raises InputError where the compared runs have outcomes of different rows.
    """
    study = StudyData(results, outcomes, linear_id, linear_ood, seed, draws)
    shown = evidence(study, claims).values()
    lines = [
        scored_line(claim, found if isinstance(found, str) else found.at(level))
        for claim, found in zip(claims, shown, strict=True)
    ]
    tested = [line["p"] for line in lines if line["p"] is not None]
    corrected = iter(holm([float(str(p)) for p in tested]))
    for line in lines:
        line["p_holm"] = next(corrected) if line["p"] is not None else None
    return pl.DataFrame(lines, schema=SCORECARD)


def evidence(study: StudyData, claims: Sequence[Claim] = CLAIMS) -> dict[int, Evidence | str]:
    """Return by the claim's number its evidence, or the reason why it is not tested."""
    return {claim.number: CONTRASTS[claim.number](study, claim.margin) for claim in claims}


def scored_line(claim: Claim, found: Evidence | str) -> dict[str, object]:
    """Return a claim's line of `SCORECARD`. `found`: its evidence, or the reason why it is not tested."""
    line: dict[str, object] = dict.fromkeys(SCORECARD)
    line |= {"claim": claim.number, "text": claim.text, "contrast": claim.contrast}
    line["margin"] = claim.margin if claim.kind == "no_harm" else None
    if isinstance(found, str):
        return line | {"verdict": "not tested", "note": found}
    part = min(found.parts, key=lambda one: one.support)
    several = len(found.parts) if part.support < 0 else 1
    return line | {
        "estimate": part.value,
        "ci_low": part.low,
        "ci_high": part.high,
        "p": min(1.0, part.p * several),
        "verdict": verdict(found.parts),
        "mde": detectable(part.se, part.df),
        "note": _note(found, part),
    }


def detectable(se: float, df: float) -> float:
    """Return the minimum detectable effect of a figure with this standard error and its degrees of freedom."""
    from scipy.special import stdtrit  # keeps scipy out of every start

    return float(stdtrit(df, 0.975) + stdtrit(df, 0.8)) * se


def verdict(parts: Sequence[ContrastPart]) -> Verdict:
    """Return the verdict of a claim: it holds when all parts hold, fails when any fails, and else is not decided."""
    found = {part.verdict for part in parts}
    return "fails" if "fails" in found else "holds" if found == {"holds"} else "not decided"


def _note(found: Evidence, shown: ContrastPart) -> str:
    told = [
        f"{part.name} {100 * part.value:+.1f} ({100 * part.low:+.1f} to {100 * part.high:+.1f}) points, {part.verdict}"
        for part in found.parts
        if len(found.parts) > 1
    ]
    if len(found.parts) > 1:
        told.append(f"shown: {shown.name}")
    told += [found.note] if found.note else []
    told += ["one seed: differences between seeds are not in the interval"] if found.seeds == 1 else []
    return "; ".join(told)


def holm(values: Sequence[float]) -> list[float]:
    """Apply Holm's correction: multiply the smallest p by their number, the next by one less, and let none fall."""
    found, largest = [0.0] * len(values), 0.0
    for done, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - done) * values[place]))
        found[place] = largest
    return found


def claims_table(scored: pl.DataFrame) -> pl.DataFrame:
    """Return a scorecard for the terminal: the verdict, and the estimate and interval in points of exact match."""

    def points(value: float | None) -> str:
        return "" if value is None else f"{100 * value:+.1f}"

    lines = [
        {
            "claim": f"{line['claim']}. {line['text']}",
            "verdict": line["verdict"],
            "estimate": points(line["estimate"]),
            "95 % interval": "" if line["ci_low"] is None else f"{points(line['ci_low'])} to {points(line['ci_high'])}",
        }
        for line in scored.iter_rows(named=True)
    ]
    return pl.DataFrame(lines)
