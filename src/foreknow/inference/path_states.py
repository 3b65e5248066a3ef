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

from foreknow.data.exact_match import Accepted, answer_of
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

Ints = NDArray[np.int64]

DEAD: Final = -1
"""The step with a token after which no answer can be right."""
WRONG: Final = -2
"""The step with a token that ends the answer, which is wrong. WRONG - 1: it is right strictly; WRONG - 2: it is right
leniently; WRONG - 3: both."""
_TOKEN_BITS: Final = 32


class PathStates:
    """The states of any number of answers, by number.

    `strict`: whether the text of the state, and of every state before it, may still become strictly right. `depth`: the
    number of tokens of its path. Both are [capacity], longer than there are states.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        codes, ends = vocabulary.opening_codes or b"", vocabulary.ends
        size = max(len(codes), *(token + 1 for token in ends), 1) if ends else max(len(codes), 1)
        # one more entry, for tokens that the tokenizer does not have: they are judged
        self._codes = np.frombuffer(codes.ljust(size + 1, b"\0"), dtype=np.uint8)
        self._is_end = np.zeros(size + 1, dtype=bool)
        self._is_end[list(ends)] = True
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
        # of the states that a step left: the line of `_openings`, and the step with a token that only ends the answer
        self._line = np.full(1024, -1, dtype=np.int64)
        self._openings = np.zeros((256, 256), dtype=bool)
        self._end_step = np.zeros(256, dtype=np.int64)
        self._lines = 0

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.paths)

    def root(self, answers: tuple[str, ...]) -> int:
        """Return the state of the empty path, for a row with these answers."""
        state = self._roots.get(answers)
        if state is None:
            state = self._roots[answers] = self._add((), "", Accepted.of(answers), True)
        return state

    def at(self, root: int, paths: Iterable[TokenPath]) -> list[int]:
        """Return the states of paths, each after its beginnings; DEAD where a path has none."""
        by_path = {(): root}
        states = []
        for path in paths:
            before = by_path[path[:-1]]
            state = by_path[path] = max(self.step(before, path[-1]), DEAD) if before >= 0 else DEAD
            states.append(state)
        return states

    def step(self, state: int, token: int) -> int:
        """Return the step from one state with one token; see `steps`."""
        known = self._steps.get(_pair(state, token))
        if known is None:
            known = int(self.steps(np.array([state]), np.array([token]))[0])
        return known

    def steps(self, states: Ints, tokens: Ints) -> Ints:
        """Return the step from each state with its token: a state, DEAD, or at most WRONG where the answer ends."""
        lines = self._lines_of(states)
        last = len(self._codes) - 1
        tokens_known = np.where((tokens < 0) | (tokens > last), last, tokens)
        is_end = self._is_end[tokens_known]
        steps = np.where(is_end, self._end_step[lines], DEAD)
        judged = np.flatnonzero(self._openings[lines, self._codes[tokens_known]] & ~is_end)
        pairs = _pair(states[judged], tokens[judged]).tolist()
        known = list(map(self._steps.get, pairs))
        if None in known:
            known = [self._judge(pair) if step is None else step for pair, step in zip(pairs, known, strict=True)]
        steps[judged] = known
        return steps

    def _judge(self, pair: int) -> int:
        """Judge a pair of state and token, and remember its step."""
        step = self._steps.get(pair)  # the same pair may stand twice in one call
        if step is not None:
            return step
        state, token = pair >> _TOKEN_BITS, (pair & (1 << _TOKEN_BITS) - 1) - 1
        path, accepted = self.paths[state], self._accepted[state]
        text = self.vocabulary.decode_next(self._texts[state], path, token)
        if token in self.vocabulary.breaks:
            step = _final_step(accepted, answer_of(text))
        else:
            verdict = accepted.judge(text)
            strict = bool(self.strict[state]) and verdict.strict_open
            step = self._add((*path, token), text, accepted, strict) if verdict.lenient_open else DEAD
        self._steps[pair] = step
        return step

    def _add(self, path: TokenPath, text: str, accepted: Accepted, strict: bool) -> int:
        state = len(self.paths)
        if state == len(self.depth):
            self.strict, self.depth, self._line = _longer(self.strict), _longer(self.depth), _longer(self._line, -1)
        self.paths.append(path)
        self._texts.append(text)
        self._accepted.append(accepted)
        self.strict[state], self.depth[state] = strict, len(path)
        return state

    def _lines_of(self, states: Ints) -> Ints:
        """Return the lines of states in `_openings` and `_end_step`, which are filled in where they are new."""
        lines = self._line[states]
        if (lines < 0).any():
            for state in dict.fromkeys(states[lines < 0].tolist()):
                self._open(state)
            lines = self._line[states]
        return lines

    def _open(self, state: int) -> None:
        line, text, accepted = self._lines, self._texts[state], self._accepted[state]
        if line == len(self._end_step):
            self._openings, self._end_step = _longer(self._openings), _longer(self._end_step)
        openings = None if self.vocabulary.pieces is None else accepted.openings(text)
        self._openings[line] = True if openings is None else np.frombuffer(openings.table, dtype=bool)
        self._end_step[line] = _final_step(accepted, text.strip())
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
