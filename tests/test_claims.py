"""The scorecard on simulated studies: claims hold, fail and stay open as they were built to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.stages.study.claims import CLAIMS, CONTRASTS, SCORECARD, detectable, holm, scorecard, verdict
from foreknow.stages.study.contrasts import ContrastPart
from foreknow.stages.study.linear_model import fit, points

SHARES = (0, 10, 25, 50, 75, 90, 100)
SIZE, EPOCHS, ROWS, BEST = 1000, 10, 800, 3
Truth = Callable[[str, float, str], float]
"""(variant, 0 at EARLY_STOP and 1 at CONVERGENCE, category of the row) -> probability of a right answer."""

EASE = dict(zip(CATEGORIES, (0.9, 0.5, 0.15, 0.01), strict=True))


def kind_of(variant: str) -> tuple[str, float | None, str | None]:
    if variant.startswith("only"):
        return "single", None, variant.removeprefix("only-")
    if variant == "natural":
        return "natural", None, None
    kind = {"unknown": "shares", "known-of": "known", "idk": "idk"}[variant.rpartition("-")[0]]
    return kind, int(variant.rpartition("-")[2]) / 100, None


def as_the_paper_says(variant: str, late: float, category: str) -> float:
    kind, share, trained = kind_of(variant)
    harm = 0.0
    if kind == "shares":
        harm = 0.5 * (share or 0) * late
    if kind == "single":
        harm = 0.3 if trained != "MaybeKnown" else 0.0
    return EASE[category] * (1 - harm)


def nothing_matters(variant: str, late: float, category: str) -> float:
    return EASE[category]


def the_other_way(variant: str, late: float, category: str) -> float:
    """Unknown rows help, and more at the end; D_Known forgets; IDK answers ever worse."""
    kind, share, trained = kind_of(variant)
    gain = 0.0
    if kind == "shares":
        gain = 0.3 * (share or 0) * (1 + late) - 0.4
    if kind == "known":
        gain = -0.5 - 0.2 * late
    if kind == "single":
        gain = -0.6 if trained == "MaybeKnown" else 0.0
    if kind == "idk":
        gain = -0.5 * late
    if category == UNKNOWN:
        return 0.2
    return EASE[category] * (1 + gain)


def names(*, known: bool = True, single: bool = True, idk: bool = True) -> list[str]:
    found = [f"unknown-{share}" for share in SHARES]
    found += [f"known-of-{share}" for share in SHARES[1:-1]] if known else []
    found += [f"only-{category}" for category in CATEGORIES] if single else []
    return found + (["idk-50"] if idk else []) + ["natural"]


def fitted(variant: str, epoch: int, truth: Truth) -> dict[str, tuple[int, int]]:
    """Rows of Known and Unknown in D, and how many of them are fitted: Unknown ones late, unless truth is reversed."""
    share = kind_of(variant)[1]
    share = 0.4 if share is None else share
    unknown = 0 if kind_of(variant)[0] == "known" else round(SIZE * share)
    early, late = 1 - 0.4**epoch, (epoch / EPOCHS) ** 3
    if truth is the_other_way:
        early, late = late, early
    if truth is nothing_matters:
        early = late = 0.5 + 0.5 * epoch / EPOCHS - 0.2 * (share * epoch / EPOCHS)
    known = SIZE - round(SIZE * share)
    return {"HighlyKnown": (known, round(known * early)), UNKNOWN: (unknown, round(unknown * late))}


def study(
    truth: Truth, variants: list[str], seeds: int = 3, spread: float = 0.0, ood: bool = True, rows: int = ROWS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Results and outcomes as a study writes them, drawn from the truth."""
    generator = np.random.default_rng(0)
    category = np.array(CATEGORIES)[np.arange(rows) % 4]
    results: list[dict[str, Any]] = []
    outcomes: list[pl.DataFrame] = []
    luck = generator.random(rows)
    for variant in variants:
        kind, share, trained = kind_of(variant)
        for seed in range(seeds):
            level = generator.normal(0, spread)
            for epoch in range(1, EPOCHS + 1):
                at = {"early_stop": epoch == BEST, "convergence": epoch == EPOCHS}
                run = {"variant": variant, "kind": kind, "share": share, "trained": trained, "seed": seed}
                run |= {"size": SIZE, "epoch": epoch, "step": 8 * epoch} | at
                done = fitted(variant, epoch, truth)
                for name, (many, right) in done.items():
                    if many:
                        results.append(run | {"set": "train", "category": name, "rows": many, "correct": right})
                part = {name: right / SIZE for name, (_, right) in done.items()}
                sign = {as_the_paper_says: 1, the_other_way: -1, nothing_matters: 0}[truth]
                line = 0.3 + sign * (0.06 * part["HighlyKnown"] - 0.12 * part[UNKNOWN])
                weaker = 0.3 + (2 if sign < 0 else 0.4) * (line - 0.3)
                for name, mean in (("test", line), ("ood", weaker)):
                    if ood or name == "test":
                        right = round(1e6 * (mean + generator.normal(0, 0.003)))
                        results.append(run | {"set": name, "category": "all", "rows": 1_000_000, "correct": right})
                for point, here in at.items():
                    if not here:
                        continue
                    late = float(point == "convergence")
                    ease = np.array([truth(variant, late, c) for c in category]) + level
                    chance = 0.7 * luck + 0.3 * generator.random(rows)
                    right_rows = np.argsort(np.argsort(chance)) / rows < ease
                    refuses = generator.random(rows) < (0.4 if kind == "idk" else 0.0)
                    for name, values in (("test", right_rows & ~refuses), ("test_refused", refuses)):
                        outcomes.append(
                            pl.DataFrame(
                                {
                                    "row": np.arange(rows),
                                    "category": category,
                                    "group": [f"P{n % 3}" for n in range(rows)],
                                    "correct": values,
                                }
                            ).select(
                                pl.lit(variant).alias("variant"),
                                pl.lit(seed, pl.Int64).alias("seed"),
                                pl.lit(point).alias("point"),
                                pl.lit(name).alias("set"),
                                pl.all(),
                            )
                        )
    return pl.DataFrame(results, infer_schema_length=None), pl.concat(outcomes)


