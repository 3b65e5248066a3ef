"""The paper's protocol at a completions server, which generates greedy and sampled answers.

A server's defaults differ from ours: some truncate the distribution (min-p) or penalise repetition unless a request
turns that off. We send every such option that the server accepts; a message says if it does not accept top_k.
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
from foreknow.inference.server.completions import CompletionChoice, CompletionRefusal, Completions, PromptInput

if TYPE_CHECKING:
    from foreknow.inference.engine import Sampling

_ENDED: Final = {"stop", "eos", "eos_token", "stop_sequence"}
_NEUTRAL: Final = {"min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""Options of vLLM and SGLang, and of llama.cpp, at values that leave the distribution unchanged."""


@dataclass(frozen=True)
class Drawing:
    """How the server samples: the options it accepts, and whether one request can return several answers.

    `options`: a temperature (0: greedy) -> the options of a request.
    """

    options: Callable[[float], dict[str, Any]]
    several: bool
    top_k: bool

    def reason(self, top_k: int) -> str:
        """Return one line that says how answers are sampled."""
        how = "all answers to a prompt in one request" if self.several else "one request an answer"
        if top_k and not self.top_k:
            return f"server: takes no top_k, so answers are drawn from all tokens, not from {top_k}; {how}"
        return f"server: answers are drawn {'from the ' + str(top_k) if top_k else 'from all'} likeliest tokens; {how}"


def discover_drawing(completions: Completions, sampling: Sampling) -> Drawing:
    """Find out by requests which options the server accepts. Raises ConfigError for one that does not sample."""
    text = PROBES[0]

    def is_accepted(more: dict[str, Any], **options: Any) -> bool:
        reply = completions.attempt([text], max_tokens=1, temperature=sampling.temperature, **options, **more)
        return not isinstance(reply, CompletionRefusal)

    wanted = {**({"top_k": sampling.top_k} if sampling.top_k else {}), **_NEUTRAL}
    if not is_accepted(wanted):
        wanted = {name: value for name, value in wanted.items() if is_accepted({name: value})}
    top_k = "top_k" in wanted or not sampling.top_k
    by_config = not wanted and is_accepted({"generation_config": _config(sampling, sampling.temperature)})

    def options(temperature: float) -> dict[str, Any]:
        if by_config:  # `transformers serve`: our generation config replaces the model's own
            return {"temperature": temperature, "generation_config": _config(sampling, temperature)}
        more = wanted if temperature else {name: wanted[name] for name in wanted if name != "top_k"}
        return {"temperature": temperature, "top_p": 1.0, **more}

    several = not isinstance(
        completions.attempt([text], n=2, max_tokens=1, **options(sampling.temperature)), CompletionRefusal
    )
    # from a flat distribution, a server that samples soon gives different answers
    hot = {**options(2.0), "max_tokens": 8}
    texts = {completions.one([text], seed=seed, **hot).choices[0].text for seed in range(6)}
    if len(texts) == 1:
        raise ConfigError(
            f"{completions.session.endpoint.url}: gives the same answer however often it is to draw one; the sampled "
            "protocol needs a server that samples"
        )
    return Drawing(options, several, top_k or by_config)


def _config(sampling: Sampling, temperature: float) -> str:
    """Return a generation config as transformers' JSON."""
    more = {"temperature": temperature, "top_k": sampling.top_k, "top_p": 1.0} if temperature else {}
    return json.dumps({"do_sample": bool(temperature), "repetition_penalty": 1.0, **more})


@dataclass(frozen=True)
class ServerAnswers:
    """Generates answers at a server; replaces `generate.Generator`. `text`: ids -> text, if it accepts no ids."""

    completions: Completions
    can: Capabilities
    drawing: Drawing
    text: Callable[[Sequence[int]], str]
    temperature: float
    batch: int = 16

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `generate.AnswerGenerator.generate`. Each answer ends at a newline or at the model's own end."""
        inputs: list[PromptInput] = [tuple(ids) if self.can.ids_in else self.text(ids) for ids in prompts]
        jobs: list[tuple[list[int], dict[str, Any]]] = []
        if draws is None:
            jobs = [(part, {"max_tokens": limits[part[0]]}) for part in self._group_by_limit(limits)]
        elif self.drawing.several:
            jobs = [([i], {"n": draws, "max_tokens": limits[i], "seed": _seed(seed, i)}) for i in range(len(inputs))]
        else:
            numbers = [(i, j) for i in range(len(inputs)) for j in range(draws)]
            jobs = [([i], {"max_tokens": limits[i], "seed": _seed(seed, i, j)}) for i, j in numbers]
        options = {"stop": ["\n"], **self.drawing.options(self.temperature if draws else 0.0)}
        requests = [([inputs[i] for i in part], {**options, **more}) for part, more in jobs]
        answers: list[list[Answer]] = [[] for _ in inputs]
        for (part, more), reply in zip(jobs, self.completions.each(requests, lambda _, reply: reply), strict=True):
            answers_per_prompt = int(more.get("n", 1))
            for index, choice in enumerate(reply.choices):
                answers[part[index // answers_per_prompt]].append(_answer(choice))
        return answers

    def _group_by_limit(self, limits: Sequence[int]) -> list[list[int]]:
        """Group prompts that share a limit into requests."""
        most = self.batch if self.can.many else 1
        by_limit: dict[int, list[int]] = {}
        for i, limit in enumerate(limits):
            by_limit.setdefault(limit, []).append(i)
        return [
            prompts[start : start + most] for prompts in by_limit.values() for start in range(0, len(prompts), most)
        ]


def _answer(choice: CompletionChoice) -> Answer:
    """Return the answer before the first newline."""
    ended = choice.finish in _ENDED or "\n" in choice.text
    text = answer_of(choice.text)
    return Answer(text if ended else f"{text}\u2026", ended)


def _seed(*numbers: int) -> int:
    """Return a seed of 31 bits that depends on all of these."""
    return zlib.crc32(repr(numbers).encode()) & 0x7FFFFFFF
