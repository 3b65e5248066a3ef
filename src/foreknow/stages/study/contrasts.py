"""Compute the contrast of runs, with its error, that each of the paper's nine claims (section 5) is about. Pure.

A claim has one or more parts. A part is a figure, its interval, and the side of a reference it should lie on. Where no
run gives a part, the claim is not tested and the function returns the reason. Every contrast over runs uses the seeds
that all its runs have, and the same rows in all of them.

1  OLS slope of test EM on the Unknown share of D at CONVERGENCE, over the variants of shares: below 0.
2  Mean of D - D_Known in test EM over the shares that have a D_Known: above -margin at EARLY_STOP, below 0 at
   CONVERGENCE.
3  Share of Known minus share of Unknown train rows fitted at EARLY_STOP, mean over D of 0 < share < 1: above 0.
4  b_kn above 0 and b_unk below 0 in the linear model of the test set.
5  The same in the linear model of the OOD set, and b_unk OOD - b_unk test above 0. The last is fitted as one model of
   the difference of the two accuracies, which come from the same runs.
6  Test EM at EARLY_STOP of only-MaybeKnown minus that of each other single-category variant: all above 0.
7  EM on Unknown test rows at CONVERGENCE, mean over all variants but IDK: below the paper's 3.2 % + margin.
8  Mean over shares of test EM: D_Known at CONVERGENCE - D at EARLY_STOP above -margin; D_Known - D, both at
   CONVERGENCE, above 0.
9  IDK variants: right / answered on test, CONVERGENCE - EARLY_STOP, above -margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.stages.study import linear_model
from foreknow.stages.study.linear_model import Coefficient, LinearModel
from foreknow.stages.study.paired import DRAWS, LEVEL, Array, Estimate, Stack, Statistic, resampled, stack
from foreknow.stats import wilson

Point = Literal["early_stop", "convergence"]
EARLY: Final[Point] = "early_stop"
LATE: Final[Point] = "convergence"
PAPER_UNKNOWN_EM: Final = 0.032
"""The highest EM on Unknown test rows that the paper measured (section 4)."""


class ContrastPart(NamedTuple):
    """A figure that should lie above, or below, its reference.

    `df`: degrees of freedom of its error `se`. `of_seeds`: see `Estimate`; 1 where the errors are those of whole runs.
    """

    name: str
    value: float
    low: float
    high: float
    se: float
    p: float
    reference: float
    above: bool
    df: float
    of_seeds: float

    @property
    def verdict(self) -> str:
        """Return the verdict, which depends on where the whole interval lies."""
        if self.low > self.reference:
            return "holds" if self.above else "fails"
        if self.high < self.reference:
            return "fails" if self.above else "holds"
        return "not decided"

    def at(self, level: float, seeds: int = 0) -> ContrastPart:
        """Return the part with its interval at another confidence level (0 to 1) than 95 %.

        With `seeds`, the error has at most seeds - 1 degrees of freedom: where few seeds happen to agree, their part of
        the error is estimated too small, and Satterthwaite's degrees of freedom become those of the rows.
        """
        from scipy.special import stdtrit

        if level == LEVEL:
            return self
        df = min(self.df, seeds - 1) if seeds > 1 else self.df
        wider = float(stdtrit(df, 0.5 + level / 2) / stdtrit(self.df, 0.5 + LEVEL / 2))
        low, high = self.value - wider * (self.value - self.low), self.value + wider * (self.high - self.value)
        return self._replace(low=low, high=high)

    @property
    def support(self) -> float:
        """Return how many standard errors the figure is on its side of the reference; below 0: on the other side."""
        return (self.value - self.reference) / max(self.se, 1e-12) * (1 if self.above else -1)


class Evidence(NamedTuple):
    """A claim's parts, the number of seeds resampled (0: errors are those of whole runs), and a further note."""

    parts: tuple[ContrastPart, ...]
    seeds: int
    note: str = ""

    def at(self, level: float) -> Evidence:
        """Return the evidence with the intervals of its parts at another confidence level (0 to 1) than 95 %."""
        return self._replace(parts=tuple(part.at(level, self.seeds) for part in self.parts))


