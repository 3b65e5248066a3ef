"""Models and adapters made from others by an edit, and what foreknow says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreknow.errors import ForeknowError, UsageError
from foreknow.models import loading

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
