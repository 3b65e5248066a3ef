"""Answers queries on a table of rows: which rows match, in which order, and the cells of one page of them.

A query costs a scan of the searched text, which is lower-case already, and a sort of numbers, as a text's place in the
alphabet is one of the table's columns. What the last few queries selected is remembered, so that turning a page costs
nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.errors import InputError
from foreknow.stages.explore.row_table import RowTable

PAGE_ROWS: Final = 50
REMEMBERED: Final = 8
"""How many selections, in the run's order or sorted, are remembered."""


@dataclass(frozen=True)
class Query:
    """A question about the rows. `find`: words, each of which a row must hold. `filters`: places of values by filter.

    `sort`: a column; rows without a value come last, and rows of one value stand in the run's order. `page`: from 0 on.
    """

    find: str = ""
    filters: tuple[tuple[str, int], ...] = ()
    sort: str | None = None
    down: bool = False
    page: int = 0


@dataclass(frozen=True)
class ResultPage:
    """A page of rows. `total`: the rows that match. `categories`: their number by category, if the table has any.

    `places`: the place in the table of each row of the page. `rows`: their cells, in the order of the table's columns.
    """

    total: int
    page: int
    places: list[int]
    rows: list[list[Any]]
    categories: list[int]


class RowQueries:
    """Answers queries on one table; safe to use from several threads."""

    def __init__(self, table: RowTable) -> None:
        self.table = table
        self._lock = threading.Lock()
        self._selections: OrderedDict[Query, pl.Series] = OrderedDict()

    def page(self, query: Query) -> ResultPage:
        """Return the page of the rows that match; the last one if there are fewer pages.

        Raises InputError for a filter, a value or a column that the table does not have.
        """
        with self._lock:
            selected = self._selected(replace(query, page=0))
            page = min(max(query.page, 0), max(0, (len(selected) - 1) // PAGE_ROWS))
            places = selected[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
        cells = self.table.frame.select(c.name for c in self.table.columns)[places]
        return ResultPage(
            total=len(selected),
            page=page,
            places=places.to_list(),
            rows=[list(line) for line in cells.iter_rows()],
            categories=self._category_counts(selected),
        )

    def forget(self) -> None:
        """Forget what earlier queries selected: for measurements."""
        with self._lock:
            self._selections.clear()

    def _selected(self, query: Query) -> pl.Series:
        """The places of all rows that match, in the query's order."""
        if query not in self._selections:
            if query.sort is not None:
                places = self._sorted(self._selected(replace(query, sort=None, down=False)), query.sort, query.down)
            else:
                places = pl.int_range(self.table.frame.height, dtype=pl.UInt32, eager=True)
                matches = self._matches(query)
                places = places if matches is None else places.filter(matches)
            self._selections[query] = places
            while len(self._selections) > REMEMBERED:
                self._selections.popitem(last=False)  # the one that was used longest ago
        self._selections.move_to_end(query)
        return self._selections[query]

    def _sorted(self, places: pl.Series, name: str, down: bool) -> pl.Series:
        """Places in the order of a column; rows without a value last, and rows of one value in the run's order."""
        column = next((c for c in self.table.columns if c.name == name), None)
        if column is None:
            raise InputError(f"sort={name}: found no such column; reload the page")
        keys = self.table.frame[column.sort_key]
        keys = keys if len(places) == len(keys) else keys.gather(places)
        table = pl.DataFrame({"place": places, "key": keys})
        return table.sort("key", descending=down, nulls_last=True, maintain_order=True)["place"]

    def _matches(self, query: Query) -> pl.Series | None:
        """Whether each row matches, by its place; None where every row does."""
        filters = {f.name: f for f in self.table.filters}
        tests = []
        for name, place in query.filters:
            if name not in filters or not 0 <= place < len(filters[name].values):
                raise InputError(f"{name}={place}: found no such filter or value; reload the page")
            chosen = filters[name]
            tests.append(
                pl.col(chosen.flag_columns[place]) if chosen.flag_columns else (pl.col(chosen.column) == place)
            )
        words = sorted(set(query.find.lower().split()), key=len, reverse=True)
        if not tests and not words:
            return None
        frame = self.table.frame
        if not words:
            return frame.select(pl.all_horizontal(tests).fill_null(False)).to_series()
        # each word is looked for in the rows alone that all before it have left
        left = frame.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("place"), "search", *_columns_of(tests))
        if tests:
            left = left.filter(pl.all_horizontal(tests))
        left = left.select("place", "search")
        for word in words:
            left = left.filter(pl.col("search").str.contains(word, literal=True))
        matches = pl.zeros(frame.height, dtype=pl.UInt8, eager=True)
        return matches.scatter(left["place"], 1).cast(pl.Boolean)

    def _category_counts(self, selected: pl.Series) -> list[int]:
        """The number of selected rows of each category, and of those without one."""
        frame = self.table.frame
        if "filter_category" not in frame.columns:
            return []
        codes = frame["filter_category"]
        counted = (codes if len(selected) == frame.height else codes.gather(selected)).value_counts()
        counts = dict(counted.iter_rows())
        return [counts.get(place, 0) for place in range(len(CATEGORIES) + 1)]


def _columns_of(tests: list[pl.Expr]) -> list[str]:
    return sorted({name for test in tests for name in test.meta.root_names()})


def read_query(values: Mapping[str, str], table: RowTable) -> Query:
    """Read a query from the parameters of an address. Raises InputError."""
    names = {f.name for f in table.filters}
    try:
        filters = tuple(
            sorted((k.removeprefix("filter-"), int(v)) for k, v in values.items() if k.startswith("filter-"))
        )
        page = int(values.get("page", "0"))
    except ValueError:
        raise InputError("found a value that is no whole number; reload the page") from None
    if unknown := {name for name, _ in filters} - names:
        raise InputError(f"{', '.join(sorted(unknown))}: found no such filter; reload the page")
    sort = values.get("sort") or None
    return Query(values.get("find", ""), filters, sort, values.get("down") == "1", page)
