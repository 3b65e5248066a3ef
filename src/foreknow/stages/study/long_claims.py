"""Test the paper's claims that make sense inside long answers, and compare the remedies. Pure.

The contrasts are those of short answers (`contrasts.py`). What a row is there, a text is here: it counts with the share
of its labelled spans that are said, so the spans of one text are drawn together. New spans stand where Unknown rows
stand there. Claims 2 and 8 are tested once for each remedy, which takes the place of D_Known.

Not tested are claims 4 and 5 (the linear model needs rows that are right or wrong, and unseen relations), 6 (a text has
spans of several categories) and 9 (no span can be replaced by a refusal).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from foreknow.categories import HIGHLY_KNOWN, KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.stages.study import contrasts, linear_model
from foreknow.stages.study.claims import SCORECARD, Claim, claims_table, holm, scored_line
from foreknow.stages.study.contrasts import EARLY, LATE, Contrast, StudyData
from foreknow.stages.study.measurements import OUTCOMES, RESULTS
from foreknow.stages.study.paired import DRAWS, resampled, stack
from foreknow.stages.train.span_labels import NEW

LONG_SCORECARD: Final[dict[str, pl.DataType]] = {"remedy": pl.String(), **SCORECARD}
"""`remedy`: what takes the place of D_Known in claims 2 and 8; null in the others."""
REMEDIES: Final[dict[str, pl.DataType]] = {
    "share": pl.Float64(),
    "remedy": pl.String(),
    "point": pl.String(),
    "epoch": pl.Float64(),
    "train_rows": pl.Float64(),
    **dict.fromkeys(("known_fitted", "new_fitted", "kept", "new_said"), pl.Float64()),
    **dict.fromkeys(("difference", "ci_low", "ci_high"), pl.Float64()),
    "seeds": pl.Int64(),
}
"""One row per share, remedy (none: D itself) and point. `known_fitted`, `new_fitted`: shares of train spans that are
said; null where the set has none. `kept`: of the test spans that were HighlyKnown or MaybeKnown, the share that is
said, mean over texts; `new_said`: the same of new ones. `difference`: of `kept`, remedy minus D, with its 95 %
interval."""


def long_claims(remedies: tuple[str, ...], margin: float) -> list[tuple[str | None, Claim, Contrast]]:
    """Return the claims in order, with the remedy that each is about and its contrast."""
    claims: list[tuple[str | None, Claim, Contrast]] = [
        (
            None,
            Claim(
                1,
                "More new spans in D, fewer spans of test texts said.",
                "slope of the share of test spans said on the share of new spans at CONVERGENCE, below 0",
                "directional",
            ),
            contrasts.unknown_lowers_accuracy,
        )
    ]
    claims += [
        (
            remedy,
            Claim(
                2,
                "The damage needs long training.",
                f"D - {remedy}: no harm at EARLY_STOP, below 0 at CONVERGENCE",
                "no_harm",
                margin,
            ),
            contrasts.damage_needs_long_training,
        )
        for remedy in remedies
    ]
    claims += [
        (
            None,
            Claim(
                3,
                "New spans are fitted much later than Known ones.",
                "fitted share of Known - new train spans at EARLY_STOP, above 0",
                "directional",
            ),
            contrasts.unknown_is_fitted_later,
        ),
        (
            None,
            Claim(
                7,
                "New spans of test texts stay unsaid.",
                "share of new test spans said at CONVERGENCE, below the paper's 3.2 % + margin",
                "no_harm",
                margin,
            ),
            contrasts.unknown_stays_wrong,
        ),
    ]
    claims += [
        (
            remedy,
            Claim(
                8,
                "Taking the new spans out costs nothing.",
                f"{remedy} at CONVERGENCE - D at EARLY_STOP: no harm; {remedy} - D at CONVERGENCE: above 0",
                "no_harm",
                margin,
            ),
            contrasts.dropping_unknown_costs_nothing,
        )
        for remedy in remedies
    ]
    return claims


def long_scorecard(
    results: pl.DataFrame,
    outcomes: pl.DataFrame,
    remedies: tuple[str, ...],
    margin: float,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> pl.DataFrame:
    """Return `LONG_SCORECARD`. `results`: a frame `SPAN_RESULTS`; `outcomes`: a frame `SPAN_OUTCOMES`."""
    lines = []
    for remedy, claim, contrast in long_claims(remedies, margin):
        only = pl.col("label") == NEW if claim.number == 7 else None
        study = _study_data(results, outcomes, remedy, only, seed, draws)
        lines.append({"remedy": remedy, **scored_line(claim, contrast(study, claim.margin))})
    tested = [line["p"] for line in lines if line["p"] is not None]
    corrected = iter(holm([float(str(p)) for p in tested]))
    for line in lines:
        line["p_holm"] = next(corrected) if line["p"] is not None else None
    return pl.DataFrame(lines, schema=LONG_SCORECARD)


def long_claims_table(scored: pl.DataFrame) -> pl.DataFrame:
    """Return a scorecard for the terminal, with the remedy that takes the place of D_Known."""
    remedies = scored["remedy"].fill_null("").to_list()
    return claims_table(scored.drop("remedy")).insert_column(1, pl.Series("remedy", remedies))


def _study_data(
    results: pl.DataFrame, outcomes: pl.DataFrame, remedy: str | None, only: pl.Expr | None, seed: int, draws: int
) -> StudyData:
    """Return the frames as the contrasts of short answers read them; `remedy` takes the place of D_Known."""
    wanted = results.filter(pl.col("kind").is_in(["shares", *([remedy] if remedy else [])]))
    label = pl.col("label").replace({NEW: UNKNOWN})
    as_rows = wanted.with_columns(
        kind=pl.when(pl.col("kind") == "shares").then(pl.lit("shares")).otherwise(pl.lit("known")),
        category=label,
        trained=pl.lit(None, pl.String),
    ).filter(pl.col("category").is_in([*KNOWN, UNKNOWN, "all"]))
    nothing = linear_model.fit(linear_model.points(pl.DataFrame(schema=RESULTS), "test"))
    texts = by_text(outcomes if only is None else outcomes.filter(only))
    category = pl.lit(None if only is None else UNKNOWN, pl.String)
    return StudyData(
        as_rows.select(*RESULTS),
        texts.with_columns(category=category, group=pl.lit("all")).select(*OUTCOMES),
        nothing,
        nothing,
        seed,
        draws,
    )


def by_text(outcomes: pl.DataFrame) -> pl.DataFrame:
    """Return the share of each text's spans that are said (`correct`), by variant, seed, point, set and row."""
    keys = ["variant", "seed", "point", "set", "row"]
    return outcomes.group_by(*keys).agg(correct=pl.col("said").mean()).sort(*keys)


