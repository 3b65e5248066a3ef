"""Finds out how a user's own trainer writes a question, from the token ids and labels of the trainer's rows.

A callback that asks in another form than the rows are trained in measures that nothing is learnt, even if it is. This
module therefore compares forms with the trainer's rows token by token: the paper's form, the tokenizer's chat template,
and then the texts that surround the question in those rows.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.data.schema import GOLD
from foreknow.errors import ConfigError, ForeknowError
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.mix.span_edits import LOSS_EXCLUDE
from foreknow.stages.train.answer_places import answer_places, tokens_in
from foreknow.stages.train.label_check import IGNORED, collated_rows, split_texts, tensor_of
from foreknow.stages.train.training_examples import TRAINING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST: Final = 200
"""The largest number of the trainer's rows that are read."""
AGREE: Final = 0.9
"""A form counts as the trainer's if at least this share of the watched rows found in its data is written in it."""


class TrainerText(NamedTuple):
    """Holds one text of the trainer: the ids before its last run of labels, and the ids of that run.

    `learnt`: for the ids of both, whether each is a label.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    learnt: tuple[bool, ...] = ()


class Pair(NamedTuple):
    """Holds a text of the trainer, split before its answer, and the watched row that it contains."""

    text: TrainerText
    question: str
    context: list[dict[str, str]] | None
    gold: str


class TrainerFormat(NamedTuple):
    """Holds how the trainer writes questions: through the chat template (`chat`), or by `template`.

    `ends`: the last labelled ids of its texts, which end an answer. `pairs`: the number of texts from which the form
    was found.
    """

    template: Template
    chat: bool
    ends: frozenset[int]
    pairs: int


def read_texts(loader: Any) -> list[TrainerText]:
    """Return the texts of a trainer's data loader; the list is empty if its rows cannot be collated one by one."""
    texts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row, batch in collated_rows(loader, MOST):
            ids, labels = tensor_of(batch, "input_ids"), tensor_of(batch, "labels")
            if ids is None or labels is None or ids.shape != labels.shape:
                return []
            parts = zip(
                split_texts(row, batch, ids.reshape(-1)), split_texts(row, batch, labels.reshape(-1)), strict=True
            )
            for own_ids, own_labels in parts:
                learnt = (own_labels != IGNORED).nonzero().flatten().tolist()
                if not learnt:
                    continue
                begin = end = learnt[-1]
                while begin > 0 and int(own_labels[begin - 1]) != IGNORED:
                    begin -= 1
                whole = own_ids.tolist()
                is_label = tuple((own_labels[: end + 1] != IGNORED).tolist())
                texts.append(TrainerText(tuple(whole[:begin]), tuple(whole[begin : end + 1]), is_label))
    return texts


