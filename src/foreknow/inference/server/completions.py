"""Requests completions from an OpenAI-compatible server and reads the log-probabilities in its replies.

    prompt_logprobs, return_tokens_as_token_ids    vLLM: names tokens by id, at prompt positions too
    echo, logprobs                                 the older form: names tokens by text, or by token_id:N
    logprobs.content                               llama.cpp's own server: names tokens by id and text

This file uses no tokenizer: a token is represented by the server's name for it (`Name`).
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
"""The server's name for a token: its id, or a text."""
Top = tuple[tuple[Name, float], ...]
"""The likeliest tokens at a position with their log-probabilities (temperature 1, the whole vocabulary)."""
PromptInput = str | tuple[int, ...]
"""A prompt as sent to the server: text, or token ids."""

BY_ID: Final = {"return_tokens_as_token_ids": True}
"""The option that asks vLLM to name tokens by id."""
_ID: Final = "token_id:"

R = TypeVar("R")


class CompletionChoice(NamedTuple):
    """One answer. `tokens`, `tops`: the answer's tokens and their likely alternatives, after the echoed prompt's.

    `prompt_tops`: the likely tokens at each prompt position (vLLM), None if the server sent none. `finish`: the
    finish reason.
    """

    text: str
    finish: str | None
    tokens: tuple[Name, ...]
    tops: tuple[Top | None, ...]
    prompt_tops: tuple[Top | None, ...] | None


class Completion(NamedTuple):
    """A reply: its choices in order, and its token counts, None where the server sent none."""

    choices: tuple[CompletionChoice, ...]
    prompt_tokens: int | None
    completion_tokens: int | None


class Usage(NamedTuple):
    """Requests so far, including retries, and tokens as the server counts them."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class CompletionRefusal(NamedTuple):
    """The server does not accept a request of this form."""

    reason: str


class Completions:
    """Requests completions from one server, many at once, and counts requests and tokens."""

    def __init__(self, session: RequestSession):
        self.session = session
        self._lock = threading.Lock()
        self._tokens = [0, 0]

    @property
    def usage(self) -> Usage:
        """Return the requests and tokens so far."""
        return Usage(self.session.requests, *self._tokens)

    def ask(self, prompts: Sequence[PromptInput], *, n: int = 1, **options: Any) -> Completion:
        """Make one request: `n` choices for each prompt. Raises errors of `openai`, and InvalidResponse.

        A single prompt is sent without a list, as some servers accept no lists.
        """
        inputs = [p if isinstance(p, str) else list(p) for p in prompts]
        raw = self.session.client.completions.with_raw_response.create(
            model=self.session.endpoint.model,
            prompt=inputs if len(inputs) > 1 else inputs[0],  # type: ignore[arg-type]
            extra_body={**options, **({"n": n} if n > 1 else {})},
        )
        completion = completion_of(raw.http_response.content, len(prompts) * n)
        with self._lock:
            self._tokens[0] += completion.prompt_tokens or 0
            self._tokens[1] += completion.completion_tokens or 0
        return completion

    def each(
        self, jobs: Sequence[tuple[Sequence[PromptInput], dict[str, Any]]], read: Callable[[int, Completion], R]
    ) -> list[R]:
        """Request a completion for each (prompts, options) and return `read(job number, reply)` for each, in order.

        Retries a request whose reply makes `read` raise InvalidResponse. Raises ResourceError where one fails.
        """
        replies: dict[int, R] = {}
        work = self.session.each(enumerate(jobs), lambda job: read(job[0], self.ask(job[1][0], **job[1][1])))
        with closing(work) as arriving:
            for (number, _), reply in arriving:
                if isinstance(reply, RequestFailure):
                    raise ResourceError(
                        f"{self.session.endpoint.url}: a request got no answer: {reply.reason}.\n"
                        "What is finished is kept; the same command goes on from there"
                    )
                replies[number] = reply
        return [replies[number] for number in range(len(jobs))]

    def one(self, prompts: Sequence[PromptInput], **options: Any) -> Completion:
        """Make one request, with retries. Raises ResourceError where it fails."""
        return self.each([(prompts, options)], lambda _, reply: reply)[0]

    def attempt(self, prompts: Sequence[PromptInput], **options: Any) -> Completion | CompletionRefusal:
        """Try a request of a form that the server may not support: 400, 422, or 500 twice mean that it does not."""
        import openai

        failures = 0

        def ask(_: int) -> Completion | CompletionRefusal:
            nonlocal failures
            try:
                return self.ask(prompts, **options)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return CompletionRefusal(self.session.format_text(error))
            except openai.InternalServerError as error:
                failures += 1
                if failures < 2 or error.status_code not in (500, 501):
                    raise
                return CompletionRefusal(self.session.format_text(error))
            except InvalidResponse as error:
                failures += 1
                if failures < 2:
                    raise
                return CompletionRefusal(str(error))

        with closing(self.session.each([0], ask)) as arriving:
            result = next(arriving)[1]
        if isinstance(result, RequestFailure):
            raise ResourceError(f"{self.session.endpoint.url}: a request got no answer: {result.reason}")
        return result


def completion_of(body: bytes, choices: int) -> Completion:
    """Parse a completion's body. Raises InvalidResponse for one without exactly `choices` choices."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidResponse("the server's reply is not JSON") from None
    choice_list = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choice_list, list) or not all(isinstance(choice, dict) for choice in choice_list):
        raise InvalidResponse("the server's reply has no choices")
    if len(choice_list) != choices:
        raise InvalidResponse(f"the server's reply has {len(choice_list)} choices, expected {choices}")
    numbers = [choice.get("index") for choice in choice_list]
    if sorted(n for n in numbers if isinstance(n, int)) == list(range(choices)):
        choice_list = sorted(choice_list, key=lambda choice: choice["index"])
    usage = reply.get("usage")
    return Completion(
        tuple(_parse_choice(choice) for choice in choice_list),
        _count_field(usage, "prompt_tokens"),
        _count_field(usage, "completion_tokens"),
    )


