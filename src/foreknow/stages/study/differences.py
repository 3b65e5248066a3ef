"""Compare two training sets of a study by the paper's test and two more, and count refusals. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import polars as pl

from foreknow import paper as paper_figures
from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.errors import InputError
from foreknow.paper import Figure
from foreknow.stages.study import paired
from foreknow.stages.study.aggregation import ALL, EARLY, LATE, POINTS, REFUSED, TRAINED_ON, over_seeds

DIFFERENCES: Final[dict[str, pl.DataType]] = {
    "contrast": pl.String(),
    "set": pl.String(),
    "first": pl.String(),
    "first_point": pl.String(),
    "second": pl.String(),
    "second_point": pl.String(),
    "seeds": pl.Int64(),
    "rows": pl.Int64(),
    "difference": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "p": pl.Float64(),
    "parts_p": pl.Float64(),
    "parts_p_min": pl.Float64(),
    "parts_p_max": pl.Float64(),
    "mcnemar_p": pl.String(),
    "paper": pl.Float64(),
}
"""One row per contrast: second - first, in EM over all rows. `ci_low`, `ci_high` and `p` come from a bootstrap of rows
and seeds. `parts_p` has the p of the paper's test: its median over 200 shuffles, then the smallest and largest; null
under 100 rows. `mcnemar_p` reads "seed 0: 0.012; ..."."""
REFUSALS: Final[dict[str, pl.DataType]] = {
    "variant": pl.String(),
    "trained_on": pl.String(),
    "share": pl.Float64(),
    "point": pl.String(),
    "epoch": pl.Float64(),
    "seeds": pl.Int64(),
    "rows": pl.Int64(),
    "measured": pl.Boolean(),
    "accuracy": pl.Float64(),
    "accuracy_ci_low": pl.Float64(),
    "accuracy_ci_high": pl.Float64(),
    "coverage": pl.Float64(),
    "yield": pl.Float64(),
    "refused_unknown": pl.Float64(),
    "refused_highly_known": pl.Float64(),
    "paper_accuracy": pl.Float64(),
    "paper_coverage": pl.Float64(),
    "paper_yield": pl.Float64(),
}
"""`accuracy` is the share right of the rows answered, `coverage` the share of rows answered, `yield` the share right of
all rows, and `refused_highly_known` the over-refusal. `measured` says whether refusals were counted; where they were
not, the table assumes that there are none."""

CONTRASTS: Final = ("share", "training on", "without Unknown", "single category")


class PairedTest(NamedTuple):
    """A contrast to test: two variants, each at a point, and the paper's figure for it."""

    contrast: str
    first: str
    first_point: str
    second: str
    second_point: str
    paper: float | None = None


def contrasts(results: pl.DataFrame) -> list[PairedTest]:
    """Return the contrasts that these runs allow (see `CONTRASTS`), each at both points, or between them."""
    has = results.select("variant", "kind", "share", "trained").unique().sort("kind", "share", "variant")
    mixed = {s: name for name, kind, s, _ in has.iter_rows() if kind == "shares"}
    known = {s: name for name, kind, s, _ in has.iter_rows() if kind == "known"}
    alone = {trained or "natural": name for name, kind, _, trained in has.iter_rows() if kind in ("single", "natural")}
    found = []
    for point in POINTS:
        for s in [s for s in mixed if s > 0 and 0.0 in mixed]:
            away = _less(paper_figures.exact_match("D", s, point), paper_figures.exact_match("D", 0, point))
            found.append(PairedTest("share", mixed[0.0], point, mixed[s], point, away))
        for s in [s for s in known if s in mixed]:
            away = _less(paper_figures.exact_match("D_Known", s, point), paper_figures.exact_match("D", s, point))
            found.append(PairedTest("without Unknown", mixed[s], point, known[s], point, away))
        for trained in [name for name in (*CATEGORIES, "natural") if name in alone and name != MAYBE_KNOWN]:
            if MAYBE_KNOWN in alone:
                away = _less(paper_figures.single(MAYBE_KNOWN, point), paper_figures.single(trained, point))
                found.append(PairedTest("single category", alone[trained], point, alone[MAYBE_KNOWN], point, away))
    for name, kind, s, trained in has.iter_rows():
        ends = [_figure(kind, s, trained, point) for point in POINTS]
        found.append(PairedTest("training on", name, EARLY, name, LATE, _less(ends[1], ends[0])))
    return found


def _figure(kind: str, share: float | None, trained: str | None, point: str) -> Figure | None:
    if kind in ("single", "natural"):
        return paper_figures.single(trained or "natural", point)
    return paper_figures.exact_match(TRAINED_ON[kind], share, point)


