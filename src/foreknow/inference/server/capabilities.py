"""What a completions server can do, found out by asking it once: servers differ, and say so late or not at all.

    listed     log-probabilities at a position, at most            (0: texts only, the sampled protocol)
    ids_in     takes prompts as token ids                          (else as text)
    ids_out    tells tokens by id                                  (else by text)
    many       takes several prompts in a request
    whole      tells what was likely at every prompt position, so that one request yields a whole path

Whatever is used is first held against what the plainest request gives: some servers take an option and do
nothing, or tell the positions of a prompt shifted by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from foreknow.inference.server.client import InvalidResponse
from foreknow.inference.server.completions import (
    BY_ID,
    Asked,
    Completion,
    CompletionChoice,
    CompletionRefusal,
    Completions,
    Name,
    Top,
)

Whole = Literal["prompt_logprobs", "echo"]

PROBES: Final = ("Q: What is the capital of France?\nA:", "Q: Who wrote Hamlet?\nA: William Shakespeare\n")
"""What is asked to see how the server answers."""
CLOSE: Final = 0.25
"""How far two log-probabilities of one token may be apart for one model: batches and caches round differently."""
_ONE: Final = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
"""One token, from the model's own distribution: no server rescales its log-probabilities then."""


@dataclass(frozen=True)
class Capabilities:
    """See the top of this file. `by_id`: tokens are asked for by id, in vLLM's way."""

    listed: int
    ids_in: bool
    ids_out: bool
    many: bool
    whole: Whole | None
    by_id: bool = False

    def options(self, whole: bool = False) -> dict[str, Any]:
        """The options of a request for what is likely next, and with `whole` at the prompt's positions too."""
        more: dict[str, Any] = {**_ONE, "logprobs": self.listed, **(BY_ID if self.by_id else {})}
        if whole and self.whole == "prompt_logprobs":
            more["prompt_logprobs"] = self.listed
        elif whole:
            more["echo"] = True
        return more

    def reason(self, top_k: int) -> str:
        """One line: what is used and what follows from it."""
        if not self.listed:
            return f"server: no log-probabilities, prompts as {self._in}: only --protocol sampled"
        if not top_k or self.listed < top_k:
            worth = f"{self.listed} of {top_k or 'all'} log-probabilities a position, so probabilities are intervals"
        elif self.listed == top_k:
            worth = f"{self.listed} log-probabilities a position: exact, but for ties at the last"
        else:
            worth = f"{self.listed} log-probabilities a position for a top-k of {top_k}: exact"
        names = "ids" if self.ids_out else "texts, and those that several tokens share left unsearched"
        route = f"whole paths by {self.whole}" if self.whole else "one request a token"
        several = "several prompts" if self.many else "one prompt"
        return f"server: {worth}; prompts as {self._in}, tokens told by {names}; {route}, {several} a request"

    @property
    def _in(self) -> str:
        return "token ids" if self.ids_in else "text"


def discover(
    asking: Completions,
    wanted: int,
    ids: Callable[[str], tuple[int, ...]],
    readable: Callable[[CompletionChoice], bool],
) -> Capabilities:
    """Ask the server what it can do, in about ten requests.

    `wanted`: log-probabilities a position one would like. `ids`: a text's token ids as prompts are made.
    `readable`: whether the tokens of an answer can be told apart by their names. Raises ResourceError where
    even the plainest request fails, and what `Session.each` raises.
    """
    text = PROBES[0]
    asking.one([text], max_tokens=1, temperature=0.0)
    listed, by_id = _listed(asking, wanted)
    named: tuple[Name, ...] = ()
    if listed:
        more = BY_ID if by_id else {}
        answer = asking.one([text], max_tokens=8, temperature=0.0, logprobs=listed, **more).choices[0]
        named = tuple(name for top in answer.tops for name, _ in top or ())
        if not readable(answer):
            listed = 0
    ids_out = bool(named) and all(isinstance(name, int) for name in named)
    can = Capabilities(listed, ids_in=False, ids_out=ids_out, many=False, whole=None, by_id=by_id)
    seen = _seen(asking, can, [text])
    as_ids, as_two = (_seen(asking, can, form) for form in ([ids(text)], [text, PROBES[1]]))
    can = replace(can, ids_in=_reads_ids(seen, as_ids, len(ids(text))), many=_same(seen, as_two))
    routes: tuple[Whole, ...] = ("prompt_logprobs", "echo") if listed else ()
    for offered in (replace(can, whole=route) for route in routes):
        if _whole_agrees(asking, offered, ids):
            return offered
    return can


