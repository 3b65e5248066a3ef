"""Searches for every way a model can spell an accepted answer (design, section 2). Pure: no model, no torch.

A prompt's answers form a tree: a node is a path of tokens, and `Node` holds the model's next-token distribution
there. The search only knows the nodes fed to it. It adds up the probability of ending with a right answer, follows
the greedy path, and names the paths it needs next: those whose text may still become right, likeliest first. It
also counts the probability it did not search, so the result is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Final, NamedTuple

from foreknow.data.exact_match import Accepted, MatchResult, answer_of
from foreknow.prompts.vocabulary import TokenPath, Vocabulary


class Node(NamedTuple):
    """The next-token distribution after a path: tokens by falling probability, and the greedy choice.

    `tokens` and `p` are what sampling can draw (after temperature and top-k), so p sums to 1 - `tail`. Where the
    logits are not finite (NaN, infinity), sampling has nothing to draw: `is_sound` is False and `greedy` is undefined.
    """

    greedy: int
    tokens: Sequence[int]
    p: Sequence[float]
    tail: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Return whether the node holds a distribution: False where the logits were not finite."""
        return len(self.tokens) > 0 or self.tail > 0


class PathStep(NamedTuple):
    """The effect of the last token of a path: the finished answer if the token ends it, else the text's verdict.

    `strict`, `lenient`: whether the finished answer is right in each mode.
    """

    final: str | None
    verdict: MatchResult | None
    strict: bool = False
    lenient: bool = False


_DEAD: Final = PathStep(None, MatchResult(False, False, False, False))
"""The step of every token after which no answer can be right."""


class NextSteps(dict[int, PathStep]):
    """The step of each token that can follow a path. A token is judged when it is first looked up.

    `openings`: which tokens are worth a look, by the code of their text (`exact_match.opening_code`); None: all are.
    """

    def __init__(self, matcher: PathMatcher, path: TokenPath, text: str):
        super().__init__()
        self.matcher, self.path, self.text = matcher, path, text
        self.codes = matcher.vocabulary.opening_codes
        openings = None if self.codes is None else matcher.accepted.openings(text)
        self.openings = None if openings is None else openings.table

    def can_open(self, tokens: Sequence[int]) -> bytes | None:
        """Return, for each token, 1 unless its first letter shows that no answer can be right after it.

        None where the tokens' texts are not known, or do not say it.
        """
        if self.openings is None or self.codes is None:
            return None
        try:
            return bytes(map(self.codes.__getitem__, tokens)).translate(self.openings)
        except IndexError:  # the model's vocabulary is larger than its tokenizer's
            return None

    def __missing__(self, token: int) -> PathStep:
        step = self[token] = self.matcher._compute_step(self, token)
        return step


@dataclass
class PathMatcher:
    """Judges token paths against accepted answers. All prompts of all rows with these answers share its cache."""

    vocabulary: Vocabulary
    accepted: Accepted
    _next: dict[TokenPath, NextSteps] = field(default_factory=dict)

    def step(self, path: TokenPath) -> PathStep:
        """Judge the answer after the last token of `path`."""
        return self.after(path[:-1])[path[-1]]

    def after(self, path: TokenPath) -> NextSteps:
        """Return the steps of the tokens that can follow `path`, by token."""
        known = self._next.get(path)
        if known is None:
            text = self.vocabulary.decode_next(self.after(path[:-1]).text, path[:-1], path[-1]) if path else ""
            known = self._next[path] = NextSteps(self, path, text)
        return known

    def text(self, path: TokenPath) -> str:
        """Return the text a path spells."""
        return self.after(path).text if path else ""

    def _compute_step(self, after: NextSteps, token: int) -> PathStep:
        """Judge `token` after the path of `after`."""
        vocabulary = self.vocabulary
        if token in vocabulary.ends:
            return self._final_step(after.text.strip())
        if token in vocabulary.breaks:
            return self._final_step(answer_of(vocabulary.decode_next(after.text, after.path, token)))
        if (possible := after.can_open((token,))) is not None and not possible[0]:
            return _DEAD
        whole = vocabulary.decode_next(after.text, after.path, token)
        verdict = self.accepted.judge(whole)
        return PathStep(None, verdict) if verdict.lenient_open else _DEAD

    def _final_step(self, answer: str) -> PathStep:
        right = self.accepted.right
        return PathStep(answer, None, right(answer, "strict"), right(answer, "lenient"))


