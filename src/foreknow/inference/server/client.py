"""Sends many requests at once to an OpenAI-compatible server, and retries each until it is answered or has failed.

    with RequestSession(Endpoint(url, model)) as session:
        for job, result in session.each(jobs, ask):   # `ask(job)` makes one request through `session.client`
            ...                                       # result: what `ask` returned, or a `RequestFailure`

    429, 408, 409, 425, 5xx, a timeout, a lost      retried after a pause that doubles, or as long as Retry-After
    connection, a reply that is not what was asked  says; after `retries` retries the result is a RequestFailure
    more requests than `per_minute`                 wait for their turn
    another 4xx                                     the result is a RequestFailure: this job cannot be answered
    401, 403, 404, 405, no server, no such name     InputError at once
    402, used-up quota, a wait of over 5 minutes,   ResourceError at once
    many jobs in a row that failed

The key comes from OPENAI_API_KEY and goes only into the request's header: foreknow never writes it into a message,
reply or file, not even where the server repeats it.
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
from foreknow.format.numbers import duration
from foreknow.io.quoting import printable

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

KEY: Final = "OPENAI_API_KEY"
LONGEST_PAUSE: Final = 60.0
"""The maximum number of seconds between two tries of a request, where the server sends no Retry-After."""
LONGEST_WAIT: Final = 300.0
"""The maximum number of seconds that a server may ask us to wait; the run stops where it asks for more."""
_TEMPORARY: Final = (408, 409, 425, 429)

J = TypeVar("J")
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """A server, a model, and limits for requests. Raises ConfigError for an invalid URL, or one that holds a secret.

    `timeout`: seconds without a byte from the server; `retries`: tries after the first; `backoff`: seconds before
    the second try, doubled for each further one; `concurrency`: requests at the same time; `per_minute`: the most
    requests started in a minute, evenly spaced (None: as fast as the server answers).
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
        if secret:  # messages usually name the URL; this one must not
            raise ConfigError(
                f"the endpoint's URL: found a user name, a password or something after ? or #; give the plain address "
                f"and put the key into the environment variable {KEY}"
            )
        if not good:
            raise ConfigError(f"{self.url}: not a server's address, expected one such as http://localhost:8000/v1")


class RequestFailure(NamedTuple):
    """Why a job got no answer. `passing`: the server failed temporarily, so that the job itself is not at fault."""

    reason: str
    passing: bool


class InvalidResponse(Exception):
    """The server answered 200 with a reply that does not fit the request."""


class _Retry(NamedTuple):
    """The request should be retried, after `after` seconds if the server sent Retry-After."""

    reason: str
    after: float | None = None


