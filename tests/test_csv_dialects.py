"""CSV as it is met: other delimiters, quotes, encodings and line ends are read for certain, or refused."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foreknow.data.dataset import Dataset, read_dataset
from foreknow.errors import InputError
from foreknow.io.csv_dialect import Dialect
from foreknow.io.csv_sniffer import dialect_of
from foreknow.io.readers import read_part
from foreknow.io.sources import source_of, source_of_bytes
from foreknow.io.writers import Change, write_parts

CAPITALS = [["Capital of France?", "Paris"], ["Capital of Peru?", "Lima"], ["Capital of Italy, in short?", "Rome"]]


def cells_of(content: bytes, name: str = "a.csv") -> list[dict[str, str]]:
    part = source_of_bytes(name, content).parts[0]
    return [dict(record) for batch in read_part(part) for record in batch.records]  # type: ignore[arg-type]


def facts_of(tmp_path: Path, content: bytes, name: str = "a.csv", **how: Any) -> Dataset:
    (tmp_path / name).write_bytes(content)
    return read_dataset(tmp_path / name, **how)


def asked(facts: Dataset) -> list[list[str]]:
    return [[question, answers[0]] for question, answers in facts.rows.select("question", "answers").iter_rows()]


def written(rows: list[list[str]], **how: Any) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, **{"lineterminator": "\n", **how}).writerows([["question", "answer"], *rows])
    return out.getvalue().encode()


UTF16 = "the text is UTF-16"
READ = {
    "usual": ("a.csv", written(CAPITALS), ""),
    "all quoted": ("a.csv", written(CAPITALS, quoting=csv.QUOTE_ALL), ""),
    "semicolon": ("a.csv", written(CAPITALS, delimiter=";"), "(all 3 rows looked at have the header's 2)"),
    "tab in .csv": ("a.csv", written(CAPITALS, delimiter="\t"), "a tab stands between the cells"),
    "pipe": ("a.csv", written(CAPITALS, delimiter="|"), "'|' stands between the cells"),
    "tilde": ("a.csv", written(CAPITALS, delimiter="~"), "'~' stands between the cells"),
    "unit separator": ("a.csv", written(CAPITALS, delimiter="\x1f"), r"'\x1f' stands between the cells"),
    "comma in .tsv": ("a.tsv", written(CAPITALS), "a comma stands between the cells"),
    "single quotes": ("a.csv", written(CAPITALS, quotechar="'"), "cells are quoted with '"),
    "single quotes around all": ("a.csv", written(CAPITALS[:2], quotechar="'", quoting=csv.QUOTE_ALL), "quoted with '"),
    "Excel's first line": ("a.csv", b"sep=;\n" + written(CAPITALS, delimiter=";"), "as the first line says"),
    "Excel's first line, odd": ("a.csv", b"sep=~\n" + written(CAPITALS, delimiter="~"), "'~' stands between"),
    "UTF-8 mark": ("a.csv", b"\xef\xbb\xbf" + written(CAPITALS), ""),
    "UTF-16": ("a.csv", written(CAPITALS).decode().encode("utf-16"), UTF16),
    "UTF-16 BE, tabs": ("a.csv", b"\xfe\xff" + written(CAPITALS, delimiter="\t").decode().encode("utf-16-be"), UTF16),
    "UTF-32": ("a.csv", written(CAPITALS).decode().encode("utf-32"), "the text is UTF-32"),
    "CR alone": ("a.csv", written(CAPITALS, lineterminator="\r"), ""),
    "CRLF": ("a.csv", written(CAPITALS, lineterminator="\r\n"), ""),
    "blank lines": ("a.csv", written(CAPITALS).replace(b"\n", b"\n\n  \n"), ""),
    "comments": ("a.csv", b"# exported today\n# by hand\n" + written(CAPITALS), "2 comment lines stand before"),
    "blanks after commas": ("a.csv", b'question, answer\nCapital of France?, Paris\nCapital of Peru?, Lima\n'
                            b'"Capital of Italy, in short?", "Rome"\n', "the blank after each delimiter"),
    "unnamed last columns": ("a.csv", written([[*row, "", ""] for row in CAPITALS]).replace(b"answer", b"answer,,"), ""),  # noqa: E501
    "columns without names or cells": ("a.csv", b",question,,answer\n" + b"".join(
        f',"{q}",,{a}\n'.encode() for q, a in CAPITALS), ""),
    "empty cells at the end": ("a.csv", written([[*row, "", ""] for row in CAPITALS]), ""),
    "blanks around names": ("a.csv", written(CAPITALS).replace(b"question,answer", b" question ,answer "), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_a_dialect_is_read_and_its_reason_told(tmp_path: Path, kind: str) -> None:
    name, content, reason = READ[kind]
    facts = facts_of(tmp_path, content, name)
    expected = CAPITALS[:2] if kind == "single quotes around all" else CAPITALS
    assert asked(facts) == expected
    assert facts.columns == ("question", "answer")
    assert reason in facts.reason
    if not reason:
        assert facts.reason == "layout question: question and answer, from the columns question, answer"


@pytest.mark.parametrize("kind", READ)
def test_an_annotated_table_keeps_its_bytes(tmp_path: Path, kind: str) -> None:
    """Each row's own text stands unchanged before the new cells, in the same encoding and line ends."""
    name, content, _ = READ[kind]
    facts = facts_of(tmp_path, content, name)
    said, flags = 'a "b", c;\td|e\'s', [["x", "y"]] * facts.total
    labels = pl.DataFrame(
        {"row": range(facts.total), "category": "Unknown", "p": 0.5, "model_answer": said, "flags": flags}
    )
    out = tmp_path / f"out{Path(name).suffix}"
    facts.annotate(labels, out)
    again = read_dataset(out)
    assert asked(again) == asked(facts)
    more = again.extra(["category", "p", "model_answer", "flags"])
    assert more["category"].to_list() == ["Unknown"] * facts.total
    assert more["p"].to_list() == ["0.5"] * facts.total
    assert more["model_answer"].to_list() == labels["model_answer"].to_list()
    assert more["flags"].to_list() == ['["x", "y"]'] * facts.total
    dialect = dialect_of(source_of(str(tmp_path / name)).parts[0])
    kept = dialect_of(source_of(str(out)).parts[0])
    assert dialect[:4] + dialect[5:9] == kept[:4] + kept[5:9]
    assert out.read_bytes().startswith(dialect.bom + dialect.preamble.encode(dialect.encoding))
    if kind not in ("empty cells at the end", "blank lines"):
        end = dialect.newline.encode(dialect.encoding)
        before = [line for line in content.removeprefix(dialect.bom).split(end) if line]
        after = [line for line in out.read_bytes().removeprefix(dialect.bom).split(end) if line]
        assert len(before) == len(after)
        assert all(new.startswith(old) for old, new in zip(before, after, strict=True))


