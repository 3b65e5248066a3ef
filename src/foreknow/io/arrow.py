"""Reads Arrow data in batches, and writes it, with Polars: IPC streams, and IPC files (Feather 2).

`datasets` writes streams. This module splits a stream into its messages, so that few record batches are in memory at
once, and a stream without its end mark is reported as cut short. In streams and files, the sizes that a record batch
claims are checked before it is decompressed, because they may be damaged.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

import polars as pl

ArrowKind = Literal["stream", "file"]
_CONTINUATION: Final = b"\xff\xff\xff\xff"
_END: Final = _CONTINUATION + bytes(4)
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_GROUP_BYTES: Final = 1 << 25
_GROUP_BATCHES: Final = 64
_LARGEST_BATCH: Final = 1 << 30
"""The most bytes that one record batch may unpack to."""
_FILE: Final = b"ARROW1"


def arrow_kind(head: bytes) -> ArrowKind:
    """Whether Arrow data is a stream or a file, judged by its first bytes."""
    return "file" if head.startswith(_FILE) else "stream"


def read_arrow(path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """An Arrow file in frames of about `rows` rows, at least one. Raises ValueError, or an error of Polars'."""
    with path.open("rb") as stream:
        kind = arrow_kind(stream.read(8))
        if kind == "file":
            _check_file(stream, path.stat().st_size)
    if kind == "stream":
        yield from _read_stream(path)
        return
    scan = pl.scan_ipc(path)
    count = int(scan.select(pl.len()).collect().item())
    for start in range(0, max(count, 1), rows):
        yield scan.slice(start, rows).collect()


def _read_stream(path: Path) -> Iterator[pl.DataFrame]:
    """Yield the frames of a stream, each with a few record batches."""
    head: list[bytes] = []
    group: list[bytes] = []
    held, empty = 0, True
    with path.open("rb") as stream:
        for kind, message in _messages(stream, path.stat().st_size):
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


def _check_file(stream: IO[bytes], size: int) -> None:
    """Raise ValueError unless every block that a file's footer names is whole and sound."""
    stream.seek(max(size - 10, 0))
    length, mark = int.from_bytes(stream.read(4), "little", signed=True), stream.read()
    if mark != _FILE or not 0 < length <= size - 18:
        raise ValueError("it breaks off: its end is not marked")
    stream.seek(size - 10 - length)
    about = stream.read(length)
    try:
        footer = _Table(about, struct.unpack_from("<I", about)[0])
        blocks = [block for field in (2, 3) for block in footer.structs(field, "<qi4xq")]
        for offset, head, body in blocks:
            if offset < 8 or head < 8 or body < 0 or offset + head + body > size:
                raise ValueError("a record batch stands outside of it")
            stream.seek(offset)
            prefix = stream.read(head)
            # before version 0.15 of Arrow a message had no mark before its length
            _check_message(prefix[8 if prefix.startswith(_CONTINUATION) else 4 :], stream.read(body))
    except struct.error as error:
        raise ValueError("its footer cannot be read") from error


def write_arrow(frame: pl.DataFrame, stream: IO[bytes], kind: ArrowKind) -> None:
    """Write one frame, in types that every reader of Arrow knows."""
    oldest = pl.CompatLevel.oldest()
    if kind == "file":
        frame.write_ipc(stream, compat_level=oldest)
    else:
        frame.write_ipc_stream(stream, compat_level=oldest)


def _frame(head: list[bytes], group: list[bytes]) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(b"".join([*head, *group, _END])))


def _messages(stream: IO[bytes], size: int) -> Iterator[tuple[int, bytes]]:
    """(kind, bytes) of each message before the place `size`. Raises ValueError where one is not whole or sound."""
    first = True
    while True:
        prefix = stream.read(8)
        if prefix == _END:
            if first:
                raise ValueError("it holds no schema")
            return
        if len(prefix) < 8 or prefix[:4] != _CONTINUATION:
            raise ValueError("it breaks off: the end of an Arrow stream is marked, and this one's is not")
        length = int.from_bytes(prefix[4:], "little", signed=True)
        if not 0 < length <= size - stream.tell():
            raise ValueError("it breaks off inside a message")
        about = stream.read(length)
        try:
            kind, length = _kind_of(about)
            if not 0 <= length <= size - stream.tell():
                raise ValueError("it breaks off inside a message")
            body = stream.read(length)
            if first != (kind == _SCHEMA):
                raise ValueError("its schema is not its first message")
            if kind != _SCHEMA:
                _check_message(about, body)
        except struct.error as error:
            raise ValueError("a message cannot be read") from error
        first = False
        yield kind, prefix + about + body


class _Table(NamedTuple):
    """A FlatBuffers table that begins at an offset in `data`. Raises struct.error for an offset outside the data."""

    data: bytes
    at: int

    def place(self, field: int) -> int | None:
        """The offset of a field; None if the table lacks it."""
        entries = self.at - int(struct.unpack_from("<i", self.data, self.at)[0])
        if entries < 0 or 4 + 2 * field >= struct.unpack_from("<H", self.data, entries)[0]:
            return None
        offset = int(struct.unpack_from("<H", self.data, entries + 4 + 2 * field)[0])
        return self.at + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """The number in a field; 0 if the table lacks it."""
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> _Table:
        """The table in a field."""
        place = self.place(field)
        if place is None:
            raise struct.error("no such table")
        return _Table(self.data, place + int(struct.unpack_from("<I", self.data, place)[0]))

    def structs(self, field: int, form: str) -> list[tuple[int, ...]]:
        """The structs in a field, each as its numbers."""
        place = self.place(field)
        if place is None:
            return []
        start = place + int(struct.unpack_from("<I", self.data, place)[0])
        count, width = int(struct.unpack_from("<I", self.data, start)[0]), struct.calcsize(form)
        if count > len(self.data) // width:
            raise struct.error("too many structs")
        return [struct.unpack_from(form, self.data, start + 4 + width * n) for n in range(count)]


def _kind_of(about: bytes) -> tuple[int, int]:
    """A message's kind and the bytes of its body."""
    message = _Table(about, struct.unpack_from("<I", about)[0])
    return message.number(1, "<B"), message.number(3, "<q")


def _check_message(about: bytes, body: bytes) -> None:
    """Raise ValueError unless a message of records or of a dictionary fits its body."""
    kind, _ = _kind_of(about)
    header = _Table(about, struct.unpack_from("<I", about)[0]).table(2)
    _check_batch(header.table(1) if kind == _DICTIONARY else header, body)


def _check_batch(batch: _Table, body: bytes) -> None:
    """Raise ValueError unless a record batch's buffers lie in its body, unpack to a bearable size and hold its rows."""
    packed = batch.place(3) is not None
    total = 0
    for offset, length in batch.structs(2, "<qq"):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("a column reaches beyond its record batch")
        size = length
        if packed and length >= 8:
            size = int(struct.unpack_from("<q", body, offset)[0])
            size = length - 8 if size == -1 else size
        total += size
        if size < 0 or total > _LARGEST_BATCH:
            raise ValueError(f"a record batch says that it unpacks to more than {_LARGEST_BATCH >> 20} MiB")
    rows = batch.number(0, "<q")
    if not 0 <= rows <= max(8 * total, 1 << 16):
        raise ValueError(f"a record batch says that it holds {rows:,} rows in {total:,} bytes")
