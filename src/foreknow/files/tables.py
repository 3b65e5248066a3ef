"""Tables: the rows of a CSV or TSV file, every cell as text, and rows written back in the file's own dialect."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from foreknow.errors import InputError
from foreknow.files.dialects import (
    Dialect,
    cells_up_to,
    columns_of,
    dialect_of,
    doubles_apostrophes,
    fits_lines,
    is_blank,
    misfits,
    swallows,
)
from foreknow.files.encodings import not_utf8
from foreknow.files.jsontext import dumps
from foreknow.files.quoting import quoted
from foreknow.files.sources import Part


class Table(NamedTuple):
    """What all rows of a table share. `header`: its text as it stands; `cells`: how many it has; `columns`: the
    columns' names and places, which may be fewer (`dialects.columns_of`)."""

    dialect: Dialect
    header: str
    cells: int
    columns: Mapping[str, int]


class Row(NamedTuple):
    """A row: the 1-based line it begins at, its text as it stands (empty where it has not the header's cells), and
    its values by column."""

    line: int
    text: str
    record: dict[str, str]


def read_table(part: Part, longest: int) -> Iterator[Table | Row]:
    """A table's rows, behind the table itself; nothing for an empty file. `longest`: characters of a line or cell.

    Raises InputError for a row that cannot be read for certain.
    """
    dialect = dialect_of(part)
    with part.open() as stream:
        stream.read(len(dialect.bom))
        text = io.TextIOWrapper(stream, encoding=dialect.encoding, newline="")
        skipped = text.read(len(dialect.preamble))
        before = len(list(io.StringIO(skipped, newline="")))
        pending: list[str] = []
        reader = csv.reader(_lines(part, text, pending, longest, before), **dialect.reading())
        table: Table | None = None
        while True:
            begins = before + reader.line_num + 1
            try:
                with cells_up_to(longest):
                    cells = next(reader, None)
            except csv.Error as error:
                raise InputError(f"{part.where}:{begins}: broken {part.suffix[1:].upper()} row: {error}.") from error
            except UnicodeDecodeError:
                if dialect.encoding == "utf-8":
                    raise not_utf8(part, longest) from None
                raise InputError(
                    f"{part.where}: broken {dialect.encoding.upper()} text. Save the file as UTF-8."
                ) from None
            if cells is None:
                break
            piece = "".join(pending)
            pending.clear()
            if is_blank(cells, len(table.columns) if table is not None else 2):
                continue
            if table is None:
                table = _table(part, dialect, cells, piece, begins)
                yield table
                continue
            yield _row(part, table, cells, piece, begins)
        text.detach()


def _lines(part: Part, text: IO[str], pending: list[str], longest: int, before: int) -> Iterator[str]:
    """The lines of a text, each kept in `pending` until its row is read."""
    for number, line in enumerate(iter(lambda: text.readline(longest), ""), start=before + 1):
        if len(line) >= longest:
            raise InputError(f"{part.where}:{number}: longer than {longest >> 20} MiB, expected one row a line.")
        pending.append(line)
        yield line


def _table(part: Part, dialect: Dialect, cells: list[str], text: str, line: int) -> Table:
    try:
        columns = columns_of(cells)
    except ValueError as twice:
        raise InputError(
            f"{part.where}:{line}: the column {quoted(str(twice))} stands in the header twice. Rename one of them."
        ) from None
    if not columns:
        raise InputError(f"{part.where}:{line}: no column of the header has a name. Name them.")
    return Table(dialect, _without_end(text), len(cells), columns)


def _row(part: Part, table: Table, cells: list[str], text: str, line: int) -> Row:
    where = f"{part.where}:{line}"
    if misfits(cells, table.columns):
        raise InputError(f"{where}: {_ragged(table, cells, text)}")
    if not table.dialect.reads(text):
        raise InputError(
            f"{where}: a backslash stands before a character that needs none, so it cannot be told whether it belongs "
            "to the text. Save the file with quotes doubled inside quoted cells."
        )
    if swallows(text, table.dialect, table.cells):
        raise InputError(
            f"{where}: a quote opens here and closes {len(text.splitlines()) - 1} lines further down, and the lines "
            'between look like rows of their own. Double the quotes inside cells ("") and quote the whole cell.'
        )
    if table.dialect.quote == '"' and doubles_apostrophes(cells, text, table.dialect):
        raise InputError(f"{where}: a cell is quoted with ', those before it are not. Quote all cells with \".")
    own = _without_end(text) if len(cells) == table.cells else ""
    return Row(line, own, {name: cells[place] for name, place in table.columns.items()})


