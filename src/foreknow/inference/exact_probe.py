"""The exact probe: P_Correct for every row and exemplar set, without generating (design, section 2).

For a chunk of rows, all their prompts are opened with their accepted answers as a tree of tokens. Where the
model's greedy path leaves that tree towards another spelling, or enough probability does, those paths are
computed too (`answer_search.py`), round by round, until each row's interval is tight. A chunk's result depends on
its rows and the settings only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from foreknow.data.exact_match import Accepted, spellings_of
from foreknow.inference.answer_search import AnswerSearch, Budget, PathMatcher, wanted
from foreknow.inference.engine import Engine, Family, Prompt
from foreknow.inference.slick import MODEL_ANSWERS, PROBES
from foreknow.prompts.few_shot import Exemplar, Exemplars, Substitution
from foreknow.prompts.prompt_template import Prompter, common_prefix
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


@dataclass(frozen=True)
class ProbeSettings:
    """How far the search goes.

    `tolerance`: a row is searched until samples x the sum over its sets of unsearched probability is at most
    this. `max_expansions`: paths searched for one prompt at most. `extra_tokens`: an answer and its end must
    fit in the longest accepted answer's tokens plus these. `lenient`: which matching labels a row.
    """

    samples: int = 16
    tolerance: float = 0.01
    max_expansions: int = 64
    extra_tokens: int = 4
    max_answer_tokens: int = 32
    lenient: bool = False

    @property
    def budget(self) -> Budget:
        """The search's budget for one row."""
        return Budget(self.tolerance / self.samples, self.max_expansions, self.samples, self.lenient)


class Chunk(NamedTuple):
    """A probed chunk: `slick.PROBES` lines, and what the model greedily says behind exemplar set 0."""

    probes: pl.DataFrame
    answers: pl.DataFrame


@dataclass(frozen=True)
class PreparedRow:
    """A row made ready: how its answers are judged, their token paths, how long an answer may get."""

    number: int
    speller: PathMatcher
    tree: list[TokenPath]
    max_new: int
    replaced_shots: list[list[Substitution]]


@dataclass(frozen=True)
class Prober:
    """Probes chunks of rows with one model, prompt and set of exemplars.

    `heads`: how all of a group's questions begin (`common_heads`); computed once with the exemplars.
    """

    engine: Engine
    prompter: Prompter
    vocabulary: Vocabulary
    exemplars: Exemplars
    settings: ProbeSettings
    heads: Mapping[str, str] = field(default_factory=dict)

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """Probe rows that have a question and answers (columns as in `schema.ROWS`)."""
        found, prompts = self.prompts(rows)
        sets = len(found[0].replaced_shots)
        # prompts behind one prefix stand together: set by set, not row by row
        order = [(r, j) for j in range(sets) for r in range(len(found))]
        session, nodes = self.engine.open([prompts[r][j] for r, j in order], [found[r].tree for r, _ in order])
        number = {pair: i for i, pair in enumerate(order)}
        negligible = self.settings.tolerance / self.settings.samples / sets / 2000
        trees = [[AnswerSearch(row.speller, row.max_new, negligible) for _ in range(sets)] for row in found]
        for (r, j), opened in zip(order, nodes, strict=True):
            trees[r][j].feed(zip([(), *found[r].tree], opened, strict=True))
        spent = [[0] * sets for _ in found]
        budget = self.settings.budget
        active = set(range(len(found)))
        talk = [_GreedyDecoder(tree[0]) for tree in trees]
        while True:
            asked: list[tuple[int, int, TokenPath]] = []
            for r in sorted(active):
                paths = wanted(trees[r], spent[r], budget)
                if not any(paths):
                    active.discard(r)
                asked.extend((r, j, path) for j, some in enumerate(paths) for path in some)
            spoken = [(r, 0, path) for r, t in enumerate(talk) if (path := t.next()) is not None]
            asked = sorted({*asked, *spoken})
            if not asked:
                break
            extended = session.extend([(number[r, j], path) for r, j, path in asked])
            for (r, j, path), node in zip(asked, extended, strict=True):
                spent[r][j] += 1
                if j == 0:
                    talk[r].heard[path] = node.greedy
                trees[r][j].feed([(path, node)])
        lines = [_line(row, j, tree, spent[r][j]) for r, row in enumerate(found) for j, tree in enumerate(trees[r])]
        spoken_answers = [(row.number, t.answer) for row, t in zip(found, talk, strict=True)]
        return Chunk(probes_frame(lines), answers_frame(spoken_answers))

    def prompts(self, rows: pl.DataFrame) -> tuple[list[PreparedRow], list[list[Prompt]]]:
        """Each row made ready, and its prompts, one for each exemplar set."""
        columns = ("row", "record", "group", "question", "answers", "subject", "context")
        records = rows.select(name for name in columns if name in rows.columns).to_dicts()
        groups = self.exemplars.groups
        shown = [groups[r["group"]].for_row(r["question"], r["subject"], r.get("record")) for r in records]
        texts = [
            [self.prompter.text(shots, r["question"], r["context"]) for shots, _ in sets]
            for r, sets in zip(records, shown, strict=True)
        ]
        flat = iter(self.prompter.ids([t for some in texts for t in some]))
        ids = [[next(flat) for _ in some] for some in texts]
        families = {group: self._family(group) for group in {r["group"] for r in records}}
        replaced = [(i, j) for i, sets in enumerate(shown) for j, (_, swapped) in enumerate(sets) if swapped]
        lone: Family = tuple(self._prefix_ids(shown[i][j][0], records[i]["group"]) for i, j in replaced)
        lone_at = {pair: n for n, pair in enumerate(replaced)}
        prompts, found = [], []
        for i, record in enumerate(records):
            line = []
            for j, whole in enumerate(ids[i]):
                alone = (i, j) in lone_at
                family, member = (lone, lone_at[i, j]) if alone else (families[record["group"]], j)
                shared = min(common_prefix(family[member], whole), len(whole) - 1)
                line.append(Prompt(family, member, shared, tuple(whole[shared:])))
            prompts.append(line)
            found.append(self._row(record, texts[i][0], ids[i][0], [swapped for _, swapped in shown[i]]))
        return found, prompts

    def _row(
        self, record: dict[str, Any], text: str, ids: Sequence[int], replaced_shots: list[list[Substitution]]
    ) -> PreparedRow:
        spelled = [each for answer in record["answers"] if answer.strip() for each in spellings_of(answer)]
        paths = [self.prompter.answer_ids(text, ids, each) for each in spelled]
        usable = [p for p in paths if 0 < len(p) <= self.settings.max_answer_tokens]
        tree = sorted({p[: n + 1] for p in usable for n in range(len(p))})
        longest = max((len(p) for p in usable), default=1)
        speller = PathMatcher(self.vocabulary, Accepted.of(record["answers"]))
        return PreparedRow(record["row"], speller, tree, longest + self.settings.extra_tokens, replaced_shots)

    def _family(self, group: str) -> Family:
        return tuple(self._prefix_ids(exemplars, group) for exemplars in self.exemplars.groups[group].sets)

    def _prefix_ids(self, shots: Sequence[Exemplar], group: str) -> tuple[int, ...]:
        """The ids that prompts with these exemplars begin with, whatever is asked of the group."""
        head = self.heads.get(group, "")
        one, other = self.prompter.ids([self.prompter.text(shots, head + q) for q in ("\u00a7", "0")])
        return tuple(one[: common_prefix(one, other)])


