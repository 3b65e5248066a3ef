"""Builders that several test files share: data files, small models, and models and adapters edited from others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from foreknow.data.schema import ROWS
from foreknow.errors import ForeknowError, UsageError
from foreknow.models import loading
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.train.answer_loss import Pass, PlainPass
from foreknow.stages.train.asking_model import AskingModel

Weights = dict[str, torch.Tensor]


def edited(source: Path, folder: Path, edit: Callable[[Weights], object] = lambda _: None, **settings: Any) -> Path:
    """A copy of a model's or an adapter's folder with other tensors in its file, other settings in its config."""
    shutil.copytree(source, folder)
    kind = "adapter_" if (folder / "adapter_config.json").is_file() else ""
    file, config = folder / f"{kind}model.safetensors", folder / f"{kind}config.json"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def load(folder: Path, **given: Any) -> loading.Loaded:
    """A folder's model, in float32 on the CPU unless told otherwise."""
    return loading.load_model(str(folder), **{"dtype": "float32", "device": "cpu", **given})


def refusal(folder: Path, **given: Any) -> str:
    """What is said of a folder that is not loaded, in two lines at most."""
    with pytest.raises(ForeknowError) as caught:
        load(folder, **given)
    assert isinstance(caught.value, UsageError)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Write records as JSON lines in UTF-8 and return the path."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def rows_frame(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """A frame of `schema.ROWS`, all in the group "all" unless a record says otherwise, numbered from 0."""
    blank = {"relation": None, "split": None, "group": "all", "popularity": None, "flags": [], "subject": None}
    return pl.DataFrame([{**blank, "row": row, **record} for row, record in enumerate(records)], schema=ROWS)


def random_model(config: object, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM of a config with random weights, the same ones each time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4.0)  # away from a uniform distribution
    return model.eval()


def asking_of(
    model: Any,
    tokenizer: Any = None,
    template: Template | None = None,
    *,
    losses: Pass | None = None,
    tokens: int = 200,
) -> AskingModel:
    """A model on the CPU in float32, asked by plain passes; without a tokenizer, rows must be token ids already."""
    prompter: Any = tokenizer and Prompter(tokenizer, template or Template("", "Q: {question}\nA:"))
    end = int(tokenizer.eos_token_id) if tokenizer else 0
    losses = losses or PlainPass(model)
    return AskingModel(model, "", losses, tokenizer, prompter, end, 512, tokens, False, "cpu", "float32")
