"""The paper's protocol by real generation: the oracle of `exact_probe.py` (paper, section 2; design, section 8).

Each prompt gets one greedy answer and `samples` drawn ones. Every setting of the model's own generation
config is left out; only ours count. Slower than the exact probe by two orders of magnitude.
"""

from __future__ import annotations

import contextlib
import copy
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import polars as pl
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from foreknow.data.exact_match import Accepted
from foreknow.inference.engine import Prompt, Sampling
from foreknow.inference.exact_probe import Chunk, PreparedRow, ProbeLine, Prober, answers_frame, probes_frame
from foreknow.models.loading import input_device
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


class Answer(NamedTuple):
    """What was generated: the answer's text, with an ellipsis if it had not ended when its tokens were used up.

    `sound`: whether all logits it was drawn from were finite; one that is not sound says nothing.
    """

    said: str
    ended: bool
    sound: bool = True


class Generated(NamedTuple):
    """A token path with its end, if it came; not `sound` where the logits after it were not finite."""

    path: TokenPath
    sound: bool


class Speaks(Protocol):
    """Generates answers: a model here (`Generator`), a server (`server/sampling.py`) or vLLM (`vllm_engine.py`)."""

    def say(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """For each prompt its greedy answer (`draws` None), or so many drawn ones, of at most so many tokens.

        `limits`: tokens of an answer with its end, for each prompt. The same `seed` draws the same answers,
        where the generator can.
        """
        ...


class _ExactHead(nn.Module):
    """The output head in float32, as the exact probe has it: bf16 logits tie too often to be compared.

    It computes where its weight is; one that accelerate keeps in main memory or on disk is fetched for each call.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.layer = head
        self._take()

    def _take(self) -> None:
        self.weight = self.layer.weight.detach().float()
        self.bias = None if self.layer.bias is None else self.layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.device.type != "meta":
            return nn.functional.linear(x.to(self.weight.device).float(), self.weight, self.bias)
        with align_module_device(self.layer):
            here = _ExactHead(self.layer)
            return nn.functional.linear(x.to(here.weight.device).float(), here.weight, here.bias)


class _Guard(LogitsProcessor):
    """Ends an answer where the logits leave nothing to draw (NaN, infinity, all -infinity), and marks it.

    `unsound` [sequences]: which answers those are. What stands after an answer's end does not count.
    """

    def __init__(self, width: int, stops: Sequence[int]):
        self.width = width
        self.stops = list(stops)
        self.unsound: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        odd = ~scores.amax(-1).isfinite()
        stops = torch.tensor(self.stops, device=input_ids.device)
        going = ~torch.isin(input_ids[:, self.width :], stops).any(-1)
        self.unsound = odd & going if self.unsound is None else self.unsound | (odd & going)
        scores = scores.masked_fill(odd[:, None], -math.inf)
        scores[:, self.stops[0]] = scores[:, self.stops[0]].masked_fill(odd, 0.0)
        return scores


@contextlib.contextmanager
def exact_head(model: PreTrainedModel) -> Iterator[None]:
    """Give the model a float32 head and an empty generation config, and put its own back at the end."""
    head, config = model.get_output_embeddings(), model.generation_config
    if isinstance(head, nn.Linear):
        model.set_output_embeddings(_ExactHead(head))
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.set_output_embeddings(head)
        model.generation_config = config


@dataclass(frozen=True)
class Generator:
    """Answers by `generate`: at most `batch` sequences at a time."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    sampling: Sampling
    batch: int

    def say(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `Speaks.say`."""
        torch.manual_seed(seed)
        found = self.answers(prompts, max(limits, default=1), draws)
        return [
            [answer_within(self.vocabulary, path, limit, sound) for path, sound in some]
            for some, limit in zip(found, limits, strict=True)
        ]

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[int]], max_new: int, draws: int | None) -> list[list[Generated]]:
        """For each prompt its greedy answer (`draws` None), or so many drawn ones, as token paths.

        A path keeps its ending token; one without has not ended in `max_new` tokens, or is not sound.
        """
        stops = sorted(self.vocabulary.ends | self.vocabulary.breaks)
        config = GenerationConfig(
            max_new_tokens=max_new,
            do_sample=draws is not None,
            num_return_sequences=draws or 1,
            num_beams=1,
            temperature=self.sampling.temperature if draws else None,
            top_k=self.sampling.top_k if draws else None,
            top_p=1.0 if draws else None,
            repetition_penalty=1.0,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
        device = input_device(self.model)
        found: list[list[Generated]] = []
        many = max(1, self.batch // (draws or 1))
        for start in range(0, len(prompts), many):
            part = prompts[start : start + many]
            width = max(len(p) for p in part)
            ids = torch.full((len(part), width), stops[0], dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, prompt in enumerate(part):
                ids[r, width - len(prompt) :] = torch.tensor(list(prompt))
                mask[r, width - len(prompt) :] = 1
            guard = _Guard(width, stops)
            generate: Any = self.model.generate
            out = generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=copy.deepcopy(config),
                logits_processor=LogitsProcessorList([guard]),
            )
            assert guard.unsound is not None
            lines = zip(out[:, width:].tolist(), guard.unsound.tolist(), strict=True)
            paths = [self._generated(line, unsound) for line, unsound in lines]
            each = draws or 1
            found.extend(paths[i * each : (i + 1) * each] for i in range(len(part)))
        return found

    def _generated(self, tokens: list[int], unsound: bool) -> Generated:
        """Tokens up to and with the first one that ends the answer; without it where it only stopped the sequence."""
        for at, token in enumerate(tokens):
            if self.vocabulary.is_end(token):
                return Generated(tuple(tokens[: at + (not unsound)]), not unsound)
        return Generated(tuple(tokens), not unsound)


def answer_within(vocabulary: Vocabulary, path: TokenPath, limit: int, sound: bool = True) -> Answer:
    """A token path as an answer of at most `limit` tokens, its end with them; beyond them nothing is unsound."""
    ended = sound and len(path) <= limit and vocabulary.ended(path)
    return Answer(vocabulary.said(path[:limit]), ended, sound or len(path) >= limit)


@dataclass(frozen=True)
class Sampler:
    """Probes chunks of rows by generation; takes the place of `Prober` and uses its prompts."""

    prober: Prober
    generator: Speaks
    seed: int

    def prompts(self, rows: pl.DataFrame) -> tuple[list[PreparedRow], list[list[Prompt]]]:
        """The same prompts as the exact probe's."""
        return self.prober.prompts(rows)

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """As `Prober.probe`, with shares of samples really drawn in place of probabilities.

        A prompt behind which any answer is not sound is worth no number, as in the exact probe.
        """
        found, prompts = self.prompts(rows)
        samples = self.prober.settings.samples
        # a chunk's draws depend on the seed and its rows only, so a run that is taken up again draws the same
        seed = (self.seed << 32) + zlib.crc32(str(rows["row"].to_list()).encode())
        pairs = [(r, j) for r in range(len(found)) for j in range(len(prompts[r]))]
        ids = [prompts[r][j].ids for r, j in pairs]
        limits = [found[r].max_new for r, _ in pairs]
        greedy = self.generator.say(ids, limits, None, seed)
        drawn = self.generator.say(ids, limits, samples, seed)
        lines, spoken = [], []
        for (r, j), (best,), tries in zip(pairs, greedy, drawn, strict=True):
            row = found[r]
            strict, lenient = _right(best, row.speller.accepted)
            hits = [_right(answer, row.speller.accepted) for answer in tries]
            sound = best.sound and all(answer.sound for answer in tries)
            share = sum(s for s, _ in hits) / samples if sound else math.nan
            share_lenient = sum(s for _, s in hits) / samples if sound else math.nan
            lines.append(ProbeLine(row, j, strict, lenient, share, share, share_lenient, share_lenient, 0))
            if j == 0:
                spoken.append((row.number, best.said))
        return Chunk(probes_frame(lines), answers_frame(spoken))


def _right(answer: Answer, accepted: Accepted) -> tuple[bool, bool]:
    if not answer.ended:
        return False, False
    return accepted.right(answer.said, "strict"), accepted.right(answer.said, "lenient")
