"""Known rows in training: those that are watched, those that are replayed, and the divergence from the base model."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import asking_of, write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import AuditConfig, TuneConfig
from foreknow.errors import ConfigError, InputError, NotFinite
from foreknow.prompts.prompt_template import Template
from foreknow.report.tune import render_tune
from foreknow.settings import settings_of
from foreknow.stages.audit.result import open_audit
from foreknow.stages.audit.run import run as run_audit
from foreknow.stages.train import canaries, kl_loss, known_candidates, known_sources, replay_choice
from foreknow.stages.train import run as train_run
from foreknow.stages.train.answer_loss import PlainPass, open_pass
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canary_check import CanaryCheck
from foreknow.stages.train.kl_loss import KlTerm, kl_to_teacher, read_teacher, teacher_of, write_teacher
from foreknow.stages.train.known_late import known_late
from foreknow.stages.train.known_sources import KnownSources
from foreknow.stages.train.made_up import MadeUpCheck, greedy_answers, made_up_questions, repeat_shares
from foreknow.stages.train.rate_trials import QuietTrainer, Trial
from foreknow.stages.train.rate_trials import choose as choose_rate
from foreknow.stages.train.replay import (
    ReplayPlan,
    is_replay,
    pool_of,
    read_pool,
    replay_count,
    replay_rows,
    write_pool,
)
from foreknow.stages.train.result import TrainResult, open_train
from foreknow.stages.train.text_loss import MOST_TOKENS, TextLoss
from foreknow.stages.train.trainable_layers import set_trainable
from foreknow.stages.train.trainer import FactTrainer, arguments
from foreknow.stages.train.training_examples import TrainingExample
from foreknow.stages.train.weight_average import Point, WeightLine, choose

Tune = Callable[..., TrainResult]

NEW = [TrainingExample(n, (5 + n, 9, 30), (40 + n, 61, 0)) for n in range(4)]
KNOWN = pool_of(
    [TrainingExample(0, (11, 7 + n), (80 + n, 90 + n, 17, 0)[n % 2 :]) for n in range(5)], "a test"
).examples


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train and dev rows, and a file of rows to watch, in the prompt that the tiny model knows."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()]
    labelled = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(rows)]
    template = folder / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    return {
        "train": write_jsonl(folder / "train.jsonl", labelled[32:44]),
        "dev": write_jsonl(folder / "dev.jsonl", labelled[44:]),
        "watched": write_jsonl(folder / "watched.jsonl", labelled[:30]),
        "template": template,
    }


@pytest.fixture(scope="session")
def config_of(files: dict[str, Path], tiny_folder: Path) -> Callable[..., TuneConfig]:
    def make(out: Path, **more: Any) -> TuneConfig:
        base = {
            "train": str(files["train"]), "dev": str(files["dev"]), "out": out, "model": str(tiny_folder),
            "prompt_template": files["template"], "dtype": "float32", "device": "cpu", "epochs": 2,
            "learning_rate": 1e-3, "batch_size": 5, "micro_batch_tokens": 100, "metric": "dev_em", "dropout": 0.0,
            "canaries": str(files["watched"]), "keep": "both",
        }  # fmt: skip
        return settings_of(TuneConfig, {**base, **more})

    return make


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)


def slow_kl(model: Any, teacher: Any, rows: list[TrainingExample]) -> list[torch.Tensor]:
    """KL(teacher || model) at every answer token, from whole distributions of one row at a time."""
    found = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer[:-1]]])
        with torch.no_grad():
            p = teacher(ids).logits[0, len(row.prompt) - 1 :].double().log_softmax(-1)
        q = model(ids).logits[0, len(row.prompt) - 1 :].double().log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1))
    return found


def moved_copy(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return copy.eval()


@pytest.mark.parametrize("packed", [True, False])
def test_with_the_whole_vocabulary_the_divergence_is_exact(tiny: tuple[Any, Any], packed: bool) -> None:
    model = tiny[0]
    size = model.config.vocab_size
    with open_pass(model, NEW) if packed else nullcontext((PlainPass(model), "")) as (passes, _):
        teacher = teacher_of(asking_of(model, losses=passes, tokens=12), KNOWN, size)
    student = moved_copy(model)
    expected = dict(zip([e.row for e in KNOWN], slow_kl(student, model, list(KNOWN)), strict=True))
    rows, logits = PlainPass(student).logits(KNOWN)
    found = kl_to_teacher(logits, teacher.at(rows)).detach()
    assert torch.allclose(found.double(), torch.cat([expected[e.row] for e in rows]).detach(), atol=2e-5)
    assert float(found.sum()) > 0.1


def test_fewer_tokens_give_a_lower_bound_and_the_same_model_zero(tiny: tuple[Any, Any]) -> None:
    model, student = tiny[0], moved_copy(tiny[0])
    _, logits = PlainPass(student).logits(KNOWN)
    whole = torch.cat(slow_kl(student, model, list(KNOWN))).detach()
    before = torch.zeros_like(whole)
    for k in (1, 8, 64, 300):
        teacher = teacher_of(asking_of(model, tokens=1000), KNOWN, k)
        found = kl_to_teacher(logits, teacher.at(KNOWN)).double().detach()
        assert bool((found <= whole + 1e-5).all())
        assert bool((found >= before - 1e-5).all()), "merging fewer tokens never makes it smaller"
        before = found
        same = kl_to_teacher(PlainPass(model).logits(KNOWN)[1], teacher.at(KNOWN))
        assert float(same.detach().abs().max()) < 1e-5
    assert torch.allclose(before, whole, atol=1e-3)


def test_gradients_of_replay_and_kl_are_those_of_the_slow_sum(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    teacher_model = tiny[0]
    for learns in (True, False):
        model = moved_copy(teacher_model)
        config = settings_of(TuneConfig, {"train": "x", "dev": "y", "micro_batch_tokens": 12})
        config = config.model_copy(update={"epochs": 1, "learning_rate": 1e-5, "batch_size": 4})
        plan = ReplayPlan(pool_of(KNOWN, "a test"), 0.5, 0, 4, 4, learns)
        meter: Any = type("Meter", (), {"advance": lambda *_: None})()
        teacher = teacher_of(asking_of(teacher_model, tokens=99), KNOWN, teacher_model.config.vocab_size)
        with open_pass(model, NEW) as (losses, _):
            trainer = FactTrainer(
                model, arguments(config, tmp_path, 1, "cpu"), NEW, config, losses, lambda _: ({}, False), meter,
                autocast=False, replay=plan, kl=KlTerm(2.0, teacher),
            )  # fmt: skip
            batch = trainer.get_batch_samples(iter([0]), 1, "cpu")[0][0]
            total = trainer.training_step(model, batch)
        ours = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert sorted(e.row for e in batch if not is_replay(e)) == [0, 1, 2, 3]
        known = [e for e in batch if is_replay(e)]
        assert len(known) == 4

        model.zero_grad()
        learnt = [*NEW, *(known if learns else [])]
        ce = torch.cat([PlainPass(model).losses([e])[1] for e in learnt])
        divergence = torch.cat(slow_kl(model, teacher_model, known))
        loss = ce.mean() + 2.0 * divergence.mean().float()
        loss.backward()
        assert float(total) == pytest.approx(float(loss.detach()), rel=1e-4)
        for name, p in model.named_parameters():
            assert torch.allclose(ours[name], p.grad, atol=1e-4, rtol=1e-3), name
        new = torch.cat([PlainPass(model).losses([e])[1] for e in NEW])
        assert trainer.tally.mean == pytest.approx(float(new.detach().mean()), rel=1e-4)
        assert trainer.tally.means["kl"] == pytest.approx(float(divergence.detach().mean()), rel=1e-3)
        assert ("replay" in trainer.tally.means) == learns


def test_a_teacher_is_read_as_written_and_not_for_another_pool(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    teacher = teacher_of(asking_of(tiny[0], tokens=99), KNOWN, 8)
    write_teacher(tmp_path / "t.safetensors", teacher, "one")
    again = read_teacher(tmp_path / "t.safetensors", "one")
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(again[:3], teacher[:3], strict=True))
    assert again.start == teacher.start
    assert read_teacher(tmp_path / "t.safetensors", "another") is None
    (tmp_path / "t.safetensors").write_bytes(b"no file of tensors")
    assert read_teacher(tmp_path / "t.safetensors", "one") is None


@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 30), st.sampled_from([0.1, 0.2, 0.5, 0.8]), st.integers(0, 3)
)
def test_every_known_row_comes_once_before_one_comes_again(
    rows: int, batch: int, known: int, share: float, seed: int
) -> None:
    pool = pool_of([TrainingExample(0, (n,), (n, 0)) for n in range(known)], "a test")
    plan = ReplayPlan(pool, share, seed, rows, batch, learns=True)
    steps = math.ceil(rows / batch)
    drawn: list[int] = []
    for step in range(2 * steps):
        new = min(batch, rows - step % steps * batch)
        own = plan.examples(step)
        assert len(own) == replay_count(share, new)
        drawn += [e.row for e in own]
    assert drawn == [-1 - place for place in replay_rows(seed, 0, len(drawn), known)]
    for start in range(0, len(drawn) - known + 1, known):
        assert sorted(drawn[start : start + known]) == sorted(e.row for e in pool.examples)


@given(st.integers(2, 30), st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.data())
def test_highly_known_rows_come_in_the_last_steps_only(
    count: int, batch: int, epochs: int, share: float, data: st.DataObject
) -> None:
    known = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    categories = ["HighlyKnown" if place in known else "Unknown" for place in range(count)]
    plan, line = known_late(share, categories, 0, batch, epochs)
    steps = math.ceil(count / batch)
    total = steps * epochs
    first = total - max(1, round(share * total))
    assert f"from step {first + 1:,} of {total:,}" in line
    for epoch in range(epochs):
        span = range(epoch * steps, (epoch + 1) * steps)
        drawn = [place for step in span for place in plan.rows(step)]
        if span.stop <= first:
            assert not known & set(drawn)
            assert set(drawn) == set(range(count)) - known
        elif span.start >= first:
            assert sorted(drawn) == list(range(count))
        assert all(plan.rows(step) for step in span)


def test_known_late_needs_rows_of_both_kinds() -> None:
    for categories in (["Unknown", None], ["HighlyKnown"] * 3):
        with pytest.raises(ConfigError, match="nothing to order"):
            known_late(0.2, categories, 0, 2, 3)


def test_a_pool_is_read_as_written(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.parquet", pool_of(KNOWN, "a source"))
    again = read_pool(tmp_path / "pool.parquet")
    assert again == pool_of(KNOWN, "a source")
    assert again.fingerprint == pool_of(KNOWN, "").fingerprint != pool_of(KNOWN[1:], "").fingerprint


def test_an_answer_is_right_if_what_is_generated_begins_with_it(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    rows = [
        {
            "row": n,
            "question": r["question"],
            "answers": [r["answer"][:4] if n % 3 else r["answer"], "Zzz"][:: 1 - n % 2 * 2],
        }
        for n, r in enumerate(fact_rows())
    ]
    asking = asking_of(model, tokenizer, Template(target="Q: {question}\nA:"))
    check = CanaryCheck(pl.DataFrame(rows), asking)
    random_state = torch.get_rng_state()
    right = check.spellings(asking)
    assert torch.equal(random_state, torch.get_rng_state())
    expected = set()
    for row in rows:
        ids = tokenizer(f"Q: {row['question']}\nA:", return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        said = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if any(said.startswith(a) and not said[len(a) : len(a) + 1].isalnum() for a in row["answers"]):
            expected.add(row["row"])
    assert set(right) == expected
    assert 5 < len(expected) < 40


def test_exemplars_are_other_rows_written_as_rows_are_trained_on(tiny: tuple[Any, Any]) -> None:
    rows = pl.DataFrame(
        {
            "row": [0, 1, 2, 3, 4],
            "relation": ["a", "a", "b", "a", "b"],
            "question": ["A0?", "A1?", "B0?", "A2?", "B1?"],
            "answers": [["x", "X"], ["x"], ["u"], ["y"], ["v"]],
        }
    )
    asking = asking_of(*tiny, Template(target="Say {question}\n"))._replace(end=0)
    check = CanaryCheck(rows, asking, shots=2)
    prompts = [tiny[1].decode(e.prompt) for e in check.examples]
    assert prompts == [
        "Say A2?\ny\nSay B0?\nu\nSay A0?\n",  # the same relation and another gold first, then any
        "Say A2?\ny\nSay B0?\nu\nSay A0?\n",  # the second accepted answer of the same row
        "Say A2?\ny\nSay B0?\nu\nSay A1?\n",
        "Say B1?\nv\nSay A0?\nx\nSay B0?\n",
        "Say A0?\nx\nSay A1?\nx\nSay A2?\n",
        "Say B0?\nu\nSay A0?\nx\nSay B1?\n",
    ]
    alone = CanaryCheck(rows, asking)
    assert [tiny[1].decode(e.prompt) for e in alone.examples][3] == "Say B0?\n"
    assert [alone.golds()[row].answer for row in (0, 2)] == [
        (*tiny[1]("x")["input_ids"], 0),
        (*tiny[1]("u")["input_ids"], 0),
    ]


def test_lost_and_gained_are_counted_in_pairs_with_their_interval() -> None:
    before, now = [True] * 50 + [False] * 10, [True] * 40 + [False] * 10 + [True] * 2 + [False] * 8
    told = canaries.summary(before, now)
    assert {k: told[k] for k in ("rows", "before", "kept", "lost", "gained")} == {
        "rows": 60, "before": 50, "kept": 40, "lost": 10, "gained": 2,
    }  # fmt: skip
    ends = binomtest(10, 50).proportion_ci(0.95, method="wilson")
    assert (told["lost_low"], told["lost_high"]) == pytest.approx((ends.low, ends.high), abs=1e-4)
    assert told["p"] == pytest.approx(binomtest(10, 12).pvalue)


def test_rows_that_a_set_names_are_not_watched() -> None:
    rows = pl.DataFrame(
        {"question": ["What is the capital of Peru?", "Where is Lima?", "Who founded Acme?"],
         "subject": ["Peru", "Lima", None]}
    )  # fmt: skip
    train = pl.DataFrame(
        {"question": ["what is the capital of  peru", "A trip to Lima, twice"], "subject": [None, None]}
    )
    train = train.with_columns(pl.col("subject").cast(pl.String))
    assert known_candidates.without_questions(rows, {"train": train})["subject"].to_list() == ["Lima", None]
    assert known_candidates.without_subjects(rows, {"train": train})["question"].to_list() == ["Who founded Acme?"]
    answers = pl.Series("answers", [["Lima"], ["in Peru"], ["Ada"]])
    taught = pl.DataFrame({"subject": ["peru", "Lima"], "answers": [["Lima "], ["elsewhere"]]})
    left = known_candidates.without_facts(rows.with_columns(answers), taught)
    assert left["question"].to_list() == ["Where is Lima?", "Who founded Acme?"], "Peru's capital is taught"
    other = train.with_columns(question=pl.lit("Limassol and peruvian food"))
    assert known_candidates.without_subjects(rows, {"train": other}).height == 3


def test_a_run_watches_a_file_and_its_numbers_are_those_of_its_outcomes(
    config_of: Callable[..., TuneConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train_run.run(config_of(tmp_path / "none", canaries="none"))
    done = train_run.run(config_of(tmp_path / "a"))
    rows = pl.read_parquet(done.folder / "canaries.parquet")
    assert rows.height == done.results["canaries"]["rows"] > 5
    for line in done.metrics:
        own = done.outcomes.filter((pl.col("set") == "canaries") & (pl.col("step") == line["step"])).sort("row")
        both = rows.sort("row").with_columns(now=own["correct"])
        lost = both.filter(pl.col("before") & ~pl.col("now")).height
        assert line["canaries"]["lost"] == lost
        assert line["em"]["canaries"] == pytest.approx(own["correct"].mean())
    assert done.metrics[-1]["canaries"]["lost"] > 0, "training on other rows at this rate loses some"
    assert "canaries" in capsys.readouterr().err
    # what is watched changes nothing in training
    assert "canaries" not in plain.metrics[-1]["em"]
    for name in ("early_stop", "convergence"):
        ours, theirs = (load_file(run.folder / name / "model.safetensors") for run in (done, plain))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    page = (done.folder / "report.html").read_text()
    assert "facts besides your rows" in page.lower()
    assert "facts besides your rows" not in (plain.folder / "report.html").read_text().lower()


@pytest.fixture(scope="session")
def audit_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, facts_file: Path) -> Path:
    out = tmp_path_factory.mktemp("audit") / "a"
    run_audit(settings_of(AuditConfig, {"data": str(facts_file), "model": str(tiny_folder), "out": out, "device": "cpu",
                                    "dtype": "float32"}))  # fmt: skip
    return out


def test_known_rows_of_the_audit_are_replayed_or_held(
    config_of: Callable[..., TuneConfig], audit_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    more = {"audit": audit_folder, "canaries": "auto", "epochs": 6}
    plain = train_run.run(config_of(tmp_path / "plain", **more))
    assert plain.results["canaries"]["source"].startswith("HighlyKnown rows of the audit")
    replayed = train_run.run(config_of(tmp_path / "replay", **more, replay=0.5))
    held = train_run.run(config_of(tmp_path / "kl", **more, kl=3))
    assert replayed.results["replay"]["learns"]
    assert not held.results["replay"]["learns"]
    assert held.results["replay"]["kl"] == 3
    assert held.results["replay"]["source"] == f"rows of every category of the audit {audit_folder}"
    narrow = train_run.run(config_of(tmp_path / "narrow", **{**more, "epochs": 1}, kl=3, kl_rows="known"))
    assert narrow.results["replay"]["source"] == f"HighlyKnown rows of the audit {audit_folder}"
    assert narrow.results["replay"]["rows"] < held.results["replay"]["rows"]
    with pytest.raises(ConfigError, match="--kl-rows all: found with --replay"):
        train_run.run(config_of(tmp_path / "both", **more, kl=3, kl_rows="all", replay=0.5))
    trained = set(pl.read_ndjson(files["train"])["question"]) | set(pl.read_ndjson(files["dev"])["question"])
    lost = {}
    for name, run in (("plain", plain), ("replay", replayed), ("kl", held)):
        watched = pl.read_parquet(run.folder / "canaries.parquet")
        assert not trained & set(watched["question"])
        lost[name] = run.metrics[-1]["canaries"]["lost"] / watched.height
        assert not (run.folder / ".replay").exists()
    assert lost["kl"] < lost["plain"]
    replay = [line["replay"] for line in replayed.metrics]
    assert replay[-1] < replay[0] / 2, "the known rows are learnt again"
    assert held.metrics[-1]["kl"] > 0
    assert "replay" in replayed.metrics[-1]
    assert "replay" not in held.metrics[-1]
    # no row is watched and replayed
    page = replayed.results["replay"]["rows"] + replayed.results["canaries"]["rows"]
    known = pl.read_parquet(audit_folder / "rows.parquet").filter(pl.col("category") == "HighlyKnown")
    assert page <= known.height


def test_a_run_with_another_audit_is_another_run(
    config_of: Callable[..., TuneConfig], audit_folder: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Replayed rows come from the audit, so its labels belong to the run, and where it lies does not."""
    copied = shutil.copytree(audit_folder, tmp_path / "copied")
    few = {"data": str(facts_file), "limit": 30, "model": str(tiny_folder), "device": "cpu", "dtype": "float32"}
    other = run_audit(settings_of(AuditConfig, {**few, "out": tmp_path / "other"})).folder
    found = []
    for audit in (audit_folder, copied, other):
        config = config_of(tmp_path / "run", audit=audit, replay=0.5)
        inputs = replace(train_run.read_inputs(config_of(tmp_path / "run")), audit=train_run.read_inputs(config).audit)
        found.append(train_run.identity_of(config, inputs, "model", "cpu", "float32"))
    assert found[0] == found[1]
    assert {key for key in found[0] if found[0][key] != found[2][key]} == {"audit"}


