"""Finds out what a completions server can do, by a few requests: servers differ and do not announce it.

    listed          the most log-probabilities per position        (0: texts only, the sampled protocol)
    ids_in          the server accepts prompts as token ids        (else as text)
    ids_out         the server names tokens by id                  (else by text)
    many            the server accepts several prompts in a request
    prompt_route    how it returns log-probabilities at every prompt position: one request then covers a whole path

Each option is first compared with the simplest request: some servers accept an option and ignore it, or return the
positions of a prompt shifted by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from foreknow.inference.server.client import InvalidResponse
from foreknow.inference.server.completions import (
    BY_ID,
    Completion,
    CompletionChoice,
    CompletionRefusal,
    Completions,
    Name,
    PromptInput,
    Top,
)

PromptRoute = Literal["prompt_logprobs", "echo"]

PROBES: Final = ("Q: What is the capital of France?\nA:", "Q: Who wrote Hamlet?\nA: William Shakespeare\n")
"""The prompts that test the server."""
CLOSE: Final = 0.25
"""The largest difference between two log-probabilities of one token by one model: batches and caches round."""
_ONE: Final = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
"""Options that request one token from the model's own distribution, so no server rescales log-probabilities."""


@dataclass(frozen=True)
class Capabilities:
    """See the top of this file. `by_id`: whether requests ask for token ids by vLLM's option."""

    listed: int
    ids_in: bool
    ids_out: bool
    many: bool
    prompt_route: PromptRoute | None
    by_id: bool = False

    def options(self, with_prompt: bool = False) -> dict[str, Any]:
        """Return the request options for likely next tokens; `with_prompt`: for those at the prompt's positions too."""
        options: dict[str, Any] = {**_ONE, "logprobs": self.listed, **(BY_ID if self.by_id else {})}
        if with_prompt and self.prompt_route == "prompt_logprobs":
            options["prompt_logprobs"] = self.listed
        elif with_prompt:
            options["echo"] = True
        return options

    def reason(self, top_k: int) -> str:
        """Return one line that says which capabilities are used, and how exact they make the audit."""
        if not self.listed:
            return f"server: no log-probabilities, prompts as {self._in}: only --protocol sampled"
        if not top_k or self.listed < top_k:
            precision = (
                f"{self.listed} of {top_k or 'all'} log-probabilities a position, so probabilities are intervals"
            )
        elif self.listed == top_k:
            precision = f"{self.listed} log-probabilities a position: exact, but for ties at the last"
        else:
            precision = f"{self.listed} log-probabilities a position for a top-k of {top_k}: exact"
        names = "ids" if self.ids_out else "texts, and those that several tokens share left unsearched"
        route = f"whole paths by {self.prompt_route}" if self.prompt_route else "one request a token"
        prompts = "several prompts" if self.many else "one prompt"
        return f"server: {precision}; prompts as {self._in}, tokens told by {names}; {route}, {prompts} a request"

    @property
    def _in(self) -> str:
        return "token ids" if self.ids_in else "text"


def discover(
    completions: Completions,
    wanted: int,
    ids: Callable[[str], tuple[int, ...]],
    readable: Callable[[CompletionChoice], bool],
) -> Capabilities:
    """Find out what the server can do, in about ten requests.

    `wanted`: log-probabilities to ask for at a position. `ids`: encodes a text as prompts are encoded. `readable`:
    whether the names of an answer's tokens identify them. Raises ResourceError where even the simplest request
    fails, and what `RequestSession.each` raises.
    """
    text = PROBES[0]
    completions.one([text], max_tokens=1, temperature=0.0)
    listed, by_id = _logprob_count(completions, wanted)
    names: tuple[Name, ...] = ()
    if listed:
        more = BY_ID if by_id else {}
        answer = completions.one([text], max_tokens=8, temperature=0.0, logprobs=listed, **more).choices[0]
        names = tuple(name for top in answer.tops for name, _ in top or ())
        if not readable(answer):
            listed = 0
    ids_out = bool(names) and all(isinstance(name, int) for name in names)
    capabilities = Capabilities(listed, ids_in=False, ids_out=ids_out, many=False, prompt_route=None, by_id=by_id)
    reply = _probe(completions, capabilities, [text])
    as_ids, as_two = (_probe(completions, capabilities, form) for form in ([ids(text)], [text, PROBES[1]]))
    capabilities = replace(capabilities, ids_in=_reads_ids(reply, as_ids, len(ids(text))), many=_same(reply, as_two))
    routes: tuple[PromptRoute, ...] = ("prompt_logprobs", "echo") if listed else ()
    for candidate in (replace(capabilities, prompt_route=route) for route in routes):
        if _prompt_route_agrees(completions, candidate, ids):
            return candidate
    return capabilities


