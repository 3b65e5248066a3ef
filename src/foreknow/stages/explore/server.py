"""Serves the page of a run's rows on this machine's loopback address, in threads of this process.

The standard library's HTTP server is enough: one person asks it, from the same machine, and who may ask is decided
before anything is read (`responses.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from foreknow import notebook
from foreknow.errors import ConfigError
from foreknow.stages.explore.responses import HEADERS, RowPages
from foreknow.stages.explore.row_table import open_table

logger = logging.getLogger(__name__)
LOOPBACK: Final = "127.0.0.1"


class Explorer:
    """A page of a run's rows that is being served, until `close` is called or the process ends.

    with foreknow.explore("runs/train") as explorer:
        print(explorer.url)
    """

    def __init__(self, server: _Server, pages: RowPages, keep: Any = None) -> None:
        self._server, self._pages, self._keep = server, pages, keep
        server.pages = pages
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page, with the token without which nothing is answered."""
        return f"http://{LOOPBACK}:{self.port}/?token={quote(self._pages.token)}"

    def wait(self) -> None:
        """Wait until `close` is called."""
        while self._thread.is_alive():
            self._thread.join(1)  # in steps: Ctrl-C is noticed between them on every system

    def close(self) -> None:
        """Stop serving; calling it again changes nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Explorer({self.url if self._thread.is_alive() else 'closed'})"

    def _repr_html_(self) -> str:
        return notebook.card(
            self._pages.table.title, f"{self._pages.table.frame.height:,} rows", notebook.link(self.url)
        )


def explore(folder: str | Path, *, port: int = 0, keep: Any = None) -> Explorer:
    """Serve the rows of a finished run. `port`: 0 takes a free one. `keep`: what has to live as long as the page.

    Raises what `open_table` raises, and ConfigError for a port that cannot be used.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port: found {port}, expected a number from 1 to 65535, or 0 for a free port")
    server = _listen(port)
    try:
        logger.info("reading the rows of %s", folder)
        return Explorer(server, RowPages(open_table(folder)), keep)
    except BaseException:
        server.server_close()
        raise


class _Server(ThreadingHTTPServer):
    """A server whose threads end with the process, and which looks up no name."""

    pages: RowPages
    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two programs share a port

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the resolver for this machine's name
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the parent's names
        """Log a fault; a browser that no longer waits for an answer is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.exception("a request failed")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "foreknow", ""
    timeout = 60  # seconds until an idle connection is closed

    def _reply(self) -> None:
        assert isinstance(self.server, _Server)
        hosts = self.headers.get_all("Host") or []
        response = self.server.pages.respond(self.command, self.path, hosts, self.headers.get("Authorization"))
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Connection", "close")  # a connection kept open would be served on after `close`
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _reply  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: addresses hold the token and what was searched for."""


def _listen(port: int) -> _Server:
    """Take a port of the loopback address. Raises ConfigError."""
    try:
        return _Server((LOOPBACK, port), _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another program uses it; name another port, or leave --port out"
            ) from None
        raise ConfigError(f"--port {port}: cannot be used: {error.strerror}") from None