def _parse_choice(choice: dict[str, Any]) -> CompletionChoice:
    text, finish = choice.get("text"), choice.get("finish_reason")
    if not isinstance(text, str):
        raise InvalidResponse("the server's reply has a choice without text")
    tokens, tops = _tokens_and_tops(choice.get("logprobs"))
    prompt = choice.get("prompt_logprobs")
    if prompt is not None and not isinstance(prompt, list):
        raise InvalidResponse("the server's reply has prompt_logprobs that are no list")
    prompt_tops = None if prompt is None else tuple(None if top is None else _top_by_id(top) for top in prompt)
    return CompletionChoice(text, finish if isinstance(finish, str) else None, tokens, tops, prompt_tops)


def _tokens_and_tops(logprobs: object) -> tuple[tuple[Name, ...], tuple[Top | None, ...]]:
    """Return the tokens of a choice and the likely tokens at each; empty where the server sent none."""
    if logprobs is None:
        return (), ()
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        entries = logprobs["content"]
        tokens = tuple(_name_of_entry(entry) for entry in entries)
        return tokens, tuple(
            tuple((_name_of_entry(t), _logprob_of_entry(t)) for t in _list_field(entry, "top_logprobs"))
            for entry in entries
        )
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("tokens"), list):
        raise InvalidResponse("the server's reply has logprobs of an unknown form")
    tokens = tuple(_name(token) for token in logprobs["tokens"])
    tops = logprobs.get("top_logprobs")
    if tops is None:
        return tokens, ()
    if not isinstance(tops, list) or len(tops) != len(tokens):
        raise InvalidResponse(f"the server's reply has {len(tokens)} tokens and not as many top_logprobs")
    return tokens, tuple(None if top is None else _top_by_text(top) for top in tops)


def _top_by_text(top: object) -> Top:
    if not isinstance(top, dict):
        raise InvalidResponse("the server's reply has top_logprobs that are no object")
    return tuple((_name(token), _logprob(value)) for token, value in top.items())


def _top_by_id(top: object) -> Top:
    """Read vLLM's prompt_logprobs at one position: {id: {"logprob": ...}}."""
    if not isinstance(top, dict):
        raise InvalidResponse("the server's reply has prompt_logprobs that are no object")
    try:
        return tuple((int(token), _logprob_of_entry(value)) for token, value in top.items())
    except ValueError:
        raise InvalidResponse("the server's reply has prompt_logprobs without token ids") from None


def _name_of_entry(entry: object) -> Name:
    if not isinstance(entry, dict):
        raise InvalidResponse("the server's reply has logprobs that are no objects")
    number, token = entry.get("id"), entry.get("token")
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return _name(token)


def _name(token: object) -> Name:
    if not isinstance(token, str):
        raise InvalidResponse("the server's reply has a token without a name")
    digits = token.removeprefix(_ID)
    return int(digits) if digits != token and digits.isdecimal() else token


def _logprob_of_entry(entry: object) -> float:
    return _logprob(entry.get("logprob") if isinstance(entry, dict) else None)


def _logprob(value: object) -> float:
    """Read a log-probability; rounding may put it slightly above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value > 1e-3:
        raise InvalidResponse(f"the server's reply has {str(value)[:40]!r} in the place of a log-probability")
    return min(float(value), 0.0)


def _list_field(entry: object, key: str) -> list[Any]:
    values = entry.get(key) if isinstance(entry, dict) else None
    return values if isinstance(values, list) else []


def _count_field(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