REFUSED = {
    "short row": (b"question,answer\na,b\nc\n", r"a\.csv:3: found 1 cells, expected 2 as in the header"),
    "long row": (b"question,answer\na,b\nc,d,e\n", r"a\.csv:3: found 3 cells, expected 2"),
    "row names": (b"question,answer\n1,a,b\n2,c,d\n", r"a\.csv:2: found 3 .* begins with its number, name that column"),
    "value without a name": (b"question,answer,\na,b,c\n", r"a\.csv:2: found 'c' in a column without a name"),
    "columns without names": (b",question,,answer\n,a,x,b\n", r"a\.csv:2: found 'x' in a column without a name"),
    "twice": (b"answer,question,answer\n1,a,b\n", r"the column 'answer' stands in the header twice"),
    "twice but for blanks": (b"answer,question,answer \n1,a,b\n", r"the column 'answer' stands in the header twice"),
    "comment between rows": (b"question,answer\na,b\n# c\n", r"a\.csv:3: a comment stands between the rows"),
    "quote that never closes": (b'question,answer\n"a,b\nc,d\n', r"a\.csv:2: broken CSV row: unexpected end of data"),
    "quote over rows": (b'question,answer\n"To be,Hamlet\na,b\nc,d\n5",e\nf,g\n', r"2: a quote opens here and closes"),
    "two delimiters": (b"a,b;c\n1,2;3\n4,5;6\n", r"a comma and ';' both part every row .* first line sep=, or sep=;"),
    "apostrophes both ways": (b"question,answer\n'It''s what?',That's it\n", r"row 1: an apostrophe stands alone"),
    "lone backslash": (b'question,answer\n"a \\"b\\", c",d\n"\\frac{\\"a\\"}{b}",x\n', r"csv:3: a backslash stands"),
    "backslash and cells too many": (b"question,answer\nC:\\,b,,\nc,d,,\n", r"csv:2: a backslash .* ','.* 4 cells"),
    "MySQL's null": (b'question,answer\n"say \\"hi\\", then",b\nc,\\N\n', r"csv:3: a backslash stands before"),
    "Latin-1": ("question,answer\nWhere?,Orléans, là\n".encode("latin-1"),
        r"a\.csv:2: not UTF-8: found byte 0xe9 .*'Orléans' if it is Windows-1252: iconv -f WINDOWS-1252 -t UTF-8"),
    "UTF-16 without a mark": ("question,answer\na,b\n".encode("utf-16-le"), r"UTF-16 without .* iconv -f UTF-16LE"),

    "Markdown": (b"question | answer\n--- | ---\na | b\n", r"a\.csv:2: a rule stands below the header"),
    "psql": (b" question | answer \n----------+--------\n a? | b\n", r"a\.csv:2: a rule stands below the header"),
    "no header": (b"Capital of France?,Paris\nCapital of Peru?,Lima\n", r"These look like a row and not like names"),
}  # fmt: skip


