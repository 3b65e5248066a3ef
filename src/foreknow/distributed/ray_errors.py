"""Sends a Ray worker's error to the driver as plain values, and raises it there unchanged."""

from __future__ import annotations

import traceback

from foreknow import errors
from foreknow.errors import ConfigError, ForeknowError, ResourceError, first_line
from foreknow.version import __version__


def error_to_dict(error: Exception) -> dict[str, str]:
    """Return a worker's error as plain values: ours by its nearest class in `errors`, any other by its traceback."""
    for kind in type(error).__mro__:
        if issubclass(kind, ForeknowError) and hasattr(errors, kind.__name__):
            return {"name": kind.__name__, "text": str(error)}
    return {"name": "", "text": "".join(traceback.format_exception(error))}


def error_from_dict(values: dict[str, str]) -> Exception:
    """Return the error that `error_to_dict` converted."""
    if values["name"]:
        error: Exception = getattr(errors, values["name"])(values["text"])
        return error
    return RuntimeError(f"in a Ray worker:\n{values['text']}")


def as_foreknow_error(error: Exception) -> Exception:
    """Convert an error of Ray to a foreknow error: its cause if that is one, else an error with one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ForeknowError):
        return cause
    text = str(error)
    if "No module named 'foreknow'" in text:
        return ConfigError(
            f"--ray: foreknow is not installed on a node of the cluster; install foreknow {_version()} there"
        )
    return ResourceError(f"Ray gave up: {first_line(error)}; what is finished is kept, and the same command goes on")


def check_version(theirs: str) -> None:
    """Raise ConfigError in a worker whose version of foreknow differs from the driver's."""
    if theirs != _version():
        raise ConfigError(f"--ray: found foreknow {_version()} on a node of the cluster, expected {theirs}, as here")


def _version() -> str:
    return __version__
