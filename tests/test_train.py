"""Tuning end to end on the tiny model: losses, outputs, kill and resume, and every message for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Trainer,
    TrainingArguments,
)

from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import TuneConfig
from foreknow.errors import ConfigError, ForeknowError, InputError, ModelError, NotFinite, ResourceError, RunFolderError
from foreknow.io.run_dir import FORMAT
from foreknow.models import loading
from foreknow.settings import settings_of
from foreknow.stages.train import answer_loss, checkpoints
from foreknow.stages.train import estimate as tune_estimate
from foreknow.stages.train import run as train_run
from foreknow.stages.train.answer_loss import PackedPass, PlainPass, open_pass, shared_beginning
from foreknow.stages.train.batches import micro_batches, step_rows
from foreknow.stages.train.inputs import check_models
from foreknow.stages.train.loop import open_asking
from foreknow.stages.train.result import TrainResult, open_train, read_metrics
from foreknow.stages.train.trainer import FactTrainer, arguments, set_dropout
from foreknow.stages.train.training_examples import TrainingExample

Files = dict[str, Path]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Train, dev and test rows with categories, and the prompt that the tiny model knows."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()]
    labelled = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(rows)]
    template = folder / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    return {
        "train": write_jsonl(folder / "train.jsonl", labelled[8:40]),
        "dev": write_jsonl(folder / "dev.jsonl", labelled[:8]),
        "ood": write_jsonl(folder / "ood.jsonl", labelled[40:]),
        "template": template,
    }


@pytest.fixture(scope="session")
def settings(files: Files, tiny_folder: Path) -> Callable[..., TuneConfig]:
    def make(out: Path, **given: Any) -> TuneConfig:
        base = {
            "train": str(files["train"]), "dev": str(files["dev"]), "test": [f"ood={files['ood']}"], "out": out,
            "model": str(tiny_folder), "prompt_template": files["template"], "dtype": "float32", "device": "cpu",
            "epochs": 3, "learning_rate": 3e-4, "batch_size": 10, "eval_steps": (0, 2), "micro_batch_tokens": 100,
            "metric": "dev_em", "keep": "both",
        }  # fmt: skip
        return settings_of(TuneConfig, {**base, **given})

    return make


@pytest.fixture(scope="session")
def finished(settings: Callable[..., TuneConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train_run.run(settings(tmp_path_factory.mktemp("tuned") / "first"))


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def test_every_output_is_there(finished: TrainResult, tiny_folder: Path) -> None:
    names = {p.name for p in finished.folder.iterdir() if p.name != ".lock"}
    outputs = {"metrics.jsonl", "outcomes.parquet", "rows.parquet", "results.json", "manifest.json", "report.html"}
    outputs |= {"early_stop", "convergence", "made_up.parquet"}
    assert names == {"config.yaml", *outputs}
    lines = finished.metrics
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (0.5, 2), (1, 4), (2, 8), (3, 12)]
    assert lines[0]["train_loss"] is None
    assert lines[2]["train_loss"] > lines[4]["train_loss"] > 0
    for line in lines:
        assert set(line["fitted"]) == set(CATEGORIES)
        assert set(line["em"]) == {"dev", "ood"}
        assert set(line["em_by_category"]["dev"]) == set(CATEGORIES)
        assert set(line["em_by_relation"]["ood"]) == {"river"}
        assert line["counts"]["train"]["rows"] == 32
        assert line["seconds"] >= line["measuring_seconds"] > 0
    outcomes = finished.outcomes
    assert outcomes.columns[:5] == ["epoch", "step", "set", "row", "correct"]
    assert outcomes.height == 5 * (32 + 8 + 8)
    last = outcomes.filter((pl.col("epoch") == 3) & (pl.col("set") == "train"))
    assert last["correct"].mean() == pytest.approx(lines[-1]["fitted_overall"])
    results = finished.results
    best = max(line["em"]["dev"] for line in lines if line["epoch"] >= 1)
    assert results["early_stop"]["metrics"]["em"]["dev"] == best
    assert results["convergence"]["epoch"] == 3
    assert results["convergence"]["known_rows"] + results["convergence"]["unknown_rows"] == 32
    assert results["model"]["folder"] == str(tiny_folder)
    assert json.loads((finished.folder / "manifest.json").read_text())["stage"] == "tune"


def test_the_saved_models_answer_as_was_measured(finished: TrainResult, files: Files) -> None:
    for name in ("early_stop", "convergence"):
        point = finished.results[name]
        folder = finished.folder / name
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert model.config.use_cache
        right = {}
        for part in ("dev", "ood", "train"):
            rows = [json.loads(line) for line in files[part].read_text().splitlines()]
            right[part] = 0
            for row in rows:
                ids = tokenizer(f"Q: {row['question']}\nA:", return_tensors="pt")
                made = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=0)
                said = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
                right[part] += said.split("\n")[0].strip() == row["answer"]
        assert right == {part: point["metrics"]["counts"][part]["correct"] for part in right}
    assert finished.results["early_stop"]["metrics"]["em"]["dev"] > 0.2


def test_the_same_run_again_does_nothing_and_another_is_refused(
    finished: TrainResult, settings: Callable[..., TuneConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.name != ".lock"}
    train_run.run(settings(finished.folder, save_every=3))
    assert "this run is complete; nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.name != ".lock"} == before
    with pytest.raises(RunFolderError, match=r"learning_rate: 0.0003 -> 0.1"):
        train_run.run(settings(finished.folder, learning_rate=0.1))


KILLS = '''
import os, random, signal, sys
from pathlib import Path
from foreknow.stages.train import eval_callback, loop, run, trainer
from foreknow.config import TuneConfig
from foreknow.settings import settings_of
import json, torch, peft
import transformers.models.llama.modeling_llama
from foreknow.progress import log_to_stderr
log_to_stderr()

given = json.loads(sys.argv[1])
wishes = random.Random(int(sys.argv[2]))

def dying(holder, name, countdown):
    """The function kills its process at the countdown's end: half of the times before its work, else after it."""
    whole, left = getattr(holder, name), [countdown]
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and countdown % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        done = whole(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(holder, name, call)

training = [
    (trainer.FactTrainer, "training_step", 4), (trainer, "complete", 2), (trainer, "prune", 2), (torch, "save", 4),
    (eval_callback, "write_lines", 2), (eval_callback, "save_model", 1), (loop.FactTrainer, "_save", 2),
]
ending = [(loop, "_promote", 1), (loop, "write_frame", 1), (run, "write_json", 1)]
places = wishes.sample(training, 3) + [wishes.choice(ending)]
for holder, name, most in places:
    child = os.fork()
    if child == 0:
        dying(holder, name, wishes.randint(1, most))
        run.run(settings_of(TuneConfig, given))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(name, "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
run.run(settings_of(TuneConfig, given))
'''


LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-3}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads an old name
@pytest.mark.parametrize(
    ("seed", "changed"),
    [
        (1, {}),
        pytest.param(2, {"dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(3, LORA, marks=pytest.mark.slow),
        pytest.param(4, {"warmup": 0.5, "weight_decay": 0.1}, marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16", "lora", "warmup"],
)
def test_killed_at_any_moment_it_ends_in_the_same_weights(
    finished: TrainResult,
    settings: Callable[..., TuneConfig],
    tmp_path: Path,
    seed: int,
    changed: dict[str, Any],
) -> None:
    whole = train_run.run(settings(tmp_path / "whole", **changed)) if changed else finished
    config = settings(tmp_path / "a", **changed, save_every=3).resolved()
    command = [sys.executable, "-c", KILLS, json.dumps(config), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("killed") >= 3, done.stdout
    assert "going on from the checkpoint" in done.stderr
    again = open_train(tmp_path / "a")
    for name in ("early_stop", "convergence"):
        weights = {file.name for file in (again.folder / name).glob("*.safetensors")}
        assert weights == ({"adapter_model.safetensors"} if changed is LORA else {"model.safetensors"})
        for file in weights:
            ours, theirs = (load_file(run.folder / name / file) for run in (again, whole))
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)
    assert again.outcomes.equals(whole.outcomes)
    assert {p.name for p in again.folder.iterdir()} == {p.name for p in whole.folder.iterdir()}


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
        if step < 12:
            checkpoints.complete(folder, step, {"loss": 1.5})
    (tmp_path / "checkpoint-8" / "model.safetensors").write_bytes(bytes(99))
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert (found.step, found.note) == (4, {"loss": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def trained_once(model: Any, rows: list[TrainingExample], tokens: int, losses: Any, tmp_path: Path) -> float:
    """The loss of one batch by our trainer; its gradients stand in the model."""
    config = settings_of(
        TuneConfig, {"train": "x", "dev": "y", "micro_batch_tokens": tokens, "batch_size": len(rows), "preset": "paper"}
    )
    config = config.model_copy(update={"epochs": 1, "learning_rate": 1e-5})
    meter: Any = type("Meter", (), {"advance": lambda *_: None})()
    ours = FactTrainer(
        model, arguments(config, tmp_path, 1, "cpu"), rows, config, losses, lambda _: ({}, False), meter, autocast=False
    )
    ours.optimizer = torch.optim.SGD(model.parameters())
    model.zero_grad()
    return float(ours.training_step(model, rows))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


ROWS = [TrainingExample(n, tuple(range(3, 6 + n % 5)), (7, 9 + n, 0)[: 2 + n % 2]) for n in range(9)]


def test_loss_and_gradients_are_those_of_transformers_trainer(tiny_folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    width = max(len(e.prompt) + len(e.answer) for e in ROWS)
    batch = []
    for e in ROWS:
        n, spare = len(e.prompt) + len(e.answer), width - len(e.prompt) - len(e.answer)
        batch.append({
            "input_ids": [*e.prompt, *e.answer, *[0] * spare], "attention_mask": [1] * n + [0] * spare,
            "labels": [-100] * len(e.prompt) + [*e.answer] + [-100] * spare,
        })  # fmt: skip
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    theirs = Trainer(model, plain, train_dataset=batch)  # type: ignore[arg-type]
    theirs.optimizer = torch.optim.SGD(model.parameters())
    inputs = {k: torch.tensor([row[k] for row in batch]) for k in batch[0]}
    count = sum(len(e.answer) for e in ROWS)
    expected = float(theirs.training_step(model, inputs, torch.tensor(count)))
    wanted = gradients(model)
    for tokens in (1, 30, 10_000):
        with open_pass(model, ROWS[:3]) as (losses, reason):
            assert "packed" in reason
            loss = trained_once(model, ROWS, tokens, losses, tmp_path)
        assert loss == pytest.approx(expected, rel=1e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_weight_counts_a_row_so_many_times(tiny_folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    weighted = [e._replace(weight=float(n % 3)) for n, e in enumerate(ROWS)]
    repeated = [e for n, e in enumerate(ROWS) for _ in range(n % 3)]
    with open_pass(model, ROWS[:3]) as (losses, _):
        a = trained_once(model, weighted, 50, losses, tmp_path)
        wanted = gradients(model)
        b = trained_once(model, repeated, 50, losses, tmp_path)
    assert a == pytest.approx(b, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4, msg=name)


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 0,
}  # fmt: skip
OTHERS = {
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, sliding_window=4, final_logit_softcapping=2.0, attn_logit_softcapping=1.0)
    ),
    "no attention interface": lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_losses_of_other_architectures_are_their_own(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = OTHERS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.set_attn_implementation("eager")
        whole = dict(zip(ROWS, (PlainPass(model).losses([e])[1] for e in ROWS), strict=True))
        with open_pass(model, ROWS[:3]) as (losses, reason):
            assert ("padded" in reason) == (kind == "no attention interface"), reason
            rows, found = losses.losses(ROWS)
    torch.testing.assert_close(found, torch.cat([whole[e] for e in rows]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sliding window", "soft caps"])
@pytest.mark.parametrize("shared", [0, 3, 9])
def test_rows_that_share_a_beginning_have_the_gradients_of_separate_rows(kind: str, shared: int) -> None:
    """Also where the beginning is longer than the sliding window of 4."""
    torch.manual_seed(0)
    model: Any = OTHERS[kind]().train()
    model.set_attn_implementation("eager")
    head = tuple(range(20, 20 + shared))
    rows = [TrainingExample(n, (*head, 40 + n, *range(30, 30 + n % 3)), (7, 9 + n, 0)) for n in range(6)]
    assert shared_beginning(rows) == shared
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    for row in rows:
        PlainPass(model).losses([row])[1].sum().backward()
    wanted = gradients(model)
    model.zero_grad()
    with PackedPass(model).attached() as packed:
        model.train()
        packed.losses(rows)[1].sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-3, msg=name)


def test_gradients_that_are_copied_back_are_those_that_torch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: Any = OTHERS["sliding window"]().train()
    rows = [TrainingExample(n, (20, 21, 22, 40 + n, *range(30, 30 + 7 * (n % 4))), (7, 9 + n, 0)) for n in range(9)]
    found = []
    for copy_rows in (answer_loss._copy_rows, lambda x, index, _: x.index_select(0, index)):
        monkeypatch.setattr(answer_loss, "_copy_rows", copy_rows)
        model.zero_grad()
        with PackedPass(model).attached() as packed:
            model.train()
            packed.losses(rows)[1].sum().backward()
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    assert len(found[0]) > 5
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_a_beginning_is_shared_where_it_saves_something() -> None:
    def rows(*prompts: tuple[int, ...]) -> list[TrainingExample]:
        return [TrainingExample(n, prompt, (1,)) for n, prompt in enumerate(prompts)]

    assert shared_beginning(rows((5, 6, 7), (5, 6, 8))) == 2
    assert shared_beginning(rows((5, 6, 7), (5, 6, 7))) == 2, "each prompt keeps its last token"
    assert shared_beginning(rows((5, 6, 7), (5, 6, 7, 8), (5, 6, 7, 9))) == 2
    assert shared_beginning(rows((5, 6, 7))) == 0, "one row"
    assert shared_beginning(rows((5, 6), (5, 7))) == 0, "one token"
    assert shared_beginning(rows((5,), (5, 6))) == 0
    assert shared_beginning([]) == 0


def test_dropout_acts_and_is_named(tiny_folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert set_dropout(model, 0.5) == "dropout 0.5 in attention_dropout of LlamaAttention (2)"
    with torch.no_grad(), open_pass(model, ROWS[:3]) as (losses, _):
        still = [losses.losses(ROWS)[1] for _ in range(2)]
        model.train()
        moved = [losses.losses(ROWS)[1] for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moved)
    assert set_dropout(model, 0.0) == "no dropout"
    for layer in model.model.layers:
        del layer.self_attn.attention_dropout
    with pytest.raises(ConfigError, match=r"--dropout 0.1: no layer of LlamaForCausalLM knows dropout"):
        set_dropout(model, 0.1)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_has_every_row_once(count: int, batch: int, seed: int) -> None:
    steps = -(-count // batch)
    for epoch in (0, 1):
        rows = [n for step in range(steps) for n in step_rows(seed, epoch * steps + step, count, batch)]
        assert sorted(rows) == list(range(count))
    if count > 8:
        assert step_rows(seed, 0, count, count) != step_rows(seed, 1, count, count)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 60))
def test_micro_batches_hold_every_row_within_the_budget(lengths: list[int], tokens: int) -> None:
    rows = [TrainingExample(n, (1,) * length, (2,)) for n, length in enumerate(lengths)]
    parts = micro_batches(rows, tokens)
    assert sorted(e.row for part in parts for e in part) == list(range(len(rows)))
    assert all(len(part) == 1 or sum(e.length for e in part) <= tokens for part in parts)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads an old name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_saves_an_adapter_that_answers_as_measured(
    settings: Callable[..., TuneConfig],
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
) -> None:
    from peft import AutoPeftModelForCausalLM

    done = train_run.run(settings(tmp_path / "a", **LORA, dtype=dtype, epochs=2, eval_steps=()))
    err = capsys.readouterr().err
    assert "training on packed rows" in err
    assert "measuring by plain" not in err
    folder = done.folder / "convergence"
    assert not (folder / "model.safetensors").exists()
    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    right = 0
    for line in files["train"].read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(f"Q: {row['question']}\nA:", return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=0)
        said = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right += said.split("\n")[0].strip() == row["answer"]
    # in bfloat16 two logits may be all but equal, and adding in another order turns the choice
    measured = done.metrics[-1]["counts"]["train"]["correct"]
    assert measured > 5
    assert abs(right - measured) <= (dtype == "bfloat16")
    assert done.metrics[-1]["train_loss"] < done.metrics[0]["train_loss"]
    told = json.loads((folder / "foreknow.json").read_text())
    assert (told["method"], told["base"]["fingerprint"]) == ("lora", done.results["model"]["fingerprint"])


def test_bfloat16_trains_float32_weights(settings: Callable[..., TuneConfig], tmp_path: Path) -> None:
    done = train_run.run(settings(tmp_path / "a", dtype="bfloat16", learning_rate=1e-5, epochs=1, eval_steps=()))
    start = load_file(Path(done.results["model"]["folder"]) / "model.safetensors")
    end = load_file(done.folder / "convergence" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in end.values())
    # a step of 1e-5 is below what bfloat16 can hold beside most weights, and must not be lost
    moved = torch.cat([(value - start[name]).abs().flatten() for name, value in end.items()])
    assert float((moved > 0).float().mean()) > 0.9
    assert float(moved.max()) < 1e-4


def test_patience_stops_and_says_so(settings: Callable[..., TuneConfig], tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = train_run.run(settings(out, epochs=40, learning_rate=1e-9, patience=2, eval_steps=(), batch_size=32))
    assert done.results["epochs"] == 3
    assert done.results["stopped_by_patience"]
    assert done.results["early_stop"]["epoch"] == 1


def test_without_categories_shares_are_overall(
    settings: Callable[..., TuneConfig], files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [
        {k: v for k, v in json.loads(x).items() if k != "category"} for x in files["train"].read_text().split("\n") if x
    ]
    train = write_jsonl(tmp_path / "bare.jsonl", [*bare, {**bare[0], "answer": "Elsewhere"}, {"question": "no answer"}])
    given_config = settings(tmp_path / "a", train=str(train), epochs=1, eval_steps=())
    line = train_run.run(given_config).metrics[-1]
    err = capsys.readouterr().err
    assert "no categories: no column 'category' in the rows" in err
    assert "33 rows" in err
    assert "1 left out (no_answer 1)" in err
    assert "1 questions of train have more than one gold: at most 97.0% of its rows can be fitted" in err
    assert line["fitted"] == {}
    assert line["fitted_overall"] >= 0


def audit_of(folder: Path, rows: list[dict[str, Any]], fingerprint: str) -> Path:
    """What of a finished audit is read here."""
    folder.mkdir()
    pl.DataFrame(rows).with_columns(earlier_turns=pl.lit(None, pl.String)).write_parquet(folder / "rows.parquet")
    model = {"name": "some model", "fingerprint": fingerprint}
    (folder / "summary.json").write_text(json.dumps({"model": model}))
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    return folder


def test_categories_come_from_the_audit_by_question_and_gold(
    settings: Callable[..., TuneConfig], files: Files, finished: TrainResult, tmp_path: Path
) -> None:
    bare = [json.loads(x) for x in files["train"].read_text().split("\n") if x]
    train = write_jsonl(tmp_path / "bare.jsonl", [{k: r[k] for k in ("question", "answer")} for r in reversed(bare)])
    known = [{"question": r["question"], "answers": [r["answer"]], "category": r["category"]} for r in bare[:20]]
    known.append({"question": bare[20]["question"], "answers": ["another gold"], "category": "Unknown"})
    audit = audit_of(tmp_path / "audit", known, finished.results["model"]["fingerprint"])
    found = train_run.read_inputs(settings(tmp_path / "a", train=str(train), audit=audit)).train.rows
    expected = [r["category"] if n < 20 else None for n, r in enumerate(bare)]
    assert found["category"].to_list() == expected[::-1]
    named = [{**json.loads(x), "category": "WeaklyKnown"} for x in train.read_text().split("\n") if x]
    both = write_jsonl(tmp_path / "both.jsonl", named)
    read = train_run.read_inputs(settings(tmp_path / "a", train=str(both), audit=audit)).train
    assert read.rows["category"].to_list() == [category or "WeaklyKnown" for category in expected[::-1]]
    assert read.categories.endswith(f"labels 20 of its {len(bare)} rows, the column 'category' for {len(bare) - 20}")
    other = audit_of(tmp_path / "other", known, "sha256:another")
    with pytest.raises(ModelError, match=r"(?s)made with some model .* not with the model to be tuned .* --force"):
        train_run.run(settings(tmp_path / "b", audit=other))
    with pytest.raises(ModelError, match="another model"), open_asking(settings(tmp_path, audit=other)):
        pass
    forced = check_models(settings(tmp_path, audit=other, force=True), train_run.read_inputs(settings(tmp_path)), "x")
    assert len(forced) == 1
    assert "another model's" in forced[0]


def test_a_model_spread_over_devices_is_refused_before_it_is_loaded(
    settings: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr(loading, "resolve", loads)
    monkeypatch.setattr(loading, "load_model", loads)
    config = settings(out=tmp_path / "run", device="map")
    for run in (train_run.run, tune_estimate.estimate):
        with pytest.raises(ConfigError, match=r"^--device map: found layers spread.*expected one device.*use --device"):
            run(config)
    assert not (tmp_path / "run" / ".run.json").exists()


def test_bad_input_is_refused_before_anything_is_written(
    settings: Callable[..., TuneConfig], files: Files, tmp_path: Path
) -> None:
    rows = [json.loads(x) for x in files["train"].read_text().split("\n") if x]
    both = write_jsonl(tmp_path / "both.jsonl", [*rows, json.loads(files["dev"].read_text().split("\n")[0])])
    cases: list[tuple[dict[str, Any], type[ForeknowError], str]] = [
        ({"train": str(both)}, InputError, r"1 \(1 questions\) in dev, first row 32: 'What is.*--allow-overlap"),
        ({"metric": "dev_acc"}, ConfigError, r"--metric dev_acc: no such metric; this run has dev_HighlyKnown_em"),
        ({"train": str(tmp_path / "none.jsonl")}, InputError, r"none.jsonl"),
        (
            {"train": str(write_jsonl(tmp_path / "long.jsonl", [*rows, {"question": "why " * 400, "answer": "so"}]))},
            InputError,
            r"long.jsonl: 1 row with no room .*, first row 32, counted from 0: 1,\d+ tokens, the model has 512 po",
        ),
        (
            {"train": str(write_jsonl(tmp_path / "weight.jsonl", [{**rows[0], "weight": -1}, *rows[1:]]))},
            InputError,
            r"weight.jsonl: row 0: weight -1.*expected a number from 0 on",
        ),
    ]
    for given_settings, kind, message in cases:
        with pytest.raises(kind, match=f"(?s){message}"):
            train_run.run(settings(tmp_path / "a", **given_settings))
        assert {p.name for p in (tmp_path / "a").iterdir()} <= {".lock"} if (tmp_path / "a").exists() else True
    train_run.read_inputs(settings(tmp_path / "a", train=str(both), allow_overlap=True))


def test_an_answer_without_tokens_is_named(
    settings: Callable[..., TuneConfig], files: Files, tiny_folder: Path, tmp_path: Path
) -> None:
    from tokenizers import Regex, Tokenizer, normalizers

    model = tmp_path / "deaf"
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^ -~\n]"), "")
    tokenizer.save_pretrained(model)
    assert isinstance(tokenizer.backend_tokenizer, Tokenizer)
    rows = [json.loads(x) for x in files["train"].read_text().split("\n") if x]
    train = write_jsonl(tmp_path / "train.jsonl", [*rows[:3], {"question": "Who?", "answer": "東京"}])
    template = tmp_path / "t.yaml"
    template.write_text(yaml.safe_dump({"target": "{question}\n"}))
    given_settings = {"train": str(train), "model": str(model), "prompt_template": template}
    with pytest.raises(
        InputError,
        match=r"train.jsonl: 1 row whose answer is no token at all .*, first row 3, counted from 0: the answer '東京'",
    ):
        train_run.run(settings(tmp_path / "a", **given_settings))


def test_a_loss_that_is_no_number_stops_and_keeps_the_best(
    settings: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, step = settings(tmp_path / "a", eval_steps=()), FactTrainer.training_step

    def poisoned(self: FactTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        if self.state.global_step == 6:
            with torch.no_grad():
                next(model.parameters())[5] = float("nan")
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(FactTrainer, "training_step", poisoned)
    with pytest.raises(NotFinite, match=r"(?s)the loss is nan at step 7 \(epoch 2\), rows \d+, .*kept: the best epoch"):
        train_run.run(config)
    kept = load_file(tmp_path / "a" / "early_stop" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values())
    assert [line["epoch"] for line in read_metrics(tmp_path / "a")] == [1]


@pytest.mark.parametrize("writer", ["weights", "optimizer"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    settings: Callable[..., TuneConfig],
    finished: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    """The errors are those that safetensors and torch raise on a full file system."""
    config = settings(tmp_path / "a")
    holder, name, error = {
        "weights": (
            FactTrainer,
            "_save",
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ),
        "optimizer": (
            torch,
            "save",
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        ),
    }[writer]
    whole, count = getattr(holder, name), [0]

    def full(*given: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise error
        return whole(*given, **more)

    monkeypatch.setattr(holder, name, full)
    with pytest.raises(ResourceError, match=r"checkpoint-\d+: the disk is full; .* kept\. Free some space"):
        train_run.run(config)
    monkeypatch.undo()
    again = train_run.run(config)
    ours, theirs = (load_file(run.folder / "convergence" / "model.safetensors") for run in (again, finished))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(("where", "setting"), [("learn", "--micro-batch-tokens"), ("measure", "--batch-tokens")])
def test_out_of_memory_names_the_setting(
    settings: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, setting: str
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    target = "foreknow.stages.train.trainer.micro_batches" if where == "learn" else "foreknow.stages.train.tracker._ask"
    monkeypatch.setattr(target, none_left)
    with pytest.raises(ResourceError, match=rf"out of memory; .*Lower {setting} \(now \d+\)"):
        train_run.run(settings(tmp_path / "a", eval_steps=()))


def test_dry_run_says_what_it_would_cost(settings: Callable[..., TuneConfig], tmp_path: Path) -> None:
    found = tune_estimate.estimate(settings(tmp_path / "a", dry_run=True, canaries="none"))
    assert not (tmp_path / "a").exists()
    assert (found["rows"], found["epochs"], found["steps"]) == (32, 3, 12)
    assert found["seconds"] > 0
    assert found["measured_rows_per_epoch"] == 48
    assert found["seconds_watching_known_facts_an_epoch"] == found["seconds_asking_once_for_this_model"] == 0
    more = tune_estimate.estimate(settings(tmp_path / "a", dry_run=True, canaries="auto", average=(0.5, 1.0)))
    epoch = more["seconds_training_an_epoch"] + more["seconds_measuring_an_epoch"]
    assert 0 <= more["seconds_watching_known_facts_an_epoch"] <= epoch / 3 + 0.1
    assert more["seconds"] >= 3 * epoch + 2 * more["seconds_measuring_an_epoch"] - 1