class _GreedyDecoder:
    """Follows the greedy answer behind exemplar set 0 to its end, right or wrong, for `model_answer`."""

    def __init__(self, tree: AnswerSearch):
        self.tree = tree
        self.heard: dict[TokenPath, int] = {}
        self.path: TokenPath = ()

    def next(self) -> TokenPath | None:
        """The path whose next token is needed; None when the answer has ended or run out of tokens."""
        while len(self.path) < self.tree.max_new and not self._over():
            known = self.tree.nodes.get(self.path)
            token = self.heard.get(self.path) if known is None else known.greedy
            if token is None:
                return self.path
            self.path = (*self.path, token)
        return None

    def _over(self) -> bool:
        return self.tree.speller.vocabulary.ended(self.path)

    @property
    def answer(self) -> str:
        """The answer; one that had not ended is marked with an ellipsis."""
        return self.tree.speller.vocabulary.said(self.path)


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


def _line(row: PreparedRow, exemplar_set: int, tree: AnswerSearch, expansions: int) -> ProbeLine:
    greedy = tree.greedy()
    # sums of float64 probabilities may pass 1 by a few units in the last place
    strict, lenient = min(tree.strict, 1.0), min(tree.lenient, 1.0)
    strict_high = min(strict + tree.unsearched(), 1.0)
    lenient_high = min(lenient + tree.unsearched(lenient=True), 1.0)
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
    """Lines as a frame with the columns of `slick.PROBES`, sorted by row and set."""
    records = [
        {
            **line._asdict(),
            "row": line.row.number,
            "replaced_shots": [
                {"slot": s.slot, "question": s.exemplar.question, "answer": s.exemplar.answer}
                for s in line.row.replaced_shots[line.exemplar_set]
            ],
        }
        for line in lines
    ]
    return pl.DataFrame(records, schema=PROBES).sort("row", "exemplar_set")


def answers_frame(spoken: Iterable[tuple[int, str]]) -> pl.DataFrame:
    """(row number, what the model says) as a frame."""
    return pl.DataFrame(list(spoken), schema=MODEL_ANSWERS, orient="row").sort("row")