class Greedy(NamedTuple):
    """The greedy answer as far as it was followed. `done`: the verdict needs no further decoding."""

    path: TokenPath
    done: bool
    strict: bool
    lenient: bool
    finished: bool


_AT_ROOT: Final = Greedy((), False, False, False, False)


@dataclass(slots=True)
class AnswerSearch:
    """One prompt's search.

    `max_new`: the most tokens an answer may take, its ending token included. `negligible`: the search counts paths
    below this probability as unsearched and does not follow them. `is_sound`: False once the model returned logits
    that were not finite; the prompt's probabilities are then NaN and the search asks for no further paths.
    """

    matcher: PathMatcher
    max_new: int
    negligible: float
    nodes: dict[TokenPath, Node] = field(default_factory=dict)
    strict: float = 0.0
    lenient: float = 0.0
    lost: float = 0.0
    lost_lenient: float = 0.0
    is_sound: bool = True
    frontier: dict[TokenPath, tuple[float, bool]] = field(default_factory=dict)
    _greedy: Greedy = _AT_ROOT

    def feed(self, nodes: Iterable[tuple[TokenPath, Node]]) -> None:
        """Add the distributions after some paths; the first call must include the root `()`."""
        new = dict(nodes)
        if not (self.is_sound and all(node.is_sound for node in new.values())):
            self._invalidate(new)
            return
        at_root = not self.nodes
        self.nodes.update(new)
        if at_root:
            self._visit((), 1.0, True)
            return
        for path in sorted(new):
            entry = self.frontier.pop(path, None)
            if entry is not None:
                self._visit(path, *entry)

    def _invalidate(self, new: dict[TokenPath, Node]) -> None:
        """Set the prompt's probabilities to NaN; an answer ends where its path has no distribution."""
        self.is_sound = False
        self.strict = self.lenient = math.nan
        self.lost = self.lost_lenient = 0.0
        self.frontier.clear()
        end = min(self.matcher.vocabulary.ends | self.matcher.vocabulary.breaks)
        self.nodes.update({path: node if node.is_sound else Node(end, (), ()) for path, node in new.items()})

    def _visit(self, path: TokenPath, mass: float, strict_open: bool) -> None:
        """Spread the probability of reaching `path` over what can follow."""
        node = self.nodes[path]
        last = len(path) + 1 >= self.max_new
        unsearched = mass * node.tail
        steps = self.matcher.after(path)
        count = _count_likely(node.p, mass, self.negligible)
        if count < len(node.p):
            unsearched += mass * sum(node.p[count:])
        tokens = node.tokens[:count]
        pairs: Iterable[tuple[int, float]] = zip(tokens, node.p, strict=False)
        possible = steps.can_open(tokens)
        for token, p in pairs if possible is None else compress(pairs, possible):
            step = steps[token]
            if step is _DEAD:
                continue
            share = mass * p
            if step.final is not None:
                self.strict += share * step.strict
                self.lenient += share * step.lenient
                continue
            verdict = step.verdict
            if last or verdict is None:
                continue
            child = (*path, token)
            if child in self.nodes:
                self._visit(child, share, strict_open and verdict.strict_open)
            else:
                self.frontier[child] = (share, strict_open and verdict.strict_open)
        self.lost_lenient += unsearched
        if strict_open:
            self.lost += unsearched

    def unsearched(self, lenient: bool = False) -> float:
        """Return the probability that was not searched: its answers may be right or wrong."""
        if not self.frontier:
            return self.lost_lenient if lenient else self.lost
        if lenient:
            return self.lost_lenient + sum([m for m, _ in self.frontier.values()])
        return self.lost + sum([m for m, strict in self.frontier.values() if strict])

    def greedy(self) -> Greedy:
        """Follow the largest logits as far as they are known, or until the answer is surely wrong."""
        if not self.is_sound:
            return Greedy((), True, False, False, False)
        if not self._greedy.done:
            self._greedy = self._follow_greedy(self._greedy.path)
        return self._greedy

    def _follow_greedy(self, path: TokenPath) -> Greedy:
        """Follow the largest logits from `path` on, the greedy path as far as it was known before."""
        while True:
            node = self.nodes.get(path)
            if node is None:
                return Greedy(path, False, False, False, False)
            step = self.matcher.after(path)[node.greedy]
            path = (*path, node.greedy)
            if step.final is not None:
                strict = step.strict and self._can_be_strict(path[:-1])
                return Greedy(path, True, strict, step.lenient, True)
            if len(path) >= self.max_new or step.verdict is None or not step.verdict.lenient_open:
                return Greedy(path, True, False, False, False)

    def _can_be_strict(self, path: TokenPath) -> bool:
        verdicts = (self.matcher.step(path[:n]).verdict for n in range(1, len(path) + 1))
        return all(verdict is not None and verdict.strict_open for verdict in verdicts)


