"""The study of long answers: its sets, its claims on made-up outcomes, and one real run to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import foreknow
from builders import write_jsonl
from conftest import CAPITALS, RIVERS
from foreknow.data.builtin.lab_long import long_answers, read_lab_long
from foreknow.errors import ConfigError, InputError
from foreknow.io.run_dir import SEAL, read_json, with_checksum, write_json
from foreknow.pages import write_report
from foreknow.settings import settings_of
from foreknow.stages.mix.sampling import read_manifest
from foreknow.stages.study.estimate import estimate_long
from foreknow.stages.study.long_claims import long_claims, long_claims_table, long_scorecard, remedy_table
from foreknow.stages.study.long_grid import long_runs, long_variants, without_new
from foreknow.stages.study.long_measurements import SPAN_OUTCOMES, SPAN_RESULTS
from foreknow.stages.study.long_result import LongStudyResult, open_long_study
from foreknow.stages.study.long_run import _planned, run_long
from foreknow.stages.study.settings import StudyConfig

NO_ROWS = {"known": False, "only": [], "natural": False, "idk": [], "p_true": False}


def config(**given: Any) -> StudyConfig:
    base = {"data": "rows.jsonl", "spans": True, "unknown": [0, 0.5], "remedies": ["mask", "cut", "drop"], **NO_ROWS}
    return settings_of(StudyConfig, {**base, **given})


def test_every_share_has_its_remedies_and_every_seed_all_of_them() -> None:
    names = [variant.name for variant in long_variants(config(unknown=[0, 0.25, 0.5]))]
    assert names == [
        *("new-0", "new-25", "new-50"),
        *("mask-of-25", "cut-of-25", "drop-of-25", "mask-of-50", "cut-of-50", "drop-of-50"),
    ]
    assert [run.name for run in long_runs(config(seeds=2, remedies=["mask"]))] == [
        *("new-0-seed0", "new-50-seed0", "mask-of-50-seed0", "new-0-seed1", "new-50-seed1", "mask-of-50-seed1")
    ]


def test_settings_of_rows_and_of_spans_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="known: found with spans: true"):
        config(known=True)
    with pytest.raises(ConfigError, match="remedies: found without spans"):
        settings_of(StudyConfig, {"data": "rows.jsonl", "remedies": ["mask"]})


def test_the_labs_long_rows_say_where_their_facts_stand() -> None:
    rows = read_lab_long().rows
    records, places = long_answers()
    assert rows["answers"].list.first().to_list() == [record["answer"] for record in records]
    assert [json.loads(own) for own in rows["spans"]] == [record["spans"] for record in records]
    assert places.height == sum(len(record["spans"]) for record in records) == 1440
    for record in records:
        words = [record["answer"][s["start"] : s["end"]] for s in record["spans"]]
        assert all(word and record["answer"].count(word) == 1 for word in words)
    assert set(rows["split"]) == {"train", "dev", "test"}


LABELS = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "recognised", "new")


def made_up(loss: float, texts: int = 150, seeds: int = 3) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Results and outcomes of runs in which new spans cost `loss` of the kept spans at the end, and masking nothing."""
    rng = np.random.default_rng(0)
    results, outcomes = [], []
    luck = rng.random((texts, 5))
    for seed in range(seeds):
        for variant, kind, share in (("new-0", "shares", 0.0), ("new-50", "shares", 0.5), ("mask-of-50", "mask", 0.5)):
            for epoch, point in ((1, "early_stop"), (2, "convergence")):
                place = {"variant": variant, "kind": kind, "share": share, "seed": seed, "size": 90, "epoch": epoch}
                place |= {"step": 6 * epoch, "early_stop": epoch == 1, "convergence": epoch == 2}
                harm = loss if kind == "shares" and share and epoch == 2 else 0.0
                for label in LABELS:
                    fitted = 8 * epoch if label == "new" else 45
                    counts = {"set": "train", "label": label, "rows": 50, "correct": fitted}
                    if share or label != "new":
                        results.append({**place, **counts})
                chance = np.array([0.9, 0.9, 0.3, 0.1, 0.01]) - harm * np.array([1, 1, 1, 0, 0])
                said = luck + 0.05 * rng.standard_normal((texts, 5)) < chance
                outcomes += [
                    (variant, seed, point, "test", row, n, label, bool(said[row, n]))
                    for row in range(texts)
                    for n, label in enumerate(LABELS)
                ]
    return pl.DataFrame(results, schema=SPAN_RESULTS), pl.DataFrame(outcomes, schema=SPAN_OUTCOMES, orient="row")


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_claims_follow_what_became_of_the_spans(loss: float) -> None:
    results, outcomes = made_up(loss)
    scored = long_scorecard(results, outcomes, ("mask",), 0.05, draws=300)
    assert scored["claim"].to_list() == [1, 2, 3, 7, 8]
    assert scored["remedy"].to_list() == [None, "mask", None, None, "mask"]
    verdicts = dict(scored.select("claim", "verdict").iter_rows())
    assert verdicts[3] == "holds"  # 90 % of Known train spans are fitted and 16 % of new ones
    assert verdicts[7] == "holds"
    harmed = loss > 0
    assert (verdicts[1] == "holds") == harmed
    assert (verdicts[2] == "holds") == harmed
    assert (verdicts[8] == "holds") == harmed
    slope = scored.filter(pl.col("claim") == 1)["estimate"].item()
    # the mean over a text's five spans falls by three fifths of the loss from share 0 to share 0.5
    assert slope == pytest.approx(-loss * 3 / 5 / 0.5, abs=0.05)
    assert long_claims_table(scored)["remedy"].to_list() == ["", "mask", "", "", "mask"]
    table = remedy_table(results, outcomes, draws=300).to_dicts()
    late = {line["remedy"]: line for line in table if line["share"] == 0.5 and line["point"] == "convergence"}
    assert late["mask"]["difference"] == pytest.approx(loss, abs=0.04)
    assert (late["mask"]["ci_low"] > 0) == harmed
    assert late["none"]["difference"] is None
    assert (late["none"]["known_fitted"], late["none"]["new_fitted"]) == (0.9, 0.32)