def test_a_cell_of_many_dashes_is_no_rule(tmp_path: Path) -> None:
    dashes = "-" * 20_000
    assert facts_of(tmp_path, f"question|answer\n{dashes}?|b\n".encode()).rows["question"].to_list() == [f"{dashes}?"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_for_certain_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    with pytest.raises(InputError, match=message) as caught:
        facts_of(tmp_path, content)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'question\tanswer\n"Hamlet" was by?\tShakespeare\nb\t"x" or y\n', ['"Hamlet" was by?', "b"]),
        (b'question\tanswer\n"Second\tb\nThird "sentence"\tc\n', ['"Second', 'Third "sentence"']),
        (b'question,answer\n"say \\"hi\\", then",b\n"c",d\n', ['say "hi", then', "c"]),
        (b"question\tanswer\nWhere\\\tthen?\tb\nc\\\\d\te\n", ["Where\tthen?", "c\\d"]),
        (b"question,answer,note\nWhere\\, then?,b,\n", ["Where, then?"]),
        (b"question,answer,note\nC:\\,b,\n", ["C:\\"]),
        (b'question,answer\n"one ""two"", three",b\n', ['one "two", three']),
        (b'question,answer\n"two\nlines",b\n', ["two\nlines"]),
        (b'question,answer\n"two, and\r\nlines",b\n', ["two, and\r\nlines"]),
        (b'question,answer\nWhat is "X"?,Paris\n', ['What is "X"?']),
        (b"question,answer\n'Hamlet',Shakespeare\nWhat's that?,b\n", ["'Hamlet'", "What's that?"]),
        (b"question,answer\n'It''s what?',b\nc,d\n", ["It's what?", "c"]),
        (b"question,answer\n'It\\'s what, then?',b\n", ["It's what, then?"]),
        (b"question,answer\nC:\\temp,b\n", ["C:\\temp"]),
        (b'question,answer\na\x00b,c\n', ["a\x00b"]),
        (b",question,answer\n0,a,b\n", ["a"]),
        (b"#question,question,answer\n0,a,b\n", ["a"]),
        (b"question\nonly, this\n", None),
    ],
)  # fmt: skip
def test_quotes_and_escapes(content: bytes, rows: list[str] | None) -> None:
    if rows is None:
        with pytest.raises(InputError, match="found 2 cells, expected 1"):
            cells_of(content)
        return
    assert [record["question"] for record in cells_of(content)] == rows


def test_one_column_is_a_table() -> None:
    assert cells_of(b"text\nhello\nthere you are\n") == [{"text": "hello"}, {"text": "there you are"}]
    assert cells_of(b"question;answer\n") == []
    assert cells_of(b"") == []


def test_a_dialect_is_found_far_before_the_end_and_held_to(tmp_path: Path) -> None:
    rows = [[f"Capital of land {n}?", "x" * 40] for n in range(20_000)]
    content = written(rows, delimiter=";")
    assert len(cells_of(content)) == 20_000
    with pytest.raises(InputError, match=r"a\.csv:20002: found 1 cells, expected 2"):
        cells_of(content + b"a,b\n")
    with pytest.raises(InputError, match=r"a\.csv:20002: a cell is quoted with '"):
        cells_of(written(rows) + b"'It''s what?',b\n")


