"""One frozen model of settings a command (`settings.py`: how they are read).

The same fields are the command's flags, the keys of its YAML file and the arguments of the Python call, so
there is one list of settings with one meaning.
"""

from __future__ import annotations

from foreknow.config.audit import AuditConfig
from foreknow.config.check import CheckConfig
from foreknow.config.evaluate import EvaluateConfig
from foreknow.config.extract import ExtractConfig
from foreknow.config.mix import MixConfig
from foreknow.config.remedies import RemediesConfig
from foreknow.config.tune import TuneConfig

__all__ = ["AuditConfig", "CheckConfig", "EvaluateConfig", "ExtractConfig", "MixConfig", "RemediesConfig", "TuneConfig"]
