"""Download one file into the user's cache: https only, of limited size, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from foreknow.errors import InputError, ResourceError
from foreknow.io.remote_paths import cache_folder
from foreknow.io.run_dir import write_whole
from foreknow.version import __version__

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 256 << 20
"""Larger downloads are aborted: the known releases are a few MB."""


def download_url(address: str, most: int = MOST_BYTES) -> Path:
    """Download a file once and return its path; later calls use the cached file.

    Raises InputError if the address is neither https nor local, or if the download fails; ResourceError if the file
    cannot be saved.
    """
    _check_address(address)
    name = hashlib.sha256(address.encode()).hexdigest()[:16] + Path(urlsplit(address).path).suffix
    path = cache_folder() / "data" / name
    if path.is_file():
        logger.info(f"{address}: fetched before, kept as {path}; delete that file to fetch it again")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent}: the cache cannot be made: {error.strerror}") from None
    logger.info(f"fetching {address}")
    with _open_response(address) as answer:
        write_whole(path, lambda part: _save_response(answer, part, address, most))
    return path


@contextlib.contextmanager
def _open_response(address: str) -> Iterator[http.client.HTTPResponse]:
    """Open the HTTP response. Every network error becomes an InputError."""
    request = urllib.request.Request(address, headers={"User-Agent": f"foreknow/{__version__}"})
    try:
        with urllib.request.build_opener(_CheckedRedirects).open(request, timeout=30) as response:
            yield response
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = " ".join(str(getattr(error, "reason", None) or error).split())[:160] or type(error).__name__
        raise InputError(
            f"{address}: cannot be fetched ({why}). Without a network, bring the file here and name it: --from PATH"
        ) from None


def _save_response(response: http.client.HTTPResponse, part: Path, address: str, most: int) -> None:
    expected = response.headers.get("Content-Length")
    size = 0
    with part.open("wb") as file:
        while block := response.read(1 << 20):
            size += len(block)
            if size > most:
                raise InputError(f"{address}: over {most >> 20} MiB, not kept. Is it the published file?")
            file.write(block)
    if expected is not None and expected.isdecimal() and int(expected) != size:
        raise InputError(f"{address}: {size:,} of {int(expected):,} bytes came, nothing was kept. Try again.")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that `_check_address` allows."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(address: str) -> None:
    """Only https; plain http only to this very machine."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError as error:
        raise InputError(f"{address}: not an address ({error}).") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost")):
        raise InputError(f"{address}: found {parts.scheme}, expected https.")
