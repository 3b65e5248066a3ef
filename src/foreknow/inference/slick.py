"""SliCK: turns probabilities into a knowledge category (paper, section 2; design, sections 2 and 8). Pure.

For one row, with exemplar sets j = 1..J and N samples per set:

    HighlyKnown   every greedy answer right             P(T=0) = 1
    MaybeKnown    some greedy answers right             0 < P(T=0) < 1
    WeaklyKnown   none, but a sample is right           P(T=0) = 0, P(T>0) > 0
    Unknown       no answer right                       P(T>=0) = 0

With sampling, chance decides between the last two. `p_hit` = 1 - prod_j (1 - p_j)^N is the probability that at
least one of the J x N samples is right; the label is the likelier of the two.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN, WEAKLY_KNOWN

PROBES: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "exemplar_set": pl.Int64(),
    "greedy_correct": pl.Boolean(),
    "greedy_lenient": pl.Boolean(),
    "p_correct": pl.Float64(),
    "p_correct_upper": pl.Float64(),
    "p_lenient": pl.Float64(),
    "p_lenient_upper": pl.Float64(),
    "expansions": pl.Int64(),
    "replaced_shots": pl.List(pl.Struct({"slot": pl.Int64(), "question": pl.String(), "answer": pl.String()})),
}
"""One line per row and exemplar set. `greedy_*`: whether the T = 0 answer is right. `p_*`: lower and upper bound of
the probability that one sample is right, NaN where the model's logits were not finite. `expansions`: token paths
searched beyond the accepted answers' own. `replaced_shots`: exemplars that replace the row's own fact."""

MODEL_ANSWERS: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "model_answer": pl.String()}
"""The model's greedy answer with exemplar set 0."""


def p_hit(p: pl.Expr, samples: int) -> pl.Expr:
    """Aggregate to the probability that `samples` draws from each set contain at least one right answer."""
    return 1.0 - ((-p.clip(0.0, 1.0)).log1p() * samples).sum().exp()


def category(p_greedy: pl.Expr, hit: pl.Expr) -> pl.Expr:
    """Return the category from the share of greedy answers right and `p_hit`; null where either is null or NaN."""
    return (
        pl.when(~(p_greedy.is_finite() & hit.is_finite()).fill_null(False))
        .then(None)
        .when(p_greedy >= 1.0)
        .then(pl.lit(HIGHLY_KNOWN))
        .when(p_greedy > 0.0)
        .then(pl.lit(MAYBE_KNOWN))
        .when(hit >= 0.5)
        .then(pl.lit(WEAKLY_KNOWN))
        .otherwise(pl.lit(UNKNOWN))
    )


def label(probes: pl.DataFrame, *, samples: int, sampled: bool = False, lenient: bool = False) -> pl.DataFrame:
    """Aggregate `probes` to one line per row.

    `sampled`: the probabilities are shares of generated samples, so `p_hit` is 0 or 1. `lenient`: `p_sampled`,
    `p_hit` and `category` follow lenient matching; the lenient columns are always returned too. Returns `row,
    p_greedy, p_greedy_lenient, p_sampled, p_sampled_width, p_hit, p_hit_upper, p_hit_lenient, not_finite, category,
    category_lenient, undecided`. A row with any NaN probe is `not_finite`: it gets no category and no figures.
    """

    def hit(column: str) -> pl.Expr:
        p = pl.col(column)
        return (p > 0).any().cast(pl.Float64) if sampled else p_hit(p, samples)

    greedy, low, high = (
        ("greedy_lenient", "p_lenient", "p_lenient_upper")
        if lenient
        else ("greedy_correct", "p_correct", "p_correct_upper")
    )
    p = pl.col("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper")
    aggregated = probes.group_by("row").agg(
        p_greedy=pl.col(greedy).mean(),
        p_greedy_lenient=pl.col("greedy_lenient").mean(),
        p_sampled=pl.col(low).mean(),
        p_sampled_width=(pl.col(high) - pl.col(low)).mean(),
        p_hit=hit(low),
        p_hit_upper=hit(high),
        p_hit_lenient=hit("p_lenient"),
        not_finite=~pl.all_horizontal(p.is_finite().fill_null(False).all()),
    )
    figures = pl.selectors.float()
    return (
        aggregated.with_columns(pl.when(~pl.col("not_finite")).then(figures))
        .with_columns(
            category=category(pl.col("p_greedy"), pl.col("p_hit")),
            category_lenient=category(pl.col("p_greedy_lenient"), pl.col("p_hit_lenient")),
            undecided=(pl.col("p_greedy") == 0) & (pl.col("p_hit") < 0.5) & (pl.col("p_hit_upper") >= 0.5),
        )
        .sort("row")
    )


def shares(categories: pl.Series) -> dict[str, float]:
    """Return the share of each of the four categories among the labelled rows; zeros if none is labelled."""
    labelled = categories.drop_nulls()
    total = max(len(labelled), 1)
    return {name: float((labelled == name).sum()) / total for name in CATEGORIES}


def expected_shares(rows: pl.DataFrame) -> dict[str, float]:
    """Return the category shares expected of a sampling run: a row without a right greedy answer counts `p_hit` as
    WeaklyKnown and the rest as Unknown."""
    labelled = rows.filter(pl.col("category").is_not_null())
    if labelled.is_empty():
        return dict.fromkeys(CATEGORIES, 0.0)
    without_greedy = labelled.filter(pl.col("p_greedy") == 0)
    weakly = float(without_greedy["p_hit"].sum()) / labelled.height
    by_category = shares(labelled["category"])
    return {
        HIGHLY_KNOWN: by_category[HIGHLY_KNOWN],
        MAYBE_KNOWN: by_category[MAYBE_KNOWN],
        WEAKLY_KNOWN: weakly,
        UNKNOWN: without_greedy.height / labelled.height - weakly,
    }


def relabel(probes: pl.DataFrame, *, sets: int, samples: int, lenient: bool = False) -> pl.DataFrame:
    """Label rows under a smaller budget (the first `sets` exemplar sets, `samples` draws each), without a model."""
    return label(probes.filter(pl.col("exemplar_set") < sets), samples=samples, lenient=lenient)
