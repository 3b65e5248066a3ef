"""Finds the losses of golds in the pass that asks whether they are answered: no second pass over the same tokens.

The tracker computes the next token's distribution behind the question and behind each beginning of an accepted answer
(`tracker.py`). The gold is one of these answers, so -log p of each of its tokens, and of the end, is there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from foreknow.prompts.vocabulary import TokenPath
    from foreknow.stages.train.set_loss import Sets
    from foreknow.stages.train.training_examples import TrainingExample


class GoldTokens(NamedTuple):
    """Holds where a row's gold stands among its nodes: the question's, then that of each path of its tree.

    `targets`: by node, the gold's next token there, -1 where the gold does not pass. `counted`: the nodes whose token
    is in the loss.
    """

    targets: tuple[int, ...]
    counted: tuple[int, ...]


def gold_tokens(example: TrainingExample, prompt: TokenPath, tree: Sequence[TokenPath]) -> GoldTokens | None:
    """Find an example's gold in the tree of its row; None if its prompt is another, or the tree lacks its gold."""
    if example.prompt != prompt:
        return None
    node_of = {path: n for n, path in enumerate(((), *tree))}
    nodes = [node_of.get(example.answer[:at]) for at in range(len(example.answer))]
    targets = [-1] * len(node_of)
    counted = []
    for node, token, counts in zip(nodes, example.answer, example.in_loss, strict=True):
        if node is None:
            return None
        targets[node] = token
        if counts:
            counted.append(node)
    return GoldTokens(tuple(targets), tuple(counted))


class LossSums:
    """Adds up the losses of golds, by set: the sum of -log p in nats, and the number of tokens."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, gold: GoldTokens, log_p: NDArray[np.float64]) -> None:
        """Add a row of a set; `log_p`: by node, the log-probability of the gold's token there."""
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total - float(log_p[list(gold.counted)].sum()), count + len(gold.counted))


def split_by_pass(examples: Sets, found: Mapping[tuple[str, int], GoldTokens]) -> dict[str, list[TrainingExample]]:
    """Return, by set, the examples whose gold the tracker's pass does not find; they need a pass of their own."""
    return {name: [row for row in rows if (name, row.row) not in found] for name, rows in examples.items()}
