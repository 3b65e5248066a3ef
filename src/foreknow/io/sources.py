"""Sources: find the data files that a DATA argument names. Each file can be opened more than once.

    train.jsonl            a file (JSONL, JSON, CSV, TSV, Parquet, Arrow), also as .gz, .zst, .bz2 or .xz
    data/                  a folder of such files, in the order of their paths; or as `datasets` and the hub keep them
    data.zip               the same, packed; read member by member, never unpacked
    -                      standard input, kept in a temporary file
    hub:owner/name         a data set of the Hugging Face hub (hub:owner/name/folder: a part of it)
    s3://bucket/train.jsonl  any of these in an object store (gs:// too), downloaded once into the user's cache

This module holds no data in memory: each part is a `DataFile`, which opens as a stream of bytes (`data_file.py`);
`dataset_folders.py` decides which files of a folder are data.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from foreknow.errors import InputError
from foreknow.io.compression import PACKINGS
from foreknow.io.data_file import SUFFIXES, DataFile, detect_content, read_errors, suffixes
from foreknow.io.dataset_folders import FolderPlan, plan_of, snapshot_of
from foreknow.io.file_types import HEAD, packing_of, refusal_of_zip
from foreknow.io.quoting import quoted
from foreknow.io.remote_paths import is_url

HUB = "hub:"
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
    with read_errors(f"{path}"), path.open("rb") as stream:
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


def _download_url(url: str) -> Path:
    """Download what a URL names and return the local path. From a folder, download only the data files."""
    from foreknow.io.remote import download  # keeps filelock out

    return download(url, lambda name: suffixes(name)[0] in SUFFIXES)


def source_of_bytes(name: str, content: bytes) -> Source:
    """A source of bytes in memory; its suffix is that of `name`."""
    suffix, packing = suffixes(name)
    return Source(name, "file", (DataFile(name, name, suffix, packing, lambda: io.BytesIO(content)),))


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
        with read_errors(where), raw() as stream:
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
    with read_errors(f"{path}"), zipfile.ZipFile(path) as archive:
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
