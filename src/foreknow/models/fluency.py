"""Whether a model speaks at all: plain sentences must be likelier than the same tokens in another order.

Random weights, a tokenizer that is not the model's, or settings other than those of its training leave a model that
answers nothing, and an audit of it would say "100 % Unknown" with all confidence. So the sentences of
`plain_sentences.py` are scored, each once as it stands and once with its tokens shuffled by a fixed seed. What a
sentence gains is the mean log-probability a token as it stands, less that of the shuffled one: paired, so that rare
words count on both sides. It is held against how surprising the shuffled one is: a tokenizer of single characters
has less to gain at each of them than one of whole words.

The rule: a language counts for the smaller of its two sentences' gains, as a share of the shuffled one's surprise;
the model counts for its best language; below `LEAST` a warning is due. docs/model-checks.md has the figures it is
set from (benchmarks/fluency.py).

A language counts only if the tokenizer covers it: no unknown token, and no more tokens than characters. A script
that is spelled byte by byte has a rhythm of its own, which a model finds likely in context without knowing a word.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ModelError
from foreknow.models.loading import Loaded, in_a_line, input_device
from foreknow.models.packaged import quiet
from foreknow.models.plain_sentences import SENTENCES
from foreknow.prompts.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST: Final = 0.2
"""The share of its tokens' surprise that the right order takes away, at least, in the best language of a model that
speaks."""
_ROWS: Final = 8
"""Sequences computed at once."""
_AT_ONCE: Final = 64
"""Positions whose logits are in float32 at once."""


class Gain(NamedTuple):
    """What a sentence gains over its shuffled tokens: nats a token, and the share of the shuffled one's surprise."""

    nats: float
    share: float

    @property
    def is_finite(self) -> bool:
        """Whether both are numbers."""
        return math.isfinite(self.nats) and math.isfinite(self.share)

    @property
    def summary(self) -> dict[str, float | None]:
        """Both rounded, so that they are the same however they are computed; None where they are no numbers."""
        nats, share = (self.nats, self.share) if self.is_finite else (None, None)
        return {
            "nats_per_token_gained": None if nats is None else round(nats, 2),
            "share_of_surprise": None if share is None else round(share, 2),
        }


NO_GAIN: Final = Gain(math.nan, math.nan)


@dataclass(frozen=True)
class Fluency:
    """What the sentences of each language gain over their shuffled tokens.

    `languages`: those that the tokenizer covers; `not_covered`: the others. `not_checked`: why nothing was measured,
    where that is so. `warning`: what to tell the user, None where all is well.
    """

    languages: Mapping[str, Gain]
    not_covered: tuple[str, ...] = ()
    not_checked: str | None = None

    @property
    def best(self) -> tuple[str, Gain] | None:
        """The language that gains most, and how much; None where no gain is a number."""
        finite = [(name, gain) for name, gain in self.languages.items() if gain.is_finite]
        return max(finite, key=lambda pair: pair[1].share) if finite else None

    @property
    def warning(self) -> str | None:
        """What may be wrong with a model that does not speak, in a few sentences."""
        if self.not_checked is not None or (self.best and self.best[1].share >= LEAST):
            return None
        unless = "Labels of such a model say nothing, unless it is one of another language or of no language at all"
        if not self.languages:
            return (
                f"the tokenizer covers none of {', '.join(self.not_covered)}: it may not be the model's own. {unless}"
            )
        if self.best is None:
            return (
                "the model's log-probabilities of plain sentences are not finite: its weights may be damaged, or "
                "their numbers too large for this dtype. Labels of such a model say nothing"
            )
        name, gain = self.best
        return (
            f"the model hardly finds plain sentences likelier than the same tokens shuffled: in {name}, the best of "
            f"{len(self.languages)} languages, they gain {gain.nats:.2f} nats a token, {max(gain.share, 0):.0%} of "
            f"their surprise, where a model that speaks gains {LEAST:.0%} and more. "
            "Its weights may be random or damaged, its tokenizer another model's, or its architecture and settings "
            f"not those that it was trained with. {unless}"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The contract of `model.fluency` in a summary."""
        if self.not_checked is not None:
            return {"not_checked": self.not_checked, "warning": None}
        return {
            "language": self.best[0] if self.best else None,
            **(self.best[1] if self.best else NO_GAIN).summary,
            "least_share": LEAST,
            "languages": {name: gain.summary for name, gain in self.languages.items()},
            "not_covered": list(self.not_covered),
            "warning": self.warning,
        }


class Sentence(NamedTuple):
    """A sentence as token ids, or one with its tokens shuffled: `ids` from `first` on are the sentence's."""

    ids: tuple[int, ...]
    first: int


def check_fluency(loaded: Loaded, say: Callable[[str], None]) -> Fluency:
    """Measure a model's fluency and say it where there is something to warn of; nothing of the model is changed.

    Raises ModelError where in every language the tokenizer gives ids that the model has no embedding of.
    """
    found = fluency_of(loaded.model, loaded.tokenizer, loaded.name)
    say_fluency(found, say)
    return found


def say_fluency(found: Fluency, say: Callable[[str], None]) -> None:
    """Say what there is to warn of, or why nothing was measured."""
    if found.warning:
        say(f"warning: {found.warning}")
    if found.not_checked:
        say(f"whether the model speaks is not checked: {found.not_checked}")


def fluency_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "MODEL", seed: int = 0
) -> Fluency:
    """The gains of `SENTENCES` in every language that the tokenizer covers, by a few small forward passes.

    `seed`: of the shuffles; other seeds tell how much a gain depends on one.

    Raises ModelError where in every language the tokenizer gives ids that the model has no embedding of.
    """
    embeddings: Any = model.get_input_embeddings()
    size = int(getattr(embeddings, "num_embeddings", 0) or embeddings.weight.shape[0])
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = positions if isinstance(positions, int) and positions > 0 else 2**31
    covered = covered_languages(tokenizer)
    if covered and all(_highest(texts) >= size for texts in covered.values()):
        raise ModelError(
            f"--model {name}: its tokenizer gives token ids up to {max(map(_highest, covered.values())):,}, but it has "
            f"embeddings of {size:,} tokens only: the tokenizer is another model's; put the model's own tokenizer "
            "files into its folder"
        )
    inside = {language: texts for language, texts in covered.items() if _highest(texts) < size}
    try:
        return measured(tokenizer, inside, lambda sequences: mean_logprobs(model, sequences), room, seed)
    except Exception as error:
        # whatever a model's code may raise: an audit goes on, and says itself what it cannot do
        return Fluency({}, not_checked=in_a_line(error))


