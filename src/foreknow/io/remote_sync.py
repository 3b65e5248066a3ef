"""Sync a folder of an object store with its local mirror, in either direction.

Files are uploaded in the order in which they were written, and deletions come last. So a file that marks others as
complete (a manifest, a checkpoint's `complete.json`) is never in the store before them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from foreknow.errors import ForeknowError, InputError, MissingExtra, ResourceError, UsageError
from foreknow.io.remote_paths import SCHEMES, mirrors, url_of

logger = logging.getLogger(__name__)

_LOCAL_ONLY = re.compile(r"\..*\.part|\..+\.[a-z0-9_]{8}\.\w+|\.lock(-\d+)?")
"""Names that are never uploaded: temporary files and locks."""
_LOG_FROM_BYTES: Final = 2**25
"""Downloads of at least this many bytes are logged."""


class Known(NamedTuple):
    """A file's state at the last sync. `stamp`: the store's ETag or the like; None if this mirror uploaded the file."""

    mtime: int
    size: int
    stamp: str | None


@contextlib.contextmanager
def store_errors(url: str, note: str = "", refused: type[UsageError] = InputError) -> Iterator[None]:
    """Turn every error of a store's client library into one of ours: one line that names `url`.

    Errors that the user can fix (names, permissions) raise `refused`, all others ResourceError. `note` says in the
    message what is not lost; if it is given, the run had already begun, and the error is always ResourceError.
    """
    try:
        yield
    except ForeknowError:
        raise
    except ImportError as error:
        scheme = url.partition(":")[0]
        package, extra = SCHEMES[scheme]
        raise MissingExtra(f"{url}: {scheme}:// needs {package} ({error}); pip install 'foreknow[{extra}]'") from None
    except Exception as error:
        # the stores' libraries share no class of errors
        text = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))[:200]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{url}: the local disk is full ({mirrors()}); free some space{note}") from error
        mendable = True
        if isinstance(error, FileNotFoundError):
            why = f"not found ({text}); check bucket and name"
        elif isinstance(error, (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)):
            why = f"refused ({text})"
        elif "Credential" in type(error).__name__:
            why = f"no credentials ({text}); set them as the store's own tools read them"
        else:
            mendable, why = False, f"the store cannot be reached ({text or type(error).__name__})"
        raise (refused if mendable and not note else ResourceError)(f"{url}: {why}{note}") from error


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL. The library finds credentials and endpoint itself."""
    import fsspec

    fs = fsspec.filesystem(url.partition(":")[0], use_listings_cache=False)
    if (loop := getattr(fs, "loop", None)) is not None:
        # asyncio would print a traceback for each broken connection, in addition to the error that the call raises
        loop.set_exception_handler(lambda _, context: logging.getLogger(__name__).debug("%s", context.get("message")))
    return fs


def is_local_only(name: str) -> bool:
    """Whether some part of a path is a name that is never uploaded."""
    return any(_LOCAL_ONLY.fullmatch(part) for part in name.split("/"))


