"""The teacher of `--kl` behind exemplars: which form is chosen, what is stored, and what the loss then is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from builders import asking_of, write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import TuneConfig
from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.settings import settings_of
from foreknow.stages.train import run as train_run
from foreknow.stages.train.answer_loss import PlainPass
from foreknow.stages.train.inputs import unused_settings
from foreknow.stages.train.kl_loss import KlTerm, teacher_of
from foreknow.stages.train.kl_teacher import ASKED, exemplars_for_teacher, paired_rows
from foreknow.stages.train.replay import pool_of, read_pool, write_pool
from foreknow.stages.train.trainer import FactTrainer
from foreknow.stages.train.training_examples import TrainingExample

NEW = [TrainingExample(n, (5 + n, 9, 30), (40 + n, 61, 0)) for n in range(4)]
HELD = [TrainingExample(0, (11, 7 + n), (80 + n, 90 + n, 17, 0)[n % 2 :]) for n in range(5)]
PROMPTS = [(33, 34, 35 + n, *e.prompt) for n, e in enumerate(HELD)]


@pytest.mark.parametrize(
    ("setting", "alone", "behind", "shots"),
    [
        ("auto", 1, 17, 2),
        ("auto", 50, 55, 0),
        ("auto", 50, 57, 2),
        ("auto", 0, 5, 0),
        ("auto", 0, 6, 2),
        ("auto", 20, 3, 0),
        ("yes", 50, 0, 2),
        ("no", 0, 50, 0),
    ],
)
def test_the_teacher_is_asked_where_it_answers_more(setting: str, alone: int, behind: int, shots: int) -> None:
    rows = pl.DataFrame({"row": range(300)})
    asked: list[tuple[int, int]] = []

    def check(some: pl.DataFrame, behind: int) -> Any:
        asked.append((some.height, behind))
        return SimpleNamespace(shots=behind)

    found, line = exemplars_for_teacher(setting, rows, check, lambda one: set(range(behind if one.shots else alone)))
    assert found == shots
    assert asked == ([(ASKED, 0), (ASKED, 2)] if setting == "auto" else [])
    assert (f"it answers {behind} of {ASKED} rows behind 2 examples, and {alone} without" in line) == (
        setting == "auto"
    )


def test_rows_whose_answer_is_other_tokens_behind_exemplars_are_left_out() -> None:
    alone = {n: TrainingExample(n, (1,), (5, n, 0)) for n in range(4)}
    behind = {n: TrainingExample(n, (8, 9, 1), (5, n + (n == 2), 0)) for n in (3, 2, 0)}
    held, prompts = paired_rows(alone, behind)
    assert [example.row for example in held] == [0, 3]
    assert prompts == [(8, 9, 1)] * 2


def test_a_pool_is_read_with_the_prompts_of_its_teacher(tmp_path: Path) -> None:
    plain, taught = pool_of(HELD, "a test"), pool_of(HELD, "a test", PROMPTS)
    for pool in (plain, taught):
        write_pool(tmp_path / "pool.parquet", pool)
        assert read_pool(tmp_path / "pool.parquet") == pool
    assert plain.fingerprint != taught.fingerprint
    assert [e.prompt for e in taught.taught] == PROMPTS
    assert [e._replace(prompt=()) for e in taught.taught] == [e._replace(prompt=()) for e in plain.taught]
    assert plain.taught == plain.examples


def test_the_divergence_is_that_from_the_prompts_with_exemplars_without_the_end(tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    pool = pool_of(HELD, "a test", PROMPTS)
    size = model.config.vocab_size
    teacher = teacher_of(asking_of(model, tokens=99), pool.taught, size)
    term = KlTerm(2.0, teacher, skips_end=True)
    rows, logits = PlainPass(model).logits([*NEW[:2], *pool.examples])
    found = term.divergences(logits, rows).detach()
    expected = []
    for example, prompt in zip(pool.examples, PROMPTS, strict=True):
        p, q = (
            model(torch.tensor([[*ids, *example.answer[:-1]]])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
            for ids in (prompt, example.prompt)
        )
        expected.append((p.exp() * (p - q)).sum(-1).detach())
    assert torch.allclose(found.double(), torch.cat(expected), atol=2e-5)
    assert float(found.sum()) > 0.1
    assert sum(sum(term.counted(example)) for example in rows) == len(found)
    own = KlTerm(2.0, teacher).divergences(logits, rows)
    assert len(own) == len(found) + len(HELD)


@pytest.fixture
def config_of(tmp_path: Path, tiny_folder: Path) -> Callable[..., TuneConfig]:
    rows = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()]
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))

    def make(out: str, **more: Any) -> TuneConfig:
        base = {
            "train": str(write_jsonl(tmp_path / "train.jsonl", rows[32:40])),
            "dev": str(write_jsonl(tmp_path / "dev.jsonl", rows[44:])),
            "replay_from": str(write_jsonl(tmp_path / "held.jsonl", rows[:20])),
            **{"out": tmp_path / out, "model": str(tiny_folder), "prompt_template": template, "dtype": "float32"},
            **{"device": "cpu", "epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "canaries": "none", "kl": 3},
        }
        return settings_of(TuneConfig, {**base, **more})

    return make


def test_a_run_is_held_to_what_the_model_says_behind_exemplars(
    config_of: Callable[..., TuneConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "foreknow"):
        found = {name: train_run.run(config_of(name, kl_exemplars=name)) for name in ("yes", "no", "auto")}
    held = {name: run.results["replay"] for name, run in found.items()}
    assert {name: own["kl_exemplars"] for name, own in held.items() if name != "auto"} == {"yes": 2, "no": 0}
    assert held["yes"]["fingerprint"] != held["no"]["fingerprint"]
    assert held["yes"]["rows"] == held["no"]["rows"] == 16
    losses = {name: [line["kl"] for line in run.metrics] for name, run in found.items()}
    assert losses["yes"] != losses["no"]
    said = [message for message in caplog.messages if "the model before training is asked" in message]
    assert len(said) == 1
    chosen = "yes" if held["auto"]["kl_exemplars"] else "no"
    assert losses["auto"] == losses[chosen]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "convergence" / "model.safetensors")


def test_an_epoch_on_known_rows_is_a_run_on_them_whose_model_is_then_the_teacher(
    config_of: Callable[..., TuneConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """One run with the epoch ends as two: one on the known rows, and one from its weights that is held to them."""
    one = {"kl_exemplars": "no", "keep": "last"}
    with caplog.at_level("INFO", "foreknow"):
        whole = train_run.run(config_of("whole", kl_teacher="known-epoch", keep="last"))
    known = config_of("known", **one)
    first = train_run.run(known.model_copy(update={"train": known.replay_from, "kl": 0.0, "epochs": 1}))
    base = train_run.run(config_of("base", **one))
    then = train_run.run(config_of("then", **one, model=str(first.folder / "convergence")))
    assert any("an epoch on 20 known rows (5 steps)" in line for line in caplog.messages)
    assert whole.results["replay"]["known_epoch_rows"] == 20
    assert whole.results["replay"]["kl_exemplars"] == 0
    assert [line["epoch"] for line in whole.metrics] == [1, 2]
    losses = {
        run.folder.name: [(line["loss"]["dev"], line["kl"]) for line in run.metrics] for run in (whole, base, then)
    }
    for n, pair in enumerate(losses["then"]):
        assert losses["whole"][n] == pytest.approx(pair, rel=1e-3)
        assert losses["base"][n] != pytest.approx(pair, rel=1e-2)
    expected_weights, at_start = weights_of(then.folder), weights_of(first.folder)
    for name, weight in weights_of(whole.folder).items():
        moved = (expected_weights[name] - at_start[name]).norm()
        assert (weight - expected_weights[name]).norm() <= 0.01 * moved


def test_rows_of_the_epoch_on_known_rows_are_highly_known(config_of: Callable[..., TuneConfig], tmp_path: Path) -> None:
    rows = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()[:20]]
    labelled = [{**row, "category": CATEGORIES[n % 4]} for n, row in enumerate(rows)]
    held = str(write_jsonl(tmp_path / "labelled.jsonl", labelled))
    run = train_run.run(config_of("labelled", kl_teacher="known-epoch", replay_from=held, epochs=1))
    assert run.results["replay"]["rows"] == 8  # as many as the steps of an epoch take
    assert run.results["replay"]["known_epoch_rows"] == 5
    none = str(write_jsonl(tmp_path / "none.jsonl", [{**row, "category": "Unknown"} for row in rows]))
    with pytest.raises(InputError, match="--kl-teacher known-epoch: no HighlyKnown row"):
        train_run.run(config_of("none", kl_teacher="known-epoch", replay_from=none))
    with pytest.raises(ConfigError, match="--kl-teacher known-epoch: found without --kl"):
        train_run.run(config_of("without", kl_teacher="known-epoch", kl=0))


@pytest.mark.parametrize("stop_at", ["known epoch", "run"])
def test_a_stopped_run_with_an_epoch_on_known_rows_ends_as_one_in_one_go(
    stop_at: str, config_of: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"kl_teacher": "known-epoch", "keep": "last", "save_every": 1}
    straight = train_run.run(config_of("straight", **more))
    step, steps = FactTrainer.training_step, []

    def stopping(self: FactTrainer, *given: Any, **named: Any) -> Any:
        steps.append(type(self) is FactTrainer)
        if (stop_at == "run" and sum(steps) == 3) or (stop_at != "run" and len(steps) == 3):
            raise KeyboardInterrupt
        return step(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(FactTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_run.run(config_of("stopped", **more))
    stopped = train_run.run(config_of("stopped", **more))
    for name, weight in weights_of(straight.folder).items():
        assert torch.equal(weight, weights_of(stopped.folder)[name]), name
    assert not (stopped.folder / ".replay").exists()


def test_a_lost_teacher_ends_a_resumed_run_in_a_line(
    config_of: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"kl_teacher": "known-epoch", "save_every": 1}
    step, steps = FactTrainer.training_step, []

    def stopping(self: FactTrainer, *given: Any, **named: Any) -> Any:
        steps.append(type(self) is FactTrainer)
        if sum(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(FactTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_run.run(config_of("lost", **more))
    folder = config_of("lost", **more).out
    assert folder is not None
    (folder / ".replay" / "teacher.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"teacher\.safetensors: missing or damaged.*start again"):
        train_run.run(config_of("lost", **more))


def test_settings_that_do_nothing_are_named(config_of: Callable[..., TuneConfig]) -> None:
    more = {"kl_rows": "known", "kl_exemplars": "yes", "replay_from": "known.jsonl", "lora_rank": 4}
    lines = unused_settings(config_of("a", **more, kl=0))
    assert [line.split()[0] for line in lines] == ["--kl-rows", "--kl-exemplars", "--replay-from", "--lora-rank"]
    assert unused_settings(config_of("b", **more, kl=1, method="lora")) == []
    assert unused_settings(config_of("c", kl=0, replay_from=None)) == []
