"""The linear model: the paper's published points, errors that few runs allow, predictions, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from foreknow import paper
from foreknow.stages.study import cluster_robust
from foreknow.stages.study.linear_model import POINTS, as_json, fit, leave_out, paper_points, points, predict, within

TRUTH = np.array([0.36, 0.08, -0.09])


def simulated(
    seed: int, runs: int = 8, epochs: int = 6, between: float = 0.01, noise: float = 0.004, truth: np.ndarray = TRUTH
) -> pl.DataFrame:
    """Runs of shares 0 to 1 whose Known rows are fitted first, each with a level of its own."""
    generator = np.random.default_rng(seed)
    lines = []
    for run, share in enumerate(np.linspace(0, 1, runs)):
        level = generator.normal(0, between)
        for epoch in range(1, epochs + 1):
            known, unknown = (1 - share) * (1 - 0.5**epoch), share * (epoch / epochs) ** 2
            accuracy = truth @ [1, known, unknown] + level + generator.normal(0, noise)
            lines.append((f"v{run}-seed0", f"v{run}", 0, epoch, known, unknown, accuracy))
    return pl.DataFrame(lines, schema=POINTS, orient="row")


def arrays(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.column_stack([np.ones(frame.height), frame["known"], frame["unknown"]])
    return x, frame["accuracy"].to_numpy(), np.unique(frame["run"].to_numpy(), return_inverse=True)[1]


def test_the_papers_published_points_give_the_figures_worked_out_by_hand() -> None:
    found = fit(paper_points())
    assert found.intercept is not None
    assert found.known is not None
    assert found.unknown is not None
    assert [round(100 * c.value, 1) for c in (found.intercept, found.known, found.unknown)] == [40.1, 4.8, -10.5]
    assert found.r2 == pytest.approx(0.87, abs=0.005)
    assert (found.n, found.runs) == (14, 7)
    assert found.known.value > 0 > found.unknown.value


def test_least_squares_agrees_with_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api")
    x, y, cluster = arrays(simulated(0))
    ours, theirs = cluster_robust.least_squares(x, y, cluster), sm.OLS(y, x).fit()
    assert ours.coefficients == pytest.approx(theirs.params, rel=1e-9)
    assert ours.r2 == pytest.approx(theirs.rsquared)
    assert ours.residuals == pytest.approx(theirs.resid, abs=1e-12)


def test_the_sandwich_agrees_with_statsmodels_where_nothing_is_adjusted() -> None:
    """CR2 with every adjustment taken out is CR0, and statsmodels' correction makes it CR1."""
    sm = pytest.importorskip("statsmodels.api")
    x, y, cluster = arrays(simulated(1))
    ours = cluster_robust.least_squares(x, y, cluster)
    scores = np.array([x[cluster == g].T @ ours.residuals[cluster == g] for g in range(8)])
    plain = ours.bread @ scores.T @ scores @ ours.bread
    model = sm.OLS(y, x)
    for correction, factor in ((False, 1.0), (True, 8 / 7 * (len(y) - 1) / (len(y) - 3))):
        theirs = model.fit(cov_type="cluster", cov_kwds={"groups": cluster, "use_correction": correction})
        assert factor * plain == pytest.approx(theirs.cov_params(), rel=1e-9)


def test_with_clusters_of_one_point_cr2_is_hc2() -> None:
    sm = pytest.importorskip("statsmodels.api")
    x, y, _ = arrays(simulated(2))
    ours = cluster_robust.least_squares(x, y, np.arange(len(y)))
    assert ours.covariance == pytest.approx(sm.OLS(y, x).fit(cov_type="HC2").cov_params(), rel=1e-9)


def by_definition(x: np.ndarray, cluster: np.ndarray) -> list[np.ndarray]:
    """A_g X_g Q from the definition, by the eigenvectors of I - H_gg."""
    bread = np.linalg.inv(x.T @ x)
    found = []
    for g in range(cluster.max() + 1):
        mine = x[cluster == g]
        values, vectors = np.linalg.eigh(np.eye(len(mine)) - mine @ bread @ mine.T)
        found.append(vectors @ np.diag(values**-0.5) @ vectors.T @ mine @ bread)
    return found


def test_cr2_and_its_degrees_of_freedom_follow_the_definition() -> None:
    x, y, cluster = arrays(simulated(3))
    ours = cluster_robust.least_squares(x, y, cluster)
    adjusted, left = by_definition(x, cluster), np.eye(len(y)) - x @ np.linalg.inv(x.T @ x) @ x.T
    scores = np.array([adjusted[g].T @ ours.residuals[cluster == g] for g in range(8)])
    assert ours.covariance == pytest.approx(scores.T @ scores, rel=1e-9)
    for weights in (*np.eye(3), np.array([1.0, 0.4, 0.2])):
        columns = np.column_stack([left[:, cluster == g] @ adjusted[g] @ weights for g in range(8)])
        values = np.linalg.eigvalsh(columns.T @ columns)
        assert ours.contrast(weights).df == pytest.approx(values.sum() ** 2 / (values**2).sum())
        # unbiased where errors are alike and independent
        assert values.sum() == pytest.approx(weights @ np.linalg.inv(x.T @ x) @ weights)


