"""The tables of a study: what the frames say, held against a truth that is known and against the paper's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow import paper
from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, UNKNOWN
from foreknow.stages.study import differences as study_differences
from foreknow.stages.study import sweep_run as study_sweep
from foreknow.stages.study import tables as study_tables
from foreknow.stages.study.aggregation import ALL, EARLY, LATE, intervals_of, with_known
from foreknow.stages.study.claims import SCORECARD
from foreknow.stages.study.measurements import RESULTS
from foreknow.stages.study.result import StudyResult
from synthetic_study import BASE, EARLY_EPOCH, grid, simulated, write_study

SCHEMAS = {
    "curves": study_tables.CURVES,
    "shares": study_tables.SHARES,
    "fitted": study_tables.FITTED,
    "linear": study_tables.LINEAR,
    "single": study_tables.SINGLE,
    "differences": study_differences.DIFFERENCES,
    "ood": study_tables.SHARES,
    "sweep": study_sweep.SWEEP,
    "refusals": study_differences.REFUSALS,
    "claims": SCORECARD,
}


@pytest.fixture(scope="session")
def measured() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulated()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, measured: Any) -> StudyResult:
    return StudyResult(write_study(tmp_path_factory.mktemp("study") / "whole", *measured))


@pytest.fixture(scope="session")
def tables(study: StudyResult) -> dict[str, pl.DataFrame]:
    return study_tables.all_tables(study)


def one(frame: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    found = frame.filter(*(pl.col(name) == value for name, value in wanted.items()))
    assert found.height == 1, wanted
    return found.row(0, named=True)


def test_every_table_is_there_with_its_columns_and_goes_into_a_csv(tables: dict[str, pl.DataFrame]) -> None:
    assert {name: dict(frame.schema) for name, frame in tables.items()} == SCHEMAS
    for frame in tables.values():
        assert frame.height > 0
        assert frame.write_csv().count("\n") > frame.height


def test_a_share_is_the_mean_over_seeds_and_its_spread_is_theirs(
    measured: Any, tables: dict[str, pl.DataFrame]
) -> None:
    results = measured[0]
    at = results.filter(variant="unknown-50", set="test", category="all").filter("convergence")
    by_seed = (at["correct"] / at["rows"]).to_list()
    line = one(tables["shares"], variant="unknown-50", point=LATE, category=ALL)
    assert line["em"] == pytest.approx(sum(by_seed) / len(by_seed))
    assert (line["seed_min"], line["seed_max"], line["seeds"]) == (min(by_seed), max(by_seed), 2)
    assert line["ci_low"] < line["seed_min"] <= line["em"] <= line["seed_max"] < line["ci_high"]


def test_known_is_the_three_known_categories_together(measured: Any) -> None:
    whole = with_known(measured[0]).filter(variant="unknown-50", seed=1, set="test", epoch=2)
    parts = whole.filter(pl.col("category").is_in(CATEGORIES[:3])).select("rows", "correct").sum().row(0)
    assert whole.filter(category="Known").select("rows", "correct").row(0) == parts
    unknown = whole.filter(category=UNKNOWN).select("rows", "correct").row(0)
    every = whole.filter(category=ALL).select("rows", "correct").row(0)
    assert every == tuple(a + b for a, b in zip(parts, unknown, strict=True))


def test_points_with_outcomes_get_the_wider_interval_and_fixed_epochs_wilsons(tables: dict[str, pl.DataFrame]) -> None:
    ends = tables["shares"].filter(variant="unknown-0", category=ALL).select("point", "interval").rows()
    assert dict(ends) == {EARLY: "rows and seeds", "epoch 5": "rows", LATE: "rows and seeds"}


def test_a_category_is_the_base_models(measured: Any) -> None:
    found = intervals_of(measured[1].filter(variant="unknown-0"))
    assert found["category"].n_unique() == len(CATEGORIES) + 2
    line = one(found, point=LATE, set="test", category=HIGHLY_KNOWN)
    assert line["ci_low"] < BASE[HIGHLY_KNOWN] + 0.03
    assert line["ci_high"] > BASE[HIGHLY_KNOWN]


def test_the_papers_figures_stand_beside_ours_where_it_has_them(tables: dict[str, pl.DataFrame]) -> None:
    shares, single, refusals = tables["shares"], tables["single"], tables["refusals"]
    assert one(shares, variant="unknown-50", point=EARLY, category=ALL)["paper"] == 0.43
    assert one(shares, variant="known-of-75", point=LATE, category=ALL)["paper"] == pytest.approx(0.407)
    assert one(shares, variant="unknown-100", point=LATE, category=HIGHLY_KNOWN)["paper"] == 0.558
    assert one(shares, variant="unknown-50", point="epoch 5", category=ALL)["paper"] is None
    assert tables["ood"]["paper"].null_count() == tables["ood"].height
    assert one(single, trained="MaybeKnown", point=EARLY, category=ALL)["paper"] == 0.436
    assert one(single, trained="natural", point=LATE, category=UNKNOWN)["paper"] == 0.025
    assert one(tables["fitted"], trained_on="D", share=0.75, point=EARLY, part=UNKNOWN)["paper"] == 0.1
    assert one(tables["curves"], trained_on="D", epoch=8, measure="dev")["paper"] == pytest.approx(0.432)
    assert one(tables["curves"], trained_on="D", epoch=4, measure="dev")["paper"] is None
    assert one(tables["linear"], set="ood", fit="from epoch 1", coefficient="b_unk")["paper"] == -0.03
    late = one(refusals, trained_on="D_IDK", point=LATE)
    assert (late["paper_accuracy"], late["paper_coverage"]) == (0.618, 0.556)
    assert late["paper_yield"] == pytest.approx(0.344, abs=0.001)


def test_the_harm_put_into_the_study_comes_out_and_only_late(tables: dict[str, pl.DataFrame]) -> None:
    found = tables["differences"].filter(set="test", contrast="without Unknown", first="unknown-75")
    early, late = one(found, first_point=EARLY), one(found, first_point=LATE)
    assert early["ci_low"] < 0 < early["ci_high"]
    assert late["ci_low"] > 0
    assert late["parts_p"] < 0.05
    model = tables["linear"].filter(set="test", fit="from epoch 2")
    # the truth: a quarter of EM is lost where all of D is Unknown and fitted, whichever rows are drawn
    b0, b_unk = (one(model, coefficient=name)["value"] for name in ("b0", "b_unk"))
    assert b_unk == pytest.approx(-0.25 * b0, abs=0.04)  # of 400 rows


def test_without_harm_no_contrast_claims_any() -> None:
    variants = [v for v in grid((0.0, 0.5)) if v.kind in ("shares", "known")]
    found = study_tables.tables(*simulated(harm=0.0, variants=variants))["differences"]
    clear = found.filter((pl.col("ci_low") > 0) | (pl.col("ci_high") < 0))
    assert found.height == 2 * (2 + 2 + 3)
    assert clear.height <= 1  # of 14 at 95 %


def test_contrasts_hold_the_paper_against_the_same_pair(tables: dict[str, pl.DataFrame]) -> None:
    found = tables["differences"].filter(set="test")
    line = one(found, contrast="share", second="unknown-100", second_point=LATE)
    assert line["paper"] == pytest.approx(0.258 - 0.426)
    best = one(found, contrast="single category", first="only-HighlyKnown", second_point=EARLY)
    assert (best["second"], best["paper"]) == ("only-MaybeKnown", pytest.approx(0.436 - 0.405))
    assert line["mcnemar_p"].startswith("seed 0: ")
    assert found.filter(contrast="training on")["first"].n_unique() == len(grid())


def test_tests_are_one_a_seed_and_the_papers_needs_a_hundred_rows() -> None:
    variants = [v for v in grid((0.0, 1.0)) if v.kind == "shares"]
    few = study_tables.tables(*simulated(variants=variants, sets={"dev": 20, "test": 60, "ood": 20}))["differences"]
    assert few["parts_p"].null_count() == few.height
    assert all(len(p.split("; ")) == 2 for p in few["mcnemar_p"])


def test_accuracy_when_answering_is_right_over_answered(measured: Any, tables: dict[str, pl.DataFrame]) -> None:
    results = measured[0].filter(variant="idk-50", category="all").filter("convergence")
    right = results.filter(set="test")
    refused = results.filter(set="test_refused")
    line = one(tables["refusals"], trained_on="D_IDK", point=LATE)
    share = refused["correct"].sum() / refused["rows"].sum()
    assert line["coverage"] == pytest.approx(1 - share)
    assert line["accuracy"] == pytest.approx(right["correct"].sum() / right["rows"].sum() / (1 - share))
    assert line["accuracy_ci_low"] < line["accuracy"] < line["accuracy_ci_high"]
    assert line["refused_unknown"] > 0.6 > line["refused_highly_known"] > 0
    plain = one(tables["refusals"], trained_on="D", point=LATE)
    assert (plain["measured"], plain["coverage"], plain["accuracy"]) == (False, 1.0, plain["yield"])


def test_test_rows_are_found_again_in_the_audit_by_their_order(study: StudyResult) -> None:
    rows = study_sweep.tested_rows(study.audit.rows, study.relations)
    audited = study.audit.rows.join(rows.select(row="audited"), on="row", how="semi")
    assert audited["group"].unique().sort().to_list() == ["capital", "founder", "river"]  # spouse was left out
    assert audited["category"].to_list() == rows["category"].to_list()
    assert rows["row"].to_list() == list(range(rows.height))


def test_the_sweep_has_the_audits_own_budget_first_and_slick_below_a_weaker_score(
    tables: dict[str, pl.DataFrame],
) -> None:
    swept = tables["sweep"]
    own = swept.filter(score="SliCK").row(0, named=True)
    assert (own["setting"], own["variant"], own["point"]) == ("5 sets x 16 samples", "natural", LATE)
    rival = swept.filter(pl.col("score") == "P(True)").filter(pl.col("share") <= own["share"] + 0.02)
    assert own["em"] < rival["em"][-1]
    thinned = swept.filter(pl.col("score") == "P(True)")["share"]
    assert len(thinned) <= study_sweep.THRESHOLDS + 1
    assert thinned[-1] == 1.0


def test_rows_that_do_not_match_the_audit_make_no_sweep(study: StudyResult, tmp_path: Path, measured: Any) -> None:
    results, outcomes = measured
    other = StudyResult(write_study(tmp_path / "other", results, outcomes))
    moved = other.audit.rows.with_columns(category=pl.col("category").shift(1, fill_value=UNKNOWN))
    moved.write_parquet(other.folder / "audit" / "rows.parquet")
    assert study_sweep.swept(StudyResult(other.folder)).is_empty()


@pytest.mark.parametrize(
    ("kinds", "empty"),
    [
        ({"shares"}, {"single", "refusals"}),
        ({"single", "natural"}, {"curves", "shares", "fitted", "linear", "ood", "refusals"}),
        ({"idk"}, {"curves", "shares", "fitted", "linear", "single", "ood"}),
    ],
)  # fmt: skip
def test_a_table_without_its_runs_is_empty(kinds: set[str], empty: set[str]) -> None:
    variants = [v for v in grid((0.0, 0.5)) if v.kind in kinds]
    made = study_tables.tables(*simulated(1, 4, 60, variants=variants, sets={"dev": 40, "test": 40, "ood": 20}))
    assert {name for name, frame in made.items() if frame.is_empty()} == empty
    assert all(dict(frame.schema) == SCHEMAS[name] for name, frame in made.items())


def test_a_study_without_any_run_has_all_tables_empty(measured: Any) -> None:
    made = study_tables.tables(pl.DataFrame(schema=RESULTS), measured[1].clear())
    assert all(frame.is_empty() for frame in made.values())
    assert study_tables.table(pl.DataFrame(schema=RESULTS)).is_empty()


def test_seeds_that_lack_runs_are_counted_and_contrasts_use_those_in_common(measured: Any) -> None:
    results, outcomes = measured
    kept = ~((pl.col("variant") == "unknown-100") & (pl.col("seed") == 1)) & pl.col("variant").str.contains("unknown-")
    made = study_tables.tables(results.filter(kept), outcomes.filter(kept))
    seeds = made["shares"].filter(point=LATE, category=ALL).select("variant", "seeds").rows()
    assert {name: count for name, count in seeds if count == 1} == {"unknown-100": 1}
    assert one(made["differences"], set="test", contrast="share", second="unknown-100", second_point=LATE)["seeds"] == 1
    assert one(made["differences"], set="test", contrast="share", second="unknown-75", second_point=LATE)["seeds"] == 2


def test_the_terminal_gets_a_line_a_share(measured: Any, tables: dict[str, pl.DataFrame]) -> None:
    small = study_tables.table(measured[0])
    names = ["D EARLY_STOP", "D CONVERGENCE", "D_Known EARLY_STOP", "D_Known CONVERGENCE"]
    assert small.columns == ["share", *names]
    assert small["share"].to_list() == [f"{share}% Unknown" for share in (0, 25, 50, 75, 100)]
    half = one(small, share="50% Unknown")
    wanted = one(tables["shares"], variant="known-of-50", point=LATE, category=ALL)["em"]
    assert half["D_Known CONVERGENCE"] == f"{100 * wanted:.1f}"
    assert one(small, share="100% Unknown")["D_Known EARLY_STOP"] == ""


def test_early_stop_is_the_runs_own_epoch(tables: dict[str, pl.DataFrame]) -> None:
    assert set(tables["shares"].filter(point=EARLY)["epoch"]) == {float(EARLY_EPOCH)}


def test_the_refit_of_the_papers_points_is_not_table_1_and_says_so(tables: dict[str, pl.DataFrame]) -> None:
    refit = tables["linear"].filter(fit="the paper's 14 points").select("coefficient", "value").rows()
    assert dict(refit) == {
        "b0": pytest.approx(0.401, abs=0.001),
        "b_kn": pytest.approx(0.048, abs=0.001),
        "b_unk": pytest.approx(-0.105, abs=0.001),
    }


@given(st.sampled_from(paper.SHARES), st.sampled_from(["D", "D_Known"]), st.sampled_from([EARLY, LATE]))
def test_all_figures_of_the_paper_are_shares(share: int, on: str, point: str) -> None:
    figure = paper.exact_match(on, share / 100, point)
    assert (figure is None) == (on == "D_Known" and share == 100)
    assert figure is None or 0.25 < figure.value < 0.45
    assert paper.exact_match(on, share / 100 + 0.001, point) is None


def test_the_papers_own_tables_agree_with_each_other() -> None:
    """All Unknown is in Figure 3 and in Table 2; half Unknown in Figure 3 and beside the refusals."""
    for point in (EARLY, LATE):
        wholly, half = (paper.exact_match("D", share, point) for share in (1.0, 0.5))
        assert wholly is not None
        assert half is not None
        assert wholly.value == (paper.single(UNKNOWN, point) or wholly._replace(value=0.0)).value
        assert half.value == (paper.refusals("D", point) or (half._replace(value=0.0),))[0].value
        assert wholly.printed
        assert half.printed
    read_off = paper.exact_match("D", 0.1, EARLY)
    assert read_off is not None
    assert not read_off.printed
