"""Checks the fluency of a model behind a server: `models/fluency.py`, with the server's prompt log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foreknow.inference.server.capabilities import tops_of
from foreknow.inference.server.completions import Completion, CompletionChoice
from foreknow.inference.server.model import ServerModel
from foreknow.models.fluency import Fluency, Sentence, covered_languages, measure_fluency


def fluency_at(server: ServerModel, batch: int) -> Fluency:
    """Return the fluency of a server's model, with `batch` prompts per request if the server accepts several.

    Not checked where the server returns no log-probabilities of a prompt or accepts no token ids, as it would read
    the text of shuffled tokens as other tokens. A token that the server does not list counts as likely as the last
    one listed. Raises ResourceError where the server stops answering.
    """
    if not server.can.prompt_route:
        return Fluency({}, not_checked="the server tells no log-probabilities of a prompt")
    if not server.can.ids_in:
        return Fluency({}, not_checked="the server takes no token ids, so that no tokens can be shuffled")

    def means(sentences: Sequence[Sentence]) -> list[float]:
        size = batch if server.can.many else 1
        parts = [sentences[start : start + size] for start in range(0, len(sentences), size)]
        options = server.can.options(with_prompt=True)

        def read(number: int, reply: Completion) -> list[float]:
            return [
                _mean(server, sentence, choice) for sentence, choice in zip(parts[number], reply.choices, strict=True)
            ]

        jobs = [([sentence.ids for sentence in part], options) for part in parts]
        return [mean for part_means in server.completions.each(jobs, read) for mean in part_means]

    return measure_fluency(server.tokenizer, covered_languages(server.tokenizer), means)


def _mean(server: ServerModel, sentence: Sentence, choice: CompletionChoice) -> float:
    """Return the mean log-probability of a sentence's own tokens; the first token of a text is not scored."""
    tops = tops_of(choice, len(sentence.ids), server.can.prompt_route)
    logprobs = []
    for position in range(max(sentence.first, 1), len(sentence.ids)):
        listed = [(server.text.token(name), value) for name, value in tops[position] or ()]
        own = [value for token, value in listed if token == sentence.ids[position]]
        if listed:
            logprobs.append(own[0] if own else min(value for _, value in listed))
    return math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
