"""The search for every way a model can spell an accepted answer (design, section 2). Pure: no model, no torch.

A prompt's answers form a tree: a node is a path of tokens, and `Node` holds the next-token distribution the
model has there. The search knows the nodes fed to it. It adds up the probability of ending with a right
answer, follows the greedy path, and names the paths it wants next: those whose text may still become right,
likeliest first. What it does not look at is counted, so the result is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from foreknow.data.exact_match import Accepted, MatchResult, answer_of
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


class Node(NamedTuple):
    """The next-token distribution after a path: tokens by falling probability, and the greedy choice.

    `tokens` and `p` are what sampling can draw (after temperature and top-k), so p sums to 1 less `tail`. Logits
    that are not finite (NaN, infinity) leave nothing to draw: `is_sound` is False, and `greedy` says nothing.
    """

    greedy: int
    tokens: Sequence[int]
    p: Sequence[float]
    tail: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether it is a distribution at all."""
        return len(self.tokens) > 0 or self.tail > 0


class PathStep(NamedTuple):
    """A token appended to a path: the finished answer if it ends there, else what the text is worth."""

    final: str | None
    verdict: MatchResult | None


@dataclass
class PathMatcher:
    """Judges token paths for one row; the sets of exemplars share what it has worked out."""

    vocabulary: Vocabulary
    accepted: Accepted
    _steps: dict[TokenPath, PathStep] = field(default_factory=dict)
    _texts: dict[TokenPath, str] = field(default_factory=dict)

    def step(self, path: TokenPath) -> PathStep:
        """What the last token of `path` does to the answer."""
        found = self._steps.get(path)
        if found is None:
            found = self._steps[path] = self._work_out(path)
        return found

    def text(self, path: TokenPath) -> str:
        """The text a path spells."""
        found = self._texts.get(path)
        if found is None:
            found = self._texts[path] = self.vocabulary.decode(path) if path else ""
        return found

    def _work_out(self, path: TokenPath) -> PathStep:
        if path[-1] in self.vocabulary.ends:
            return PathStep(self.text(path[:-1]).strip(), None)
        if path[-1] in self.vocabulary.breaks:
            return PathStep(answer_of(self.text(path)), None)
        return PathStep(None, self.accepted.judge(self.text(path)))


class Greedy(NamedTuple):
    """The greedy answer as far as it was followed. `done`: nothing more has to be decoded for the verdict."""

    path: TokenPath
    done: bool
    strict: bool
    lenient: bool
    finished: bool


@dataclass
class AnswerSearch:
    """One prompt's search.

    `max_new`: an answer and its ending token must fit in so many tokens. `negligible`: paths below this
    probability are not followed but counted as unsearched. `is_sound`: False once the model gave no distribution;
    what the prompt is worth is then NaN, and nothing more of it is wanted.
    """

    speller: PathMatcher
    max_new: int
    negligible: float
    nodes: dict[TokenPath, Node] = field(default_factory=dict)
    strict: float = 0.0
    lenient: float = 0.0
    lost: float = 0.0
    lost_lenient: float = 0.0
    is_sound: bool = True
    frontier: dict[TokenPath, tuple[float, bool]] = field(default_factory=dict)

    def feed(self, nodes: Iterable[tuple[TokenPath, Node]]) -> None:
        """Take distributions in: the first call must hold the root `()`."""
        new = dict(nodes)
        if not (self.is_sound and all(node.is_sound for node in new.values())):
            self._give_up(new)
            return
        at_root = not self.nodes
        self.nodes.update(new)
        if at_root:
            self._visit((), 1.0, True)
            return
        for path in sorted(new):
            waiting = self.frontier.pop(path, None)
            if waiting is not None:
                self._visit(path, *waiting)

    def _give_up(self, new: dict[TokenPath, Node]) -> None:
        """Keep nothing of the prompt; the answer of a path without a distribution ends there."""
        self.is_sound = False
        self.strict = self.lenient = math.nan
        self.lost = self.lost_lenient = 0.0
        self.frontier.clear()
        end = min(self.speller.vocabulary.ends | self.speller.vocabulary.breaks)
        self.nodes.update({path: node if node.is_sound else Node(end, (), ()) for path, node in new.items()})

    def _visit(self, path: TokenPath, mass: float, strict_open: bool) -> None:
        """Spread the probability of reaching `path` over what can follow."""
        node = self.nodes[path]
        last = len(path) + 1 >= self.max_new
        left = mass * node.tail
        for at, (token, p) in enumerate(zip(node.tokens, node.p, strict=True)):
            share = mass * p
            if share < self.negligible:
                left += mass * sum(node.p[at:])
                break
            step = self.speller.step((*path, token))
            if step.final is not None:
                self.strict += share * self.speller.accepted.right(step.final, "strict")
                self.lenient += share * self.speller.accepted.right(step.final, "lenient")
                continue
            verdict = step.verdict
            if last or verdict is None or not verdict.lenient_open:
                continue
            child = (*path, token)
            if child in self.nodes:
                self._visit(child, share, strict_open and verdict.strict_open)
            else:
                self.frontier[child] = (share, strict_open and verdict.strict_open)
        self.lost_lenient += left
        if strict_open:
            self.lost += left

    def unsearched(self, lenient: bool = False) -> float:
        """Probability not accounted for: the answers in it may be right or wrong."""
        if lenient:
            return self.lost_lenient + sum(m for m, _ in self.frontier.values())
        return self.lost + sum(m for m, strict in self.frontier.values() if strict)

    def greedy(self) -> Greedy:
        """Follow the largest logits as far as they are known, or until the answer is surely wrong."""
        path: TokenPath = ()
        strict = True
        if not self.is_sound:
            return Greedy(path, True, False, False, False)
        while True:
            node = self.nodes.get(path)
            if node is None:
                return Greedy(path, False, False, False, False)
            path = (*path, node.greedy)
            step = self.speller.step(path)
            if step.final is not None:
                right = self.speller.accepted.right
                return Greedy(path, True, strict and right(step.final, "strict"), right(step.final, "lenient"), True)
            if len(path) >= self.max_new or step.verdict is None or not step.verdict.lenient_open:
                return Greedy(path, True, False, False, False)
            strict = strict and step.verdict.strict_open


