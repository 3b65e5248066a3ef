"""Completions: one request of an OpenAI-compatible server, and the log-probabilities read off its reply.

    prompt_logprobs, return_tokens_as_token_ids    vLLM: tokens told by id, at prompt positions too
    echo, logprobs                                 the older form: tokens told by text, or by token_id:N
    logprobs.content                               llama.cpp's own server: tokens told by id and text

Nothing here knows a tokenizer: a token is what the server calls it (`Name`).
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple, TypeVar

from foreknow.errors import ResourceError
from foreknow.inference.server.client import InvalidResponse, RequestFailure, RequestSession

Name = int | str
"""A token as the server tells it: its id, or a text."""
Top = tuple[tuple[Name, float], ...]
"""The likeliest tokens at a position with their log-probabilities (temperature 1, the whole vocabulary)."""
Asked = str | tuple[int, ...]
"""A prompt as it is sent: as text, or as token ids."""

BY_ID: Final = {"return_tokens_as_token_ids": True}
"""Asks vLLM to tell tokens by id."""
_ID: Final = "token_id:"

R = TypeVar("R")


class CompletionChoice(NamedTuple):
    """One answer. `tokens`, `tops`: those of the answer, behind those of the prompt where it is echoed.

    `prompt_tops`: at each prompt position what was likely there (vLLM); None where nothing is told. `finish`: why
    it ended.
    """

    text: str
    finish: str | None
    tokens: tuple[Name, ...]
    tops: tuple[Top | None, ...]
    prompt_tops: tuple[Top | None, ...] | None


class Completion(NamedTuple):
    """A reply: its choices in order, and the tokens it counts, where it counts them."""

    choices: tuple[CompletionChoice, ...]
    prompt_tokens: int | None
    completion_tokens: int | None


class Used(NamedTuple):
    """What was asked for so far: requests with their retries, tokens as the server counts them."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class CompletionRefusal(NamedTuple):
    """The server does not take a request of this form."""

    reason: str


class Completions:
    """Asks one server for completions, many at once, and counts what they cost."""

    def __init__(self, session: RequestSession):
        self.session = session
        self._lock = threading.Lock()
        self._tokens = [0, 0]

    @property
    def used(self) -> Used:
        """The requests and tokens so far."""
        return Used(self.session.requests, *self._tokens)

    def ask(self, prompts: Sequence[Asked], *, n: int = 1, **options: Any) -> Completion:
        """One request: `n` choices for each prompt. Lets errors of `openai` and OddReply pass.

        One prompt is sent bare: not every server takes a list of them.
        """
        sent = [p if isinstance(p, str) else list(p) for p in prompts]
        raw = self.session.client.completions.with_raw_response.create(
            model=self.session.endpoint.model,
            prompt=sent if len(sent) > 1 else sent[0],  # type: ignore[arg-type]
            extra_body={**options, **({"n": n} if n > 1 else {})},
        )
        found = completion_of(raw.http_response.content, len(prompts) * n)
        with self._lock:
            self._tokens[0] += found.prompt_tokens or 0
            self._tokens[1] += found.completion_tokens or 0
        return found

    def each(
        self, jobs: Sequence[tuple[Sequence[Asked], dict[str, Any]]], read: Callable[[int, Completion], R]
    ) -> list[R]:
        """What `read` makes of the reply to each (prompts, options), given the job's number; in order.

        A reply for which `read` raises OddReply is asked for again. Raises ResourceError where one cannot be had.
        """
        found: dict[int, R] = {}
        work = self.session.each(enumerate(jobs), lambda job: read(job[0], self.ask(job[1][0], **job[1][1])))
        with closing(work) as arriving:
            for (number, _), reply in arriving:
                if isinstance(reply, RequestFailure):
                    raise ResourceError(
                        f"{self.session.endpoint.url}: a request got no answer: {reply.reason}.\n"
                        "What is finished is kept; the same command goes on from there"
                    )
                found[number] = reply
        return [found[number] for number in range(len(jobs))]

    def one(self, prompts: Sequence[Asked], **options: Any) -> Completion:
        """One request, with retries. Raises ResourceError where it cannot be had."""
        return self.each([(prompts, options)], lambda _, reply: reply)[0]

    def attempt(self, prompts: Sequence[Asked], **options: Any) -> Completion | CompletionRefusal:
        """A request of a form that the server may not know: 400, 422, or 500 twice, mean that it does not."""
        import openai

        failed = 0

        def ask(_: int) -> Completion | CompletionRefusal:
            nonlocal failed
            try:
                return self.ask(prompts, **options)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return CompletionRefusal(self.session.shown(error))
            except openai.InternalServerError as error:
                failed += 1
                if failed < 2 or error.status_code not in (500, 501):
                    raise
                return CompletionRefusal(self.session.shown(error))
            except InvalidResponse as error:
                failed += 1
                if failed < 2:
                    raise
                return CompletionRefusal(str(error))

        with closing(self.session.each([0], ask)) as arriving:
            found = next(arriving)[1]
        if isinstance(found, RequestFailure):
            raise ResourceError(f"{self.session.endpoint.url}: a request got no answer: {found.reason}")
        return found


