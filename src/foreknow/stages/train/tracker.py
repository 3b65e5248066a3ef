"""Finds which rows a model answers right while it is trained, without generating (design, section 2).

The tracker asks each question in the form in which it is trained on, without exemplars. One packed pass over the
question and the accepted answers gives the largest logit at every position. A row is decoded token by token only if its
greedy path leaves the accepted answers but may still spell one in another way. The result is that of greedy generation.
An answer of several lines, at whose first line break a generated answer would be cut, is right if each of its tokens
and the end token are the arg max behind those before it: so the model writes it, in the tokens it is trained on.

    measure = Tracker(prompter, vocabulary, {"train": rows, "dev": rows})
    outcomes = measure(model)                  # a frame with set, row, correct, lenient
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foreknow.data.schema import GOLD, common_heads
from foreknow.errors import ModelError
from foreknow.inference.answer_search import AnswerSearches
from foreknow.inference.engine import Engine, Prompt, Sampling
from foreknow.inference.engine_choice import EngineFactory
from foreknow.inference.malloc import release_memory
from foreknow.inference.nodes import Nodes
from foreknow.inference.path_states import PathStates
from foreknow.inference.prompt_builder import PreparedRow, PromptBuilder
from foreknow.models import loading
from foreknow.models.private_api import model_of_config
from foreknow.models.weight_files import count_of, names_of
from foreknow.prompts.few_shot import Exemplars, GroupExemplars
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.vocabulary import TokenPath, Vocabulary
from foreknow.stages.train.answer_loss import base_of
from foreknow.stages.train.answer_places import answer_places, tokens_in
from foreknow.stages.train.gold_losses import GoldTokens, LossSums, gold_tokens, split_by_pass
from foreknow.stages.train.set_loss import Sets
from foreknow.stages.train.span_labels import SPAN_OUTCOMES

OUTCOMES: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "row": pl.Int64(),
    "correct": pl.Boolean(),
    "lenient": pl.Boolean(),
}
"""The frame has one line per measured row. `correct` says whether its greedy answer is right letter by letter, and
`lenient` whether it is right under lenient matching (null if that is not measured)."""

_GREEDY: Final = Sampling(temperature=1.0, top_k=1)
_LONGEST: Final = 1 << 20
_MANY: Final = 16
_MOST_STATES: Final = 1 << 16
"""How many states of answers a tracker keeps: those of many rows, as every measurement needs them again."""


class _AskedRow(NamedTuple):
    """Holds a row whose prompt is ready, so that it can be asked again whenever the weights have changed."""

    name: str
    row: PreparedRow
    prompt: Prompt


class _SpannedRow(NamedTuple):
    """Holds a row's gold as token ids, and by span number the indices of the span's tokens among them."""

    gold: TokenPath
    spans: dict[int, tuple[int, ...]]


class Measurement(NamedTuple):
    """Holds the outcomes of rows (`OUTCOMES`) and of spans (`SPAN_OUTCOMES`) of one measurement.

    `losses`: by set, the sum of -log p (nats) and the number of tokens of its golds (`gold_losses.py`); None if the
    pass does not find them.
    """

    outcomes: pl.DataFrame
    spans: pl.DataFrame
    losses: dict[str, tuple[float, int]] | None = None


class Tracker:
    """Measures sets of rows (`rows.ROWS`). A row of the set `train` is right, that is, *fitted*, only with its gold.

    The prompts are made once. Each measurement computes a beginning that many prompts share only once, for all sets
    together. `lenient`: also follow answers that can be right only under lenient matching, which takes longer.
    `batch_tokens`: how many tokens are computed at once. `chunk_rows`: for how many rows keys and values are held at
    once. `spans`: by set, labelled spans of its rows (`WATCHED_SPANS`), which the same pass measures. `examples`: by
    set, the rows whose loss the same pass finds, if the model is in float32 and packed; `unscored` are those of them
    that it cannot.
    """

    def __init__(
        self,
        prompter: Prompter,
        vocabulary: Vocabulary,
        sets: Mapping[str, pl.DataFrame],
        *,
        lenient: bool = False,
        batch_tokens: int = 2048,
        chunk_rows: int = 512,
        spans: Mapping[str, pl.DataFrame] | None = None,
        examples: Sets | None = None,
    ):
        self.lenient = lenient
        self.chunk_rows = chunk_rows
        self._engines = EngineFactory(prompter, batch_tokens, shots=())
        self._states = PathStates(vocabulary, excludes=False)
        asked_rows: list[_AskedRow] = []
        for name, rows in sets.items():
            own = rows.with_columns(answers=pl.concat_list(GOLD)) if name == "train" else rows
            prepared_rows, prompts = _zero_shot(prompter, own).build(own)
            asked_rows += [_AskedRow(name, row, line[0]) for row, line in zip(prepared_rows, prompts, strict=True)]
        self._asked = _group_by_beginning(asked_rows)
        self._end = prompter.tokenizer.eos_token_id if prompter.answer_end is None else prompter.answer_end
        self._broken = {
            (name, row): paths for name, rows in sets.items() for row, paths in _line_broken(prompter, rows, name)
        }
        self._spans = {
            (name, row): spanned
            for name, rows in sets.items()
            if name in (spans or {})
            for row, spanned in _spanned_rows(prompter, rows, (spans or {})[name])
        }

        self._golds = _golds(self._asked, examples or {})
        self.unscored = split_by_pass(examples or {}, self._golds)

    @property
    def note(self) -> str | None:
        """Return a line that says why the rows are measured by plain passes; None if they are not."""
        refusal = self._engines.refusal
        return None if refusal is None else f"measuring by plain forward passes, about ten times slower: {refusal}"

    @property
    def count(self) -> int:
        """Return the number of rows that each measurement covers."""
        return len(self._asked)

    def __call__(self, model: PreTrainedModel, done: Callable[[int], None] = lambda _: None) -> pl.DataFrame:
        """Measure the rows with the model as it is now; see `measure`."""
        return self.measure(model, done).outcomes

    def measure(self, model: PreTrainedModel, done: Callable[[int], None] = lambda _: None) -> Measurement:
        """Measure rows and spans in one pass, with the model as it is now.

        The model's mode, its weights and all random states stay as they are. `done` is called with the number of rows
        just finished.
        """
        model = base_of(model)
        modes = [(module, module.training) for module in model.modules()]
        outcomes: list[tuple[str, int, bool, bool | None]] = []
        fitted: list[tuple[str, int, int, bool]] = []
        sums = LossSums()
        try:
            with self._engines.open(model) as choice:
                engine = choice.engine(_GREEDY)
                scored = bool(self._golds) and choice.finds_log_p
                for start in range(0, self.count, self.chunk_rows):
                    part = self._asked[start : start + self.chunk_rows]
                    if len(self._states) > _MOST_STATES:
                        self._states.clear()
                    golds = [self._golds.get((row.name, row.row.number)) for row in part]
                    right, nodes = _ask(engine, part, self._states, self.lenient, golds if scored else None)
                    begin = 0
                    for n, row in enumerate(part):
                        spanned, end = self._spans.get((row.name, row.row.number)), begin + 1 + len(row.row.tree)
                        if paths := self._broken.get((row.name, row.row.number)):
                            greedy = nodes.greedy[begin:end].tolist()
                            written = any(_is_written(path, self._end, row.row.tree, greedy) for path in paths)
                            right[n] = (right[n][0] or written, right[n][1] or written if self.lenient else None)
                        if spanned is not None:
                            greedy = nodes.greedy[begin:end].tolist()
                            fitted += [
                                (row.name, row.row.number, *one) for one in _fitted(spanned, row.row.tree, greedy)
                            ]
                        if nodes.log_p is not None and (gold := golds[n]) is not None:
                            sums.add(row.name, gold, nodes.log_p[begin:end])
                        begin = end
                    outcomes += [(row.name, row.row.number, *outcome) for row, outcome in zip(part, right, strict=True)]
                    done(len(part))
        finally:
            for module, training in modes:
                module.training = training
        release_memory()
        return Measurement(
            pl.DataFrame(outcomes, schema=OUTCOMES, orient="row").sort("set", "row"),
            pl.DataFrame(fitted, schema=SPAN_OUTCOMES, orient="row").sort("set", "row", "span"),
            sums.sums if scored else None,
        )


def _ask(
    engine: Engine,
    part: Sequence[_AskedRow],
    states: PathStates,
    lenient: bool,
    golds: Sequence[GoldTokens | None] | None,
) -> tuple[list[tuple[bool, bool | None]], Nodes]:
    """Return the strict and the lenient outcome of each row, and the nodes of all: the root's, then those of its tree.

    The lenient outcome is None if `lenient` is not set. `golds`: by row, the tokens whose log-probability the nodes
    have, if the engine finds it.
    """
    trees_of_part = [row.row.tree for row in part]
    targets = None
    if golds is not None:
        targets = [
            (-1,) * (1 + len(tree)) if gold is None else gold.targets
            for gold, tree in zip(golds, trees_of_part, strict=True)
        ]
    session, nodes = engine.open([row.prompt for row in part], trees_of_part, targets)
    roots = [states.root(row.row.answers) for row in part]
    trees = [[root, *states.at(root, row.row.tree)] for root, row in zip(roots, part, strict=True)]
    limits = np.array([row.row.max_new for row in part])
    searches = AnswerSearches(states, np.array(roots), limits, 0.0)
    sizes = [len(tree) for tree in trees]
    searches.feed(np.repeat(np.arange(len(part)), sizes), np.concatenate(trees), nodes)
    while True:
        is_open = ~searches.greedy_done
        if not lenient:  # an answer that cannot be right letter by letter is not followed further
            is_open &= states.strict[searches.greedy_state]
        prompts = np.flatnonzero(is_open)
        if not len(prompts):
            outcomes = zip(searches.greedy_strict.tolist(), searches.greedy_lenient.tolist(), strict=True)
            return [(right, right_lenient if lenient else None) for right, right_lenient in outcomes], nodes
        asked = searches.greedy_state[prompts]
        paths = [states.paths[state] for state in asked.tolist()]
        searches.feed(prompts, asked, session.extend(list(zip(prompts.tolist(), paths, strict=True))))


def _golds(asked: Sequence[_AskedRow], examples: Sets) -> dict[tuple[str, int], GoldTokens]:
    """Return the golds that stand in the trees of the rows asked, by set and row number."""
    row_of = {(one.name, one.row.number): one for one in asked}
    golds = {}
    for name, rows in examples.items():
        for example in rows:
            one = row_of.get((name, example.row))
            if one is not None and (gold := gold_tokens(example, one.prompt.ids, one.row.tree)) is not None:
                golds[name, example.row] = gold
    return golds


def _spanned_rows(prompter: Prompter, rows: pl.DataFrame, spans: pl.DataFrame) -> Iterator[tuple[int, _SpannedRow]]:
    """Yield each row that has spans, by number, with the tokens of its gold and of its spans."""
    places: dict[int, list[tuple[int, int, int]]] = {}
    for row, span, start, end in spans.select("row", "span", "start", "end").iter_rows():
        places.setdefault(row, []).append((span, start, end))
    spanned = rows.filter(pl.col("row").is_in(list(places)))
    for row, question, context, gold in spanned.select("row", "question", "context", GOLD).iter_rows():
        text, answer, blanks = prompter.text((), question, context), gold.strip(), len(gold) - len(gold.lstrip())
        ids = prompter.answer_ids(text, prompter.ids([text])[0], answer)
        offsets = answer_places(prompter, text, answer, ids)
        tokens = {span: tokens_in(offsets, [(start - blanks, end - blanks)]) for span, start, end in places[row]}
        yield row, _SpannedRow(tuple(ids), {span: own for span, own in tokens.items() if own})


def _line_broken(prompter: Prompter, rows: pl.DataFrame, name: str) -> Iterator[tuple[int, list[TokenPath]]]:
    """Yield each row with an accepted answer of several lines, by number, and the tokens of each such answer.

    Of the set `train` only the gold counts.
    """
    accepted = pl.concat_list(GOLD) if name == "train" else pl.col("answers")
    broken = accepted.list.eval(pl.element().str.strip_chars().str.contains("\n")).list.any()
    several = rows.with_columns(accepted=accepted).filter(broken)
    for row, question, context, answers in several.select("row", "question", "context", "accepted").iter_rows():
        text = prompter.text((), question, context)
        ids = prompter.ids([text])[0]
        own = [answer.strip() for answer in answers if "\n" in answer.strip()]
        yield row, [tuple(prompter.answer_ids(text, ids, answer)) for answer in own]


def _is_written(path: TokenPath, end: int, tree: Sequence[TokenPath], greedy: Sequence[int]) -> bool:
    """Return whether the greedy continuation is `path` and then the token `end`.

    `greedy`: the arg max after the root, and then after each path of the tree.
    """
    by_path = dict(zip([(), *tree], greedy, strict=True))
    return all(by_path.get(path[:at]) == token for at, token in enumerate((*path, end)))


def _fitted(row: _SpannedRow, tree: Sequence[TokenPath], greedy: Sequence[int]) -> list[tuple[int, bool]]:
    """Return, for each span, whether each of its tokens is the arg max behind the gold before it.

    `greedy`: the arg max after the root, and then after each path of the tree.
    """
    last = max((tokens[-1] for tokens in row.spans.values()), default=-1)
    by_path = {path: token for path, token in zip([(), *tree], greedy, strict=True) if len(path) <= last}
    right = [by_path.get(row.gold[:at]) == row.gold[at] for at in range(last + 1)]
    return [(span, all(right[at] for at in tokens)) for span, tokens in row.spans.items()]


def _zero_shot(prompter: Prompter, rows: pl.DataFrame) -> PromptBuilder:
    """Return what makes prompts without exemplars.

    In groups of at least `_MANY` rows, the prompts share the beginning of the group's questions. The prompts of smaller
    groups share only the beginning that all prompts have.
    """
    alone = GroupExemplars(sets=((),), reserve=())
    exemplars = Exemplars(dict.fromkeys(rows["group"].unique(), alone), "none")
    heads = common_heads(rows.filter(pl.len().over("group") >= _MANY))
    return PromptBuilder(prompter, exemplars, heads, max_answer_tokens=_LONGEST)


def _group_by_beginning(rows: Sequence[_AskedRow]) -> list[_AskedRow]:
    """Sort the rows of all sets by the beginning of their prompts and by length.

    All beginnings form one family, which is computed at once.
    """
    beginnings = [a.prompt.family[a.prompt.member][: a.prompt.shared] for a in rows]
    family = tuple(sorted(set(beginnings) - {()}))
    member = {ids: n for n, ids in enumerate(family)}
    regrouped = [
        a._replace(prompt=Prompt(family, member.get(ids, 0), len(ids), a.prompt.own))
        for a, ids in zip(rows, beginnings, strict=True)
    ]
    return sorted(regrouped, key=lambda a: (a.prompt.member, len(a.prompt.own) + len(a.row.tree), a.name, a.row.number))


def vocabulary_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return what the tracker must know of a model's tokens; see `loading.vocabulary_of`."""
    loaded = loading.Loaded("", model, tokenizer, "", "", None, "", "", ())
    return loading.vocabulary_of(loaded)


