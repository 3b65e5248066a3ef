"""The dataset: the rows of an input of any layout in one frame, and writing labels back to that input.

`read_dataset` opens the source (`sources.py`) and streams its records (`row_reader.py`) into the frame that every later
stage works on (`schema.ROWS`). `Dataset.annotate` streams the input again and writes it back with labels beside its own
columns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from foreknow.data.chat.turn_labels import by_record, free_names, values_of, with_values
from foreknow.data.layouts.edits import with_answers, with_spans, without_last_facts
from foreknow.data.layouts.layout import Layout
from foreknow.data.layouts.relation_templates import check_templates
from foreknow.data.layouts.rows import TURNS
from foreknow.data.row_accounting import THOUGHT, account, left_out
from foreknow.data.row_reader import RowReader, UnusableRows, batches_of
from foreknow.data.schema import ROWS, USABLE, digests, flags_of, pool, sample_rows
from foreknow.errors import InputError
from foreknow.io.batches import Record
from foreknow.io.csv_escape import number_of
from foreknow.io.data_file import DataFile
from foreknow.io.quoting import quoted
from foreknow.io.sources import Source, source_of
from foreknow.io.writers import Change, cell_text, write_joined, write_parts

CANDIDATES = 1024
"""Of each group so many rows are kept as possible exemplars where not all rows are."""


@dataclass(frozen=True)
class Dataset:
    """The rows of an input, and all that is needed to write it back.

    `rows` is the whole input, or with a limit the rows `audited` (by number) and possible exemplars.
    `total` counts all rows of the input; `digest` is a hash of their content, the same for every layout. `places` has
    the record and the turn of every row. `left_out`: how many of the `total` rows cannot be used, by reason.
    `thoughts`: the rows whose answers had thoughts before them.
    """

    rows: pl.DataFrame
    audited: pl.Series
    total: int
    digest: str
    layouts: Mapping[str, Layout]
    reason: str
    source: Source
    columns: tuple[str, ...]
    places: pl.DataFrame
    left_out: Mapping[str, int]
    thoughts: int

    @property
    def records(self) -> int:
        """How many records the input has; each has at least one row."""
        return int(self.places["record"].item(-1)) + 1 if self.places.height else 0

    @property
    def row_account(self) -> str:
        """One line of row counts: rows in = rows read + rows left out by reason."""
        return account(self.records, self.total, self.left_out, self.thoughts)

    @property
    def first_row(self) -> str:
        """The first usable row as it is read, cut, so that a wrong column is seen."""
        first = self.rows.lazy().filter(USABLE).sort("row").select("question", "answers").first()
        question, answers = first.collect().row(0)
        more = f" (or {len(answers) - 1} more)" if len(answers) > 1 else ""
        return f"first row: Q {quoted(question, 100)} -> A {quoted(answers[0], 60)}{more}"

    @property
    def name(self) -> str:
        """The input's name in reports."""
        return self.source.name

    @property
    def layout(self) -> str:
        """The name of the layout."""
        return ", ".join(dict.fromkeys(layout.name for layout in self.layouts.values()))

    @property
    def suffix(self) -> str:
        """The suffix of the annotated output, such as ".jsonl.gz"; nothing for a folder."""
        return self.source.suffix

    def annotate(self, labels: pl.DataFrame, path: Path) -> None:
        """Write the input to `path` in its own form (file, folder, zip), with `labels` beside its columns.

        `labels` has `row` (each at most once) and the new columns; a row without a label gets nulls. Every
        original row is kept, in order, its fields untouched; JSON objects keep their very text. A label
        whose name the input already has is written as `foreknow_<name>`, so nothing of the user's is lost.
        """
        write_parts(self.source, Change(self._added_columns(labels)), path)

    def write(
        self,
        labels: pl.DataFrame,
        path: Path,
        answers: Mapping[int, str] | None = None,
        name: str | None = None,
        values: Mapping[int, Mapping[str, object]] | None = None,
        spans: Mapping[int, list[object]] | None = None,
    ) -> None:
        """Write only the rows of `labels` into one file, in input order; otherwise as `annotate`.

        A record is written once. Where some of its usable rows are not among `labels`, it ends with the last that
        is, and the answers that are not are marked so that trainers pass them over (`loss_marks`). `answers`: by row
        number, an answer that takes the place of the row's own. `name`: what the file will be called, if not as
        `path`; its suffix must be of the input's format. What only the names of several files tell (relation, split)
        becomes columns. `values`: by row number, values that take the place of those in the file's columns. `spans`: by
        row number, entries that take the place of those in the column of fact spans, for rows whose answer is replaced.
        """
        row_numbers = labels["row"]
        chosen = self.places[row_numbers.to_list()].with_columns(row=row_numbers)
        records = pl.Series(range(self.records), dtype=pl.Int64).is_in(chosen["record"].implode())
        turns = dict(chosen.group_by("record").agg("turn").iter_rows())
        replaced: dict[int, dict[int | None, str]] = {}
        for row, record, turn in chosen.select("row", "record", "turn").iter_rows():
            if answers and row in answers:
                replaced.setdefault(record, {})[turn] = answers[row]
        spans_of_turns: dict[int, dict[int | None, list[object]]] = {}
        values_of_turns: dict[int, dict[int | None, Mapping[str, object]]] = {}
        for row, record, turn in chosen.select("row", "record", "turn").iter_rows():
            if spans and row in spans:
                spans_of_turns.setdefault(record, {})[turn] = spans[row]
            if values and row in values:
                values_of_turns.setdefault(record, {})[turn] = values[row]
        in_part = self.in_part(row_numbers)
        cut = self.places.filter(pl.col("record").is_in(in_part))
        ends = dict(cut.group_by("record").agg(pl.col("turn").last()).iter_rows())
        last_turns = dict(self.places.group_by("record").agg(pl.col("turn").last()).iter_rows()) if spans else {}
        firsts = list(_first_rows(self.source.parts, self._counts()))
        counted = any(layout.choices and layout.choices.kind == "index1" for layout in self.layouts.values())

        def edit(record: Record, number: int) -> Record | None:
            if number not in replaced and number not in values_of_turns and number not in ends and not counted:
                return None
            for turn, new in values_of_turns.get(number, {}).items():
                record = with_values(record, turn, new)
            name, _ = firsts[bisect_right(firsts, number, key=lambda part: part[1]) - 1]
            layout, own = self.layouts[name], turns[number] if number in ends else None
            if own is not None and ends[number] not in own:
                record = without_last_facts(layout, record)
            record = with_answers(layout, record, replaced.get(number, {}), own)
            for turn, entries in spans_of_turns.get(number, {}).items():
                is_last = turn == last_turns[number]
                record = with_spans(layout, record, entries, turn, replaced[number][turn], is_last=is_last)
            return record

        name_columns = [n for n in ("relation", "split") if any(getattr(layout, n) for layout in self.layouts.values())]
        name_columns += ["subject"] if "relation" in name_columns else []
        from_names = self.rows.select("record", *name_columns).unique("record", keep="first", maintain_order=True)
        write_joined(
            self.source.parts,
            Change(self._added_columns(labels, from_names if name_columns else None), records, edit),
            path,
            name or path.name,
        )

    def in_part(self, row_numbers: pl.Series) -> list[int]:
        """The records of which some usable rows are among `row_numbers` and some are not."""
        usable = self.rows.filter(USABLE).select("record", is_selected=pl.col("row").is_in(row_numbers.implode()))
        by_record = usable.group_by("record").agg(any=pl.col("is_selected").any(), all=pl.col("is_selected").all())
        return by_record.filter(pl.col("any") & ~pl.col("all"))["record"].sort().to_list()

    def extra(self, names: Sequence[str], *, last: Sequence[str] = ()) -> pl.DataFrame:
        """Columns of the input that are not ours: row, then `names`. The input is read again.

        A column whose every value is a number is Float64, any other is of texts, with what is no text as JSON.
        A value that a record lacks is null. In lists beside `labelled_turns`, each row has its own value; any other
        value holds for every row of its record, or for its last one in the columns `last`.
        """
        values: dict[str, list[object]] = {name: [] for name in names}
        turns = self.places.group_by("record", maintain_order=True).agg("turn")["turn"].to_list()
        for _, batch, first in batches_of(self.source):
            for number, record in enumerate(batch.records, first):
                for name in names:
                    values[name] += values_of(record, name, turns[number], name in last)
        rows = pl.Series(range(self.total), dtype=pl.Int64)
        return pl.DataFrame(
            {"row": rows, **{name: _typed_column(column_values) for name, column_values in values.items()}}
        )

    def _added_columns(self, labels: pl.DataFrame, named: pl.DataFrame | None = None) -> pl.DataFrame:
        """The columns to write beside the input's: a line for every record. `named`: more of them, by record."""
        added = by_record(labels, self.places)
        names = free_names(added.columns, self.columns)
        if TURNS in self.columns and all(name == new for name, new in names.items() if name != TURNS):
            added = added.drop(TURNS, strict=False)  # the lists that are there speak of the same turns
        if named is not None:
            records = pl.DataFrame({"record": pl.Series(range(self.records), dtype=pl.Int64)})
            more = records.join(named, on="record", how="left", maintain_order="left").drop("record")
            names |= free_names(more.columns, self.columns)
            added = added.hstack(more)
        return added.rename({name: new for name, new in names.items() if name in added.columns})

    def _counts(self) -> dict[str, int]:
        counts = dict.fromkeys((part.name for part in self.source.parts), 0)
        if len(counts) > 1:
            for part, batch, _ in batches_of(self.source):
                counts[part.name] += len(batch.records)
        return counts


