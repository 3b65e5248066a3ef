"""The settings of `foreknow check`."""

from __future__ import annotations

from foreknow.config.shared import DataSettings


class CheckConfig(DataSettings):
    """Settings of `foreknow check`."""
