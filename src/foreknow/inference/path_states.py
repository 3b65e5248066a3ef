"""Judges token paths against accepted answers, many tokens at once. Pure: no model, no torch.

A state is a path of tokens whose text may still become one of some accepted answers, under lenient matching at least.
It has a number. A step from a state with a token gives the number of the next state, or says how the answer ended, or
that no answer can be right any more. All prompts of all rows with the same answers share their states, so a token is
judged once. Most tokens are not judged at all: no answer has their first letter there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foreknow.data.exact_match import OPENING_CODES, Accepted, answer_of
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

Ints = NDArray[np.int64]

DEAD: Final = -1
"""The step with a token after which no answer can be right."""
WRONG: Final = -2
"""The step with a token that ends the answer, which is wrong. WRONG - 1: it is right strictly; WRONG - 2: it is right
leniently; WRONG - 3: both."""
_TOKEN_BITS: Final = 32
_END: Final = 1
"""The code, among those of `opening_code`, of tokens that end an answer and add nothing to it."""


class PathStates:
    """The states of any number of answers, by number.

    `strict`: whether the text of the state, and of every state before it, may still become strictly right. `depth`: the
    number of tokens of its path. Both are [capacity], longer than there are states.
    """

    def __init__(self, vocabulary: Vocabulary, *, excludes: bool = True):
        """Start without states.

        `excludes`: exclude tokens by how they begin, by a table of a few kilobytes for each state. It pays where dozens
        of tokens may follow a state, and not where only the greedy one is asked for.
        """
        self.vocabulary, self._excludes = vocabulary, excludes and vocabulary.opening_codes is not None
        codes = np.zeros(0, dtype=np.uint16) if vocabulary.opening_codes is None else vocabulary.opening_codes
        # one more entry, for tokens that the tokenizer does not have: they are judged
        self._codes = np.zeros(max([len(codes), *(token + 1 for token in vocabulary.ends)]) + 1, dtype=np.uint16)
        self._codes[: len(codes)] = codes
        self._codes[list(vocabulary.ends)] = _END
        self.clear()

    def clear(self) -> None:
        """Forget all states."""
        self.paths: list[TokenPath] = []
        self._texts: list[str] = []
        self._accepted: list[Accepted] = []
        self._roots: dict[tuple[str, ...], int] = {}
        self._steps: dict[int, int] = {}
        self.strict = np.zeros(1024, dtype=bool)
        self.depth = np.zeros(1024, dtype=np.int64)
        self._end_step = np.zeros(1024, dtype=np.int64)
        self._line = np.full(1024, -1, dtype=np.int64)  # in `_openings`, of the states from which a step was asked
        self._openings = np.zeros((256, OPENING_CODES), dtype=bool)
        self._lines = 0

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.paths)

    def root(self, answers: tuple[str, ...]) -> int:
        """Return the state of the empty path, for a row with these answers."""
        state = self._roots.get(answers)
        if state is None:
            accepted = Accepted.of(answers)
            state = self._roots[answers] = self._add((), "", accepted, True, _final_step(accepted, ""))
        return state

    def at(self, root: int, paths: Iterable[TokenPath]) -> list[int]:
        """Return the states of paths, each after its beginnings; DEAD where a path has none."""
        by_path: dict[TokenPath, int] = {(): root}
        states = []
        for path in paths:
            before = by_path[path[:-1]]
            state = by_path[path] = max(self.step(before, path[-1]), DEAD) if before >= 0 else DEAD
            states.append(state)
        return states

    def step(self, state: int, token: int) -> int:
        """Return the step from one state with one token; see `steps`."""
        if token in self.vocabulary.ends:
            return int(self._end_step[state])
        pair = _pair(state, token)
        if pair not in self._steps:
            self._steps[pair] = self._judge(pair)
        return self._steps[pair]

    def steps(self, states: Ints, tokens: Ints) -> Ints:
        """Return the step from each state with its token: a state, DEAD, or at most WRONG where the answer ends."""
        # as unsigned integers, negative tokens are beyond the last one too
        codes = self._codes[np.minimum(tokens.view(np.uint64), len(self._codes) - 1)]
        if self._excludes:
            lines = self._lines_of(states)  # this may make the table longer
            worth_a_look = np.flatnonzero(self._openings[lines, codes])
        else:
            worth_a_look = np.arange(len(states))
        steps = np.full(len(states), DEAD, dtype=np.int64)
        is_end = codes[worth_a_look] == _END
        ending, judged = worth_a_look[is_end], worth_a_look[~is_end]
        steps[ending] = self._end_step[states[ending]]
        pairs = _pair(states[judged], tokens[judged]).tolist()
        for pair in set(pairs).difference(self._steps):
            self._steps[pair] = self._judge(pair)
        steps[judged] = list(map(self._steps.__getitem__, pairs))
        return steps

    def _judge(self, pair: int) -> int:
        """Return the step from a state with a token, both in one integer."""
        state, token = pair >> _TOKEN_BITS, (pair & (1 << _TOKEN_BITS) - 1) - 1
        path, accepted = self.paths[state], self._accepted[state]
        text = self.vocabulary.decode_next(self._texts[state], path, token)
        if token in self.vocabulary.breaks:
            return _final_step(accepted, answer_of(text))
        verdict = accepted.judge(text)
        if not verdict.lenient_open:
            return DEAD
        end = WRONG - verdict.strict_match - 2 * verdict.lenient_match
        if text.endswith("\ufffd"):  # part of a character: what it is worth as an answer is not in the verdict
            end = _final_step(accepted, text.strip())
        return self._add((*path, token), text, accepted, bool(self.strict[state]) and verdict.strict_open, end)

    def _add(self, path: TokenPath, text: str, accepted: Accepted, strict: bool, end: int) -> int:
        """Add a state. `end`: the step with a token that only ends the answer."""
        state = len(self.paths)
        if state == len(self.depth):
            self.strict, self.depth, self._end_step = map(_longer, (self.strict, self.depth, self._end_step))
            self._line = _longer(self._line, -1)
        self.paths.append(path)
        self._texts.append(text)
        self._accepted.append(accepted)
        self.strict[state], self.depth[state], self._end_step[state] = strict, len(path), end
        return state

    def _lines_of(self, states: Ints) -> Ints:
        """Return the lines of states in `_openings`, which are filled in where they are new."""
        lines = self._line[states]
        if (lines < 0).any():
            for state in dict.fromkeys(states[lines < 0].tolist()):
                self._open(state)
            lines = self._line[states]
        return lines

    def _open(self, state: int) -> None:
        line, text, accepted = self._lines, self._texts[state], self._accepted[state]
        if line == len(self._openings):
            self._openings = _longer(self._openings)
        openings = accepted.openings(text)
        self._openings[line] = True if openings is None else np.frombuffer(openings.table, dtype=bool)
        self._openings[line, _END] = True
        self._line[state], self._lines = line, line + 1


def final_match(steps: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which steps end a right answer, strictly and leniently."""
    bits = np.maximum(WRONG - steps, 0)
    return bits & 1 > 0, bits & 2 > 0


def _final_step(accepted: Accepted, answer: str) -> int:
    return WRONG - accepted.right(answer, "strict") - 2 * accepted.right(answer, "lenient")


def _pair(state: Any, token: Any) -> Any:
    """Return one integer for a state and a token (at least -1), as numbers or arrays."""
    return state << _TOKEN_BITS | token + 1


def _longer(x: NDArray[Any], fill: int = 0) -> NDArray[Any]:
    """Return a copy of x twice as long."""
    return np.concatenate([x, np.full_like(x, fill)])
