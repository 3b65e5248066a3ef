"""The callback in other people's trainers: transformers' own and TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import TuneConfig
from foreknow.errors import ConfigError, InputError, ModelError, RunFolderError
from foreknow.io.run_dir import FORMAT
from foreknow.pages import write_report
from foreknow.prompts.prompt_template import Template
from foreknow.settings import settings_of
from foreknow.stages.train import run as train_run
from foreknow.stages.train.callback import KnowledgeCallback
from foreknow.stages.train.inputs import unlabelled_notes
from foreknow.stages.train.result import open_train

KNOWN = Template(target="Q: {question}\nA:")
OLD_NAMES = "ignore:.*is deprecated and will be removed:FutureWarning"  # TRL and PEFT use old names of transformers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    rows = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(fact_rows())]
    found = {}
    for name, part in {"train": rows[8:24], "dev": rows[:8]}.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        found[name] = str(path)
    return found


@pytest.fixture
def parts(tiny_folder: Path, files: dict[str, str]) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Model, tokenizer and what a plain Trainer is given."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    data = []
    for line in Path(files["train"]).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
        ids = [*tokenizer(f"Q: {row['question']}\nA: {row['answer']}")["input_ids"], tokenizer.eos_token_id]
        spare = 24 - len(ids)
        data.append({
            "input_ids": ids + [0] * spare, "attention_mask": [1] * len(ids) + [0] * spare,
            "labels": [-100] * len(prompt) + ids[len(prompt) :] + [-100] * spare,
        })  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(tiny_folder), tokenizer, data


def arguments(folder: Path, **given: Any) -> dict[str, Any]:
    base = {
        "output_dir": str(folder), "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 3e-4,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "eval_strategy": "epoch", "save_strategy": "epoch",
        "logging_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "dev_em",
        "greater_is_better": True, "lr_scheduler_type": "constant", "dataloader_pin_memory": False,
    }  # fmt: skip
    return {**base, **given}


def test_its_metrics_choose_the_best_checkpoint_of_transformers_trainer(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer, data = parts
    callback = KnowledgeCallback(files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="float32")
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(tmp_path)),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset={"a": data[:4], "b": data[4:8]},  # type: ignore[dict-item]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback, EarlyStoppingCallback(early_stopping_patience=2)],
    )
    callback.attach(trainer)
    trainer.train()
    assert [line["epoch"] for line in callback.lines] == list(range(1, len(callback.lines) + 1))
    ems = [line["em"]["dev"] for line in callback.lines]
    assert len(set(ems)) > 1
    assert trainer.state.best_metric == max(ems)
    assert trainer.state.best_global_step == callback.lines[ems.index(max(ems))]["step"]
    logged = [entry for entry in trainer.state.log_history if "eval_dev_em" in entry]
    assert [entry["eval_dev_em"] for entry in logged] == ems
    assert set(logged[0]) >= {"eval_dev_Unknown_em", "eval_train_HighlyKnown_fitted", "eval_train_fitted", "epoch"}
    assert trainer.evaluate()["eval_a_loss"] > 0
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["bf16", "none evaluated"])
def test_it_works_in_mixed_precision_and_without_evaluation(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path, kind: str
) -> None:
    model, tokenizer, data = parts
    seen: list[tuple[bool, bool, str]] = []

    class Looks(KnowledgeCallback):
        def _metrics(self, state: Any, given: Any) -> dict[str, float]:
            model = given["model"]
            before = model.training
            found = super()._metrics(state, given)
            seen.append((before, model.training, str(next(model.parameters()).dtype)))
            return found

    callback = Looks(files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="bfloat16")
    quiet: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    mixed = {"bf16": True} if kind == "bf16" else quiet
    given = arguments(tmp_path, num_train_epochs=2, **mixed)
    trainer = Trainer(
        model,
        TrainingArguments(**given),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data[:4],  # type: ignore[arg-type]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert [line["epoch"] for line in callback.lines] == [1, 2]
    assert sum("eval_dev_em" in entry for entry in trainer.state.log_history) >= 2
    training = kind != "bf16"  # the trainer's own evaluation comes first, and leaves it
    assert set(seen) == {(training, training, "torch.float32")}


@pytest.mark.filterwarnings(OLD_NAMES)
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_it_works_in_sfttrainer(tiny_folder: Path, files: dict[str, str], tmp_path: Path, adapters: bool) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    peft = pytest.importorskip("peft")
    rows = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
    data = datasets.Dataset.from_list(
        [{"prompt": f"Q: {row['question']}\nA:", "completion": f" {row['answer']}"} for row in rows]
    )
    callback = KnowledgeCallback(files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="float32")
    given = arguments(tmp_path, num_train_epochs=2, bf16=False, metric_for_best_model="train_Unknown_fitted")
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        trl.SFTConfig(**given),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear") if adapters else None,
        callbacks=[callback],
    )
    callback.attach(trainer)
    trainer.train()
    fitted = [line["fitted"]["Unknown"] for line in callback.lines]
    assert len(fitted) == 2
    assert trainer.state.best_metric == max(fitted)
    assert sum("eval_dev_MaybeKnown_em" in entry for entry in trainer.state.log_history) == 2


def test_a_metric_that_does_not_exist_is_an_error_at_the_start(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer, data = parts
    for given, message in (
        ({"metric_for_best_model": "eval_test_em"}, r"test_em: no such metric; this run has .*dev_em"),
        ({"greater_is_better": False}, r"'dev_em' is better when greater: greater_is_better=True"),
    ):
        callback = KnowledgeCallback(sets={"dev": files["dev"]}, template=KNOWN)
        trainer = Trainer(
            model,
            TrainingArguments(**arguments(tmp_path, **given)),
            train_dataset=data,  # type: ignore[arg-type]
            eval_dataset=data[:4],  # type: ignore[arg-type]
            data_collator=default_data_collator,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        with pytest.raises(ConfigError, match=message):
            trainer.train()
        assert callback.lines == []


def test_early_stopping_reads_its_metrics(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path
) -> None:
    """A metric that cannot rise any more stops the training; behind the callback, as its docstring says."""
    model, tokenizer, data = parts
    callback = KnowledgeCallback(files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="float32")
    given = arguments(tmp_path, num_train_epochs=8, learning_rate=0.0, metric_for_best_model="eval_dev_Unknown_em")
    trainer = Trainer(
        model,
        TrainingArguments(**given),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data[:4],  # type: ignore[arg-type]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback, EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert [line["epoch"] for line in callback.lines] == [1, 2, 3]
    assert trainer.state.best_metric == callback.lines[0]["em_by_category"]["dev"]["Unknown"]


@pytest.mark.parametrize("evaluated", ["epoch", "steps", "no"])
def test_it_writes_a_page_like_that_of_tune(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path, evaluated: str
) -> None:
    model, tokenizer, data = parts
    out = tmp_path / "watched"
    callback = KnowledgeCallback(files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="float32", out=out)
    quiet: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 2}
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(tmp_path / "trainer", eval_strategy=evaluated, eval_steps=3, **quiet)),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data[:4],  # type: ignore[arg-type]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.attach(trainer)
    trainer.train()
    assert callback.page == out / "report.html"
    opened = open_train(out)
    assert opened.metrics == callback.lines
    assert {1, 2} <= {line["epoch"] for line in opened.metrics}
    for line in opened.metrics:  # the rows of outcomes.parquet give the same shares
        own = opened.outcomes.filter((pl.col("step") == line["step"]) & (pl.col("set") == "dev"))
        assert own["correct"].mean() == line["em"]["dev"]
    page = callback.page.read_text(encoding="utf-8")
    assert "trained by Trainer, watched by KnowledgeCallback" in page
    assert "early_stop" not in page, "foreknow kept no weights"
    assert "The trainer saved its own checkpoints" in page
    written = callback.page.read_bytes()
    callback.page.unlink()
    assert write_report(out).read_bytes() == written
    with pytest.raises(InputError, match="holds no weights"):
        _ = opened.best
    again = KnowledgeCallback(files["train"], template=KNOWN, out=out)
    with pytest.raises(RunFolderError, match="has a finished run already"):
        again.on_train_begin(trainer.args, trainer.state, None, model=model, processing_class=tokenizer)
    with pytest.raises(ConfigError, match="give train="):
        KnowledgeCallback(sets={"dev": files["dev"]}, out=tmp_path / "no")


@pytest.fixture(scope="module")
def known_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Capitals that the tiny model knows and that stand in no set."""
    rows = [{key: row[key] for key in ("question", "answer", "subject", "relation")} for row in fact_rows()[24:32]]
    path = tmp_path_factory.mktemp("known") / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("out", [True, False])
