"""Unpacks and packs the compressed forms of a data file: .gz, .zst, .bz2 and .xz. Streams, never a whole file."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any

PACKINGS = (".gz", ".zst", ".bz2", ".xz")


@contextlib.contextmanager
def unpacked(stream: IO[bytes], packing: str) -> Iterator[IO[bytes]]:
    """Yield the bytes of a stream without its packing ("" is none)."""
    if packing in (".gz", ".bz2", ".xz"):
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[packing]
        with opener(stream) as plain:  # type: ignore[operator]
            yield plain
    elif packing == ".zst":
        with zstd().open(stream) as plain:
            yield plain
    else:
        yield stream


@contextlib.contextmanager
def compressed_writer(stream: IO[bytes], packing: str) -> Iterator[IO[bytes]]:
    """Compress everything written to the yielded stream with `packing`; equal content gives equal bytes."""
    if packing == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif packing == ".zst":
        with zstd().open(stream, "wb") as packed:
            yield packed
    elif packing in (".bz2", ".xz"):
        with bz2.open(stream, "wb") if packing == ".bz2" else lzma.open(stream, "wb") as packed:
            yield packed
    else:
        yield stream


def unpacking_errors() -> tuple[type[Exception], ...]:
    """Return the errors of damaged packed data. Zstd's is among them only after something was unpacked, as its module
    takes a fifth of a second to load."""
    module = sys.modules.get("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return (EOFError, zlib.error, lzma.LZMAError, *(() if module is None else (module.ZstdError,)))


def zstd() -> Any:
    """Return the module for zstd: the standard library's, else its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
