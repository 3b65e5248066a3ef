"""The exact probe: computes P_Correct for every row and exemplar set without generating (design, section 2).

The probe opens all prompts of a chunk of rows with their accepted answers as a tree of tokens. Where the model's
greedy path, or enough probability, leaves that tree towards another spelling, the probe computes those paths too
(`answer_search.py`), round by round, until each row's interval is tight. A chunk's result depends only on its rows
and the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.data.exact_match import Accepted
from foreknow.inference.answer_search import AnswerSearch, Budget, PathMatcher, paths_to_expand
from foreknow.inference.engine import Engine, Family, Prompt
from foreknow.inference.slick import MODEL_ANSWERS, PROBES
from foreknow.prompts.few_shot import Exemplar, Exemplars, Substitution
from foreknow.prompts.prompt_batch import GroupPrompts, PromptEncoder, beginnings, group_prompts
from foreknow.prompts.prompt_template import Prompter, common_prefix
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

_MATCHERS: Final = 512
_GROUPS: Final = 64
"""How many answers' matchers and groups' prompts a prober keeps, so that memory does not grow with the rows."""


@dataclass(frozen=True)
class ProbeSettings:
    """How far the search goes.

    `tolerance`: the search of a row stops once samples x the unsearched probability, summed over its sets, is at
    most this. `max_expansions`: the most paths searched for one prompt. `extra_tokens`: an answer and its end may
    take the longest accepted answer's tokens plus these. `lenient`: whether lenient matching labels a row.
    """

    samples: int = 16
    tolerance: float = 0.01
    max_expansions: int = 64
    extra_tokens: int = 4
    max_answer_tokens: int = 32
    lenient: bool = False

    @property
    def budget(self) -> Budget:
        """Return the search's budget for one row."""
        return Budget(self.tolerance / self.samples, self.max_expansions, self.samples, self.lenient)


class Chunk(NamedTuple):
    """A probed chunk: `slick.PROBES` lines, and the model's greedy answers with exemplar set 0."""

    probes: pl.DataFrame
    answers: pl.DataFrame


@dataclass(frozen=True)
class PreparedRow:
    """A row ready to probe: its answers' matcher and token paths, and the most tokens of an answer."""

    number: int
    matcher: PathMatcher
    tree: list[TokenPath]
    max_new: int
    replaced_shots: list[list[Substitution]]