def remedy_table(results: pl.DataFrame, outcomes: pl.DataFrame, *, seed: int = 0, draws: int = DRAWS) -> pl.DataFrame:
    """Return `REMEDIES`."""
    test = outcomes.filter(pl.col("set") == "test")
    kept = by_text(test.filter(pl.col("label").is_in([HIGHLY_KNOWN, MAYBE_KNOWN])))
    new = by_text(test.filter(pl.col("label") == NEW))
    sets = results.select("variant", "kind", "share").unique().sort("share", "kind", "variant")
    own = {share: variant for variant, kind, share in sets.iter_rows() if kind == "shares"}
    lines = []
    for variant, kind, share in sorted(sets.iter_rows(), key=lambda line: (line[2], line[1] != "shares", line[1])):
        for point in (EARLY, LATE):
            at = results.filter((pl.col("variant") == variant) & pl.col(point))
            train = at.filter(pl.col("set") == "train")
            here = (pl.col("variant") == variant) & (pl.col("point") == point)
            line = {
                "share": share,
                "remedy": "none" if kind == "shares" else kind,
                "point": point,
                "epoch": at["epoch"].mean(),
                "train_rows": at["size"].mean(),
                "known_fitted": _share(train.filter(pl.col("label").is_in(KNOWN))),
                "new_fitted": _share(train.filter(pl.col("label") == NEW)),
                "kept": kept.filter(here)["correct"].mean(),
                "new_said": new.filter(here)["correct"].mean(),
                "seeds": at["seed"].n_unique(),
            }
            theirs = kept.filter((pl.col("variant") == own.get(share)) & (pl.col("point") == point))
            if kind != "shares" and theirs.height and kept.filter(here).height:
                pair = [frame.with_columns(group=pl.lit("all")) for frame in (theirs, kept.filter(here))]
                away = resampled(stack(pair), lambda total: total @ np.array([-1.0, 1.0]), draws=draws, seed=seed)
                line |= {"difference": away.value, "ci_low": away.low, "ci_high": away.high}
            lines.append(line)
    return pl.DataFrame(lines, schema=REMEDIES)


def _share(counts: pl.DataFrame) -> float | None:
    total = int(counts["rows"].sum())
    return int(counts["correct"].sum()) / total if total else None