def test_a_remedy_that_is_missing_is_not_tested() -> None:
    results, outcomes = made_up(0.0, texts=30, seeds=1)
    scored = long_scorecard(results, outcomes, ("cut",), 0.02, draws=50)
    assert scored.filter(pl.col("remedy") == "cut")["verdict"].to_list() == ["not tested"] * 2
    assert len(long_claims(("mask", "cut", "drop"), 0.02)) == 3 + 2 * 3


def test_dropping_leaves_only_rows_without_a_new_span() -> None:
    lines = "".join(json.dumps({"question": q, "answers": ["a"]}) + "\n" for q in ("one", "two", "three"))
    assert [json.loads(line)["question"] for line in without_new(lines, {"two"}).splitlines()] == ["one", "three"]


def story(country: str) -> dict[str, Any]:
    """A long row that brings its spans along: the capital, the river, and a number."""
    answer = f"The capital is {CAPITALS[country]}. The {RIVERS[country]} crosses it. It is {len(country)}7 miles long."
    texts = (CAPITALS[country], RIVERS[country], f"{len(country)}7 miles")
    spans = [{"start": answer.index(t), "end": answer.index(t) + len(t), "type": "name"} for t in texts]
    return {"question": f"Tell me of {country}.", "answer": answer, "spans": spans}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[StudyConfig, LongStudyResult]:
    folder = tmp_path_factory.mktemp("long")
    splits = ["train"] * 14 + ["dev"] * 4 + ["test"] * 6
    records = [{**story(name), "split": split} for name, split in zip(CAPITALS, splits, strict=True)]
    given = {
        "data": str(write_jsonl(folder / "rows.jsonl", records)), "model": str(tiny_folder), "out": folder / "study",
        "unknown": [0.6], "remedies": ["mask", "cut"],
        "audit": {"dtype": "float32", "device": "cpu", "max_answer_tokens": 4, "span_sets": 1, "span_alternatives": 2},
        "tune": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "dtype": "float32", "device": "cpu"},
    }  # fmt: skip
    settings = config(**given)
    return settings, run_long(settings)


def test_a_share_that_leaves_nothing_to_drop_is_refused(study: tuple[StudyConfig, LongStudyResult]) -> None:
    settings, done = study
    assert done.audit.rows["new_spans"].min() == 1
    with pytest.raises(InputError, match="drop-of-60-seed0: no row of its D is without a new span"):
        _planned(settings.model_copy(update={"remedies": ("drop",)}), done.audit, done.folder)


