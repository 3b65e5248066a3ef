"""Sources: what a DATA argument names -> the data files in it, each ready to be opened, again and again.

    train.jsonl            a file (JSONL, JSON, CSV, TSV, Parquet), also as .gz or .zst
    data/                  a folder of such files, in the order of their paths
    data.zip               the same, packed; read member by member, never unpacked
    -                      standard input, kept in a temporary file
    hub:owner/name         a data set of the Hugging Face hub (hub:owner/name/folder: a part of it)
    s3://bucket/train.jsonl  any of these in an object store (gs:// too), fetched once into the user's cache

Nothing is held in memory here: a part is opened as a stream of bytes.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from foreknow.errors import InputError
from foreknow.files.places import is_url
from foreknow.files.quoting import quoted

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKINGS = (".gz", ".zst")
HUB = "hub:"
_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
_NOT_DATA = re.compile(
    r"(^|/)\.(?!\.?/)|(^|/)__MACOSX/|(^|\.)manifest\.json$|^(dataset_infos?|dataset_dict|state)\.json$"
)
"""Files beside data: hidden ones, manifests (ours too), and what `datasets` writes about its own folders."""


@dataclass(frozen=True)
class Part:
    """One data file. `name` is its path inside the source, `where` how messages call it."""

    name: str
    where: str
    suffix: str
    packing: str
    raw: Callable[[], IO[bytes]] = field(repr=False, compare=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, unpacked. What cannot be read, now or later, is an InputError that names the part."""
        with _reading(self.where), self.raw() as stream:
            if self.packing == ".gz":
                with gzip.open(stream) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif self.packing == ".zst":
                with _zstd().open(stream) as unpacked:
                    yield unpacked
            else:
                yield stream

    @property
    def split(self) -> str | None:
        """The split that the name tells (`train-00000.parquet`, `P17.dev.json`, `test/x.csv`), if any."""
        for piece in reversed(PurePosixPath(self.name).parts):
            for word in re.split(r"[^a-z]+", piece.lower()):
                if word in _SPLITS:
                    return _SPLITS[word]
        return None

    @property
    def relation(self) -> str | None:
        """The relation that a name such as `P17.train.json` tells (the ENTITYQUESTIONS tree)."""
        found = re.fullmatch(r"(P\d+)\.(train|dev|test)\.jsonl?", PurePosixPath(self.name).name)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Source:
    """The parts of an input. `kind` says what its outputs are: one file, or a folder or zip of files."""

    name: str
    kind: Literal["file", "folder", "zip"]
    parts: tuple[Part, ...]
    left_out: int = 0
    keep: Any = field(default=None, repr=False, compare=False)  # a temporary file lives as long as its source

    @property
    def suffix(self) -> str:
        """The suffix of an output in the input's form: `.jsonl.gz`, `.zip`, nothing for a folder."""
        if self.kind == "file":
            return self.parts[0].suffix + self.parts[0].packing
        return ".zip" if self.kind == "zip" else ""


def source_of(name: str) -> Source:
    """The source that a DATA argument names; InputError where there is none, or nothing to read in it."""
    if name in ("-", "stdin:"):
        return _standard_input()
    if name.startswith(HUB):
        return _hub(name)
    path = _fetched(name) if is_url(name) else Path(name)
    if path.is_dir():
        return _folder(path, name)
    if not path.exists():
        hint = f" For a data set of the hub, write {HUB}{name}." if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        raise InputError(f"{path}: no such file. Check the path, or quote it if it has spaces.{hint}")
    if path.suffix.lower() == ".zip":
        return _zip(path)
    suffix, packing = suffixes(path.name)
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: unknown suffix {suffix or path.suffix!r}, expected one of {' '.join(SUFFIXES)} "
            "(also as .gz or .zst), a .zip or a folder."
        )
    return Source(path.name, "file", (Part(path.name, f"{path}", suffix, packing, lambda: path.open("rb")),))


def _fetched(url: str) -> Path:
    """What a URL names, here; of a folder the data files only."""
    from foreknow.files.remote import fetched

    return fetched(url, lambda name: suffixes(name)[0] in SUFFIXES)


def source_of_bytes(name: str, content: bytes) -> Source:
    """A source that was never a file; its suffix is that of `name`."""
    suffix, packing = suffixes(name)
    return Source(name, "file", (Part(name, name, suffix, packing, lambda: io.BytesIO(content)),))


@contextlib.contextmanager
def packed_for_writing(stream: IO[bytes], packing: str) -> Iterator[IO[bytes]]:
    """A stream that packs what is written to it as `packing` says; the same content gives the same bytes."""
    if packing == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif packing == ".zst":
        with _zstd().open(stream, "wb") as packed:
            yield packed
    else:
        yield stream


