"""Count the false verdicts of studies that add seeds until they are decided, where there is nothing to find.

    python benchmarks/stopping_rule.py [--studies 1000] [--rows 400] [--first 3] [--most 10]

Each simulated study compares two sets of outcomes whose true accuracies are equal. Rows differ in difficulty; each
seed of each set moves all of its rows by a draw of its own, as training with another seed does. Writes a line for each
size of that move: the share of studies that a look at the usual 95 % after every seed decides, the share that the
stopping rule decides, and how many seeds such a study took. Both shares are false verdicts.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from foreknow.progress import meter
from foreknow.stages.study.contrasts import ContrastPart
from foreknow.stages.study.paired import Stack, resampled
from foreknow.stages.study.stopping_rule import looks
from foreknow.stats import wilson

MOVES = (0.0, 0.02, 0.05, 0.1)
"""Standard deviation of what a seed does to a set's accuracy (share)."""


def outcomes(rng: np.random.Generator, seeds: int, rows: int, move: float) -> np.ndarray:
    """Return simulated outcomes, 2 sets x seeds x rows."""
    difficulty = rng.beta(0.6, 0.9, size=rows)
    moved = np.clip(difficulty + rng.normal(0.0, move, size=(2, seeds, 1)), 0.0, 1.0)
    return (rng.random((2, seeds, rows)) < moved).astype(np.float64)


def part_of(values: np.ndarray, draws: int) -> ContrastPart:
    """Return the contrast of the two sets, as a claim has it."""
    stacked = Stack(values, np.zeros(values.shape[2], dtype=np.int64), tuple(range(values.shape[1])))
    found = resampled(stacked, lambda total: total[..., 1] - total[..., 0], draws=draws)
    return ContrastPart(
        "difference", found.value, found.low, found.high, found.se, found.p(), 0.0, True, found.df, found.of_seeds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--first", type=int, default=3)
    parser.add_argument("--most", type=int, default=10)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--moves", type=float, nargs="+", default=MOVES)
    args = parser.parse_args()
    plan = looks(args.first, args.most)
    print("levels: " + ", ".join(f"{look.seeds} seeds {look.level:.4f}" for look in plan))
    for move in args.moves:
        rng, naive, ruled, taken, began = np.random.default_rng(1), 0, 0, [], time.monotonic()
        with meter(f"seeds move accuracy by {move:.0%}", args.studies) as done:
            for _ in range(args.studies):
                values = outcomes(rng, args.most, args.rows, move)
                parts = [part_of(values[:, : look.seeds], args.draws) for look in plan]
                naive += any(part.verdict != "not decided" for part in parts)
                decided = [
                    look.seeds
                    for look, part in zip(plan, parts, strict=True)
                    if part.at(look.level, look.seeds).verdict != "not decided"
                ]
                ruled += bool(decided)
                taken.append(decided[0] if decided else args.most)
                done.advance(1)
        low, high = (wilson(ruled, args.studies).low, wilson(ruled, args.studies).high)
        print(
            f"move {move:.0%}: {naive / args.studies:.1%} decided by looking at 95 % after every seed, "
            f"{ruled / args.studies:.1%} ({low:.1%} to {high:.1%}) by the rule, {np.mean(taken):.1f} seeds on average "
            f"({time.monotonic() - began:.0f} s)"
        )


if __name__ == "__main__":
    main()