class EvalModelCopy:
    """Keeps a copy of a model in another dtype and refreshes its weights before every use.

    Measuring a bf16 copy of float32 weights is several times faster than measuring the weights under autocast, and it
    gives the answers that the saved model gives in bf16.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._copy: PreTrainedModel | None = None
        self.note: str | None = None
        """Says why the model itself is measured, if no copy of it can be made; else None."""

    @torch.no_grad()
    def of(self, model: PreTrainedModel) -> PreTrainedModel:
        """Copy the model's current weights into the copy and return it.

        Returns the model itself if it already has the dtype, or if it has other tensors than its config makes.
        """
        if next(model.parameters()).dtype == self.dtype:
            return model
        if self._copy is None and self.note is None:
            copy = self._new_copy(model, next(model.parameters()).device)
            odd = _unlike(model, copy)
            self._copy = None if odd else copy
            self.note = f"measured in {next(model.parameters()).dtype}: a copy would not have {odd}" if odd else None
        if self._copy is None:
            return model
        _copy_weights(dict([*model.named_parameters(), *model.named_buffers()]), self._copy)
        return self._copy

    def prepare(self, model: PreTrainedModel, device: str) -> None:
        """Make the copy while the model is whole; `holding` fills it later.

        Raises ModelError if the copy has other tensors than the model.
        """
        self._copy = self._new_copy(model, torch.device(device))
        if odd := _unlike(model, self._copy):
            raise ModelError(f"a copy to measure would not have {odd}; train in one process, or without FSDP")
        _copy_weights(dict(model.named_buffers()), self._copy)

    @torch.no_grad()
    def holding(self, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """Copy these weights into the prepared copy and return it.

        Raises ModelError, naming tensors, if weights of the copy are missing.
        """
        assert self._copy is not None
        lost = [name for name, _ in self._copy.named_parameters() if name not in weights]
        if lost:
            raise ModelError(f"the gathered weights lack {count_of(lost)} of the model: {names_of(lost)}")
        known = dict([*self._copy.named_parameters(), *self._copy.named_buffers()])
        _copy_weights({name: value for name, value in weights.items() if name in known}, self._copy)
        return self._copy

    def _new_copy(self, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
        with torch.random.fork_rng():  # making the model draws random weights, which are then overwritten
            new_model: Any = model_of_config(model, self.dtype)
        new_model.generation_config = model.generation_config
        copy: PreTrainedModel = new_model.to(device).eval()
        return copy


def _unlike(model: PreTrainedModel, copy: PreTrainedModel) -> str:
    """Name the tensors whose shapes differ between a model and its copy, or that only one has; "" if there are none."""
    ours, theirs = (
        {name: tuple(values.shape) for name, values in [*module.named_parameters(), *module.named_buffers()]}
        for module in (model, copy)
    )
    return names_of(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


@torch.no_grad()
def _copy_weights(values: Mapping[str, torch.Tensor], copy: PreTrainedModel) -> None:
    copies: dict[str, nn.Parameter | torch.Tensor] = dict(copy.named_parameters())
    copies.update(copy.named_buffers())
    for name, value in values.items():
        copies[name].copy_(value)
