"""Computes next-token distributions from a completions server: exact ones where it lists enough tokens, else bounds.

A server lists the likeliest tokens after a prompt. The probe needs the sampling distribution: softmax of
log-probabilities / T over the `top_k` largest and their ties (design, section 8). If the list holds all of these,
the result is exact. Otherwise each unlisted token is at most as likely as the last listed one, and together they
have the probability that the listed ones leave of 1. So the normaliser lies between two bounds: each token gets the
lower bound of its probability, and the rest is the node's `tail`, which the search counts as unsearched. P_Correct
is then an interval that contains the true value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from foreknow.inference.nodes import Node, Nodes
from foreknow.inference.server.capabilities import Capabilities, tops_of
from foreknow.inference.server.client import InvalidResponse
from foreknow.inference.server.completions import Completion, CompletionChoice, Completions, Name, PromptInput, Top
from foreknow.prompts.vocabulary import TokenPath

if TYPE_CHECKING:
    from foreknow.inference.engine import Prompt, Sampling

UNKNOWN: Final = -1
"""Replaces a greedy token that the server does not distinguish from others. `Spelling.decode` handles it."""
DARK: Final = Node(UNKNOWN, (), (), 1.0)
"""A node whose distribution is unknown."""
_SPARE: Final = 1e-5
"""Log-probabilities are rounded: the unlisted probability may exceed 1 minus their sum by this much."""


def node_of(
    listed: Iterable[tuple[int | None, float]], sampling: Sampling, *, limit: int, vocabulary: int
) -> tuple[Node, float]:
    """Return the node of a listing, and the probability of its tokens that could not be identified by name.

    `listed`: tokens (None where the name fits none or several) and log-probabilities, in any order. `limit`: the
    number of likeliest tokens that the request asked for. A shorter list, unless it is the whole `vocabulary`, means
    that the server lists tokens of the same text once, so any of them may be missing. Raises InvalidResponse for
    probabilities that add up to more than 1.
    """
    # of equal log-probabilities the lowest id is the greedy token; one without a name could be it
    order = sorted(listed, key=lambda entry: (-entry[1], -1 if entry[0] is None else entry[0]))[:limit]
    p = [math.exp(value) for _, value in order]
    total = math.fsum(p)
    if not 0 < total <= 1.001:
        raise InvalidResponse(f"the server's log-probabilities add up to a probability of {total:.4g}")
    missing = min(limit, vocabulary) - len(order)
    rest = 0.0 if len(order) >= vocabulary else max(1.0 - total, 0.0) + _SPARE
    most = rest if missing else min(p[-1], rest)
    count = certain = len(order)
    if sampling.top_k and missing:
        certain = min(certain, max(sampling.top_k - missing, 0))
    elif sampling.top_k and len(order) > sampling.top_k:
        count = certain = sum(value >= order[sampling.top_k - 1][1] for _, value in order)
    weights = [math.exp((value - order[0][1]) / sampling.temperature) for _, value in order[:count]]
    # sampling may draw unlisted tokens too, unless the list extends beyond the top k
    spare = (
        0.0
        if count < len(order)
        else _largest_weight(rest, most, vocabulary - count, order[0][1], sampling.temperature)
    )
    norm = math.fsum(weights) + spare
    shares = [(token, w / norm) for (token, _), w in zip(order[:certain], weights, strict=False) if w]
    identified = [(token, share) for token, share in shares if token is not None]
    nameless = math.fsum(share for token, share in shares if token is None)
    tail = (spare + math.fsum(weights[certain:])) / norm + nameless
    greedy = order[0][0]
    # an unlisted token with the same probability and a lower id would be the greedy one
    if greedy is None or most >= p[0]:
        greedy = UNKNOWN
    return Node(greedy, [token for token, _ in identified], [share for _, share in identified], tail), nameless


def _largest_weight(rest: float, most: float, count: int, top: float, temperature: float) -> float:
    """Return the largest possible sum of weights (p / exp(top))^(1/T) of `count` unlisted tokens.

    Each token's p is at most `most`, and their sum at most `rest`. Up to T = 1 a few large tokens give the largest
    sum, above it many equal ones.
    """
    if count <= 0 or most <= 0:
        return 0.0
    many, each = (rest / most, most) if temperature <= 1 else (float(count), min(most, rest / count))
    return many * math.exp(min((math.log(each) - top) / temperature, 600.0))


@dataclass(frozen=True)
class ServerText:
    """Translates between token ids and a server's prompts and token names, by our tokenizer.

    `send`: token ids -> the prompt to send; None where the server would read its text as other tokens. `token`:
    a name -> the token's id; None where no token or several have that name.
    """

    send: Callable[[Sequence[int]], PromptInput | None]
    token: Callable[[Name], int | None]
    size: int


class ServerEngine:
    """Computes nodes by requests for log-probabilities, with `batch` prompts each if the server accepts several.

    `tally` counts the gaps: prompts that cannot be sent as text, missing distributions, greedy tokens that could not
    be identified.
    """

    def __init__(
        self, completions: Completions, can: Capabilities, text: ServerText, sampling: Sampling, batch: int = 16
    ):
        self.completions = completions
        self.can = can
        self.text = text
        self.sampling = sampling
        self.batch = batch if can.many else 1
        self.tally: Counter[str] = Counter()

    def open(
        self,
        prompts: Sequence[Prompt],
        trees: Sequence[Sequence[TokenPath]],
        _targets: Sequence[Sequence[int]] | None = None,
    ) -> tuple[ServerSession, Nodes]:
        """See `engine.Engine.open`; it finds no `log_p`. Raises ResourceError where the server stops answering."""
        session = ServerSession(self, [p.ids for p in prompts])
        paths = [(i, path) for i, tree in enumerate(trees) for path in ((), *tree)]
        if self.can.prompt_route:
            leaves = [(i, leaf) for i, tree in enumerate(trees) for leaf in _leaves(tree)]
            leaf_nodes = self._ask([(session.prompts[i], leaf) for i, leaf in leaves], with_prompt=True)
            nodes = {
                (i, leaf[:depth]): node
                for (i, leaf), path_nodes in zip(leaves, leaf_nodes, strict=True)
                for depth, node in enumerate(path_nodes)
            }
            return session, Nodes.of([nodes[path] for path in paths])
        return session, session.extend(paths)

    def halve_batches(self) -> None:
        """See `engine.Engine.halve_batches`."""

    def after(self, sequences: Sequence[tuple[int, ...]]) -> Nodes:
        """Return the node after each whole sequence, by requests for one token and its likely alternatives."""
        return Nodes.of([node for (node,) in self._ask([(ids, ()) for ids in sequences], with_prompt=False)])

    def _ask(self, sequences: Sequence[tuple[tuple[int, ...], TokenPath]], with_prompt: bool) -> list[list[Node]]:
        """Return for each (prompt, path) the node after it; `with_prompt`: those after the prompt and each token."""
        inputs = [self._prompt_input((*ids, *path)) for ids, path in sequences]
        sendable = [n for n, prompt in enumerate(inputs) if prompt is not None]
        parts = [sendable[start : start + self.batch] for start in range(0, len(sendable), self.batch)]
        options = self.can.options(with_prompt)
        jobs = [([prompt for n in part if (prompt := inputs[n]) is not None], options) for part in parts]

        def read(number: int, reply: Completion) -> list[list[_NodeResult]]:
            pairs = zip(parts[number], reply.choices, strict=True)
            return [
                [self._read_top(top) for top in self._tops(choice, *sequences[n], with_prompt)] for n, choice in pairs
            ]

        results = [[_NodeResult(DARK)] * (len(path) + 1 if with_prompt else 1) for _, path in sequences]
        for part, replies in zip(parts, self.completions.each(jobs, read), strict=True):
            for n, nodes in zip(part, replies, strict=True):
                results[n] = nodes
                self.tally.update(result.trouble for result in nodes if result.trouble)
        return [[result.node for result in nodes] for nodes in results]

    def _prompt_input(self, ids: tuple[int, ...]) -> PromptInput | None:
        if UNKNOWN in ids:
            return None
        prompt = self.text.send(ids)
        if prompt is None:
            self.tally["prompts that the server would read as other tokens"] += 1
        return prompt

    def _tops(
        self, choice: CompletionChoice, ids: tuple[int, ...], path: TokenPath, with_prompt: bool
    ) -> list[Top | None]:
        if not with_prompt:
            return [choice.tops[-1] if choice.tops else None]
        return tops_of(choice, len(ids) + len(path), self.can.prompt_route)[len(ids) :]

    def _read_top(self, top: Top | None) -> _NodeResult:
        if not top:  # some servers list nothing where the answer ends at once
            return _NodeResult(DARK, "distributions that the server left out")
        listed = [(self.text.token(name), value) for name, value in top]
        node, nameless = node_of(listed, self.sampling, limit=self.can.listed, vocabulary=self.text.size)
        if node.greedy == UNKNOWN:
            return _NodeResult(node, "greedy tokens that the server does not tell apart")
        return _NodeResult(node, "distributions with tokens that the server does not tell apart" if nameless else None)


class _NodeResult(NamedTuple):
    """A node, and which gap it has, if any."""

    node: Node
    trouble: str | None = None


@dataclass(frozen=True)
class ServerSession:
    """Prompts at a server; see `engine.Session`."""

    engine: ServerEngine
    prompts: list[tuple[int, ...]]

    def extend(self, requests: Sequence[tuple[int, TokenPath]]) -> Nodes:
        """See `engine.Session.extend`."""
        return self.engine.after([(*self.prompts[i], *path) for i, path in requests])


def _leaves(tree: Sequence[TokenPath]) -> list[TokenPath]:
    """Return the paths that no other path extends; the root `()` for an empty tree."""
    inner = {path[:-1] for path in tree}
    return [path for path in tree if path not in inner] or [()]