class RemoteFolder:
    """One folder, or one file, of a store, and the local path that stands for it.

    `tokens`: of the locks under which this mirror was the one that wrote (`remote_lock.py`). `known` is kept in a
    journal, a line for each change, so that a kill loses none.
    """

    def __init__(self, root: Path):
        self.root = root
        self.url = str(url_of(root))
        self.base = self.url.partition("://")[2]
        self.fs = filesystem(self.url)
        name = hashlib.sha256(self.url.encode()).hexdigest()[:32]
        self.journal = mirrors() / ".journals" / f"{name}.jsonl"
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.known, self.tokens = _read_journal(self.journal)

    def at(self, rel: str) -> str:
        """The store's name for a file of the folder."""
        return f"{self.base}/{rel}" if rel else self.base

    def list_remote(self) -> dict[str, Any]:
        """The store's files, by path inside the folder (`""`: the URL is a file's). Locks are not listed."""
        files = {}
        for name, info in self.fs.find(self.base, detail=True).items():
            rel = name.lstrip("/")[len(self.base) :]
            if not name.endswith("/") and rel[:1] in ("", "/") and not is_local_only(rel[1:]):
                files[rel[1:]] = info
        if any(part in (".", "..") for rel in files for part in rel.split("/")):
            raise InputError(f"{self.url}: a name in it has a '.' or '..' part, which no folder here can have")
        return files

    def pull(self, listed: Mapping[str, Any], ours: bool, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Download changes until the mirror equals the store.

        `ours`: this mirror was the last writer of the store, so local files that are not yet uploaded are kept.
        """
        local = self._local_files()
        missing = []
        for rel, info in listed.items():
            known = self.known.get(rel)
            same = known is not None and known.size == info["size"] and known.stamp in (_stamp(info), None)
            same = same and (ours or (known is not None and known.stamp is not None))
            if rel not in local or not same or not (ours or local[rel] == known[:2]):  # type: ignore[index]
                missing.append(rel)
        for rel in local.keys() - listed.keys():
            if not ours or rel in self.known:
                (self.root / rel).unlink()
        for rel in self.known.keys() - listed.keys():
            self._record(rel, None)
        self._fetch({rel: listed[rel] for rel in missing if wanted(rel)})

    def _fetch(self, listed: Mapping[str, Any]) -> None:
        size = sum(info["size"] for info in listed.values())
        if size >= _LOG_FROM_BYTES:
            logger.info(
                f"{self.url}: fetching {len(listed):,} file{'s' if len(listed) > 1 else ''}, {size / 1e6:,.0f} MB"
            )
        with tempfile.TemporaryDirectory(dir=self.journal.parent) as part:
            arrived = [Path(part) / str(number) for number in range(len(listed))]
            if listed:
                self.fs.get([self.at(rel) for rel in listed], [str(file) for file in arrived])
            for file, (rel, info) in zip(arrived, listed.items(), strict=True):
                target = self.root / rel if rel else self.root
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
                about = target.stat()
                self._record(rel, Known(about.st_mtime_ns, about.st_size, _stamp(info)))

    def push(self) -> None:
        """Upload changes until the store equals the mirror."""
        local = self._local_files()
        changed = [rel for rel, now in local.items() if rel not in self.known or self.known[rel][:2] != now]
        for rel in sorted(changed, key=lambda rel: (local[rel], rel)):
            self.fs.put_file(str(self.root / rel if rel else self.root), self.at(rel))
            self._record(rel, Known(*local[rel], None))
        for rel in sorted(self.known.keys() - local.keys()):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.at(rel))
            self._record(rel, None)

    def compact_journal(self, token: str | None = None) -> None:
        """Rewrite the journal without old entries; with `token` (the last lock's), record the stamps of uploads."""
        if token is not None and any(known.stamp is None for known in self.known.values()):
            for rel, info in self.list_remote().items():
                known = self.known.get(rel)
                if known is not None and known.stamp is None and known.size == info["size"]:
                    self.known[rel] = known._replace(stamp=_stamp(info))
        lines: list[Any] = [token] if token else sorted(self.tokens)
        lines += [[rel, *known] for rel, known in self.known.items()]
        part = self.journal.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        part.replace(self.journal)

    def add_token(self, token: str) -> None:
        """Record a lock's token in the journal before the lock is taken."""
        self.tokens.add(token)
        self._append(token)

    def _record(self, rel: str, known: Known | None) -> None:
        if known is None:
            self.known.pop(rel, None)
        else:
            self.known[rel] = known
        self._append([rel, *(known or ())])

    def _append(self, line: Any) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _local_files(self) -> dict[str, tuple[int, int]]:
        """Modification time and size of the mirror's files, by path inside it."""
        if self.root.is_file():
            about = self.root.stat()
            return {"": (about.st_mtime_ns, about.st_size)}
        files = {}
        for folder, _, names in os.walk(self.root):
            inside = Path(folder).relative_to(self.root).as_posix()
            for name in names:
                rel = name if inside == "." else f"{inside}/{name}"
                if is_local_only(rel):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
                    about = (Path(folder) / name).stat()
                    files[rel] = (about.st_mtime_ns, about.st_size)
        return files


def _stamp(info: Mapping[str, Any]) -> str:
    """A version stamp of an object: it changes whenever the object does."""
    keys = ("ETag", "generation", "etag", "created")
    return next((str(info[key]) for key in keys if info.get(key)), "")


def _read_journal(path: Path) -> tuple[dict[str, Known], set[str]]:
    known: dict[str, Known] = {}
    tokens: set[str] = set()
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut short when the process was killed
        if isinstance(entry, str):
            tokens.add(entry)
        elif len(entry) == 1:
            known.pop(entry[0], None)
        else:
            known[entry[0]] = Known(*entry[1:])
    return known, tokens
