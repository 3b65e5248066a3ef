"""A plugin for axolotl, which adds KnowledgeCallback to its trainer.

    plugins:
      - foreknow.stages.train.axolotl_plugin.ForeknowPlugin
    foreknow:
      train: train.jsonl
      audit: runs/train
      sets:
        dev: dev.jsonl
      out: runs/watched

The entries under `foreknow` are the arguments of KnowledgeCallback. The plugin uses three methods of axolotl's
`BasePlugin`: `get_input_args`, which names the settings model, `add_callbacks_pre_trainer`, which refuses settings
before a model is loaded into the trainer, and `add_callbacks_post_trainer`, which makes the callback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from foreknow.errors import ConfigError
from foreknow.stages.train.callback import KnowledgeCallback

try:
    from axolotl.integrations.base import BasePlugin
except ImportError:  # axolotl alone loads the plugin; without it the class can still be read and tested
    BasePlugin = object

KEY: Final = "foreknow"


class ForeknowArgs(BaseModel):
    """What axolotl's settings file may have for foreknow."""

    foreknow: dict[str, Any] | None = None


class ForeknowPlugin(BasePlugin):  # type: ignore[misc]
    """Adds KnowledgeCallback to the trainer that axolotl has made, with the settings under `foreknow`."""

    def get_input_args(self) -> str:
        """Return the path of the settings model, which axolotl adds to its own."""
        return f"{__name__}.{ForeknowArgs.__name__}"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Refuse settings without rows before anything is trained. Raises ConfigError."""
        del model
        arguments_of(cfg)
        return []

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[KnowledgeCallback]:
        """Return the callback, attached to the trainer, so that axolotl's trackers get its metrics too."""
        arguments = arguments_of(cfg)
        if "tokenizer" not in arguments:
            arguments["tokenizer"] = getattr(trainer, "processing_class", None)
        return [KnowledgeCallback(**arguments).attach(trainer)]


def arguments_of(cfg: Any) -> dict[str, Any]:
    """Return the arguments of KnowledgeCallback in axolotl's settings. Raises ConfigError if there are none."""
    settings = cfg.get(KEY) if hasattr(cfg, "get") else getattr(cfg, KEY, None)
    if not isinstance(settings, Mapping) or not {"train", "sets"} & set(settings):
        raise ConfigError(
            f"axolotl's settings: found {KEY}: {settings!r}, expected entries such as\n"
            f"{KEY}:\n  train: train.jsonl\n  audit: runs/train\n  sets: {{dev: dev.jsonl}}"
        )
    return {
        str(name): dict(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None
    }
