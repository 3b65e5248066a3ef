"""Run folders and data in object stores. All other code works on a mirror: a local copy in the user's cache.

    remote_paths.py    s3://bucket/run <-> the mirror's path
    remote_sync.py    downloads or uploads the files that differ between store and mirror
    remote_lock.py    allows one run at a time, on any machine

A run folder is downloaded when it is locked (`run_dir.lock_run_dir`). Each time one of its files has been written
(`run_dir.write_whole`), and at the end, the changes are uploaded. So the same command continues a killed run on another
machine. Input data is downloaded once, and again when the copy in the store has changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from foreknow.errors import ForeknowError, InputError, RunFolderError
from foreknow.io.remote_lock import Lease
from foreknow.io.remote_paths import mirrors, place, url_of
from foreknow.io.remote_sync import Known, RemoteFolder, is_local_only, store_errors

logger = logging.getLogger(__name__)

HELD: Final = "FOREKNOW_HELD"
"""Environment variable: the mirrors that this process or a parent process holds. Child processes must not sync them."""
_sessions: Final[dict[Path, _Session]] = {}


def download(name: str | Path, wanted: Callable[[str], bool] = lambda _: True, *, needed: bool = True) -> Path:
    """Return the local path of a file or folder. A URL is downloaded first; any other name is returned as a path.

    From a folder, only the files whose inner path is `wanted` are downloaded. With a file, its `.manifest.json` is
    downloaded too, if there is one. A mirror that a run on this machine holds is newer than the store: no sync.
    Raises InputError if the store has nothing there (unless `needed` is False), and `remote_sync.store_errors`.
    """
    path = place(name)
    url = url_of(path)
    if url is None or _is_held(path) or _is_locked_by_other_process(path):
        return path
    with store_errors(url):
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


@contextlib.contextmanager
def hold_remote(path: Path) -> Iterator[None]:
    """If `path` is a mirror, lock the folder in its store, download it, and upload what is written to it.

    The caller must hold the local lock of `path`. Raises RunFolderError if a run elsewhere holds the folder. If the
    store becomes unreachable, ResourceError names the mirror, from which the same command continues.
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
    """Create the parent folder of a path in a mirror. Object stores have no folders, so callers do not create them."""
    if path.is_absolute() and path.is_relative_to(mirrors()):
        path.parent.mkdir(parents=True, exist_ok=True)


def push_written(path: Path) -> None:
    """Upload a file or folder that was just written, if `path` is in a mirror."""
    if not path.is_absolute() or not path.is_relative_to(mirrors()):
        return
    if session := next((_sessions[root] for root in (path, *path.parents) if root in _sessions), None):
        session.push()
        return
    url = url_of(path)
    if url is None or _is_held(path) or _is_locked_by_other_process(path):
        return  # the process that holds it uploads it
    with store_errors(url, refused=RunFolderError):
        if is_local_only(path.relative_to(mirrors()).as_posix()):
            return
        mirror = RemoteFolder(path)
        mirror.known = {rel: Known(0, -1, None) for rel in mirror.list_remote()}
        if path.is_file() and not (manifest := path.with_name(f"{path.name}.manifest.json")).exists():
            other = RemoteFolder(
                manifest
            )  # a file without a manifest is unfinished: remove an old manifest from the store
            other.known = {rel: Known(0, -1, None) for rel in other.list_remote()}
            other.push()
        mirror.push()


class _Session:
    """A folder that this process has locked both locally and in the store."""

    def __init__(self, root: Path, url: str):
        self.root, self.url, self.lost = root, url, False
        self.note = f"; what is finished is kept in {root!s}, the same command goes on from there"

    def begin(self) -> None:
        with store_errors(self.url, refused=RunFolderError):
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
        self.lost = True  # until everything is uploaded
        with store_errors(self.url, note=self.note):
            self.lease.check()
            self.mirror.push()
        self.lost = False

    def end(self, failed: bool = False) -> None:
        """Upload what is left and release the lock. If the run has already failed, errors here are only logged."""
        if self.lost:
            self.lease.stop()
            return
        try:
            self.push()
            with store_errors(self.url, note=self.note):
                self.mirror.compact_journal(self.lease.token)
                self.lease.release()
        except ForeknowError as error:
            self.lease.stop()
            if not failed:
                raise
            logger.info(str(error))


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