def _ragged(table: Table, cells: list[str], text: str) -> str:
    if text.startswith("#"):
        return "a comment stands between the rows; only those before the header are passed over. Take it out."
    if len(cells) == table.cells:
        stray = next(cell for place, cell in enumerate(cells) if cell and place not in table.columns.values())
        return f"found {quoted(stray)} in a column without a name. Name it in the header."
    found = f"found {len(cells)} cells, expected {table.cells} as in the header"
    if len(cells) == table.cells + 1 and cells[0].strip().isdigit():
        return f"{found}. If each row begins with its number, name that column in the header too."
    return f"{found}. Quote cells that hold the separator."


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


class TableWriter:
    """Writes tables into one file, in the dialect of the first. Rows keep their text where it can stand there.

    `part_of`: only some rows are written, and these may not show how a table with unusual quotes is quoted: then its
    quotes are written as usual. `dialect`: one that goes before that of the first.
    """

    def __init__(self, out: IO[bytes], *, part_of: bool = False, dialect: Dialect | None = None):
        self.out, self.part_of, self.dialect = out, part_of, dialect
        self.first: Table | None = None

    def write(
        self, table: Table, rows: Sequence[tuple[str, Mapping[str, object]]], added: Mapping[str, list[object]]
    ) -> None:
        """Rows as (text or "", record), with the values of the columns `added`.

        Raises InputError where the columns are not those of the tables before, or a value cannot be written.
        """
        lines, header = [], None
        if self.first is None:
            given = self.dialect
            self.dialect = table.dialect if given is None else given._replace(newline=table.dialect.newline)
            if self.part_of and (self.dialect.quote != '"' or self.dialect.escape is not None):
                self.dialect = self.dialect._replace(quote='"', escape=None, all_quoted=False)
        assert self.dialect is not None
        dialect, same = self.dialect, self.dialect.like(table.dialect)
        if self.first is None:
            self.first = table
            if not same:  # the header is written anew: only what has a name
                self.first = table._replace(columns={name: n for n, name in enumerate(table.columns)})
                self.first = self.first._replace(cells=len(table.columns), header=dialect.line([*table.columns]))
            self.out.write(dialect.bom)
            header = self._joined(self.first.header, list(added))
            lines.append(header)
        first = self.first
        if sorted(table.columns) != sorted(first.columns):
            raise InputError(
                f"the columns {', '.join(table.columns)} are not those of the files before: "
                f"{', '.join(first.columns)}. Write them one by one."
            )
        keeps = same and table.columns == first.columns and table.cells == first.cells
        names = {place: name for name, place in first.columns.items()}
        values = list(added.values())
        for n, (text, record) in enumerate(rows):
            cells = (_written(record.get(names[place])) if place in names else "" for place in range(first.cells))
            line = text if text and keeps else self._line(list(cells))
            lines.append(self._joined(line, [column[n] for column in values]))
        if header is not None:
            if dialect.quote == "'" and fits_lines(dialect._replace(quote='"', escape=None), lines):
                # with columns more, usual quotes fit the rows too: names in these quotes settle it
                every = [*(names.get(place, "") for place in range(first.cells)), *added]
                lines[0] = dialect._replace(all_quoted=True).line(every)
            lines[0] = dialect.preamble + lines[0]
        self.out.write("".join(line + dialect.newline for line in lines).encode(dialect.encoding))

    def _joined(self, line: str, cells: Sequence[object]) -> str:
        """A line with cells added behind it. Where a cell cannot hold a character, a blank stands for it."""
        assert self.dialect is not None
        written = [_written(cell) for cell in cells]
        if self.dialect.quote is None and self.dialect.escape is None:
            odd = str.maketrans(dict.fromkeys([self.dialect.delimiter, "\r", "\n"], " "))
            written = [cell.translate(odd) if isinstance(cell, str) else cell for cell in written]
        return self.dialect.separator.join([line, *map(self.dialect.cell, written)])

    def _line(self, cells: Sequence[object]) -> str:
        assert self.dialect is not None
        try:
            return self.dialect.line(cells)
        except ValueError as error:
            raise InputError(f"{error}: {quoted(self.dialect.delimiter)} stands between the cells.") from None


def _written(value: object) -> object:
    """A value as a cell: a list as JSON, null as an empty cell."""
    if isinstance(value, list | dict):
        return dumps(value)
    return str(value).lower() if isinstance(value, bool) else value