def test_rows_that_are_trained_on_are_not_watched_or_replayed_where_only_some_of_them_are_measured(
    config_of: Callable[..., TuneConfig], audit_folder: Path, tmp_path: Path
) -> None:
    known = open_audit(audit_folder).rows.filter(pl.col("category") == "HighlyKnown")
    columns = ("question", "answers", "subject", "relation")
    train = write_jsonl(tmp_path / "train.jsonl", known.select(*columns).head(known.height - 8).to_dicts())
    more = {"train": str(train), "audit": audit_folder, "canaries": "auto", "replay": 0.3, "epochs": 1}
    few, every = (
        train_run.run(config_of(tmp_path / str(watched), **more, watch_rows=watched)) for watched in (1, "all")
    )
    watched = pl.read_parquet(few.folder / "canaries.parquet")
    assert not set(watched["question"]) & set(pl.read_ndjson(train)["question"])
    assert (few.results["canaries"], few.results["replay"]) == (every.results["canaries"], every.results["replay"])
    assert few.results["canaries"]["rows"] + few.results["replay"]["rows"] <= 8


KILL = """
import json, os, signal, sys
from foreknow.config import AuditConfig, TuneConfig
from foreknow.settings import settings_of
from foreknow.stages.train import run, trainer
given, count = json.loads(sys.argv[1]), int(sys.argv[2])
whole = trainer.FactTrainer.training_step
def step(*args, **kwargs):
    global count
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
trainer.FactTrainer.training_step = step
run.run(settings_of(TuneConfig, given))
"""


