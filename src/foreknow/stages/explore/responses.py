"""Answers the requests of the page: its files, pages of rows, one row. No socket is touched here.

A request is answered only if it names this machine in its `Host` header, so that a web page elsewhere whose name was
pointed at this machine gets nothing (DNS rebinding), and if it brings the token, which stands in the address that
`foreknow explore` prints and nowhere else. Everything is read-only.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import polars as pl

from foreknow.errors import ForeknowError, first_line
from foreknow.report.explore import POLICY, explore_script, explore_style, render_explore
from foreknow.stages.explore.query import PAGE_ROWS, RowQueries, read_query
from foreknow.stages.explore.row_detail import row_detail, span_names
from foreknow.stages.explore.row_table import RowTable, table_facts

logger = logging.getLogger(__name__)
THIS_MACHINE: Final = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
"""A `Host` header that names this machine; the port may be that of a tunnel."""
LONGEST_TARGET: Final = 8_192
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response."""


@dataclass(frozen=True)
class Response:
    """A status, a content type and a body."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class RowPages:
    """Answers the requests for one table. `token`: what every request has to bring."""

    table: RowTable
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @cached_property
    def _queries(self) -> RowQueries:
        return RowQueries(self.table)

    def respond(self, method: str, target: str, hosts: Sequence[str], authorization: str | None) -> Response:
        """Answer a request. `target`: its path and query. `hosts`: its `Host` headers, of which there should be one."""
        if len(hosts) != 1 or not THIS_MACHINE.fullmatch(hosts[0]):
            return _plain(403, "The address of this page begins with http://127.0.0.1 or http://localhost.")
        if len(target) > LONGEST_TARGET:
            return _plain(414, "The address is too long.")
        parts = urlsplit(target)
        values = dict(parse_qsl(parts.query, keep_blank_values=True))
        bearer = (authorization or "").removeprefix("Bearer ").strip()
        if not any(
            secrets.compare_digest(text.encode(), self.token.encode()) for text in (bearer, values.get("token", ""))
        ):
            return _plain(403, "Open the whole address that foreknow explore printed, with its token.")
        if method not in ("GET", "HEAD"):
            return _plain(405, "This page is only read.")
        try:
            return self._respond(parts.path, values)
        except ForeknowError as error:
            return _json({"error": str(error)}, 400)
        except (OSError, pl.exceptions.PolarsError) as error:
            text = f"{self.table.run.folder}: its files cannot be read any more: {first_line(error)}"
            return _json({"error": text}, 500)
        except Exception as error:
            logger.exception("%s could not be answered", parts.path)
            return _json({"error": f"a fault of foreknow's: {type(error).__name__}: {first_line(error)}"}, 500)

    def _respond(self, path: str, values: dict[str, str]) -> Response:
        name = path.rpartition("/")[2]
        if name == "":
            text = render_explore(title=self.table.title, folder=self.table.run.folder.name, token=self.token)
            return Response(200, "text/html; charset=utf-8", text.encode())
        if name == "explore.css":
            return Response(200, "text/css; charset=utf-8", explore_style().encode())
        if name == "explore.js":
            return Response(200, "text/javascript; charset=utf-8", explore_script().encode())
        if name == "table":
            return _json({**table_facts(self.table), "span_types": span_names()})
        if name == "rows":
            page = self._queries.page(read_query(values, self.table))
            return _json({**page.__dict__, "page_rows": PAGE_ROWS})
        if name == "row":
            place = values.get("place", "")
            if not place.isdecimal() or int(place) >= self.table.frame.height:
                return _json({"error": f"found no row at place {place!r}; reload the page"}, 400)
            return _json(row_detail(self.table, int(place)))
        return _plain(404, "There is no such page here.")


def _plain(status: int, text: str) -> Response:
    return Response(status, "text/plain; charset=utf-8", text.encode())


def _json(value: dict[str, Any], status: int = 200) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(status, "application/json; charset=utf-8", text.encode())