@dataclass(frozen=True, eq=False)
class StudyData:
    """A study's `results.parquet`, `outcomes.parquet` and linear models, and the bootstrap's seed and draws."""

    results: pl.DataFrame
    outcomes: pl.DataFrame
    linear_id: LinearModel
    linear_ood: LinearModel
    seed: int = 0
    draws: int = DRAWS

    @classmethod
    def of(cls, results: pl.DataFrame, outcomes: pl.DataFrame) -> StudyData:
        """Return what a study measured (`results.parquet`, `outcomes.parquet`) with its linear models fitted."""
        test, ood = (linear_model.fit(linear_model.points(results, name)) for name in ("test", "ood"))
        return cls(results, outcomes, test, ood)

    @cached_property
    def _cells(self) -> dict[tuple[object, ...], pl.DataFrame]:
        return self.outcomes.partition_by("variant", "point", "set", as_dict=True)

    def variants(self, *kinds: str) -> pl.DataFrame:
        """Return variant, kind, share and trained of the variants of these kinds, sorted by share and name."""
        found = self.results.filter(pl.col("kind").is_in(kinds)) if kinds else self.results
        return found.select("variant", "kind", "share", "trained").unique().sort("share", "variant")

    def cell(self, variant: str, point: Point, name: str = "test", category: str | None = None) -> pl.DataFrame:
        """Return the outcomes of a variant at a point on a set, of one category or all, for all seeds."""
        found = self._cells.get((variant, point, name), self.outcomes.clear())
        return found if category is None else found.filter(pl.col("category") == category)

    def pairs(self) -> list[tuple[float, str, str]]:
        """Return (share, D, D_Known) for each share of which the study has both."""
        known = {share: name for name, _, share, _ in self.variants("known").rows()}
        return [(share, name, known[share]) for name, _, share, _ in self.variants("shares").rows() if share in known]


Contrast = Callable[[StudyData, float], Evidence | str]
"""A function that takes a study and a margin and returns a claim's evidence, or the reason why it is not tested."""


def _stacked(cells: Sequence[tuple[str, pl.DataFrame]]) -> Stack | str:
    """Stack cells of (variant, outcomes) over their common seeds, or return what is missing."""
    empty = sorted({name for name, frame in cells if frame.is_empty()})
    if empty:
        return f"no outcomes of {', '.join(empty)}"
    if not set.intersection(*(set(frame["seed"]) for _, frame in cells)):
        return f"no seed is in all of {', '.join(sorted({name for name, _ in cells}))}"
    return stack([frame for _, frame in cells])


def _weighted(weights: Array) -> Statistic:
    return lambda total: total @ weights


def _part(name: str, found: Estimate | Coefficient, reference: float = 0.0, *, above: bool = True) -> ContrastPart:
    if isinstance(found, Estimate):
        p = found.p(reference)
        return ContrastPart(
            name, found.value, found.low, found.high, found.se, p, reference, above, found.df, found.of_seeds
        )
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.se is not None
    assert found.p is not None
    assert found.df is not None
    return ContrastPart(
        name, found.value, found.ci_low, found.ci_high, found.se, found.p, reference, above, found.df, 1.0
    )


def unknown_lowers_accuracy(study: StudyData, _margin: float) -> Evidence | str:
    """Return the evidence for claim 1."""
    found = study.variants("shares")
    if found["share"].n_unique() < 2:
        return f"needs D with two or more Unknown shares; the study has {found.height}"
    outcomes = _stacked([(name, study.cell(name, LATE)) for name in found["variant"]])
    if isinstance(outcomes, str):
        return outcomes
    away = found["share"].to_numpy() - found["share"].to_numpy().mean()
    slope = resampled(outcomes, _weighted(away / (away @ away)), draws=study.draws, seed=study.seed)
    shares = ", ".join(f"{share:.0%}" for share in found["share"])
    return Evidence((_part("slope", slope, above=False),), slope.seeds, f"shares {shares}")