def pair_texts(texts: Sequence[TrainerText], rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Pair each text with the watched row whose question and gold it has; leave out texts without such a row.

    `rows`: the watched rows, a frame with question, context and answers.
    """
    by_gold: dict[str, list[tuple[str, Any]]] = {}
    for question, context, gold in rows.select("question", "context", GOLD).iter_rows():
        if question.strip() and gold.strip():
            by_gold.setdefault(gold.strip(), []).append((question, context))
    pairs = []
    for text in texts:
        answer = _decode(tokenizer, text.answer, special=False).strip()
        prompt = _decode(tokenizer, text.prompt, special=True)
        matches = [(q, c, answer, text) for q, c in by_gold.get(answer, ()) if q.strip() in prompt]
        matches = matches or _in_unmasked(text, by_gold, tokenizer)
        if matches:
            question, context, gold, parted = max(matches, key=lambda match: len(match[0]))
            pairs.append(Pair(parted, question, context, gold))
    return pairs


def _in_unmasked(
    text: TrainerText, by_gold: Mapping[str, list[tuple[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, Any, str, TrainerText]]:
    """Find the watched rows whose question is in a text that is learnt as a whole and whose gold ends that text.

    Each match has the question, the context, the gold, and the text split before the gold.
    """
    ids = [*text.prompt, *text.answer]
    plain = _decode(tokenizer, ids, special=False).rstrip()
    matches = []
    for gold, asked in by_gold.items():
        if not plain.endswith(gold):
            continue
        before = len(plain) - len(gold)
        for question, context in asked:
            if question.strip() in plain[:before]:
                begin = _first_token(ids, before, tokenizer)
                parted = text._replace(prompt=tuple(ids[:begin]), answer=tuple(ids[begin:]))
                matches.append((question, context, gold, parted))
    return matches


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special))


def _first_token(ids: Sequence[int], characters: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the index of the token that follows the first `characters` characters of a text, ignoring blanks."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        decoded = _decode(tokenizer, ids[:middle], special=False)
        low, high = (middle, high) if len(decoded.rstrip()) <= characters else (low, middle - 1)
    return low


def find_format(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, bos: str = "auto") -> TrainerFormat | None:
    """Find the form in which at least `AGREE` of the pairs are written, compared token by token.

    Returns None if there is no such form, or no pair.
    """
    if not pairs:
        return None
    ends = frozenset(pair.text.answer[-1] for pair in pairs if pair.text.answer[-1] in tokenizer.all_special_ids)
    for template, chat in [
        (TRAINING, False),
        (TRAINING, True),
        *((one, False) for one in _templates(pairs, tokenizer)),
    ]:
        with contextlib.suppress(ForeknowError):
            prompter = Prompter(tokenizer, template, chat, bos)  # type: ignore[arg-type]
            if share_written(pairs, prompter) >= AGREE:
                return TrainerFormat(template, chat, ends, len(pairs))
    return None


def share_written(pairs: Sequence[Pair], prompter: Prompter) -> float:
    """Return the share of the pairs that the prompter writes with the same ids as the trainer (`is_written`)."""
    return sum(is_written(pair, prompter) for pair in pairs) / max(len(pairs), 1)


def is_written(pair: Pair, prompter: Prompter) -> bool:
    """Return whether the prompter writes a pair's prompt and answer with the same ids as the trainer."""
    text = prompter.text((), pair.question, pair.context)
    prompt = prompter.ids([text])[0]
    whole = [*pair.text.prompt, *pair.text.answer]
    answer = prompter.answer_ids(text, prompt, pair.gold)
    return whole[: len(prompt) + len(answer)] == [*prompt, *answer]


def count_learnt_masks(pairs: Sequence[Pair], rows: pl.DataFrame, prompter: Prompter) -> tuple[int, int]:
    """Count the texts of the trainer that learn a masked token, and all texts whose row masks any.

    `rows`: the watched rows (`dataset.SET`), whose `loss_exclude` lists the characters of the gold that are masked.
    """
    masks: dict[tuple[str, str], tuple[str, list[list[int]]]] = {}
    masked_rows = rows.filter(pl.col(LOSS_EXCLUDE).is_not_null())
    for question, gold, ranges in masked_rows.select("question", GOLD, LOSS_EXCLUDE).iter_rows():
        masks[question, gold.strip()] = (gold, ranges)
    learnt = masked = 0
    for pair in pairs:
        if (pair.question, pair.gold.strip()) not in masks:
            continue
        gold, ranges = masks[pair.question, pair.gold.strip()]
        blanks = len(gold) - len(gold.lstrip())
        text = prompter.text((), pair.question, pair.context)
        prompt = prompter.ids([text])[0]
        ids = prompter.answer_ids(text, prompt, gold.strip())
        places = answer_places(prompter, text, gold.strip(), ids)
        tokens = tokens_in(places, [(start - blanks, end - blanks) for start, end in ranges])
        is_label = pair.text.learnt[len(prompt) :]
        masked += 1
        learnt += any(is_label[at] for at in tokens if at < len(is_label))
    return learnt, masked


def check_format(pairs: Sequence[Pair], prompter: Prompter, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError, with both texts, if the trainer's rows are not written as the prompter writes them."""
    if not pairs or share_written(pairs, prompter) >= AGREE:
        return
    pair = next(pair for pair in pairs if not is_written(pair, prompter))
    ours = str(prompter.text((), pair.question, pair.context)) + prompter.gap + pair.gold
    theirs = _decode(tokenizer, [*pair.text.prompt, *pair.text.answer], special=True)
    raise ConfigError(
        "KnowledgeCallback: it asks in another form than the trainer trains in, so it would see nothing learnt.\n"
        f"The callback writes {ours!r}, the trainer {theirs!r}. Leave out template and chat to take the trainer's form"
    )


def _templates(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[Template]:
    """Make templates from the texts before and after the question in the trainer's prompts.

    Returns at most 3 templates, the most frequent first.
    """
    around: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        if pair.context:
            continue
        prompt = _decode(tokenizer, pair.text.prompt, special=True)
        before, _, after = prompt.rpartition(pair.question.strip())
        bos = tokenizer.bos_token
        if bos and before.startswith(bos):
            before = before[len(bos) :]
        around[before, after] += 1
    return [Template(target=f"{before}{{question}}{after}") for (before, after), _ in around.most_common(3)]