class RequestSession:
    """Sends requests to one endpoint. `requests` counts all that were sent, including retries.

    Raises MissingExtra where the package `openai` is not installed.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.requests = 0
        self._key = _key()
        self._lock = threading.Lock()
        self._working = 0
        self._ended = False
        self._answered = False
        self._not_before = 0.0
        self._next_slot = 0.0
        self.client = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._ended = True
        self._close()

    def each(self, jobs: Iterable[J], ask: Callable[[J], T]) -> Generator[tuple[J, T | RequestFailure], None, None]:
        """Yield each job with what `ask` returned for it, or a RequestFailure, in the order of completion.

        `ask` makes one request in a worker thread and must not catch errors of `openai`. At most `concurrency` jobs
        run at the same time; none starts once the generator is closed. Raises InputError and ResourceError as the
        top of this file says.
        """
        queue: SimpleQueue[J | None] = SimpleQueue()
        results: SimpleQueue[tuple[J, T | RequestFailure | Exception]] = SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while (job := queue.get()) is not None and not stop.is_set():
                try:
                    results.put((job, self._try_until_done(job, ask, stop)))
                except Exception as error:  # raised again by the caller's thread
                    results.put((job, error))
            self._close(1)

        workers = [threading.Thread(target=work, daemon=True) for _ in range(self.endpoint.concurrency)]
        self._working += len(workers)
        jobs = iter(jobs)
        under_way = failed = 0
        try:
            for worker in workers:
                worker.start()
            for job in islice(jobs, len(workers)):
                queue.put(job)
                under_way += 1
            while under_way:
                job, result = _next(results)
                under_way -= 1
                if isinstance(result, Exception):
                    raise result
                failed = (
                    failed + 1 if isinstance(result, RequestFailure) and (result.passing or not self._answered) else 0
                )
                if isinstance(result, RequestFailure) and failed >= max(8, 2 * len(workers)):
                    raise ResourceError(
                        f"{self.endpoint.url}: {failed} requests in a row failed for good; the last: {result.reason}.\n"
                        "What was answered is kept; the same command goes on from here"
                    )
                for job_next in islice(jobs, 1):
                    queue.put(job_next)
                    under_way += 1
                yield job, result
        finally:
            stop.set()
            for _ in workers:
                queue.put(None)
            if not under_way:
                for worker in workers:
                    worker.join()

    def format_text(self, text: object, most: int = 200) -> str:
        """Format a server's text for a message: one line, printable, without the key."""
        line = " ".join(self.without_key(str(text)).split())
        line = printable(line)
        return line if len(line) <= most else f"{line[: most - 3]}..."

    def without_key(self, text: str) -> str:
        """Replace the key in a text by [key]. A key under 8 characters is a placeholder and is left in."""
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
        # the client requires a key even where the server needs none
        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.endpoint.url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(timeout=patience, event_hooks={"request": [self._count]}),
            timeout=patience,
        )

    def _close(self, left: int = 0) -> None:
        """Close the connections once the session has ended and no worker remains; `left`: workers that just ended."""
        with self._lock:
            self._working -= left
            if not self._ended or self._working:
                return
        self.client.close()

    def _count(self, request: object) -> None:  # noqa: ARG002
        with self._lock:
            self.requests += 1

    def _try_until_done(self, job: J, ask: Callable[[J], T], stop: threading.Event) -> T | RequestFailure:
        """Try one job until it is answered, its retries are used up, or the caller stops."""
        retries = 0
        while not stop.wait(max(self._not_before - time.monotonic(), 0.0)):
            if stop.wait(self._reserve_slot()):
                break
            try:
                answer = ask(job)
            except Exception as error:
                verdict = self._classify_error(error)
                if isinstance(verdict, RequestFailure):
                    return verdict
                if retries >= self.endpoint.retries:
                    return RequestFailure(verdict.reason, passing=True)
                if verdict.after is not None:  # a Retry-After applies to all workers
                    self._not_before = max(self._not_before, time.monotonic() + verdict.after)
                else:
                    stop.wait(min(self.endpoint.backoff * 2**retries, LONGEST_PAUSE) * random.uniform(0.75, 1.0))
                retries += 1
            else:
                self._answered = True
                return answer
        return RequestFailure("stopped", passing=True)

    def _reserve_slot(self) -> float:
        """Reserve the next time slot under `per_minute` and return the seconds until it."""
        if self.endpoint.per_minute is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            turn = max(self._next_slot, now)
            self._next_slot = turn + 60.0 / self.endpoint.per_minute
        return turn - now

    def _classify_error(self, error: Exception) -> _Retry | RequestFailure:
        """Decide whether an error's job is retried or has failed. Raises where the error ends the run."""
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._classify_status(error)
        if isinstance(error, openai.APIConnectionError):
            kind = type(error.__cause__).__name__
            if not self._answered and kind in ("ConnectError", "ConnectTimeout"):
                text = self.format_text(error.__cause__ or error) or "no connection in time"
                raise InputError(
                    f"{self.endpoint.url}: no server answers there ({text}). Check the address, and that it runs"
                ) from None
            if isinstance(error, openai.APITimeoutError):
                return _Retry(f"no answer within {self.endpoint.timeout:g} s")
            return _Retry(f"the connection was lost ({self.format_text(error.__cause__ or error)})")
        if isinstance(error, InvalidResponse):
            return _Retry(self.format_text(error))
        raise error

    def _classify_status(self, error: APIStatusError) -> _Retry | RequestFailure:
        status, url = error.status_code, self.endpoint.url
        text = self.format_text(error_text(error))
        if status in (401, 403):
            what = f"the key in {KEY} was refused" if self._key else f"a key is wanted; put yours into {KEY}"
            raise InputError(f"{url}: {what} ({status}: {text})") from None
        if status in (404, 405):
            raise self._not_found_error(status, text) from None
        if status == 402 or error.code == "insufficient_quota":
            raise ResourceError(
                f"{url}: the quota is used up ({status}: {text}); what was answered is kept, the same command goes on"
            ) from None
        if status in _TEMPORARY or status >= 500:
            after = _retry_after(error.response.headers.get("retry-after"))
            if after is not None and after > LONGEST_WAIT:
                raise ResourceError(
                    f"{url}: asks us to wait {duration(after)} ({status}: {text}); what was answered is kept, run the "
                    "same command then"
                ) from None
            return _Retry(f"{status}: {text}", after)
        return RequestFailure(f"{status}: {text}", passing=False)

    def _not_found_error(self, status: int, text: str) -> ForeknowError:
        """Return the error for a 404: the list of models shows whether the address or the model is wrong."""
        url, model = self.endpoint.url, self.endpoint.model
        try:
            names = [str(listed.id) for listed in self.client.models.list().data]
        except Exception:  # the server has no list of models
            names = []
        if names and model not in names:
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            return InputError(f"{url}: no model {model!r} ({status}: {text}). It has {', '.join(names[:8])}{rest}")
        if not names and "model" in text.lower():
            return InputError(f"{url}: no model {model!r} ({status}: {text}). Check the model's name")
        return InputError(f"{url}: nothing to ask there ({status}: {text}). Check the address; most end in /v1")


def _next(done: SimpleQueue[T]) -> T:
    """Wait for the next result. Wakes up regularly, as some systems do not interrupt a blocking wait for Ctrl-C."""
    while True:
        with contextlib.suppress(Empty):
            return done.get(timeout=0.2)


def error_text(error: APIStatusError) -> str:
    """Return the server's error message, whichever field holds it."""
    body = error.body
    if isinstance(body, dict):
        message = body.get("message") or body.get("detail") or body.get("error") or body
        return message if isinstance(message, str) else json.dumps(message, default=str)
    text = str(body or error.response.reason_phrase or "no reason given")
    return error.response.reason_phrase if text.lstrip().startswith("<") else text


def _key() -> str:
    """Return the key from the environment; "" if none is set."""
    key = os.environ.get(KEY, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{KEY}: holds characters that no key has (a blank, a line break, an accent); set it again")
    return key


def _retry_after(header: str | None) -> float | None:
    """Return seconds to wait, from a Retry-After header: a number or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
