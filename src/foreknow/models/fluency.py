"""Checks that a model can produce language: plain sentences must be likelier than their tokens in shuffled order.

A model with random weights, another model's tokenizer, or settings that differ from its training answers nothing, and
an audit of it would confidently report "100 % Unknown". So each sentence of `plain_sentences.py` is scored once as it
is and once with its tokens shuffled by a fixed seed. A sentence's gain is its mean log-probability per token minus
that of the shuffled one; the pairing makes rare words count on both sides. The gain is divided by the surprise of the
shuffled sentence, as a tokenizer of single characters has less to gain per token than one of whole words.

The rule: a language's score is the smaller gain of its two sentences, as a share of the shuffled one's surprise; the
model's score is that of its best language; a score below `LEAST` gives a warning. docs/model-checks.md has the
measurements that set the threshold (benchmarks/fluency.py).

A language counts only if the tokenizer covers it: no unknown token, and no more tokens than characters. A script that
is spelled byte by byte has a regular pattern, which a model can find likely in context without knowing a word.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ModelError
from foreknow.models.loading import Loaded, format_load_error, input_device
from foreknow.models.plain_sentences import SENTENCES
from foreknow.models.positions import UNLIMITED, positions_of
from foreknow.models.quiet import quiet
from foreknow.prompts.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST: Final = 0.2
"""The least share of its surprise that a fluent model's best language gains from the right order."""
_ROWS: Final = 8
"""Sequences computed at once."""
_AT_ONCE: Final = 64
"""Positions whose logits are in float32 at once."""


class Gain(NamedTuple):
    """A sentence's gain over its shuffled tokens: nats per token, and as a share of the shuffled one's surprise."""

    nats: float
    share: float

    @property
    def is_finite(self) -> bool:
        """Return whether both are numbers."""
        return math.isfinite(self.nats) and math.isfinite(self.share)

    @property
    def summary(self) -> dict[str, float | None]:
        """Return both numbers, rounded to hide differences between computations; None where they are not finite."""
        nats, share = (self.nats, self.share) if self.is_finite else (None, None)
        return {
            "nats_per_token_gained": None if nats is None else round(nats, 2),
            "share_of_surprise": None if share is None else round(share, 2),
        }


NO_GAIN: Final = Gain(math.nan, math.nan)


@dataclass(frozen=True)
class Fluency:
    """The gain of each language's sentences over their shuffled tokens.

    `languages`: those that the tokenizer covers; `not_covered`: the others. `not_measured`: languages left out because
    one before them showed the model to be fluent. `not_checked`: why nothing was measured,
    else None. `warning`: a warning for the user, None if there is none.
    """

    languages: Mapping[str, Gain]
    not_covered: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    not_checked: str | None = None

    @property
    def best(self) -> tuple[str, Gain] | None:
        """Return the language that gains most, and how much; None where no gain is a number."""
        finite = [(name, gain) for name, gain in self.languages.items() if gain.is_finite]
        return max(finite, key=lambda pair: pair[1].share) if finite else None

    @property
    def warning(self) -> str | None:
        """Return a few sentences on what may be wrong with a model that is not fluent; None if it is."""
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
        """Return the value of `model.fluency` in a run's summary."""
        if self.not_checked is not None:
            return {"not_checked": self.not_checked, "warning": None}
        return {
            "language": self.best[0] if self.best else None,
            **(self.best[1] if self.best else NO_GAIN).summary,
            "least_share": LEAST,
            "languages": {name: gain.summary for name, gain in self.languages.items()},
            "not_covered": list(self.not_covered),
            "not_measured": list(self.not_measured),
            "warning": self.warning,
        }


class Sentence(NamedTuple):
    """A plain or shuffled sentence as token ids: `ids` from `first` on are the sentence's own."""

    ids: tuple[int, ...]
    first: int


def check_fluency(loaded: Loaded, log: Callable[[str], None]) -> Fluency:
    """Measure a model's fluency and print a warning if there is one; the model is not changed.

    The model is asked in further languages only if it is not fluent in the first. Raises ModelError where in every
    language the tokenizer gives ids that the model has no embedding of.
    """
    fluency = fluency_of(loaded.model, loaded.tokenizer, loaded.name, every_language=False)
    print_fluency(fluency, log)
    return fluency


def print_fluency(fluency: Fluency, log: Callable[[str], None]) -> None:
    """Print the warning, or why nothing was measured."""
    if fluency.warning:
        log(f"warning: {fluency.warning}")
    if fluency.not_checked:
        log(f"whether the model speaks is not checked: {fluency.not_checked}")