@contextlib.contextmanager
def on_disk(part: Part) -> Iterator[Path]:
    """A file that holds the part's bytes, for readers that must seek."""
    with part.open() as stream, tempfile.NamedTemporaryFile(prefix="foreknow-", suffix=part.suffix) as copy:
        own = getattr(stream, "name", None)
        if isinstance(own, str) and not part.packing and Path(own).is_file():
            yield Path(own)
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
"""Bytes left free on the disk for temporary files: what is unpacked may be of any size."""


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    damaged = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, _zstd().ZstdError, struct.error)
    odd = (NotImplementedError, ValueError, OverflowError)  # what a damaged zip says it holds
    try:
        yield
    except InputError:
        raise
    except (OSError, *damaged, *odd, RuntimeError) as error:
        if type(error) is RuntimeError and not re.search("password|encrypted", str(error)):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{where}: cannot be read ({why[:200] or type(error).__name__}).") from error


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def suffixes(name: str) -> tuple[str, str]:
    """The format and the packing that a name ends in: `train.jsonl.gz` -> `.jsonl`, `.gz`."""
    path = PurePosixPath(name.lower())
    packing = path.suffix if path.suffix in PACKINGS else ""
    return PurePosixPath(path.stem).suffix if packing else path.suffix, packing


def _several(
    name: str, kind: Literal["folder", "zip"], names: Sequence[str], opener: Callable[[str], tuple[str, Any]]
) -> Source:
    """The data files among `names`, as parts in the order of their names."""
    parts, left_out = [], 0
    for each in sorted(names):
        suffix, packing = suffixes(each)
        if suffix not in SUFFIXES or _NOT_DATA.search(each):
            left_out += 1
            continue
        where, raw = opener(each)
        parts.append(Part(each, where, suffix, packing, raw))
    if not parts:
        raise InputError(f"{name}: no data file in this {kind}, expected some of {' '.join(SUFFIXES)}.")
    return Source(Path(name).name or name, kind, tuple(parts), left_out)


def _folder(path: Path, name: str) -> Source:
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]

    def opener(each: str) -> tuple[str, Any]:
        file = path / each
        return f"{file}", lambda: file.open("rb")

    return _several(name, "folder", names, opener)


def _zip(path: Path) -> Source:
    with _reading(f"{path}"), zipfile.ZipFile(path) as archive:
        # not by is_dir, which fails on an empty name
        names = [info.filename for info in archive.infolist() if not info.filename.endswith("/")]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(names) < 10_000 else None:
        raise InputError(f"{path}: the member {quoted(twice)} stands in the archive twice.")

    def opener(each: str) -> tuple[str, Any]:
        return f"{path}!{each}", lambda: _Member(path, each)

    return _several(f"{path}", "zip", names, opener)


class _Member(io.BufferedReader):
    """One member of an archive, which is closed with it."""

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
    kept = tempfile.NamedTemporaryFile(prefix="foreknow-")  # noqa: SIM115 - lives as long as the source
    shutil.copyfileobj(sys.stdin.buffer, kept)
    kept.flush()
    path = Path(kept.name)
    with path.open("rb") as stream:
        start = stream.read(4096)
    packing = ".gz" if start.startswith(b"\x1f\x8b") else ".zst" if start.startswith(b"\x28\xb5\x2f\xfd") else ""
    part = Part("stdin", "standard input", "", packing, lambda: path.open("rb"))
    if packing:
        with part.open() as unpacked:
            start = unpacked.read(4096)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    head = text.split(b"\n", maxsplit=1)[0]
    if not text:
        raise InputError("standard input is empty: found no rows, expected at least one.")
    if start.startswith(b"PAR1"):
        suffix = ".parquet"
    elif text[:1] in b"{[":
        suffix = ".jsonl" if text[:1] == b"{" else ".json"
    else:
        suffix = ".tsv" if b"\t" in head else ".csv"
    part = Part(f"stdin{suffix}", "standard input", suffix, packing, part.raw)
    return Source("standard input", "file", (part,), keep=kept)


def _hub(name: str) -> Source:
    """A data set's own files, fetched into the hub's cache. A revision may follow: hub:owner/name@revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if wanted is None:
        raise InputError(f"{name}: expected {HUB}owner/name, {HUB}owner/name/folder or {HUB}owner/name@revision.")
    repository, inside, revision = wanted.groups()
    patterns = [f"{inside.strip('/')}{'/' if inside else ''}*{s}{p}" for s in SUFFIXES for p in ("", *PACKINGS)]
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: cannot be fetched from the hub ({why}). Give a file or a folder instead.") from None
    return _folder(folder / inside.strip("/"), name)
