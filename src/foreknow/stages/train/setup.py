"""Gets a training run ready: fills in the settings that follow from the rows, the model and the device."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from foreknow.config import TuneConfig
from foreknow.errors import ConfigError
from foreknow.models import loading
from foreknow.models.memory_plan import parameters_of
from foreknow.models.resolve import Resolved, resolve
from foreknow.stages.train.defaults import TrainingPlan, plan_training
from foreknow.stages.train.inputs import TrainInputs, check_method, check_models, check_remedies, unused_settings

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
"""The setting of `--learning-rate` that tries several (`rate_trials.py`)."""


class RunSetup(NamedTuple):
    """Holds the settings of a run, filled in, its model, and the device and dtype to compute in.

    `reason`: why `--epochs` and the like were chosen as they are; None if all were given. `notes`: lines that say which
    categories are another model's, if `--force` lets them pass.
    """

    config: TuneConfig
    model: Resolved
    device: str
    dtype: str
    reason: str | None
    notes: list[str]


def set_up_run(config: TuneConfig, inputs: TrainInputs) -> RunSetup:
    """Find the model of a run, check that it can be trained as the settings say, and fill in the settings.

    Raises ConfigError for settings that do not fit the model or the device, and ModelError for a model that cannot be
    found or that is not the one the categories are of.
    """
    device, dtype = resolve_device_dtype(config)
    config = with_batch_sizes(config, device)
    model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base, force=config.force)
    check_method(config.model, config.method, model)
    check_remedies(config, model)
    for line in unused_settings(config):
        logger.info(line)
    config, reason = with_training_plan(config, inputs.train.rows.height, model)
    return RunSetup(config, model, device, dtype, reason, check_models(config, inputs, model.fingerprint))


def with_batch_sizes(config: TuneConfig, device: str) -> TuneConfig:
    """Fill in the batch sizes, which depend on the kind of device and never on free memory or load."""
    tokens = 16384 if device.startswith("cuda") else 2048
    return config.model_copy(
        update={
            "micro_batch_tokens": config.micro_batch_tokens or tokens,
            "batch_tokens": config.batch_tokens or tokens,
        }
    )


def with_training_plan(config: TuneConfig, rows: int, model: Resolved) -> tuple[TuneConfig, str | None]:
    """Fill in epochs, batch size, learning rate and patience for a training set of `rows` rows.

    Returns the settings and the reason for the values that were chosen; the reason is None if all were given.
    """
    plan = plan_training(
        rows,
        parameters_of(model.folder),
        lora=config.method == "lora",
        paper=config.preset == "paper",
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.middle_rate if config.learning_rate == AUTO else config.learning_rate,
        patience=config.patience,
    )
    settings = {name: value for name, value in plan._asdict().items() if name != "reason"}
    if config.learning_rate == AUTO:
        settings |= {"learning_rate": AUTO, "middle_rate": plan.learning_rate}
    return config.model_copy(update=settings), plan.reason


def training_plan(config: TuneConfig) -> TrainingPlan:
    """Return the settings that `with_training_plan` has filled in."""
    assert config.epochs is not None
    assert config.batch_size is not None
    rate = config.middle_rate if config.learning_rate == AUTO else config.learning_rate
    assert isinstance(rate, float)
    return TrainingPlan(config.epochs, config.batch_size, rate, config.patience or 0, None)


def resolve_device_dtype(config: TuneConfig) -> tuple[str, str]:
    """Return the device and the dtype to compute in; `--dtype auto` is bfloat16 where that is faster.

    Raises ConfigError for a device that tune does not train on.
    """
    if config.device == loading.MAP:
        raise ConfigError(
            "--device map: found layers spread over devices, expected one device with the whole model; use --device "
            "auto with --method lora, or several processes with FSDP (docs/scale-training.md)"
        )
    device, dtype = loading.resolve_device_dtype(config.device, config.dtype)
    if device.startswith("cuda:") and device != "cuda:0":
        raise ConfigError(f"--device {config.device}: the trainer takes the first GPU; set CUDA_VISIBLE_DEVICES")
    return ("cuda" if device.startswith("cuda") else device), ("float32" if dtype == "float16" else dtype)