@dataclass(frozen=True)
class Prober:
    """Probes chunks of rows with one model, prompt and set of exemplars.

    `heads`: the text that all of a group's questions begin with (`common_heads`), cached with the exemplars.
    """

    engine: Engine
    prompter: Prompter
    vocabulary: Vocabulary
    exemplars: Exemplars
    settings: ProbeSettings
    heads: Mapping[str, str] = field(default_factory=dict)
    _matchers: dict[tuple[str, ...], PathMatcher] = field(default_factory=dict, repr=False, compare=False)
    _groups: dict[str, GroupPrompts] = field(default_factory=dict, repr=False, compare=False)

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """Probe rows that have a question and answers (columns as in `schema.ROWS`)."""
        prepared, prompts = self.prompts(rows)
        sets = len(prepared[0].replaced_shots)
        # prompts that share a prefix must be adjacent: order them set by set, not row by row
        order = [(r, j) for j in range(sets) for r in range(len(prepared))]
        session, nodes = self.engine.open([prompts[r][j] for r, j in order], [prepared[r].tree for r, _ in order])
        number = {pair: i for i, pair in enumerate(order)}
        negligible = self.settings.tolerance / self.settings.samples / sets / 2000
        searches = [[AnswerSearch(row.matcher, row.max_new, negligible) for _ in range(sets)] for row in prepared]
        for (r, j), tree_nodes in zip(order, nodes, strict=True):
            searches[r][j].feed(zip([(), *prepared[r].tree], tree_nodes, strict=True))
        spent = [[0] * sets for _ in prepared]
        budget = self.settings.budget
        active = set(range(len(prepared)))
        decoders = [_GreedyDecoder(search[0]) for search in searches]
        while True:
            requests: list[tuple[int, int, TokenPath]] = []
            for r in sorted(active):
                paths = paths_to_expand(searches[r], spent[r], budget)
                if not any(paths):
                    active.discard(r)
                requests.extend((r, j, path) for j, prompt_paths in enumerate(paths) for path in prompt_paths)
            greedy_requests = [
                (r, 0, path) for r, decoder in enumerate(decoders) if (path := decoder.next()) is not None
            ]
            requests = sorted({*requests, *greedy_requests})
            if not requests:
                break
            new_nodes = session.extend([(number[r, j], path) for r, j, path in requests])
            for (r, j, path), node in zip(requests, new_nodes, strict=True):
                spent[r][j] += 1
                if j == 0:
                    decoders[r].tokens[path] = node.greedy
                searches[r][j].feed([(path, node)])
        lines = [
            _probe_line(row, j, search, spent[r][j])
            for r, row in enumerate(prepared)
            for j, search in enumerate(searches[r])
        ]
        model_answers = [(row.number, decoder.answer) for row, decoder in zip(prepared, decoders, strict=True)]
        return Chunk(probes_frame(lines), answers_frame(model_answers))

    def prompts(self, rows: pl.DataFrame) -> tuple[list[PreparedRow], list[list[Prompt]]]:
        """Prepare each row, and its prompts, one for each exemplar set."""
        columns = ("row", "record", "group", "question", "answers", "subject", "context")
        records = rows.select(name for name in columns if name in rows.columns).to_dicts()
        groups = self.exemplars.groups
        exemplar_sets = [groups[r["group"]].for_row(r["question"], r["subject"], r.get("record")) for r in records]
        encoder = PromptEncoder(self.prompter, {name: self._group(name) for name in {r["group"] for r in records}})
        replaced_sets = [[j for j, (_, swapped) in enumerate(sets) if swapped] for sets in exemplar_sets]
        shots = [[shots for shots, _ in sets] for sets in exemplar_sets]
        encoded_rows = encoder.encode(records, shots, replaced_sets)
        for name in encoder.proven & self._groups.keys():
            self._groups[name] = self._groups[name]._replace(is_proven=True)
        replaced = [(i, j) for i, numbers in enumerate(replaced_sets) for j in numbers]
        own_family: Family = tuple(self._prefix_ids(exemplar_sets[i][j][0], records[i]["group"]) for i, j in replaced)
        own_member = {pair: n for n, pair in enumerate(replaced)}
        prompts, prepared = [], []
        for i, (record, encoded) in enumerate(zip(records, encoded_rows, strict=True)):
            family = self._group(record["group"]).family
            row_prompts = []
            for j, (is_shared, ids) in enumerate(encoded.prompts):
                if is_shared:
                    row_prompts.append(Prompt(family, j, len(family[j]), ids))
                    continue
                n = own_member.get((i, j))
                of, member = (family, j) if n is None else (own_family, n)
                shared = min(common_prefix(of[member], ids), len(ids) - 1)
                row_prompts.append(Prompt(of, member, shared, ids[shared:]))
            prompts.append(row_prompts)
            prepared.append(self._prepare_row(record, encoded.answers, [swapped for _, swapped in exemplar_sets[i]]))
        return prepared, prompts

    def _prepare_row(
        self, record: dict[str, Any], paths: Sequence[TokenPath], replaced_shots: list[list[Substitution]]
    ) -> PreparedRow:
        usable = [p for p in paths if 0 < len(p) <= self.settings.max_answer_tokens]
        tree = sorted({p[: n + 1] for p in usable for n in range(len(p))})
        longest = max((len(p) for p in usable), default=1)
        matcher = self._matcher(tuple(record["answers"]))
        return PreparedRow(record["row"], matcher, tree, longest + self.settings.extra_tokens, replaced_shots)

    def _matcher(self, answers: tuple[str, ...]) -> PathMatcher:
        """Return the matcher of these answers; rows with the same answers share it."""
        matcher = self._matchers.pop(answers, None)
        if matcher is None:
            matcher = PathMatcher(self.vocabulary, Accepted.of(answers))
            if len(self._matchers) >= _MATCHERS:
                del self._matchers[next(iter(self._matchers))]
        self._matchers[answers] = matcher
        return matcher

    def _group(self, name: str) -> GroupPrompts:
        """Return what all prompts of a group begin with; the last groups used are kept."""
        group = self._groups.pop(name, None)
        if group is None:
            group = group_prompts(self.prompter, self.exemplars.groups[name].sets, self.heads.get(name, ""))
            if len(self._groups) >= _GROUPS:
                del self._groups[next(iter(self._groups))]
        self._groups[name] = group
        return group

    def _prefix_ids(self, shots: Sequence[Exemplar], group: str) -> tuple[int, ...]:
        """Return the ids that every prompt of the group begins with, given these exemplars."""
        return beginnings(self.prompter, [shots], self.heads.get(group, ""))[0].ids


