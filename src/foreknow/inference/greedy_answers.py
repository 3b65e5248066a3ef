"""Follows the model's greedy answers to some prompts to their end, right or wrong, for `model_answer`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foreknow.inference.answer_search import AnswerSearches
from foreknow.inference.path_states import DEAD, Ints
from foreknow.prompts.vocabulary import TokenPath

Request = tuple[int, TokenPath]
"""The number of a prompt, and the path behind it whose node is needed."""


class GreedyAnswers:
    """The greedy answers to the prompts of these numbers.

    While an answer may still be right, the search's own nodes may know how it goes on; after that it needs its own.
    """

    def __init__(self, searches: AnswerSearches, prompts: Ints):
        self._searches = searches
        self._prompts = prompts
        self._states = searches.roots[prompts]  # DEAD once the answer cannot be right
        self._limits = searches.max_new[prompts]
        self._paths: list[TokenPath] = [()] * len(prompts)
        self._is_over = np.zeros(len(prompts), dtype=bool)
        self._follow()

    def requests(self) -> dict[Request, int]:
        """Return the paths whose nodes are needed, at most one for each prompt, and the state of each."""
        numbers = np.flatnonzero(~self._is_over).tolist()
        prompts, states = self._prompts.tolist(), self._states.tolist()
        return {(prompts[n], self._paths[n]): states[n] for n in numbers}

    def feed(self, tokens: Mapping[Request, int]) -> None:
        """Add the greedy tokens after some paths, which may be those of other requests; the search was fed first."""
        dead = np.flatnonzero(~self._is_over & (self._states == DEAD))
        for n, prompt in zip(dead.tolist(), self._prompts[dead].tolist(), strict=True):
            token = tokens.get((prompt, self._paths[n]))
            if token is not None:
                self._append([n], [token])
        self._follow()

    @property
    def texts(self) -> list[str]:
        """Return the answers, with an ellipsis where one had not ended."""
        return [self._searches.states.vocabulary.said(path) for path in self._paths]

    def _follow(self) -> None:
        """Follow answers along the search's nodes as far as they are known."""
        numbers = np.flatnonzero(~self._is_over & (self._states != DEAD))
        while len(numbers):
            known, tokens = self._searches.greedy_tokens(self._prompts[numbers], self._states[numbers])
            numbers, tokens = numbers[known], tokens[known]
            steps = self._searches.states.steps(self._states[numbers], tokens)
            self._states[numbers] = np.maximum(steps, DEAD)
            self._append(numbers.tolist(), tokens.tolist())
            numbers = numbers[~self._is_over[numbers] & (self._states[numbers] != DEAD)]

    def _append(self, numbers: Sequence[int], tokens: Sequence[int]) -> None:
        """Append a token to each of some answers."""
        is_end = self._searches.states.vocabulary.is_end
        for n, token in zip(numbers, tokens, strict=True):
            self._paths[n] = (*self._paths[n], token)
            self._is_over[n] = is_end(token) or len(self._paths[n]) >= self._limits[n]
