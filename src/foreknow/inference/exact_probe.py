"""The exact probe: computes P_Correct for every row and exemplar set without generating (design, section 2).

The probe opens all prompts of a chunk of rows with their accepted answers as a tree of tokens. Where the model's
greedy path, or enough probability, leaves that tree towards another spelling, the probe computes those paths too, round
by round, until each row's interval is tight: `answer_search.py` adds up, `expansion.py` chooses the paths. A chunk's
result depends only on its rows and the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.inference.answer_search import AnswerSearches
from foreknow.inference.engine import Engine, Prompt, Session
from foreknow.inference.expansion import Budget, paths_to_expand
from foreknow.inference.greedy_answers import GreedyAnswers, Request
from foreknow.inference.path_states import Ints, PathStates
from foreknow.inference.prompt_builder import PreparedPrompts, PreparedRow, PromptBuilder
from foreknow.inference.slick import MODEL_ANSWERS, PROBES
from foreknow.prompts.vocabulary import Vocabulary

_STATES: Final = 1 << 15
"""How many states of answers a prober keeps, so that memory does not grow with the rows."""


@dataclass(frozen=True)
class ProbeSettings:
    """How far the search goes.

    `tolerance`: the search of a row stops once samples x the unsearched probability, summed over its sets, is at
    most this. `max_expansions`: the most paths searched for one prompt. `lenient`: whether lenient matching labels
    a row.
    """

    samples: int = 16
    tolerance: float = 0.01
    max_expansions: int = 64
    lenient: bool = False

    @property
    def budget(self) -> Budget:
        """Return the search's budget for one row."""
        return Budget(self.tolerance / self.samples, self.max_expansions, self.samples, self.lenient)


class Chunk(NamedTuple):
    """A probed chunk: `slick.PROBES` lines, and the model's greedy answers with exemplar set 0."""

    probes: pl.DataFrame
    answers: pl.DataFrame


class _Wave(NamedTuple):
    """The opened prompts of a chunk.

    `numbers` [rows, sets]: the number of each prompt in `searches`. `in_session`: its number in `session`.
    """

    session: Session
    searches: AnswerSearches
    numbers: Ints
    in_session: Sequence[int]

    def extend(self, requests: Mapping[Request, int]) -> dict[Request, int]:
        """Compute the nodes after some paths, whose states are known, and feed them; return their greedy tokens."""
        order = sorted(requests)
        nodes = self.session.extend([(self.in_session[prompt], path) for prompt, path in order])
        prompts, states = np.array([prompt for prompt, _ in order]), np.array([requests[request] for request in order])
        return dict(zip(order, self.searches.feed(prompts, states, nodes).tolist(), strict=True))


@dataclass(frozen=True)
class Prober:
    """Probes chunks of rows with one model."""

    engine: Engine
    prompts: PromptBuilder
    vocabulary: Vocabulary
    settings: ProbeSettings

    def probe(self, rows: pl.DataFrame, prepared: PreparedPrompts | None = None) -> Chunk:
        """Probe rows that have a question and answers (columns as in `schema.ROWS`).

        `prepared`: what `prompts.build` returned for the rows, if it was called before.
        """
        prepared_rows, prompts = prepared or self.prompts.build(rows)
        sets = len(prompts[0])
        wave = self._open(prepared_rows, prompts)
        answers = GreedyAnswers(wave.searches, wave.numbers[:, 0])
        spent = np.zeros(wave.numbers.size, dtype=np.int64)
        searched = np.ones(len(prepared_rows), dtype=bool)
        paths = self._path_states.paths
        while True:
            chosen = paths_to_expand(wave.searches, sets, spent, self.settings.budget, searched)
            searched &= np.isin(np.arange(len(prepared_rows)), [prompt // sets for prompt, _ in chosen])
            requests = {(prompt, paths[state]): state for prompt, state in chosen} | answers.requests()
            if not requests:
                break
            tokens = wave.extend(requests)
            np.add.at(spent, [prompt for prompt, _ in requests], 1)
            answers.feed(tokens)
        model_answers = zip((row.number for row in prepared_rows), answers.texts, strict=True)
        return Chunk(_probes(prepared_rows, sets, wave.searches, spent), answers_frame(model_answers))

    def halve_batches(self) -> int | None:
        """See `Engine.halve_batches`."""
        return self.engine.halve_batches()

    def _open(self, rows: Sequence[PreparedRow], prompts: Sequence[Sequence[Prompt]]) -> _Wave:
        """Open all prompts with the trees of their rows, and start their searches."""
        states, sets = self._path_states, len(prompts[0])
        if len(states) > _STATES:
            states.clear()
        numbers = np.arange(len(rows) * sets).reshape(len(rows), sets)
        # prompts that share a prefix must be adjacent: the engine gets them set by set, the search row by row
        by_set = [(r, j) for j in range(sets) for r in range(len(rows))]
        session, nodes = self.engine.open([prompts[r][j] for r, j in by_set], [rows[r].tree for r, _ in by_set])
        roots = [states.root(row.answers) for row in rows]
        trees = [[root, *states.at(root, row.tree)] for root, row in zip(roots, rows, strict=True)]
        max_new = [row.max_new for row in rows]
        negligible = self.settings.tolerance / self.settings.samples / sets / 2000
        searches = AnswerSearches(states, np.repeat(roots, sets), np.repeat(max_new, sets), negligible)
        sizes = np.tile([len(tree) for tree in trees], sets)
        searches.feed(np.repeat(numbers.T.ravel(), sizes), np.tile(np.concatenate(trees), sets), nodes)
        return _Wave(session, searches, numbers, np.argsort(numbers.T.ravel()).tolist())

    @cached_property
    def _path_states(self) -> PathStates:
        return PathStates(self.vocabulary)


def _probes(rows: Sequence[PreparedRow], sets: int, searches: AnswerSearches, spent: Ints) -> pl.DataFrame:
    # sums of float64 probabilities may pass 1 by a few units in the last place
    figures = {
        "greedy_correct": searches.greedy_strict,
        "greedy_lenient": searches.greedy_lenient,
        "p_correct": np.minimum(searches.strict, 1.0),
        "p_correct_upper": np.minimum(np.minimum(searches.strict, 1.0) + searches.unsearched(), 1.0),
        "p_lenient": np.minimum(searches.lenient, 1.0),
        "p_lenient_upper": np.minimum(np.minimum(searches.lenient, 1.0) + searches.unsearched(lenient=True), 1.0),
        "expansions": spent,
    }
    return probes_frame(rows, sets, figures)


def probes_frame(rows: Sequence[PreparedRow], sets: int, figures: Mapping[str, Sequence[Any] | Ints]) -> pl.DataFrame:
    """Return `slick.PROBES`, sorted by row and set, from its columns that a model decides.

    Their values are those of the first row with each of the exemplar sets, then of the second row, and so on.
    """
    numbers = np.repeat(np.array([row.number for row in rows], dtype=np.int64), sets)
    swapped = [
        (r * sets + j, shot.slot, shot.exemplar.question, shot.exemplar.answer)
        for r, row in enumerate(rows)
        for j, shots in enumerate(row.replaced_shots)
        for shot in shots
    ]
    columns = {"row": numbers, "exemplar_set": np.tile(np.arange(sets), len(rows)), **figures}
    schema = {name: dtype for name, dtype in PROBES.items() if name != "replaced_shots"}
    frame = pl.DataFrame({name: columns[name] for name in schema}, schema=schema)
    replaced_shots = _lists_of_shots(swapped, len(numbers))
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