CELL = st.text(alphabet=st.sampled_from(list("ab;,|\t'\"\\#= \n\ré東م\u2028-0")), max_size=8)
DIALECTS = st.builds(
    Dialect,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quote=st.sampled_from(['"', "'"]),
    escape=st.sampled_from([None, "\\"]),
    all_quoted=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.just("utf-8"),
)


@settings(max_examples=400)
@given(DIALECTS, st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4))
def test_what_a_dialect_writes_it_reads(dialect: Dialect, rows: list[tuple[str, str, str]]) -> None:
    lines = [dialect.line(["question", "answer", "note"]), *(dialect.line(row) for row in rows)]
    text = dialect.newline.join(lines)
    found = list(csv.reader(io.StringIO(text, newline=""), **dialect.reader_args()))
    assert [row for row in found if row][1:] == [list(row) for row in rows]


@settings(max_examples=400)
@given(
    DIALECTS,
    st.lists(st.tuples(CELL, CELL), max_size=4),
    st.lists(CELL, min_size=9, max_size=9),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_read_write_read_gives_the_same_cells(
    tmp_path_factory: pytest.TempPathFactory,
    dialect: Dialect,
    some: list[tuple[str, str]],
    labels: list[str],
    encoding: str,
) -> None:
    """A file that shows how it is quoted is read as it was written, or refused; and so is what is written from it."""
    rows = [(f"a{dialect.delimiter}'' b", f"{dialect.quote}c{dialect.quote}{dialect.delimiter}"), *some]
    lines = [dialect.line(["question", "answer"]), *(dialect.line(row) for row in rows)]
    content = (dialect.newline.join(lines) + dialect.newline).encode(encoding)
    source = source_of_bytes("a.csv", content)
    try:
        read = [tuple(record.values()) for record in cells_of(content)]
    except InputError:
        assume(False)
    assert read == rows
    out = tmp_path_factory.getbasetemp() / "again.csv"
    added = pl.DataFrame({"model_answer": [f"x{label}" for label in labels[: len(rows)]], "p": 0.25})
    # not the row that shows how the file is quoted
    swapped = {row: {"question": rows[row][0], "answer": labels[8]} for row in range(1, len(rows))}
    for edits in ({}, swapped):
        write_parts(source, Change(added, None, lambda _, row, edits=edits: edits.get(row)), out)  # type: ignore[misc]
        again = cells_of(out.read_bytes())
        expected = [(*row, f"x{label}", "0.25") for row, label in zip(rows, labels, strict=False)]
        expected = [(cells[0], labels[8], *cells[2:]) if row in edits else cells for row, cells in enumerate(expected)]
        assert [tuple(record.values()) for record in again] == expected


@settings(max_examples=200)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_a_csv_writer_writes_is_read_right(rows: list[tuple[str, str]], every: bool, newline: str) -> None:
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    csv.writer(out, quoting=quoting, lineterminator="\r\n").writerows([("question", "answer"), *rows])
    with contextlib.suppress(InputError):
        read = [tuple(record.values()) for record in cells_of(out.getvalue().replace("\r\n", newline).encode())]
        assert read == [tuple(cell.replace("\r\n", newline) for cell in row) for row in rows]


def test_a_mix_of_tables_stands_in_the_first_ones_dialect(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(written(CAPITALS, delimiter=";", lineterminator="\r\n"))
    (tmp_path / "in" / "b.tsv").write_bytes(b"answer\tquestion\nBern\tCapital of Switzerland; now?\n")
    facts = read_dataset(tmp_path / "in")
    kept = pl.DataFrame({"row": [1, 3]})
    facts.write(kept, tmp_path / "out.csv", {1: "I don't know; sorry."})
    assert (tmp_path / "out.csv").read_bytes() == (
        b'question;answer\r\nCapital of Peru?;"I don\'t know; sorry."\r\n"Capital of Switzerland; now?";Bern\r\n'
    )
    facts.write(kept, tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_bytes() == (
        b"question\tanswer\r\nCapital of Peru?\tLima\r\nCapital of Switzerland; now?\tBern\r\n"
    )
    (tmp_path / "in" / "b.tsv").write_bytes(b"answer\tquery\nBern\tCapital of Switzerland; now?\n")
    with pytest.raises(
        InputError, match="the columns answer, query are not those of the files before: question, answer"
    ):
        read_dataset(tmp_path / "in").write(kept, tmp_path / "out.csv")


def test_labels_beside_unquoted_cells_have_blanks_for_what_cannot_stand_there(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, b'question\tanswer\n"Hamlet" was by?\tShakespeare\n')
    facts.annotate(pl.DataFrame({"row": [0], "model_answer": ["a\tb\rc"]}), tmp_path / "out.csv")
    shown = b'question\tanswer\tmodel_answer\n"Hamlet" was by?\tShakespeare\ta b c\n'
    assert (tmp_path / "out.csv").read_bytes() == shown


@pytest.mark.parametrize(
    "content",
    [
        b'question\tanswer\n"Hamlet" was by?\tShakespeare\n"unclosed\tb\n',
        b"question,answer\n'It''s what?',x\n'Hamlet',b\n",
        b'question,answer\n"say \\"a\\", b?",c\n"C:\\\\temp",d\n',
    ],
)
def test_some_rows_of_a_table_with_unusual_quotes_are_quoted_as_usual(tmp_path: Path, content: bytes) -> None:
    """The rows alone would not show how they are quoted."""
    facts = facts_of(tmp_path, content)
    facts.write(pl.DataFrame({"row": [1]}), tmp_path / "out.csv", {1: "a\tb, c"})
    assert asked(read_dataset(tmp_path / "out.csv")) == [[asked(facts)[1][0], "a\tb, c"]]
    facts.write(pl.DataFrame({"row": [1]}), tmp_path / "out.csv")
    assert asked(read_dataset(tmp_path / "out.csv")) == [asked(facts)[1]]


UNQUOTED = st.text(alphabet=st.sampled_from(list("ab;,|\t\\ ")), max_size=6)


@settings(max_examples=300)
@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.lists(st.tuples(UNQUOTED, UNQUOTED, UNQUOTED), min_size=1, max_size=3),
    st.lists(CELL | st.none(), min_size=4, max_size=4),
)
def test_an_unquoted_table_is_read_as_before_once_columns_are_added(
    tmp_path_factory: pytest.TempPathFactory,
    delimiter: str,
    rows: list[tuple[str, str, str]],
    labels: list[str | None],
) -> None:
    """Empty cells at the end of a row, such as those of a row without labels, do not hide how the table is written."""
    rows = [*rows, (f"a{delimiter}b", "c", "")]
    out = io.StringIO(newline="")
    writer = csv.writer(
        out, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None, escapechar="\\", lineterminator="\n"
    )
    writer.writerows([("question", "answer", "note"), *rows])
    content = out.getvalue().encode()
    try:
        read = [tuple(record.values()) for record in cells_of(content)]
    except InputError:
        assume(False)
    assert read == rows
    path = tmp_path_factory.getbasetemp() / "again.csv"
    added = pl.DataFrame({"category": labels[: len(rows)], "p": [0.5] + [None] * (len(rows) - 1)}, strict=False)
    write_parts(source_of_bytes("a.csv", content), Change(added.cast({"category": pl.String})), path)
    again = [tuple(record.values()) for record in cells_of(path.read_bytes())]
    expected = [(*row, labels[n] or "", "" if n else "0.5") for n, row in enumerate(rows)]
    assert again == expected


def annotated_as(content: bytes, tmp_path: Path, said: list[str | None]) -> bytes:
    out = tmp_path / "out.csv"
    write_parts(source_of_bytes("a.csv", content), Change(pl.DataFrame({"model_answer": said})), out)
    return out.read_bytes()


def test_a_table_that_would_be_read_otherwise_with_columns_added_is_written_plainly(tmp_path: Path) -> None:
    """An answer in quotes would take the quotes of the cells before it for marks around cells."""
    content = b'question\tanswer\n"Hamlet" was by?\tShakespeare\n"unclosed\tb\n'
    assert annotated_as(content, tmp_path, ["a", None]).startswith(content.splitlines()[0])
    assert annotated_as(content, tmp_path, ["a", '"b"']) == (
        b'question\tanswer\tmodel_answer\n"""Hamlet"" was by?"\tShakespeare\ta\n"""unclosed"\tb\t"""b"""\n'
    )
