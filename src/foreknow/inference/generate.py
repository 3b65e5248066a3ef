"""The paper's protocol by real generation: the oracle of `exact_probe.py` (paper, section 2; design, section 8).

Each prompt gets one greedy answer and `samples` sampled ones. The model's own generation config is ignored; only
our settings count. Generation is two orders of magnitude slower than the exact probe.
"""

from __future__ import annotations

import contextlib
import copy
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import polars as pl
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from foreknow.data.exact_match import Accepted
from foreknow.inference.engine import Sampling
from foreknow.inference.exact_probe import Chunk, answers_frame, probes_frame
from foreknow.inference.prompt_builder import PreparedPrompts, PromptBuilder
from foreknow.models.loading import input_device
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

_FIGURES: Final = (
    "greedy_correct", "greedy_lenient", "p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper", "expansions",
)  # fmt: skip
"""The columns of `slick.PROBES` that a model decides."""


class Answer(NamedTuple):
    """A generated answer: its text, with an ellipsis if it had not ended when its tokens were used up.

    `sound`: whether all logits it was sampled from were finite; the text means nothing where they were not.
    """

    text: str
    ended: bool
    sound: bool = True


class GeneratedPath(NamedTuple):
    """A token path with its ending token, if it has one. `sound`: whether the logits after it were finite."""

    path: TokenPath
    sound: bool


class AnswerGenerator(Protocol):
    """Generates answers: a model here (`Generator`), a server (`server/sampling.py`) or vLLM (`vllm_generator.py`)."""

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """Return the greedy answer to each prompt (`draws` None), or `draws` sampled answers to each.

        `limits`: for each prompt, the most tokens of an answer, its end included. The same `seed` gives the same
        answers where the generator supports seeds.
        """
        ...


