"""Whether a model behind a server speaks: `models/fluency.py`, with the server's log-probabilities of a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foreknow.inference.server.capabilities import tops_of
from foreknow.inference.server.completions import Completion, CompletionChoice
from foreknow.inference.server.model import ServerModel
from foreknow.models.fluency import Fluency, Sentence, covered_languages, measured


def fluency_at(server: ServerModel, batch: int) -> Fluency:
    """The fluency of a server's model, `batch` prompts to a request where the server takes several.

    It is not checked where the server tells no log-probabilities of a prompt, or takes no token ids: tokens that are
    shuffled would be read as others. A token that the server does not list counts as likely as the last one that it
    does. Raises ResourceError where the server does not answer any more.
    """
    if not server.can.whole:
        return Fluency({}, not_checked="the server tells no log-probabilities of a prompt")
    if not server.can.ids_in:
        return Fluency({}, not_checked="the server takes no token ids, so that no tokens can be shuffled")

    def means(sentences: Sequence[Sentence]) -> list[float]:
        size = batch if server.can.many else 1
        parts = [sentences[start : start + size] for start in range(0, len(sentences), size)]
        options = server.can.options(whole=True)

        def read(number: int, reply: Completion) -> list[float]:
            return [_mean(server, one, choice) for one, choice in zip(parts[number], reply.choices, strict=True)]

        jobs = [([one.ids for one in part], options) for part in parts]
        return [mean for found in server.asking.each(jobs, read) for mean in found]

    return measured(server.tokenizer, covered_languages(server.tokenizer), means)


def _mean(server: ServerModel, sentence: Sentence, choice: CompletionChoice) -> float:
    """The mean log-probability of a sentence's own tokens; a text's very first token is not scored."""
    tops = tops_of(choice, len(sentence.ids), server.can.whole)
    found = []
    for at in range(max(sentence.first, 1), len(sentence.ids)):
        listed = [(server.text.token(name), value) for name, value in tops[at] or ()]
        own = [value for token, value in listed if token == sentence.ids[at]]
        if listed:
            found.append(own[0] if own else min(value for _, value in listed))
    return math.fsum(found) / len(found) if found else math.nan
