"""The search against an oracle: every token path of a toy language model, added up one by one."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.data.exact_match import Accepted
from foreknow.inference.answer_search import AnswerSearches
from foreknow.inference.expansion import Budget, paths_to_expand
from foreknow.inference.nodes import Node, Nodes
from foreknow.inference.path_states import PathStates
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

TOKENS = (
    b"</s>", b"\n", b"\n\n", b".\n", b"a", b"b", b"ab", b" ", b"A", b"the ", b" a", b".", b"\xc3", b"\xa9", b"B\nb",
    b"e", b"\xcc\x81", b"\xcc\xa3", b"\xcc",
)  # fmt: skip
ENDS, BREAKS = frozenset({0, 1, 2}), frozenset({3, 14})
ANSWERS = (
    "ab", "a", "b", "aab", "A b", "the a", "a.", "\u00e9", "a\u00e9b", "abab", "The", "B", "e", "e\u0301",
    "\u1eb9\u0301", "e\u0301\u0323b",
)  # fmt: skip
EPS = 1e-9


def decode(path: TokenPath) -> str:
    return b"".join(TOKENS[t] for t in path).decode("utf-8", errors="replace")


VOCABULARY = Vocabulary(decode, ENDS, BREAKS)


@dataclass
class Toy:
    """A language model: a seeded distribution after each path. `shown`: how many tokens a node lists."""

    seed: int
    tokens: tuple[int, ...]
    shown: int
    flat: bool
    full: dict[TokenPath, list[tuple[int, float]]] = field(default_factory=dict)

    def distribution(self, path: TokenPath) -> list[tuple[int, float]]:
        if path not in self.full:
            rng = random.Random(f"{self.seed} {path}")
            # whole numbers, so that ties are common
            weights = [rng.choice((0, 1, 1, 2, 3) if self.flat else (0, 1, 4, 64, 1024)) for _ in self.tokens]
            total = sum(weights) or 1
            some = [(t, w / total) for t, w in zip(self.tokens, weights, strict=True) if w]
            self.full[path] = sorted(some or [(self.tokens[0], 1.0)], key=lambda pair: (-pair[1], -pair[0]))
        return self.full[path]

    def greedy(self, path: TokenPath) -> int:
        best = self.distribution(path)
        return min(token for token, p in best if p == best[0][1])

    def node(self, path: TokenPath) -> Node:
        best = self.distribution(path)
        tail = sum(p for _, p in best[self.shown :])
        listed = best[: self.shown]
        return Node(self.greedy(path), [t for t, _ in listed], [p for _, p in listed], tail)


def answer(path: TokenPath) -> str | None:
    """The answer a path spells; None if it has not ended. Written apart from `Vocabulary`."""
    text = b""
    for token in path:
        text += b"" if token == 0 else TOKENS[token]
        if token == 0 or b"\n" in TOKENS[token]:
            return text.split(b"\n")[0].decode("utf-8", errors="replace").strip()
    return None


@dataclass
class Truth:
    strict: float
    lenient: float
    greedy_strict: bool
    greedy_lenient: bool


def oracle(toy: Toy, accepted: Accepted, max_new: int) -> Truth:
    """Walk every path; decode greedily."""
    found = Truth(0.0, 0.0, False, False)

    def walk(path: TokenPath, mass: float) -> None:
        said = answer(path)
        if said is not None:
            found.strict += mass * accepted.right(said, "strict")
            found.lenient += mass * accepted.right(said, "lenient")
        elif len(path) < max_new:
            for token, p in toy.distribution(path):
                walk((*path, token), mass * p)

    walk((), 1.0)
    path: TokenPath = ()
    while len(path) < max_new and answer(path) is None:
        path = (*path, toy.greedy(path))
    said = answer(path)
    if said is not None:
        found.greedy_strict = accepted.right(said, "strict")
        found.greedy_lenient = accepted.right(said, "lenient")
    return found


def spellings(toy: Toy, accepted: Accepted, max_new: int) -> list[TokenPath]:
    """A token path for each accepted answer, as a probe begins with, and all its beginnings."""
    found: set[TokenPath] = set()
    for text in accepted.strict:
        left, path = text.encode(), ()
        while left:
            fits = [t for t in toy.tokens if t > 3 and left.startswith(TOKENS[t])]
            if not fits:
                break
            longest = max(fits, key=lambda t: len(TOKENS[t]))
            path, left = (*path, longest), left[len(TOKENS[longest]) :]
        else:
            found |= {path[: n + 1] for n in range(len(path))}
    return sorted(p for p in found if len(p) < max_new)


class Row:
    """The searches of one row's prompts, fed and asked by paths."""

    def __init__(self, answers: Iterable[str], prompts: int, max_new: int, negligible: float = 0.0):
        self.states = PathStates(VOCABULARY)
        self.root = self.states.root(tuple(answers))
        roots = np.full(prompts, self.root)
        self.searches = AnswerSearches(self.states, roots, np.full(prompts, max_new), negligible)
        self.nodes: list[set[TokenPath]] = [set() for _ in range(prompts)]

    def feed(self, *fed: tuple[int, TokenPath, Node]) -> Row:
        """Add (prompt, path, node) in one wave."""
        prompts = np.array([prompt for prompt, _, _ in fed])
        states = [self.state(path) for _, path, _ in fed]
        self.searches.feed(prompts, np.array(states), Nodes.of([node for *_, node in fed]))
        for prompt, path, _ in fed:
            self.nodes[prompt].add(path)
        return self

    def state(self, path: TokenPath) -> int:
        if not path:
            return self.root
        return self.states.at(self.root, [path[:n] for n in range(1, len(path) + 1)])[-1]

    def asked(self, spent: list[int], budget: Budget) -> list[list[TokenPath]]:
        """The paths to expand next, for each prompt."""
        pairs = paths_to_expand(self.searches, len(self.nodes), np.array(spent), budget)
        return [sorted(self.states.paths[s] for n, s in pairs if n == prompt) for prompt in range(len(self.nodes))]

    @property
    def trees(self) -> list[Tree]:
        return [Tree(self, number) for number in range(len(self.nodes))]


