"""Run folders and data in object stores: everything else works on a mirror, a local folder in the user's cache.

    remote_paths.py    s3://bucket/run <-> the mirror's path
    remote_sync.py    what differs between store and mirror, fetched or put
    remote_lock.py    one run at a time, wherever it runs

A run folder is downloaded when it is locked (`run_dir.lock_run_dir`); whenever a file of it is written whole
(`run_dir.write_whole`), and at the end, the store is made what the mirror is. So a run
that was killed on one machine goes on by the same command on another. What is only read is downloaded once, and again
when the store's copy has changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from foreknow.errors import ForeknowError, InputError, RunFolderError
from foreknow.io.remote_lock import Lease
from foreknow.io.remote_paths import mirrors, place, url_of
from foreknow.io.remote_sync import Known, RemoteFolder, is_local_only, store_errors
from foreknow.progress import say

HELD: Final = "FOREKNOW_HELD"
"""Environment: the mirrors that this process, or one it comes from, holds. Its children leave all talking to it."""
_sessions: Final[dict[Path, _Session]] = {}


def download(name: str | Path, wanted: Callable[[str], bool] = lambda _: True, *, needed: bool = True) -> Path:
    """The file or folder that a name stands for, here: fetched where it is a URL, any other name as it is.

    Of a folder only the files whose path inside it is `wanted` are fetched. Beside a file its `.manifest.json` is
    fetched too, if it has one. A mirror that a run on this machine holds is newer than the store and stays as it is.
    Raises InputError where nothing is found (unless not `needed`), and the errors of `remote_sync.talking`.
    """
    path = place(name)
    url = url_of(path)
    if url is None or _is_held(path) or _is_locked_by_other_process(path):
        return path
    with talking_of(url):
        mirror = RemoteFolder(path)
        with FileLock(f"{mirror.journal}.lock"):
            listed = mirror.list_remote()
            if not listed and needed:
                raise InputError(f"{url}: no such file or folder in the store")
            if "" in listed or not listed:
                mirror.pull(listed, ours=False)
                beside = RemoteFolder(path.with_name(f"{path.name}.manifest.json"))
                beside.pull(beside.list_remote(), ours=False)
            else:
                mirror.pull(listed, Lease(mirror).was_ours(), wanted)
    return path


def download_folder(url: str) -> Path:
    """A folder of a store, here: a model's, a run's. Raises InputError where it is a file, or nothing."""
    path = download(url)
    if not path.is_dir():
        raise InputError(f"{url}: is a file, expected a folder")
    return path


@contextlib.contextmanager
def hold_remote(path: Path) -> Iterator[None]:
    """Hold what `path` mirrors, if anything: fetched, locked in the store, put there as it is written.

    The caller holds `path` itself. Raises RunFolderError where a run elsewhere has it. Where the store is lost in the
    middle, ResourceError tells where the mirror is; the same command goes on from it.
    """
    url = url_of(path)
    if url is None or _is_held(path) or _is_locked_by_other_process(path.parent):
        yield
        return
    before = os.environ.get(HELD)
    session = _Session(path, url)
    _sessions[path] = session
    os.environ[HELD] = os.pathsep.join(filter(None, (before, str(path))))
    try:
        session.begin()
        try:
            yield
        except BaseException:
            session.end(failed=True)
            raise
        session.end()
    finally:
        del _sessions[path]
        if before is None:
            del os.environ[HELD]
        else:
            os.environ[HELD] = before


def make_mirror_parent(path: Path) -> None:
    """Make the folder around a mirror's path: a store knows no folders, so that none has to be made there first."""
    if path.is_absolute() and path.is_relative_to(mirrors()):
        path.parent.mkdir(parents=True, exist_ok=True)


def push_written(path: Path) -> None:
    """A file or folder was written whole at `path`: where that is a mirror's, the store gets it."""
    if not path.is_absolute() or not path.is_relative_to(mirrors()):
        return
    if session := next((_sessions[root] for root in (path, *path.parents) if root in _sessions), None):
        session.push()
        return
    url = url_of(path)
    if url is None or _is_held(path) or _is_locked_by_other_process(path):
        return  # whoever holds it puts it
    with talking_of(url, RunFolderError):
        if is_local_only(path.relative_to(mirrors()).as_posix()):
            return
        mirror = RemoteFolder(path)
        mirror.known = {rel: Known(0, -1, None) for rel in mirror.list_remote()}
        if path.is_file() and not (manifest := path.with_name(f"{path.name}.manifest.json")).exists():
            other = RemoteFolder(manifest)  # a file without a manifest is not finished; nor must it have an old one
            other.known = {rel: Known(0, -1, None) for rel in other.list_remote()}
            other.push()
        mirror.push()


class _Session:
    """A folder held here and in the store."""

    def __init__(self, root: Path, url: str):
        self.root, self.url, self.lost = root, url, False
        self.kept = f"; what is finished is kept in {root!s}, the same command goes on from there"

    def begin(self) -> None:
        with talking_of(self.url, RunFolderError):
            self.mirror = RemoteFolder(self.root)
            self.lease = Lease(self.mirror)
            listed = self.mirror.list_remote()
            if "" in listed:
                raise RunFolderError(f"{self.url}: is a file, expected a folder (--out)")
            ours = self.lease.take()
            try:
                self.mirror.pull(self.mirror.list_remote() if listed else listed, ours)
                self.mirror.compact_journal()
            except BaseException:
                self.lease.release()
                raise

    def push(self) -> None:
        self.lost = True  # until all of it is there
        with talking_of(self.url, kept=self.kept):
            self.lease.check()
            self.mirror.push()
        self.lost = False

    def end(self, failed: bool = False) -> None:
        """Put what is left and let go; where the run has failed already, a failure here is only said."""
        if self.lost:
            self.lease.stop()
            return
        try:
            self.push()
            with talking_of(self.url, kept=self.kept):
                self.mirror.compact_journal(self.lease.token)
                self.lease.release()
        except ForeknowError as error:
            self.lease.stop()
            if not failed:
                raise
            say(str(error))


def talking_of(
    url: str, refused: type[InputError | RunFolderError] = InputError, kept: str = ""
) -> contextlib.AbstractContextManager[None]:
    """`remote_sync.talking`, imported when it is needed."""
    return store_errors(url, kept, refused)


def _is_held(path: Path) -> bool:
    roots = [Path(root) for root in os.environ.get(HELD, "").split(os.pathsep) if root]
    return any(path.is_relative_to(root) for root in roots)


def _is_locked_by_other_process(path: Path) -> bool:
    """Whether another process on this machine holds the mirror, or one around it."""
    for folder in (path, *path.parents):
        if folder == mirrors():
            return False
        if (folder / ".lock").is_file():
            lock = FileLock(str(folder / ".lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                return True
            lock.release()
    return False
