"""Any OpenAI-compatible server: many requests at once, each until it is answered or known not to be.

    with Session(Endpoint(url, model)) as session:
        for job, found in session.each(jobs, ask):    # `ask(job)` makes one request through `session.client`
            ...                                        # found: what `ask` returned, or a `RequestFailure`

    429, 408, 409, 425, 5xx, a timeout, a lost      asked again after a pause that doubles, or as long as Retry-After
    connection, a reply that is not what was asked  says; after `retries` of them the job's result is a Fault
    more requests than `per_minute`                 wait for their turn
    another 4xx                                     the job's result is a Fault: this one cannot be answered
    401, 403, 404, 405, no server, no such name     InputError at once
    402, used-up quota, a wait of over 5 minutes,   ResourceError at once
    many jobs in a row that failed

The key comes from OPENAI_API_KEY and goes nowhere but into the request's header: no message, reply or file of
ours holds it, not even where the server says it back.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from foreknow.errors import ConfigError, ForeknowError, InputError, MissingExtra, ResourceError
from foreknow.io.quoting import printable
from foreknow.progress import duration

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

KEY: Final = "OPENAI_API_KEY"
LONGEST_PAUSE: Final = 60.0
"""Seconds between two tries of a request, where the server does not name a time."""
LONGEST_WAIT: Final = 300.0
"""Seconds a server may tell us to wait; if it wants more, the run stops."""
_PASSING: Final = (408, 409, 425, 429)

J = TypeVar("J")
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how patiently. Raises ConfigError for a URL that cannot be one, or that holds a secret.

    `timeout`: seconds without a byte from the server; `retries`: tries after the first; `backoff`: seconds
    before the second try, doubled for each one more; `concurrency`: requests under way at once; `per_minute`:
    requests begun in a minute at most, evenly spaced (None: as fast as the server answers).
    """

    url: str
    model: str
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4
    backoff: float = 1.0
    per_minute: float | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            secret = bool(parts.username or parts.password or parts.query or parts.fragment)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            secret, good = False, False
        if secret:  # the URL is shown in messages, so it is not shown here
            raise ConfigError(
                f"the endpoint's URL: found a user name, a password or something after ? or #; give the plain address "
                f"and put the key into the environment variable {KEY}"
            )
        if not good:
            raise ConfigError(f"{self.url}: not a server's address, expected one such as http://localhost:8000/v1")


class RequestFailure(NamedTuple):
    """Why a job got no answer. `passing`: the server's trouble, not the job's."""

    reason: str
    passing: bool


class InvalidResponse(Exception):
    """The server answered 200 with something that is not what was asked for."""


class _Again(NamedTuple):
    """Try once more, `after` so many seconds if the server said so."""

    reason: str
    after: float | None = None