def _less(second: Figure | None, first: Figure | None) -> float | None:
    return second.value - first.value if first and second else None


def differences(results: pl.DataFrame, outcomes: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Test every contrast on the set test, and all but those of single categories on ood too (`DIFFERENCES`).

    Only lines of the set test have the paper's own figure. Contrasts without a seed in common are left out.
    """
    at = dict(iter(outcomes.group_by("variant", "point", "set")))
    lines = []
    for name in ("test", "ood"):
        for one in contrasts(results):
            first, second = at.get((one.first, one.first_point, name)), at.get((one.second, one.second_point, name))
            if first is None or second is None or (name == "ood" and one.contrast == "single category"):
                continue
            try:
                away = paired.difference(first, second, seed=seed)
            except InputError:
                continue
            ours = one._asdict() | {"set": name, "paper": one.paper if name == "test" else None}
            ours |= {"seeds": away.seeds, "rows": away.rows, "difference": away.value, "p": away.p()}
            lines.append(ours | {"ci_low": away.low, "ci_high": away.high, **_other_tests(first, second, seed)})
    return pl.DataFrame(lines, schema=DIFFERENCES)


def _other_tests(first: pl.DataFrame, second: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Return the paper's test, where there are enough rows, and McNemar's for each seed that both have."""
    both = sorted(set(first["seed"]) & set(second["seed"]))
    ps = [(k, paired.mcnemar(first.filter(pl.col("seed") == k), second.filter(pl.col("seed") == k)).p) for k in both]
    told: dict[str, Any] = {"mcnemar_p": "; ".join(f"seed {k}: {p:.2g}" for k, p in ps)}
    if first["row"].n_unique() >= paired.PARTS:
        parts = paired.parts(first, second, seed=seed)
        told |= {"parts_p": parts.p, "parts_p_min": parts.low, "parts_p_max": parts.high}
    return told


def refusals(points: pl.DataFrame, outcomes: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Compare sets with relabelled Unknown rows with D of the same share (`REFUSALS`); empty without an idk variant."""
    relabelled = points.filter(pl.col("kind") == "idk")["share"].unique()
    of = points.filter(pl.col("kind").is_in(["idk", "shares"]) & pl.col("share").is_in(relabelled.implode()))
    right, refused = over_seeds(of, "test"), over_seeds(of, REFUSED)
    by_category = {
        (variant, point, category): em
        for variant, point, category, em in refused.select("variant", "point", "category", "em").iter_rows()
    }
    lines = []
    right = right.filter(pl.col("category") == ALL).sort("share", "kind", maintain_order=True)
    for line in right.iter_rows(named=True):
        key = line["variant"], line["point"]
        said_no = by_category.get((*key, ALL))
        coverage = 1 - (said_no or 0.0)
        figures = paper_figures.refusals(TRAINED_ON[line["kind"]], line["point"]) if line["share"] == 0.5 else None
        low, high = _answering(outcomes, *key, seed)
        lines.append({
            **{name: line[name] for name in ("variant", "share", "point", "epoch", "seeds", "rows")},
            **{"trained_on": TRAINED_ON[line["kind"]], "measured": said_no is not None, "coverage": coverage},
            **{"accuracy": line["em"] / coverage if coverage > 0 else None, "yield": line["em"]},
            **{"accuracy_ci_low": low, "accuracy_ci_high": high, "refused_unknown": by_category.get((*key, UNKNOWN))},
            "refused_highly_known": by_category.get((*key, HIGHLY_KNOWN)),
            **({f"paper_{n}": f.value for n, f in zip(("accuracy", "coverage", "yield"), figures, strict=True)}
               if figures else {}),
        })  # fmt: skip
    return pl.DataFrame(lines, schema=REFUSALS)


def _answering(outcomes: pl.DataFrame, variant: str, point: str, seed: int) -> tuple[float | None, float | None]:
    """Return the interval of the accuracy on the rows answered, from a bootstrap of rows and seeds."""
    of = outcomes.filter((pl.col("variant") == variant) & (pl.col("point") == point))
    right, refused = of.filter(pl.col("set") == "test"), of.filter(pl.col("set") == REFUSED)
    if right.is_empty():
        return None, None
    none = right.with_columns(correct=pl.lit(False))
    both = paired.stack([right, none if refused.is_empty() else refused])
    if both.values[1].all():
        return None, None
    found = paired.resampled(both, lambda total: total[..., 0] / (1 - total[..., 1]), seed=seed)
    return max(found.low, 0.0), min(found.high, 1.0)
