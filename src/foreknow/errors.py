"""Every error foreknow raises on purpose.

    ForeknowError                exit 1   the run failed
    ├── UsageError               exit 2   wrong use or bad input; nothing was computed
    │   ├── InputError                    a data file or one of its rows
    │   │   └── TooFewExemplars           fewer rows than a prompt needs examples (prompts/few_shot.py)
    │   ├── ConfigError                   a setting, a flag or a YAML key
    │   │   └── TemplateRefusal           a chat template refuses or changes a chat (prompts/chat_templates.py)
    │   ├── ModelError                    a model that cannot be had or does not match its checksum
    │   ├── RunFolderError                a run folder held by another run, or made with other settings
    │   └── MissingExtra                  an optional dependency; says what to install
    ├── GateCrossed              exit 3   a gate such as --max-unknown; all outputs are written
    ├── NotFinite                exit 1   training stopped at a loss that is not finite
    └── ResourceError            exit 1   disk full, out of memory

A message says what, where (file, row, key), found against expected, and what to do, in one or two lines. The two kinds
with a file behind them stand there. Exceptions that never leave foreknow are not in the tree.
"""

from __future__ import annotations

from typing import ClassVar


class ForeknowError(Exception):
    """The run failed. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class UsageError(ForeknowError):
    """Wrong use or bad input; nothing was computed."""

    exit_code = 2


class InputError(UsageError):
    """A data file, or a row of it, that cannot be used."""


class ConfigError(UsageError):
    """A setting that does not exist or has a value outside its range."""


class ModelError(UsageError):
    """A model that is unknown, incomplete, or does not match its checksum."""


class RunFolderError(UsageError):
    """A run folder held by another run, or made from other inputs or settings."""


class MissingExtra(UsageError):
    """An optional dependency is not installed."""


class GateCrossed(ForeknowError):
    """A gate that the user set was crossed; every output was still written. `result`: the finished run, in Python."""

    exit_code = 3
    result: object = None


class ResourceError(ForeknowError):
    """The machine ran out of disk or memory; finished work is kept."""


class NotFinite(ForeknowError):
    """Training stopped because a loss or gradient was not finite, or the first loss was exactly 0."""


def first_line(error: object, most: int = 160) -> str:
    """The first non-empty line of an error's text, at most `most` characters; the error's type if it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:most]
