"""The dialect of a CSV or TSV file: how its cells are separated, quoted and encoded, and which rows fit it.

`csv_sniffer.py` detects a file's dialect; `csv_table.py` reads and writes rows with it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from foreknow.io.quoting import quoted

SAMPLE: Final = 2**18
"""Number of characters at the start of a file from which its dialect is detected."""


class Dialect(NamedTuple):
    """How cells are written. `quote`: None if no cell is quoted. `escape`: a backslash if it escapes characters.
    `spaced`: a blank follows each delimiter. `all_quoted`: every cell is quoted. `bom`: the bytes before the text;
    `preamble`: the lines before the header. `reason`: a note for the user on what is unusual."""

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    spaced: bool = False
    all_quoted: bool = False
    newline: str = "\n"
    encoding: str = "utf-8"
    bom: bytes = b""
    preamble: str = ""
    reason: str = ""

    def reader_args(self) -> dict[str, Any]:
        """The arguments of `csv.reader`."""
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quote,
            "quoting": csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            "escapechar": self.escape,
            "skipinitialspace": self.spaced,
            "strict": True,
        }

    def line(self, cells: Sequence[object]) -> str:
        """Format cells as a line without a line end. Raises ValueError for a text that the dialect cannot hold."""
        return self.separator.join(map(self.cell, cells)) or (f"{self.quote}{self.quote}" if self.quote else "")

    @property
    def separator(self) -> str:
        """The text between two cells."""
        return f"{self.delimiter} " if self.spaced else self.delimiter

    def cell(self, value: object) -> str:
        """Format one cell, with quotes or escapes if it needs them. Raises ValueError as `line` does."""
        text = "" if value is None else str(value)
        special = {self.delimiter, self.quote, self.escape, "\r", "\n"} - {None}
        if self.quote is None:
            if self.escape is not None:
                return "".join(f"{self.escape}{c}" if c in special else c for c in text)
            if any(c in special for c in text):
                raise ValueError(f"a cell that is not quoted cannot hold {quoted(text)}")
            return text
        if not (self.all_quoted or self.spaced or text[:1] == "'" or any(c in special for c in text)):
            return text
        if self.escape is None:
            return f"{self.quote}{text.replace(self.quote, self.quote * 2)}{self.quote}"
        escaped = text.replace(self.escape, self.escape * 2).replace(self.quote, self.escape + self.quote)
        return f"{self.quote}{escaped}{self.quote}"

    def reads(self, text: str) -> bool:
        """Whether every backslash in a row's text escapes a character that needs it."""
        if self.escape is None:
            return True
        needs = {self.escape, self.delimiter, '"', "'", "\r", "\n"}
        return all(match[1] in needs for match in re.finditer(r"\\(.|$)", text, re.DOTALL))

    def like(self, other: Dialect) -> bool:
        """Whether two dialects write rows in the same way (delimiter, quote, escape, blanks)."""
        return self[:4] == other[:4]


def default_dialect(suffix: str) -> Dialect:
    """The default dialect of a file with this suffix."""
    return Dialect("\t" if suffix == ".tsv" else ",")


def columns_of(header: Sequence[str]) -> dict[str, int]:
    """Map each column name of a header row, stripped, to its index.

    An empty name counts as a column if it is the only empty one and not the last (pandas writes its index that way);
    otherwise the cells below it must be empty. Raises ValueError for a name that occurs twice.
    """
    names = [name.strip() for name in header]
    empty = [place for place, name in enumerate(names) if not name]
    keep = len(names) == 1 or (len(empty) == 1 and names[-1] != "")
    columns = {name: place for place, name in enumerate(names) if name or keep}
    if twice := next((name for name in columns if names.count(name) > 1), None):
        raise ValueError(twice)
    return columns


def has_wrong_cells(cells: Sequence[str], columns: Mapping[str, int]) -> bool:
    """Whether a row has too few cells, or non-empty cells in columns without a name."""
    places = columns.values()
    return len(cells) <= max(places) or any(cell for place, cell in enumerate(cells) if cell and place not in places)


def has_ambiguous_escape(cells: Sequence[str], text: str, dialect: Dialect, columns: int) -> bool:
    """Whether a row's cell count differs from the header's and the row has a backslash before a delimiter.

    Such a row fits, because its surplus cells are empty. But it would split into other cells if the backslash were
    read the other way (as an escape, or as a letter).
    """
    if len(cells) == columns:
        return False
    if dialect.escape is None:
        return any(cell.endswith("\\") for cell in cells[:-1])
    return f"{dialect.escape}{dialect.delimiter}" in text


def split_lines(text: str) -> list[str]:
    """Split a text into lines and keep their ends. Only CR, LF and CRLF end a line, unlike in `str.splitlines`."""
    return list(io.StringIO(text, newline=""))


def starts_with_quote(text: str, dialect: Dialect, quote: str) -> bool:
    """Whether some cell of a row's text begins with `quote`."""
    return re.search(rf"(?:^|{re.escape(dialect.delimiter)}) ?{quote}", text) is not None


def is_single_quoted_cell(cell: str) -> bool:
    """Whether a cell begins and ends with an apostrophe."""
    return len(cell) > 1 and cell[0] == cell[-1] == "'"


def doubles_apostrophes(cells: Sequence[str], text: str, dialect: Dialect) -> bool:
    """Whether a cell that was read as unquoted looks quoted with apostrophes: one inside it is doubled."""
    return any(is_single_quoted_cell(cell) and "''" in cell[1:-1] for cell in cells) and starts_with_quote(
        text, dialect, "'"
    )


def is_blank(cells: Sequence[str], columns: int) -> bool:
    """Whether a row is a blank line in a table with this number of columns."""
    return not cells or (columns > 1 and len(cells) == 1 and cells[0] != "" and not cells[0].strip(" "))


def has_unclosed_quote(text: str, dialect: Dialect, columns: int) -> bool:
    """Whether the lines of a multi-line row look like separate rows, so that its opening quote is part of the text."""
    lines = split_lines(text.strip("\r\n"))
    if dialect.quote is None or columns < 2 or len(lines) < 3:
        return False
    if lines[-1].startswith(dialect.quote):
        return False  # a quote that closes at the beginning of a line ends a cell whose text ends with a line break
    spaced = 0 if not dialect.spaced else columns - 1
    return all(
        line.count(dialect.delimiter) == columns - 1 and line.count(dialect.delimiter + " ") == spaced for line in lines
    )


@contextlib.contextmanager
def field_size_limit(longest: int) -> Iterator[None]:
    """Let the csv module read cells of up to `longest` characters; its default limit is 128 KiB."""
    limit = csv.field_size_limit(longest)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
