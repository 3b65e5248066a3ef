"""Getting a training run ready: the batch plan, the device and the dtype."""

from __future__ import annotations

from foreknow.config import TuneConfig
from foreknow.errors import ConfigError
from foreknow.models import loading


def with_batch_sizes(config: TuneConfig, device: str) -> TuneConfig:
    """Fill in the batch plan: a matter of the kind of device, never of free memory or load."""
    tokens = 16384 if device.startswith("cuda") else 2048
    return config.model_copy(
        update={
            "micro_batch_tokens": config.micro_batch_tokens or tokens,
            "batch_tokens": config.batch_tokens or tokens,
        }
    )


def resolve_device_dtype(config: TuneConfig) -> tuple[str, str]:
    """The device, and the dtype to compute in: bfloat16 where the machine has instructions for it.

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
