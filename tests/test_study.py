"""A whole study on the tiny model: every stage, stopped and taken up again, grown, and every message."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from conftest import CAPITALS, RIVERS
from foreknow.categories import CATEGORIES
from foreknow.data.schema import ROWS, flag_rows
from foreknow.errors import ConfigError, ForeknowError, InputError, RunFolderError
from foreknow.io.csv_escape import table_of
from foreknow.io.run_dir import SEAL, checksums_of, read_json, with_checksum, write_json
from foreknow.pages import write_report
from foreknow.settings import settings_of
from foreknow.stages.study import run as study_run
from foreknow.stages.study.data_split import DATA, left_out_text, study_rows
from foreknow.stages.study.estimate import estimate
from foreknow.stages.study.grid import runs, variants
from foreknow.stages.study.measurements import OUTCOMES, RESULTS
from foreknow.stages.study.result import StudyResult, open_study
from foreknow.stages.study.settings import SETS, StudyConfig, preset_names, settings_file, study_settings
from foreknow.stages.study.setup import identity_of
from foreknow.stages.study.stored_runs import _count_again

Make = Callable[..., StudyConfig]


def rows_of(count: int = 24) -> list[dict[str, Any]]:
    """Facts of two relations in splits, and rivers' lengths as a third, held out of training."""
    found = []
    for relation, question, table in (
        ("capital", "What is the capital of {}?", CAPITALS),
        ("river", "Which river crosses {}?", RIVERS),
    ):
        for n, (subject, answer) in enumerate(list(table.items())[:count]):
            split = ("train", "train", "train", "dev", "test", "train", "test", "train")[n % 8]
            found.append({
                "question": question.format(subject), "answer": answer, "subject": subject, "relation": relation,
                "split": split,
            })  # fmt: skip
    return found


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Make:
    folder = tmp_path_factory.mktemp("study")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of()), encoding="utf-8")
    template = folder / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    tune = {
        "epochs": 2, "learning_rate": 3e-4, "batch_size": 4, "prompt_template": str(template), "dtype": "float32",
        "device": "cpu",
    }  # fmt: skip

    def made(out: Path, **more: Any) -> StudyConfig:
        base = {
            "data": str(data), "model": str(tiny_folder), "out": out, "unknown": [0, 0.5, 1], "only": [],
            "natural": False, "idk": [0.5], "fixed_epochs": [1], "size": 4, "p_true": False,
            "audit": {"exemplar_sets": 2, "shots": 2, "dtype": "float32", "device": "cpu"}, "tune": tune,
        }  # fmt: skip
        return settings_of(StudyConfig, {**base, **more})

    return made


@pytest.fixture(scope="session")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return study_run.run(make(tmp_path_factory.mktemp("studies") / "first"))


def test_a_study_measures_every_run_at_every_epoch(finished: StudyResult) -> None:
    results, outcomes = finished.results, finished.outcomes
    assert results.schema == RESULTS
    assert outcomes.schema == OUTCOMES
    assert set(results["variant"]) == {"unknown-0", "unknown-50", "unknown-100", "known-of-50", "idk-50"}
    assert set(results["epoch"]) == {1, 2}
    assert set(results.filter(pl.col("kind") != "idk")["set"]) == {"train", "dev", "test"}
    assert "test_refused" in set(results.filter(pl.col("kind") == "idk")["set"])
    assert set(results["category"]) <= {"all", *CATEGORIES}
    assert (results["correct"] <= results["rows"]).all()
    train = results.filter((pl.col("set") == "train") & (pl.col("category") == "all") & pl.col("convergence"))
    sizes = dict(train.select("variant", "rows").iter_rows())
    assert sizes == {"unknown-0": 4, "unknown-50": 4, "unknown-100": 4, "known-of-50": 2, "idk-50": 4}
    assert set(results["size"]) == {4}
    best = results.filter(pl.col("early_stop")).select("variant", "epoch").unique()
    assert best["variant"].n_unique() == best.height