class _ExactHead(nn.Module):
    """The output head in float32, as in the exact probe: bf16 logits tie too often to be compared.

    It computes on its weight's device. It fetches a weight that accelerate offloads to main memory or disk at each
    call.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.layer = head
        self._read_weights()

    def _read_weights(self) -> None:
        self.weight = self.layer.weight.detach().float()
        self.bias = None if self.layer.bias is None else self.layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.device.type != "meta":
            return nn.functional.linear(x.to(self.weight.device).float(), self.weight, self.bias)
        with align_module_device(self.layer):
            head = _ExactHead(self.layer)
            return nn.functional.linear(x.to(head.weight.device).float(), head.weight, head.bias)


class _Guard(LogitsProcessor):
    """Ends and marks an answer where its logits leave nothing to sample (NaN, infinity, all -infinity).

    `unsound` [sequences]: the marked answers. Tokens after an answer's end are ignored.
    """

    def __init__(self, width: int, stops: Sequence[int]):
        self.width = width
        self.stops = list(stops)
        self.unsound: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_invalid = ~scores.amax(-1).isfinite()
        stops = torch.tensor(self.stops, device=input_ids.device)
        is_unfinished = ~torch.isin(input_ids[:, self.width :], stops).any(-1)
        self.unsound = (
            is_invalid & is_unfinished if self.unsound is None else self.unsound | (is_invalid & is_unfinished)
        )
        scores = scores.masked_fill(is_invalid[:, None], -math.inf)
        scores[:, self.stops[0]] = scores[:, self.stops[0]].masked_fill(is_invalid, 0.0)
        return scores


@contextlib.contextmanager
def exact_head(model: PreTrainedModel) -> Iterator[None]:
    """Give the model a float32 head and an empty generation config; restore its own at the end."""
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
    """Generates answers by transformers' `generate`, at most `batch` sequences at a time."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    sampling: Sampling
    batch: int

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `AnswerGenerator.generate`."""
        torch.manual_seed(seed)
        paths = self.answers(prompts, max(limits, default=1), draws)
        return [
            [answer_within(self.vocabulary, path, limit, sound) for path, sound in prompt_paths]
            for prompt_paths, limit in zip(paths, limits, strict=True)
        ]

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[int]], max_new: int, draws: int | None) -> list[list[GeneratedPath]]:
        """Return the greedy answer to each prompt (`draws` None), or `draws` sampled answers to each, as token paths.

        A path includes its ending token; a path without one did not end in `max_new` tokens, or is not sound.
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
        answers: list[list[GeneratedPath]] = []
        prompt_count = max(1, self.batch // (draws or 1))
        for start in range(0, len(prompts), prompt_count):
            part = prompts[start : start + prompt_count]
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
            paths = [self._truncate_path(line, unsound) for line, unsound in lines]
            count = draws or 1
            answers.extend(paths[i * count : (i + 1) * count] for i in range(len(part)))
        return answers

    def _truncate_path(self, tokens: list[int], unsound: bool) -> GeneratedPath:
        """Return the tokens up to the first one that ends the answer, which is left out where `_Guard` put it there."""
        for at, token in enumerate(tokens):
            if self.vocabulary.is_end(token):
                return GeneratedPath(tuple(tokens[: at + (not unsound)]), not unsound)
        return GeneratedPath(tuple(tokens), not unsound)


def answer_within(vocabulary: Vocabulary, path: TokenPath, limit: int, sound: bool = True) -> Answer:
    """Return a token path as an answer of at most `limit` tokens, its end included; tokens beyond them do not count."""
    ended = sound and len(path) <= limit and vocabulary.ended(path)
    return Answer(vocabulary.said(path[:limit]), ended, sound or len(path) >= limit)


@dataclass(frozen=True)
class Sampler:
    """Probes chunks of rows by generation, in place of `Prober`. `samples`: how many answers are drawn for a prompt."""

    prompts: PromptBuilder
    generator: AnswerGenerator
    samples: int
    seed: int

    def probe(self, rows: pl.DataFrame, prepared: PreparedPrompts | None = None) -> Chunk:
        """Probe rows like `Prober.probe`, with shares of generated samples in place of probabilities.

        The share of a prompt is NaN if any of its answers is not sound, as in the exact probe.
        """
        prepared_rows, prompts = prepared or self.prompts.build(rows)
        # a chunk's samples depend only on the seed and its rows, so a resumed run gives the same answers
        seed = (self.seed << 32) + zlib.crc32(str(rows["row"].to_list()).encode())
        pairs = [(r, j) for r in range(len(prepared_rows)) for j in range(len(prompts[r]))]
        ids = [prompts[r][j].ids for r, j in pairs]
        limits = [prepared_rows[r].max_new for r, _ in pairs]
        greedy = self.generator.generate(ids, limits, None, seed)
        samples = self.generator.generate(ids, limits, self.samples, seed)
        accepted = [Accepted.of(row.answers) for row in prepared_rows]
        lines, model_answers = [], []
        for (r, j), (best,), answers in zip(pairs, greedy, samples, strict=True):
            strict, lenient = _is_right(best, accepted[r])
            hits = [_is_right(answer, accepted[r]) for answer in answers]
            sound = best.sound and all(answer.sound for answer in answers)
            share = sum(s for s, _ in hits) / self.samples if sound else math.nan
            share_lenient = sum(s for _, s in hits) / self.samples if sound else math.nan
            lines.append((strict, lenient, share, share, share_lenient, share_lenient, 0))
            if j == 0:
                model_answers.append((prepared_rows[r].number, best.text))
        figures = dict(zip(_FIGURES, zip(*lines, strict=True), strict=True))
        return Chunk(probes_frame(prepared_rows, len(prompts[0]), figures), answers_frame(model_answers))

    def halve_batches(self) -> None:
        """Halve nothing: how many answers are generated at once stays as it is."""


def _is_right(answer: Answer, accepted: Accepted) -> tuple[bool, bool]:
    if not answer.ended:
        return False, False
    return accepted.right(answer.text, "strict"), accepted.right(answer.text, "lenient")
