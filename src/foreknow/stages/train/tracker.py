"""The tracker: which rows a model answers right, without generating (design, section 2), while it is trained.

Each question is asked as it is trained on, no exemplars before it. One packed pass over question and accepted
answers gives the largest logit at every position; a row whose greedy path leaves the accepted answers towards
another way to spell one is decoded for real. The result is that of greedy generation.

    measure = Tracker(prompter, vocabulary, {"train": rows, "dev": rows})
    outcomes = measure(model)                  a frame: set, row, correct, lenient
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

import polars as pl
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foreknow.data.schema import GOLD, common_heads
from foreknow.errors import ModelError
from foreknow.inference.answer_search import AnswerSearch
from foreknow.inference.engine import Engine, PackedEngine, PlainEngine, Prompt, Sampling
from foreknow.inference.exact_probe import PreparedRow, Prober, ProbeSettings
from foreknow.inference.malloc import release_memory
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.models import loading
from foreknow.models.private_api import model_of_config
from foreknow.models.weight_files import count_of, names_of
from foreknow.prompts.few_shot import Exemplars, GroupExemplars
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.vocabulary import TokenPath, Vocabulary
from foreknow.stages.train.answer_loss import base_of

OUTCOMES: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "row": pl.Int64(),
    "correct": pl.Boolean(),
    "lenient": pl.Boolean(),
}
"""One line per measured row: is its greedy answer right letter by letter; is it leniently (null if not asked)."""

_GREEDY: Final = Sampling(temperature=1.0, top_k=1)
_LONGEST: Final = 1 << 20
_MANY: Final = 16


class Measures(Protocol):
    """What `tune` and the callback need: a model's answers to every watched row, as `OUTCOMES`."""

    def __call__(self, model: PreTrainedModel) -> pl.DataFrame:
        """Measure the model as it is now; its mode, its weights and all random states stay as they are."""
        ...


class _AskedRow(NamedTuple):
    """A row, ready to be asked of any weights."""

    name: str
    row: PreparedRow
    prompt: Prompt