def test_what_a_row_did_adds_up_to_the_shares(finished: StudyResult) -> None:
    counted = (
        finished.outcomes.filter(pl.col("point") == "convergence")
        .group_by("variant", "set")
        .agg(n=pl.len().cast(pl.Int64), hits=pl.col("correct").sum().cast(pl.Int64))
    )
    told = finished.results.filter(
        pl.col("convergence") & (pl.col("category") == "all") & (pl.col("set") != "train")
    ).select("variant", "set", "rows", "correct")
    both = told.join(counted, on=["variant", "set"])
    assert both.height == told.height
    assert (both["rows"] == both["n"]).all()
    assert (both["correct"] == both["hits"]).all()


def test_weights_are_deleted_unless_kept(finished: StudyResult) -> None:
    for folder in (finished.folder / "runs").iterdir():
        if folder.is_dir():
            assert {"metrics.jsonl", "outcomes.parquet", "results.json", "manifest.json"} <= {
                path.name for path in folder.iterdir()
            }
            assert not (folder / "early_stop").exists()
            assert not (folder / "convergence").exists()


def test_a_finished_study_is_not_done_again(
    finished: StudyResult, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished.folder / "results.parquet").stat().st_mtime_ns
    study_run.run(make(finished.folder))
    assert "this study is complete; nothing to do" in capsys.readouterr().err
    assert (finished.folder / "results.parquet").stat().st_mtime_ns == before


