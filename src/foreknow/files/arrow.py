"""Arrow files (IPC streams, and IPC files, which Feather 2 is) read in batches and written; by Polars.

`datasets` keeps streams. A stream is cut into its messages here, so that only a few record batches are held at once
and one that breaks off is seen: its end is marked.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal

import polars as pl

ArrowKind = Literal["stream", "file"]
_GOES_ON: Final = b"\xff\xff\xff\xff"
_END: Final = _GOES_ON + bytes(4)
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_GROUP_BYTES: Final = 1 << 25
_GROUP_BATCHES: Final = 64


def arrow_kind(head: bytes) -> ArrowKind:
    """Whether an Arrow content is a stream or a file, by its first bytes."""
    return "file" if head.startswith(b"ARROW1") else "stream"


def read_arrow(path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """An Arrow file in frames of about `rows` rows, at least one. Raises ValueError, or an error of Polars'."""
    with path.open("rb") as stream:
        kind = arrow_kind(stream.read(8))
    if kind == "stream":
        yield from _read_stream(path)
        return
    scan = pl.scan_ipc(path)
    count = int(scan.select(pl.len()).collect().item())
    for start in range(0, max(count, 1), rows):
        yield scan.slice(start, rows).collect()


def write_arrow(frame: pl.DataFrame, stream: IO[bytes], kind: ArrowKind) -> None:
    """Write one frame, in types that every reader of Arrow knows."""
    oldest = pl.CompatLevel.oldest()
    if kind == "file":
        frame.write_ipc(stream, compat_level=oldest)
    else:
        frame.write_ipc_stream(stream, compat_level=oldest)


def _read_stream(path: Path) -> Iterator[pl.DataFrame]:
    """The frames of a stream, a few record batches each."""
    size = path.stat().st_size
    head: list[bytes] = []
    group: list[bytes] = []
    held, empty = 0, True
    with path.open("rb") as stream:
        for kind, message in _messages(stream, size):
            if kind != _RECORDS:
                # a dictionary may replace an earlier one: what came before it is read first
                if group:
                    yield _frame(head, group)
                    group, held = [], 0
                head.append(message)
                continue
            group.append(message)
            held, empty = held + len(message), False
            if held >= _GROUP_BYTES or len(group) == _GROUP_BATCHES:
                yield _frame(head, group)
                group, held = [], 0
    if group or empty:
        yield _frame(head, group)


def _frame(head: list[bytes], group: list[bytes]) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(b"".join([*head, *group, _END])))


def _messages(stream: IO[bytes], size: int) -> Iterator[tuple[int, bytes]]:
    """(kind, bytes) of each message. Raises ValueError where one is not whole, or the end is not marked."""
    first = True
    while True:
        prefix = stream.read(8)
        if prefix == _END:
            if first:
                raise ValueError("it holds no schema")
            return
        if len(prefix) < 8 or prefix[:4] != _GOES_ON:
            raise ValueError("it breaks off: the end of an Arrow stream is marked, and this one's is not")
        length = int.from_bytes(prefix[4:], "little", signed=True)
        if not 0 < length <= size - stream.tell():
            raise ValueError("it breaks off inside a message")
        about = stream.read(length)
        kind, body = _about(about)
        if not 0 <= body <= size - stream.tell():
            raise ValueError("it breaks off inside a message")
        if first != (kind == _SCHEMA):
            raise ValueError("its schema is not its first message")
        first = False
        yield kind, prefix + about + stream.read(body)


def _about(about: bytes) -> tuple[int, int]:
    """A message's kind and the bytes of its body: two fields of the FlatBuffers table `Message`."""
    try:
        table = struct.unpack_from("<I", about)[0]
        entries = table - struct.unpack_from("<i", about, table)[0]
        width = struct.unpack_from("<H", about, entries)[0]

        def place(field: int) -> int:
            at = 4 + 2 * field
            return int(struct.unpack_from("<H", about, entries + at)[0]) if at < width else 0

        kind, body = place(1), place(3)
        return (
            struct.unpack_from("<B", about, table + kind)[0] if kind else 0,
            struct.unpack_from("<q", about, table + body)[0] if body else 0,
        )
    except struct.error as error:
        raise ValueError("a message cannot be read") from error
