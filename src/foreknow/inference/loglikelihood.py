"""Scores long answers: the log-probability of each token, with and without the question.

The answer follows the run's own zero-shot prompt, and one forward pass gives the probability of each of its tokens.
Nothing is generated or matched: this measures how expected the answer is, and says less than a SliCK category.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, cast

import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreknow.data.schema import GOLD
from foreknow.inference.answer_tokens import Text, tokenize_answers
from foreknow.inference.lm_head import OutputHead
from foreknow.inference.packed_attention import ATTENTION
from foreknow.inference.packing import round_up
from foreknow.inference.surprisal import LONG, surprising_spans
from foreknow.models.loading import input_device
from foreknow.models.positions import UNLIMITED, positions_of
from foreknow.models.private_api import attention_of, plain_attention, set_attention
from foreknow.models.quiet import quiet
from foreknow.prompts.chat_templates import TemplateRefusal
from foreknow.prompts.prompt_template import Context, Prompter

_AT_ONCE: Final = 512
"""States in one call of the output head."""


class LongScorer:
    """Scores long answers with one model and prompt, a batch of padded rows at a time.

    `max_tokens`: the most tokens of an answer that are scored, also limited by the model's positions.
    `batch_tokens`: the most tokens of a batch, padding included; a longer row is computed alone. The model may be
    inside `PackedModel.attached()`: the scorer restores the model's own attention while it computes.
    """

    def __init__(self, model: PreTrainedModel, prompter: Prompter, max_tokens: int = 1024, batch_tokens: int = 2048):
        self.model = model.eval()
        self.prompter = prompter
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens
        self.device = input_device(model)
        self.positions = positions_of(model.config) or UNLIMITED
        with own_attention(model):
            self.split = _split_model(model, prompter.ids(["What is the capital of Peru?"])[0])

    def score(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Score rows that have a question and answers (columns of `rows.ROWS`).

        Returns the columns of `surprisal.LONG`, sorted by row, for each row's first answer. With the question, the
        answer follows the zero-shot prompt of the run's template, including earlier turns of its chat. Without the
        question, it follows the same prompt with an empty question and no turns, and the same number of tokens is
        scored. The token that ends the answer is not scored. A row whose prompt leaves no position for its answer
        has 0 scored tokens, null figures and no spans.
        """
        records = rows.select("row", "question", GOLD.alias("gold"), "context").sort("row").rows()
        if not records:
            return pl.DataFrame(schema=LONG)
        with quiet():  # no warning needed: answers are cut to the model's positions below
            with_question = self.texts(
                [(self._prompt_text(question, context), gold) for _, question, gold, context in records]
            )
            without_question = self.texts([(self._prompt_text("", None), gold) for _, _, gold, _ in records])
        extents = [self._scored_range(a, b) for a, b in zip(with_question, without_question, strict=True)]
        sequences = [
            (text.ids[: min(text.first + end, text.last)], text.first + begin)
            for pair, (begin, end) in zip(zip(with_question, without_question, strict=True), extents, strict=True)
            for text in pair
        ]
        logprobs = self.logprobs(sequences)
        lines = []
        for i, ((row, _, gold, _), text, (begin, end)) in enumerate(zip(records, with_question, extents, strict=True)):
            with_logprobs, without = logprobs[2 * i], logprobs[2 * i + 1]
            lines.append(
                {
                    "row": row,
                    "answer_tokens": text.last - text.first,
                    "scored_tokens": len(with_logprobs),
                    "logprob": _mean(with_logprobs),
                    "logprob_alone": _mean(without),
                    "spans": [
                        span._asdict() for span in surprising_spans(gold, text.offsets[begin:end], with_logprobs)
                    ],
                }
            )
        return pl.DataFrame(lines, schema=LONG)

    def _prompt_text(self, question: str, context: Context | None) -> str:
        try:
            return self.prompter.text([], question, context) + self.prompter.gap
        except TemplateRefusal:
            if question:
                raise
            return self._prompt_text("...", context)  # this chat template refuses an empty turn

    def texts(self, pairs: Sequence[tuple[str, str]]) -> list[Text]:
        """Tokenise each prompt and answer together (`tokenize_answers`)."""
        return tokenize_answers(self.prompter, pairs)

    @torch.inference_mode()
    def logprobs(self, sequences: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """Return for each (ids, first) log p in nats of every id from `first` (at least 1) on, given the ids before."""
        logprobs: list[list[float]] = [[] for _ in sequences]
        scored = [i for i, (ids, first) in enumerate(sequences) if first < len(ids)]
        most = self.batch_tokens
        if self.split is None:  # the model returns logits at every position
            most = min(most, 2**25 // self.model.config.get_text_config().vocab_size)
        with own_attention(self.model):
            for batch in batches([len(sequences[i][0]) for i in scored], most):
                part = [scored[b] for b in batch]
                flat = self._batch_logprobs([sequences[i] for i in part]).tolist()
                offset = 0
                for i in part:
                    ids, first = sequences[i]
                    logprobs[i] = flat[offset : offset + len(ids) - first]
                    offset += len(ids) - first
        return logprobs

    def _batch_logprobs(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Tensor:
        """Return the log-probabilities of all sequences, concatenated."""
        longest = max(len(ids) for ids, _ in sequences)
        width = max(longest, min(round_up(longest, 16), self.positions))
        # right padding: in a causal model it never changes the tokens before it
        table = torch.zeros(len(sequences), width, dtype=torch.long)
        positions: list[int] = []
        targets: list[int] = []
        for r, (ids, first) in enumerate(sequences):
            table[r, : len(ids)] = torch.tensor(ids)
            positions += range(r * width + first - 1, r * width + len(ids) - 1)
            targets += ids[first:]
        table = table.to(self.device)
        if self.split is not None:
            states = self.split.body(input_ids=table, use_cache=False).last_hidden_state.flatten(0, 1)
            states = states.index_select(0, torch.tensor(positions, device=states.device))
            return log_probs(self.split.pieces, states, torch.tensor(targets, device=self.split.device))
        position, target = torch.tensor(positions, device=self.device), torch.tensor(targets, device=self.device)
        logits = self.model(input_ids=table, use_cache=False).logits.flatten(0, 1)
        parts = [
            logits[s].float().log_softmax(-1).gather(1, t[:, None])[:, 0]
            for s, t in zip(position.split(64), target.split(64), strict=True)
        ]
        return torch.cat(parts)

    def _scored_range(self, with_question: Text, without_question: Text) -> tuple[int, int]:
        """Return the range of the answer's tokens that are scored: first and last (exclusive), from its first token."""
        # the first token of a text has no log-probability
        begin = int(min(with_question.first, without_question.first) == 0)
        room = self.positions - max(with_question.first, without_question.first)
        return begin, max(begin, min(with_question.last - with_question.first, room, begin + self.max_tokens))


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside `PackedModel.attached()`, use the model's own attention within this context."""
    before = attention_of(model)
    if before == ATTENTION:
        set_attention(model, plain_attention(model))
    try:
        yield
    finally:
        if before == ATTENTION:
            set_attention(model, before)


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Batch indices, sorted by length, with at most `tokens` tokens including padding; a longer one is alone."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * round_up(lengths[i], 16) > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def split_head(head: OutputHead, floats: int = 2**25) -> list[OutputHead]:
    """Split the head along the vocabulary into pieces that need about `floats` floats (4 bytes each) to compute."""
    size = max(1, floats // (head.weight.shape[1] + 2 * _AT_ONCE))
    pieces = []
    for start in range(0, head.weight.shape[0], size):
        piece = copy.copy(head)
        piece.weight = head.weight[start : start + size]
        piece.bias = None if head.bias is None else head.bias[start : start + size]
        pieces.append(piece)
    return pieces


def log_probs(head: Sequence[OutputHead], states: Tensor, targets: Tensor) -> Tensor:
    """Compute the log p in float32 of `targets` [n] after `states` [n, hidden], one piece of the head at a time."""
    logprobs = []
    for part, part_targets in zip(states.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
        total = torch.full(part_targets.shape, -math.inf, device=part_targets.device)
        own, start = total, 0
        for piece in head:
            size = piece.weight.shape[0]
            logits = piece.full_logits(part)
            total = torch.logaddexp(total, logits.logsumexp(-1))
            ids = part_targets - start
            value = logits.gather(1, ids.clamp(0, size - 1)[:, None])[:, 0]
            own = torch.where((ids >= 0) & (ids < size), value, own)
            start += size
        logprobs.append(own - total)
    return torch.cat(logprobs)


class _SplitModel(NamedTuple):
    """A model split into its body and the pieces of its head."""

    body: nn.Module
    pieces: list[OutputHead]

    @property
    def device(self) -> torch.device:
        """Return the head's device."""
        return self.pieces[0].weight.device


@torch.inference_mode()
def _split_model(model: PreTrainedModel, ids: Sequence[int]) -> _SplitModel | None:
    """Return the model's body and head; None unless together they compute the model's own logits on `ids`."""
    body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    if not isinstance(body, nn.Module) or body is model or getattr(head, "weight", None) is None:
        return None
    if head.weight.device.type == "meta":  # accelerate fetches the weight at each pass (`device_map`)
        return None
    split = _SplitModel(body, split_head(OutputHead(cast(nn.Linear, head), model.config.get_text_config())))
    text = torch.tensor([list(ids)], device=input_device(model))
    plain = model(input_ids=text, use_cache=False).logits[0].float()
    states = body(input_ids=text, use_cache=False).last_hidden_state[0]
    ours = torch.cat([piece.full_logits(states) for piece in split.pieces], dim=-1).to(plain.device)
    limit = 1e-3 if head.weight.dtype == torch.float32 else 0.05
    same = ours.shape == plain.shape and float((ours - plain).abs().mean() / plain.std().clamp(min=1e-6)) <= limit
    return split if same else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
