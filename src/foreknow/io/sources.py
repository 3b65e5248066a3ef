"""Sources: find the data files that a DATA argument names. Each file can be opened more than once.

    train.jsonl            a file (JSONL, JSON, CSV, TSV, Parquet, Arrow), also as .gz, .zst, .bz2 or .xz
    data/                  a folder of such files, in the order of their paths; or as `datasets` and the hub keep them
    data.zip               the same, packed; read member by member, never unpacked
    -                      standard input, kept in a temporary file
    hub:owner/name         a data set of the Hugging Face hub (hub:owner/name/folder: a part of it)
    s3://bucket/train.jsonl  any of these in an object store (gs:// too), downloaded once into the user's cache

This module holds no data in memory: it opens each part as a stream of bytes. The first bytes of a file decide its
format, even against its name (`file_types.py`); `dataset_folders.py` decides which files of a folder are data.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import shutil
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from foreknow.errors import InputError
from foreknow.io.dataset_folders import FolderPlan, plan_of, snapshot_of
from foreknow.io.file_types import (
    HEAD,
    LONGEST_FIRST_LINE,
    packing_of,
    refusal_of,
    refusal_of_zip,
    table_suffix,
    text_suffix,
)
from foreknow.io.quoting import quoted
from foreknow.io.remote_paths import is_url

ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *ARROW)
PACKINGS = (".gz", ".zst", ".bz2", ".xz")
HUB = "hub:"
_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
_ABOUT = [
    "dataset_info",
    "dataset_infos",
    "dataset_dict",
    "dataset-metadata",
    "state",
    "croissant",
    "config",
    "generation_config",
    "adapter_config",
    "tokenizer",
    "tokenizer_config",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "preprocessor_config",
    "trainer_state",
    "package",
    "package-lock",
]
_NOT_DATA = re.compile(
    rf"(^|/)\.(?!\.?/)|(^|/)__MACOSX/|(^|/|\.)manifest\.json$|(^|/)({'|'.join(_ABOUT)})\.json$|(^|/)_(common_)?metadata\b"
)
"""Files that are not data: hidden files, manifests, and metadata that `datasets`, the hub and models write."""


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
        with _read_errors(self.where), self.raw() as stream:
            if self.packing in (".gz", ".bz2", ".xz"):
                opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[self.packing]
                with opener(stream) as unpacked:  # type: ignore[operator]
                    yield unpacked
            elif self.packing == ".zst":
                with _zstd().open(stream) as unpacked:
                    yield unpacked
            else:
                yield stream

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


@dataclass(frozen=True)
class Source:
    """The parts of an input. `kind` says what its outputs are: one file, or a folder or zip of files.

    `notes`: messages to the user about decisions on these files. `sidecars`: metadata files by name, which are also
    written when the whole input is written.
    """

    name: str
    kind: Literal["file", "folder", "zip"]
    parts: tuple[DataFile, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()
    sidecars: tuple[tuple[str, Callable[[], bytes]], ...] = field(default=(), repr=False, compare=False)
    keep: Any = field(default=None, repr=False, compare=False)  # a temporary file lives as long as its source

    @property
    def suffix(self) -> str:
        """The suffix of an output in the input's form: `.jsonl.gz`, `.zip`, "" for a folder."""
        if self.kind == "file":
            return self.parts[0].suffix + self.parts[0].packing
        return ".zip" if self.kind == "zip" else ""