def _logprob_count(completions: Completions, wanted: int) -> tuple[int, bool]:
    """Return how many log-probabilities the server gives at a position, and whether it accepts the token-id option."""
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    by_id = True
    for count in dict.fromkeys(k for k in (wanted, 20, 10, 5, 1) if k <= wanted):
        reply = completions.attempt([PROBES[0]], logprobs=count, **options, **(BY_ID if by_id else {}))
        if isinstance(reply, CompletionRefusal) and by_id:
            plain = completions.attempt([PROBES[0]], logprobs=count, **options)
            by_id = isinstance(plain, CompletionRefusal)
            reply = plain
        if isinstance(reply, CompletionRefusal):
            continue
        received = len(_last_top(reply))
        if 0 < received < count:
            # either the server's limit, or it lists tokens of the same text only once
            second_reply = completions.attempt([PROBES[0]], logprobs=received, **options, **(BY_ID if by_id else {}))
            if isinstance(second_reply, CompletionRefusal) or len(_last_top(second_reply)) == received:
                return received, by_id
        return (count if received else 0), by_id
    return 0, False


def _last_top(reply: Completion) -> Top:
    tops = reply.choices[0].tops
    return (tops[-1] if tops else None) or ()


class _ProbeReply(NamedTuple):
    """The reply to one form of request: the first choice's likeliest tokens and text, the prompts' token count."""

    top: dict[Name, float]
    text: str
    counted: int | None


def _probe(completions: Completions, can: Capabilities, prompts: Sequence[PromptInput]) -> _ProbeReply | None:
    options = can.options() if can.listed else {"max_tokens": 8}
    reply = completions.attempt(prompts, **{**options, "temperature": 0.0})
    if isinstance(reply, CompletionRefusal):
        return None
    return _ProbeReply(dict(_last_top(reply)), reply.choices[0].text, reply.prompt_tokens)


def _reads_ids(text: _ProbeReply | None, ids: _ProbeReply | None, count: int) -> bool:
    """Return whether the server reads a prompt's ids like its text, except for a token that it adds before texts."""
    if text is None or ids is None:
        return False
    if _same(text, ids):
        return True
    return text.counted is not None and ids.counted == count and abs(text.counted - count) == 1


def _same(one: _ProbeReply | None, other: _ProbeReply | None) -> bool:
    """Return whether two forms of a request got the same answer."""
    if one is None or other is None:
        return False
    return close(one.top, other.top) if one.top else bool(one.text) and one.text == other.text


def close(one: dict[Any, float], other: dict[Any, float]) -> bool:
    """Return whether one model may have computed both lists: their five likeliest tokens agree up to `CLOSE`."""
    lowest = min((min(top.values()) for top in (one, other) if top), default=-math.inf)
    for ours, theirs in ((one, other), (other, one)):
        for name in sorted(ours, key=lambda n: -ours[n])[:5]:
            if abs(ours[name] - theirs.get(name, lowest)) > CLOSE:
                return False
    return bool(one) and bool(other)


def _prompt_route_agrees(
    completions: Completions, candidate: Capabilities, ids: Callable[[str], tuple[int, ...]]
) -> bool:
    """Return whether the distributions at a prompt's positions equal those after its prefixes."""
    text = PROBES[1]
    prompt, cut = ids(text), ids(text[:-1])
    if prompt[:-1] != cut:
        return False
    inputs: list[PromptInput] = [prompt, cut] if candidate.ids_in else [text, text[:-1]]
    requests = (([inputs[0]], True), ([inputs[0]], False), ([inputs[1]], False))
    replies = [completions.attempt(prompts, **candidate.options(wants_prompt)) for prompts, wants_prompt in requests]
    with_prompt, after, before = (
        None if isinstance(reply, CompletionRefusal) else reply.choices[0] for reply in replies
    )
    if with_prompt is None or after is None or before is None:
        return False
    try:
        tops = tops_of(with_prompt, len(prompt), candidate.prompt_route)
    except InvalidResponse:
        return False
    pairs = ((tops[-1], after.tops[-1:]), (tops[-2], before.tops[-1:]))
    return all(close(likeliest(one, candidate.listed), likeliest(plain[0] if plain else None)) for one, plain in pairs)


def likeliest(top: Top | None, count: int | None = None) -> dict[Name, float]:
    """Return the `count` likeliest tokens of a position; servers add the prompt's own token to them."""
    return dict(sorted(top or (), key=lambda entry: -entry[1])[:count])


def tops_of(choice: CompletionChoice, prompt: int, route: PromptRoute | None) -> list[Top | None]:
    """Return the likely tokens at each position of a prompt of `prompt` tokens, and after it: prompt + 1 entries.

    Entry i is the distribution of the prompt's token i. Raises InvalidResponse where the server returns another
    number of positions.
    """
    if route == "prompt_logprobs":
        before, after = choice.prompt_tops or (), choice.tops[:1]
    else:
        before, after = choice.tops[:prompt], choice.tops[prompt:][:1]
    if len(before) != prompt:
        raise InvalidResponse(f"the server tells {len(before)} positions of a prompt of {prompt} tokens")
    return [*before, after[0] if after else None]
