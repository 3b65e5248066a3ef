"""Searches for every way a model can spell an accepted answer (design, section 2). Pure: no model, no torch.

A prompt's answers form a tree: a node is a path of tokens, and holds the model's next-token distribution there. The
search only knows the nodes fed to it. It adds up the probability of ending with a right answer and follows the greedy
path. Its frontier is the paths it could need next: those whose text may still become right. It also counts the
probability it did not search, so the result is an interval. `expansion.py` chooses from the frontiers.

All prompts are searched at once, as arrays: a wave of nodes comes from the engine, and one pass adds them all up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreknow.inference.nodes import Nodes
from foreknow.inference.path_states import WRONG, Ints, PathStates, final_match

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_UNKNOWN: Final = -(2**62)
"""Stands for the greedy token of a path whose node was not fed."""
_STATE_BITS: Final = 32


class Frontier(NamedTuple):
    """Paths that were reached and not searched, of all prompts: the prompt, the path's state and its probability."""

    prompt: Ints
    state: Ints
    mass: Floats

    def where(self, chosen: Bools | Ints) -> Frontier:
        """Return some of the paths."""
        return Frontier(self.prompt[chosen], self.state[chosen], self.mass[chosen])


class _Wave(NamedTuple):
    """Nodes to visit, all of one depth below those where the pass began.

    `node`: the number among the nodes fed. `rank` [nodes, depth + 1]: that of the first node, then the place of each
    token in its node's list. Sorted by rank, nodes stand in the order of a depth-first walk.
    """

    node: Ints
    reached: Frontier
    rank: Ints


