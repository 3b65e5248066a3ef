"""Detects how a CSV or TSV file separates, quotes and encodes its cells, from the start of the file.

A dialect fits only if it splits every sampled row into as many cells as the header has. The default dialect (comma,
or tab in .tsv; double quotes; UTF-8) is tried first; for any other, the user is told which and why. If several readings
fit and differ, or if none fits, an InputError says what to change in the file: nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

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
    is_single_quoted_cell,
    split_lines,
    starts_with_quote,
)
from foreknow.io.data_file import DataFile
from foreknow.io.encodings import encoding_of

DELIMITERS: Final = (",", ";", "\t", "|", "~", "^", "\x1f", "\x01")


KNOWN: Final = frozenset({
    "question", "query", "q", "prompt", "input", "answer", "gold", "gold_answer", "target", "completion", "output",
    "response", "label", "answers", "possible_answers", "accepted_answers", "gold_answers", "targets", "golds",
    "subject", "subj", "relation", "rel", "prop", "predicate", "property", "object", "obj", "split", "popularity",
    "facts", "messages", "conversations", "instruction", "context", "system", "history", "text", "id", "category",
})  # fmt: skip
"""Common names of question and answer columns. They break the tie if two delimiters fit."""


_SEP = re.compile(r'"?sep=(.)"?[ \t,;]*[\r\n]*', re.IGNORECASE)


_RULE = re.compile(r"(?=[^|+]*[|+])(?=.*--)[\s|:+-]+")


class _Reading(NamedTuple):
    """The sample parsed with a dialect: rows of cells, the text of each row, and the column names."""

    dialect: Dialect
    rows: list[list[str]]
    texts: list[str]
    names: list[str]


def dialect_of(part: DataFile) -> Dialect:
    """Detect the dialect of a table. Raises InputError if the file is not a table, or can be read in two ways."""
    bom, encoding, encoding_name = encoding_of(part)
    sample, is_complete = _sample(part, len(bom), encoding)
    lines = split_lines(sample)
    if not is_complete and len(lines) > 1:
        lines.pop()  # the last line of the sample may be incomplete
    first = next((line for line in lines if line.strip()), "")
    newline = re.sub(r"[^\r\n]", "", first[-2:]) or "\n"
    base = default_dialect(part.suffix)._replace(newline=newline, encoding=encoding, bom=bom)
    notes = [f"the text is {encoding_name}"] if encoding_name and encoding != "utf-8" else []
    skipped = 0
    delimiters = [base.delimiter, *(d for d in DELIMITERS if d != base.delimiter)]
    if lines and (stated := _SEP.fullmatch(lines[0])):
        skipped, delimiters = 1, [stated.group(1)]
        base = base._replace(delimiter=stated.group(1))
    reading = _best_reading(part, base, lines[skipped:], delimiters, is_complete)
    if reading is None and skipped < len(lines) and lines[skipped].startswith("#"):
        comments = next((n for n, line in enumerate(lines[skipped:]) if not line.startswith("#")), 0)
        reading = _best_reading(part, base, lines[skipped + comments :], delimiters, is_complete)
        if reading is not None:
            skipped += comments
            notes.append(f"{comments} comment lines stand before the header")
    dialect = reading.dialect if reading is not None else _nearest_dialect(base, lines[skipped:], delimiters)
    below = [line for line in lines[skipped:] if line.strip()][1:2]
    if below and _RULE.fullmatch(below[0]):
        raise InputError(
            f"{part.where}:{lines.index(below[0]) + 1}: a rule stands below the header, as in a table of Markdown or "
            "of a database's terminal. Save the rows as CSV."
        )
    if dialect.delimiter != default_dialect(part.suffix).delimiter:
        evidence = (
            f" (all {len(reading.rows) - 1:,} rows looked at have the header's {len(reading.names)})" if reading else ""
        )
        stated_so = ", as the first line says" if skipped and len(delimiters) == 1 else ""
        notes.insert(0, f"{_delimiter_name(dialect.delimiter)} stands between the cells{stated_so}{evidence}")
    notes += _dialect_notes(dialect)
    if reading is not None and dialect.quote is not None:
        around = dialect._replace(all_quoted=True)
        dialect = dialect._replace(all_quoted=reading.texts[0].rstrip("\r\n") == around.line(reading.rows[0]))
    return dialect._replace(preamble="".join(lines[:skipped]), reason=", ".join(notes))


def _dialect_notes(dialect: Dialect) -> list[str]:
    notes = []
    if dialect.quote is None:
        notes.append("no cell is quoted, so quotes belong to the text")
    elif dialect.quote == "'":
        notes.append("cells are quoted with '")
    if dialect.escape:
        notes.append("a backslash protects the character after it")
    if dialect.spaced:
        notes.append("the blank after each delimiter is no part of a cell")
    return notes


def _delimiter_name(delimiter: str) -> str:
    return {"\t": "a tab", ",": "a comma"}.get(delimiter, repr(delimiter))


def _sample(part: DataFile, skipped: int, encoding: str) -> tuple[str, bool]:
    """Return the start of the text, and whether that is all of it. The reader raises decoding errors later."""
    with part.open() as stream:
        stream.read(skipped)
        text = io.TextIOWrapper(stream, encoding=encoding, newline="", errors="replace")
        sample = text.read(SAMPLE)
        is_complete = not text.read(1)
        text.detach()
    return sample, is_complete


def _best_reading(
    part: DataFile, base: Dialect, lines: Sequence[str], delimiters: Sequence[str], is_complete: bool
) -> _Reading | None:
    """Return the reading that fits the sample, or None. Raises InputError if two readings fit equally well."""
    head = "".join(lines[:1])
    fits = [
        reading
        for delimiter in delimiters
        if delimiter in head
        and (reading := _fitting_reading(part, base._replace(delimiter=delimiter), lines, is_complete))
    ]
    if len(fits) < 2:
        return fits[0] if fits else None
    known = [sum(name.lower() in KNOWN for name in reading.names) for reading in fits]
    best = [reading for reading, count in zip(fits, known, strict=True) if count == max(known)]
    if len(best) == 1:
        return best[0]
    first, other = best[0].dialect.delimiter, best[1].dialect.delimiter
    stated = [f"sep={d if d.isprintable() else '<tab>'}" for d in (first, other)]
    raise InputError(
        f"{part.where}: {_delimiter_name(first)} and {_delimiter_name(other)} both part every row into "
        f"equally many cells. Say which is meant with a first line {' or '.join(stated)}."
    )


def _fitting_reading(part: DataFile, base: Dialect, lines: Sequence[str], is_complete: bool) -> _Reading | None:
    """The reading with the delimiter of `base` whose quoting fits the sample; None if there is none."""
    head = "".join(lines[:1])
    if base.delimiter != "\t" and head.count(base.delimiter) == head.count(base.delimiter + " "):
        base = base._replace(spaced=True)
    double = _read_sample(base, lines, is_complete)
    single = next(
        (r for e in (None, "\\") if (r := _read_sample(base._replace(quote="'", escape=e), lines, is_complete))), None
    )
    if single is not None and not any(starts_with_quote(text, base, "'") for text in single.texts):
        single = None  # no cell is quoted with apostrophes
    if double is not None:
        return double if single is None or not _uses_single_quotes(part, double, single) else single
    if single is not None:
        return single
    escaped = _read_sample(base._replace(escape="\\"), lines, is_complete)
    if escaped is not None and any('\\"' in text for text in escaped.texts):
        return escaped
    bare = _read_sample(base._replace(quote=None), lines, is_complete)
    if bare is None:
        bare = _read_sample(base._replace(quote=None, escape="\\"), lines, is_complete)
        if bare is not None and not any(
            re.search(rf"\\[{re.escape(base.delimiter)}\r\n]", text) for text in bare.texts
        ):
            bare = None
    if bare is None or bare.dialect.escape is not None:
        return bare
    # quotes around a whole cell are no text, and a quote that is never closed is a fault: refuse both readings
    marked = [cell for row in bare.rows for cell in row if '"' in cell]
    if any(len(c) > 1 and c[0] == c[-1] == '"' for c in marked) or not any(c.count('"') > 1 for c in marked):
        return None
    return bare


def _uses_single_quotes(part: DataFile, double: _Reading, single: _Reading) -> bool:
    """Whether apostrophes quote cells if both readings fit: they are around every name, or doubled inside cells.

    Raises InputError if an apostrophe is doubled in one cell and single in another.
    """
    if double.rows == single.rows:
        return False
    if all(is_single_quoted_cell(name) for name in double.names):
        return True
    if not any(
        doubles_apostrophes(row, text, double.dialect) for row, text in zip(double.rows, double.texts, strict=True)
    ):
        return False
    for number, row in enumerate(double.rows):
        if any("'" in cell and not is_single_quoted_cell(cell) for cell in row):
            raise InputError(
                f"{part.where}: row {number}: an apostrophe stands alone in a cell, while others are quoted with ' and "
                'double it. Save the file with cells quoted by ".'
            )
    return True


def _read_sample(dialect: Dialect, lines: Sequence[str], is_complete: bool) -> _Reading | None:
    """Parse the sample with a dialect; None if a row's cell count differs from the header's, or a row is incomplete."""
    remaining = iter(lines)
    pending: list[str] = []

    def feed() -> Iterator[str]:
        for line in remaining:
            pending.append(line)
            yield line

    rows: list[list[str]] = []
    texts: list[str] = []
    with field_size_limit(SAMPLE):
        reader = csv.reader(feed(), **dialect.reader_args())
        try:
            for cells in reader:
                text = "".join(pending)
                pending.clear()
                if not is_blank(cells, columns=2):
                    rows.append(cells)
                    texts.append(text)
        except csv.Error:
            if is_complete or next(remaining, None) is not None or not rows:
                return None
    try:
        columns = columns_of(rows[0]) if rows else {}
    except ValueError:
        columns = {name: place for place, name in enumerate(rows[0])}
    if len(columns) < 2 or any(has_unclosed_quote(text, dialect, len(rows[0])) for text in [*texts, "".join(pending)]):
        return None
    for row, text in zip(rows[1:], texts[1:], strict=True):
        if has_wrong_cells(row, columns) or has_ambiguous_escape(row, text, dialect, len(rows[0])):
            return None
    return _Reading(dialect, rows, texts, list(columns))


def _nearest_dialect(base: Dialect, lines: Sequence[str], delimiters: Sequence[str]) -> Dialect:
    """If no dialect fits, choose by the header the one whose errors are reported."""
    head = next((line for line in lines if line.strip()), "")

    def likeness(delimiter: str) -> tuple[int, int]:
        names = [name.strip(" \"'\r\n").lower() for name in head.split(delimiter)]
        return sum(name in KNOWN for name in names) if len(names) > 1 else 0, len(names) > 1

    return base._replace(delimiter=max(delimiters, key=likeness))
