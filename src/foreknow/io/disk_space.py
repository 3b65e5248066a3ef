"""Report a full disk as a ResourceError."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from foreknow.errors import ResourceError


@contextlib.contextmanager
def disk_full_errors(what: str, note: str) -> Iterator[None]:
    """Raise ResourceError if the disk is full; `what` could not be written, and `note` says what is not lost."""
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        raise ResourceError(
            f"{what}: the disk is full; {note}. Free some space and run the same command again"
        ) from None


def _no_space(error: Exception) -> bool:
    """Whether a write failed because the disk is full; safetensors and torch say so only in their messages."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    full = re.search(r"code: 28\b|os error 28\b|No space left|StorageFull", text) is not None
    return full or "PytorchStreamWriter failed" in text or "unexpected pos" in text