def read_dataset(
    data: str | Path | Source,
    *,
    columns: Mapping[str, str] | None = None,
    layout: str = "auto",
    templates: Mapping[str, str] | None = None,
    group_by: str | None = None,
    strict_rows: bool = False,
    turns: str = "all",
    null_words: str = "leave-out",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read an input (`sources.py` lists what it may be) into one frame.

    `columns` maps our names to the file's (`{"question": "q"}`), `layout` names one of `registry.LAYOUTS`,
    `templates` gives relations their question texts, `group_by` names the column that exemplars are drawn
    within, `turns` says whether `all` answers of a chat are rows or only its `last`. With `limit` only the rows
    drawn (`schema.sample_rows`, by `seed`) and possible exemplars are held in memory, and a few numbers for each of the
    others; the input is read twice. A readable row that cannot be used is kept and flagged with the reason; one that
    lacks a question or an answer is an InputError with `strict_rows`, as is an input in which no row is usable.
    """
    source = data if isinstance(data, Source) else source_of(str(data))
    if templates is not None:
        check_templates(templates, "templates")
    reader = RowReader(source, dict(columns or {}), layout, dict(templates or {}), group_by, turns, null_words)
    frames, digest_frames, places, faults = [], [], [pl.DataFrame(schema=_PLACES)], UnusableRows(strict_rows)
    for rows, batch, part, first in reader.frames():
        faults.note(rows, batch, part, first, reader.layouts[part.name])
        digest_frames.append(digests(rows, seed))
        places.append(rows.select(*_PLACES))
        if limit is None:
            frames.append(rows)
    all_digests = pl.concat(digest_frames) if digest_frames else digests(pl.DataFrame(schema=ROWS), seed)
    all_digests = all_digests.with_columns(flags=flags_of(all_digests))
    left_out_counts = left_out(all_digests)
    faults.check(source, all_digests.height, left_out_counts)
    audited = all_digests["row"] if limit is None or limit >= all_digests.height else sample_rows(all_digests, limit)
    if limit is not None:
        keeps_all = limit >= all_digests.height
        loaded_rows = (
            all_digests["row"]
            if keeps_all
            else pl.concat([audited, pool(all_digests, audited, CANDIDATES)]).unique().sort()
        )
        frames = [reader.read_rows(pl.concat(places), set(loaded_rows))]
        keys = digests(frames[0], seed).select("row", "key")
        if not keys.equals(all_digests.filter(pl.col("row").is_in(loaded_rows.implode())).select("row", "key")):
            raise InputError(f"{source.name}: the file changed while it was read. Run the same command again.")
    flags = all_digests.select("row", "flags")
    frame = pl.concat(frames).drop("flags").join(flags, on="row", how="left", maintain_order="left").select(*ROWS)
    return Dataset(
        reader.with_subjects(frame),
        audited,
        all_digests.height,
        reader.digest,
        reader.layouts,
        reader.reason,
        source,
        tuple(reader.columns),
        pl.concat(places),
        left_out_counts,
        int(all_digests["flags"].list.contains(THOUGHT).sum()),
    )


_PLACES = {name: ROWS[name] for name in ("record", "turn")}


def _typed_column(values: Sequence[object]) -> pl.Series:
    """Values of any kind as a column: of numbers where all are numbers, else of texts."""
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pl.Series([None if value is None else number_of(value) for value in values], dtype=pl.Float64)
    return pl.Series([None if value is None else cell_text(value) for value in values], dtype=pl.String)


def _first_rows(parts: Sequence[DataFile], counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(part, number of its first row) for parts that have rows."""
    first = 0
    for part in parts:
        if counts[part.name] or len(parts) == 1:
            yield part.name, first
        first += counts[part.name]
