"""Loads the model that a run trains: all its weights, some of its layers, or an adapter on it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from transformers import set_seed

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import (
    MissingExtra,
    ModelError,
    first_line,
)
from foreknow.models import loading
from foreknow.models.fluency import check_fluency
from foreknow.stages.train.eval_callback import TrainingModel
from foreknow.stages.train.tracker import EvalModelCopy
from foreknow.stages.train.trainable_layers import set_trainable
from foreknow.stages.train.trainer import set_dropout

logger = logging.getLogger(__name__)


def load_training_model(config: TuneConfig, device: str, dtype: str) -> TrainingModel:
    """Load the model of `--model` as the run trains it, with its copy for measuring if it computes in bfloat16.

    `device`, `dtype`: what the run computes on and in. Full training keeps its weights in float32. Raises ModelError
    for `--lora-targets` that the model has not, MissingExtra without PEFT, and the errors of loading a model.
    """
    full, sharded = config.method == "full", process_group.sharded()
    loaded = loading.load_model(
        config.model,
        dtype="float32" if full else dtype,
        device="cpu" if sharded else config.device,  # FSDP moves a part of the model to each device
        trust_remote_code=config.trust_remote_code,
        log=logger.info,
        base=config.base,
        force=config.force,
        trainable=not full,
    )
    fluency = check_fluency(loaded, logger.info).summary if process_group.is_main_process() else None
    bf16 = dtype == "bfloat16"
    if full:
        dropout = set_dropout(loaded.model, config.dropout)
        parts = (set_trainable(loaded.model, config.trainable),) if config.trainable != "all" else ()
        computing = "float32 weights" + (", computed in bfloat16, measured as a bfloat16 copy" if bf16 else "")
        mirror = EvalModelCopy(torch.bfloat16 if bf16 else torch.float32) if bf16 or sharded else None
        if sharded:
            computing += f", sharded over {process_group.world_size()} processes"
            if mirror is not None and process_group.is_main_process():
                mirror.prepare(loaded.model, device)
        reasons = (loaded.reasons[0], computing, *parts, dropout, *loaded.notes)
        return TrainingModel(loaded, loaded.model, mirror, bf16, reasons, sharded, fluency)
    if loaded.trained is not None:
        model, adapter_lines = loaded.trained, _adapter_lines(loaded)
    else:
        model = _add_lora(config, loaded)
        adapter_line = (
            f"LoRA: {_trainable(model):,} weights of rank {config.lora_rank} in float32 on a model in {dtype}"
        )
        adapter_lines = (adapter_line, f"dropout {config.dropout:g} before adapters")
    return TrainingModel(
        loaded, model, None, False, (loaded.reasons[0], *adapter_lines, *loaded.notes), fluency=fluency
    )


def _trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _adapter_lines(loaded: loading.Loaded) -> tuple[str, ...]:
    """Return a line for the log that says that training goes on from an existing adapter."""
    config = loaded.trained.peft_config["default"]
    names_in_config = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    own = ", ".join(
        f"{word} {getattr(config, name):g}" for word, name in names_in_config.items() if hasattr(config, name)
    )
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return (
        f"training goes on from the adapter {loaded.name} ({kind}{f', {own}' if own else ''}, "
        f"{_trainable(loaded.trained):,} weights); --lora-rank, --lora-alpha, --lora-targets and --dropout do not "
        "apply",
    )


def _add_lora(config: TuneConfig, loaded: loading.Loaded) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtra("--method lora needs PEFT: pip install 'foreknow[train]'") from None
    targets: str | list[str] = list(config.lora_targets)
    set_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT still uses some names that are deprecated
            return get_peft_model(loaded.model, lora)
    except ValueError as error:
        raise ModelError(f"--lora-targets {','.join(targets)}: {first_line(error)}") from None
