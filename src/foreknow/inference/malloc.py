"""How the C library keeps the memory that torch gives back on a CPU; does nothing with another C library than glibc."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_MISSING: Final = (OSError, AttributeError, TypeError)
"""What ctypes raises where the C library is another one, or cannot be had by no name."""


def keep_memory() -> None:
    """Have the C library keep freed blocks: giving each layer's back and faulting it in again costs a fifth."""
    with contextlib.suppress(*_MISSING):
        library = ctypes.CDLL(None)
        library.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def release_memory() -> None:
    """Give freed blocks back after a chunk, so that the memory of a run does not grow with its rows."""
    with contextlib.suppress(*_MISSING):
        ctypes.CDLL(None).malloc_trim(0)
