"""Lock a folder of an object store so that one run at a time writes to it, from any machine.

A lock is an object `.lock-N`, and the highest N counts. To take the folder, a run creates the next number; the store
lets only one run do so (`If-None-Match: *` on S3, `ifGenerationMatch=0` on Google's). The holder rewrites its lock
every BEAT seconds (the heartbeat). Another run may create the next number once a lock has been released, or has had no
heartbeat for STALE seconds. The last lock stays in the folder, and tells which run wrote there last.

Clocks: a heartbeat's age is this machine's time minus the store's, so both must agree to within a minute or two (S3
refuses requests that are 15 minutes off). A holder whose lock was taken over sees the next number before it writes
again, and stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from foreknow.errors import ForeknowError, RunFolderError
from foreknow.format.numbers import duration
from foreknow.io.remote_sync import RemoteFolder, store_errors

logger = logging.getLogger(__name__)

BEAT: Final = 20.0
STALE: Final = 180.0
_LOCK = re.compile(r"\.lock-(\d+)")


class Lease:
    """The lock on a mirror's folder in the store, once `take` has taken it."""

    def __init__(self, mirror: RemoteFolder):
        self.mirror = mirror
        self.token = secrets.token_hex(8)
        self.number = 0
        self.taken_over = False
        self._confirmed = 0.0
        self._store_lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat_loop, daemon=True)

    def take(self) -> bool:
        """Take the lock; return whether this mirror held the last one. Raises RunFolderError if another run holds it.

        The caller holds the mirror's local lock, so a lock of this mirror in the store is left over from a dead run.
        """
        fs, url = self.mirror.fs, self.mirror.url
        last = self._last_number()
        holder = self._read_lock(last) if last else {}
        ours = bool(holder) and holder.get("token") in self.mirror.tokens
        if holder.get("held") and not ours:
            self._refuse_live_holder(last, holder)
        self.mirror.add_token(self.token)
        self.number = last + 1
        try:
            fs.pipe_file(self._name(self.number), self._content(True), mode="create")
        except FileExistsError:
            self.taken_over = True
        else:
            self._confirm()  # a store that ignores such conditions lets two runs in: one of them may notice it here
        if self.taken_over:
            raise RunFolderError(f"{url}: held by another run, which was a moment earlier; wait for it to end")
        self._confirmed = time.monotonic()
        for number in range(max(1, last - 1), last + 1):
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(self._name(number))
        self._thread.start()
        return ours

    def was_ours(self) -> bool:
        """Whether this mirror held the last lock in the store: then the local files are at least as new."""
        last = self._last_number()
        return bool(last) and self._read_lock(last).get("token") in self.mirror.tokens

    def check(self) -> None:
        """Raise RunFolderError if another run has taken the folder. Asks the store unless it was asked recently."""
        if not self.taken_over and time.monotonic() - self._confirmed > STALE / 2:
            self._heartbeat()
        if self.taken_over:
            raise RunFolderError(
                f"{self.mirror.url}: another run has taken the folder over, as if this one were dead; this one stops"
            )

    def release(self) -> None:
        """Stop the heartbeat and mark the lock as free."""
        self.stop()
        with self._store_lock:
            if self.number and not self.taken_over:
                self.mirror.fs.pipe_file(self._name(self.number), self._content(False))

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._stopped.set()

    def _name(self, number: int) -> str:
        return self.mirror.at(f".lock-{number}")

    def _content(self, held: bool) -> bytes:
        content = {"held": held, "token": self.token, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps(content).encode()

    def _last_number(self) -> int:
        try:
            names = self.mirror.fs.ls(self.mirror.base, detail=False)
        except FileNotFoundError:  # the folder is empty; if the bucket is missing, the next write fails
            return 0
        matches = (_LOCK.fullmatch(str(name).rpartition("/")[2]) for name in names)
        return max((int(match[1]) for match in matches if match), default=0)

    def _read_lock(self, number: int) -> dict[str, Any]:
        try:
            content = json.loads(self.mirror.fs.cat_file(self._name(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _refuse_live_holder(self, number: int, holder: dict[str, Any]) -> None:
        age = (datetime.now(UTC) - self.mirror.fs.modified(self._name(number))).total_seconds()
        who = f"process {holder.get('pid')} on {holder.get('host')}, last sign of life {duration(max(age, 0.0))} ago"
        if age < STALE:
            raise RunFolderError(
                f"{self.mirror.url}: held by another run ({who}); wait for it to end, or choose another --out. If it "
                f"was killed, the same command takes over {duration(STALE)} after that sign"
            )
        logger.info(f"{self.mirror.url}: taking over from a run that gave no sign of life for {duration(age)} ({who})")

    def _heartbeat_loop(self) -> None:
        while not self._stopped.wait(BEAT) and not self.taken_over:
            # if the store is unreachable, the run fails at its next write
            with contextlib.suppress(ForeknowError), store_errors(self.mirror.url):
                self._heartbeat()

    def _heartbeat(self) -> None:
        with self._store_lock:
            self._confirm()
            if not self.taken_over and not self._stopped.is_set():
                self.mirror.fs.pipe_file(self._name(self.number), self._content(True))
                self._confirmed = time.monotonic()

    def _confirm(self) -> None:
        """Whether the lock is still ours: no next number, and our own token in it."""
        gone = self._read_lock(self.number).get("token") != self.token
        self.taken_over = gone or bool(self.mirror.fs.exists(self._name(self.number + 1)))
