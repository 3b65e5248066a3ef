"""Computes how large a training set can be, and how many rows each relation gives to it (design, section 8). Pure.

Sets that are compared have the same size and the same share of each relation, so the set that is hardest to fill limits
the size of all. The limit depends on the family of sets:

    shares       the sets differ in their Unknown share:       sum over relations of min(Known, Unknown)
    categories   some sets consist of a single category:       sum over relations of the smallest category
    own          this set is compared with no other:           what its own rows allow in each relation

With the paper's counts (section 2), `categories` gives the paper's |D| = 6,142, and `shares` gives 26,359.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final, Literal, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.data.schema import largest_remainder
from foreknow.errors import InputError

Family = Literal["own", "shares", "categories"]

COUNTS: Final[dict[str, pl.DataType]] = {
    "relation": pl.String(),
    **{name: pl.Int64() for name in CATEGORIES},
    "Known": pl.Int64(),
    "limit": pl.Int64(),
}
"""The frame has one line for each relation (the audit's `group`): its rows by category, and `limit`, the number of rows
that a set can take of it."""

_RULES: Final = {
    "shares": "the sum over relations of the smaller of Known and Unknown",
    "categories": "the sum over relations of the smallest category",
    "own": "the sum over relations of what this set alone can take",
}


class MixSizes(NamedTuple):
    """Holds the largest size of a family of sets.

    `by_relation`: the frame `COUNTS`. `total`: the largest size, in rows. `rule`: words for how it is computed.
    """

    by_relation: pl.DataFrame
    total: int
    family: Family
    rule: str

    @property
    def limits(self) -> dict[str, int]:
        """Return the limit of every relation in rows, including limits of 0."""
        return dict(self.by_relation.select("relation", "limit").iter_rows())


def drawable(rows: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return the labelled train rows, which are the only ones that may be drawn, and a line that says which these are.

    Raises InputError if no row is left.
    """
    chosen, which = train_rows(rows)
    pool = chosen.filter(pl.col("category").is_not_null())
    if pool.is_empty():
        raise InputError(_why_empty(rows, chosen))
    bare = f"; {chosen.height - pool.height:,} without a category are left out" if pool.height < chosen.height else ""
    return pool, f"rows are drawn from {pool.height:,} of the audit's {rows.height:,} ({which}{bare})"


def train_rows(rows: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return the train rows, and words for which rows these are.

    If any row has the split `train`, those rows are the train rows. Otherwise the rows without a split are; without a
    split column that is every row.
    """
    train = pl.col("split") == "train"
    marked = rows.filter(train).height > 0
    chosen = rows.filter(train if marked else pl.col("split").is_null())
    return chosen, "every row" if chosen.height == rows.height else "train rows" if marked else "rows without a split"


def _why_empty(rows: pl.DataFrame, chosen: pl.DataFrame) -> str:
    """Say why no row can be drawn, and what to do. `chosen`: the rows that could be drawn if they were labelled."""
    if chosen.is_empty():
        splits = rows["split"].fill_null("none").value_counts().sort("split").iter_rows()
        counts = ", ".join(f"{name} {count:,}" for name, count in splits)
        return f"no train row to draw from: found splits {counts or 'none'}, expected train or none"
    long = chosen.filter(pl.col("flags").list.contains("long_answer")).height
    if not long:
        return f"none of the {chosen.height:,} rows has a category; see the audit's page for the reasons"
    return (
        f"{long:,} of {chosen.height:,} rows have long answers and no category, so there is nothing to mix by. Mix by "
        "the labels of the spans inside them, if the audit has any (--mask new, --cut new, --new-share SHARE, "
        "--drop-new-above SHARE), train on the file as it is (foreknow tune), or audit again with a larger "
        "--max-answer-tokens if the answers are only a little longer"
    )


def largest(
    rows: pl.DataFrame,
    family: Family,
    *,
    share: float | None = None,
    categories: Sequence[str] = CATEGORIES,
    among: Sequence[str] = CATEGORIES,
) -> MixSizes:
    """Compute the largest size of a family of sets, by relation and in total, from an audit's rows (`rows.parquet`).

    For the family `own` the size follows from the set's Unknown `share` or, if that is None, from the `categories` that
    it draws from. `among`: for the family `categories`, the categories of its sets. Raises InputError if no row can be
    drawn.
    """
    counts = count_categories(drawable(rows)[0])
    if family == "shares":
        limit = pl.min_horizontal("Known", UNKNOWN)
    elif family == "categories":
        limit = pl.min_horizontal(among)
    elif share is None:
        limit = pl.sum_horizontal(categories)
    else:
        own = [_room(known, unknown, exact(share)) for known, unknown in counts.select("Known", UNKNOWN).iter_rows()]
        limit = pl.lit(pl.Series(own, dtype=pl.Int64))
    by_relation = counts.with_columns(limit.alias("limit")).select(pl.col(n).cast(t) for n, t in COUNTS.items())
    named = f" of {', '.join(among)}" if family == "categories" and set(among) != set(CATEGORIES) else ""
    return MixSizes(by_relation, int(by_relation["limit"].sum()), family, _RULES[family] + named)


def count_categories(rows: pl.DataFrame) -> pl.DataFrame:
    """Count rows that have `group` and `category`; return `COUNTS` without `limit`, sorted by relation."""
    found = rows.group_by("group").agg(*((pl.col("category") == c).sum().cast(pl.Int64).alias(c) for c in CATEGORIES))
    return found.rename({"group": "relation"}).with_columns(Known=pl.sum_horizontal(KNOWN)).sort("relation")


def split_size(sizes: MixSizes, size: int | None, alone: int = 0) -> dict[str, int]:
    """Split `size` rows (None: the largest size) over the relations in proportion to their limits.

    The counts sum to `size` exactly, and a relation whose limit is 0 gets none. Raises InputError, with the numbers, if
    `size` is more than the limits allow; the message also says how many rows the set could have `alone`, if that is
    more.
    """
    more = f" This set alone can have {alone:,} rows (--family own)." if alone > sizes.total else ""
    if sizes.total == 0:
        raise InputError(_nothing(sizes) + more)
    wanted = sizes.total if size is None else size
    shares = largest_remainder(sizes.limits, wanted)
    if wanted > sizes.total:
        short = max(sizes.limits, key=lambda name: (shares[name] - sizes.limits[name], name))
        has = sizes.by_relation.filter(pl.col("relation") == short).row(0, named=True)
        raise InputError(
            f"--size {wanted}: the largest size is {sizes.total}, {sizes.rule} (--family {sizes.family}).{more}\n"
            f"Relation {short!r} would have to give {shares[short]:,} rows and has room for {has['limit']:,} "
            f"({_listed(has)}). Lower --size, or leave it out"
        )
    return shares


def _nothing(sizes: MixSizes) -> str:
    every = sizes.by_relation.select(pl.col(*CATEGORIES).sum()).row(0, named=True)
    return (
        f"no relation can fill this set: {sizes.rule} is 0 (--family {sizes.family}).\n"
        f"Found {_listed(every)} in {sizes.by_relation.height:,} relations."
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {counts[name]:,}" for name in CATEGORIES)


def unknown_counts(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Return the number of Unknown rows of each relation in a set with this Unknown share.

    `sizes`: the rows of each relation. The total is exactly `share` of all rows, rounded to the nearest (halves up).
    Each relation has its part of that total, rounded down or up. A larger share never gives a relation fewer Unknown
    rows, so the Unknown rows of a smaller share can be among those of a larger one. Rounding by largest remainders
    would not guarantee this.
    """
    total = _rounded(exact(share) * sum(sizes.values()))
    counts = dict.fromkeys(sizes, 0)
    for name in _turns(sizes)[:total]:
        counts[name] += 1
    return counts


def fit_counts(counts: Mapping[str, int], low: Mapping[str, int], high: Mapping[str, int]) -> dict[str, int]:
    """Bring each count between `low` and `high` and keep their total.

    Rows are moved to, or taken from, the relation that has the most room. The total of `counts` must lie between the
    totals of `low` and `high`.
    """
    fitted = {name: min(max(count, low[name]), high[name]) for name, count in counts.items()}
    while (missing := sum(counts.values()) - sum(fitted.values())) != 0:
        step = 1 if missing > 0 else -1
        edge = high if missing > 0 else low
        name = max(sorted(fitted), key=lambda one: abs(edge[one] - fitted[one]))
        fitted[name] += step
    return fitted


def natural_counts(counts: Sequence[int], size: int, offset: int) -> list[int]:
    """Split `size` rows in proportion to `counts`; round each part down or up so that the parts sum to `size`.

    The function lays the parts end to end and cuts them at even distances, beginning at `offset` (0 to
    sum(counts) - 1). With a random offset, each part is rounded up as often as its fraction says, so many small
    relations do not add up to a wrong share.
    """
    whole = sum(counts)
    if whole == 0:
        return [0] * len(counts)
    taken, end = [], 0
    for count in counts:
        begin, end = end, end + count
        taken.append((end * size + offset) // whole - (begin * size + offset) // whole)
    return taken


def exact(share: float) -> Fraction:
    """Return a share as the decimal number that it is written as: 0.1 is exactly a tenth."""
    return Fraction(str(share))


def _rounded(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _room(known: int, unknown: int, share: Fraction) -> int:
    """Return the largest number of rows, from `known` and `unknown` ones, of which `share` are Unknown."""
    bounds = [int(known / (1 - share))] if share < 1 else []
    bounds += [int(unknown / share)] if share > 0 else []
    return min(bounds)


def _turns(sizes: Mapping[str, int]) -> list[str]:
    """Order the relations so that each has its proportional number, rounded down or up, of the first h turns for any h.

    The k-th turn (from 0) of a relation with n of N rows lies in the window from turn k*N/n to (k+1)*N/n. Among the
    open windows, the one with the earliest middle goes first, which rounds to the nearest. With many small relations
    a large one may then come too late. In that case the window that closes first goes first, which always succeeds.
    """
    whole = sum(sizes.values())
    windows = sorted(
        (k * whole // n, (2 * k + 1) / n, -(-(k + 1) * whole // n), name) for name, n in sizes.items() for k in range(n)
    )
    by_close = [(opens, closes, closes, name) for opens, _, closes, name in windows]
    return _in_windows(windows) or _in_windows(by_close)


def _in_windows(windows: Sequence[tuple[int, float, int, str]]) -> list[str]:
    """Return names in the order of their turns: each turn takes the open window of the lowest rank.

    A window is (opens, rank, closes, name); `windows` are sorted by `opens`. The result is empty if a window closes
    before it is used.
    """
    order: list[str] = []
    waiting: list[tuple[float, int, str]] = []
    at = 0
    for turn in range(len(windows)):
        while at < len(windows) and windows[at][0] <= turn:
            heapq.heappush(waiting, windows[at][1:])
            at += 1
        if not waiting:
            return []
        _, closes, name = heapq.heappop(waiting)
        if closes <= turn:
            return []
        order.append(name)
    return order
