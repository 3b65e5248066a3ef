"""Computes the probability of each of many answers to one prompt, all in one search. Pure: no model, no torch.

`answer_search.py` computes how likely *some* accepted answer is, and stops once a row's label is settled. Here each
text gets its own probability, matched letter by letter, and the search stops at token paths too unlikely to matter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreknow.data.exact_match import answer_of, canonical, canonical_parts, without_marks_at_end
from foreknow.inference.nodes import Node
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


class TargetStep(NamedTuple):
    """What a token path spells. `over`: the answer ends with the path, and is `text` (-1: none of the texts).

    If not over, texts `low` to `high` (exclusive) begin with the path, and it spells `text` except for final blanks.
    """

    over: bool
    text: int
    low: int
    high: int

    @property
    def open(self) -> bool:
        """Return whether the path can still become one of the texts."""
        return not self.over and (self.text >= 0 or self.low < self.high)


@dataclass
class Spellings:
    """Judges token paths against texts, letter by letter, like `exact_match.Accepted` in strict mode.

    `texts`: distinct texts in their canonical form, in the order of `canonical_texts`. `limits`: for each text, the
    most tokens that the answer and its end may take.
    """

    vocabulary: Vocabulary
    texts: Sequence[str]
    limits: Sequence[int]
    _steps: dict[TokenPath, TargetStep] = field(default_factory=dict)
    _parts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._parts = [canonical_parts(text) for text in self.texts]

    def step(self, path: TokenPath) -> TargetStep:
        """Judge the answer after the last token of `path`."""
        known = self._steps.get(path)
        if known is None:
            known = self._steps[path] = self._compute_step(path)
        return known

    def _compute_step(self, path: TokenPath) -> TargetStep:
        if path[-1] in self.vocabulary.ends:
            return self._final_step(self.vocabulary.decode(path[:-1]).strip() if len(path) > 1 else "", len(path))
        text = self.vocabulary.decode(path)
        if path[-1] in self.vocabulary.breaks:
            return self._final_step(answer_of(text), len(path))
        complete = text.rstrip("\ufffd").lstrip()  # a character whose last bytes are missing may still be completed
        head = without_marks_at_end(
            canonical_parts(complete)
        )  # an accent in the next token may sort before the last ones
        low, high = bisect_left(self._parts, head), bisect_left(self._parts, head + "\U0010ffff")
        spelled = self._index(complete) if complete != complete.rstrip() else -1
        if len(path) + 1 > max([*self.limits[low:high], *([self.limits[spelled]] if spelled >= 0 else [])], default=0):
            return TargetStep(False, -1, 0, 0)
        return TargetStep(False, spelled, low, high)

    def _final_step(self, answer: str, length: int) -> TargetStep:
        index = self._index(answer)
        return TargetStep(True, index if index >= 0 and length <= self.limits[index] else -1, 0, 0)

    def _index(self, text: str) -> int:
        parts = canonical_parts(canonical(text))
        index = bisect_left(self._parts, parts)
        return index if index < len(self._parts) and self._parts[index] == parts else -1


def canonical_texts(texts: Iterable[str]) -> list[str]:
    """Return the distinct, non-blank texts in their canonical form, in the order that `Spellings` expects."""
    return sorted({canonical(text) for text in texts if text.strip()}, key=canonical_parts)


@dataclass
class MultiTargetSearch:
    """One prompt's search for all texts at once. `p`, `lost`: each text's probability found, and not followed."""

    spellings: Spellings
    negligible: float
    max_paths: int
    p: NDArray[np.float64]
    lost: NDArray[np.float64]
    frontier: dict[TokenPath, float] = field(default_factory=dict)
    greedy_path: TokenPath | None = ()
    greedy_text: int = -1
    paths: int = 0

    def feed(self, path: TokenPath, node: Node) -> None:
        """Add the distribution after a path: the root's first, then those of the paths from `paths_to_expand`."""
        if path == self.greedy_path:
            self._extend_greedy_path(node)
        if path and path not in self.frontier:
            return  # this path only serves the greedy answer
        mass = self.frontier.pop(path) if path else 1.0
        if node.tail:
            self._add_lost(
                self.spellings.step(path) if path else TargetStep(False, -1, 0, len(self.p)), mass * node.tail
            )
        for token, p in zip(node.tokens, node.p, strict=True):
            child = (*path, token)
            step = self.spellings.step(child)
            if step.over:
                if step.text >= 0:
                    self.p[step.text] += mass * p
            elif step.open:
                if mass * p >= self.negligible:
                    self.frontier[child] = mass * p
                else:
                    self._add_lost(step, mass * p)

    def paths_to_expand(self) -> list[TokenPath]:
        """Return the paths whose distributions the search needs next; empty once it is over."""
        room = max(0, self.max_paths - self.paths)
        if len(self.frontier) > room:
            by_mass = sorted(self.frontier, key=lambda path: (-self.frontier[path], path))
            for path in by_mass[room:]:
                self._add_lost(self.spellings.step(path), self.frontier.pop(path))
        paths = set(self.frontier)
        if self.greedy_path:
            paths.add(self.greedy_path)
        self.paths += len(paths)
        return sorted(paths)

    def _extend_greedy_path(self, node: Node) -> None:
        path = (*(self.greedy_path or ()), node.greedy)
        step = self.spellings.step(path)
        self.greedy_text = step.text if step.over else -1
        self.greedy_path = path if step.open else None

    def _add_lost(self, step: TargetStep, mass: float) -> None:
        self.lost[step.low : step.high] += mass
        if step.text >= 0 and not step.low <= step.text < step.high:
            self.lost[step.text] += mass