class RequestSession:
    """Requests to one endpoint. `requests` counts all that were sent, retries too.

    Raises MissingExtra where the package `openai` is not installed.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.requests = 0
        self._key = _key()
        self._lock = threading.Lock()
        self._working = 0
        self._ended = False
        self._heard = False
        self._not_before = 0.0
        self._turn = 0.0
        self.client = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._ended = True
        self._close()

    def each(self, jobs: Iterable[J], ask: Callable[[J], T]) -> Generator[tuple[J, T | RequestFailure], None, None]:
        """What `ask` returns for every job, or a Fault, in the order in which they are finished.

        `ask` makes one request, in a thread of ours, and lets errors of `openai` pass. Never more than
        `concurrency` jobs are under way; none is begun once the generator is closed. Raises InputError and
        ResourceError as the top of this file says.
        """
        todo: SimpleQueue[J | None] = SimpleQueue()
        done: SimpleQueue[tuple[J, T | RequestFailure | Exception]] = SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while (job := todo.get()) is not None and not stop.is_set():
                try:
                    done.put((job, self._persist(job, ask, stop)))
                except Exception as error:  # raised again by the caller's thread
                    done.put((job, error))
            self._close(1)

        workers = [threading.Thread(target=work, daemon=True) for _ in range(self.endpoint.concurrency)]
        self._working += len(workers)
        jobs = iter(jobs)
        under_way = failed = 0
        try:
            for worker in workers:
                worker.start()
            for job in islice(jobs, len(workers)):
                todo.put(job)
                under_way += 1
            while under_way:
                job, found = _next(done)
                under_way -= 1
                if isinstance(found, Exception):
                    raise found
                failed = failed + 1 if isinstance(found, RequestFailure) and (found.passing or not self._heard) else 0
                if isinstance(found, RequestFailure) and failed >= max(8, 2 * len(workers)):
                    raise ResourceError(
                        f"{self.endpoint.url}: {failed} requests in a row failed for good; the last: {found.reason}.\n"
                        "What was answered is kept; the same command goes on from here"
                    )
                for job_next in islice(jobs, 1):
                    todo.put(job_next)
                    under_way += 1
                yield job, found
        finally:
            stop.set()
            for _ in workers:
                todo.put(None)
            if not under_way:
                for worker in workers:
                    worker.join()

    def shown(self, text: object, most: int = 200) -> str:
        """A server's words fit for a message: one line, printable, without the key."""
        line = " ".join(self.without_key(str(text)).split())
        line = printable(line)
        return line if len(line) <= most else f"{line[: most - 3]}..."

    def without_key(self, text: str) -> str:
        """The text with the key, should it stand there, struck out. Under 8 characters it is a placeholder."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _connect(self) -> OpenAI:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"Asking an endpoint needs the package {error.name}, which is not installed.\n"
                "Install it with: pip install 'foreknow[openai]'"
            ) from error
        patience = openai.Timeout(self.endpoint.timeout, connect=min(self.endpoint.timeout, 10.0))
        # a server that needs no key gets a word in its place: the client insists on one
        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.endpoint.url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(timeout=patience, event_hooks={"request": [self._count]}),
            timeout=patience,
        )

    def _close(self, left: int = 0) -> None:
        """Close the connections once the session has ended and no worker, `left` more aside, has a request."""
        with self._lock:
            self._working -= left
            if not self._ended or self._working:
                return
        self.client.close()

    def _count(self, request: object) -> None:  # noqa: ARG002
        with self._lock:
            self.requests += 1

    def _persist(self, job: J, ask: Callable[[J], T], stop: threading.Event) -> T | RequestFailure:
        """One job until it is answered, its retries are used up, or the caller stops."""
        tried = 0
        while not stop.wait(max(self._not_before - time.monotonic(), 0.0)):
            if stop.wait(self._until_turn()):
                break
            try:
                answer = ask(job)
            except Exception as error:
                verdict = self._judge(error)
                if isinstance(verdict, RequestFailure):
                    return verdict
                if tried >= self.endpoint.retries:
                    return RequestFailure(verdict.reason, passing=True)
                if verdict.after is not None:  # the server said so to all of us
                    self._not_before = max(self._not_before, time.monotonic() + verdict.after)
                else:
                    stop.wait(min(self.endpoint.backoff * 2**tried, LONGEST_PAUSE) * random.uniform(0.75, 1.0))
                tried += 1
            else:
                self._heard = True
                return answer
        return RequestFailure("stopped", passing=True)

    def _until_turn(self) -> float:
        """Seconds until this request may begin; takes its place in the row."""
        if self.endpoint.per_minute is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            turn = max(self._turn, now)
            self._turn = turn + 60.0 / self.endpoint.per_minute
        return turn - now

    def _judge(self, error: Exception) -> _Again | RequestFailure:
        """What an error means for its job. Raises where it means the end of the run."""
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._judge_status(error)
        if isinstance(error, openai.APIConnectionError):
            kind = type(error.__cause__).__name__
            if not self._heard and kind in ("ConnectError", "ConnectTimeout"):
                told = self.shown(error.__cause__ or error) or "no connection in time"
                raise InputError(
                    f"{self.endpoint.url}: no server answers there ({told}). Check the address, and that it runs"
                ) from None
            if isinstance(error, openai.APITimeoutError):
                return _Again(f"no answer within {self.endpoint.timeout:g} s")
            return _Again(f"the connection was lost ({self.shown(error.__cause__ or error)})")
        if isinstance(error, InvalidResponse):
            return _Again(self.shown(error))
        raise error

    def _judge_status(self, error: APIStatusError) -> _Again | RequestFailure:
        status, url = error.status_code, self.endpoint.url
        told = self.shown(error_text(error))
        if status in (401, 403):
            what = f"the key in {KEY} was refused" if self._key else f"a key is wanted; put yours into {KEY}"
            raise InputError(f"{url}: {what} ({status}: {told})") from None
        if status in (404, 405):
            raise self._not_found(status, told) from None
        if status == 402 or error.code == "insufficient_quota":
            raise ResourceError(
                f"{url}: the quota is used up ({status}: {told}); what was answered is kept, the same command goes on"
            ) from None
        if status in _PASSING or status >= 500:
            after = _retry_after(error.response.headers.get("retry-after"))
            if after is not None and after > LONGEST_WAIT:
                raise ResourceError(
                    f"{url}: asks us to wait {duration(after)} ({status}: {told}); what was answered is kept, run the "
                    "same command then"
                ) from None
            return _Again(f"{status}: {told}", after)
        return RequestFailure(f"{status}: {told}", passing=False)

    def _not_found(self, status: int, told: str) -> ForeknowError:
        """A 404 is a wrong address or a wrong model: the list of models tells which."""
        url, model = self.endpoint.url, self.endpoint.model
        try:
            names = [str(listed.id) for listed in self.client.models.list().data]
        except Exception:  # whatever it is, there is no list
            names = []
        if names and model not in names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            return InputError(f"{url}: no model {model!r} ({status}: {told}). It has {', '.join(names[:8])}{more}")
        if not names and "model" in told.lower():
            return InputError(f"{url}: no model {model!r} ({status}: {told}). Check the model's name")
        return InputError(f"{url}: nothing to ask there ({status}: {told}). Check the address; most end in /v1")


def _next(done: SimpleQueue[T]) -> T:
    """The next result. It wakes up now and then: not every system breaks off a wait for Ctrl-C."""
    while True:
        with contextlib.suppress(Empty):
            return done.get(timeout=0.2)


def error_text(error: APIStatusError) -> str:
    """What the server said went wrong, however it spells it."""
    body = error.body
    if isinstance(body, dict):
        told = body.get("message") or body.get("detail") or body.get("error") or body
        return told if isinstance(told, str) else json.dumps(told, default=str)
    text = str(body or error.response.reason_phrase or "no reason given")
    return error.response.reason_phrase if text.lstrip().startswith("<") else text


def _key() -> str:
    """The key in the environment, "" for none."""
    key = os.environ.get(KEY, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{KEY}: holds characters that no key has (a blank, a line break, an accent); set it again")
    return key


def _retry_after(told: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header: a number or a date."""
    if told is None:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