def measured(
    tokenizer: PreTrainedTokenizerBase,
    covered: Mapping[str, Sequence[Sequence[int]]],
    means: Callable[[Sequence[Sentence]], Sequence[float]],
    room: int = 2**31,
    seed: int = 0,
) -> Fluency:
    """The gains in the `covered` languages (token ids by language, `covered_languages`), whatever scores them.

    `means`: the mean log-probability of each sentence's own tokens, in nats; it is asked once. `room`: tokens of a
    sequence, at most.
    """
    with quiet():
        before, _ = SpecialTokens(tokenizer).around
    pairs = {
        language: [_pair(before, ids, f"{seed} {language} {n}", room) for n, ids in enumerate(texts)]
        for language, texts in covered.items()
    }
    found = iter(means([one for texts in pairs.values() for pair in texts for one in pair]))
    gains = {
        language: min((_gain(next(found), next(found)) for _ in texts), key=_order) for language, texts in pairs.items()
    }
    return Fluency(gains, tuple(language for language in SENTENCES if language not in gains))


def covered_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """The token ids of `SENTENCES`, in the languages that the tokenizer covers."""
    with quiet():
        return {language: ids for language, texts in SENTENCES.items() if (ids := _covered(tokenizer, texts))}


def _highest(texts: Sequence[Sequence[int]]) -> int:
    return max(map(max, texts))


def _gain(plain: float, shuffled: float) -> Gain:
    """The gain of a sentence, from the mean log-probabilities of its tokens in their order and in another."""
    nats = plain - shuffled
    return Gain(nats, nats / -shuffled if shuffled else math.nan)


def _order(gain: Gain) -> float:
    """What gains are compared by: one that is no number is the smallest."""
    return gain.share if gain.is_finite else -math.inf


def _covered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]] | None:
    """The ids of each text; None where the tokenizer does not cover them."""
    found = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, found, strict=True):
        if not 1 < len(ids) <= len(text) or (unknown is not None and unknown in ids):
            return None
    return found


def _pair(before: Sequence[int], ids: Sequence[int], seed: str, room: int) -> tuple[Sentence, Sentence]:
    """A sentence and its tokens shuffled, behind what the tokenizer puts before a text; cut to `room` tokens."""
    ids = list(ids)[: max(room - len(before), 0)]
    shuffled = list(ids)
    random.Random(seed).shuffle(shuffled)
    plain, other = (Sentence((*before, *some), len(before)) for some in (ids, shuffled))
    return plain, other


def mean_logprobs(model: PreTrainedModel, sequences: Sequence[Sentence]) -> list[float]:
    """The mean log-probability, in nats, of each sequence's own tokens; a text's very first token is not scored."""
    import torch

    found = [math.nan] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    device = input_device(model)
    with torch.inference_mode():
        for start in range(0, len(order), _ROWS):
            part = order[start : start + _ROWS]
            table = torch.zeros(len(part), len(sequences[part[-1]].ids), dtype=torch.long)
            for row, i in zip(table, part, strict=True):
                row[: len(sequences[i].ids)] = torch.tensor(sequences[i].ids)
            # padded at the end: what stands behind a token never reaches it
            logits = model(input_ids=table.to(device), use_cache=False).logits
            for row, i in enumerate(part):
                ids, first = sequences[i].ids, max(sequences[i].first, 1)
                targets = table[row, first : len(ids)].to(logits.device)
                states = logits[row, first - 1 : len(ids) - 1]
                scored = [
                    some.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
                    for some, wanted in zip(states.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True)
                ]
                if scored:
                    found[i] = float(torch.cat(scored).double().mean())
    return found
