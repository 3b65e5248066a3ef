"""Any finished run's folder becomes its page; a tune run finds the control that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import fact_rows
from foreknow.config import AuditConfig, EvaluateConfig, MixConfig, TuneConfig
from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.pages import write_report
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.mix.run import write_mix
from foreknow.stages.train import run as train_run
from foreknow.stages.train.page import control_of


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Audit, half Unknown and its Known rows, both tuned, one evaluated."""
    folder = tmp_path_factory.mktemp("road")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in fact_rows()), encoding="utf-8")
    template = folder / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    common = {"model": str(tiny_folder), "dtype": "float32", "device": "cpu"}
    audit = audit_run.run(settings_of(AuditConfig, {**common, "data": str(rows), "out": folder / "audit"}))
    dev = folder / "dev.jsonl"
    dev.write_text("".join(json.dumps(row) + "\n" for row in fact_rows() if row["split"] == "dev"), encoding="utf-8")
    mixes: dict[str, dict[str, Any]] = {"mixed": {"unknown": 0.5}, "known": {"known_of": folder / "mixed.jsonl"}}
    for name, how in mixes.items():
        out = folder / f"{name}.jsonl"
        write_mix(settings_of(MixConfig, {"audit": audit.folder, "out": out, **how}))
        given = {"train": str(out), "dev": str(dev), "out": folder / name, "epochs": 1, "batch_size": 4, "keep": "last"}
        train_run.run(settings_of(TuneConfig, {**common, **given, "prompt_template": template}))
    given = {"data": str(dev), "out": folder / "evaluation", "prompt_template": template}
    asked = {**common, **given, "model": str(folder / "mixed" / "convergence")}
    evaluate_run.run(settings_of(EvaluateConfig, asked))
    return folder


@pytest.mark.parametrize("name", ["audit", "mixed", "known", "evaluation"])
def test_every_finished_run_has_its_page_and_gets_it_again(road: Path, name: str) -> None:
    page = road / name / "report.html"
    first = page.read_text(encoding="utf-8")
    page.unlink()
    assert write_report(road / name) == page
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    if name in ("audit", "evaluation"):
        assert page.read_text(encoding="utf-8") == first


def test_a_page_without_rows_has_none(road: Path) -> None:
    question = str(fact_rows()[20]["question"])
    shown = {show: write_report(road / "audit", show_rows=show).read_text("utf-8") for show in (True, False)}
    assert question not in shown[False]
    assert any(str(row["question"]) in shown[True] for row in fact_rows())


def test_the_control_is_the_run_without_the_unknown_rows(road: Path) -> None:
    assert control_of(road / "mixed") == road / "known"
    assert control_of(road / "known") is None
    assert "Control" in write_report(road / "mixed").read_text("utf-8")


def test_a_run_of_the_same_size_with_no_unknown_rows_will_do(tmp_path: Path) -> None:
    def run(name: str, mix: dict[str, Any]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"mix": mix}))
        (tmp_path / name / "manifest.json").write_text("{}")

    base = {"audit": "a", "size": 10, "seed": 0, "kind": "unknown", "known_of": None}
    run("half", {**base, "sha256": "h", "share": {"asked": 0.5}})
    run("none", {**base, "sha256": "n", "share": {"asked": 0.0}})
    run("other", {**base, "sha256": "o", "share": {"asked": 0.0}, "seed": 1})
    assert control_of(tmp_path / "half") == tmp_path / "none"


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    def asked(folder: Path, **given: Any) -> str:
        with pytest.raises((InputError, ConfigError, RunFolderError)) as caught:
            write_report(folder, **given)
        return str(caught.value)

    return asked


def test_folders_that_are_no_runs_are_refused(road: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "not a finished audit, tune, evaluate, study, long study or remedies run" in refused(tmp_path / "gone")
    (tmp_path / "manifest.json").write_text("[")
    assert "manifest.json: damaged, not a JSON object; delete" in refused(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert "is not a tune run" in refused(road / "audit", control=road / "known")
    assert "not a finished tune run" in refused(road / "mixed", control=tmp_path)