@dataclass
class Tree:
    """What the search of one prompt says."""

    row: Row
    number: int

    @property
    def strict(self) -> float:
        return float(self.row.searches.strict[self.number])

    @property
    def lenient(self) -> float:
        return float(self.row.searches.lenient[self.number])

    @property
    def nodes(self) -> set[TokenPath]:
        return self.row.nodes[self.number]

    @property
    def frontier(self) -> dict[TokenPath, tuple[float, bool]]:
        states = self.row.states
        paths = zip(*(x.tolist() for x in self.row.searches.frontier), strict=True)
        return {states.paths[s]: (mass, bool(states.strict[s])) for n, s, mass in paths if n == self.number}

    def unsearched(self, lenient: bool = False) -> float:
        return float(self.row.searches.unsearched(lenient)[self.number])

    def greedy(self) -> tuple[bool, bool, bool]:
        """Whether the verdict needs no further decoding, and whether the answer is right in each mode."""
        searches, n = self.row.searches, self.number
        return bool(searches.greedy_done[n]), bool(searches.greedy_strict[n]), bool(searches.greedy_lenient[n])


@dataclass
class Search:
    trees: list[Tree]
    spent: list[int]
    greedy_asked: list[int]


def search(toys: list[Toy], answers: Iterable[str], max_new: int, budget: Budget, negligible: float = 0.0) -> Search:
    """The probe's loop, with toys in the place of a model."""
    row = Row(answers, len(toys), max_new, negligible)
    firsts = [[(), *spellings(toy, Accepted.of(answers), max_new)] for toy in toys]
    row.feed(*((n, path, toys[n].node(path)) for n, first in enumerate(firsts) for path in first))
    spent, followed = [0] * len(toys), [0] * len(toys)
    while any(asked := row.asked(spent, budget)):
        for n, paths in enumerate(asked):
            assert not any(path in row.nodes[n] for path in paths), "asked twice"
            assert all(len(path) < max_new for path in paths)
            followed[n] += not row.trees[n].greedy()[0]
            spent[n] += len(paths)
        row.feed(*((n, path, toys[n].node(path)) for n, paths in enumerate(asked) for path in paths))
    return Search(row.trees, spent, followed)


