"""Looking for many texts at once behind one prompt: how likely is each of them the answer? Pure: no model, no torch.

`answer_search.py` asks how likely *some* accepted answer is, and stops when a row's label is settled. Here each text
gets a probability of its own, letter by letter, and the search stops at paths of tokens too unlikely to matter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreknow.data.exact_match import answer_of, canonical, canonical_parts, without_marks_at_end
from foreknow.inference.answer_search import Node
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


class TargetStep(NamedTuple):
    """What a path of tokens is worth. `over`: the answer ends with it, and is `text` (-1: none of them).

    Not over: texts `low` to `high` (exclusive) begin with it, and `text` is spelled but for blanks at its end.
    """

    over: bool
    text: int
    low: int
    high: int

    @property
    def open(self) -> bool:
        """Whether an accepted answer can still come of it."""
        return not self.over and (self.text >= 0 or self.low < self.high)


@dataclass
class Spellings:
    """Judges token paths against texts, letter by letter, as `exact_match.Accepted` does in strict mode.

    `texts`: different ones in their canonical form, in the order that `ordered` gives. `limits`: tokens an answer
    and its end may take, for each text.
    """

    vocabulary: Vocabulary
    texts: Sequence[str]
    limits: Sequence[int]
    _steps: dict[TokenPath, TargetStep] = field(default_factory=dict)
    _parts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._parts = [canonical_parts(text) for text in self.texts]

    def step(self, path: TokenPath) -> TargetStep:
        """What the last token of `path` makes of it."""
        found = self._steps.get(path)
        if found is None:
            found = self._steps[path] = self._work_out(path)
        return found

    def _work_out(self, path: TokenPath) -> TargetStep:
        if path[-1] in self.vocabulary.ends:
            return self._ended(self.vocabulary.decode(path[:-1]).strip() if len(path) > 1 else "", len(path))
        text = self.vocabulary.decode(path)
        if path[-1] in self.vocabulary.breaks:
            return self._ended(answer_of(text), len(path))
        whole_text = text.rstrip("\ufffd").lstrip()  # a character cut in two stays open
        head = without_marks_at_end(canonical_parts(whole_text))  # accents still to come may sort before its last ones
        low, high = bisect_left(self._parts, head), bisect_left(self._parts, head + "\U0010ffff")
        whole = self._place(whole_text) if whole_text != whole_text.rstrip() else -1
        if len(path) + 1 > max([*self.limits[low:high], *([self.limits[whole]] if whole >= 0 else [])], default=0):
            return TargetStep(False, -1, 0, 0)
        return TargetStep(False, whole, low, high)

    def _ended(self, answer: str, length: int) -> TargetStep:
        place = self._place(answer)
        return TargetStep(True, place if place >= 0 and length <= self.limits[place] else -1, 0, 0)

    def _place(self, text: str) -> int:
        parts = canonical_parts(canonical(text))
        at = bisect_left(self._parts, parts)
        return at if at < len(self._parts) and self._parts[at] == parts else -1


def ordered(texts: Iterable[str]) -> list[str]:
    """Texts in their canonical form, each once, none blank, as `Spellings` wants them."""
    return sorted({canonical(text) for text in texts if text.strip()}, key=canonical_parts)


@dataclass
class MultiTargetSearch:
    """One prompt's search for all texts at once. `p`, `lost`: by text, what was found and what was not followed."""

    spellings: Spellings
    negligible: float
    max_paths: int
    p: NDArray[np.float64]
    lost: NDArray[np.float64]
    frontier: dict[TokenPath, float] = field(default_factory=dict)
    trail: TokenPath | None = ()
    said: int = -1
    paths: int = 0

    def feed(self, path: TokenPath, node: Node) -> None:
        """Take in the distribution after a path: the root first, then those that `wanted` named."""
        if path == self.trail:
            self._follow(node)
        if path and path not in self.frontier:
            return  # asked for the greedy answer alone
        mass = self.frontier.pop(path) if path else 1.0
        if node.tail:
            self._lose(self.spellings.step(path) if path else TargetStep(False, -1, 0, len(self.p)), mass * node.tail)
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
                    self._lose(step, mass * p)

    def wanted(self) -> list[TokenPath]:
        """The paths whose distributions are needed next; none when the search is over."""
        room = max(0, self.max_paths - self.paths)
        if len(self.frontier) > room:
            ordered = sorted(self.frontier, key=lambda path: (-self.frontier[path], path))
            for path in ordered[room:]:
                self._lose(self.spellings.step(path), self.frontier.pop(path))
        asked = set(self.frontier)
        if self.trail:
            asked.add(self.trail)
        self.paths += len(asked)
        return sorted(asked)

    def _follow(self, node: Node) -> None:
        path = (*(self.trail or ()), node.greedy)
        step = self.spellings.step(path)
        self.said = step.text if step.over else -1
        self.trail = path if step.open else None

    def _lose(self, step: TargetStep, mass: float) -> None:
        self.lost[step.low : step.high] += mass
        if step.text >= 0 and not step.low <= step.text < step.high:
            self.lost[step.text] += mass