def damage_needs_long_training(study: StudyData, margin: float) -> Evidence | str:
    """Return the evidence for claim 2."""
    early = _over_pairs(study, (EARLY, EARLY))
    late = _over_pairs(study, (LATE, LATE))
    if isinstance(early, str) or isinstance(late, str):
        return early if isinstance(early, str) else str(late)
    parts = (
        _part("D - D_Known at EARLY_STOP", early, -margin),
        _part("D - D_Known at CONVERGENCE", late, above=False),
    )
    return Evidence(parts, early.seeds, _shares_of(study))


def dropping_unknown_costs_nothing(study: StudyData, margin: float) -> Evidence | str:
    """Return the evidence for claim 8."""
    best = _over_pairs(study, (EARLY, LATE), -1)
    late = _over_pairs(study, (LATE, LATE), -1)
    if isinstance(best, str) or isinstance(late, str):
        return best if isinstance(best, str) else str(late)
    parts = (
        _part("D_Known at CONVERGENCE - D at EARLY_STOP", best, -margin),
        _part("D_Known - D at CONVERGENCE", late),
    )
    return Evidence(parts, best.seeds, _shares_of(study))


def _over_pairs(study: StudyData, points: tuple[Point, Point], sign: int = 1) -> Estimate | str:
    """Return the mean over shares of D at the first point minus D_Known at the second, times `sign`."""
    pairs = study.pairs()
    if not pairs:
        return "needs D and D_Known of the same share; the study has no such pair"
    cells = [(name, study.cell(name, at)) for _, *both in pairs for name, at in zip(both, points, strict=True)]
    outcomes = _stacked(cells)
    if isinstance(outcomes, str):
        return outcomes
    weights = np.tile([sign, -sign], len(pairs)) / len(pairs)
    return resampled(outcomes, _weighted(weights), draws=study.draws, seed=study.seed)


def _shares_of(study: StudyData) -> str:
    return "mean over shares " + ", ".join(f"{share:.0%}" for share, _, _ in study.pairs())


def unknown_is_fitted_later(study: StudyData, _margin: float) -> Evidence | str:
    """Return the evidence for claim 3."""
    train = study.results.filter(
        (pl.col("kind") == "shares") & (pl.col("set") == "train") & (pl.col("rows") > 0) & (pl.col("category") != "all")
    )
    part = pl.when(pl.col("category") == UNKNOWN).then(pl.lit("unknown")).otherwise(pl.lit("known"))
    key = ["variant", "seed", "epoch", "early_stop"]
    counted = train.group_by(*key, part.alias("part")).agg(pl.col("rows", "correct").sum())
    known, unknown = (counted.filter(part=name).drop("part") for name in ("known", "unknown"))
    both = known.join(unknown, on=key, suffix="_unknown").sort("variant", "seed", "epoch")
    at = both.filter("early_stop")
    if at.is_empty():
        return "needs D with an Unknown share between 0 and 100 %; the study has none"
    names = [str(name) for name in at["variant"].unique().sort()]
    complete = at.group_by("seed").len().filter(pl.col("len") == len(names))
    seeds = complete["seed"].to_list()
    if not seeds:
        return f"no seed is in all of {', '.join(names)}"
    at = at.filter(pl.col("seed").is_in(seeds)).with_columns(
        ahead=pl.col("correct") / pl.col("rows") - pl.col("correct_unknown") / pl.col("rows_unknown")
    )
    # all seeds train on the same rows, and variants share rows, so row errors do not average out over runs
    pooled = at.group_by("variant").agg(
        a=pl.col("correct").sum() / pl.col("rows").sum(),
        b=pl.col("correct_unknown").sum() / pl.col("rows_unknown").sum(),
        n=pl.col("rows").first(),
        m=pl.col("rows_unknown").first(),
    )
    a, b, n, m = (pooled[name].to_numpy() for name in ("a", "b", "n", "m"))
    se_rows = float(np.sqrt(a * (1 - a) / n + b * (1 - b) / m).mean())
    by_seed = at.group_by("seed").agg(pl.col("ahead").mean()).sort("seed")["ahead"].to_numpy()
    found = _rows_and_seeds(by_seed, se_rows, int((n + m).min()))
    halves = _half_fitted(both.filter(pl.col("seed").is_in(seeds)))
    return Evidence((_part("Known - Unknown fitted at EARLY_STOP", found),), found.seeds, halves)


