"""The paper's protocol by real generation: the oracle of `probe.py` (paper, section 2; design, section 8).

Each prompt gets one greedy answer and `samples` drawn ones. Every setting of the model's own generation
config is left out; only ours count. Slower than the exact probe by two orders of magnitude.
"""

from __future__ import annotations

import contextlib
import copy
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from foreknow.engine import Prompt, Sampling
from foreknow.match import Accepted
from foreknow.probe import Chunk, Line, Prober, Row, answers_frame, probes_frame
from foreknow.search import Path, Vocabulary


class _ExactHead(nn.Module):
    """The output head in float32, as the exact probe has it: bf16 logits tie too often to be compared."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight = head.weight.detach().float()
        self.bias = None if head.bias is None else head.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.float(), self.weight, self.bias)


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

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[int]], max_new: int, draws: int | None) -> list[list[Path]]:
        """For each prompt its greedy answer (`draws` None), or so many drawn ones, as token paths.

        A path keeps its ending token; one without has not ended in `max_new` tokens.
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
        device = next(self.model.parameters()).device
        found: list[list[Path]] = []
        many = max(1, self.batch // (draws or 1))
        for start in range(0, len(prompts), many):
            part = prompts[start : start + many]
            width = max(len(p) for p in part)
            ids = torch.full((len(part), width), stops[0], dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, prompt in enumerate(part):
                ids[r, width - len(prompt) :] = torch.tensor(list(prompt))
                mask[r, width - len(prompt) :] = 1
            generate: Any = self.model.generate
            out = generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=copy.deepcopy(config),
            )
            paths = [self._ended(line) for line in out[:, width:].tolist()]
            each = draws or 1
            found.extend(paths[i * each : (i + 1) * each] for i in range(len(part)))
        return found

    def _ended(self, tokens: list[int]) -> Path:
        """Tokens up to and with the first one that ends the answer."""
        for at, token in enumerate(tokens):
            if self.vocabulary.is_end(token):
                return tuple(tokens[: at + 1])
        return tuple(tokens)


@dataclass(frozen=True)
class Sampler:
    """Probes chunks of rows by generation; takes the place of `Prober` and uses its prompts."""

    prober: Prober
    generator: Generator
    seed: int

    def prompts(self, rows: pl.DataFrame) -> tuple[list[Row], list[list[Prompt]]]:
        """The same prompts as the exact probe's."""
        return self.prober.prompts(rows)

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """As `Prober.probe`, with shares of samples really drawn in place of probabilities."""
        found, prompts = self.prompts(rows)
        samples = self.prober.settings.samples
        # a chunk's draws depend on the seed and its rows only, so a run that is taken up again draws the same
        torch.manual_seed((self.seed << 32) + zlib.crc32(str(rows["row"].to_list()).encode()))
        pairs = [(r, j) for r in range(len(found)) for j in range(len(prompts[r]))]
        ids = [prompts[r][j].ids for r, j in pairs]
        longest = max(row.max_new for row in found)
        greedy = self.generator.answers(ids, longest, None)
        drawn = self.generator.answers(ids, longest, samples)
        lines, spoken = [], []
        for (r, j), (best,), tries in zip(pairs, greedy, drawn, strict=True):
            row = found[r]
            strict, lenient = self._right(best, row.max_new, row.speller.accepted)
            hits = [self._right(path, row.max_new, row.speller.accepted) for path in tries]
            share = sum(s for s, _ in hits) / samples
            share_lenient = sum(s for _, s in hits) / samples
            lines.append(Line(row, j, strict, lenient, share, share, share_lenient, share_lenient, 0))
            if j == 0:
                spoken.append((row.number, self.generator.vocabulary.said(best[: row.max_new])))
        return Chunk(probes_frame(lines), answers_frame(spoken))

    def _right(self, path: Path, max_new: int, accepted: Accepted) -> tuple[bool, bool]:
        vocabulary = self.generator.vocabulary
        if len(path) > max_new or not vocabulary.ended(path):
            return False, False
        answer = vocabulary.said(path)
        return accepted.right(answer, "strict"), accepted.right(answer, "lenient")