def _listed(asking: Completions, wanted: int) -> tuple[int, bool]:
    """How many log-probabilities come at a position, and whether the server takes the wish for token ids."""
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    by_id = True
    for count in dict.fromkeys(k for k in (wanted, 20, 10, 5, 1) if k <= wanted):
        reply = asking.attempt([PROBES[0]], logprobs=count, **options, **(BY_ID if by_id else {}))
        if isinstance(reply, CompletionRefusal) and by_id:
            plain = asking.attempt([PROBES[0]], logprobs=count, **options)
            by_id = isinstance(plain, CompletionRefusal)
            reply = plain
        if isinstance(reply, CompletionRefusal):
            continue
        came = len(_first(reply))
        if 0 < came < count:
            # a server that gives no more, or one that lists tokens of the same text once?
            fewer = asking.attempt([PROBES[0]], logprobs=came, **options, **(BY_ID if by_id else {}))
            if isinstance(fewer, CompletionRefusal) or len(_first(fewer)) == came:
                return came, by_id
        return (count if came else 0), by_id
    return 0, False


def _first(reply: Completion) -> Top:
    tops = reply.choices[0].tops
    return (tops[-1] if tops else None) or ()


class _Seen(NamedTuple):
    """What came back of a form of request: the first choice's likeliest tokens, its text, tokens of all prompts."""

    top: dict[Name, float]
    text: str
    counted: int | None


def _seen(asking: Completions, can: Capabilities, prompts: Sequence[Asked]) -> _Seen | None:
    options = can.options() if can.listed else {"max_tokens": 8}
    reply = asking.attempt(prompts, **{**options, "temperature": 0.0})
    if isinstance(reply, CompletionRefusal):
        return None
    return _Seen(dict(_first(reply)), reply.choices[0].text, reply.prompt_tokens)


def _reads_ids(text: _Seen | None, ids: _Seen | None, count: int) -> bool:
    """Whether a prompt's ids are read as its text is, but for a token that a server puts before texts."""
    if text is None or ids is None:
        return False
    if _same(text, ids):
        return True
    return text.counted is not None and ids.counted == count and abs(text.counted - count) == 1


def _same(one: _Seen | None, other: _Seen | None) -> bool:
    """Whether two forms of a request got the same answer."""
    if one is None or other is None:
        return False
    return close(one.top, other.top) if one.top else bool(one.text) and one.text == other.text


def close(one: dict[Any, float], other: dict[Any, float]) -> bool:
    """Whether two lists of log-probabilities are one model's, but for rounding: of their likeliest five."""
    lowest = min((min(top.values()) for top in (one, other) if top), default=-math.inf)
    for here, there in ((one, other), (other, one)):
        for name in sorted(here, key=lambda n: -here[n])[:5]:
            if abs(here[name] - there.get(name, lowest)) > CLOSE:
                return False
    return bool(one) and bool(other)


def _whole_agrees(asking: Completions, offered: Capabilities, ids: Callable[[str], tuple[int, ...]]) -> bool:
    """Whether the distributions told at a prompt's positions are those of its beginnings."""
    text = PROBES[1]
    prompt, cut = ids(text), ids(text[:-1])
    if prompt[:-1] != cut:
        return False
    sent: list[Asked] = [prompt, cut] if offered.ids_in else [text, text[:-1]]
    forms = (([sent[0]], True), ([sent[0]], False), ([sent[1]], False))
    replies = [asking.attempt(prompts, **offered.options(whole)) for prompts, whole in forms]
    told, after, before = (None if isinstance(reply, CompletionRefusal) else reply.choices[0] for reply in replies)
    if told is None or after is None or before is None:
        return False
    try:
        tops = tops_of(told, len(prompt), offered.whole)
    except InvalidResponse:
        return False
    pairs = ((tops[-1], after.tops[-1:]), (tops[-2], before.tops[-1:]))
    return all(close(likeliest(one, offered.listed), likeliest(plain[0] if plain else None)) for one, plain in pairs)


def likeliest(top: Top | None, count: int | None = None) -> dict[Name, float]:
    """So many of the likeliest tokens of a position: servers add the one that stands there."""
    return dict(sorted(top or (), key=lambda entry: -entry[1])[:count])


def tops_of(choice: CompletionChoice, prompt: int, whole: Whole | None) -> list[Top | None]:
    """What was likely at the positions of a prompt of so many tokens, and after it: prompt + 1 entries.

    Entry i is the distribution from which the prompt's token i was drawn. Raises OddReply where the server
    tells another number of positions.
    """
    if whole == "prompt_logprobs":
        before, after = choice.prompt_tops or (), choice.tops[:1]
    else:
        before, after = choice.tops[:prompt], choice.tops[prompt:][:1]
    if len(before) != prompt:
        raise InvalidResponse(f"the server tells {len(before)} positions of a prompt of {prompt} tokens")
    return [*before, after[0] if after else None]
