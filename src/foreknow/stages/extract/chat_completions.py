"""Send one chat completion request to an OpenAI-compatible endpoint, and read its reply."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from foreknow.inference.server.client import InvalidResponse, RequestSession

if TYPE_CHECKING:
    from openai import APIStatusError

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """A completion: its text, why it ended, and its number of tokens where the server gives it."""

    text: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Chat:
    """Requests one chat completion, in the JSON of a schema where the server supports this.

    Once the server refuses an option, later requests leave it out, and a message says so. This holds for
    `response_format` where the server answers the request without it, and for `temperature` and `max_tokens` where
    the server names them as unsupported.
    """

    def __init__(self, session: RequestSession, max_tokens: int, schema: dict[str, Any]):
        self.session = session
        self._lock = threading.Lock()
        self._accepted = False
        self._left_out: frozenset[str] = frozenset()
        self._options = {
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": schema},
            },
        }

    def ask(self, prompt: str, temperature: float) -> Reply:
        """Send one request, or a few until the server takes its options. Raises errors of `openai`, and OddReply."""
        import openai

        without: frozenset[str] = frozenset()
        while True:
            left_out = without | self._left_out
            try:
                reply = self._once(prompt, temperature, left_out)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._left_out - left_out:
                    continue  # another request has removed the option meanwhile
                option = self._refused(error, left_out)
                if option is None:
                    raise
                without |= {option}
            else:
                self._remember(without)
                return reply

    def _once(self, prompt: str, temperature: float, without: frozenset[str]) -> Reply:
        options: dict[str, Any] = {"temperature": temperature, **self._options}
        if "max_tokens" in without:
            options["max_completion_tokens"] = options["max_tokens"]
        raw = self.session.client.chat.completions.with_raw_response.create(
            model=self.session.endpoint.model,
            messages=[{"role": "user", "content": prompt}],
            **{name: value for name, value in options.items() if name not in without},
        )
        reply = reply_of(raw.http_response.content)
        return reply._replace(text=self.session.without_key(reply.text))

    def _refused(self, error: APIStatusError, without: frozenset[str]) -> str | None:
        """Return the option to leave out, or None if the request itself is at fault."""
        if error.param == "max_tokens" and "max_tokens" not in without and "max_completion_tokens" in error.message:
            return "max_tokens"
        if error.param == "temperature" and "temperature" not in without:
            return "temperature"
        return None if self._accepted or "response_format" in without else "response_format"

    def _remember(self, without: frozenset[str]) -> None:
        """Record that the server answered the request with these options left out."""
        with self._lock:
            fresh = without - self._left_out
            self._left_out |= fresh
            self._accepted = self._accepted or "response_format" not in self._left_out
        for option in sorted(fresh):
            logger.info(f"{self.session.endpoint.url}: the server does not take {option}; going on without it")


def reply_of(body: bytes) -> Reply:
    """Return the first choice of a chat completion's body. Raises OddReply for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidResponse("the server's reply is not JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("choices"), list) or not found["choices"]:
        raise InvalidResponse("the server's reply has no choices")
    choice = found["choices"][0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise InvalidResponse("the server's reply has no message")
    text, finish, usage = message.get("content"), choice.get("finish_reason"), found.get("usage")
    return Reply(
        text if isinstance(text, str) else "",
        finish if isinstance(finish, str) else None,
        *(_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens")),
    )


def _tokens(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None
