"""Weights of rows from the model's loss before training, against a slow computation by the model's own forward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import fact_rows
from foreknow.config import TuneConfig
from foreknow.settings import settings_of
from foreknow.stages.train import run as train_run
from foreknow.stages.train.flow_weights import FILE, flow_weights
from foreknow.stages.train.trainer import FactTrainer


@pytest.fixture
def config_of(tiny_folder: Path, tmp_path: Path) -> Callable[..., TuneConfig]:
    rows = [{**row, "category": "Unknown", "weight": 1 + n % 2} for n, row in enumerate(fact_rows())]
    for name, part in (("train", rows[8:40]), ("dev", rows[:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))

    def make(name: str, **given: Any) -> TuneConfig:
        base = {
            "train": str(tmp_path / "train.jsonl"), "dev": str(tmp_path / "dev.jsonl"), "out": tmp_path / name,
            "model": str(tiny_folder), "prompt_template": template, "dtype": "float32", "device": "cpu",
            "dropout": 0.0, "epochs": 1, "learning_rate": 1e-4, "batch_size": 32, "canaries": "none",
            "loss_weights": "flow",
        }  # fmt: skip
        return settings_of(TuneConfig, {**base, **given})

    return make


def slow_losses(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """The mean loss of each answer with its end token, from the model's own forward pass, and its number of tokens."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        prompt = tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
        answer = tokenizer(f" {row['answer']}")["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
        found.append((float(losses.mean()), len(answer)))
    return found


def test_weights_are_those_of_the_models_own_losses_and_the_loss_uses_them(
    config_of: Callable[..., TuneConfig], tiny_folder: Path
) -> None:
    run = train_run.run(config_of("run"))
    rows = fact_rows()[8:40]
    slow = slow_losses(tiny_folder, rows)
    own = pl.read_parquet(run.folder / FILE)
    assert own["loss"].to_list() == pytest.approx([loss for loss, _ in slow], abs=1e-4)
    median = own["loss"].median()
    weights = [math.exp(-loss / float(median or 0)) for loss, _ in slow]  # type: ignore[arg-type]
    mean = sum(weights) / len(weights)
    assert own["weight"].to_list() == pytest.approx([weight / mean for weight in weights], rel=1e-3)
    both = [weight * (1 + n % 2) * tokens for n, (weight, (_, tokens)) in enumerate(zip(weights, slow, strict=True))]
    expected = sum(of * loss for of, (loss, _) in zip(both, slow, strict=True)) / sum(both)
    assert run.metrics[0]["train_loss"] == pytest.approx(expected, abs=1e-3)
    plain = train_run.run(config_of("plain", loss_weights="file"))
    assert plain.metrics[0]["train_loss"] != pytest.approx(expected, abs=1e-2)
    assert not (plain.folder / FILE).exists()


def test_a_run_that_goes_on_reads_the_weights_from_before_training(
    config_of: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_run.run(config_of("whole", epochs=3, keep="last"))
    config = config_of("cut", epochs=3, keep="last")
    done, count = FactTrainer.training_step, [0]

    def stopping(self: FactTrainer, *rest: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return done(self, *rest)

    monkeypatch.setattr(FactTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_run.run(config)
    monkeypatch.undo()
    again = train_run.run(config)
    assert (again.folder / FILE).read_bytes() == (whole.folder / FILE).read_bytes()
    assert [line["train_loss"] for line in again.metrics] == [line["train_loss"] for line in whole.metrics]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40))
def test_weights_have_mean_one_and_fall_with_the_loss(losses: list[float]) -> None:
    weights = flow_weights(losses)
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert all(weight >= 0 for weight in weights)
    for (low, first), (high, second) in pairwise(sorted(zip(losses, weights, strict=True))):
        assert low == high or first >= second - 1e-12