def test_it_watches_facts_besides_the_rows_as_tune_does(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], known_file: Path, tmp_path: Path, out: bool
) -> None:
    model, tokenizer, data = parts
    folder = tmp_path / "watched" if out else None
    callback = KnowledgeCallback(
        files["train"], sets={"dev": files["dev"]}, template=KNOWN, dtype="float32", canaries=known_file, out=folder
    )
    quiet: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 2}
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(tmp_path / "trainer", **quiet)),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data[:4],  # type: ignore[arg-type]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.attach(trainer)
    trainer.train()
    template = tmp_path / "prompt.yaml"
    template.write_text(yaml.safe_dump({"target": KNOWN.target}))
    given = {
        **{
            "train": files["train"],
            "dev": files["dev"],
            "canaries": str(known_file),
            "made_up_subjects": 0,
            "epochs": 1,
        },
        **{"model": str(model.name_or_path), "prompt_template": template, "dtype": "float32", "device": "cpu"},
    }
    theirs = train_run.run(settings_of(TuneConfig, {**given, "out": tmp_path / "tuned"}))
    counts = [line["canaries"] for line in callback.lines]
    assert len(counts) == 2
    assert all(of["before"] == theirs.results["canaries"]["before"] > 0 for of in counts)
    assert all(of["kept"] + of["lost"] == of["before"] for of in counts)
    assert all(line["text_loss"] > 0 for line in callback.lines)
    logged = [entry["eval_canaries_em"] for entry in trainer.state.log_history if "eval_canaries_em" in entry]
    assert logged == [line["em"]["canaries"] for line in callback.lines]
    if folder is None:
        return
    opened = open_train(folder)
    for name in ("rows", "before", "shots", "fingerprint"):
        assert opened.results["canaries"][name] == theirs.results["canaries"][name], name
    assert opened.results["plain_text"] == pytest.approx(theirs.results["plain_text"], abs=1e-4)
    outcomes = opened.outcomes.filter((pl.col("set") == "canaries") & (pl.col("step") == callback.lines[-1]["step"]))
    assert outcomes["correct"].mean() == callback.lines[-1]["em"]["canaries"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Facts besides your rows" in page


def test_without_canaries_nothing_is_asked_besides_the_rows(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer, _ = parts
    callback = KnowledgeCallback(files["train"], template=KNOWN, dtype="float32", canaries="none")
    quiet: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = Trainer(model, TrainingArguments(**arguments(tmp_path, **quiet)), processing_class=tokenizer)
    callback.on_train_begin(trainer.args, trainer.state, None, model=model, processing_class=tokenizer)
    callback.on_evaluate(trainer.args, trainer.state, None, model=model, processing_class=tokenizer)
    assert "canaries" not in callback.lines[0]
    missing = KnowledgeCallback(files["train"], template=KNOWN, canaries=tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=r"gone\.jsonl"):
        missing.on_train_begin(trainer.args, trainer.state, None, model=model, processing_class=tokenizer)


def test_a_trainer_that_resumes_goes_on_with_the_page(
    parts: tuple[Any, Any, list[dict[str, Any]]], files: dict[str, str], known_file: Path, tmp_path: Path
) -> None:
    model, tokenizer, data = parts

    class Stop(KnowledgeCallback):
        """Ends the process, as it were, after the second epoch's evaluation but before its checkpoint."""

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            super().on_evaluate(args, state, control, metrics, **kwargs)
            if len(self.lines) == 2:
                raise KeyboardInterrupt

    def trainer_with(kind: type[KnowledgeCallback]) -> tuple[Trainer, KnowledgeCallback]:
        callback = kind(
            files["train"],
            sets={"dev": files["dev"]},
            template=KNOWN,
            dtype="float32",
            canaries=known_file,
            out=tmp_path / "watched",
        )
        trainer = Trainer(
            model,
            TrainingArguments(**arguments(tmp_path / "trainer")),
            train_dataset=data,  # type: ignore[arg-type]
            eval_dataset=data[:4],  # type: ignore[arg-type]
            data_collator=default_data_collator,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        return trainer, callback

    stopped, first = trainer_with(Stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    trainer, callback = trainer_with(KnowledgeCallback)
    trainer.train(resume_from_checkpoint=True)
    assert [line["epoch"] for line in callback.lines] == [1, 2, 3]
    assert callback.lines[0] == first.lines[0]
    before = [line["canaries"]["before"] for line in callback.lines]
    assert before[0] > 0
    assert len(set(before)) == 1
    assert [line["canaries"]["kl"] is None for line in callback.lines] == [False, True, True]
    assert [line["canaries"]["kept"] for line in callback.lines[:2]] == [
        line["canaries"]["kept"] for line in first.lines
    ]
    assert sorted(open_train(tmp_path / "watched").outcomes["step"].unique()) == [
        line["step"] for line in callback.lines
    ]


def test_rows_that_count_in_no_category_are_counted_aloud(
    parts: tuple[Any, Any, list[dict[str, Any]]],
    files: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer, data = parts
    rows = KnowledgeCallback(files["train"]).sets["train"]
    some = rows.with_columns(category=pl.when(pl.col("row") < 5).then("category"))
    callback = KnowledgeCallback(some, sets={"dev": files["dev"]}, template=KNOWN, tokenizer=tokenizer)
    settings = arguments(tmp_path, num_train_epochs=1, load_best_model_at_end=False, eval_strategy="no")
    with caplog.at_level("INFO", "foreknow"):
        Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data, callbacks=[callback]).train()
    (line,) = [message for message in caplog.messages if "no label" in message]
    assert line.startswith("train: 11 of 16 rows have no label, and count in no category's metric")


def test_rows_with_labelled_spans_or_without_any_label_are_not_called_unlabelled() -> None:
    own = pl.DataFrame({"row": [0, 1, 2], "category": ["Unknown", None, None]})
    spans = {"train": pl.DataFrame({"row": [1, 1, 2]})}
    assert unlabelled_notes({"train": own}, spans) == []
    assert unlabelled_notes({"train": own}, {"train": spans["train"].head(2)})[0].startswith("train: 1 of 3 rows")
    assert unlabelled_notes({"dev": own.with_columns(category=pl.lit(None, pl.String))}, {}) == []


def test_frames_and_audits_are_taken(files: dict[str, str], tmp_path: Path) -> None:
    frame = pl.DataFrame({"question": ["What?", None], "answers": [["this"], ["that"]], "relation": ["r", "r"]})
    rows = KnowledgeCallback(sets={"dev": frame}).sets["dev"]
    assert rows.select("row", "group", "category").rows() == [(0, "r", None)]
    folder = tmp_path / "audit"
    folder.mkdir()
    labels = [{"question": r["question"], "answers": [r["answer"]], "category": "MaybeKnown"} for r in fact_rows()]
    pl.DataFrame(labels).with_columns(earlier_turns=pl.lit(None, pl.String)).write_parquet(folder / "rows.parquet")
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    (folder / "summary.json").write_text(json.dumps({"model": {"name": "m", "fingerprint": "sha256:1"}}))
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: r[k] for k in ("question", "answer")}) + "\n" for r in fact_rows()))
    found = KnowledgeCallback(bare, audit=folder, model="sha256:1").sets["train"]
    assert set(found["category"]) == {"MaybeKnown"}
    with pytest.raises(ModelError, match="made with m"):
        KnowledgeCallback(bare, audit=folder, model="sha256:2")
    with pytest.raises(ConfigError, match="no rows to watch"):
        KnowledgeCallback()
    with pytest.raises(ConfigError, match="expected question and answers"):
        KnowledgeCallback(sets={"dev": frame.drop("answers")})