def test_a_real_study_runs_to_its_end(study: tuple[StudyConfig, LongStudyResult]) -> None:
    settings, done = study
    audited = done.audit.rows
    assert audited["n_spans"].to_list() == [3] * 24  # the spans that the rows brought
    written = {
        name: read_json_lines(done.folder / "variants" / "seed-0" / f"{name}.jsonl")
        for name in ("new-60", "mask-of-60", "cut-of-60")
    }
    whole = {row["question"]: row["answers"] for row in written["new-60"]}
    assert {row["question"]: row["answers"] for row in written["mask-of-60"]} == whole
    assert all(len(row["answers"][0]) <= len(whole[row["question"]][0]) for row in written["cut-of-60"])
    assert {row["question"]: row["answers"] for row in written["cut-of-60"]} != whole
    manifest = read_manifest(done.folder / "variants" / "seed-0" / "mask-of-60.jsonl")
    assert manifest["spans"]["mask"]["spans"] == manifest["spans"]["new"] > 0
    test = done.outcomes.filter((pl.col("set") == "test") & (pl.col("point") == "convergence"))
    assert set(test.group_by("variant").len()["len"]) == {18}
    fitted = done.results.filter((pl.col("set") == "train") & (pl.col("label") == "all") & pl.col("convergence"))
    assert dict(fitted.select("variant", "rows").iter_rows())["new-60"] == 3 * len(whole)
    assert done.tables["claims"]["claim"].to_list() == [1, 2, 2, 3, 7, 8, 8]
    scored = json.loads((done.folder / "scorecard.json").read_text())
    assert [line["verdict"] for line in scored] == done.tables["claims"]["verdict"].to_list()
    page = (done.folder / "report.html").read_text()
    assert "Mask, cut or drop what is new" in page
    assert "their sentences cut" in page
    given = {k: v for k, v in settings.resolved().items() if k != "out"}
    again = foreknow.study(str(settings_file_of(done.folder, given)), out=str(done.folder))
    assert isinstance(again, LongStudyResult)  # complete: nothing to do


def test_a_further_seed_does_only_its_own_runs(
    study: tuple[StudyConfig, LongStudyResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, done = study
    folder = tmp_path / "study"
    shutil.copytree(done.folder, folder)
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")}
    more = run_long(settings.model_copy(update={"out": folder, "seeds": settings.seeds + 1}))
    runs = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")}
    assert len(runs) == len(before) // settings.seeds * (settings.seeds + 1)
    assert {name: time for name, time in runs.items() if name in before} == before
    assert set(more.results["seed"]) == set(range(settings.seeds + 1))
    old = more.results.filter(pl.col("seed") < settings.seeds)
    assert old.equals(done.results)


def test_the_cost_is_estimated_and_nothing_is_written(
    study: tuple[StudyConfig, LongStudyResult], tmp_path: Path
) -> None:
    settings, done = study
    found = estimate_long(settings.model_copy(update={"out": tmp_path / "nowhere"}))
    assert found["runs"] == len(long_runs(settings))
    assert found["epochs"] == 2
    assert found["seconds"] > 0
    assert found["long_answers"] == done.audit.rows.height
    assert not (tmp_path / "nowhere").exists()


def settings_file_of(folder: Path, given: dict[str, Any]) -> Path:
    """Write settings into a file, as a person would."""
    file = folder.parent / "study.yaml"
    file.write_text(yaml.safe_dump(given))
    return file


def read_json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_is_written_again_from_the_results_alone(study: tuple[StudyConfig, LongStudyResult]) -> None:
    _, done = study
    before = (done.folder / "report.html").read_text()
    (done.folder / "report.html").unlink()
    assert write_report(done.folder) == done.folder / "report.html"
    assert (done.folder / "report.html").read_text() == before
    assert (read_json(done.folder / "manifest.json") or {})["stage"] == "long study"
    with pytest.raises(InputError, match="study"):
        open_long_study(done.folder / "audit")


def test_a_folder_whose_manifest_lacks_the_spans_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(Path(__file__).parents[1] / "docs" / "studies" / "lab-long", folder)
    assert open_long_study(folder).manifest["spans"]["labelled"] == 1440
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in ("spans", SEAL)}
    write_json(folder / "manifest.json", with_checksum(kept))
    with pytest.raises(InputError, match=r"manifest\.json: found no counts of the audit's spans; delete this file"):
        open_long_study(folder)