def test_two_groups_of_one_point_clusters_have_the_known_degrees_of_freedom() -> None:
    few, many = 4, 9
    x = np.column_stack([np.ones(few + many), np.arange(few + many) < few]).astype(float)
    found = cluster_robust.least_squares(x, np.random.default_rng(0).normal(size=few + many), np.arange(few + many))
    expected = (1 / few + 1 / many) ** 2 / (1 / few**2 / (few - 1) + 1 / many**2 / (many - 1))
    assert found.contrast(np.array([0.0, 1.0])).df == pytest.approx(expected)


def test_cr2_covers_the_truth_with_eight_runs_and_the_usual_interval_does_not() -> None:
    hits = np.zeros(2)
    times, which = 500, 1
    for seed in range(times):
        x, y, cluster = arrays(simulated(seed))
        found = cluster_robust.least_squares(x, y, cluster)
        value, se, df = found.contrast(np.eye(3)[which])
        plain = (found.residuals @ found.residuals / (len(y) - 3) * found.bread[which, which]) ** 0.5
        hits += [
            abs(value - TRUTH[which]) <= t.ppf(0.975, df) * se,
            abs(value - TRUTH[which]) <= 1.96 * plain,
        ]
    cr2, usual = hits / times
    assert 0.92 <= cr2 <= 0.98
    assert usual < 0.8


def test_the_variances_between_and_within_runs_are_found_again() -> None:
    found = [
        cluster_robust.least_squares(*arrays(simulated(seed, runs=12, epochs=8, between=0.02, noise=0.01)))
        for seed in range(200)
    ]
    assert np.mean([one.between for one in found]) == pytest.approx(0.02**2, rel=0.1)
    assert np.mean([one.within for one in found]) == pytest.approx(0.01**2, rel=0.05)


def test_the_interval_for_a_new_run_covers_new_runs() -> None:
    inside, total = 0, 200
    for seed in range(total):
        told = predict(fit(simulated(seed)), 0.4, 0.2)
        generator = np.random.default_rng(10_000 + seed)
        new = TRUTH @ [1, 0.4, 0.2] + generator.normal(0, 0.01) + generator.normal(0, 0.004)
        assert told.low is not None
        assert told.high is not None
        inside += told.low <= new <= told.high
    assert 0.91 <= inside / total <= 0.99


def test_the_interval_of_the_line_is_inside_that_of_a_new_run() -> None:
    model = fit(simulated(6))
    line, new = predict(model, 0.4, 0.2, new_run=False), predict(model, 0.4, 0.2)
    assert line.value == new.value
    assert None not in (line.low, line.high, new.low, new.high)
    assert new.low < line.low < line.value < line.high < new.high  # type: ignore[operator]


def test_an_exact_line_is_found_exactly() -> None:
    model = fit(simulated(0, between=0, noise=0))
    assert model.known is not None
    assert model.known.value == pytest.approx(TRUTH[1])
    assert model.r2 == pytest.approx(1)
    assert predict(model, 0.5, 0.1).value == pytest.approx(TRUTH @ [1, 0.5, 0.1])


def test_under_five_runs_there_are_coefficients_and_no_interval() -> None:
    model = fit(simulated(0, runs=4))
    assert model.known is not None
    assert model.known.ci_low is None
    assert model.note == "no interval: 4 runs, at least 5 are needed"
    assert predict(model, 0.5, 0.1).low is None


def test_points_on_a_line_have_no_coefficients() -> None:
    model = fit(simulated(0).with_columns(unknown=1 - pl.col("known")))
    assert model.known is None
    assert "go together" in str(model.note)
    with pytest.raises(ValueError, match="predicts nothing"):
        predict(model, 0.5, 0.5)
    assert fit(simulated(0).clear()).note == "no points: no coefficients"


def test_a_coefficient_that_hangs_on_one_run_gets_no_interval() -> None:
    alone = simulated(0).with_columns(unknown=pl.when(pl.col("variant") == "v5").then("unknown").otherwise(0.0))
    model = fit(alone)
    assert model.unknown is not None
    assert model.unknown.ci_low is None
    assert "without v5-seed0 alone" in str(model.note)