def _rows_and_seeds(by_seed: Array, se_rows: float, rows: int) -> Estimate:
    """Return the mean over seeds, with the error due to rows and the error due to seeds."""
    from scipy.special import stdtrit

    count, value = len(by_seed), float(by_seed.mean())
    from_seeds = float(by_seed.var(ddof=1)) / count if count > 1 else 0.0
    se = (se_rows**2 + from_seeds) ** 0.5 or wilson(0, rows).high / 1.96
    df = se**4 / (se_rows**4 / max(rows - 1, 1) + from_seeds**2 / max(count - 1, 1) or 1.0)
    half = float(stdtrit(max(df, 1.0), 0.975)) * se
    return Estimate(value, value - half, value + half, se, max(df, 1.0), count, rows, from_seeds / se**2)


def _half_fitted(both: pl.DataFrame) -> str:
    """Describe the first epoch at which half of the Known, and of the Unknown, rows are fitted: its mean over runs."""
    runs = both.group_by("variant", "seed").agg(
        known=pl.col("epoch").filter(2 * pl.col("correct") >= pl.col("rows")).min(),
        unknown=pl.col("epoch").filter(2 * pl.col("correct_unknown") >= pl.col("rows_unknown")).min(),
    )
    told = []
    for name in ("known", "unknown"):
        reached = runs[name].drop_nulls()
        at = f"epoch {reached.to_numpy().mean():.1f}" if len(reached) else "no epoch"
        late = f" ({len(runs) - len(reached)} of {len(runs)} runs never)" if len(reached) < len(runs) else ""
        told.append(f"{name.capitalize()} by {at}{late}")
    return f"half fitted: {', '.join(told)}"


def coefficients_have_their_signs(study: StudyData, _margin: float) -> Evidence | str:
    """Return the evidence for claim 4."""
    found = _signs(study.linear_id, "test")
    return found if isinstance(found, str) else Evidence(found, 0, _runs(study.linear_id))


def same_on_unseen_relations(study: StudyData, _margin: float) -> Evidence | str:
    """Return the evidence for claim 5."""
    if "ood" not in study.results["set"]:
        return "needs an OOD set; the study has none"
    signs = _signs(study.linear_ood, "OOD")
    if isinstance(signs, str):
        return signs
    ood = linear_model.points(study.results, "ood")
    test = linear_model.points(study.results, "test").select("run", "epoch", inside="accuracy")
    smaller = linear_model.fit(ood.join(test, on=["run", "epoch"]).with_columns(pl.col("accuracy") - pl.col("inside")))
    if smaller.unknown is None or smaller.note is not None:
        return f"OOD against test: {smaller.note}"
    return Evidence((*signs, _part("b_unk OOD - b_unk test", smaller.unknown)), 0, _runs(smaller))


def _signs(model: LinearModel, name: str) -> tuple[ContrastPart, ...] | str:
    if model.known is None or model.unknown is None or model.note is not None:
        return f"linear model of {name}: {model.note}"
    return (_part(f"b_kn {name}", model.known), _part(f"b_unk {name}", model.unknown, above=False))


def _runs(model: LinearModel) -> str:
    return f"{model.n:,} points, errors clustered by {model.runs} runs"


