"""Tells whether an error says that memory ran out, on a CPU or an accelerator."""

from __future__ import annotations

from typing import Final

_PHRASES: Final = (
    "out of memory",  # CUDA, MPS, XLA
    "not enough memory",  # torch's CPU allocator on Windows
    "allocate memory",  # "can't allocate memory", torch's CPU allocator; "cannot allocate memory", the system's
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its like
    "bad_alloc",  # C++
    "failed to allocate",
    "could not allocate",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch's CPU allocator says so in the text of a RuntimeError only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own; torch stays out
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)
