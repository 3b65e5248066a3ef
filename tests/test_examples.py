"""The scripts of examples/ run from beginning to end, with the tiny model."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import polars as pl
import pytest

from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs a script with these words behind its name, and returns what it printed."""

    def run_script(name: str, *words: object) -> str:
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Train, dev and test rows, no fact in two of them."""
    rows = [{k: row[k] for k in ("question", "answer", "relation")} for row in fact_rows()]
    parts = {"train": [*rows[:8], *rows[24:32]], "test": [*rows[8:14], *rows[32:38]], "dev": [*rows[14:24], *rows[38:]]}
    return {name: write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in parts.items()}


def test_every_example_is_run_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    text = Path(__file__).read_text(encoding="utf-8")
    assert names
    assert {name for name in names if f'"{name}"' not in text} == set()


def test_audit_jsonl(run, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = run("audit_jsonl.py", facts_file, "--model", tiny_folder, "--out", tmp_path / "run")
    rows = pl.read_parquet(tmp_path / "run" / "rows.parquet")
    unknown = rows.filter(pl.col("category") == "Unknown").height
    assert f"{unknown} of {rows.height} rows are Unknown" in out
    assert "capital" in out
    assert "river" in out


def test_export_lm_eval(run, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = run("export_lm_eval.py", facts_file, "--model", tiny_folder, "--out", tmp_path / "run")
    assert "lm_eval --model hf" in out
    assert str(tiny_folder) in out
    rows = pl.read_parquet(tmp_path / "run" / "audit" / "rows.parquet").drop_nulls("category").height
    asked = sum(len(file.read_text().splitlines()) for file in (tmp_path / "run" / "tasks").glob("*.jsonl"))
    assert asked == rows


def test_mix_tune_evaluate(run, files: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = [files["train"], files["dev"], files["test"], "--model", tiny_folder, "--out", tmp_path / "run"]
    out = run("mix_tune_evaluate.py", *words, "--epochs", 2)
    assert "best epoch: " in out
    known = [json.loads(line) for line in (tmp_path / "run" / "known.jsonl").read_text().splitlines()]
    assert known
    assert all(row["category"] in CATEGORIES[:3] for row in known)
    assert (tmp_path / "run" / "evaluation" / "report.html").exists()


def test_watch_a_trainer(run, files: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [json.loads(line) for line in files["train"].read_text().splitlines()]
    annotated = write_jsonl(
        tmp_path / "annotated.jsonl", [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(rows)]
    )
    words = [annotated, files["dev"], "--model", tiny_folder, "--out", tmp_path / "trained", "--epochs", 2]
    out = run("watch_a_trainer.py", *words)
    assert "epoch 1: fitted {" in out
    assert "epoch 2: fitted {" in out
    assert f"best checkpoint: {tmp_path / 'trained' / 'checkpoint-'}" in out


def test_label_rows(run, files: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [json.loads(line) for line in files["train"].read_text().splitlines()]
    data = write_jsonl(tmp_path / "rows.jsonl", [rows[0], {"question": "", "answer": "nothing"}, *rows[1:]])
    out = run("label_rows.py", data, tmp_path / "labelled.jsonl", "--model", tiny_folder)
    labelled = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert f"{len(rows) + 1} rows written to" in out
    assert labelled[1] == {"question": "", "answer": "nothing", "category": None}
    assert all(row["category"] in CATEGORIES for n, row in enumerate(labelled) if n != 1)
    assert [row["question"] for row in labelled[2:]] == [row["question"] for row in rows[1:]]


def test_in_memory(run, files: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = run("in_memory.py", files["train"], "--model", tiny_folder, "--steps", 8, "--out", tmp_path / "kept")
    assert "AuditResult(16 of 16 rows labelled with tiny (in memory): " in out
    assert "after part 2, loss " in out
    assert (tmp_path / "kept" / "report.html").is_file()