class _GreedyDecoder:
    """Follows the greedy answer with exemplar set 0 to its end, right or wrong, for `model_answer`."""

    def __init__(self, search: AnswerSearch):
        self.search = search
        self.tokens: dict[TokenPath, int] = {}
        self.path: TokenPath = ()

    def next(self) -> TokenPath | None:
        """Return the path whose next token is needed; None once the answer has ended or used up its tokens."""
        while len(self.path) < self.search.max_new and not self._is_over():
            node = self.search.nodes.get(self.path)
            token = self.tokens.get(self.path) if node is None else node.greedy
            if token is None:
                return self.path
            self.path = (*self.path, token)
        return None

    def _is_over(self) -> bool:
        return self.search.matcher.vocabulary.ended(self.path)

    @property
    def answer(self) -> str:
        """Return the answer, with an ellipsis if it had not ended."""
        return self.search.matcher.vocabulary.said(self.path)


class ProbeLine(NamedTuple):
    """One prompt's result; see `slick.PROBES`."""

    row: PreparedRow
    exemplar_set: int
    greedy_correct: bool
    greedy_lenient: bool
    p_correct: float
    p_correct_upper: float
    p_lenient: float
    p_lenient_upper: float
    expansions: int


def _probe_line(row: PreparedRow, exemplar_set: int, search: AnswerSearch, expansions: int) -> ProbeLine:
    greedy = search.greedy()
    # sums of float64 probabilities may pass 1 by a few units in the last place
    strict, lenient = min(search.strict, 1.0), min(search.lenient, 1.0)
    strict_high = min(strict + search.unsearched(), 1.0)
    lenient_high = min(lenient + search.unsearched(lenient=True), 1.0)
    return ProbeLine(
        row,
        exemplar_set,
        greedy.strict,
        greedy.lenient,
        strict,
        strict_high,
        lenient,
        lenient_high,
        expansions,
    )


def probes_frame(lines: Iterable[ProbeLine]) -> pl.DataFrame:
    """Convert lines to a frame with the columns of `slick.PROBES`, sorted by row and set."""
    columns = dict(zip(ProbeLine._fields, map(list, zip(*lines, strict=True)), strict=False))
    rows, numbers = columns.pop("row", []), columns.get("exemplar_set", [])
    swapped = [
        (line, shot.slot, shot.exemplar.question, shot.exemplar.answer)
        for line, (row, number) in enumerate(zip(rows, numbers, strict=True))
        for shot in row.replaced_shots[number]
    ]
    data = {name: columns.get(name, []) for name in PROBES if name not in ("row", "replaced_shots")}
    schema = {name: dtype for name, dtype in PROBES.items() if name != "replaced_shots"}
    frame = pl.DataFrame({"row": [row.number for row in rows], **data}, schema=schema)
    replaced_shots = _lists_of_shots(swapped, len(rows))
    return frame.with_columns(replaced_shots).select(*PROBES).sort("row", "exemplar_set")


def _lists_of_shots(swapped: Sequence[tuple[int, int, str, str]], lines: int) -> pl.Series:
    """Return each line's replaced shots from (line, slot, question, answer); few lines have any."""
    empty = pl.Series("replaced_shots", [[]], dtype=PROBES["replaced_shots"]).new_from_index(0, lines)
    if not swapped:
        return empty
    schema = {"line": pl.Int64(), "slot": pl.Int64(), "question": pl.String(), "answer": pl.String()}
    shots = pl.DataFrame(swapped, schema=schema, orient="row").group_by("line", maintain_order=True)
    lists = shots.agg(pl.struct("slot", "question", "answer").alias("replaced_shots"))
    every = pl.DataFrame({"line": pl.Series(range(lines), dtype=pl.Int64)}).join(lists, on="line", how="left")
    return every.sort("line")["replaced_shots"].fill_null(empty)


def answers_frame(model_answers: Iterable[tuple[int, str]]) -> pl.DataFrame:
    """Convert (row number, model answer) pairs to a frame."""
    return pl.DataFrame(list(model_answers), schema=MODEL_ANSWERS, orient="row").sort("row")