def source_of(name: str) -> Source:
    """The source that a DATA argument names. Raises InputError if there is none, or if it holds no data files."""
    if name in ("-", "stdin:"):
        return _standard_input()
    if name.startswith(HUB):
        return _hub_source(name)
    path = _download_url(name) if is_url(name) else Path(name)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long for the system, or with a null character
        raise InputError(f"found a text of {len(name):,} characters ({quoted(name, 60)}), expected a path.") from None
    if is_folder:
        return _folder_source(path, name)
    if not exists:
        hint = f" For a data set of the hub, write {HUB}{name}." if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        raise InputError(f"{path}: no such file. Check the path, or quote it if it has spaces.{hint}")
    if not path.is_file():
        raise InputError(f"{path}: is a pipe or a device. Send it to standard input, and give - for its name.")
    with _read_errors(f"{path}"), path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    suffix, packing = suffixes(path.name)
    if zipped or path.suffix.lower() == ".zip":
        return _zip_source(path)
    part, notes = detect_content(DataFile(path.name, f"{path}", suffix, packing, lambda: path.open("rb")))
    if part.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: unknown suffix {suffix or path.suffix!r}, expected one of {' '.join(SUFFIXES)} "
            f"(also as {', '.join(PACKINGS)}), a .zip or a folder. Its content is none of them that can be told apart: "
            "name a table .csv or .tsv."
        )
    return Source(path.name, "file", (part,), notes=notes)


def detect_content(part: DataFile) -> tuple[DataFile, tuple[str, ...]]:
    """Return the part with the suffix and packing of its content, and notes where they differ from its name.

    Raises InputError for a known content type that cannot be read.
    """
    with _read_errors(part.where), part.raw() as stream:
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


def _download_url(url: str) -> Path:
    """Download what a URL names and return the local path. From a folder, download only the data files."""
    from foreknow.io.remote import download  # keeps filelock out

    return download(url, lambda name: suffixes(name)[0] in SUFFIXES)


def source_of_bytes(name: str, content: bytes) -> Source:
    """A source of bytes in memory; its suffix is that of `name`."""
    suffix, packing = suffixes(name)
    return Source(name, "file", (DataFile(name, name, suffix, packing, lambda: io.BytesIO(content)),))


@contextlib.contextmanager
def compressed_writer(stream: IO[bytes], packing: str) -> Iterator[IO[bytes]]:
    """Compress everything written to the yielded stream with `packing`; equal content gives equal bytes."""
    if packing == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif packing == ".zst":
        with _zstd().open(stream, "wb") as packed:
            yield packed
    elif packing in (".bz2", ".xz"):
        with bz2.open(stream, "wb") if packing == ".bz2" else lzma.open(stream, "wb") as packed:
            yield packed
    else:
        yield stream


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


@contextlib.contextmanager
def _read_errors(where: str) -> Iterator[None]:
    damaged = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error)
    odd = (NotImplementedError, ValueError, OverflowError)  # the size that a damaged zip claims
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, *damaged, *_zstd_errors(), *odd, RuntimeError)):
            raise
        if type(error) is RuntimeError and not re.search("password|encrypted", str(error)):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{where}: cannot be read ({why[:200] or type(error).__name__}).") from error


def _zstd_errors() -> tuple[type[Exception], ...]:
    """The error of damaged zstd data; empty while nothing was unpacked, as the module takes a fifth of a second to
    load."""
    module = sys.modules.get("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return () if module is None else (module.ZstdError,)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def suffixes(name: str) -> tuple[str, str]:
    """The format and compression suffixes of a name: `train.jsonl.gz` -> `.jsonl`, `.gz`."""
    path = PurePosixPath(name.lower())
    packing = path.suffix if path.suffix in PACKINGS else ""
    return PurePosixPath(path.stem).suffix if packing else path.suffix, packing


def _is_data(name: str) -> bool:
    return suffixes(name)[0] in SUFFIXES and not _NOT_DATA.search(name)


def _source_of_many(
    name: str,
    kind: Literal["folder", "zip"],
    names: Sequence[str],
    opener: Callable[[str], tuple[str, Any]],
    note: str = "",
) -> Source:
    """The data files among `names`, sorted by name."""

    def read(each: str) -> bytes:
        where, raw = opener(each)
        with _read_errors(where), raw() as stream:
            return bytes(stream.read(_LARGEST_SIDECAR))

    plan: FolderPlan = plan_of(names, read, name, is_data=_is_data)
    parts, notes = [], [note] if note else []
    for each in sorted(plan.files):
        where, raw = opener(each)
        suffix, packing = suffixes(each)
        part, more = detect_content(DataFile(each, where, suffix, packing, raw, plan.splits.get(each) or None))
        parts.append(part)
        notes += more
    if not parts:
        refusal = refusal_of_zip(list(names)) if kind == "zip" else None
        if refusal is not None:
            raise InputError(f"{name}: {refusal}")
        raise InputError(f"{name}: no data file in this {kind}, expected some of {' '.join(SUFFIXES)}.")
    more_notes = (f"and {len(notes) - 3} more files that their names do not describe",) if len(notes) > 3 else ()
    sidecars = tuple((each, partial(read, each)) for each in plan.sidecars)
    return Source(
        Path(name).name or name,
        kind,
        tuple(parts),
        len(names) - len(parts) - len(sidecars),
        (*plan.notes, *notes[:3], *more_notes),
        sidecars,
    )


_LARGEST_SIDECAR = 1 << 25


def _folder_source(path: Path, name: str) -> Source:
    path, note = snapshot_of(path)
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]

    def opener(each: str) -> tuple[str, Any]:
        file = path / each
        return f"{file}", lambda: file.open("rb")

    return _source_of_many(name, "folder", names, opener, note)


