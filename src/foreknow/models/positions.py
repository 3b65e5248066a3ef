"""Says how many positions a model takes."""

from __future__ import annotations

from typing import Any, Final

UNLIMITED: Final = 2**31
"""Stands for the number of positions where a config names none."""


def positions_of(config: Any) -> int | None:
    """Return how many positions a model takes: `max_position_embeddings` in the text part of its config.

    None where the config has no such setting (rotary and ALiBi models may have none), or one that is no whole number
    above 0: then the number of tokens is not limited.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
