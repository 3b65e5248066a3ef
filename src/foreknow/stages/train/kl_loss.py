"""Holds the model to its own predictions before training at the answers of known rows (`--kl`).

The loss added is KL(p || q) = sum over tokens of p log(p / q), the mean over the answer tokens of the batch's known
rows. p is the next-token distribution of the model before training (the *teacher*) and q that of the model now. The
teacher's log-probabilities are computed once, before the first step, and only the `k` likeliest tokens of each position
are stored; the rest of the vocabulary counts as one more token, the *tail*, with the sum of its probabilities. Merging
tokens into one never makes the divergence larger, so this is a lower bound of the whole one, and equal to it if k is
the size of the vocabulary.

A base model hardly answers in the form in which rows are trained on, so holding it there to its own predictions holds
it to not answering. So the teacher may read the same answers behind a prompt with exemplars (`kl_teacher.py`). There an
answer ends otherwise than in training, and the divergence at the token that ends it does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreknow.io.run_dir import fingerprint, write_whole
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.replay import is_replay
from foreknow.stages.train.training_examples import TrainingExample

if TYPE_CHECKING:
    from foreknow.stages.train.asking_model import AskingModel

TOP_K: Final = 64
"""How many of the teacher's likeliest tokens are stored for each position."""


class Teacher(NamedTuple):
    """Holds the predictions of the model before training at every answer token of a pool.

    `tokens`: int64 [positions, k], the likeliest tokens. `log_p`: float32 [positions, k]. `log_tail`: float32
    [positions], the log of the probability of all other tokens. `start`: the first position of each row of the pool
    (row -1 - n has place n), and at the end the number of positions.
    """

    tokens: Tensor
    log_p: Tensor
    log_tail: Tensor
    start: tuple[int, ...]

    def at(self, rows: Sequence[TrainingExample]) -> Teacher:
        """Return the predictions at the answer tokens of these rows of the pool, in their order."""
        places = [torch.arange(self.start[-1 - e.row], self.start[-e.row]) for e in rows]
        chosen = torch.cat(places) if places else torch.empty(0, dtype=torch.long)
        return Teacher(self.tokens[chosen], self.log_p[chosen], self.log_tail[chosen], ())


def joined(teachers: Sequence[Teacher]) -> Teacher:
    """Return the predictions of several teachers one after the other, without the places of rows (`start`)."""
    columns = [torch.cat([teacher[n] for teacher in teachers]) for n in range(3)]  # type: ignore[misc]
    return Teacher(columns[0], columns[1], columns[2], ())


@torch.no_grad()
def teacher_of(asking: AskingModel, pool: Sequence[TrainingExample], k: int = TOP_K) -> Teacher:
    """Compute the `k` likeliest tokens at the answers of a pool, whose rows are numbered -1, -2, ... in order."""
    by_row: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    with asking.evaluating():
        for part in micro_batches(pool, asking.tokens):
            ordered, logits = asking.losses.logits(part)
            log_probs = logits.double().log_softmax(-1)
            top = log_probs.topk(min(k, logits.shape[-1]), dim=-1)
            rest = (1 - top.values.exp().sum(-1)).clamp(min=0.0)
            tail = rest.log() if k < logits.shape[-1] else torch.full_like(rest, -torch.inf)
            sizes = [len(example.answer) for example in ordered]
            parts = (top.indices.cpu(), top.values.float().cpu(), tail.float().cpu())
            for example, *own in zip(ordered, *(whole.split(sizes) for whole in parts), strict=True):
                by_row[example.row] = (own[0], own[1], own[2])
    start = [0]
    for example in pool:
        start.append(start[-1] + len(example.answer))
    columns = [torch.cat([by_row[example.row][n] for example in pool]) for n in range(3)]
    return Teacher(columns[0], columns[1], columns[2], tuple(start))


def kl_to_teacher(logits: Tensor, teacher: Teacher) -> Tensor:
    """Return KL(teacher || model) at each position in nats, float32 [positions], with gradients.

    `logits`: the model's, [positions, vocabulary]. `teacher`: its predictions at the same positions (`Teacher.at`).
    """
    tokens = teacher.tokens.to(logits.device)
    log_p, log_tail = teacher.log_p.to(logits.device), teacher.log_tail.to(logits.device)
    total = logits.logsumexp(-1, keepdim=True)
    divergence = (log_p.exp() * (log_p - (logits.gather(-1, tokens) - total))).sum(-1)
    if tokens.shape[-1] == logits.shape[-1]:
        return divergence
    # the tail's log-probability, from the logits of its own tokens: 1 - sum of the others would lose all digits
    rest = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1) - total.squeeze(-1)
    has_tail = log_tail > -torch.inf
    safe = log_tail.masked_fill(~has_tail, 0.0)
    return divergence + torch.where(has_tail, safe.exp() * (safe - rest), 0.0)


def write_teacher(path: Path, teacher: Teacher, key: str) -> None:
    """Write the predictions as safetensors. `key`: what they were computed from (`teacher_key`)."""
    tensors = {"tokens": teacher.tokens, "log_p": teacher.log_p, "log_tail": teacher.log_tail}
    tensors["start"] = torch.tensor(teacher.start)
    write_whole(path, lambda part: save_file(tensors, part, metadata={"key": key}))


def read_teacher(path: Path, key: str) -> Teacher | None:
    """Read predictions; None if the file is missing, damaged or was computed from something else."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            own = {name: file.get_tensor(name) for name in ("tokens", "log_p", "log_tail", "start")}
    except (OSError, SafetensorError):
        return None
    return Teacher(own["tokens"], own["log_p"], own["log_tail"], tuple(own["start"].tolist()))


def teacher_key(model: str, pool: str, k: int, dtype: str) -> str:
    """Return a hash of what predictions depend on: the fingerprints of model and pool, `k` and the dtype."""
    return fingerprint([model, pool, k, dtype])


class KlTerm(NamedTuple):
    """Holds what `--kl` adds to the loss: `weight` times the mean divergence from the teacher.

    `skips_end`: the token that ends an answer does not count.
    """

    weight: float
    teacher: Teacher
    skips_end: bool = False

    def counted(self, example: TrainingExample) -> list[bool]:
        """Return whether the divergence at each token of a row's answer counts; only the pool's rows have any."""
        counts = is_replay(example)
        return [counts] * (len(example.answer) - 1) + [counts and not self.skips_end]

    def divergences(self, logits: Tensor, rows: Sequence[TrainingExample]) -> Tensor:
        """Return KL(teacher || model) at the counted answer tokens of those of `rows` that are from the pool, float32.

        `logits`: the model's at the answer tokens of all `rows`, in their order, [tokens, vocabulary].
        """
        own = [example for example in rows if is_replay(example)]
        places = torch.tensor([counts for example in rows for counts in self.counted(example)], device=logits.device)
        kept = torch.tensor([counts for example in own for counts in self.counted(example)])
        teacher = self.teacher.at(own)
        return kl_to_teacher(
            logits[places], Teacher(teacher.tokens[kept], teacher.log_p[kept], teacher.log_tail[kept], ())
        )
