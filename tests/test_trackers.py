"""The metrics reach the trackers that a trainer reports to: the real ones, on this machine, without a network.

The trackers are no dependency of foreknow: `pip install tensorboard wandb mlflow trackio` runs these tests.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import foreknow
from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.stages.train.callback import KnowledgeCallback

Values = Callable[[Path, str], list[float]]
"""Reads all values of a metric that a tracker wrote below a folder."""


def tensorboard_values(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(str(next(folder.rglob("events.out.*")).parent))
    logs.Reload()
    return [event.value for event in logs.Scalars(f"eval/{name}")]


def wandb_values(folder: Path, name: str) -> list[float]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    place = Path(wandb.run.dir).parent if wandb.run is not None else folder  # WANDB_DIR is read once a process
    wandb.finish()
    values = []
    for content in leveldb_records(next(place.rglob("run-*.wandb")).read_bytes()):
        record = Record()
        record.ParseFromString(content)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if f"eval/{name}" in items:
            values.append(float(json.loads(items[f"eval/{name}"])))
    return values


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's own file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB.

    A piece is a checksum (4 bytes), a length (2), a kind (1: whole, 2: first, 3: middle, 4: last) and the bytes.
    """
    at, parts = 7, b""
    while at + 7 <= len(content):
        rest = 32768 - at % 32768
        if rest < 7:
            at += rest
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        piece = content[at + 7 : at + 7 + length]
        at += 7 + length
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            yield parts


def mlflow_values(folder: Path, name: str) -> list[float]:
    import mlflow

    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, f"eval_{name}")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


def trackio_values(_: Path, name: str) -> list[float]:
    from trackio.sqlite_storage import SQLiteStorage

    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_runs(project)
    lines = SQLiteStorage.get_logs(project, run)
    return [line[f"eval/{name}"] for line in lines if f"eval/{name}" in line]


TRACKERS: dict[str, Values] = {
    "tensorboard": tensorboard_values,
    "wandb": wandb_values,
    "mlflow": mlflow_values,
    "trackio": trackio_values,
}


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that is installed, told to write below the test's folder."""
    name = str(request.param)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for key, value in {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true",
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "tensorboard"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    if name == "trackio":
        for module in ("trackio.utils", "trackio.sqlite_storage"):  # they read the variable when they are imported
            monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(fact_rows())]
    return {
        "train": write_jsonl(tmp_path / "train.jsonl", rows[8:24]), "dev": write_jsonl(tmp_path / "dev.jsonl", rows[:8])
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_gets_the_metrics_of_the_callback(
    tracker: str, files: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    data = []
    for line in files["train"].read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
        ids = [*tokenizer(f"Q: {row['question']}\nA: {row['answer']}")["input_ids"], tokenizer.eos_token_id]
        data.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    tokenizer.pad_token = tokenizer.eos_token
    callback = KnowledgeCallback(files["train"], sets={"dev": files["dev"]}, dtype="float32")
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        TrainingArguments(
            output_dir=str(tmp_path / "trainer"), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True,
            report_to=[tracker], disable_tqdm=True, eval_strategy="epoch", save_strategy="no", learning_rate=1e-3,
            dataloader_pin_memory=False, logging_strategy="epoch",
        ),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data[:4],  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )  # fmt: skip
    callback.attach(trainer)
    trainer.train()
    for name in ("dev_em", "dev_Unknown_em", "train_fitted", "train_HighlyKnown_fitted"):
        ours = [entry[f"eval_{name}"] for entry in trainer.state.log_history if f"eval_{name}" in entry]
        theirs = TRACKERS[tracker](tmp_path, name)
        assert len(ours) == 2
        assert len(theirs) == 2
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_gets_the_metrics_of_tune(
    tracker: str, files: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    tuned = foreknow.tune(
        files["train"], dev=files["dev"], model=tiny_folder, out=tmp_path / "tuned", epochs=2, batch_size=8,
        learning_rate=1e-3, dtype="float32", device="cpu", report_to=[tracker], canaries="none", dropout=0,
    )  # fmt: skip
    ours = [line["loss"]["dev"] for line in tuned.metrics if line["epoch"] >= 1]
    theirs = TRACKERS[tracker](tmp_path, "dev_loss")
    assert len(ours) == len(set(ours)) == 2
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(ours, theirs[-2:], strict=True))