def _zip_source(path: Path) -> Source:
    with _read_errors(f"{path}"), zipfile.ZipFile(path) as archive:
        # not by is_dir, which fails on an empty name
        names = [info.filename for info in archive.infolist() if not info.filename.endswith("/")]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise InputError(
            f"{path}: the member {quoted(twice)} stands in the archive twice. Pack the files anew, each name once."
        )
    if path.suffix.lower() != ".zip" and (refusal := refusal_of_zip(names)):
        raise InputError(f"{path}: {refusal}")

    def opener(each: str) -> tuple[str, Any]:
        return f"{path}!{each}", lambda: _Member(path, each)

    return _source_of_many(f"{path}", "zip", names, opener)


class _Member(io.BufferedReader):
    """Open one member of an archive; closing the member closes the archive."""

    def __init__(self, path: Path, name: str):
        self._archive = zipfile.ZipFile(path)
        try:
            super().__init__(self._archive.open(name))  # type: ignore[arg-type]
        except BaseException:
            self._archive.close()
            raise

    def close(self) -> None:
        super().close()
        self._archive.close()


def _standard_input() -> Source:
    copy = tempfile.NamedTemporaryFile(prefix="foreknow-")  # noqa: SIM115 - lives as long as the source
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.flush()
    path = Path(copy.name)
    raw = DataFile("stdin", "standard input", "", "", lambda: path.open("rb"))
    with path.open("rb") as stream:
        raw = replace(raw, packing=packing_of(stream.read(HEAD)))
    with raw.open() as stream:
        start = stream.read(HEAD)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise InputError("standard input is empty: found no rows, expected at least one.")
    head = text.split(b"\n", maxsplit=1)[0]
    suffix = ".jsonl" if text[:1] == b"{" else ".json" if text[:1] == b"[" else ".tsv" if b"\t" in head else ".csv"
    part, _ = detect_content(replace(raw, suffix=suffix))
    return Source("standard input", "file", (replace(part, name=f"stdin{part.suffix}"),), keep=copy)


def _hub_source(name: str) -> Source:
    """Download the files of a hub data set into the hub's cache. `hub:owner/name@revision` selects a revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if match is None:
        raise InputError(f"{name}: expected {HUB}owner/name, {HUB}owner/name/folder or {HUB}owner/name@revision.")
    repository, inside, revision = match.groups()
    patterns = [f"{inside.strip('/')}{'/' if inside else ''}*{s}{p}" for s in SUFFIXES for p in ("", *PACKINGS)]
    patterns.append("README.md")
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: cannot be fetched from the hub ({why}). Give a file or a folder instead.") from None
    return _folder_source(folder / inside.strip("/"), name)
