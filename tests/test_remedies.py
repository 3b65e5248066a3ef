"""The study of remedies: curves read at the same share learnt, intervals, the recommendation, a small study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import write_jsonl
from conftest import Cli, fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import RemediesConfig, TuneConfig
from foreknow.config.remedies import RECIPES
from foreknow.errors import ConfigError, InputError
from foreknow.pages import write_report
from foreknow.report.hold_option import comparison_beside, hold_option
from foreknow.report.remedies import firmness_table
from foreknow.settings import settings_of
from foreknow.stages.remedies.comparison import compare
from foreknow.stages.remedies.matching import Matched, difference, estimate, match_recipe, read_at
from foreknow.stages.remedies.points import COSTS, KNOWN, OUTCOMES, POINTS, known_rows
from foreknow.stages.remedies.recipes import ADAPTER_FACTOR, SMALLER, advised_settings, recipe, trainings, tune_settings
from foreknow.stages.remedies.recommendation import recommend
from foreknow.stages.remedies.result import open_remedies
from foreknow.stages.remedies.sets import matching_wordings, study_sets


def curve(
    name: str, learnt: Sequence[float], kept: Sequence[float], *, rate: float = 1e-3, seed: int = 0
) -> pl.DataFrame:
    lines = [
        {"recipe": name, "rate": rate, "seed": seed, "at": float(at), "learnt": new, "known_before": 100,
         "known_kept": old, "known_gained": 0.0, "kl": float(at)}
        for at, (new, old) in enumerate(zip(learnt, kept, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(lines, schema=POINTS)


def rows_of(points: pl.DataFrame, rows: int = 100) -> pl.DataFrame:
    """Outcomes that agree with the points: the first rows are kept."""
    lines = [
        (name, rate, seed, at, row, row < round(kept * rows))
        for name, rate, seed, at, kept in points.select("recipe", "rate", "seed", "at", "known_kept").iter_rows()
        for row in range(rows)
        if at > 0
    ]
    return pl.DataFrame(lines, schema=OUTCOMES, orient="row")


def known_of(rows: int = 100) -> pl.DataFrame:
    """Watched rows of which the first half was given surely before training."""
    lines = [(row, f"question {row}", 1.0 if row < rows / 2 else 0.5) for row in range(rows)]
    return pl.DataFrame(lines, schema=KNOWN, orient="row")


def test_a_curve_is_read_by_a_straight_line() -> None:
    own = curve("plain", [0.0, 0.4, 0.8, 1.0], [1.0, 0.8, 0.4, 0.3])
    reading = read_at(own, 0.5)
    assert reading is not None
    assert (reading.low, reading.high, reading.part) == (1.0, 2.0, pytest.approx(0.25))
    assert reading.values["known_kept"] == pytest.approx(0.7)
    assert reading.values["kl"] == pytest.approx(1.25)
    assert reading.values["reworded"] is None
    whole = read_at(own, 1.0)
    assert whole is not None
    assert whole.values["known_kept"] == pytest.approx(0.3)


def test_a_share_that_is_not_reached_or_passed_unseen_is_not_read() -> None:
    assert read_at(curve("plain", [0.0, 0.4], [1.0, 0.8]), 0.5) is None
    assert read_at(curve("known-late", [0.7, 0.9], [0.8, 0.7]), 0.5) is None, "what lies before is another recipe"


def test_a_dip_in_what_is_learnt_does_not_count_as_reaching_it_later() -> None:
    own = curve("plain", [0.0, 0.6, 0.3, 0.9], [1.0, 0.5, 0.9, 0.2])
    reading = read_at(own, 0.5)
    assert reading is not None
    assert reading.high == 1.0


def test_the_kept_rows_agree_with_the_curve() -> None:
    points = pl.concat([curve("kl", [0.0, 0.4, 1.0], [1.0, 0.9, 0.6], seed=seed) for seed in (0, 1)])
    one = match_recipe(points, rows_of(points), 0.7)
    assert one is not None
    assert one.kept.value == pytest.approx(0.75)
    assert one.measures["known_kept"] == pytest.approx(0.75)
    assert (one.seeds, one.of_seeds) == (2, 2)


def test_the_rate_that_every_seed_learns_with_comes_first() -> None:
    slow = curve("plain", [0.0, 1.0], [1.0, 0.9], rate=1e-4)
    fast = pl.concat([curve("plain", [0.0, 1.0], [1.0, 0.5], seed=seed) for seed in (0, 1)])
    never = curve("plain", [0.0, 0.2], [1.0, 0.99], rate=1e-4, seed=1)
    points = pl.concat([slow, never, fast])
    one = match_recipe(points, rows_of(points), 0.9)
    assert one is not None
    assert (one.rate, one.seeds) == (1e-3, 2)


def test_the_interval_counts_rows_and_seeds() -> None:
    one_seed = estimate([[1.0] * 80 + [0.0] * 20])
    assert one_seed.low is not None
    assert one_seed.high is not None
    spread = sqrt(0.8 * 0.2 * 100 / 99 / 100)
    assert (one_seed.high - one_seed.low) / 2 == pytest.approx(1.984 * spread, rel=1e-3)
    draw = np.random.default_rng(0)
    same = draw.random(200) < 0.7
    alike = estimate([same.astype(float).tolist()] * 3)
    apart = estimate([np.roll(same, n).astype(float).tolist() if n else [0.0] * 200 for n in range(3)])
    assert alike.low is not None
    assert alike.high is not None
    assert apart.low is not None
    assert apart.high is not None
    assert apart.high - apart.low > 3 * (alike.high - alike.low), "seeds that differ widen the interval"


def test_intervals_cover_the_truth_over_rows_and_seeds() -> None:
    """Rows and seeds are drawn again and again: 95 % of the intervals hold the mean that both were drawn around."""
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        row = draw.normal(0.0, 1.0, 60)
        seed = draw.normal(0.0, 0.1, 4)
        table = (row[None, :] + seed[:, None] + draw.normal(0, 0.3, (4, 60))).tolist()
        found = estimate(table)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.0 <= found.high
    assert hits / 300 >= 0.93


def matched(name: str, table: Sequence[Sequence[float]], seeds: Sequence[int] = (0, 1, 2)) -> Matched:
    rows = tuple(tuple(line) for line in table)
    places = tuple(range(len(rows[0])))
    return Matched(name, 0.9, 1e-3, len(rows), len(rows), estimate(rows), rows, tuple(seeds), places, {})


def same_rows(share: float, rows: int = 100) -> list[list[float]]:
    return [[float(row < share * rows) for row in range(rows)]] * 3


def test_a_clear_difference_is_recommended_and_a_small_one_is_not_told() -> None:
    advice = recommend(
        [matched("plain", same_rows(0.3)), matched("kl", same_rows(0.92)), matched("replay", same_rows(0.91))], 0.9
    )
    assert advice.recipe is not None
    assert advice.recipe.recipe == "kl"
    assert advice.alike == ("replay",)
    assert set(advice.worse) == {"plain"}
    assert advice.worse["plain"].value == pytest.approx(0.62)


def test_the_study_may_say_that_it_cannot_tell() -> None:
    advice = recommend([matched("plain", same_rows(0.9)), matched("kl", same_rows(0.92))], 0.9)
    assert advice.recipe is None
    assert "cannot tell" in advice.reason
    some = matched("kl", same_rows(0.9))._replace(of_seeds=5)
    assert "No recipe learnt 90%" in recommend([some], 0.9).reason


def test_differences_are_paired() -> None:
    """Each row and seed is compared with itself, so that a small difference can be told apart."""
    first, second = matched("a", same_rows(0.9)), matched("b", same_rows(0.8))
    apart = difference(first, second)
    assert apart is not None
    assert apart.value == pytest.approx(0.1)
    assert apart.low is not None
    assert apart.low > 0
    assert difference(first, matched("b", same_rows(0.8), seeds=(7, 8, 9))) is None


def test_the_comparison_holds_every_recipe_and_its_curve() -> None:
    points = pl.concat(
        [
            curve(name, [0.0, 0.5, 1.0], [1.0, kept, kept], seed=seed)
            for name, kept in (("plain", 0.3), ("kl", 0.9))
            for seed in (0, 1)
        ]
    )
    costs = pl.DataFrame(
        [(name, 1e-3, seed, 10, 0.1, 1.0, 0.5) for name in ("plain", "kl") for seed in (0, 1)],
        schema=COSTS,
        orient="row",
    )
    found = compare(points, rows_of(points), costs, known_of())
    assert found.table.height == 8
    assert found.recommendation.recipe is not None
    assert found.recommendation.recipe.recipe == "kl"
    at = found.curves.filter((pl.col("recipe") == "plain") & (pl.col("learnt") == 0.5))
    assert at["lost"][0] == pytest.approx(0.7)
    assert found.ends["kl"]["known_kept"] == pytest.approx(0.9)


COSTLESS = pl.DataFrame([("plain", 1e-3, 0, 10, 0.1, 1.0, 0.5)], schema=COSTS, orient="row")


def test_what_is_kept_is_counted_by_how_surely_it_was_known() -> None:
    """The first 30 of 100 rows are kept; the model gave the first 50 in all samples and the others in half of them."""
    points = curve("plain", [0.0, 0.9], [1.0, 0.3])
    found = compare(points, rows_of(points), COSTLESS, known_of())
    at = found.firmness.filter(pl.col("learnt") == 0.9).sort("from")
    assert at.select("from", "to", "rows", "kept").rows() == [(0.0, 0.7, 50, 0.0), (0.95, 1.0, 50, 0.6)]
    table = firmness_table(found)
    assert table is not None
    assert table.bins == ("under 70 % of samples (50 facts)", "95 % and more of samples (50 facts)")
    assert table.sentence == "Every recipe keeps clearly less of the facts that the model gave least surely (the intervals lie apart)."  # fmt: skip # noqa: E501
    alike = known_of().with_columns(p_sampled=pl.when(pl.col("row") % 2 == 0).then(0.5).otherwise(1.0))
    other = firmness_table(compare(points, rows_of(points), COSTLESS, alike))
    assert other is not None
    assert other.sentence == "No recipe clearly keeps less of the facts that the model gave least surely."


def test_an_audit_without_samples_says_nothing_of_how_surely_facts_were_known() -> None:
    points = curve("plain", [0.0, 0.9], [1.0, 0.3])
    unsampled = known_of().with_columns(p_sampled=pl.lit(None, pl.Float64))
    found = compare(points, rows_of(points), COSTLESS, unsampled)
    assert found.firmness.is_empty()
    assert firmness_table(found) is None


def test_watched_rows_take_what_the_audit_sampled_by_their_question() -> None:
    watched = pl.DataFrame({"row": [0, 1], "question": ["b", "c"], "before": [True, True]})
    audited_rows = pl.DataFrame({"question": ["a", "b", "b"], "p_sampled": [0.1, 0.2, 0.9]})
    assert known_rows(watched, audited_rows).rows() == [(0, "b", 0.2), (1, "c", None)]


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_a_run_of_tune(name: str) -> None:
    config = settings_of(RemediesConfig, {"data": "d", "recipes": [name], "rates": "1e-3,1e-4", "seeds": 2})
    own = trainings(config, config.rates)
    assert [(one.rate, one.seed) for one in own] == [(1e-3, 0), (1e-4, 0), (1e-3, 1), (1e-4, 1)]
    factor = {"small-rate": SMALLER, "lora": ADAPTER_FACTOR}.get(name, 1)
    settings = tune_settings(own[0], config)
    assert settings["learning_rate"] == pytest.approx(1e-3 * factor)
    assert recipe(name).training in {one.training for one in own}
    averaged = ("plain", "kl", "kl-all", "kl-known-epoch", "replay+kl")
    assert bool(settings["average"]) == (recipe(name).training in averaged)


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_advice_trains_as_the_studys_own_runs_did(name: str) -> None:
    config = settings_of(RemediesConfig, {"data": "d", "recipes": [name], "tune": {"batch_size": 6}})
    advised = settings_of(TuneConfig, {"train": "t", **advised_settings(name, 1e-3, config)})
    studied = settings_of(TuneConfig, {"train": "t", **tune_settings(trainings(config, (1e-3,))[0], config)})
    for setting in (
        "learning_rate",
        "epochs",
        "patience",
        "metric",
        "stop_fitted",
        "keep",
        "batch_size",
        "replay",
        "kl",
        "kl_teacher",
    ):
        assert getattr(advised, setting) == getattr(studied, setting), setting
    assert (advised.method, advised.trainable, advised.known_late) == (
        studied.method,
        studied.trainable,
        studied.known_late,
    )
    assert advised.canaries == "auto"
    assert bool(advised.average) == (recipe(name).view == "average")
    assert advised.kl_rows == ("known" if name in ("kl", "kl+average") else "auto")


def test_recipes_that_average_cost_no_training_of_their_own() -> None:
    config = settings_of(RemediesConfig, {"data": "d", "recipes": "plain,average,kl,kl+average", "seeds": 1})
    assert [one.training for one in trainings(config, (1e-3,))] == ["plain", "kl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipes": "plain,magic"}, "found 'magic', expected all, or some of plain"),
        ({"rates": "0"}, "expected numbers above 0"),
        ({"tune": {"kl": 3}}, "found kl, which the study sets itself"),
        ({"audit": {"out": "x"}}, "found out, which the study sets itself"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(RemediesConfig, {"data": "d", **settings})


def audited(counts: dict[tuple[str, str], int]) -> pl.DataFrame:
    lines = [
        {"question": f"{group}: who is {category} {n}?", "answers": [f"a{n}"], "subject": f"{category} {n}",
         "group": group, "category": category, "earlier_turns": None, "flags": []}
        for (group, category), count in counts.items()
        for n in range(count)
    ]  # fmt: skip
    schema = {"earlier_turns": pl.String(), "flags": pl.List(pl.String())}
    return pl.DataFrame(lines, schema_overrides=schema)


def test_the_sets_share_no_question_and_hold_what_they_say() -> None:
    rows = audited({("g", "Unknown"): 90, ("g", "HighlyKnown"): 120, ("g", "MaybeKnown"): 9, ("h", "HighlyKnown"): 30})
    sets = study_sets(rows, ("h",), 80, 200)
    assert {name: own.height for name, own in sets.items()} == {
        "new": 80, "dev": 12, "known": 54, "replay": 54, "other": 30, "hold": 73,
    }  # fmt: skip
    questions = pl.concat(own["question"] for name, own in sets.items() if name != "replay")
    assert questions.is_unique().all()
    assert set(sets["other"]["relation"]) == {"h"}
    assert set(sets["replay"]["relation"]) == {"g"}
    assert sets["hold"]["category"].value_counts().sort("category").rows() == [
        ("HighlyKnown", 54), ("MaybeKnown", 9), ("Unknown", 10)
    ]  # fmt: skip
    assert set(sets["replay"]["question"]) < set(sets["hold"]["question"])
    again = study_sets(rows.sample(fraction=1.0, shuffle=True, seed=3), ("h",), 80, 200)
    assert all(sets[name].equals(again[name]) for name in sets), "which rows are drawn depends on their texts alone"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="needs 20 rows for the set 'new'; the audit leaves 3"):
        study_sets(audited({("g", "Unknown"): 3, ("g", "HighlyKnown"): 90}), (), 80, 200)
    with pytest.raises(InputError, match="no rows of relation 'x'"):
        study_sets(audited({("g", "Unknown"): 30}), ("x",), 80, 200)


def test_another_wording_of_a_fact_is_asked_and_not_taught() -> None:
    rows = audited({("g", "Unknown"): 30, ("g", "HighlyKnown"): 90})
    twice = rows.filter(pl.col("category") == "Unknown").with_columns(question=pl.col("question") + " Say it.")
    sets = study_sets(pl.concat([rows, twice]), (), 80, 200)
    assert (sets["new"].height, sets["reworded"].height) == (30, 30)
    file = twice.with_columns(group=pl.lit("g"))
    assert matching_wordings(file, sets["new"], "f").height >= 1
    with pytest.raises(InputError, match="no row has the subject and the gold"):
        matching_wordings(file.with_columns(subject=pl.lit("someone")), sets["new"], "f")


@given(
    st.lists(st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=3), min_size=150, max_size=220), st.randoms()
)
@settings(max_examples=20, deadline=None)
def test_no_fact_is_in_two_sets_in_different_words(facts: list[list[str]], random: Random) -> None:
    """Each fact is asked in one to three wordings, each of a category of its own."""
    rows = [
        {
            **audited({("g", category): 1}).to_dicts()[0],
            "question": f"{n} in words {w}",
            "subject": f"s{n}",
            "answers": [f"a{n}"],
        }
        for n, wordings in enumerate([[c] for c in ("Unknown", "HighlyKnown", "HighlyKnown") * 30] + facts)
        for w, category in enumerate(wordings)
    ]
    random.shuffle(rows)
    schema = {"earlier_turns": pl.String(), "flags": pl.List(pl.String())}
    sets = study_sets(pl.DataFrame(rows, schema_overrides=schema), (), 80, 200)
    subjects = {name: set(own["subject"]) for name, own in sets.items()}
    assert subjects["replay"] <= subjects["hold"]
    assert subjects.get("reworded", set()) <= subjects["new"]
    for one, other in combinations(("new", "dev", "known", "replay", "hold"), 2):
        if (one, other) != ("replay", "hold"):
            assert not subjects[one] & subjects[other], (one, other)


def test_the_share_of_the_recommendation_is_one_that_two_recipes_reach() -> None:
    points = pl.concat([curve("plain", [0.0, 0.85], [1.0, 0.3]), curve("kl", [0.0, 0.95], [1.0, 0.9])])
    costs = pl.DataFrame([(name, 1e-3, 0, 10, 0.1, 1.0, 0.5) for name in ("plain", "kl")], schema=COSTS, orient="row")
    found = compare(points, rows_of(points), costs, known_of())
    assert found.recommendation.target == 0.8
    assert found.recommendation.recipe is not None


def test_the_published_study_gives_its_page_and_its_figures(tmp_path: Path) -> None:
    """docs/remedies.md quotes this study: its page, written again from the committed results."""
    folder = tmp_path / "study"
    shutil.copytree(Path(__file__).parent.parent / "docs/studies/lab-remedies", folder)
    page = write_report(folder).read_text()
    study = open_remedies(folder)
    assert study.comparison["recipe"] == "kl-all+average"
    kept = {(line["recipe"], line["learnt"]): line["kept"] for line in study.comparison["table"]}
    assert [f"{100 * kept[name, 0.95]:.0f}" for name in ("plain", "kl", "kl-all+average")] == ["18", "86", "95"]
    sure = [line for line in study.comparison["firmness"] if line["from"] == 0.95 and line["learnt"] == 0.95]
    assert {line["recipe"]: f"{100 * line['kept']:.0f}" for line in sure}["kl-all+average"] == "99"
    assert "whose rows of every category, where they are not in NEW, hold the model" in page
    assert "Which known facts are lost" in page
    assert "foreknow tune NEW --model MODEL --audit AUDIT --config study/recipe.yaml --out RUN" in page
    advised = settings_of(TuneConfig, {"train": "new.jsonl"}, folder / "recipe.yaml")
    assert (advised.learning_rate, advised.kl, advised.stop_fitted, advised.average[-1]) == (2e-4, 10.0, 0.99, 1.0)
    (folder / "points.parquet").unlink()
    with pytest.raises(
        InputError, match=r"points.parquet: missing, though the run was finished; put it back, or delete"
    ):
        open_remedies(folder)
    with pytest.raises(InputError, match=r"not a finished remedies run: .* a foreknow study remedies command"):
        open_remedies(tmp_path)
    quoted = (Path(__file__).parent.parent / "docs/remedies.md").read_text()
    assert "| **`kl-all+average` at 2e-4** | **98, 98** | **97, 97** | **96, 97** | **95, 97** | 0 | 13 |" in quoted


@pytest.fixture(scope="session")
def study_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two recipes and one seed on the tiny model, run through the command line."""
    folder = tmp_path_factory.mktemp("remedies")
    rows = [{k: r[k] for k in ("question", "answer", "subject", "relation")} for r in fact_rows()]
    new = [
        {
            "question": f"Which river crosses Land{n}?",
            "answer": f"River {n}x",
            "subject": f"Land{n}",
            "relation": "river",
        }
        for n in range(12)
    ]
    data = write_jsonl(folder / "facts.jsonl", rows + new)
    wordings = [{**row, "question": f"Name the river of {row['subject']}"} for row in new]
    template = folder / "prompt.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    tune = {"batch_size": 6, "dropout": 0, "prompt_template": str(template), "dtype": "float32", "device": "cpu",
            "canaries": "none"}  # fmt: skip
    settings = folder / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "data": str(data),
                "model": str(tiny_folder),
                "reworded": str(write_jsonl(folder / "w.jsonl", wordings)),
                "audit": {"exemplar_sets": 2, "shots": 2, "dtype": "float32", "device": "cpu"},
                "tune": tune,
                "rates": [3e-3],
                "epochs": 6,
                "seeds": 1,
            }
        )
    )
    return folder