toys = st.lists(
    st.builds(
        Toy,
        st.integers(0, 10**6),
        st.lists(st.integers(1, len(TOKENS) - 1), min_size=2, max_size=6, unique=True).map(lambda t: (0, *t)),
        st.sampled_from([99, 99, 2, 3]),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
answer_lists = st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3)


@settings(deadline=None, max_examples=250)
@given(
    toys,
    answer_lists,
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    st.sampled_from([1, 3, 10**9]),
    st.booleans(),
    st.sampled_from([0.0, 1e-3, 0.05]),
    st.sampled_from([1, 16]),
)
def test_the_interval_holds_the_truth(
    toys: list[Toy],
    answers: list[str],
    max_new: int,
    allowance: float,
    cap: int,
    lenient: bool,
    negligible: float,
    samples: int,
) -> None:
    budget = Budget(allowance, cap, samples, lenient)
    done = search(toys, answers, max_new, budget, negligible)
    truths = [oracle(toy, Accepted.of(answers), max_new) for toy in toys]
    for tree, truth in zip(done.trees, truths, strict=True):
        assert tree.strict - EPS <= truth.strict <= tree.strict + tree.unsearched() + EPS
        assert tree.lenient - EPS <= truth.lenient <= tree.lenient + tree.unsearched(True) + EPS
        assert tree.greedy() == (True, truth.greedy_strict, truth.greedy_lenient)
        assert tree.strict <= tree.lenient + EPS
        assert tree.unsearched() <= tree.unsearched(True) + EPS
        assert tree.lenient + tree.unsearched(True) <= 1 + EPS
    for at, tree in enumerate(done.trees):
        assert done.spent[at] <= cap + done.greedy_asked[at], "the cap is for all that is not greedy"
        assert done.greedy_asked[at] <= max_new
        assert all(len(path) < max_new for path in tree.nodes)

    def searched(lenient: bool) -> bool:
        """Within the allowance, or nothing left that could be asked."""
        waiting = any(
            (lenient or strict) and done.spent[at] < cap
            for at, tree in enumerate(done.trees)
            for _, strict in tree.frontier.values()
        )
        return sum(t.unsearched(lenient) for t in done.trees) <= allowance + EPS or not waiting

    assert searched(lenient)
    exhaustive = cap == 10**9 and negligible == 0.0 and all(toy.shown == 99 for toy in toys)
    if exhaustive:
        assert sum(t.unsearched(lenient) for t in done.trees) <= allowance + EPS
    if not lenient and not any(truth.greedy_lenient for truth in truths):
        low = 1 - math.prod((1 - min(t.lenient, 1)) ** samples for t in done.trees)
        high = 1 - math.prod((1 - min(t.lenient + t.unsearched(True), 1)) ** samples for t in done.trees)
        true = 1 - math.prod((1 - min(t.lenient, 1)) ** samples for t in truths)
        assert low - 1e-6 <= true <= high + 1e-6
        assert low >= 0.5 or high < 0.5 or searched(True)


@settings(deadline=None, max_examples=60)
@given(toys, answer_lists, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_feeding_does_not_matter_if_beginnings_come_first(
    toys: list[Toy], answers: list[str], max_new: int, order: random.Random
) -> None:
    toy = toys[0]
    done = search([toy], answers, max_new, Budget(0.0, 10**9, 16, True)).trees[0]
    others = [path for path in done.nodes if path]
    order.shuffle(others)
    others.sort(key=len)
    now = order.randint(0, len(others))
    row = Row(answers, 1, max_new)
    row.feed(*((0, path, toy.node(path)) for path in (*others[:now], ())))
    for path in others[now:]:
        row.feed((0, path, toy.node(path)))
    (again,) = row.trees
    assert again.strict == pytest.approx(done.strict, abs=1e-12)
    assert again.lenient == pytest.approx(done.lenient, abs=1e-12)
    assert again.unsearched() == pytest.approx(done.unsearched(), abs=1e-12)
    assert again.unsearched(True) == pytest.approx(done.unsearched(True), abs=1e-12)
    assert again.greedy() == done.greedy()
    assert again.frontier.keys() == done.frontier.keys()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(toys.filter(lambda toys: len(toys) == 2), answer_lists), min_size=2, max_size=3),
    st.integers(1, 4),
    st.sampled_from([0.0, 1e-3]),
    st.booleans(),
)
def test_rows_searched_in_one_wave_give_the_bits_that_each_gives_alone(
    rows: list[tuple[list[Toy], list[str]]], max_new: int, negligible: float, lenient: bool
) -> None:
    budget = Budget(0.01, 5, 16, lenient)
    alone = [search(toys, answers, max_new, budget, negligible) for toys, answers in rows]
    states = PathStates(VOCABULARY)
    roots = np.repeat([states.root(tuple(answers)) for _, answers in rows], 2)
    together = AnswerSearches(states, roots, np.full(len(roots), max_new), negligible)
    fed = [
        (2 * r + n, path, toy.node(path))
        for r, (toys, answers) in enumerate(rows)
        for n, toy in enumerate(toys)
        for path in ((), *spellings(toy, Accepted.of(answers), max_new))
    ]
    spent = np.zeros(len(roots), dtype=np.int64)
    while fed:
        at = [states.at(int(roots[n]), [path[: m + 1] for m in range(len(path))]) for n, path, _ in fed]
        numbers = np.array([n for n, *_ in fed])
        together.feed(numbers, np.array([own[-1] if own else roots[n] for n, own in zip(numbers, at, strict=True)]),
                      Nodes.of([node for *_, node in fed]))  # fmt: skip
        asked = sorted((n, states.paths[state]) for n, state in paths_to_expand(together, 2, spent, budget))
        np.add.at(spent, [n for n, _ in asked], 1)
        fed = [(n, path, rows[n // 2][0][n % 2].node(path)) for n, path in asked]
    trees = [tree for done in alone for tree in done.trees]
    assert together.strict.tolist() == [tree.strict for tree in trees]
    assert together.lenient.tolist() == [tree.lenient for tree in trees]
    for mode in (False, True):
        assert together.unsearched(mode).tolist() == [tree.unsearched(mode) for tree in trees]
    assert spent.tolist() == [n for done in alone for n in done.spent]


@settings(deadline=None, max_examples=60)
@given(
    toys,
    st.lists(st.sampled_from(ANSWERS), min_size=2, max_size=5, unique_by=lambda a: unicodedata.normalize("NFC", a)),
    st.integers(1, 4),
)
def test_masses_of_different_answers_add_up(toys: list[Toy], answers: list[str], max_new: int) -> None:
    every = Budget(0.0, 10**9, 16, True)

    def masses(answers: list[str]) -> tuple[float, float]:
        tree = search(toys[:1], answers, max_new, every).trees[0]
        return tree.strict, tree.lenient

    alone = [masses([one]) for one in answers]
    assert masses(answers)[0] == pytest.approx(sum(strict for strict, _ in alone), abs=1e-9)
    one_each = list({one.lenient: one for one in (Accepted.of([a]) for a in answers)}.values())
    lenient = sum(masses(sorted(one.strict))[1] for one in one_each)
    if all(toy.shown == 99 for toy in toys[:1]):
        assert masses(answers)[1] == pytest.approx(lenient, abs=1e-9)
    assert max(sum(strict for strict, _ in alone), lenient) <= 1 + EPS


ACCENTS = st.builds(
    Toy,
    st.integers(0, 10**6),
    st.lists(st.sampled_from([4, 7, 15, 16, 17, 18]), min_size=3, max_size=5, unique=True).map(
        lambda t: (0, 12, 13, *t)
    ),
    st.just(99),
    st.booleans(),
)


@settings(deadline=None, max_examples=120)
@given(ACCENTS, st.sampled_from(["\u00e9", "e\u0301", "\u1eb9\u0301", "a\u00e9", "e\u0301\u0323"]), st.integers(3, 5))
def test_both_ways_to_spell_an_accent_count(toy: Toy, gold: str, max_new: int) -> None:
    every = Budget(0.0, 10**9, 16, True)
    composed, apart = (unicodedata.normalize(form, gold) for form in ("NFC", "NFD"))
    found = [search([toy], golds, max_new, every).trees[0] for golds in ([composed], [apart], [apart, gold])]
    truth = oracle(toy, Accepted.of([composed]), max_new)
    by_text = sum(mass for said, mass in finished(toy, max_new) if unicodedata.normalize("NFC", said) == composed)
    assert truth.strict == pytest.approx(by_text, abs=1e-9), "the oracle itself, against texts"
    for tree in found:
        assert tree.strict == pytest.approx(truth.strict, abs=1e-9)
        assert tree.unsearched() == pytest.approx(0.0, abs=1e-9)
        assert tree.greedy()[1] is truth.greedy_strict


def finished(toy: Toy, max_new: int) -> list[tuple[str, float]]:
    """Every answer the toy can give, with its probability; an answer may come more than once."""
    found, waiting = [], [((), 1.0)]
    while waiting:
        path, mass = waiting.pop()
        said = answer(path)
        if said is not None:
            found.append((said, mass))
        elif len(path) < max_new:
            waiting += [((*path, token), mass * p) for token, p in toy.distribution(path)]
    return found


# by hand


def chain(*steps: int) -> Toy:
    """A model that always says these tokens."""
    toy = Toy(0, tuple(range(len(TOKENS))), 99, False)
    toy.full = {steps[:n]: [(token, 1.0)] for n, token in enumerate(steps)}
    return toy


def one(toy: Toy, answer: str, max_new: int, budget: Budget | None = None) -> Tree:
    return search([toy], [answer], max_new, budget or Budget(0.0, 64, 16)).trees[0]


@pytest.mark.parametrize(("max_new", "right"), [(1, False), (2, False), (3, True), (9, True)])
def test_an_answer_and_its_ending_token_must_fit(max_new: int, right: bool) -> None:
    tree = one(chain(4, 5, 1), "ab", max_new)
    assert tree.strict == tree.lenient == float(right)
    assert tree.greedy() == (True, right, right)
    assert tree.unsearched(True) == 0


@pytest.mark.parametrize(
    ("steps", "strict", "lenient"),
    [
        ((4, 5, 0), True, True),
        ((4, 5, 2), True, True),
        ((7, 6, 7, 1), True, True),
        ((6, 3), False, True),
        ((8, 5, 1), False, True),
        ((9, 6, 1), False, True),
        ((4, 14), False, True),
        ((6, 4, 1), False, False),
        ((1,), False, False),
    ],
)
def test_every_spelling_and_every_ending(steps: TokenPath, strict: bool, lenient: bool) -> None:
    tree = one(chain(*steps), "ab", 6)
    assert (tree.strict, tree.lenient) == (strict, lenient)
    assert tree.greedy() == (True, strict, lenient)


def test_a_character_in_two_tokens_is_followed() -> None:
    tree = one(chain(12, 13, 1), "\u00e9", 3)
    assert tree.strict == 1


def test_a_greedy_path_that_is_surely_wrong_is_not_followed() -> None:
    done = search([chain(5, 5, 5, 5, 1)], ["ab"], 9, Budget(0.0, 64, 16))
    assert done.spent == [0]
    assert done.trees[0].greedy() == (True, False, False)


def test_what_is_negligible_or_not_listed_counts_as_unsearched() -> None:
    toy = chain(6, 1)
    toy.full[()] = [(6, 0.7), (4, 0.2), (8, 0.1)]
    toy.full |= {(4,): [(5, 1.0)], (4, 5): [(1, 1.0)], (8,): [(5, 1.0)], (8, 5): [(1, 1.0)]}
    (tree,) = Row(["ab"], 1, 6, negligible=0.15).feed((0, (), toy.node(())), (0, (6,), toy.node((6,)))).trees
    assert tree.strict == pytest.approx(0.7)
    assert tree.unsearched() == pytest.approx(0.3)
    assert set(tree.frontier) == {(4,)}
    toy.shown = 1
    short = one(toy, "ab", 6)
    assert (short.strict, short.unsearched(), short.unsearched(True)) == pytest.approx((0.7, 0.3, 0.3))


def test_what_is_lost_on_a_path_that_cannot_be_strictly_right_counts_leniently_only() -> None:
    toy = chain(5)
    toy.full |= {(): [(8, 0.5), (5, 0.5)], (8,): [(5, 0.6), (4, 0.4)], (8, 5): [(1, 1.0)]}
    toy.shown = 1
    root = Node(8, [8, 5], [0.5, 0.5])
    (tree,) = Row(["ab"], 1, 5).feed((0, (), root), *((0, path, toy.node(path)) for path in ((8,), (8, 5)))).trees
    assert (tree.strict, tree.unsearched()) == (0, 0)
    assert (tree.lenient, tree.unsearched(True)) == pytest.approx((0.3, 0.2))


def test_the_likeliest_paths_of_all_prompts_are_asked_first_and_no_more_than_needed() -> None:
    first, second = chain(5), chain(5)
    first.full[()] = [(5, 0.5), (4, 0.3), (7, 0.2)]
    second.full[()] = [(5, 0.6), (4, 0.4)]
    row = Row(["ab"], 2, 5).feed((0, (), first.node(())), (1, (), second.node(())))
    assert row.asked([0, 0], Budget(0.5, 64, 1)) == [[], [(4,)]]
    assert row.asked([0, 0], Budget(0.2, 64, 1)) == [[(4,)], [(4,)]]
    assert row.asked([0, 0], Budget(0.0, 64, 1)) == [[(4,), (7,)], [(4,)]]
    assert row.asked([0, 64], Budget(0.0, 64, 1)) == [[(4,), (7,)], []]
    assert row.asked([63, 64], Budget(0.0, 64, 1)) == [[(4,)], []], "a round does not pass the cap"
    assert row.asked([64, 64], Budget(0.0, 64, 1)) == [[], []]


def test_of_equally_likely_paths_the_lower_ids_come_first() -> None:
    root = Node(5, [7, 6, 4, 5], [0.25] * 4)
    row = Row(["ab"], 2, 5).feed((0, (), root), (1, (), root))
    assert row.asked([0, 0], Budget(1.3, 64, 1)) == [[(4,)], []]
    assert row.asked([0, 0], Budget(1.1, 64, 1)) == [[(4,), (6,)], []]
    assert row.asked([0, 0], Budget(0.6, 64, 1)) == [[(4,), (6,), (7,)], [(4,)]]


def test_lenient_spellings_are_asked_only_while_the_category_hangs_on_them() -> None:
    toy = chain(5)
    toy.full[()] = [(5, 0.9), (8, 0.1)]
    row = Row(["ab"], 1, 5).feed((0, (), toy.node(())))
    (tree,) = row.trees
    assert (tree.unsearched(), tree.unsearched(True)) == (0, pytest.approx(0.1))
    assert row.asked([0], Budget(0.01, 64, 1)) == [[]], "one draw: p_hit is at most 0.1"
    assert row.asked([0], Budget(0.01, 64, 16)) == [[(8,)]], "16 draws: it could be 0.81"
    assert row.asked([0], Budget(0.01, 64, 1, lenient=True)) == [[(8,)]]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ((), "\u2026"),
        ((4, 5), "ab\u2026"),
        ((7, 4, 1), "a"),
        ((4, 3), "a."),
        ((1,), ""),
        ((4, 0), "a"),
        ((4, 14), "aB"),
    ],
)
def test_what_a_path_says(path: TokenPath, said: str) -> None:
    assert VOCABULARY.said(path) == said


def test_more_states_than_the_tables_begin_with() -> None:
    """Thousands of states, asked at once and one by one, with and without tables of openings."""
    letters = "bcdfgijklmopqrsuvwxyz"  # which spell no article
    pieces = ["\n", *letters]
    vocabulary = Vocabulary(lambda path: "".join(pieces[t] for t in path), frozenset({0}), frozenset(), pieces)
    answers = [letters[n:] + letters[:n] for n in range(21)] * 3
    for excludes in (True, False):
        states = PathStates(vocabulary, excludes=excludes)
        roots = np.array([states.root((answer, str(n))) for n, answer in enumerate(answers)])
        at = roots
        for depth in range(21):
            ends = states.steps(at, np.zeros(len(at), dtype=np.int64))
            assert (ends == -2).all(), "an answer cut short is wrong"
            steps = states.steps(np.repeat(at, 21), np.tile(np.arange(1, 22), len(at))).reshape(-1, 21)
            assert ((steps >= 0).sum(axis=1) == 1).all(), "one letter goes on with the answer"
            asked = np.array([1 + letters.index(answer[depth]) for answer in answers])
            at = steps[np.arange(len(at)), asked - 1]
            assert (at >= 0).all()
            assert (states.depth[at] == depth + 1).all()
            assert states.strict[at].all()
        assert (states.steps(at, np.zeros(len(at), dtype=np.int64)) == -5).all(), "right in both modes"
        assert len(states) == 21 * 3 * 22
        assert states.at(int(roots[0]), [(1,), (1, 2), (1, 1), (1, 1, 1)])[2:] == [-1, -1]