def maybe_known_is_best(study: StudyData, _margin: float) -> Evidence | str:
    """Return the evidence for claim 6."""
    by_category = {trained: name for name, _, _, trained in study.variants("single").rows()}
    if missing := [name for name in (MAYBE_KNOWN, HIGHLY_KNOWN) if name not in by_category]:
        return f"needs single-category variants; the study has none of {', '.join(missing)}"
    best = by_category.pop(MAYBE_KNOWN)
    parts, seeds = [], []
    for category, name in by_category.items():
        outcomes = _stacked([(name, study.cell(name, EARLY)), (best, study.cell(best, EARLY))])
        if isinstance(outcomes, str):
            return outcomes
        found = resampled(outcomes, _weighted(np.array([-1.0, 1.0])), draws=study.draws, seed=study.seed)
        parts.append(_part(f"{MAYBE_KNOWN} - {category}", found))
        seeds.append(found.seeds)
    absent = [category for category in CATEGORIES if category not in (MAYBE_KNOWN, *by_category)]
    without = f", no variant of {' or '.join(absent)}" if absent else ""
    return Evidence(tuple(parts), min(seeds), f"at EARLY_STOP{without}")


def unknown_stays_wrong(study: StudyData, margin: float) -> Evidence | str:
    """Return the evidence for claim 7. The interval is at least as wide as Wilson's for that number of rows."""
    names = study.variants("shares", "known", "single", "natural")["variant"].to_list()
    cells = [(name, study.cell(name, LATE, category=UNKNOWN)) for name in names]
    if not cells or all(frame.is_empty() for _, frame in cells):
        return "needs Unknown test rows; the study has none"
    outcomes = _stacked(cells)
    if isinstance(outcomes, str):
        return outcomes
    found = resampled(outcomes, _weighted(np.full(len(names), 1 / len(names))), draws=study.draws, seed=study.seed)
    plain = wilson(round(found.value * found.rows), found.rows)
    part = _part("EM on Unknown test rows", found, PAPER_UNKNOWN_EM + margin, above=False)
    each = outcomes.values.mean(axis=(1, 2))
    note = f"{found.rows:,} rows; highest {each.max():.1%}, {names[int(each.argmax())]}"
    wider = part._replace(low=max(0.0, min(part.low, plain.low)), high=max(part.high, plain.high))
    return Evidence((wider,), found.seeds, note)


def refusing_keeps_answers_right(study: StudyData, margin: float) -> Evidence | str:
    """Return the evidence for claim 9."""
    names = study.variants("idk")["variant"].to_list()
    if not names:
        return "needs a variant whose Unknown rows are relabelled (idk); the study has none"
    cells = []
    for name in names:
        for point in (EARLY, LATE):
            right, refused = study.cell(name, point), study.cell(name, point, "test_refused")
            answered = refused.with_columns(correct=~pl.col("correct"))
            kept = right.join(answered.select("seed", "row", answered="correct"), on=["seed", "row"])
            cells.append((name, kept.with_columns(correct=pl.col("correct") & pl.col("answered"))))
            cells.append((name, answered))
    outcomes = _stacked(cells)
    if isinstance(outcomes, str):
        return outcomes

    def change(total: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = total[..., 0::2] / total[..., 1::2]
        return np.asarray((share[..., 1::2] - share[..., 0::2]).mean(axis=-1), dtype=np.float64)

    means = outcomes.values.mean(axis=(1, 2))
    if means[1::2].min() == 0:
        return f"{cells[2 * int(means[1::2].argmin())][0]} answers no test row at one of the two points"
    found = resampled(outcomes, change, draws=study.draws, seed=study.seed)
    early, late = means[1::4].mean(), means[3::4].mean()
    gained, kept_right = means[0::4].mean(), means[2::4].mean()
    note = f"answered {early:.1%} -> {late:.1%}, right of all {gained:.1%} -> {kept_right:.1%}"
    return Evidence((_part("right / answered, CONVERGENCE - EARLY_STOP", found, -margin),), found.seeds, note)
