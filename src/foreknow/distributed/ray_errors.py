"""A Ray worker's error: sent to the driver as plain values, raised there as it was."""

from __future__ import annotations

import traceback

from foreknow import errors
from foreknow.errors import ConfigError, ForeknowError, ResourceError, first_line
from foreknow.version import __version__


def error_to_dict(error: Exception) -> dict[str, str]:
    """An error of a worker as plain values: an error of ours by its name, any other by its traceback."""
    if isinstance(error, ForeknowError):
        return {"name": type(error).__name__, "text": str(error)}
    return {"name": "", "text": "".join(traceback.format_exception(error))}


def error_from_dict(failed: dict[str, str]) -> Exception:
    """The error that `error_to_dict` told of."""
    if failed["name"]:
        found: Exception = getattr(errors, failed["name"])(failed["text"])
        return found
    return RuntimeError(f"in a Ray worker:\n{failed['text']}")


def of_ours(error: Exception) -> Exception:
    """What Ray raised, as an error of ours where it is one or can be told in a line."""
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
    """Raises ConfigError in a worker whose foreknow is another than the driver's."""
    if theirs != _version():
        raise ConfigError(f"--ray: found foreknow {_version()} on a node of the cluster, expected {theirs}, as here")


def _version() -> str:
    return __version__