def scored(results: pl.DataFrame, outcomes: pl.DataFrame, **more: Any) -> dict[int, dict[str, Any]]:
    models = [fit(points(results, name)) for name in ("test", "ood")]
    found = scorecard(results, outcomes, *models, **{"draws": 300} | more)
    assert found.schema == pl.Schema(SCORECARD)
    return {line["claim"]: line for line in found.iter_rows(named=True)}


@pytest.fixture(scope="module")
def good() -> tuple[pl.DataFrame, pl.DataFrame]:
    return study(as_the_paper_says, names())


def test_a_study_built_as_the_paper_says_holds_all_nine(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    found = scored(*good)
    assert {number: line["verdict"] for number, line in found.items()} == dict.fromkeys(range(1, 10), "holds")
    # half of all right answers are lost from 0 to 100 %: EM falls by half of 0.39
    assert found[1]["estimate"] == pytest.approx(-0.195, abs=0.03)
    assert found[1]["ci_low"] < -0.195 < found[1]["ci_high"]
    assert "b_kn test +5.9" in found[4]["note"]
    assert "b_unk test -12.1" in found[4]["note"]


def test_a_study_built_the_other_way_fails_all_nine() -> None:
    found = scored(*study(the_other_way, names()))
    assert {number: line["verdict"] for number, line in found.items()} == dict.fromkeys(range(1, 10), "fails")


def test_where_nothing_matters_harm_is_ruled_out_and_directions_are_not_decided() -> None:
    found = scored(*study(nothing_matters, names(), seeds=4, rows=2000))
    told = {number: line["verdict"] for number, line in found.items()}
    assert all(told[number] == "not decided" for number in (1, 2, 4, 5, 6, 8))
    assert told[7] == "holds"
    assert "D - D_Known at EARLY_STOP" in found[2]["note"]
    assert "points, holds; D - D_Known at CONVERGENCE" in found[2]["note"]
    assert "shown: D - D_Known at CONVERGENCE" in found[2]["note"]


def test_seeds_that_differ_leave_open_what_one_seed_would_claim() -> None:
    noisy = study(nothing_matters, names(known=False, single=False, idk=False), seeds=3, spread=0.08)
    wide, calm = (scored(*one)[1] for one in (noisy, study(nothing_matters, names(), seeds=3)))
    assert wide["ci_high"] - wide["ci_low"] > 2 * (calm["ci_high"] - calm["ci_low"])
    assert wide["verdict"] == "not decided"


def test_one_seed_says_that_seeds_are_not_in_the_interval(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    one = scored(*(frame.filter(pl.col("seed") == 0) for frame in good))
    three = scored(*good)
    for number in (1, 2, 3, 6, 7, 8, 9):
        assert one[number]["note"].endswith("one seed: differences between seeds are not in the interval")
        assert "one seed" not in three[number]["note"]
    assert one[4]["note"].endswith("120 points, errors clustered by 12 runs")


def test_what_the_study_lacks_is_not_tested_and_named(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    thin = [
        frame.filter(
            pl.col("variant").is_in(["unknown-0", "unknown-50", "only-HighlyKnown"]) & (pl.col("set") != "ood")
        )
        for frame in good
    ]
    found = scored(*thin)
    assert {number for number, line in found.items() if line["verdict"] == "not tested"} == {2, 5, 6, 8, 9}
    assert "D_Known" in found[2]["note"]
    assert "OOD" in found[5]["note"]
    assert "none of MaybeKnown" in found[6]["note"]
    assert "idk" in found[9]["note"]
    empty = [found[2][key] for key in ("estimate", "ci_low", "ci_high", "p", "p_holm", "mde")]
    assert empty == [None] * 6
    # two variants of three seeds are six runs
    assert found[1]["verdict"] == found[4]["verdict"] == "holds"


def test_single_categories_that_are_missing_are_named(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    found = scored(*(frame.filter(~pl.col("variant").is_in(["only-WeaklyKnown", "only-Unknown"])) for frame in good))
    assert found[6]["verdict"] == "holds"
    assert "no variant of WeaklyKnown or Unknown" in found[6]["note"]


def test_a_study_of_one_variant_tests_next_to_nothing(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    found = scored(*(frame.filter(variant="unknown-50") for frame in good))
    assert {number for number, line in found.items() if line["verdict"] != "not tested"} == {3, 7}
    assert "3 runs" in found[4]["note"] or "go together" in found[4]["note"]
    nothing = scored(*(frame.clear() for frame in good))
    assert {line["verdict"] for line in nothing.values()} == {"not tested"}


def test_runs_without_a_common_seed_are_not_compared(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    apart = [
        frame.filter((pl.col("seed") == 0) == (pl.col("kind" if "kind" in frame.columns else "variant") == name))
        for frame, name in zip(good, ("known", "none"), strict=True)
    ]
    outcomes = good[1].filter((pl.col("seed") == 0) == pl.col("variant").str.starts_with("known"))
    found = scored(apart[0], outcomes)
    assert found[2]["verdict"] == "not tested"
    assert "no seed is in all of" in found[2]["note"]


def test_a_d_known_that_forgets_at_the_end_is_a_loss(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    results, outcomes = good
    late_known = pl.col("variant").str.starts_with("known") & (pl.col("point") == "convergence")
    found = scored(results, outcomes.with_columns(pl.col("correct") & ~(late_known & (pl.col("row") % 2 == 0))))
    assert found[8]["verdict"] == "fails"
    assert "shown: D_Known at CONVERGENCE - D at EARLY_STOP" in found[8]["note"]
    assert "D - D_Known at EARLY_STOP" in found[2]["note"].split("points, holds")[0]


def test_the_margin_decides_what_is_no_harm(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    strict = [replace(claim, margin=0.0001) for claim in CLAIMS]
    found, strictly = scored(*good), scored(*good, claims=strict)
    assert found[9]["verdict"] == "holds"
    assert strictly[9]["verdict"] == "not decided"
    assert (found[9]["margin"], strictly[9]["margin"], found[1]["margin"]) == (0.02, 0.0001, None)
    assert strictly[9]["estimate"] == found[9]["estimate"]


def test_p_and_interval_speak_of_the_same_error(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    for line in scored(*good).values():
        assert line["ci_low"] < line["estimate"] < line["ci_high"]
        assert line["p"] < 0.05
        assert line["p"] <= line["p_holm"] <= 9 * line["p"]
        # half a 95 % interval is about two standard errors, the detectable effect 2.8
        assert 0.2 < line["mde"] / (line["ci_high"] - line["ci_low"]) < 0.75


def test_the_scorecard_is_the_same_for_the_same_seed(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    first, again, other = (scored(*good, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[1]["ci_low"] != other[1]["ci_low"]


def test_the_wrong_of_unknown_rows_has_an_interval_at_zero(good: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    results, outcomes = good
    none = outcomes.with_columns(pl.col("correct") & (pl.col("category") != UNKNOWN))
    line = scored(results, none)[7]
    assert line["estimate"] == 0
    assert line["ci_high"] == pytest.approx(3.84 / 203.84, rel=0.02)
    assert line["verdict"] == "holds"
    few = none.filter((pl.col("category") != UNKNOWN) | (pl.col("row") < 60))
    assert scored(results, few)[7]["verdict"] == "not decided"


def test_every_claim_has_its_contrast() -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 10)) == sorted(CONTRASTS)


def part(low: float, high: float, above: bool = True) -> ContrastPart:
    return ContrastPart("", (low + high) / 2, low, high, (high - low) / 3.92, 0.5, 0.0, above, 30.0, 0.5)


def test_a_claim_of_several_parts_holds_when_all_do_and_fails_when_any_does() -> None:
    yes, no, open_ = part(0.1, 0.2), part(-0.2, -0.1), part(-0.1, 0.1)
    assert verdict([yes, part(-0.2, -0.1, above=False)]) == "holds"
    assert verdict([yes, open_]) == "not decided"
    assert verdict([yes, open_, no]) == "fails"
    assert part(0.1, 0.2).support == pytest.approx(-part(0.1, 0.2, above=False).support)


def test_holm_has_the_values_that_statsmodels_gives() -> None:
    """`multipletests([0.01, 0.04, 0.03, 0.005, 0.9], method="holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_its_steps_reject(values: list[float]) -> None:
    """The definition: the smallest p against level / n, the next against level / (n - 1), until one is too large."""
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for done, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[place] * (len(values) - done) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(values)) if p <= level} == rejected


def test_categories_are_those_of_slick() -> None:
    assert set(EASE) == {*KNOWN, UNKNOWN}


@pytest.mark.parametrize(("df", "errors"), [(1, 12.706 + 1.376), (3, 3.182 + 0.978), (1e6, 1.96 + 0.8416)])
def test_no_effect_smaller_than_the_interval_counts_as_detectable(df: float, errors: float) -> None:
    assert detectable(0.01, df) == pytest.approx(0.01 * errors, rel=1e-3)
