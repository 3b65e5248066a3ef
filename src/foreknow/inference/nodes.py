"""Next-token distributions behind token paths: one as an object, or many as arrays. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True)
class Nodes:
    """Many nodes, one a line; `nodes[n]` and iteration give each as a `Node`.

    Tokens of p = 0 (or NaN) at the end of a line only fill it up. `greedy` and `tail`: [nodes]; `tokens` and `p`:
    [nodes, width]. `log_p`: [nodes], the log-probability (nats, no temperature) of one token each, if it was asked
    for.
    """

    greedy: NDArray[np.int64]
    tokens: NDArray[np.int64]
    p: NDArray[np.float64]
    tail: NDArray[np.float64]
    log_p: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Nodes:
        """Return nodes as arrays."""
        width = max((len(node.tokens) for node in nodes), default=0)
        tokens = np.zeros((len(nodes), width), dtype=np.int64)
        p = np.zeros((len(nodes), width))
        for n, node in enumerate(nodes):
            tokens[n, : len(node.tokens)], p[n, : len(node.p)] = node.tokens, node.p
        greedy = np.array([node.greedy for node in nodes], dtype=np.int64)
        return cls(greedy, tokens, p, np.array([node.tail for node in nodes], dtype=np.float64))

    @classmethod
    def concat(cls, parts: Sequence[Nodes]) -> Nodes:
        """Return the nodes of all parts, in order. Parts of fewer tokens are filled up."""
        width = max((part.tokens.shape[1] for part in parts), default=0)
        log_p = [part.log_p for part in parts if part.log_p is not None]
        return cls(
            _joined([part.greedy for part in parts], np.int64),
            _joined([_widened(part.tokens, width) for part in parts], np.int64, width),
            _joined([_widened(part.p, width) for part in parts], np.float64, width),
            _joined([part.tail for part in parts], np.float64),
            np.concatenate(log_p) if log_p and len(log_p) == len(parts) else None,
        )

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Return which nodes hold a distribution (`Node.is_sound`): [nodes]."""
        likeliest = self.p[:, 0] > 0 if self.p.shape[1] else np.zeros(len(self), dtype=bool)
        return likeliest | (self.tail > 0)

    def take(self, numbers: NDArray[np.int64]) -> Nodes:
        """Return the nodes of these numbers."""
        log_p = None if self.log_p is None else self.log_p[numbers]
        return Nodes(self.greedy[numbers], self.tokens[numbers], self.p[numbers], self.tail[numbers], log_p)

    def split(self, sizes: Sequence[int]) -> list[list[Node]]:
        """Return the nodes as objects, in groups of these sizes."""
        every = iter(self)
        return [[next(every) for _ in range(size)] for size in sizes]

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.greedy)

    def __getitem__(self, n: int) -> Node:
        """Return one node as an object."""
        (node,) = self.take(np.array([n]))
        return node

    def __iter__(self) -> Iterator[Node]:
        """Yield each node as an object."""
        counts = (self.p > 0).sum(axis=1).tolist()
        columns = (x.tolist() for x in (self.greedy, self.tokens, self.p, self.tail))
        for n, greedy, tokens, p, tail in zip(counts, *columns, strict=True):
            yield Node(greedy, tokens[:n], p[:n], tail)


def _widened(x: NDArray[Any], width: int) -> NDArray[Any]:
    """Return [nodes, width] with zeros behind the columns of x."""
    return x if x.shape[1] == width else np.pad(x, ((0, 0), (0, width - x.shape[1])))


def _joined(parts: Sequence[NDArray[Any]], dtype: type, *width: int) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros((0, *width), dtype=dtype)