@dataclass(frozen=True)
class Budget:
    """How far a row is searched.

    `allowance`: the sum over prompts of unsearched probability to get to. `cap`: expansions of one prompt at
    most. `samples`: draws of each prompt. `lenient`: whether lenient matching labels the row.
    """

    allowance: float
    cap: int
    samples: int
    lenient: bool = False


def wanted(trees: Sequence[AnswerSearch], spent: Sequence[int], budget: Budget) -> list[list[TokenPath]]:
    """For one row, the paths each of its prompts should have expanded next.

    Greedy paths that may still be right come first. Then, in the mode that labels the row, open paths,
    likeliest first over all prompts, until what is left unsearched sums to at most `budget.allowance`. In the
    other mode (lenient, where labels are strict) only as far as the row's category hangs on it. Nothing is wanted
    where one of the prompts is not sound.
    """
    asked: list[set[TokenPath]] = [set() for _ in trees]
    if not all(tree.is_sound for tree in trees):
        return [[] for _ in trees]  # the row gets no category, whatever its other prompts say
    for tree, ask in zip(trees, asked, strict=True):
        greedy = tree.greedy()
        if not greedy.done:
            ask.add(greedy.path)
    _ask(trees, spent, budget, budget.lenient, asked)
    if not budget.lenient and not _decided(trees, budget.samples):
        _ask(trees, spent, budget, True, asked)
    return [sorted(ask) for ask in asked]


def _ask(
    trees: Sequence[AnswerSearch], spent: Sequence[int], budget: Budget, lenient: bool, asked: list[set[TokenPath]]
) -> None:
    left = sum(t.unsearched(lenient) for t in trees)
    if left <= budget.allowance:
        return
    open_paths = sorted(
        (-mass, at, path)
        for at, t in enumerate(trees)
        if spent[at] < budget.cap
        for path, (mass, strict) in t.frontier.items()
        if lenient or strict
    )
    for negative, at, path in open_paths:
        if left <= budget.allowance:
            break
        if path not in asked[at]:
            if spent[at] + len(asked[at]) >= budget.cap:
                continue
            asked[at].add(path)
        left += negative


def _decided(trees: Sequence[AnswerSearch], samples: int) -> bool:
    """Whether the lenient category is settled: a greedy answer is right, or p_hit is surely on one side of 0.5."""
    if any(t.greedy().lenient for t in trees):
        return True
    low = math.prod((1.0 - min(t.lenient, 1.0)) ** samples for t in trees)
    high = math.prod((1.0 - min(t.lenient + t.unsearched(True), 1.0)) ** samples for t in trees)
    return 1.0 - low >= 0.5 or 1.0 - high < 0.5
