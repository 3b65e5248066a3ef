"""Chooses rows so that a given share of all their labelled spans is new to the model. Pure.

A row of n labelled spans, of which m are new, is off the share s by m - s * n. A set has the share s if the sum over
its rows is 0. The rows that are off to the side that has more are drawn in the order of a hash of the seed and their
text, until they balance the other side, which is taken whole. Exchanges of single rows then bring the sum closer to 0,
as long as one does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from foreknow.errors import InputError
from foreknow.stages.mix.sizes import exact

EXCHANGES: Final = 1000
"""At most this many single rows are exchanged."""


class SpanRow(NamedTuple):
    """Holds a row's number, the hash that orders it, and its labelled and new spans (`spans` is at least 1)."""

    row: int
    key: int
    spans: int
    new: int


def draw_share(rows: Sequence[SpanRow], share: float, size: int | None) -> list[int]:
    """Return the numbers of the rows of a set in which `share` of the spans is new, as nearly as whole rows allow.

    `size`: the number of rows; None for as many as possible. Raises InputError, with the numbers, for a share that no
    set of these rows can have, or a `size` that is more than there are rows.
    """
    wanted = exact(share)
    shares = [row.new / row.spans for row in rows]
    if not rows or not min(shares) <= share <= max(shares):
        ends = f"from {min(shares):.1%} to {max(shares):.1%}" if rows else "in no row"
        raise InputError(f"--new-share {share:g}: the share of new spans in a row runs {ends}; no set can have another")
    if size is not None and size > len(rows):
        raise InputError(f"--size {size}: {len(rows):,} rows have labelled spans. Lower --size, or leave it out")
    off = {r.row: wanted.denominator * r.new - wanted.numerator * r.spans for r in rows}
    ordered = [r.row for r in sorted(rows, key=lambda r: (r.key, r.row))]
    chosen = _balanced(ordered, off)
    if size is not None and size < len(chosen):
        chosen = chosen[:size]
    elif size is not None:
        rank = {row: place for place, row in enumerate(ordered)}
        rest = sorted(rank.keys() - set(chosen), key=lambda row: (abs(off[row]), rank[row]))
        chosen += rest[: size - len(chosen)]
    return sorted(_exchanged(chosen, ordered, off))


def _balanced(ordered: Sequence[int], off: dict[int, int]) -> list[int]:
    """Return the largest set in balance, in the order of the hashes; the heavier side gives only its first rows."""
    total = sum(off.values())
    left, taken = sum(abs(off[row]) for row in ordered if off[row] * total < 0), set[int]()
    for row in ordered:
        if off[row] * total > 0 and abs(left - abs(off[row])) < abs(left):
            taken.add(row)
            left -= abs(off[row])
    return [row for row in ordered if off[row] * total <= 0 or row in taken]


def _exchanged(chosen: Sequence[int], ordered: Sequence[int], off: dict[int, int]) -> list[int]:
    """Exchange one chosen row for another that was not chosen while that brings the sum closer to 0."""
    inside, outside = list(chosen), sorted(set(ordered) - set(chosen), key=lambda row: (off[row], row))
    total = sum(off[row] for row in inside)
    for _ in range(EXCHANGES):
        if total == 0 or not outside:
            break
        values = [off[row] for row in outside]
        best: tuple[int, int, int] | None = None
        for at, row in enumerate(inside):
            near = bisect_left(values, off[row] - total)
            for other in (near - 1, near):
                if 0 <= other < len(values):
                    rest = abs(total - off[row] + values[other])
                    best = min(best or (rest, at, other), (rest, at, other))
        if best is None or best[0] >= abs(total):
            break
        _, at, other = best
        total += values[other] - off[inside[at]]
        inside[at], outside[other] = outside[other], inside[at]
        outside.sort(key=lambda row: (off[row], row))
    return inside