def test_a_study_compares_resumes_and_grows(study_folder: Path, run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreknow.stages.remedies.sets.FEWEST", 4)
    out = study_folder / "out"
    words = ["study", "remedies", "--config", study_folder / "settings.yaml", "--out", out]
    code, shown, told = run(*words, "--recipes", "plain,average")
    assert code == 0, told
    assert "average" in shown
    assert (f"--config {out / 'recipe.yaml'} --out RUN" in shown) == (out / "recipe.yaml").is_file()
    study = open_remedies(out)
    assert set(study.points["recipe"]) == {"plain", "average"}
    results = json.loads((out / "runs" / "plain-rate0.003-seed0" / "results.json").read_text())
    assert not (out / "runs" / "plain-rate0.003-seed0" / "averaged").exists(), "weights are deleted"
    page = write_report(out).read_text()
    before = results["watched_known"]["known"]["before"]
    assert f"“Kept” counts {before} known facts" in page
    assert "were watched, as canaries: none asks" in page
    assert "knows too few packaged facts" not in page
    # the curve says what the run's own lines say
    metrics = (out / "runs" / "plain-rate0.003-seed0" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    own = study.points.filter((pl.col("recipe") == "plain") & (pl.col("at") > 0)).sort("at")
    known = [line["watched_known"]["known"] for line in lines]
    assert own["known_kept"].to_list() == pytest.approx([one["kept"] / one["before"] for one in known])
    assert own["learnt"].to_list() == [line["fitted_overall"] for line in lines]
    assert own["reworded"].null_count() == 0
    assert results["learning_rate"] is None
    # outcomes and points agree
    kept = study.outcomes.filter(pl.col("recipe") == "plain").group_by("at").agg(pl.col("correct").mean()).sort("at")
    assert kept["correct"].to_list() == pytest.approx(own["known_kept"].to_list())
    page = (out / "report.html").read_text()
    for text in ("of the new facts are learnt", "retrieval", "Each recipe with its", "Made-up subjects"):
        assert text in page
    again = (out / "runs" / "plain-rate0.003-seed0" / "results.json").stat().st_mtime_ns
    assert run(*words, "--recipes", "plain,average")[0] == 0
    assert run(*words, "--recipes", "plain,average,kl")[0] == 0
    assert (out / "runs" / "plain-rate0.003-seed0" / "results.json").stat().st_mtime_ns == again
    assert set(open_remedies(out).points["recipe"]) == {"plain", "average", "kl"}
    assert run("report", out)[0] == 0


def test_a_dry_run_says_what_the_study_would_cost(study_folder: Path, run: Cli) -> None:
    words = ["study", "remedies", "--config", study_folder / "settings.yaml", "--out", study_folder / "dry"]
    code, shown, told = run(*words, "--recipes", "plain,kl", "--dry-run")
    assert code == 0, told
    assert "trainings" in shown
    assert "most runs end earlier" in shown
    assert not (study_folder / "dry").exists()


def comparison_of(fingerprint: str, **more: Any) -> dict[str, Any]:
    own = {
        "model": {"fingerprint": fingerprint}, "sets": {"new": 80, "known": 200}, "target": 0.9, "recipe": "kl",
        "settings": {"kl": 3.0, "learning_rate": 5e-4}, "settings_file": "recipe.yaml",
        "kept": {"value": 0.91, "ci_low": 0.88, "ci_high": 0.94}, "plain_kept": 0.28,
        "seeds": 3, "alike": ["replay+kl"], "reason": "",
    }  # fmt: skip
    return {**own, **more}


def test_pages_use_a_study_of_the_same_model_that_lies_beside(tmp_path: Path) -> None:
    run_folder = tmp_path / "audit"
    for name, own in {
        "other": comparison_of("sha256:b", seeds=9), "small": comparison_of("sha256:a", seeds=1),
        "large": comparison_of("sha256:a"), "old": {"model": {"fingerprint": "sha256:a"}},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text(json.dumps(own))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "comparison.json").write_text("{")
    found = comparison_beside(run_folder, "sha256:a")
    assert found is not None
    assert Path(found["folder"]).name == "large"
    assert comparison_beside(run_folder, "sha256:c") is None
    assert comparison_beside(run_folder, None) is None
    option = hold_option(found, tuned=False)
    assert "it kept 91 % (88 to 94 %) of 200 known ones (3 seeds); plain training kept 28 %" in option.evidence
    assert "cannot tell it from replay+kl" in option.evidence
    assert option.command == "foreknow tune TRAIN --model MODEL --audit AUDIT --config large/recipe.yaml --out NEW"
    assert option.source == "The study in large"


def test_pages_without_a_study_name_their_sources_and_the_command_of_one(tmp_path: Path) -> None:
    option = hold_option(None, tuned=True)
    assert "docs/remedies.md" in option.evidence
    assert "arXiv 2604.15574" in option.evidence
    assert "foreknow study remedies DATA --model MODEL --out REMEDIES" in option.command
    undecided = hold_option(
        {**comparison_of("a", recipe=None, reason="These runs cannot tell."), "folder": "x"}, tuned=True
    )
    assert undecided.evidence == "These runs cannot tell."