def results(sizes: dict[str, int]) -> pl.DataFrame:
    """Runs as a study writes them: `size` is that of the full D, for D_Known too."""
    lines = []
    for name, size in sizes.items():
        kind = "known" if name.startswith("known") else "natural" if name == "natural" else "shares"
        for epoch in (1, 2):
            common = {"variant": name, "kind": kind, "seed": 3, "size": size, "epoch": epoch}
            lines += [
                common | {"set": "train", "category": "HighlyKnown", "rows": 30, "correct": 10 * epoch},
                common | {"set": "train", "category": "WeaklyKnown", "rows": 20, "correct": 5 * epoch},
                common | {"set": "test", "category": "all", "rows": 40, "correct": 10 + epoch},
                common | {"set": "test", "category": "Unknown", "rows": 10, "correct": 0},
            ]
            if kind != "known":
                lines.append(common | {"set": "train", "category": "Unknown", "rows": 50, "correct": 2 * epoch})
    return pl.DataFrame(lines)


def test_points_divide_by_the_full_size_also_for_d_known() -> None:
    frame = results({"unknown-50": 100, "known-of-50": 100, "natural": 100})
    found = points(frame, "test")
    assert found.schema == pl.Schema(POINTS)
    assert found.select("run", "epoch", "known", "unknown", "accuracy").rows() == [
        ("known-of-50-seed3", 1, 0.15, 0.0, 11 / 40),
        ("known-of-50-seed3", 2, 0.3, 0.0, 12 / 40),
        ("unknown-50-seed3", 1, 0.15, 0.02, 11 / 40),
        ("unknown-50-seed3", 2, 0.3, 0.04, 12 / 40),
    ]
    assert points(frame, "test", first_epoch=2)["epoch"].to_list() == [2, 2]
    assert points(frame, "ood").is_empty()


places = st.tuples(st.integers(0, 10), st.integers(0, 10))


def placed(found: list[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema={"known": pl.Float64, "unknown": pl.Float64}, orient="row") / 10


@given(st.lists(places, min_size=1, max_size=8), st.lists(st.integers(1, 9), min_size=8, max_size=8))
def test_every_weighted_mean_of_the_points_lies_within_them(found: list[tuple[int, int]], parts: list[int]) -> None:
    weights = np.array(parts[: len(found)])
    known, unknown = weights @ np.array(found) / weights.sum() / 10
    assert within(placed(found), float(known), float(unknown))


@given(st.lists(places, min_size=1, max_size=8), st.floats(0.001, 1))
def test_a_point_beyond_all_others_lies_outside(found: list[tuple[int, int]], more: float) -> None:
    assert not within(placed(found), max(known for known, _ in found) / 10 + more, 0.5)


def test_a_point_on_the_segment_between_two_points_lies_within() -> None:
    frame = pl.DataFrame({"known": [0.0, 1.0], "unknown": [0.0, 1.0]})
    assert within(frame, 0.5, 0.5)
    assert not within(frame, 0.5, 0.4)
    assert not within(frame.clear(), 0.5, 0.5)


def test_variants_left_out_are_predicted_and_mostly_covered() -> None:
    found = leave_out(simulated(7, runs=9))
    assert found.points.height == 54
    assert found.rmse == pytest.approx(0.011, abs=0.006)
    assert found.coverage is not None
    assert found.coverage > 0.8
    assert found.skipped == ()
    assert not found.points.filter(pl.col("variant") == "v0")["inside"].all()


def test_a_variant_of_another_kind_is_seen_when_left_out() -> None:
    odd = simulated(8, runs=9).with_columns(
        accuracy=pl.col("accuracy") - pl.when(pl.col("variant") == "v4").then(0.2).otherwise(0.0)
    )
    found = leave_out(odd).points.filter(pl.col("variant") == "v4")
    assert (found["accuracy"] < found["ci_low"]).all()


def test_a_variant_without_which_nothing_can_be_fitted_is_skipped() -> None:
    found = leave_out(simulated(0).with_columns(unknown=pl.when(variant="v5").then("unknown").otherwise(0.0)))
    assert found.skipped == ("v5",)


def test_the_json_is_plain_and_holds_the_checks() -> None:
    told = json.loads(
        json.dumps(as_json(fit(simulated(0)), [("from epoch 2", fit(simulated(0, runs=4)))]), allow_nan=False)
    )
    assert told["coefficients"]["b_unk"]["ci_low"] < -0.09 < told["coefficients"]["b_unk"]["ci_high"]
    assert told["n"] == 48
    assert told["checks"]["from epoch 2"]["note"].startswith("no interval")
    assert json.dumps(as_json(fit(simulated(0).clear())), allow_nan=False)


def test_the_papers_own_figures_stand_beside_it() -> None:
    for known, unknown in ((of["b_kn"], of["b_unk"]) for of in paper.LINEAR.values()):
        assert known > 0 > unknown