def completion_of(body: bytes, choices: int) -> Completion:
    """A completion's body, which must hold so many choices. Raises OddReply for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidResponse("the server's reply is not JSON") from None
    listed = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidResponse("the server's reply has no choices")
    if len(listed) != choices:
        raise InvalidResponse(f"the server's reply has {len(listed)} choices, expected {choices}")
    numbers = [one.get("index") for one in listed]
    if sorted(n for n in numbers if isinstance(n, int)) == list(range(choices)):
        listed = sorted(listed, key=lambda one: one["index"])
    usage = found.get("usage")
    return Completion(
        tuple(_choice(one) for one in listed), _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    )


def _choice(one: dict[str, Any]) -> CompletionChoice:
    text, finish = one.get("text"), one.get("finish_reason")
    if not isinstance(text, str):
        raise InvalidResponse("the server's reply has a choice without text")
    tokens, tops = _listing(one.get("logprobs"))
    prompt = one.get("prompt_logprobs")
    if prompt is not None and not isinstance(prompt, list):
        raise InvalidResponse("the server's reply has prompt_logprobs that are no list")
    prompt_tops = None if prompt is None else tuple(None if at is None else _by_id(at) for at in prompt)
    return CompletionChoice(text, finish if isinstance(finish, str) else None, tokens, tops, prompt_tops)


def _listing(told: object) -> tuple[tuple[Name, ...], tuple[Top | None, ...]]:
    """The tokens of a choice and what was likely at each; nothing where the server tells nothing."""
    if told is None:
        return (), ()
    if isinstance(told, dict) and isinstance(told.get("content"), list):
        spots = told["content"]
        tokens = tuple(_named(spot) for spot in spots)
        return tokens, tuple(tuple((_named(t), _number(t)) for t in _list(spot, "top_logprobs")) for spot in spots)
    if not isinstance(told, dict) or not isinstance(told.get("tokens"), list):
        raise InvalidResponse("the server's reply has logprobs of an unknown form")
    tokens = tuple(_name(token) for token in told["tokens"])
    tops = told.get("top_logprobs")
    if tops is None:
        return tokens, ()
    if not isinstance(tops, list) or len(tops) != len(tokens):
        raise InvalidResponse(f"the server's reply has {len(tokens)} tokens and not as many top_logprobs")
    return tokens, tuple(None if at is None else _by_text(at) for at in tops)


def _by_text(at: object) -> Top:
    if not isinstance(at, dict):
        raise InvalidResponse("the server's reply has top_logprobs that are no object")
    return tuple((_name(token), _logprob(value)) for token, value in at.items())


def _by_id(at: object) -> Top:
    """vLLM's prompt_logprobs at one position: {id: {"logprob": ...}}."""
    if not isinstance(at, dict):
        raise InvalidResponse("the server's reply has prompt_logprobs that are no object")
    try:
        return tuple((int(token), _number(value)) for token, value in at.items())
    except ValueError:
        raise InvalidResponse("the server's reply has prompt_logprobs without token ids") from None


def _named(spot: object) -> Name:
    if not isinstance(spot, dict):
        raise InvalidResponse("the server's reply has logprobs that are no objects")
    number, token = spot.get("id"), spot.get("token")
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return _name(token)


def _name(token: object) -> Name:
    if not isinstance(token, str):
        raise InvalidResponse("the server's reply has a token without a name")
    digits = token.removeprefix(_ID)
    return int(digits) if digits != token and digits.isdecimal() else token


def _number(spot: object) -> float:
    return _logprob(spot.get("logprob") if isinstance(spot, dict) else None)


def _logprob(value: object) -> float:
    """A log-probability; rounding may lift it a little above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value > 1e-3:
        raise InvalidResponse(f"the server's reply has {str(value)[:40]!r} in the place of a log-probability")
    return min(float(value), 0.0)


def _list(spot: object, key: str) -> list[Any]:
    found = spot.get(key) if isinstance(spot, dict) else None
    return found if isinstance(found, list) else []


def _count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
