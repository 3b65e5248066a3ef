"""Reads the versions of the libraries that compute."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def library_versions() -> dict[str, str]:
    """Return the versions of these libraries, for a run's manifest."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "polars")}
