"""The plugin for axolotl, loaded as axolotl loads one: with a base class that stands in for axolotl's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.errors import ConfigError
from foreknow.stages.train.callback import KnowledgeCallback

PLUGIN = "foreknow.stages.train.axolotl_plugin.ForeknowPlugin"


class BasePlugin:
    """The methods of axolotl's BasePlugin that a trainer's creation calls, doing nothing as there."""

    def get_input_args(self) -> str | None:
        return None

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:  # noqa: ARG002
        return []

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:  # noqa: ARG002
        return []


class Cfg(dict[str, Any]):
    """Settings as axolotl's: a dictionary whose missing keys are None as attributes."""

    __getattr__ = dict.get


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["axolotl.integrations.base"].BasePlugin = BasePlugin  # type: ignore[attr-defined]
    module_name, _, class_name = PLUGIN.rpartition(".")
    sys.modules.pop(module_name, None)
    yield getattr(importlib.import_module(module_name), class_name)()
    sys.modules.pop(module_name, None)


@pytest.fixture
def settings(tmp_path: Path) -> Cfg:
    rows = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(fact_rows())]
    train = write_jsonl(tmp_path / "train.jsonl", rows[8:24])
    dev = write_jsonl(tmp_path / "dev.jsonl", rows[:8])
    return Cfg(foreknow=Cfg(train=str(train), sets=Cfg(dev=str(dev)), dtype="float32", out=str(tmp_path / "watched")))


def test_it_is_a_plugin_and_its_settings_are_kept(plugin: Any) -> None:
    assert isinstance(plugin, BasePlugin)
    module_name, _, class_name = plugin.get_input_args().rpartition(".")
    model = getattr(importlib.import_module(module_name), class_name)
    from_yaml = {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}}
    assert model(foreknow=from_yaml).model_dump()["foreknow"] == from_yaml
    assert model().foreknow is None


def test_settings_without_rows_are_refused_before_training(plugin: Any) -> None:
    for cfg in (Cfg(), Cfg(foreknow=Cfg(audit="runs/train"))):
        with pytest.raises(ConfigError, match=r"expected entries such as\nforeknow:\n  train: train.jsonl"):
            plugin.add_callbacks_pre_trainer(cfg, None)


def test_its_callback_watches_a_trainer(plugin: Any, settings: Cfg, tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    data = []
    for line in Path(settings["foreknow"]["train"]).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
        ids = [*tokenizer(f"Q: {row['question']}\nA: {row['answer']}")["input_ids"], tokenizer.eos_token_id]
        data.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    tokenizer.pad_token = tokenizer.eos_token
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        TrainingArguments(
            output_dir=str(tmp_path / "trainer"), num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True,
            per_device_train_batch_size=8, save_strategy="no", dataloader_pin_memory=False, seed=1,
        ),
        train_dataset=data,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )  # fmt: skip
    assert plugin.add_callbacks_pre_trainer(settings, trainer.model) == []
    for callback in plugin.add_callbacks_post_trainer(settings, trainer):  # as axolotl's builder does
        trainer.add_callback(callback)
    trainer.train()
    (watcher,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, KnowledgeCallback)]
    assert [line["epoch"] for line in watcher.lines] == [1]
    assert any("eval_dev_em" in entry for entry in trainer.state.log_history)
    assert watcher.page == tmp_path / "watched" / "report.html"
    assert watcher.page.is_file()


def test_without_axolotl_the_class_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "axolotl", None)
    module_name, _, class_name = PLUGIN.rpartition(".")
    sys.modules.pop(module_name, None)
    assert getattr(importlib.import_module(module_name), class_name).__bases__ == (object,)
    sys.modules.pop(module_name, None)
