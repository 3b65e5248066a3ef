"""The base model asked in the tuned model's own form: the same rows, the same prompts, like held against like."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from builders import write_jsonl
from conftest import fact_rows
from foreknow.config import EvaluateConfig, TuneConfig
from foreknow.io.run_dir import RunDir
from foreknow.report.evaluation import render_evaluation
from foreknow.settings import settings_of
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.train import run as train_run

ROWS = [{k: r[k] for k in ("question", "answer", "subject")} for r in fact_rows()[:16]]
Evaluate = Callable[..., EvaluateResult]


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, in a folder that a test may take away."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    train = write_jsonl(folder / "train.jsonl", ROWS)
    template = folder / "template.yaml"
    template.write_text('target: "Q: {question}\\nA:"\n')
    given: dict[str, Any] = {
        "prompt_template": template,
        "train": str(train), "dev": str(train), "allow_overlap": True, "out": folder / "run", "model": str(base),
        "dtype": "float32", "device": "cpu", "epochs": 12, "learning_rate": 5e-4, "batch_size": 8, "keep": "last",
    }  # fmt: skip
    return train_run.run(settings_of(TuneConfig, given)).folder / "convergence"


@pytest.fixture
def evaluate(tuned: Path, tmp_path: Path) -> Evaluate:
    template = tuned.parent.parent / "template.yaml"
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def run(model: Path, name: str = "out", **given: Any) -> EvaluateResult:
        settings = {"model": str(model), "data": str(data), "out": tmp_path / name, "prompt_template": template}
        return evaluate_run.run(settings_of(EvaluateConfig, {**settings, "dtype": "float32", "device": "cpu", **given}))

    return run


def test_the_base_answers_as_it_does_when_it_is_evaluated_itself(tuned: Path, base: Path, evaluate: Evaluate) -> None:
    both, alone = evaluate(tuned), evaluate(base, "alone", compare_base=False)
    assert both.rows["base_prediction"].to_list() == alone.rows["prediction"].to_list()
    assert both.rows["base_prediction_correct"].to_list() == alone.rows["correct"].to_list()
    same = both.summary["same_format"]
    right, was = both.rows["correct"], alone.rows["correct"]
    assert same["compared"] == len(ROWS)
    lost, gained = (was & ~right).sum(), (~was & right).sum()
    assert (same["correct_to_wrong"]["count"], same["wrong_to_correct"]["count"]) == (lost, gained)
    assert lost + gained > 0
    assert alone.summary["same_format"] is None


def test_the_page_leads_with_like_against_like(tuned: Path, evaluate: Evaluate) -> None:
    done = evaluate(tuned)
    same, em = done.summary["same_format"], done.summary["em"]["overall"]["strict"]
    html = render_evaluation(done)
    lead = html[html.index('class="lead"') :][:600]
    assert "asked in the same form" in lead
    assert em["count"] != same["base_correct"]["count"]
    assert "What is" not in render_evaluation(done, show_rows=False)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"compare_base": False}, "--no-compare-base"), ({}, "is not found as it was: it is not asked too")],
    ids=["not wanted", "gone"],
)
def test_where_the_base_is_not_asked_the_page_says_why(
    tuned: Path, base: Path, evaluate: Evaluate, given: dict[str, Any], reason: str
) -> None:
    away = base.with_name("elsewhere")
    if not given:
        base.rename(away)
    try:
        done = evaluate(tuned, **given)
    finally:
        if away.exists():
            away.rename(base)
    assert done.summary["same_format"] is None
    assert done.rows["base_prediction"].null_count() == len(ROWS)
    assert reason in done.summary["model"]["base_in_same_format"]
    assert "so what tuning changed in this form is not measured" in render_evaluation(done)


def test_interrupted_while_the_base_is_asked_it_goes_on_there(
    tuned: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = RunDir.save_chunk

    def killed(self: RunDir, number: int, kind: str, frame: pl.DataFrame) -> None:
        if kind == "base_predictions":
            raise KeyboardInterrupt
        keep(self, number, kind, frame)

    monkeypatch.setattr(RunDir, "save_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tuned, "cut")
    monkeypatch.setattr(RunDir, "save_chunk", keep)
    capsys.readouterr()
    cut, whole = evaluate(tuned, "cut"), evaluate(tuned, "whole")
    assert "convergence: 1 of 1 chunks are finished" in capsys.readouterr().err
    assert cut.rows.equals(whole.rows)