class AnswerSearches:
    """The searches of many prompts, by number.

    `strict`, `lenient`: the probability of a right answer. `lost`, `lost_lenient`: the probability that was neither
    searched nor put into the frontier. `sound`: False once the model returned logits that were not finite; the
    prompt's probabilities are then NaN and it has no frontier.

    The greedy answer of each prompt, as far as it was followed: `greedy_done` says that the verdict needs no further
    decoding, `greedy_strict` and `greedy_lenient` that it is right, and `greedy_state` is where it stands if not done.
    """

    def __init__(self, states: PathStates, roots: Ints, max_new: Ints, negligible: float):
        """Start a search for each prompt.

        `roots`: the state of the empty path. `max_new`: the most tokens an answer may take, its ending token included.
        `negligible`: paths below this probability count as unsearched and are not followed.
        """
        count = len(roots)
        self.states, self.roots, self.max_new, self.negligible = states, roots, max_new, negligible
        self.strict, self.lenient, self.lost, self.lost_lenient = np.zeros((4, count))
        self.sound = np.ones(count, dtype=bool)
        self.greedy_done, self.greedy_strict, self.greedy_lenient = np.zeros((3, count), dtype=bool)
        self.greedy_state = roots.copy()
        self.frontier = Frontier(np.arange(count), roots, np.ones(count))
        self._greedy_tokens: dict[int, int] = {}
        vocabulary = states.vocabulary
        self._end = min(vocabulary.ends | vocabulary.breaks)

    def feed(self, prompts: Ints, states: Ints, nodes: Nodes) -> Ints:
        """Add the nodes after some paths, each after the nodes of the path's beginnings; return their greedy tokens.

        A state below 0 is a path that cannot become right: the model's answer may be followed along it. An answer
        ends where its path has no distribution.
        """
        sound = nodes.sound
        greedy = np.where(sound, nodes.greedy, self._end)
        keys = _key(prompts, states)
        alive = np.flatnonzero(states >= 0)
        self._greedy_tokens.update(zip(keys[alive].tolist(), greedy[alive].tolist(), strict=True))
        self._invalidate(prompts[~sound])
        place = _Places(keys[alive], alive)
        node = place.of(_key(self.frontier.prompt, self.frontier.state))
        hit = np.flatnonzero(node >= 0)
        hit = hit[np.argsort(node[hit])]
        reached = self.frontier.where(hit)
        self.frontier = self.frontier.where(node < 0)
        self._walk(_Wave(node[hit], reached, node[hit][:, None]), nodes, place)
        self._follow_greedy(np.unique(prompts))
        return greedy

    def unsearched(self, lenient: bool = False) -> Floats:
        """Return each prompt's probability that was not searched: its answers may be right or wrong."""
        prompt, state, mass = self.frontier
        if not lenient:
            mass = mass * self.states.strict[state]
        lost = self.lost_lenient if lenient else self.lost
        return lost + np.bincount(prompt, weights=mass, minlength=len(lost))

    def greedy_tokens(self, prompts: Ints, states: Ints) -> tuple[Bools, Ints]:
        """Return of which paths the node is known, and the greedy token of each."""
        get = self._greedy_tokens.get
        tokens = np.array([get(key, _UNKNOWN) for key in _key(prompts, states).tolist()], dtype=np.int64)
        return tokens != _UNKNOWN, tokens

    def _invalidate(self, prompts: Ints) -> None:
        """Set prompts' probabilities to NaN."""
        if not len(prompts):
            return
        self.sound[prompts] = False
        self.strict[prompts] = self.lenient[prompts] = np.nan
        self.lost[prompts] = self.lost_lenient[prompts] = 0.0
        self.greedy_done[prompts] = True
        self.greedy_strict[prompts] = self.greedy_lenient[prompts] = False
        self.frontier = self.frontier.where(self.sound[self.frontier.prompt])

    def _walk(self, wave: _Wave, nodes: Nodes, place: _Places) -> None:
        """Spread the probability of reaching some nodes over what can follow, and visit what follows of `nodes`.

        All nodes of one depth are visited at once. Then sums are added up in the order of a depth-first walk, so that
        the result is the same, to the last bit, as if each prompt were searched on its own.
        """
        lost, right, new = [], [], []
        while len(wave.node):
            prompt, state, mass = wave.reached
            p, tokens = nodes.p[wave.node], nodes.tokens[wave.node]
            shares = mass[:, None] * p
            likely = (shares >= self.negligible) & (p > 0)
            rest = np.cumsum(np.where(likely, 0.0, p), axis=1)[:, -1] if p.shape[1] else 0.0
            lost.append((wave.rank, prompt, state, mass * nodes.tail[wave.node] + mass * rest))
            at, rank = np.nonzero(likely)
            steps = self.states.steps(state[at], tokens[at, rank])
            may_go_on = self.states.depth[state] + 1 < self.max_new[prompt]
            is_right = steps < WRONG
            goes_on = (steps >= 0) & may_go_on[at]
            chosen = np.flatnonzero(is_right | goes_on)
            at, rank, steps, is_right = at[chosen], rank[chosen], steps[chosen], is_right[chosen]
            ranks = np.concatenate([wave.rank[at], rank[:, None]], axis=1)
            reached = Frontier(prompt[at], steps, shares[at, rank])
            right.append((ranks[is_right], reached.where(is_right)))
            node = np.where(is_right, -1, place.of(_key(reached.prompt, np.maximum(steps, 0))))
            is_new = ~is_right & (node < 0)
            new.append((ranks[is_new], reached.where(is_new)))
            deeper = np.flatnonzero(node >= 0)
            wave = _Wave(node[deeper], reached.where(deeper), ranks[deeper])
        if lost:
            self._add_right(right)
            self._add_lost(lost)
            self._add_new(new)

    def _add_right(self, parts: Sequence[tuple[Ints, Frontier]]) -> None:
        """Add the probabilities of right answers; their `state` is the last step."""
        order = depth_first([ranks for ranks, _ in parts])
        prompt, steps, mass = (np.concatenate(x)[order] for x in zip(*(part for _, part in parts), strict=True))
        strict, lenient = final_match(steps)
        np.add.at(self.strict, prompt[strict], mass[strict])
        np.add.at(self.lenient, prompt[lenient], mass[lenient])

    def _add_lost(self, parts: Sequence[tuple[Ints, Ints, Ints, Floats]]) -> None:
        """Add the probabilities that were lost at nodes; a node's comes after those of the nodes below it."""
        order = depth_first([np.pad(ranks, ((0, 0), (0, 1)), constant_values=2**62) for ranks, *_ in parts])
        prompt, state, mass = (np.concatenate(x)[order] for x in zip(*(part[1:] for part in parts), strict=True))
        strict = self.states.strict[state]
        np.add.at(self.lost_lenient, prompt, mass)
        np.add.at(self.lost, prompt[strict], mass[strict])

    def _add_new(self, parts: Sequence[tuple[Ints, Frontier]]) -> None:
        """Put new paths into the frontier, behind those that are there."""
        order = depth_first([ranks for ranks, _ in parts])
        both = zip(self.frontier, *(part for _, part in parts), strict=True)
        old = len(self.frontier.prompt)
        prompt, state, mass = (np.concatenate(x) for x in both)
        self.frontier = Frontier(prompt, state, mass).where(np.concatenate([np.arange(old), old + order]))

    def _follow_greedy(self, prompts: Ints) -> None:
        """Follow the largest logits of some prompts as far as they are known, or until the answer is surely wrong."""
        prompts = prompts[~self.greedy_done[prompts]]
        while len(prompts):
            known, tokens = self.greedy_tokens(prompts, self.greedy_state[prompts])
            prompts, tokens = prompts[known], tokens[known]
            states = self.greedy_state[prompts]
            steps = self.states.steps(states, tokens)
            strict, lenient = final_match(steps)
            self.greedy_strict[prompts] = strict & self.states.strict[states]
            self.greedy_lenient[prompts] = lenient
            goes_on = (steps >= 0) & (self.states.depth[states] + 1 < self.max_new[prompts])
            self.greedy_done[prompts] = ~goes_on
            prompts = prompts[goes_on]
            self.greedy_state[prompts] = steps[goes_on]


class _Places:
    """Finds the number of the node of a key. Keys are distinct."""

    def __init__(self, keys: Ints, numbers: Ints):
        order = np.argsort(keys)
        # one more key, which is no path's, so that every search ends at one
        self._keys = np.append(keys[order], np.iinfo(np.int64).max)
        self._numbers = np.append(numbers[order], -1)

    def of(self, keys: Ints) -> Ints:
        """Return the number of each key's node, -1 where it has none."""
        at = np.searchsorted(self._keys, keys)
        return np.where(self._keys[at] == keys, self._numbers[at], -1)


def depth_first(ranks: Sequence[Ints]) -> Ints:
    """Return the order of a depth-first walk of paths, given their ranks in groups of one length each."""
    if sum(len(group) > 0 for group in ranks) <= 1:
        return np.arange(sum(map(len, ranks)))  # a group is in order
    width = max(group.shape[1] for group in ranks)
    whole = np.concatenate([np.pad(group, ((0, 0), (0, width - group.shape[1]))) for group in ranks])
    return np.lexsort(whole.T[::-1])


def _key(prompt: Ints, state: Ints) -> Ints:
    """Return one number for a prompt and a state."""
    return prompt << _STATE_BITS | state