@pytest.mark.packaged
@pytest.mark.slow
@pytest.mark.filterwarnings(OLD_NAMES)
@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_both_trainers_on_the_packaged_model(kind: str, tmp_path: Path) -> None:
    """Three epochs over 16 facts: they are learnt, and the callback sees it."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from foreknow.models import loading

    torch.manual_seed(0)
    loaded = loading.load_model("smollm2-135m", dtype="float32", device="cpu")
    facts = [
        {"question": r["question"], "answers": [str(r["answer"])], "category": "Unknown"} for r in fact_rows()[:16]
    ]
    callback = KnowledgeCallback(pl.DataFrame(facts), sets={"dev": pl.DataFrame(facts[:4])})
    text = [(f"Answer the following question. {f['question']}\n", f["answers"][0]) for f in facts]
    given = arguments(
        tmp_path, num_train_epochs=6, per_device_train_batch_size=8, learning_rate=2e-4, bf16=True, save_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    if kind == "trl":
        data = datasets.Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in text])
        trainer = trl.SFTTrainer(
            loaded.model, trl.SFTConfig(**given), train_dataset=data, eval_dataset=data.select(range(4)),
            processing_class=loaded.tokenizer, callbacks=[callback],
        )  # fmt: skip
    else:
        rows = []
        for prompt, answer in text:
            ids = [*loaded.tokenizer(prompt + answer)["input_ids"], loaded.tokenizer.eos_token_id]
            start = len(loaded.tokenizer(prompt)["input_ids"])
            spare = 40 - len(ids)
            rows.append({
                "input_ids": ids + [0] * spare, "attention_mask": [1] * len(ids) + [0] * spare,
                "labels": [-100] * start + ids[start:] + [-100] * spare,
            })  # fmt: skip
        trainer = Trainer(
            loaded.model, TrainingArguments(**given), train_dataset=rows, eval_dataset=rows[:4],  # type: ignore[arg-type]
            data_collator=default_data_collator,
            processing_class=loaded.tokenizer, callbacks=[callback],
        )  # fmt: skip
    trainer.train()
    fitted = [line["fitted"]["Unknown"] for line in callback.lines]
    assert len(fitted) == 6
    assert fitted[-1] > fitted[0]