class Tracker:
    """Measures sets of rows (`rows.ROWS`); of the set `train` the gold alone is right, that is, *fitted*.

    The prompts are made once. What many of them begin with is computed once each time, for all sets together.
    `lenient`: follow answers that can only be right leniently too, which takes longer. `batch_tokens`: tokens
    computed at once; `chunk_rows`: rows whose keys and values are held at once.
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
    ):
        self.lenient = lenient
        self.batch_tokens = batch_tokens
        self.chunk_rows = chunk_rows
        self.note: str | None = None
        self._verified = False
        self._check = prompter.ids([prompter.text((), "What is the capital of Peru?")])[0]
        asked_rows: list[_AskedRow] = []
        for name, rows in sets.items():
            own = rows.with_columns(answers=pl.concat_list(GOLD)) if name == "train" else rows
            prepared_rows, prompts = _zero_shot(prompter, vocabulary, own).prompts(own)
            asked_rows += [_AskedRow(name, row, line[0]) for row, line in zip(prepared_rows, prompts, strict=True)]
        self._asked = _group_by_beginning(asked_rows)

    @property
    def count(self) -> int:
        """Rows measured each time."""
        return len(self._asked)

    def __call__(self, model: PreTrainedModel, done: Callable[[int], None] = lambda _: None) -> pl.DataFrame:
        """See `Measures`. `done` is told of rows that are finished."""
        model = base_of(model)
        modes = [(module, module.training) for module in model.modules()]
        outcomes: list[tuple[str, int, bool, bool | None]] = []
        try:
            with self._engine(model) as engine:
                for start in range(0, self.count, self.chunk_rows):
                    part = self._asked[start : start + self.chunk_rows]
                    right = _ask(engine, part, self.lenient)
                    outcomes += [(row.name, row.row.number, *outcome) for row, outcome in zip(part, right, strict=True)]
                    done(len(part))
        finally:
            for module, training in modes:
                module.training = training
        release_memory()
        return pl.DataFrame(outcomes, schema=OUTCOMES, orient="row").sort("set", "row")

    @contextmanager
    def _engine(self, model: PreTrainedModel) -> Iterator[Engine]:
        if not self._verified:
            self._verified = True
            try:
                with PackedModel(model).attached() as packed:
                    cut = len(self._check) // 2
                    packed.verify(self._check[:cut], self._check[cut:])
            except UnsupportedModel as why:
                self.note = f"measuring by plain forward passes, about ten times slower: {why}"
        if self.note is not None:
            yield PlainEngine(model, _GREEDY)
            return
        with PackedModel(model).attached() as packed:
            yield PackedEngine(packed, _GREEDY, self.batch_tokens)


def _ask(engine: Engine, part: Sequence[_AskedRow], lenient: bool) -> list[tuple[bool, bool | None]]:
    """Strict and lenient outcome of each row."""
    session, nodes = engine.open([row.prompt for row in part], [row.row.tree for row in part])
    trees = [AnswerSearch(row.row.matcher, row.row.max_new, 0.0) for row in part]
    for tree, row, opened in zip(trees, part, nodes, strict=True):
        tree.feed(zip([(), *row.row.tree], opened, strict=True))
    while True:
        greedy = [tree.greedy() for tree in trees]
        unfinished = [
            (n, g.path) for n, g in enumerate(greedy) if not g.done and (lenient or _may_match(trees[n], g.path))
        ]
        if not unfinished:
            return [(g.strict, g.lenient if lenient else None) for g in greedy]
        for (n, path), node in zip(unfinished, session.extend(unfinished), strict=True):
            trees[n].feed([(path, node)])


def _may_match(tree: AnswerSearch, path: TokenPath) -> bool:
    """Whether an unfinished answer can still be right letter by letter."""
    verdict = tree.matcher.step(path).verdict
    return verdict is not None and verdict.strict_open


def _zero_shot(prompter: Prompter, vocabulary: Vocabulary, rows: pl.DataFrame) -> Prober:
    """The probe's own preparation of prompts and answers, with no exemplars.

    Groups of many rows share what their questions begin with; the others only what all prompts begin with.
    """
    alone = GroupExemplars(sets=((),), reserve=())
    exemplars = Exemplars(dict.fromkeys(rows["group"].unique(), alone), "none")
    settings = ProbeSettings(max_answer_tokens=_LONGEST)
    heads = common_heads(rows.filter(pl.len().over("group") >= _MANY))
    return Prober(_NoEngine(), prompter, vocabulary, exemplars, settings, heads)


def _group_by_beginning(rows: Sequence[_AskedRow]) -> list[_AskedRow]:
    """The rows of all sets by what they begin with and by length; all beginnings are one family, computed at once."""
    beginnings = [a.prompt.family[a.prompt.member][: a.prompt.shared] for a in rows]
    family = tuple(sorted(set(beginnings) - {()}))
    member = {ids: n for n, ids in enumerate(family)}
    regrouped = [
        a._replace(prompt=Prompt(family, member.get(ids, 0), len(ids), a.prompt.own))
        for a, ids in zip(rows, beginnings, strict=True)
    ]
    return sorted(regrouped, key=lambda a: (a.prompt.member, len(a.prompt.own) + len(a.row.tree), a.name, a.row.number))


class _NoEngine:
    """Stands where a prober wants an engine: only its prompts are asked for."""

    def open(self, *_: Any) -> Any:
        raise NotImplementedError


def vocabulary_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """What the tracker must know of a model's tokens; see `loading.vocabulary_of`."""
    loaded = loading.Loaded("", model, tokenizer, "", "", None, "", "", ())
    return loading.vocabulary_of(loaded)


class EvalModelCopy:
    """A copy of a model in another dtype, refreshed before every use: measuring a bf16 copy of float32 weights
    is several times faster than measuring them under autocast, and is what the saved model gives in bf16."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._copy: PreTrainedModel | None = None
        self.note: str | None = None
        """Why the model is measured as it is, where no copy of it can be made."""

    @torch.no_grad()
    def of(self, model: PreTrainedModel) -> PreTrainedModel:
        """The copy with the model's weights as they are now; the model itself if it has the dtype already, or other
        tensors than its config makes."""
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
        """Make the copy while the model is whole; `holding` fills it. Raises ModelError where it would be another."""
        self._copy = self._new_copy(model, torch.device(device))
        if odd := _unlike(model, self._copy):
            raise ModelError(f"a copy to measure would not have {odd}; train in one process, or without FSDP")
        _copy_weights(dict(model.named_buffers()), self._copy)

    @torch.no_grad()
    def holding(self, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """The prepared copy with these weights. Raises ModelError, naming tensors, where some are not among them."""
        assert self._copy is not None
        lost = [name for name, _ in self._copy.named_parameters() if name not in weights]
        if lost:
            raise ModelError(f"the gathered weights lack {count_of(lost)} of the model: {names_of(lost)}")
        known = dict([*self._copy.named_parameters(), *self._copy.named_buffers()])
        _copy_weights({name: value for name, value in weights.items() if name in known}, self._copy)
        return self._copy

    def _new_copy(self, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
        with torch.random.fork_rng():  # new weights are drawn, and thrown away
            new_model: Any = model_of_config(model, self.dtype)
        new_model.generation_config = model.generation_config
        copy: PreTrainedModel = new_model.to(device).eval()
        return copy


def _unlike(model: PreTrainedModel, copy: PreTrainedModel) -> str:
    """The tensors that a model has otherwise than its copy, by name; empty where there are none."""
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
