"""Next-token distributions from a completions server: exact where it tells enough of them, else intervals.

A server lists the likeliest tokens after a prompt. What the probe wants is what sampling draws from: softmax of
log-probabilities / T over the `top_k` largest and their ties (design, section 8). Where the list holds them all,
that is exact. Where it does not, the tokens it leaves out are each at most as likely as the last one listed, and
all of them together have what the listed ones leave of 1. So the normaliser lies between two bounds: tokens get
the low end of their probability, and what is left is the node's `tail`, which the search counts as unsearched.
P_Correct stays an interval that holds the true value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from foreknow.inference.answer_search import Node
from foreknow.inference.server.capabilities import Capabilities, tops_of
from foreknow.inference.server.client import InvalidResponse
from foreknow.inference.server.completions import Asked, Completion, CompletionChoice, Completions, Name, Top
from foreknow.prompts.vocabulary import TokenPath

if TYPE_CHECKING:
    from foreknow.inference.engine import Prompt, Sampling

UNKNOWN: Final = -1
"""In the place of a greedy token that the server does not tell apart from others. `ServerText.decode` knows it."""
DARK: Final = Node(UNKNOWN, (), (), 1.0)
"""A node of which nothing is known."""
_SPARE: Final = 1e-5
"""Log-probabilities come rounded: so much more than 1 less their sum may be unlisted."""


def node_of(
    listed: Iterable[tuple[int | None, float]], sampling: Sampling, *, asked: int, vocabulary: int
) -> tuple[Node, float]:
    """The node after a listing, and how much of it is unsearched for want of a name.

    `listed`: tokens (None where the name fits none or several) and log-probabilities, in any order. `asked`: so
    many of the likeliest the server was to list. Fewer, unless that is the `vocabulary`, mean that tokens of the
    same text stand there once, and any of them may be the one left out. Raises OddReply for a listing that adds
    up to more than 1.
    """
    # of equal ones the lowest id is the greedy one; one without a name could be it
    order = sorted(listed, key=lambda entry: (-entry[1], -1 if entry[0] is None else entry[0]))[:asked]
    p = [math.exp(value) for _, value in order]
    total = math.fsum(p)
    if not 0 < total <= 1.001:
        raise InvalidResponse(f"the server's log-probabilities add up to a probability of {total:.4g}")
    missing = min(asked, vocabulary) - len(order)
    rest = 0.0 if len(order) >= vocabulary else max(1.0 - total, 0.0) + _SPARE
    most = rest if missing else min(p[-1], rest)
    drawn = sure = len(order)
    if sampling.top_k and missing:
        sure = min(sure, max(sampling.top_k - missing, 0))
    elif sampling.top_k and len(order) > sampling.top_k:
        drawn = sure = sum(value >= order[sampling.top_k - 1][1] for _, value in order)
    weights = [math.exp((value - order[0][1]) / sampling.temperature) for _, value in order[:drawn]]
    # unlisted tokens are drawn too, unless the list goes on below the top k
    spare = 0.0 if drawn < len(order) else _most(rest, most, vocabulary - drawn, order[0][1], sampling.temperature)
    norm = math.fsum(weights) + spare
    shares = [(token, w / norm) for (token, _), w in zip(order[:sure], weights, strict=False) if w]
    kept = [(token, share) for token, share in shares if token is not None]
    nameless = math.fsum(share for token, share in shares if token is None)
    tail = (spare + math.fsum(weights[sure:])) / norm + nameless
    greedy = order[0][0]
    if greedy is None or (missing and rest > p[0]):
        greedy = UNKNOWN
    return Node(greedy, [token for token, _ in kept], [share for _, share in kept], tail), nameless


def _most(rest: float, most: float, count: int, top: float, temperature: float) -> float:
    """The largest weight (p / exp(top))^(1/T), summed, of `count` unlisted tokens.

    Each is at most `most`, all together are at most `rest`. Below T = 1 few large ones weigh most, above it many
    equal ones.
    """
    if count <= 0 or most <= 0:
        return 0.0
    many, each = (rest / most, most) if temperature <= 1 else (float(count), min(most, rest / count))
    return many * math.exp(min((math.log(each) - top) / temperature, 600.0))


@dataclass(frozen=True)
class ServerText:
    """How token ids and a server's prompts and names go together, by a tokenizer of ours.

    `send`: ids as the server takes them, None where its text would be read as other tokens. `token`: the id of a
    name, None where none or several fit.
    """

    send: Callable[[Sequence[int]], Asked | None]
    token: Callable[[Name], int | None]
    size: int


class ServerEngine:
    """Nodes by requests for log-probabilities, `batch` prompts in each where the server takes several.

    `tally` counts what could not be known: prompts that cannot be sent as text, distributions that did not come,
    greedy tokens without a name.
    """

    def __init__(self, asking: Completions, can: Capabilities, text: ServerText, sampling: Sampling, batch: int = 16):
        self.asking = asking
        self.can = can
        self.text = text
        self.sampling = sampling
        self.batch = batch if can.many else 1
        self.tally: Counter[str] = Counter()

    def open(
        self, prompts: Sequence[Prompt], trees: Sequence[Sequence[TokenPath]]
    ) -> tuple[ServerSession, list[list[Node]]]:
        """See `engine.Engine.open`. Raises ResourceError where the server does not answer any more."""
        session = ServerSession(self, [p.ids for p in prompts])
        wanted = [(i, path) for i, tree in enumerate(trees) for path in ((), *tree)]
        if self.can.whole:
            leaves = [(i, leaf) for i, tree in enumerate(trees) for leaf in _leaves(tree)]
            nodes = self._ask([(session.prompts[i], leaf) for i, leaf in leaves], whole=True)
            found = {
                (i, leaf[:depth]): node
                for (i, leaf), some in zip(leaves, nodes, strict=True)
                for depth, node in enumerate(some)
            }
        else:
            found = dict(zip(wanted, session.extend(wanted), strict=True))
        return session, [[found[i, path] for path in ((), *tree)] for i, tree in enumerate(trees)]

    def after(self, sequences: Sequence[tuple[int, ...]]) -> list[Node]:
        """The node after each whole sequence: one token is asked for, and what else was likely."""
        return [node for (node,) in self._ask([(ids, ()) for ids in sequences], whole=False)]

    def _ask(self, sequences: Sequence[tuple[tuple[int, ...], TokenPath]], whole: bool) -> list[list[Node]]:
        """For each (prompt, path) the node after it all; with `whole` those after the prompt and each token."""
        sent = [self._send((*ids, *path)) for ids, path in sequences]
        known = [n for n, prompt in enumerate(sent) if prompt is not None]
        parts = [known[start : start + self.batch] for start in range(0, len(known), self.batch)]
        options = self.can.options(whole)
        jobs = [([prompt for n in part if (prompt := sent[n]) is not None], options) for part in parts]

        def read(number: int, reply: Completion) -> list[list[_Found]]:
            pairs = zip(parts[number], reply.choices, strict=True)
            return [[self._found(top) for top in self._tops(choice, *sequences[n], whole)] for n, choice in pairs]

        found = [[_Found(DARK)] * (len(path) + 1 if whole else 1) for _, path in sequences]
        for part, some in zip(parts, self.asking.each(jobs, read), strict=True):
            for n, nodes in zip(part, some, strict=True):
                found[n] = nodes
                self.tally.update(one.trouble for one in nodes if one.trouble)
        return [[one.node for one in nodes] for nodes in found]

    def _send(self, ids: tuple[int, ...]) -> Asked | None:
        if UNKNOWN in ids:
            return None
        prompt = self.text.send(ids)
        if prompt is None:
            self.tally["prompts that the server would read as other tokens"] += 1
        return prompt

    def _tops(self, choice: CompletionChoice, ids: tuple[int, ...], path: TokenPath, whole: bool) -> list[Top | None]:
        if not whole:
            return [choice.tops[-1] if choice.tops else None]
        return tops_of(choice, len(ids) + len(path), self.can.whole)[len(ids) :]

    def _found(self, top: Top | None) -> _Found:
        if not top:  # some servers tell nothing where the answer ends at once
            return _Found(DARK, "distributions that the server left out")
        listed = [(self.text.token(name), value) for name, value in top]
        node, nameless = node_of(listed, self.sampling, asked=self.can.listed, vocabulary=self.text.size)
        if node.greedy == UNKNOWN:
            return _Found(node, "greedy tokens that the server does not tell apart")
        return _Found(node, "distributions with tokens that the server does not tell apart" if nameless else None)


class _Found(NamedTuple):
    """A node, and what could not be known of it."""

    node: Node
    trouble: str | None = None


@dataclass(frozen=True)
class ServerSession:
    """Prompts at a server, ready to be extended."""

    engine: ServerEngine
    prompts: list[tuple[int, ...]]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> list[Node]:
        """See `engine.Session.extend`."""
        return self.engine.after([(*self.prompts[i], *path) for i, path in requests])


def _leaves(tree: Sequence[TokenPath]) -> list[TokenPath]:
    """The paths that no other path goes on from; the root's own where there are none."""
    inner = {path[:-1] for path in tree}
    return [path for path in tree if path not in inner] or [()]


def requests_to_open(trees: Sequence[Sequence[TokenPath]], can: Capabilities, batch: int) -> int:
    """How many requests `ServerEngine.open` needs for so many prompts with these trees."""
    sequences = sum(len(_leaves(tree)) if can.whole else len(tree) + 1 for tree in trees)
    return math.ceil(sequences / (batch if can.many else 1))
