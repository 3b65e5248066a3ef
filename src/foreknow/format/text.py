"""Shortens and cleans texts that others wrote, and paths, for a line or a page. Plain text in and out. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath

LONGEST_TEXT = 400
"""The table of rows cuts questions and answers to this many characters; rows.parquet has them whole."""
UNSAFE_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
"""Control characters, and marks that turn the direction of the text around them."""


def clip(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """The text, cut to at most `longest` characters for a table cell."""
    return text if text is None or len(text) <= longest else text[: longest - 1] + "…"


def display(text: str | None, longest: int = 90) -> str:
    """A name that fits into a line: never empty, without control characters, cut in the middle if it is too long."""
    clean = UNSAFE_IN_LINE.sub(" ", text or "").strip()
    if not clean:
        return "(no name)"
    return clean if len(clean) <= longest else f"{clean[: longest - 21]}…{clean[-20:]}"


def fill_placeholders(text: str, paths: Mapping[str, str | None]) -> str:
    """Put paths in the place of the words in capitals that stand for them in commands (AUDIT, DIR, ...).

    `paths`: by word, the path; a word without one stays as it is.
    """
    known = {word: shlex.quote(path) for word, path in paths.items() if path}
    return re.sub(r"\b[A-Z]{3,}\b", lambda word: known.get(word[0], word[0]), text)


def shown_path(path: str | Path | None) -> str | None:
    """A path that a page may show: one below the current folder, relative to it, or the name of what is no path.

    None for a path elsewhere: a page does not show folders of the machine.
    """
    if path is None:
        return None
    place = Path(path)
    if place.is_absolute():
        return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else None
    return None if ".." in place.parts else str(path)


def inline(text: str | None) -> str:
    """A text for the inside of a line: control characters become spaces, spaces at the ends stay."""
    return UNSAFE_IN_LINE.sub(" ", text or "")


def without_folders(text: str) -> str:
    """Cut every path in a text down to its last part, so that the page does not show folders of the machine."""
    return re.sub(r"(?:[^\s/\\]*[/\\])+([^\s/\\]+)", r"\1", text)


def file_name(path: object) -> str:
    """The last part of a path on any system, or of a name; "" for None."""
    return str(path or "").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def source(text: object) -> str:
    """Where something is from, as a line without folders of the machine."""
    return display(without_folders(str(text)), 200)


def suffix_of(name: object) -> str:
    """The suffix of a data file's name that says its format; `.jsonl` if it has none."""
    known = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    suffixes = [suffix for suffix in PurePath(str(name or "")).suffixes if suffix in known]
    return suffixes[-1] if suffixes else ".jsonl"
