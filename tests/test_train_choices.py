"""What tune leaves to the rows: the metric, the chat template, the settings, the rows held out for dev."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import write_jsonl
from conftest import fact_rows
from foreknow.config import TuneConfig
from foreknow.config.tune import held_out_share
from foreknow.errors import ConfigError, InputError
from foreknow.settings import settings_of
from foreknow.stages.train import inputs
from foreknow.stages.train import run as train_run
from foreknow.stages.train.inputs import read_inputs
from foreknow.stages.train.result import TrainResult
from foreknow.stages.train.trainer import FactTrainer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Tune = Callable[..., TrainResult]


@pytest.fixture
def tune(tiny_folder: Path, tmp_path: Path) -> Tune:
    def run(rows: list[dict[str, Any]], name: str = "run", **given: Any) -> TrainResult:
        file = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        base = {
            "train": str(file),
            "out": tmp_path / name,
            "model": str(tiny_folder),
            "dtype": "float32",
            "device": "cpu",
        }
        return train_run.run(settings_of(TuneConfig, {**base, "epochs": 2, **given}))

    return run


def chats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in rows
    ]


FACTS = [{k: r[k] for k in ("question", "answer", "subject")} for r in fact_rows()[:24]]


def test_short_answers_are_judged_by_dev_em_and_the_run_says_what_chose(
    tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tune(FACTS)
    said = capsys.readouterr().err
    assert "dev: 2 of 24 rows are held out" in said
    assert "So few rows can hardly tell epochs apart" in said
    assert "dev EM chooses the epoch where dev's rows can tell epochs apart" in said
    assert "batches of 4, a learning rate of 1.0e-04: chosen for 22 rows" in said
    assert done.results["metric"] == "dev_em"
    assert done.results["chooser"] in ("tie", "chance", "metric")
    assert all(line["loss"]["dev"] > 0 for line in done.metrics)
    assert {row["set"] for row in done.rows.to_dicts()} == {"train", "dev"}


def test_long_answers_are_judged_by_dev_loss(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    long = [{"question": r["question"], "answer": f"It is {r['answer']}. " * 12} for r in FACTS]
    done = tune(long)
    said = capsys.readouterr().err
    assert "dev loss chooses the epoch: half of dev's answers have" in said
    assert "* best" not in said
    assert (done.results["metric"], done.results["chooser"]) == ("dev_loss", "loss")
    losses = [line["loss"]["dev"] for line in done.metrics]
    assert done.results["early_stop"]["epoch"] == 1 + losses.index(min(losses))


def test_a_dev_loss_is_that_of_the_model_itself(tune: Tune, tiny_folder: Path) -> None:
    """Of the last epoch: the loss that transformers computes of the same texts with the weights that were saved."""
    done = tune(FACTS, keep="last")
    model: Any = AutoModelForCausalLM.from_pretrained(done.folder / "convergence").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    total, count = 0.0, 0
    for row in done.rows.filter(done.rows["set"] == "dev").to_dicts():
        prompt = f"Answer the following question. {row['question']}\n"
        ids = [*tokenizer(prompt + row["answer"])["input_ids"], tokenizer.eos_token_id]
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(scores[n - 1, ids[n]]) for n in range(begin, len(ids)))
        count += len(ids) - begin
    assert done.metrics[-1]["loss"]["dev"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(("choice", "through"), [("auto", True), ("no", False)])
def test_chats_go_through_the_chat_template_unless_it_is_refused(
    tune: Tune, tiny_folder: Path, tmp_path: Path, choice: str, through: bool
) -> None:
    model = tmp_path / "chatty"
    shutil.copytree(tiny_folder, model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    done = tune(chats(FACTS), model=str(model), chat_template=choice)
    assert done.results["method"]["training_text"]["chat_template"] is through
    short = tune(FACTS, name="short", model=str(model), chat_template=choice)
    assert short.results["method"]["training_text"]["chat_template"] is False


def test_the_preset_and_what_is_given_decide_and_stand_in_the_run(tune: Tune) -> None:
    done = tune(FACTS, preset="paper", epochs=1)
    assert (done.results["config"]["epochs"], done.results["config"]["batch_size"]) == (1, 128)
    assert done.results["config"]["learning_rate"] == 1e-5


def test_held_out_rows_are_the_same_for_the_same_seed_and_never_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", FACTS)
    given = {"train": str(file), "dev": "0.25", "model": str(tiny_folder)}
    first, again = (read_inputs(settings_of(TuneConfig, given)).rows for _ in range(2))
    assert first["dev"].equals(again["dev"])
    assert first["dev"].height == 6
    assert not set(first["dev"]["question"]) & set(first["train"]["question"])
    other = read_inputs(settings_of(TuneConfig, {**given, "seed": 1})).rows
    assert not first["dev"].equals(other["dev"])


@pytest.mark.parametrize("dev", ["0", "1", "1.5", "-0.1"])
def test_a_number_that_is_no_share_is_refused(dev: str) -> None:
    with pytest.raises(ConfigError, match=f"--dev {dev}: expected a file, or a share of the rows between 0 and 1"):
        held_out_share(dev)


def test_a_file_of_one_subject_cannot_be_split(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "subject": "Peru"} for row in FACTS]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match="none can be held out for dev"):
        read_inputs(settings_of(TuneConfig, {"train": str(file), "model": str(tiny_folder)}))


@pytest.mark.parametrize(
    ("keep", "folders"),
    [("best", {"early_stop"}), ("last", {"convergence"}), ("both", {"early_stop", "convergence"})],
)
def test_only_the_weights_asked_for_are_kept(tune: Tune, keep: str, folders: set[str]) -> None:
    done = tune(FACTS, keep=keep)
    names = {path.name for path in done.folder.iterdir()}
    assert names & {"early_stop", "convergence"} == folders
    assert not names & {".best", ".checkpoints"}
    for name in ("early_stop", "convergence"):
        assert done.results[name]["folder"] == (name if name in folders else None)
    assert set(json.loads((done.folder / "manifest.json").read_text())) >= folders
    tune(FACTS, keep=keep)  # the finished run is complete: its weights are checked and nothing is trained


def test_a_run_says_that_the_epoch_it_drops_has_learnt_more(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    more = "where these rows must be learnt, take --keep last or --keep both"
    given: dict[str, Any] = {
        "epochs": 25,
        "learning_rate": 4e-3,
        "batch_size": 11,
        "dropout": 0.0,
        "metric": "dev_loss",
    }
    done = tune(FACTS, **given)
    assert done.results["early_stop"]["metrics"]["fitted_overall"] < 0.05
    assert done.metrics[-1]["fitted_overall"] > 0.15
    assert more in capsys.readouterr().err
    tune(FACTS, name="both", keep="both", **given)
    assert more not in capsys.readouterr().err


def test_a_sample_of_a_large_set_is_measured_and_said(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    done = tune(FACTS, watch_rows=5, dev="0.2", keep="last")
    assert "measured after each epoch: 5 of the " in capsys.readouterr().err
    counts = done.metrics[-1]["counts"]
    data = done.results["data"]
    assert counts["train"]["rows"] == data["train"]["watched"] == 5 < data["train"]["rows"]
    assert counts["dev"]["rows"] == data["dev"]["watched"] == data["dev"]["rows"]
    assert data["train"]["rows"] + data["dev"]["rows"] == len(FACTS)
    assert set(done.outcomes["row"]) == set(done.rows["row"])
    assert "train: 5 of its " in (done.folder / "report.html").read_text(encoding="utf-8")
    again = tune(FACTS, name="again", watch_rows=5, dev="0.2", keep="last")
    assert again.rows["question"].to_list() == done.rows["question"].to_list()
    whole = tune(FACTS, name="whole", watch_rows="all", dev="0.2", keep="last")
    assert whole.metrics[-1]["train_loss"] == done.metrics[-1]["train_loss"], "training does not depend on it"
    assert whole.metrics[-1]["loss"] == done.metrics[-1]["loss"]


EASY = [
    {**r, "answer": "a" if n % 3 else "b", "category": "Unknown" if n % 3 else "HighlyKnown"}
    for n, r in enumerate(FACTS)
]
"""Rows of two answers, some of which the tiny model soon gets right."""


@pytest.fixture
def early_best(tmp_path: Path) -> dict[str, Any]:
    """Settings with which an early epoch is the best: what is learnt makes dev worse."""
    dev = write_jsonl(tmp_path / "dev.jsonl", [{**r, "answer": "z"} for r in FACTS[:8]])
    test = write_jsonl(tmp_path / "t.jsonl", EASY)
    given = {"dev": str(dev), "test": [f"t={test}"], "allow_overlap": True, "metric": "dev_loss", "keep": "both"}
    return {**given, "epochs": 9, "learning_rate": 1e-2, "dropout": 0.0, "canaries": "none"}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_all_rows_are_measured_at_the_two_chosen_epochs(
    tune: Tune,
    early_best: dict[str, Any],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = tune(EASY, name="whole", watch_rows="all", method=method, **early_best)
    monkeypatch.setattr(inputs, "FEWEST_WATCHED", 5)
    load_again, loaded = FactTrainer.load_again, []

    def check_load(trainer: FactTrainer, path: Path) -> None:
        load_again(trainer, path)
        loaded.append(path)
        now = get_peft_model_state_dict(trainer.model) if method == "lora" else trainer.model.state_dict()
        saved = load_file(next(path.glob("*model.safetensors")))
        assert saved
        assert all(torch.equal(now[name], tensor) for name, tensor in saved.items())

    monkeypatch.setattr(FactTrainer, "load_again", check_load)
    done = tune(EASY, name="drawn", method=method, **early_best)
    said = capsys.readouterr().err
    assert "8 of the 24 rows of train, 8 of the 24 rows of t" in said
    assert "all rows at EARLY_STOP and CONVERGENCE" in said
    assert [line["counts"]["train"]["rows"] for line in done.metrics] == [8] * 9
    for point in ("early_stop", "convergence"):
        mine, theirs = (run.results[point]["metrics"] for run in (done, whole))
        for key in ("epoch", "counts", "fitted", "fitted_overall", "em", "em_by_category", "em_by_relation"):
            assert mine[key] == theirs[key], (point, key)
        assert done.results[point]["unknown_rows"] == 16
        at = [run.outcomes.filter(pl.col("step") == mine["step"]).drop("epoch") for run in (done, whole)]
        assert at[0].sort("set", "row").equals(at[1].sort("set", "row")), "the same rows, the same outcomes"
    assert done.rows.sort("set", "row").equals(whole.rows.sort("set", "row"))
    chosen = {done.results[point]["step"] for point in ("early_stop", "convergence")}
    assert len(chosen) == 2
    assert loaded == [done.folder / "early_stop"]
    if method == "full":
        assert any(0 < whole.results[point]["metrics"]["fitted_overall"] < 1 for point in ("early_stop", "convergence"))
    between = done.outcomes.filter(~pl.col("step").is_in(chosen))
    assert set(between.group_by("step", "set").len()["len"]) == {8}, "other epochs have the drawn rows only"
    data = done.results["data"]["train"]
    assert (data["rows"], data["watched"], data["watched_at_points"]) == (24, 8, 24)
    assert "all of them at EARLY_STOP and CONVERGENCE" in (done.folder / "report.html").read_text(encoding="utf-8")
    weights = [load_file(next((run.folder / "convergence").glob("*model.safetensors"))) for run in (done, whole)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()), "saved before"


def test_a_run_that_is_stopped_while_it_measures_all_rows_goes_on_there(
    tune: Tune, early_best: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inputs, "FEWEST_WATCHED", 5)
    settings = {**early_best, "keep": "last"}
    whole = tune(EASY, name="whole", **settings)

    def stop(trainer: FactTrainer, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FactTrainer, "load_again", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(EASY, name="run", **settings)
    capsys.readouterr()
    done = tune(EASY, name="run", **settings)
    said = capsys.readouterr().err
    assert "with the weights of epoch 9" not in said, "it is not measured twice"
    assert "with the weights of epoch" in said
    assert "training:" not in said
    assert done.outcomes.equals(whole.outcomes)
    keys = ("epoch", "counts", "fitted", "em", "loss")
    for point in ("early_stop", "convergence"):
        mine, theirs = (run.results[point]["metrics"] for run in (done, whole))
        assert {key: mine[key] for key in keys} == {key: theirs[key] for key in keys}
    assert not (done.folder / ".best").exists()


@pytest.mark.parametrize(("rows", "most"), [(40, 200), (400, 200), (900, 300)])
def test_a_third_of_the_training_rows_is_measured_but_at_least_200(tmp_path: Path, rows: int, most: int) -> None:
    data = [{"question": f"What is {n}?", "answer": str(n), "subject": str(n)} for n in range(rows)]
    file, dev = (
        write_jsonl(tmp_path / "t.jsonl", data),
        write_jsonl(tmp_path / "d.jsonl", [{**data[0], "question": "x"}]),
    )
    given = {"train": str(file), "dev": str(dev), "test": [f"t={file}"], "allow_overlap": True}
    measured = read_inputs(settings_of(TuneConfig, given)).rows
    assert {name: part.height for name, part in measured.items()} == {
        "train": min(rows, most),
        "dev": 1,
        "t": min(rows, most),
    }
