"""Chooses the paths that searches need next: greedy ones, and the likeliest open ones of each row. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreknow.inference.answer_search import AnswerSearches, Bools, Floats, Frontier
from foreknow.inference.path_states import Ints, PathStates


@dataclass(frozen=True)
class Budget:
    """How far a row is searched.

    `allowance`: the search stops once the unsearched probability, summed over prompts, is at most this. `cap`: the
    most expansions of one prompt. `samples`: draws for each prompt. `lenient`: whether lenient matching labels the row.
    """

    allowance: float
    cap: int
    samples: int
    lenient: bool = False


def paths_to_expand(
    searches: AnswerSearches, sets: int, spent: Ints, budget: Budget, rows: Bools | None = None
) -> set[tuple[int, int]]:
    """Return the paths to expand next, as pairs of prompt and state.

    The prompts of row r are r * `sets` to (r + 1) * `sets` - 1. `spent` [prompts]: the expansions so far. `rows`: which
    rows are searched; all by default.

    Greedy paths that may still be right come first. Then come the open paths in the mode that labels the row,
    likeliest first over all prompts of the row, until the unsearched probability sums to at most `budget.allowance`.
    Where labels are strict, the lenient mode is searched only until the row's lenient category is settled. A row of
    which a prompt is not sound needs nothing: it gets no category, whatever its other prompts say.
    """
    searched: Bools = np.asarray(_by_row(searches.sound, sets).all(axis=1))
    if rows is not None:
        searched &= rows
    greedy = np.flatnonzero(np.repeat(searched, sets) & ~searches.greedy_done)
    chosen = _Choice(set(zip(greedy.tolist(), searches.greedy_state[greedy].tolist(), strict=True)), spent.copy())
    chosen.asked[greedy] += 1
    _add_open_paths(searches, sets, spent, budget, budget.lenient, searched, chosen)
    if not budget.lenient:
        undecided = searched & ~_is_decided(searches, sets, budget.samples)
        _add_open_paths(searches, sets, spent, budget, True, undecided, chosen)
    return chosen.paths


@dataclass(frozen=True)
class _Choice:
    """The paths chosen, and the expansions of each prompt with them."""

    paths: set[tuple[int, int]]
    asked: Ints


def _add_open_paths(
    searches: AnswerSearches, sets: int, spent: Ints, budget: Budget, lenient: bool, rows: Bools, chosen: _Choice
) -> None:
    """Choose open paths of the rows whose unsearched probability is more than the allowance."""
    unsearched = _row_sums(searches.unsearched(lenient), sets)
    rows = rows & (unsearched > budget.allowance)
    if not rows.any():
        return
    open_paths = searches.frontier
    is_candidate = np.repeat(rows, sets) & (spent < budget.cap)
    wanted = is_candidate[open_paths.prompt]
    if not lenient:
        wanted &= searches.states.strict[open_paths.state]
    ordered = _likeliest_first(open_paths.where(wanted), sets, searches.states)
    left, row = 0.0, -1
    for prompt, state, mass in zip(*(x.tolist() for x in ordered), strict=True):
        if prompt // sets != row:
            row = prompt // sets
            left = float(unsearched[row])
        if left <= budget.allowance:
            continue
        if (prompt, state) not in chosen.paths:
            if chosen.asked[prompt] >= budget.cap:
                continue
            chosen.paths.add((prompt, state))
            chosen.asked[prompt] += 1
        left -= mass


def _likeliest_first(paths: Frontier, sets: int, states: PathStates) -> Frontier:
    """Sort paths by row, then by falling probability, prompt and token ids."""
    row = paths.prompt // sets
    ordered = paths.where(np.lexsort((paths.prompt, -paths.mass, row)))
    is_tie = (np.diff(ordered.prompt) == 0) & (np.diff(ordered.mass) == 0)
    if not is_tie.any():
        return ordered
    # token ids decide between paths of one prompt that are equally likely
    ids = [states.paths[state] for state in paths.state.tolist()]
    place = np.empty(len(ids), dtype=np.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return paths.where(np.lexsort((place, paths.prompt, -paths.mass, row)))


def _is_decided(searches: AnswerSearches, sets: int, samples: int) -> Bools:
    """Return which rows' lenient category is settled: a greedy answer is right, or p_hit is on one side of 0.5."""
    low = np.minimum(searches.lenient, 1.0)
    high = np.minimum(searches.lenient + searches.unsearched(lenient=True), 1.0)
    hit_low, hit_high = (1.0 - _row_products((1.0 - p) ** samples, sets) for p in (low, high))
    return _by_row(searches.greedy_lenient, sets).any(axis=1) | (hit_low >= 0.5) | (hit_high < 0.5)


def _by_row(x: Bools, sets: int) -> Bools:
    return x.reshape(-1, sets)


def _row_sums(x: Floats, sets: int) -> Floats:
    """Return the sum over each row's prompts, from the first to the last."""
    return np.add.accumulate(x.reshape(-1, sets), axis=1)[:, -1]


def _row_products(x: Floats, sets: int) -> Floats:
    """Return the product over each row's prompts, from the first to the last."""
    return np.multiply.accumulate(x.reshape(-1, sets), axis=1)[:, -1]
