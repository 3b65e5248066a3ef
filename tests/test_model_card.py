"""The section for a model card: it states what the run measured, and what it did not measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import foreknow
from conftest import Cli
from foreknow.errors import InputError
from foreknow.report.model_card import model_card

RESULTS: dict[str, Any] = {
    "model": {"name": "owner/small_model", "fingerprint": "sha256:" + "a" * 64, "note": None},
    "method": {"name": "full"}, "epochs": 6, "version": "0.1.0",
    "config": {"batch_size": 8, "learning_rate": 5e-5, "replay": 0.5, "kl": 0.0, "known_late": 0.0},
    "data": {"train": {"rows": 30}},
    "convergence": {"folder": None, "epoch": 6, "metrics": {}},
    "early_stop": {
        "folder": "early_stop", "epoch": 3,
        "metrics": {
            "em": {"dev": 0.5, "ood": 0.25, "canaries": 0.9},
            "counts": {
                "train": {"rows": 30, "correct": 18, "by_category": {"HighlyKnown": [15, 20], "Unknown": [1, 5]}},
                "dev": {"rows": 8, "correct": 4, "by_category": {"MaybeKnown": [4, 4], "Unknown": [0, 4]}},
                "ood": {"rows": 4, "correct": 1, "by_category": {}},
                "canaries": {"rows": 20, "correct": 18, "by_category": {}},
            },
            "canaries": {"rows": 20, "before": 20, "kept": 18, "lost": 2, "gained": 0, "lost_low": 0.028,
                         "lost_high": 0.301, "p": 0.5},
        },
    },
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "rows": 10, "protocol": {"match": "strict"}, "data": {"name": "test|set.jsonl"}, "answers": {"wrong": 4},
    "em": {"overall": {"strict": {"share": 0.6}}},
    "same_format": {"base_correct": {"count": 5}, "correct_to_wrong": {"count": 1}, "wrong_to_correct": {"count": 2}},
}  # fmt: skip


def test_a_card_says_what_was_trained_new_learnt_and_lost() -> None:
    text = model_card(RESULTS, EVALUATION)
    _, block, body = text.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["base_model"] == "owner/small_model"
    values = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in metadata["model-index"][0]["results"]}
    assert values == {"dev": 0.5, "ood": 0.25, "test|set.jsonl": 0.6}
    assert "owner/small\\_model" in body
    assert "the weights after epoch 3 of 6; 50 % of each batch were rows that the model knew." in body
    assert "20 % of 25 watched rows (5) were Unknown to the base model. Of 5 further rows" in body
    assert "| HighlyKnown | 20 | 15 (75 %) |" in body
    assert "| dev (8) | 50 % | 22 to 78 % | 4 of 4 | 0 of 4 |" in body
    assert "2 are answered wrong now: 10 % (3 to 30 %, Wilson)." in body
    assert "Of 5 rows of test\\|set.jsonl that the base model answered right" in body


def test_a_card_names_what_was_not_measured() -> None:
    results = json.loads(json.dumps(RESULTS))
    results["model"]["name"] = "a folder"
    metrics = results["early_stop"]["metrics"]
    del metrics["canaries"]
    metrics["counts"] = {"train": {"rows": 30, "correct": 1, "by_category": {}}}
    text = model_card(results)
    assert "base_model" not in text
    assert text.count("Not measured: ") == 3


def test_the_card_of_a_run(run: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Who wrote book {n}?", "answer": f"Author {n}", "category": "Unknown"} for n in range(12)]
    tuned = foreknow.tune(rows, dev=rows[:0] or [{"question": "Who wrote no book?", "answer": "Nobody"}] * 2,
                          model=tiny_folder, epochs=1, canaries="none", out=tmp_path / "tuned")  # fmt: skip
    code, out, _ = run("card", tuned.folder)
    assert code == 0
    assert out == foreknow.model_card(tuned)
    assert "100 % of 12 watched rows (12) were Unknown" in out
    assert run("card", tuned.folder, "--out", tmp_path / "card.md")[0] == 0
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == out
    with pytest.raises(InputError):
        foreknow.model_card(tmp_path)
    evaluated = foreknow.evaluate(tuned, rows, out=tmp_path / "evaluated")
    assert "that the base model answered right in the same form" in foreknow.model_card(tuned, evaluation=evaluated)
