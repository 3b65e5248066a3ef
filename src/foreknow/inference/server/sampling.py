"""The paper's protocol at a completions server: greedy and drawn answers, as the server generates them.

A server's defaults are not ours: some cut the distribution (min-p) or punish repetition unless they are told
not to. Every such option that the server takes is sent; one that it does not know is left out, and said.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from foreknow.data.exact_match import answer_of
from foreknow.errors import ConfigError
from foreknow.inference.generate import Answer
from foreknow.inference.server.capabilities import PROBES, Capabilities
from foreknow.inference.server.completions import Asked, CompletionChoice, CompletionRefusal, Completions

if TYPE_CHECKING:
    from foreknow.inference.engine import Sampling

_ENDED: Final = {"stop", "eos", "eos_token", "stop_sequence"}
_NEUTRAL: Final = {"min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""Options that change what is drawn unless they are set so: of vLLM and SGLang, and of llama.cpp."""


@dataclass(frozen=True)
class Drawing:
    """How the server is made to draw: options it takes, and whether it gives several answers to one request.

    `options`: from a temperature (0: greedy) to what goes with a request.
    """

    options: Callable[[float], dict[str, Any]]
    several: bool
    top_k: bool

    def reason(self, top_k: int) -> str:
        """One line: how answers are drawn."""
        how = "all answers to a prompt in one request" if self.several else "one request an answer"
        if top_k and not self.top_k:
            return f"server: takes no top_k, so answers are drawn from all tokens, not from {top_k}; {how}"
        return f"server: answers are drawn {'from the ' + str(top_k) if top_k else 'from all'} likeliest tokens; {how}"


def discover_drawing(asking: Completions, sampling: Sampling) -> Drawing:
    """Find out by asking which options the server takes. Raises ConfigError for one that does not draw."""
    text = PROBES[0]

    def taken(more: dict[str, Any], **options: Any) -> bool:
        reply = asking.attempt([text], max_tokens=1, temperature=sampling.temperature, **options, **more)
        return not isinstance(reply, CompletionRefusal)

    wished = {**({"top_k": sampling.top_k} if sampling.top_k else {}), **_NEUTRAL}
    if not taken(wished):
        wished = {name: value for name, value in wished.items() if taken({name: value})}
    top_k = "top_k" in wished or not sampling.top_k
    by_config = not wished and taken({"generation_config": _config(sampling, sampling.temperature)})

    def options(temperature: float) -> dict[str, Any]:
        if by_config:  # `transformers serve`: a generation config of ours in the place of the model's own
            return {"temperature": temperature, "generation_config": _config(sampling, temperature)}
        more = wished if temperature else {name: wished[name] for name in wished if name != "top_k"}
        return {"temperature": temperature, "top_p": 1.0, **more}

    several = not isinstance(
        asking.attempt([text], n=2, max_tokens=1, **options(sampling.temperature)), CompletionRefusal
    )
    # a flat distribution: a server that draws says something else sooner or later
    hot = {**options(2.0), "max_tokens": 8}
    drawn = {asking.one([text], seed=seed, **hot).choices[0].text for seed in range(6)}
    if len(drawn) == 1:
        raise ConfigError(
            f"{asking.session.endpoint.url}: gives the same answer however often it is to draw one; the sampled "
            "protocol needs a server that samples"
        )
    return Drawing(options, several, top_k or by_config)


def _config(sampling: Sampling, temperature: float) -> str:
    """A generation config in the JSON of transformers."""
    more = {"temperature": temperature, "top_k": sampling.top_k, "top_p": 1.0} if temperature else {}
    return json.dumps({"do_sample": bool(temperature), "repetition_penalty": 1.0, **more})


@dataclass(frozen=True)
class ServerAnswers:
    """Answers by a server, in place of `generate.Generator`. `text`: a prompt's text, where ids are not taken."""

    asking: Completions
    can: Capabilities
    drawing: Drawing
    text: Callable[[Sequence[int]], str]
    temperature: float
    batch: int = 16

    def say(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `generate.Speaks.say`: each answer ends with a line or as the model ends it."""
        sent: list[Asked] = [tuple(ids) if self.can.ids_in else self.text(ids) for ids in prompts]
        jobs: list[tuple[list[int], dict[str, Any]]] = []
        if draws is None:
            jobs = [(part, {"max_tokens": limits[part[0]]}) for part in self._alike(limits)]
        elif self.drawing.several:
            jobs = [([i], {"n": draws, "max_tokens": limits[i], "seed": _seed(seed, i)}) for i in range(len(sent))]
        else:
            numbers = [(i, j) for i in range(len(sent)) for j in range(draws)]
            jobs = [([i], {"max_tokens": limits[i], "seed": _seed(seed, i, j)}) for i, j in numbers]
        options = {"stop": ["\n"], **self.drawing.options(self.temperature if draws else 0.0)}
        asked = [([sent[i] for i in part], {**options, **more}) for part, more in jobs]
        found: list[list[Answer]] = [[] for _ in sent]
        for (part, more), reply in zip(jobs, self.asking.each(asked, lambda _, reply: reply), strict=True):
            each = int(more.get("n", 1))
            for at, choice in enumerate(reply.choices):
                found[part[at // each]].append(_answer(choice))
        return found

    def _alike(self, limits: Sequence[int]) -> list[list[int]]:
        """Prompts with one limit, in runs of a request's size."""
        most = self.batch if self.can.many else 1
        by_limit: dict[int, list[int]] = {}
        for i, limit in enumerate(limits):
            by_limit.setdefault(limit, []).append(i)
        return [some[start : start + most] for some in by_limit.values() for start in range(0, len(some), most)]


def _answer(choice: CompletionChoice) -> Answer:
    """What was said before the first newline."""
    ended = choice.finish in _ENDED or "\n" in choice.text
    said = answer_of(choice.text)
    return Answer(said if ended else f"{said}\u2026", ended)


def _seed(*numbers: int) -> int:
    """A seed of 31 bits that depends on all of these."""
    return zlib.crc32(repr(numbers).encode()) & 0x7FFFFFFF