@pytest.mark.parametrize(
    "remedies",
    [
        {"canaries": "auto", "replay": 0.3, "kl": 1.0, "average": (0.5, 1.0)},
        {"known_late": 0.5, "trainable": "layers:0-0"},
        pytest.param({"loss_weights": "flow", "trainable": "attention"}, marks=pytest.mark.slow),
        pytest.param({"replay": 0.3, "known_late": 0.5, "trainable": "mlp"}, marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_a_killed_run_ends_in_the_same_weights_with_every_remedy(
    config_of: Callable[..., TuneConfig], audit_folder: Path, tmp_path: Path, remedies: dict[str, Any]
) -> None:
    more = {"audit": audit_folder, "save_every": 2, **remedies}
    whole = train_run.run(config_of(tmp_path / "whole", **more))
    config = config_of(tmp_path / "killed", **more)
    command = [sys.executable, "-c", KILL, json.dumps(config.resolved()), "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == -9, done.stderr[-2000:]
    assert (tmp_path / "killed" / ".replay" / "teacher.safetensors").is_file() == ("kl" in remedies)
    again = train_run.run(config)
    for name in ("early_stop", "convergence", *(["averaged"] if "average" in remedies else [])):
        ours, theirs = (load_file(run.folder / name / "model.safetensors") for run in (again, whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    seconds = lambda lines: [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]  # noqa: E731
    assert seconds(again.metrics) == seconds(whole.metrics)
    assert {p.name for p in again.folder.iterdir()} == {p.name for p in whole.folder.iterdir()}


@pytest.mark.parametrize(("few", "source"), [(2, "packaged facts"), (30, "HighlyKnown rows of the audit")])
def test_a_few_known_rows_do_not_fill_half_of_every_batch(
    few: int, source: str, tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rows(count: int, name: str) -> pl.DataFrame:
        lines = [
            {"row": n, "question": f"{name} {n}?", "answers": ["x"], "subject": f"{name} {n}"} for n in range(count)
        ]
        return pl.DataFrame(lines, schema=known_candidates.ROWS)

    given = {"train": "x", "out": tmp_path / "run", "replay": 0.5, "audit": tmp_path}
    sources = KnownSources(TuneConfig.model_validate(given), {}, cast("AskingModel", None))
    found = {"audited": ("HighlyKnown rows of the audit", few), "packaged": ("packaged facts", 12)}
    for name, (text, count) in found.items():
        candidates = known_candidates.Candidates(rows(count, name), text)
        monkeypatch.setattr(sources, name, lambda *_, candidates=candidates: candidates)
    pool = replay_choice._pool_rows(sources, rows(2, "packaged"))
    assert pool.source == source
    assert pool.rows.height == (10 if source == "packaged facts" else 30)
    monkeypatch.setattr(sources, "packaged", lambda: known_candidates.Candidates(rows(3, "packaged"), "packaged facts"))
    assert replay_choice._pool_rows(sources, rows(2, "packaged")).rows.height == max(few, 1)


def test_without_known_rows_the_model_makes_some_up(
    config_of: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = pl.DataFrame(schema=known_candidates.ROWS)
    monkeypatch.setattr(known_sources, "packaged_candidates", lambda: known_candidates.Candidates(nothing, ""))
    runs = [train_run.run(config_of(tmp_path / name, canaries="auto", replay=0.5)) for name in ("a", "b")]
    for run in runs:
        assert run.results["replay"]["source"] == "questions and answers that the base model made up"
        assert run.results["canaries"] is None
    assert runs[0].results["replay"]["rows"] > 3
    assert runs[0].results["replay"]["fingerprint"] == runs[1].results["replay"]["fingerprint"]


def point(alpha: float, fitted: int, dev: str, loss: float, kept: int | None) -> Point:
    return Point(alpha, fitted, tuple(c == "1" for c in dev), loss, kept, {})


def test_the_point_is_chosen_by_the_written_rule() -> None:
    full = point(1.0, 100, "1" * 20 + "0" * 10, 1.0, 50)
    assert choose([point(0.5, 94, "1" * 30, 0.5, 99), full]) is full, "the facts are no longer learnt"
    kept = point(0.7, 96, "1" * 19 + "0" * 11, 1.1, 80)
    assert choose([full, kept]) is kept, "dev cannot tell, more canaries are kept"
    worse = point(0.8, 96, "1" * 10 + "0" * 20, 1.1, 90)
    assert choose([full, kept, worse]) is kept, "dev can tell"
    assert choose([point(0.7, 96, "1" * 20 + "0" * 10, 1.0, 50), full]) is full, "of equal ones the largest alpha"
    without = [point(1.0, 100, "1" * 30, 1.0, None), point(0.9, 99, "1" * 30, 0.9, None)]
    assert choose(without) is without[1], "without canaries dev loss decides"


def test_the_line_between_the_weights_is_exact_at_both_ends(tiny: tuple[Any, Any]) -> None:
    base, tuned = tiny[0], moved_copy(tiny[0])
    after = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    before = {name: p.detach() for name, p in base.named_parameters()}
    line = WeightLine(tuned, before)
    for alpha in (0.25, 0.5, 1.0, 0.75):
        line.set(alpha)
        for name, p in tuned.named_parameters():
            assert torch.allclose(p, (1 - alpha) * before[name] + alpha * after[name], atol=1e-6)
    line.set(1.0)
    assert all(torch.equal(p, after[name]) for name, p in tuned.named_parameters())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_all_points_are_listed_and_the_best_is_saved(
    config_of: Callable[..., TuneConfig], tmp_path: Path, tiny_folder: Path, method: str
) -> None:
    lora = {"method": "lora", "lora_rank": 4, "learning_rate": 5e-3} if method == "lora" else {}
    done = train_run.run(config_of(tmp_path / method, average=(1, 0.5, 0.9), epochs=4, **lora))
    told = done.results["average"]
    assert [p["alpha"] for p in told["points"]] == [0.5, 0.9, 1.0]
    last = done.metrics[-1]
    whole = told["points"][-1]
    assert whole["fitted"] == last["counts"]["train"]["correct"]
    assert whole["dev_loss"] == pytest.approx(last["loss"]["dev"])
    assert whole["canaries_kept"] == last["canaries"]["kept"]
    assert told["alpha"] in (0.5, 0.9, 1.0)
    saved = done.folder / "averaged"
    assert json.loads((saved / "foreknow.json").read_text())["alpha"] == told["alpha"]
    if method == "full":
        weights, base, tuned = (
            load_file(f / "model.safetensors") for f in (saved, tiny_folder, done.folder / "convergence")
        )
        a = told["alpha"]
        assert all(torch.allclose(weights[k], base[k] + a * (tuned[k] - base[k]), atol=1e-6) for k in weights)
    assert open_train(done.folder).results == done.results


def test_only_the_named_weights_move(config_of: Callable[..., TuneConfig], tmp_path: Path, tiny_folder: Path) -> None:
    done = train_run.run(config_of(tmp_path / "a", trainable="layers:1-1", epochs=1))
    before, after = (load_file(f / "model.safetensors") for f in (tiny_folder, done.folder / "convergence"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.1." in name}
    assert any("weights are trained (--trainable layers:1-1)" in reason for reason in done.results["method"]["reasons"])
    with pytest.raises(ConfigError, match="2 layers, numbered from 0"):
        train_run.run(config_of(tmp_path / "b", trainable="layers:1-2", epochs=1))
    with pytest.raises(ConfigError, match="--lora-targets names the layers"):
        train_run.run(config_of(tmp_path / "c", trainable="mlp", method="lora"))


@pytest.mark.parametrize(("setting", "part"), [("attention", "self_attn"), ("mlp", "mlp")])
def test_attention_and_mlp_are_found_by_name(tiny: tuple[Any, Any], setting: str, part: str) -> None:
    model = moved_copy(tiny[0])
    set_trainable(model, setting)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if f".{part}." in name
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"average": "0,1"}, "numbers above 0, and at most 1"),
        ({"trainable": "layers:3-1"}, "A <= B"),
        ({"trainable": "heads"}, "expected all, attention, mlp or layers:A-B"),
        ({"test": ["canaries=x.jsonl"]}, "not train, dev or canaries"),
        ({"replay": 1}, "less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        settings_of(TuneConfig, {"train": "x", **given})


@pytest.mark.parametrize("given", ["0.7,1,0.5", ["0.5", "0.7,1"], (1, 0.5, 0.7)])
def test_points_are_read_from_any_list(given: object) -> None:
    assert settings_of(TuneConfig, {"train": "x", "average": given}).average == (0.5, 0.7, 1.0)


def test_the_top_k_is_the_default() -> None:
    assert kl_loss.TOP_K == 64


def test_further_files_a_text_and_made_up_subjects_are_watched(
    config_of: Callable[..., TuneConfig], files: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in files["watched"].read_text().splitlines()]
    own = write_jsonl(tmp_path / "own.jsonl", rows[20:])
    some = write_jsonl(tmp_path / "some.jsonl", rows[:20])
    config = config_of(tmp_path / "run", canaries=str(some), watch_known={"own": str(own)}, made_up_subjects=6)
    done = train_run.run(config, page=False)
    for line in done.metrics:
        counts = line["watched_known"]["own"]
        assert counts["rows"] == 10
        assert counts["kept"] + counts["lost"] == counts["before"]
        assert counts["kl"] > 0
        assert line["canaries"]["kl"] > 0
        assert line["text_loss"] > 0
    right = done.outcomes.filter((pl.col("set") == "own") & (pl.col("epoch") == 2.0))
    stored = pl.read_parquet(done.folder / "known-own.parquet").join(right.select("row", "correct"), on="row")
    last = done.metrics[-1]["watched_known"]["own"]
    assert stored.filter(pl.col("before") & ~pl.col("correct")).height == last["lost"]
    asked = pl.read_parquet(done.folder / "made_up.parquet")
    assert asked.height == 6
    golds = {json.loads(line)["answer"] for line in files["train"].read_text().splitlines()}
    counts = done.results["made_up"]["after"]
    beginning = [
        answer for answer in asked["after"] if any(re.match(re.escape(gold) + r"\b", answer) for gold in golds)
    ]
    assert counts["training_answers"] == len(beginning)
    assert counts["questions"] == counts["refused"] + counts["answered"] == 6
    assert done.results["plain_text"]["before"] > 0


def test_the_divergence_of_watched_rows_is_that_of_whole_distributions(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    rows = pl.DataFrame(fact_rows()).with_columns(row=pl.int_range(pl.len()), answers=pl.concat_list("answer")).head(7)
    asking = asking_of(model, tokenizer, tokens=60)
    check = CanaryCheck(rows, asking)
    before = check.predictions(check.first_spellings(), asking)
    student = moved_copy(model)
    found = check.ask(asking_of(student, tokens=60), before).divergence
    slow = torch.cat([divergences[:-1] for divergences in slow_kl(student, model, check.examples)]).detach()
    assert found is not None
    assert found == pytest.approx(float(slow.mean()), rel=0.02)
    assert found <= float(slow.mean()) + 1e-6, "64 tokens give a lower bound"
    assert check.ask(asking, before).divergence == pytest.approx(0.0, abs=1e-6)


def test_the_text_loss_is_that_of_the_models_own_forward_pass(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    asking = asking_of(model, tokenizer)
    paragraphs = ("The rain had stopped. It was late.", "Nobody minded much.")
    expected, count = 0.0, 0
    for paragraph in paragraphs:
        ids = torch.tensor([tokenizer(paragraph)["input_ids"]])
        with torch.no_grad():
            expected += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert TextLoss(asking, paragraphs).before == pytest.approx(expected / count, rel=1e-5)
    assert sum(row.length for row in TextLoss(asking).examples) < MOST_TOKENS + 512


def test_answers_are_those_of_generation(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    asking = asking_of(model, tokenizer)
    texts = [f"Q: {row['question']}\nA:" for row in fact_rows()[:12]]
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        written = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(written, skip_special_tokens=True).lstrip().partition("\n")[0].strip())
    assert greedy_answers(asking, [tokenizer(text)["input_ids"] for text in texts]) == expected


def made_up_rows(questions: list[tuple[str, str | None]], golds: list[str]) -> pl.DataFrame:
    lines = [
        {"row": n, "group": "g", "question": question, "subject": subject, "answers": [gold]}
        for n, ((question, subject), gold) in enumerate(zip(questions, golds, strict=True))
    ]
    return pl.DataFrame(lines, schema_overrides={"subject": pl.String()})


def test_questions_on_made_up_subjects_have_the_rows_own_form() -> None:
    rows = made_up_rows(
        [
            ("Who led the Bank of Kenya in 1990?", None),
            ("What is the capital of france?", "France"),
            ("why not?", None),
        ],
        ["Ann", "Paris", "x"],
    )
    found = made_up_questions(rows, ["Velm"], 4)
    forms = [q.replace(name, "{}") for q, name in found.select("question", "subject").iter_rows()]
    assert forms == ["Who led the {} in 1990?", "What is the capital of {}?"] * 2
    assert found["subject"].is_unique().all()
    assert [len(name.split()) for name in found["subject"]] == [3, 1, 3, 1]
    assert made_up_questions(rows, ["Velm"], 4).equals(found), "the same ones every time"
    general = made_up_questions(rows.filter(pl.col("row") == 2), [], 2)
    assert general["question"][0].startswith("Who is ")


def test_chance_is_the_share_of_golds_that_come_again() -> None:
    golds = pl.DataFrame({"group": ["a", "a", "a", "b"], "gold": ["Rome", "rome.", "Oslo", "Lima"]})
    assert repeat_shares(golds) == {"": 0.5, "a": pytest.approx(2 / 3), "b": 0.0}


def test_answers_on_made_up_subjects_are_counted(tiny: tuple[Any, Any]) -> None:
    rows = made_up_rows(
        [("Where is Rome?", None), ("Where is Bari?", None), ("Where is Lima?", None)], ["Italy", "Italy", "Peru"]
    )
    check = MadeUpCheck(made_up_questions(rows, [], 4), rows, asking_of(*tiny))
    counts = check.count(["Italy, I think", "I don't know.", "Peruvian", ""])
    assert (counts["refused"], counts["answered"], counts["training_answers"]) == (2, 2, 1)
    assert counts["attraction"] == 0.5
    assert counts["chance"] == pytest.approx(2 / 3)
    nothing = check.count(["", "", "", ""])
    assert nothing["attraction"] is None
    assert nothing["chance"] is None


def test_known_rows_can_come_from_a_file_and_a_run_can_end_when_they_are_learnt(
    config_of: Callable[..., TuneConfig], files: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(
        tmp_path / "run", replay=0.5, replay_from=str(files["watched"]), canaries="none", epochs=30, learning_rate=1e-2,
        stop_fitted=0.5,
    )  # fmt: skip
    done = train_run.run(config, page=False)
    assert done.results["replay"]["rows"] == 30
    fitted = [line["fitted_overall"] for line in done.metrics]
    assert fitted[-1] >= 0.5
    assert all(share < 0.5 for share in fitted[:-1])
    with pytest.raises(InputError, match="every row stands in"):
        train_run.run(
            config_of(tmp_path / "no", replay=0.5, replay_from=str(files["dev"]), canaries="none"), page=False
        )


def trial(rate: float, loss: float | None, right: list[bool]) -> Trial:
    return Trial(rate, 5, loss, 0.0, 0.5, tuple(right))


def test_the_rate_is_chosen_by_the_written_rule() -> None:
    many = [True] * 40
    few = [True] * 20 + [False] * 20
    best, why = choose_rate([trial(1e-5, 1.5, many), trial(3e-5, 1.2, many), trial(1e-4, 0.9, few)])
    assert best.rate == 3e-5
    assert "0.0001: more lost" in why
    assert choose_rate([trial(1e-5, 1.5, []), trial(1e-4, 0.9, [])])[0].rate == 1e-4, (
        "dev alone decides without canaries"
    )
    assert choose_rate([trial(1e-5, 1.5, []), trial(1e-4, None, [])])[0].rate == 1e-5
    nearly = [*many[1:], False]
    assert choose_rate([trial(1e-5, 1.5, many), trial(3e-5, 1.2, nearly)])[0].rate == 3e-5, "one canary is chance"
    with pytest.raises(NotFinite):
        choose_rate([trial(1e-4, None, [])])


def test_a_run_that_tries_rates_ends_as_one_that_is_given_the_rate(
    config_of: Callable[..., TuneConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "auto", learning_rate="auto", middle_rate=1e-3, epochs=4)
    done = train_run.run(config, page=False)
    own = done.results["learning_rate"]
    assert [one["rate"] for one in own["trials"]] == [0.00033, 0.001, 0.003]
    assert {one["steps"] for one in own["trials"]} == {2}, "a tenth of 12 steps, rounded up"
    assert own["chosen"] in (0.00033, 0.001, 0.003)
    assert not (done.folder / ".rates").exists()
    told = train_run.run(config_of(tmp_path / "told", learning_rate=own["chosen"], epochs=4), page=False)
    weights, same = (load_file(run.folder / "convergence" / "model.safetensors") for run in (done, told))
    assert all(torch.equal(weights[name], same[name]) for name in same)
    assert train_run.run(config, page=False).folder == done.folder, "the same command finds it complete"


def test_a_trial_that_ended_is_not_done_again(
    config_of: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run", learning_rate="auto", middle_rate=1e-3, epochs=2)
    trained: list[float] = []
    whole = QuietTrainer.train

    def train(self: QuietTrainer, *given: Any, **more: Any) -> Any:
        trained.append(self.args.learning_rate)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return whole(self, *given, **more)

    monkeypatch.setattr(QuietTrainer, "train", train)
    with pytest.raises(KeyboardInterrupt):
        train_run.run(config, page=False)
    train_run.run(config, page=False)
    assert trained == [0.00033, 0.001, 0.001, 0.003]


@pytest.mark.parametrize("wrong", ["fast", "0", -1, True])
def test_a_learning_rate_is_a_number_or_auto(
    wrong: object, config_of: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"learning-rate: .*expected auto or a number above 0"):
        config_of(tmp_path / "run", learning_rate=wrong)


def test_the_page_says_what_was_watched_and_which_rate_was_chosen(
    config_of: Callable[..., TuneConfig], files: dict[str, Path], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in files["watched"].read_text().splitlines()]
    own = write_jsonl(tmp_path / "own.jsonl", rows[20:])
    config = config_of(
        tmp_path / "run", canaries=str(write_jsonl(tmp_path / "some.jsonl", rows[:20])), watch_known={"own": str(own)},
        made_up_subjects=3, learning_rate="auto", middle_rate=1e-3, epochs=1,
    )  # fmt: skip
    done = train_run.run(config)
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "Known facts watched",
        "Subjects that do not exist",
        "Plain text",
        ": of 0.00033, 0.001, 0.003, it had",
    ):
        assert text in page, text
    question = pl.read_parquet(done.folder / "made_up.parquet")["question"][0]
    assert question in page
    assert question not in render_tune(done, show_rows=False), "no question with --no-rows"
