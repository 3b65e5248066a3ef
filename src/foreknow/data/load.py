"""The rows that a stage's settings name: the packaged facts, or any input."""

from __future__ import annotations

import logging
from pathlib import Path

from foreknow.config.shared import DEFAULT_FACTS, DataSettings
from foreknow.data import dataset
from foreknow.data.builtin import default_facts, lab_long, lab_world
from foreknow.data.layouts.relation_templates import read_templates
from foreknow.errors import ConfigError

logger = logging.getLogger(__name__)


def read_data(config: DataSettings, limit: int | None = None) -> dataset.Dataset:
    """The rows that a stage's DATA names: the packaged facts, or any input."""
    if is_packaged(config.data):
        if config.map or config.templates or config.group_by not in (None, "relation") or config.layout != "auto":
            raise ConfigError("--map, --layout, --templates and --group-by: the packaged facts need none")
        return default_facts.read_default(limit, config.seed)
    if config.data == lab_world.NAME and not Path(config.data).exists():
        if config.map or config.templates or config.group_by not in (None, "relation") or config.layout != "auto":
            raise ConfigError("--map, --layout, --templates and --group-by: the lab's facts need none")
        return lab_world.read_lab(limit, config.seed)
    if config.data == lab_long.NAME and not Path(config.data).exists():
        if config.map or config.templates or config.group_by is not None or config.layout != "auto":
            raise ConfigError("--map, --layout, --templates and --group-by: the lab's long answers need none")
        return lab_long.read_lab_long(limit, config.seed)
    if config.data in (DEFAULT_FACTS, lab_world.NAME, lab_long.NAME):
        logger.info(
            f"{config.data}: the file or folder of that name in this folder is read, not the facts that come along"
        )
    return dataset.read_dataset(
        config.data,
        columns=config.map,
        layout=config.layout,
        templates=read_templates(config.templates) if config.templates else None,
        group_by=config.group_by,
        strict_rows=config.strict_rows,
        turns=config.turns,
        null_words=config.null_words,
        limit=limit,
        seed=config.seed,
    )


def is_packaged(data: str) -> bool:
    """Whether DATA is the packaged fact set."""
    return data == DEFAULT_FACTS and not Path(data).exists()