def fluency_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "MODEL",
    seed: int = 0,
    *,
    every_language: bool = True,
) -> Fluency:
    """Return the gains of `SENTENCES` in every language that the tokenizer covers, by a few small forward passes.

    `seed` decides the shuffles; other seeds show how much a gain depends on it. Without `every_language`, only the
    first language is measured if that is enough: a model is fluent if it is in one language.

    Raises ModelError where in every language the tokenizer gives ids that the model has no embedding of.
    """
    embeddings: Any = model.get_input_embeddings()
    size = int(getattr(embeddings, "num_embeddings", 0) or embeddings.weight.shape[0])
    room = positions_of(model.config) or UNLIMITED
    covered = covered_languages(tokenizer)
    if covered and all(_highest_id(texts) >= size for texts in covered.values()):
        raise ModelError(
            f"--model {name}: its tokenizer gives token ids up to {max(map(_highest_id, covered.values())):,}, but it "
            f"has embeddings of {size:,} tokens only: the tokenizer is another model's; put the model's own tokenizer "
            "files into its folder"
        )
    inside = {language: texts for language, texts in covered.items() if _highest_id(texts) < size}

    def measure(languages: Mapping[str, Sequence[Sequence[int]]]) -> Fluency:
        return measure_fluency(tokenizer, languages, lambda sequences: mean_logprobs(model, sequences), room, seed)

    try:
        if not every_language and inside:
            first = next(iter(inside))
            fluency = measure({first: inside[first]})
            if fluency.warning is None:
                outside = tuple(language for language in SENTENCES if language not in inside)
                return replace(fluency, not_covered=outside, not_measured=tuple(inside)[1:])
        return measure(inside)
    except Exception as error:
        # a model's code can raise anything: an audit continues, and reports its own errors
        return Fluency({}, not_checked=format_load_error(error))


def measure_fluency(
    tokenizer: PreTrainedTokenizerBase,
    covered: Mapping[str, Sequence[Sequence[int]]],
    means: Callable[[Sequence[Sentence]], Sequence[float]],
    room: int = UNLIMITED,
    seed: int = 0,
) -> Fluency:
    """Return the gains in the `covered` languages (token ids by language, `covered_languages`), scored by `means`.

    `means`: returns the mean log-probability of each sentence's own tokens, in nats; called once. `room`: the most
    tokens of a sequence.
    """
    with quiet():
        before, _ = SpecialTokens(tokenizer).around
    pairs = {
        language: [_pair(before, ids, f"{seed} {language} {n}", room) for n, ids in enumerate(texts)]
        for language, texts in covered.items()
    }
    scores = iter(means([sentence for texts in pairs.values() for pair in texts for sentence in pair]))
    gains = {
        language: min((_gain(next(scores), next(scores)) for _ in texts), key=_gain_key)
        for language, texts in pairs.items()
    }
    return Fluency(gains, tuple(language for language in SENTENCES if language not in gains))


def covered_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """Return the token ids of `SENTENCES`, in the languages that the tokenizer covers."""
    with quiet():
        return {language: ids for language, texts in SENTENCES.items() if (ids := _covered(tokenizer, texts))}


def _highest_id(texts: Sequence[Sequence[int]]) -> int:
    return max(map(max, texts))


def _gain(plain: float, shuffled: float) -> Gain:
    """Return the gain of a sentence, from the mean log-probabilities of its plain and shuffled tokens."""
    nats = plain - shuffled
    return Gain(nats, nats / -shuffled if shuffled else math.nan)


def _gain_key(gain: Gain) -> float:
    """Return the sort key of gains: a gain that is not finite is the smallest."""
    return gain.share if gain.is_finite else -math.inf


def _covered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]] | None:
    """Return the ids of each text; None where the tokenizer does not cover them."""
    token_ids = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, token_ids, strict=True):
        if not 1 < len(ids) <= len(text) or (unknown is not None and unknown in ids):
            return None
    return token_ids


def _pair(before: Sequence[int], ids: Sequence[int], seed: str, room: int) -> tuple[Sentence, Sentence]:
    """Return a plain and a shuffled sentence, each after the tokens that begin a text, cut to `room` tokens."""
    ids = list(ids)[: max(room - len(before), 0)]
    shuffled = list(ids)
    random.Random(seed).shuffle(shuffled)
    plain, shuffled_sentence = (Sentence((*before, *sentence_ids), len(before)) for sentence_ids in (ids, shuffled))
    return plain, shuffled_sentence


def mean_logprobs(model: PreTrainedModel, sequences: Sequence[Sentence]) -> list[float]:
    """Return the mean log-probability, in nats, of each sequence's own tokens; a text's first token is not scored."""
    import torch

    means = [math.nan] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    device = input_device(model)
    with torch.inference_mode():
        for start in range(0, len(order), _ROWS):
            part = order[start : start + _ROWS]
            table = torch.zeros(len(part), len(sequences[part[-1]].ids), dtype=torch.long)
            for row, i in zip(table, part, strict=True):
                row[: len(sequences[i].ids)] = torch.tensor(sequences[i].ids)
            # right padding: in a causal model it never changes the tokens before it
            logits = model(input_ids=table.to(device), use_cache=False).logits
            for row, i in enumerate(part):
                ids, first = sequences[i].ids, max(sequences[i].first, 1)
                targets = table[row, first : len(ids)].to(logits.device)
                states = logits[row, first - 1 : len(ids) - 1]
                scored = [
                    chunk.float().log_softmax(-1).gather(1, chunk_targets[:, None])[:, 0]
                    for chunk, chunk_targets in zip(states.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True)
                ]
                if scored:
                    means[i] = float(torch.cat(scored).cpu().double().mean())
    return means
