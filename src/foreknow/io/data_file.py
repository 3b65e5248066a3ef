"""One data file of an input: opens its bytes, and tells its format and packing from its content.

The first bytes of a file decide its format, even against its name (`file_types.py`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO

from foreknow.errors import InputError
from foreknow.io.compression import PACKINGS, unpacked, unpacking_errors
from foreknow.io.file_types import HEAD, LONGEST_FIRST_LINE, packing_of, refusal_of, table_suffix, text_suffix
from foreknow.io.quoting import quoted

ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *ARROW)
_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class DataFile:
    """One data file. `name` is its path inside the source, `where` its name in messages.

    `suffix` and `packing` describe the content, even where the file's name says otherwise. `own_split`: the split that
    the folder's metadata assigns to the file.
    """

    name: str
    where: str
    suffix: str
    packing: str
    raw: Callable[[], IO[bytes]] = field(repr=False, compare=False)
    own_split: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the decompressed bytes. Raises InputError, which names the part, if a read fails at any time."""
        with read_errors(self.where), self.raw() as stream, unpacked(stream, self.packing) as plain:
            yield plain

    @property
    def split(self) -> str | None:
        """The split in the name (`train-00000.parquet`, `P17.dev.json`, `test/x.csv`); None if it has none."""
        if self.own_split:
            return _SPLITS.get(self.own_split, self.own_split)
        for piece in reversed(PurePosixPath(self.name).parts):
            for word in re.split(r"[^a-z]+", piece.lower()):
                if word in _SPLITS:
                    return _SPLITS[word]
        return None

    @property
    def relation(self) -> str | None:
        """The relation in a name such as `P17.train.json` (the ENTITYQUESTIONS tree)."""
        match = re.fullmatch(r"(P\d+)\.(train|dev|test)\.jsonl?", PurePosixPath(self.name).name)
        return match.group(1) if match else None


def detect_content(part: DataFile) -> tuple[DataFile, tuple[str, ...]]:
    """Return the part with the suffix and packing of its content, and notes where they differ from its name.

    Raises InputError for a known content type that cannot be read.
    """
    with read_errors(part.where), part.raw() as stream:
        head = stream.read(HEAD)
    detected = replace(part, packing=packing_of(head))
    if detected.packing:
        with detected.open() as stream:
            head = stream.read(HEAD)
    if refusal := refusal_of(head, part.suffix):
        raise InputError(f"{part.where}: {refusal}")
    if head.startswith(b"PK\x03\x04"):
        raise InputError(f"{part.where}: is a zip archive. Name it .zip and give it by itself.")
    if table := table_suffix(head):
        suffix = detected.suffix if table == ".arrow" and detected.suffix in ARROW else table
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        if b"\n" not in head and len(head) == HEAD:
            with detected.open() as stream:
                head = stream.readline(LONGEST_FIRST_LINE) + stream.read(HEAD)
        suffix = text_suffix(head, detected.suffix)
    else:
        suffix = detected.suffix
    detected = replace(detected, suffix=suffix)
    if not head or (detected.suffix, detected.packing) == (part.suffix, part.packing):
        return (part if not head else detected), ()
    kinds = {".jsonl": "JSON lines", ".json": "JSON", ".parquet": "Parquet", ".arrow": "Arrow"}
    kind = kinds.get(detected.suffix, detected.suffix[1:].upper())
    return detected, (
        f"{quoted(PurePosixPath(part.name).name)} is read as {kind}{_packing_note(detected, part)}, which it is",
    )


def _packing_note(detected: DataFile, part: DataFile) -> str:
    if detected.packing == part.packing:
        return ""
    return f" packed as {detected.packing}" if detected.packing else ", not packed"


@contextlib.contextmanager
def on_disk(part: DataFile) -> Iterator[Path]:
    """Yield a local file with the part's bytes, for readers that need to seek."""
    with part.open() as stream, tempfile.NamedTemporaryFile(prefix="foreknow-", suffix=part.suffix) as copy:
        file_name = getattr(stream, "name", None)
        if isinstance(file_name, str) and not part.packing and Path(file_name).is_file():
            yield Path(file_name)
            return
        while block := stream.read(_BLOCK):
            if (free := shutil.disk_usage(copy.name).free) < _SPARE:
                raise InputError(
                    f"{part.where}: unpacks to more than {copy.tell() >> 20:,} MiB, and {Path(copy.name).parent} "
                    f"has {free >> 20:,} MiB left. Unpack it yourself where there is room, or set TMPDIR."
                )
            copy.write(block)
        copy.flush()
        yield Path(copy.name)


_BLOCK = 16 << 20
_SPARE = 1 << 30
"""The bytes that temporary files leave free on the disk, because decompressed data can be of any size."""


def suffixes(name: str) -> tuple[str, str]:
    """The format and compression suffixes of a name: `train.jsonl.gz` -> `.jsonl`, `.gz`."""
    path = PurePosixPath(name.lower())
    packing = path.suffix if path.suffix in PACKINGS else ""
    return PurePosixPath(path.stem).suffix if packing else path.suffix, packing


@contextlib.contextmanager
def read_errors(where: str) -> Iterator[None]:
    """Raise InputError, which names the part, where reading it fails inside."""
    damaged = (zipfile.BadZipFile, struct.error)
    odd = (NotImplementedError, ValueError, OverflowError)  # the size that a damaged zip claims
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, *unpacking_errors(), *damaged, *odd, RuntimeError)):
            raise
        if type(error) is RuntimeError and not re.search("password|encrypted", str(error)):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{where}: cannot be read ({why[:200] or type(error).__name__}).") from error