def test_what_else_is_asked_of_a_finished_study_is_added(
    finished: StudyResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(finished.folder, folder)
    capsys.readouterr()
    more = study_run.run(make(folder, p_true=True, fixed_epochs=[2]))
    assert "nothing to do" not in capsys.readouterr().err.replace("audit: this audit is complete; nothing to do", "")
    assert more.results.equals(finished.results)
    assert pl.read_parquet(folder / "ptrue.parquet").height
    assert "epoch 2" in set(more.tables["shares"]["point"])
    study_run.run(make(folder, p_true=True, fixed_epochs=[2]))
    assert "this study is complete; nothing to do" in capsys.readouterr().err


def test_what_cannot_be_added_leaves_a_finished_study_finished(
    finished: StudyResult, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(finished.folder, folder)

    def refused(*_: object) -> study_run.AuditResult:
        raise RunFolderError("made by another run")

    monkeypatch.setattr(study_run, "run_audit", refused)
    with pytest.raises(RunFolderError):
        study_run.run(make(folder, natural=True))
    assert open_study(folder).results.equals(finished.results)


def test_sets_that_make_all_others_smaller_are_refused(make: Make, tmp_path: Path) -> None:
    first = {"unknown": [0.5], "known": False, "idk": [], "size": None}
    done = study_run.run(make(tmp_path / "s", **first))
    with pytest.raises(InputError, match=r"unknown-50 was trained with \|D\| = \d+; .* it is \d+\. Choose"):
        study_run.run(make(tmp_path / "s", **first, only=["WeaklyKnown"]))
    assert open_study(tmp_path / "s").results.equals(done.results)


def test_another_seed_does_only_what_is_missing(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"unknown": [0.5], "known": False, "idk": []}
    first = study_run.run(make(tmp_path / "s", **small)).results
    capsys.readouterr()
    grown = study_run.run(make(tmp_path / "s", **small, seeds=2)).results
    told = capsys.readouterr().err
    assert "1 of 2 runs are done; going on" in told
    assert "run 2 of 2: unknown-50-seed1" in told
    assert grown.filter(pl.col("seed") == 0).equals(first)
    assert set(grown["seed"]) == {0, 1}


def published(finished: StudyResult, folder: Path) -> Path:
    """Copy what is kept of a study that is published: its measurements and its manifest, without audit and runs."""
    folder.mkdir()
    for name in ("results.parquet", "outcomes.parquet", "manifest.json"):
        shutil.copy(finished.folder / name, folder / name)
    return folder


def test_a_study_goes_on_from_its_results_alone(
    finished: StudyResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(finished, tmp_path / "s")
    grown = study_run.run(make(folder, natural=True))
    told = capsys.readouterr().err
    assert "run 6 of 6: natural-seed0" in told
    assert grown.results.filter(pl.col("variant") != "natural").equals(finished.results)
    assert grown.outcomes.filter(pl.col("variant") != "natural").equals(finished.outcomes)
    assert set(grown.results.filter(pl.col("variant") == "natural")["epoch"]) == {1, 2}


def test_stored_runs_get_the_categories_of_another_audit(
    finished: StudyResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand for a machine whose rounding gave one test row, of one set, another category than the stored runs say."""
    folder = published(finished, tmp_path / "s")
    row = finished.outcomes.filter(pl.col("set") == "test")["row"][0]
    mine = (pl.col("set") == "test") & (pl.col("row") == row)
    true = finished.outcomes.filter(mine)["category"][0]
    other = next(name for name in CATEGORIES if name != true)
    moved = finished.outcomes.with_columns(category=pl.when(mine).then(pl.lit(other)).otherwise("category"))
    stored_results = _count_again(finished.results, moved)
    assert not stored_results.equals(finished.results)
    _store(folder, stored_results, moved)
    grown = study_run.run(make(folder, natural=True))
    rows = finished.outcomes.filter(pl.col("set") == "test")["row"].n_unique()
    assert (
        f"this audit gives 1 of {rows} test rows another category than the stored runs had" in capsys.readouterr().err
    )
    assert grown.manifest["rows_with_new_category"] == {"test": 1}
    assert grown.outcomes.filter(pl.col("variant") != "natural").equals(finished.outcomes)
    assert grown.results.filter(pl.col("variant") != "natural").equals(finished.results)


def test_stored_runs_on_other_rows_are_refused_before_any_run(
    finished: StudyResult, make: Make, tmp_path: Path
) -> None:
    folder = published(finished, tmp_path / "s")
    last = finished.outcomes.filter(pl.col("set") == "test")["row"].max()
    fewer = finished.outcomes.filter((pl.col("set") != "test") | (pl.col("row") != last))
    _store(folder, finished.results, fewer)
    with pytest.raises(InputError, match=r"seed0: its \d+ test rows at \w+ are not the \d+ of this audit.*--out"):
        study_run.run(make(folder, natural=True))
    assert not (folder / "runs").exists()


def _store(folder: Path, results: pl.DataFrame, outcomes: pl.DataFrame) -> None:
    """Write a study's measurements with the checksums that its manifest keeps of them."""
    results.write_parquet(folder / "results.parquet")
    outcomes.write_parquet(folder / "outcomes.parquet")
    manifest = read_json(folder / "manifest.json") or {}
    manifest.pop(SEAL)
    manifest["files"] |= checksums_of(folder, ("results.parquet", "outcomes.parquet"))
    write_json(folder / "manifest.json", with_checksum(manifest))


def test_damaged_results_are_named(finished: StudyResult, make: Make, tmp_path: Path) -> None:
    folder = published(finished, tmp_path / "s")
    (folder / "outcomes.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"outcomes.parquet: damaged or edited.*or delete \S*outcomes.parquet and run"):
        study_run.run(make(folder, natural=True))


def test_other_settings_need_another_folder(finished: StudyResult, make: Make) -> None:
    with pytest.raises(RunFolderError, match=r"made by another run: size: 4 -> 2"):
        study_run.run(make(finished.folder, size=2))


@pytest.mark.slow
def test_several_at_once_measure_the_same(finished: StudyResult, make: Make, tmp_path: Path) -> None:
    together = study_run.run(make(tmp_path / "s", workers=2))
    assert together.results.equals(finished.results)
    assert together.outcomes.equals(finished.outcomes)


def _start(config: StudyConfig, folder: Path) -> subprocess.Popen[bytes]:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in config.resolved().items() if k not in ("out", "dry_run")}))
    command = [sys.executable, "-m", "foreknow", "study", str(file), "--out", str(config.out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_it_ends_in_the_same_results(
    finished: StudyResult, make: Make, tmp_path: Path, workers: int
) -> None:
    rng, config = random.Random(workers), make(tmp_path / "s", workers=workers)
    for _ in range(5):
        process = _start(config, tmp_path)
        time.sleep(rng.uniform(4, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # workers end with their parent
    again = study_run.run(config)
    assert again.results.equals(finished.results)
    assert again.outcomes.equals(finished.outcomes)


def test_the_cost_is_told_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    found = estimate(make(tmp_path / "s", seeds=2))
    assert (found["runs"], found["epochs"], found["rows_of_a_set"]) == (10, 2, 4)
    assert found["seconds"] > 0
    assert "runs_finished" not in found
    assert not (tmp_path / "s").exists()


def test_what_a_study_has_finished_costs_nothing_more(finished: StudyResult, make: Make, tmp_path: Path) -> None:
    whole = estimate(make(finished.folder))
    assert (whole["runs"], whole["runs_finished"], whole["audit"], whole["seconds"]) == (5, 5, "finished", 0)
    another_seed = estimate(make(finished.folder, seeds=2))
    assert (another_seed["runs"], another_seed["runs_finished"], another_seed["audit"]) == (10, 5, "finished")
    stored = shutil.copytree(finished.folder, tmp_path / "s", ignore=shutil.ignore_patterns("runs", "audit"))
    elsewhere = estimate(make(stored, seeds=2))
    assert (elsewhere["runs"], elsewhere["runs_finished"]) == (10, 5)
    assert elsewhere["audit"] != "finished"
    for other in ({"size": 3}, {"tune": {**make(None).tune, "epochs": 5}}):
        with pytest.raises(RunFolderError, match="made by another run"):
            estimate(make(finished.folder, **other))


def test_relations_held_out_of_training_are_only_asked(make: Make, tmp_path: Path) -> None:
    study = study_run.run(make(tmp_path / "s", ood=["river"], unknown=[0.5], known=False, idk=[], size=2))
    assert set(study.outcomes.filter(pl.col("set") == "ood")["group"]) == {"river"}
    assert set(study.outcomes.filter(pl.col("set") == "test")["group"]) == {"capital"}
    for file in (study.folder / "variants" / "seed-0").glob("*.jsonl"):
        assert set(pl.read_ndjson(file)["relation"]) == {"capital"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ood": ["moons"]}, "ood: found no rows of relation 'moons'; relations are capital, river"),
        ({"size": 5000}, "--size 5000: the largest size is "),
        ({"above_floor": 1.0}, "above_floor 1.0: no relation with train rows is that far above its floor"),
    ],
)
def test_what_cannot_be_studied_is_refused(make: Make, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        study_run.run(make(tmp_path / "s", **more))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tune": {"epoch": 3}}, "--epoch: no such setting; known are"),
        ({"tune": {"seed": 3}}, "found seed, which the study sets itself"),
        ({"tune": {"watch_rows": 50}}, "found watch_rows, which the study sets itself"),
        ({"audit": {"shots": -1}}, "--shots: found -1"),
        ({"unknown": [50]}, "found 50, expected shares from 0 to 1"),
        ({"rows": {"valid": 3}}, "found valid: 3, expected a number from 1 on for train, dev, test, ood"),
        ({"seeds": 0}, "found 0"),
    ],
)
def test_settings_are_checked_before_anything_runs(
    make: Make, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "s", **more)
    assert message in str(caught.value)


def test_every_preset_is_a_study() -> None:
    assert {"quick", "paper"} <= set(preset_names())
    for name in preset_names():
        config = study_settings(name, {})
        assert runs(config)
    with pytest.raises(ConfigError, match=r"^nope: found no such file, expected one of .*quick"):
        settings_file("nope")


def test_the_papers_grid() -> None:
    config = study_settings("paper", {})
    names = [v.name for v in variants(config)]
    assert len(names) == len(set(names)) == 7 + 5 + 4 + 1 + 1
    assert names[:2] == ["unknown-50", "known-of-50"]


@pytest.mark.parametrize(
    "name",
    ["gemma", "gemma-single", "lab", "lab-fair", "lab-single", "lab-single-contested", "smollm2", "smollm2-single"],
)
def test_a_study_in_the_docs_can_go_on(name: str) -> None:
    """Its settings find their prompt and are those of its manifest, so that its command adds seeds to a copy of it."""
    folder = Path(__file__).parents[1] / "docs" / "studies" / name
    file = folder / "study.yaml"
    config = study_settings(str(file) if file.is_file() else name, {})
    assert "prompt_template" not in config.tune or Path(config.tune["prompt_template"]).is_file()
    now = identity_of(config, pl.DataFrame(), "model", study_run._NO_IDENTITY)
    then = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["identity"]
    assert {**then, "data": 0, "model": 0} == {**json.loads(json.dumps(now)), "data": 0, "model": 0}


@pytest.mark.parametrize("name", ["gemma-idk", "gemma-single", "lab-fair", "lab-long-40", "lab-single-contested"])
def test_the_tables_of_a_study_in_the_docs_come_from_its_measurements(name: str, tmp_path: Path) -> None:
    """`foreknow report` on a copy of a published folder, which has no rows and no audit, makes every table again."""
    published = Path(__file__).parents[1] / "docs" / "studies" / name
    folder = tmp_path / name
    shutil.copytree(published, folder)
    for file in (folder / "tables").iterdir():
        if file.stem != "sweep":  # which only the audit can give
            file.unlink()
    (folder / "scorecard.json").unlink()
    page = write_report(folder)
    assert "claim" in page.read_text(encoding="utf-8")
    for file in (published / "tables").iterdir():
        old, new = (table_of(path.read_text(encoding="utf-8")) for path in (file, folder / "tables" / file.name))
        assert_frame_equal(old, new, rel_tol=1e-9, abs_tol=1e-12)
    verdicts = [
        [line["verdict"] for line in json.loads((at / "scorecard.json").read_text(encoding="utf-8"))]
        for at in (published, folder)
    ]
    assert verdicts[0] == verdicts[1]


texts = st.sampled_from([f"q{n}" for n in range(12)])


@given(
    st.lists(st.tuples(texts, st.sampled_from(["train", "dev", "test", "test_ood", None])), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_no_question_stands_in_two_sets(pairs: list[tuple[str, str | None]], seed: int) -> None:
    rows = [
        {"row": n, "question": q, "answers": [f"a{n}"], "group": "g", "relation": "g", "split": s, "flags": []}
        for n, (q, s) in enumerate(pairs)
    ]
    frame = flag_rows(pl.DataFrame([{k: r.get(k) for k in ROWS} for r in rows], schema=ROWS))
    try:
        found = study_rows(frame, (), {}, seed)
    except ForeknowError:
        return
    assert found.schema == DATA
    assert found["question"].is_unique().all()
    assert set(found["question"]) == {q for q, _ in pairs}
    assert {"train", "dev", "test"} <= set(found["split"])
    assert set(SETS) >= {"ood"}
    told = left_out_text(frame, found.height)
    assert (told is None) == (found.height == len(pairs))
    if told is not None:
        assert f"{len(pairs) - found.height} with the question of another row" in told


def test_a_study_says_which_rows_it_leaves_out() -> None:
    texts = [("q0", "a", "train"), ("q0", "b", "dev"), ("q1", "a", "test"), ("q2", None, "test"), ("q4", "a", "train")]
    rows = [
        {"row": n, "question": q, "answers": [a] if a else None, "group": "g", "relation": "g", "split": s, "flags": []}
        for n, (q, a, s) in enumerate([*texts, ("q5", "c", "train")])
    ]
    frame = flag_rows(pl.DataFrame([{k: r.get(k) for k in ROWS} for r in rows], schema=ROWS))
    used = study_rows(frame, (), {}, 0)
    assert left_out_text(frame, used.height) == (
        "4 of 6 rows are used; left out: 1 with the question of another row, 1 without a question or an answer"
    )
    used = study_rows(frame, (), {"train": 1}, 0)
    assert str(left_out_text(frame, used.height)).endswith("1 not needed (settings rows and ood)")


@pytest.mark.parametrize(
    ("given", "shares"),
    [("none", ()), (None, ()), (["none"], ()), ("50%", (0.5,)), ([1, "0.25,0%"], (0.0, 0.25, 1.0)), (0.5, (0.5,))],
)
def test_shares_are_read_as_a_user_writes_them(given: object, shares: tuple[float, ...]) -> None:
    assert StudyConfig(data="facts", model="lab", idk=given).idk == shares  # type: ignore[arg-type]