def _count_likely(p: Sequence[float], mass: float, negligible: float) -> int:
    """Return how many of the falling probabilities `p` are, times `mass`, at least `negligible`."""
    if not p or mass * p[-1] >= negligible:
        return len(p)
    low, high = 0, len(p) - 1
    while low < high:
        middle = (low + high) // 2
        if mass * p[middle] < negligible:
            high = middle
        else:
            low = middle + 1
    return low


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


def paths_to_expand(searches: Sequence[AnswerSearch], spent: Sequence[int], budget: Budget) -> list[list[TokenPath]]:
    """Return the paths to expand next, for each prompt of one row.

    Greedy paths that may still be right come first. Then come the open paths in the mode that labels the row,
    likeliest first over all prompts, until the unsearched probability sums to at most `budget.allowance`. Where
    labels are strict, the lenient mode is searched only until the row's lenient category is settled. The lists are
    empty where one of the prompts is not sound.
    """
    paths: list[set[TokenPath]] = [set() for _ in searches]
    if not all(search.is_sound for search in searches):
        return [[] for _ in searches]  # the row gets no category, whatever its other prompts say
    for search, chosen in zip(searches, paths, strict=True):
        greedy = search.greedy()
        if not greedy.done:
            chosen.add(greedy.path)
    _add_open_paths(searches, spent, budget, budget.lenient, paths)
    if not budget.lenient and not _is_decided(searches, budget.samples):
        _add_open_paths(searches, spent, budget, True, paths)
    return [sorted(chosen) for chosen in paths]


def _add_open_paths(
    searches: Sequence[AnswerSearch], spent: Sequence[int], budget: Budget, lenient: bool, paths: list[set[TokenPath]]
) -> None:
    unsearched = sum(search.unsearched(lenient) for search in searches)
    if unsearched <= budget.allowance:
        return
    open_paths = sorted(
        (-mass, index, path)
        for index, search in enumerate(searches)
        if spent[index] < budget.cap
        for path, (mass, strict) in search.frontier.items()
        if lenient or strict
    )
    for negative, index, path in open_paths:
        if unsearched <= budget.allowance:
            break
        if path not in paths[index]:
            if spent[index] + len(paths[index]) >= budget.cap:
                continue
            paths[index].add(path)
        unsearched += negative


def _is_decided(searches: Sequence[AnswerSearch], samples: int) -> bool:
    """Return whether the lenient category is settled: a greedy answer is right, or p_hit is on one side of 0.5."""
    if any(search.greedy().lenient for search in searches):
        return True
    low = math.prod((1.0 - min(search.lenient, 1.0)) ** samples for search in searches)
    high = math.prod((1.0 - min(search.lenient + search.unsearched(True), 1.0)) ** samples for search in searches)
    return 1.0 - low >= 0.5 or 1.0 - high < 0.5
