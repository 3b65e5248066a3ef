"""Long answers: how likely the model finds them, token by token, with and without their question.

The answer stands behind the run's own zero-shot prompt, and one forward pass gives the probability of each of
its tokens. Nothing is generated and nothing matched: this measures expectation, and says less than a SliCK
category does.
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
from foreknow.inference.lm_head import OutputHead
from foreknow.inference.packed_attention import ATTENTION, round_up
from foreknow.inference.surprisal import LONG, Offsets, offsets_of, surprising
from foreknow.models.loading import input_device
from foreknow.models.packaged import quiet
from foreknow.models.private_api import attention_of, plain_attention, set_attention
from foreknow.prompts.chat_templates import TemplateRefusal
from foreknow.prompts.prompt_template import Context, Prompter, common_prefix

_AT_ONCE: Final = 512
"""States that go through the output head together."""


class Text(NamedTuple):
    """A prompt and an answer tokenised together: `ids[first:last]` are the answer's.

    `offsets`: the characters of the answer that each of its tokens stands for.
    """

    ids: list[int]
    first: int
    last: int
    offsets: list[Offsets]


class LongScorer:
    """Scores long answers with one model and prompt, a batch of padded rows at a time.

    `max_tokens`: of a longer answer so many are scored, and never more than fit the model's positions.
    `batch_tokens`: tokens computed at once, padding included; a longer row is computed alone. The model may
    be inside `PackedModel.attached()`: its own attention is put back while it computes here.
    """

    def __init__(self, model: PreTrainedModel, prompter: Prompter, max_tokens: int = 1024, batch_tokens: int = 2048):
        self.model = model.eval()
        self.prompter = prompter
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens
        self.device = input_device(model)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.positions = positions if isinstance(positions, int) and positions > 0 else 2**31
        with own_attention(model):
            self.split = _split(model, prompter.ids(["What is the capital of Peru?"])[0])

    def score(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Score rows that have a question and answers (columns of `rows.ROWS`).

        Returns the columns of `surprisal.LONG`, sorted by row; the first answer is the one scored. With the
        question: behind the zero-shot prompt of the run's template, earlier turns of its chat included.
        Without: behind the same prompt with an empty text in the question's place and no turns, so many tokens
        as with it. The end of the answer is not scored. A row whose prompt leaves no position for its answer has
        0 scored tokens, null figures and no spans.
        """
        records = rows.select("row", "question", GOLD.alias("gold"), "context").sort("row").rows()
        if not records:
            return pl.DataFrame(schema=LONG)
        with quiet():  # an answer beyond the model's positions is cut here, so there is nothing to warn of
            asked = self.texts([(self._asked(question, context), gold) for _, question, gold, context in records])
            alone = self.texts([(self._asked("", None), gold) for _, _, gold, _ in records])
        extents = [self._extent(a, b) for a, b in zip(asked, alone, strict=True)]
        sequences = [
            (text.ids[: min(text.first + end, text.last)], text.first + begin)
            for pair, (begin, end) in zip(zip(asked, alone, strict=True), extents, strict=True)
            for text in pair
        ]
        found = self.logprobs(sequences)
        lines = []
        for i, ((row, _, gold, _), text, (begin, end)) in enumerate(zip(records, asked, extents, strict=True)):
            own, bare = found[2 * i], found[2 * i + 1]
            lines.append(
                {
                    "row": row,
                    "answer_tokens": text.last - text.first,
                    "scored_tokens": len(own),
                    "logprob": _mean(own),
                    "logprob_alone": _mean(bare),
                    "spans": [span._asdict() for span in surprising(gold, text.offsets[begin:end], own)],
                }
            )
        return pl.DataFrame(lines, schema=LONG)

    def _asked(self, question: str, context: Context | None) -> str:
        try:
            return self.prompter.text([], question, context) + self.prompter.gap
        except TemplateRefusal:
            if question:
                raise
            return self._asked("...", context)  # a chat template may refuse an empty turn

    def texts(self, pairs: Sequence[tuple[str, str]]) -> list[Text]:
        """Prompts and answers as token ids: what the tokenizer gives for prompt and answer together.

        A token that spans the end of the prompt is the answer's. A tokenizer that tells no offsets has the
        answer begin where the ids leave those of the prompt alone.
        """
        prompts = [prompt for prompt, _ in pairs]
        wholes = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
        found = self.prompter.encoded(wholes)
        if not self.prompter.tokenizer.is_fast:
            bare = self.prompter.ids(prompts)
            answers = (answer for _, answer in pairs)
            return [self._aligned(w.ids, ids, said) for w, ids, said in zip(found, bare, answers, strict=True)]
        return [_located(each.ids, each.offsets, len(prompt)) for each, prompt in zip(found, prompts, strict=True)]

    @torch.inference_mode()
    def logprobs(self, sequences: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """For each (ids, first): log p of every id from `first` (at least 1) on, given all before it, in nats."""
        found: list[list[float]] = [[] for _ in sequences]
        wanted = [i for i, (ids, first) in enumerate(sequences) if first < len(ids)]
        most = self.batch_tokens
        if self.split is None:  # the model gives logits at every position
            most = min(most, 2**25 // self.model.config.get_text_config().vocab_size)
        with own_attention(self.model):
            for batch in batches([len(sequences[i][0]) for i in wanted], most):
                part = [wanted[b] for b in batch]
                flat = self._batch([sequences[i] for i in part]).tolist()
                at = 0
                for i in part:
                    ids, first = sequences[i]
                    found[i] = flat[at : at + len(ids) - first]
                    at += len(ids) - first
        return found

    def _batch(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Tensor:
        """All their log-probabilities, end to end."""
        longest = max(len(ids) for ids, _ in sequences)
        width = max(longest, min(round_up(longest, 16), self.positions))
        # padded at the end: what stands behind a token never reaches it
        table = torch.zeros(len(sequences), width, dtype=torch.long)
        spots: list[int] = []
        targets: list[int] = []
        for r, (ids, first) in enumerate(sequences):
            table[r, : len(ids)] = torch.tensor(ids)
            spots += range(r * width + first - 1, r * width + len(ids) - 1)
            targets += ids[first:]
        table = table.to(self.device)
        if self.split is not None:
            states = self.split.body(input_ids=table, use_cache=False).last_hidden_state.flatten(0, 1)
            states = states.index_select(0, torch.tensor(spots, device=states.device))
            return log_probs(self.split.pieces, states, torch.tensor(targets, device=self.split.device))
        spot, target = torch.tensor(spots, device=self.device), torch.tensor(targets, device=self.device)
        logits = self.model(input_ids=table, use_cache=False).logits.flatten(0, 1)
        parts = [
            logits[s].float().log_softmax(-1).gather(1, t[:, None])[:, 0]
            for s, t in zip(spot.split(64), target.split(64), strict=True)
        ]
        return torch.cat(parts)

    def _extent(self, asked: Text, alone: Text) -> tuple[int, int]:
        """The answer's tokens that are scored, first and last (exclusive), counted from its first."""
        # an answer that begins the text has nothing before its first token
        begin = int(min(asked.first, alone.first) == 0)
        room = self.positions - max(asked.first, alone.first)
        return begin, max(begin, min(asked.last - asked.first, room, begin + self.max_tokens))

    def _aligned(self, ids: list[int], prompt: Sequence[int], answer: str) -> Text:
        """The answer's tokens by the ids alone: those that are not the prompt's, without special ones at the end."""
        tokenizer = self.prompter.tokenizer
        special = set(tokenizer.all_special_ids)
        texts = [str(tokenizer.decode([i])) for i in ids]
        last = len(ids)
        while last and ids[last - 1] in special and not answer.endswith(texts[last - 1]):
            last -= 1
        first = min(common_prefix(prompt, ids), last)
        return Text(ids, first, last, offsets_of(texts[first:last], answer))


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within `PackedModel.attached()`: the attention the model itself would choose, until the end."""
    before = attention_of(model)
    if before == ATTENTION:
        set_attention(model, plain_attention(model))
    try:
        yield
    finally:
        if before == ATTENTION:
            set_attention(model, before)


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices by length, cut into batches of at most `tokens` tokens with padding; a longer one stands alone."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not found or (len(found[-1]) + 1) * round_up(lengths[i], 16) > tokens:
            found.append([])
        found[-1].append(i)
    return found


def pieces(head: OutputHead, floats: int = 2**25) -> list[OutputHead]:
    """The head cut into vocabularies that take about `floats` floats (4 bytes each) to compute with."""
    size = max(1, floats // (head.weight.shape[1] + 2 * _AT_ONCE))
    found = []
    for start in range(0, head.weight.shape[0], size):
        piece = copy.copy(head)
        piece.weight = head.weight[start : start + size]
        piece.bias = None if head.bias is None else head.bias[start : start + size]
        found.append(piece)
    return found


def log_probs(head: Sequence[OutputHead], states: Tensor, targets: Tensor) -> Tensor:
    """log p of `targets` [n] after `states` [n, hidden] in float32, piece by piece of the vocabulary."""
    found = []
    for part, wanted in zip(states.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
        total = torch.full(wanted.shape, -math.inf, device=wanted.device)
        own, start = total, 0
        for piece in head:
            size = piece.weight.shape[0]
            logits = piece.full_logits(part)
            total = torch.logaddexp(total, logits.logsumexp(-1))
            ids = wanted - start
            value = logits.gather(1, ids.clamp(0, size - 1)[:, None])[:, 0]
            own = torch.where((ids >= 0) & (ids < size), value, own)
            start += size
        found.append(own - total)
    return torch.cat(found)


class _Split(NamedTuple):
    """A model as its body and its head in pieces."""

    body: nn.Module
    pieces: list[OutputHead]

    @property
    def device(self) -> torch.device:
        """The head's."""
        return self.pieces[0].weight.device


@torch.inference_mode()
def _split(model: PreTrainedModel, ids: Sequence[int]) -> _Split | None:
    """Body and head, where together they give the model's own logits on `ids`; otherwise None."""
    body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    if not isinstance(body, nn.Module) or body is model or getattr(head, "weight", None) is None:
        return None
    if head.weight.device.type == "meta":  # fetched at each pass (`device_map`)
        return None
    split = _Split(body, pieces(OutputHead(cast(nn.Linear, head), model.config.get_text_config())))
    text = torch.tensor([list(ids)], device=input_device(model))
    plain = model(input_ids=text, use_cache=False).logits[0].float()
    states = body(input_ids=text, use_cache=False).last_hidden_state[0]
    ours = torch.cat([piece.full_logits(states) for piece in split.pieces], dim=-1).to(plain.device)
    limit = 1e-3 if head.weight.dtype == torch.float32 else 0.05
    same = ours.shape == plain.shape and float((ours - plain).abs().mean() / plain.std().clamp(min=1e-6)) <= limit
    return split if same else None


def _located(ids: list[int], offsets: Sequence[Offsets], start: int) -> Text:
    """The answer's tokens in a whole text whose answer begins at character `start`."""
    inside = [t for t, (_, end) in enumerate(offsets) if end > start]
    first, last = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
    return Text(ids, first, last, [(max(a - start, 0), b - start) for a, b in offsets[first:last]])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
