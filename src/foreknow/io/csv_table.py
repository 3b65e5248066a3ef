"""Read the rows of a CSV or TSV file, every cell as text, and write rows back in the file's own dialect."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import IO, NamedTuple

from foreknow.errors import InputError
from foreknow.io.csv_dialect import (
    SAMPLE,
    Dialect,
    columns_of,
    default_dialect,
    doubles_apostrophes,
    field_size_limit,
    has_ambiguous_escape,
    has_unclosed_quote,
    has_wrong_cells,
    is_blank,
)
from foreknow.io.csv_sniffer import dialect_of
from foreknow.io.data_file import DataFile
from foreknow.io.encodings import not_utf8
from foreknow.io.json_text import dumps
from foreknow.io.quoting import quoted
from foreknow.io.sources import source_of_bytes


class CsvTable(NamedTuple):
    """What all rows of a table share. `header`: the unchanged header line; `cells`: its number of cells; `columns`:
    column name -> index. There can be fewer columns than cells (`csv_dialect.columns_of`)."""

    dialect: Dialect
    header: str
    cells: int
    columns: Mapping[str, int]


class CsvRow(NamedTuple):
    """A row: the 1-based line it begins at, its unchanged text (empty if its cell count differs from the header's), and
    its values by column."""

    line: int
    text: str
    record: dict[str, str]


def read_table(part: DataFile, longest: int) -> Iterator[CsvTable | CsvRow]:
    """Yield the table, then its rows; nothing for an empty file. `longest`: most characters of a line or cell.

    Raises InputError for a row that can be read in more than one way.
    """
    dialect = dialect_of(part)
    with part.open() as stream:
        stream.read(len(dialect.bom))
        text = io.TextIOWrapper(stream, encoding=dialect.encoding, newline="")
        skipped = text.read(len(dialect.preamble))
        before = len(list(io.StringIO(skipped, newline="")))
        pending: list[str] = []
        reader = csv.reader(_lines(part, text, pending, longest, before), **dialect.reader_args())
        table: CsvTable | None = None
        while True:
            begins = before + reader.line_num + 1
            try:
                with field_size_limit(longest):
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
                table = _table_from_header(part, dialect, cells, piece, begins)
                yield table
                continue
            yield _checked_row(part, table, cells, piece, begins)
        text.detach()


def _lines(part: DataFile, text: IO[str], pending: list[str], longest: int, before: int) -> Iterator[str]:
    """Yield the lines of a text, and append each to `pending`, which the caller clears after each row."""
    for number, line in enumerate(iter(lambda: text.readline(longest), ""), start=before + 1):
        if len(line) >= longest:
            raise InputError(f"{part.where}:{number}: longer than {longest >> 20} MiB, expected one row a line.")
        pending.append(line)
        yield line


def _table_from_header(part: DataFile, dialect: Dialect, cells: list[str], text: str, line: int) -> CsvTable:
    try:
        columns = columns_of(cells)
    except ValueError as twice:
        raise InputError(
            f"{part.where}:{line}: the column {quoted(str(twice))} stands in the header twice. Rename one of them."
        ) from None
    if not columns:
        raise InputError(f"{part.where}:{line}: no column of the header has a name. Name them.")
    return CsvTable(dialect, _without_end(text), len(cells), columns)


def _checked_row(part: DataFile, table: CsvTable, cells: list[str], text: str, line: int) -> CsvRow:
    where = f"{part.where}:{line}"
    if has_wrong_cells(cells, table.columns):
        raise InputError(f"{where}: {_wrong_cells_message(table, cells, text)}")
    if not table.dialect.reads(text):
        raise InputError(
            f"{where}: a backslash stands before a character that needs none, so it cannot be told whether it belongs "
            "to the text. Save the file with quotes doubled inside quoted cells."
        )
    if has_ambiguous_escape(cells, text, table.dialect, table.cells):
        raise InputError(
            f"{where}: a backslash stands before {quoted(table.dialect.delimiter)}, so it cannot be told whether that "
            f"separates cells: found {len(cells)} cells, expected {table.cells} as in the header. Quote cells that "
            "hold the separator."
        )
    if has_unclosed_quote(text, table.dialect, table.cells):
        raise InputError(
            f"{where}: a quote opens here and closes {len(text.splitlines()) - 1} lines further down, and the lines "
            'between look like rows of their own. Double the quotes inside cells ("") and quote the whole cell.'
        )
    if table.dialect.quote == '"' and doubles_apostrophes(cells, text, table.dialect):
        raise InputError(f"{where}: a cell is quoted with ', those before it are not. Quote all cells with \".")
    own = _without_end(text) if len(cells) == table.cells else ""
    return CsvRow(line, own, {name: cells[place] for name, place in table.columns.items()})


def _wrong_cells_message(table: CsvTable, cells: list[str], text: str) -> str:
    if text.startswith("#"):
        return "a comment stands between the rows; only those before the header are passed over. Take it out."
    if len(cells) == table.cells:
        stray = next(cell for place, cell in enumerate(cells) if cell and place not in table.columns.values())
        return f"found {quoted(stray)} in a column without a name. Name it in the header."
    counts = f"found {len(cells)} cells, expected {table.cells} as in the header"
    if len(cells) == table.cells + 1 and cells[0].strip().isdigit():
        return f"{counts}. If each row begins with its number, name that column in the header too."
    return f"{counts}. Quote cells that hold the separator."


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


class _RowBatch(NamedTuple):
    """Rows to write: the table they are of, each one's text as it stands there ("" where it has none) and record, and
    the values of the columns that are added."""

    table: CsvTable
    rows: Sequence[tuple[str, Mapping[str, object]]]
    added: Mapping[str, Sequence[object]]

    def added_rows(self) -> list[list[object]]:
        """The added values of each row."""
        return [[column[n] for column in self.added.values()] for n in range(len(self.rows))]


class _OutputForm(NamedTuple):
    """How tables are written into one file: the dialect, the header before the names `added`, the columns, and how many
    cells stand in a row before those that are added."""

    dialect: Dialect
    header: str
    columns: Mapping[str, int]
    cells: int
    added: tuple[str, ...]

    @property
    def head(self) -> str:
        """The text before the rows."""
        return f"{self.dialect.preamble}{self._join(self.header, self.added)}{self.dialect.newline}"

    def lines(self, batch: _RowBatch) -> list[str]:
        """Return rows as lines with line ends. Raises ValueError for a cell that the dialect cannot write."""
        table = batch.table
        same = self.dialect.like(table.dialect) and (self.columns, self.cells) == (table.columns, table.cells)
        lines = []
        for (text, record), beside in zip(batch.rows, batch.added_rows(), strict=True):
            line = (
                text
                if text and same
                else self.dialect.line(self.cells_of({n: _cell_value(record.get(n)) for n in self.columns}))
            )
            lines.append(f"{self._join(line, beside)}{self.dialect.newline}")
        return lines

    def cells_of(self, values: Mapping[str, object]) -> list[object]:
        """The cells of a row; cells in columns without a name are empty."""
        names = {place: name for name, place in self.columns.items()}
        return [values[names[place]] if place in names else "" for place in range(self.cells)]

    def records(self, batch: _RowBatch) -> list[dict[str, str]]:
        """The records that a reader of the lines must return."""
        return [
            {name: _as_text(record.get(name)) for name in self.columns}
            | {name: self._added_text(value) for name, value in zip(self.added, beside, strict=True)}
            for (_, record), beside in zip(batch.rows, batch.added_rows(), strict=True)
        ]

    def _join(self, line: str, cells: Sequence[object]) -> str:
        return self.dialect.separator.join([line, *(self.dialect.cell(self._added_text(cell)) for cell in cells)])

    def _added_text(self, value: object) -> str:
        """Convert an added value to text. Characters that a cell cannot hold become blanks."""
        text = _as_text(value)
        if self.dialect.quote is None and self.dialect.escape is None:
            return "".join(" " if c in (self.dialect.delimiter, "\r", "\n") else c for c in text)
        return text


class TableWriter:
    """Writes tables into one file, in the dialect of the first table. Rows keep their text if the dialect allows it.

    A table with other columns or fewer rows can be detected as another dialect. So the writer buffers the first rows,
    as many as dialect detection samples, and parses what it would write. If that gives other cells, it writes a plainer
    dialect.

    `where`: the file's name in messages; `suffix`: the end of its name. `part_of`: only some rows are written, which
    may not show unusual quotes, so the default quotes are used. `dialect`: used instead of the first table's.
    """

    def __init__(
        self, out: IO[bytes], where: str, suffix: str, *, part_of: bool = False, dialect: Dialect | None = None
    ):
        self.out, self.where, self.suffix, self.part_of, self.dialect = out, where, suffix, part_of, dialect
        self.forms: list[_OutputForm] = []
        self.buffered: list[_RowBatch] = []
        self.size = 0
        self.form_chosen = False

    def write(
        self, table: CsvTable, rows: Sequence[tuple[str, Mapping[str, object]]], added: Mapping[str, list[object]]
    ) -> None:
        """Rows as (text or "", record), with the values of the columns `added`.

        Raises InputError where the columns are not those of the tables before, or a value cannot be written.
        """
        if not self.forms:
            self.forms = self._forms(table, tuple(added))
        form, batch = self.forms[0], _RowBatch(table, rows, added)
        if sorted(table.columns) != sorted(form.columns):
            raise InputError(
                f"{self.where}: the columns {', '.join(table.columns)} are not those of the files before: "
                f"{', '.join(form.columns)}. Write them one by one."
            )
        try:
            lines = form.lines(batch)
        except ValueError as error:
            raise InputError(
                f"{self.where}: {error}: {quoted(form.dialect.delimiter)} stands between the cells."
            ) from None
        if self.form_chosen:
            self.out.write("".join(lines).encode(form.dialect.encoding))
            return
        self.buffered.append(batch)
        self.size += sum(map(len, lines))
        if self.size > SAMPLE:
            self._choose_form(whole=False)

    def close(self) -> None:
        """Write the buffered rows."""
        if self.forms and not self.form_chosen:
            self._choose_form(whole=True)

    def _forms(self, table: CsvTable, added: tuple[str, ...]) -> list[_OutputForm]:
        """The output forms to try for a file that begins with this table, the most similar first."""
        requested = self.dialect
        base = table.dialect if requested is None else requested._replace(newline=table.dialect.newline)
        if self.part_of and (base.quote != '"' or base.escape is not None):
            base = base._replace(quote='"', escape=None, all_quoted=False)
        quoted_header = base._replace(all_quoted=base.quote is not None)  # names in quotes show what the quotes are
        plain = base._replace(quote='"', escape=None, spaced=False, all_quoted=False)
        plainest = default_dialect(self.suffix)._replace(
            all_quoted=True, newline=base.newline, encoding=base.encoding, bom=base.bom
        )
        return [
            _output_form(dialect, table, added) for dialect in dict.fromkeys([base, quoted_header, plain, plainest])
        ]

    def _choose_form(self, *, whole: bool) -> None:
        """Write the buffered rows in the first form that parses back to the same cells. `whole`: no rows follow."""
        for form in self.forms:
            lines = [line for batch in self.buffered for line in form.lines(batch)]
            content = form.dialect.bom + "".join([form.head, *lines]).encode(form.dialect.encoding)
            if self._reads_as(form, content, whole=whole):
                self.out.write(content)
                self.forms, self.buffered, self.form_chosen = [form], [], True
                return
        names = ", ".join(map(quoted, self.forms[0].added))
        raise InputError(
            f"{self.where}: with the columns {names} added, the table would be read with other cells than it has. Save "
            "the input as .jsonl, and give that."
        )

    def _reads_as(self, form: _OutputForm, content: bytes, *, whole: bool) -> bool:
        """Whether the content parses back to the written cells, in a dialect that also reads the rows still to come."""
        part = source_of_bytes(f"written{self.suffix}", content).parts[0]
        try:
            items = list(read_table(part, len(content) + 1))
        except InputError:
            return False
        table = next((item for item in items if isinstance(item, CsvTable)), None)
        if table is None or list(table.columns) != [*form.columns, *form.added]:
            return False
        if not (whole or form.dialect.like(table.dialect)):
            return False
        read_records = (item.record for item in items if isinstance(item, CsvRow))
        written_records = (record for held in self.buffered for record in form.records(held))
        return all(record == other for record, other in zip_longest(read_records, written_records))


def _output_form(dialect: Dialect, table: CsvTable, added: tuple[str, ...]) -> _OutputForm:
    """The output form of a table in a dialect. It keeps the header's text if it can."""
    if not dialect.like(table.dialect):
        columns = {name: place for place, name in enumerate(table.columns)}  # only what has a name is written
        return _OutputForm(dialect, dialect.line([*columns]), columns, len(columns), added)
    form = _OutputForm(dialect, table.header, table.columns, table.cells, added)
    if dialect.all_quoted == table.dialect.all_quoted:
        return form
    return form._replace(header=dialect.line(form.cells_of({name: name for name in table.columns})))


def _as_text(value: object) -> str:
    """A value as the text of a cell."""
    return "" if value is None else str(_cell_value(value))


def _cell_value(value: object) -> object:
    """A value as a cell: a list as JSON, null as an empty cell."""
    if isinstance(value, list | dict):
        return dumps(value)
    return str(value).lower() if isinstance(value, bool) else value
