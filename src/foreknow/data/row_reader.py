"""Read the records of a source into frames of rows, part by part, each part by its own layout.

`RowReader` finds the layouts (`detection.py`) in its first pass. `UnusableRows` counts the rows that lack a question or
an answer, and says what the first of them lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from foreknow.data.chat.exchanges import LEFT_OUT
from foreknow.data.layouts.detection import detect
from foreknow.data.layouts.layout import GOLDS, Layout, check_column
from foreknow.data.layouts.relation_templates import derive_template, subject_of
from foreknow.data.layouts.rows import Extracted, extract
from foreknow.data.row_accounting import THOUGHT, WHAT_TO_DO
from foreknow.data.schema import HAS_REASON, ROWS, USABLE
from foreknow.data.values import holds_floats
from foreknow.errors import InputError
from foreknow.io.batches import Record, RecordBatch, where
from foreknow.io.data_file import DataFile
from foreknow.io.quoting import quoted
from foreknow.io.readers import read_part
from foreknow.io.sources import Source
from foreknow.io.writers import cell_text


@dataclass
class RowReader:
    """One pass, or several, over a source: its records as frames. Layouts are found in the first."""

    source: Source
    mapped: Mapping[str, str]
    named: str
    templates: Mapping[str, str]
    group_by: str | None
    turns: str = "all"
    null_words: str = "leave-out"
    layouts: dict[str, Layout] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    digest: str = ""

    def frames(self) -> Iterator[tuple[pl.DataFrame, RecordBatch, DataFile, int]]:
        """(rows, batch, part, number of the batch's first record). Sets `layouts`, `columns` and `digest`."""
        total = 0
        content = hashlib.sha256()
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        for part, batch, first in batches_of(self.source):
            self.columns.update(dict.fromkeys(key for record in batch.records for key in record))
            layout = self.layouts.get(part.name) or self._find_layout(part, batch)
            extracted = self._extract(layout, batch, part, range(len(batch.records)))
            rows = _frame(
                extracted, self._groups(extracted, batch.records), range(total, total + len(extracted)), first
            )
            total += len(extracted)
            for (_, item), group in zip(extracted, rows["group"], strict=True):
                content.update(encode([*item, group]).encode())
            yield rows, batch, part, first
        self.digest = "sha256:" + content.hexdigest()

    def read_rows(self, places: pl.DataFrame, numbers: set[int]) -> pl.DataFrame:
        """Only the rows of these numbers, once `frames` has found the layouts. `places`: every row's record."""
        frames = [pl.DataFrame(schema=ROWS)]
        rows = places.with_row_index("row").group_by("record", maintain_order=True).agg(pl.col("row").first(), pl.len())
        firsts, counts = rows["row"].to_list(), rows["len"].to_list()
        for part, batch, first in batches_of(self.source):
            if first + len(batch.records) > len(firsts):
                break  # the file has grown since
            batch_places = [
                n
                for n in range(len(batch.records))
                if not numbers.isdisjoint(range(firsts[first + n], firsts[first + n] + counts[first + n]))
            ]
            if batch_places and part.name in self.layouts:
                extracted = self._extract(self.layouts[part.name], batch, part, batch_places)
                record_numbers = [first + n for n in dict.fromkeys(n for n, _ in extracted)]
                row_numbers = [firsts[n] + k for n in record_numbers for k in range(counts[n])]
                if len(row_numbers) == len(extracted):
                    frame = _frame(extracted, self._groups(extracted, batch.records), row_numbers, first)
                    frames.append(frame.filter(pl.col("row").is_in(list(numbers))))
        return pl.concat(frames)

    @property
    def reason(self) -> str:
        """The layout's reason, for the user to read."""
        reasons = list(dict.fromkeys(layout.reason for layout in self.layouts.values()))
        count = len(self.source.parts)
        files = f" ({count} file{'s' if count > 1 else ''}" if count > 1 or self.source.left_out else ""
        left_out_text = f", {self.source.left_out} left out that hold no data" if self.source.left_out else ""
        text = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        if self._is_entityquestions_tree:
            text += "; relation and split from the files' names"
        elif any(layout.split for layout in self.layouts.values()):
            text += "; split from the files' names"
        notes = "".join(f"; {note}" for note in self.source.notes)
        return text + notes + (f"{files}{left_out_text})" if files else "")

    def with_subjects(self, rows: pl.DataFrame) -> pl.DataFrame:
        """In the ENTITYQUESTIONS tree every relation has one template: its subjects are read off the questions."""
        if not self._is_entityquestions_tree:
            return rows
        parts = []
        for (relation,), part in rows.group_by("relation", maintain_order=True):
            questions = part["question"].drop_nulls()
            template = self.templates.get(str(relation)) or derive_template(questions)
            subjects = [template and q and subject_of(template, q) for q in part["question"]]
            parts.append(part.with_columns(subject=pl.Series(subjects, dtype=pl.String)))
        return pl.concat(parts).sort("row")

    @property
    def _is_entityquestions_tree(self) -> bool:
        return bool(self.layouts) and all(layout.relation for layout in self.layouts.values())

    def _find_layout(self, part: DataFile, batch: RecordBatch) -> Layout:
        columns = list(dict.fromkeys(key for record in batch.records for key in record))
        layout = detect(columns, self.mapped, part.where, batch.records, self.named)
        if batch.note:
            layout = replace(layout, reason=f"{layout.reason}; {batch.note}")
        if self.group_by is not None:
            check_column(columns, self.group_by, f"--group-by {self.group_by}", part.where)
        columns_of_golds = {layout.columns[name] for name in GOLDS if name in layout.columns}
        if any(holds_floats(record.get(name) for record in batch.records) for name in columns_of_golds):
            reason = f"{layout.reason}; answers are numbers such as 1912.0, read as 1912"
            layout = replace(layout, of_floats=True, reason=reason)
        if batch.table is not None and batch.table.dialect.reason:
            layout = replace(layout, reason=f"{layout.reason}; {batch.table.dialect.reason}")
        if len(self.source.parts) > 1:
            layout = replace(layout, split=part.split, relation=part.relation)
        self.layouts[part.name] = layout
        return layout

    def _extract(
        self, layout: Layout, batch: RecordBatch, part: DataFile, places: Sequence[int]
    ) -> list[tuple[int, Extracted]]:
        """The rows of these records of a batch, each with its record's place in the batch."""
        extracted = []
        for at in places:
            try:
                extracted += [
                    (at, row) for row in extract(layout, batch.records[at], self.templates, self.turns, self.null_words)
                ]
            except InputError as error:
                raise InputError(f"{where(part, batch, at)}: {error}") from error
        return extracted

    def _groups(self, extracted: Sequence[tuple[int, Extracted]], records: Sequence[Record]) -> list[str]:
        """The group of every row: the named column, else the relation, else "all"."""
        if self.group_by is None:
            return [item.relation or "all" for _, item in extracted]
        values = (records[at].get(self.group_by) for at, _ in extracted)
        return ["all" if value is None else cell_text(value).strip() or "all" for value in values]


@dataclass
class UnusableRows:
    """The rows that lack a question or an answer, and the first of them in words."""

    strict: bool
    count: int = 0
    first: str | None = None

    def note(self, rows: pl.DataFrame, batch: RecordBatch, part: DataFile, before: int, layout: Layout) -> None:
        """Count such rows of a batch; `before`: the number of the batch's first record."""
        bad = rows.filter(~USABLE & ~HAS_REASON)
        if bad.is_empty():
            return
        self.count += bad.height
        if self.first is None:
            record, no_question = bad.select("record", pl.col("question").is_null()).row(0)
            at = record - before
            self.first = f"{where(part, batch, at)}: {_missing_text_message(layout, batch.records[at], no_question)}"

    def check(self, source: Source, total: int, left_out_counts: Mapping[str, int]) -> None:
        """Raise InputError where no row is usable, or with `strict` one is not; `lost`: rows left out, by reason."""
        if total == 0:
            raise InputError(f"{_source_path(source)} is empty: found no rows, expected at least one.")
        if sum(left_out_counts.values()) == total and self.first is None:
            why = ", ".join(f"{name} {count:,}" for name, count in left_out_counts.items())
            advice = WHAT_TO_DO[max(left_out_counts, key=lambda name: left_out_counts[name])]
            raise InputError(f"{_source_path(source)}: none of the {total} rows can be used: found {why}.\n{advice}")
        if self.first is None or (sum(left_out_counts.values()) < total and not self.strict):
            return
        if sum(left_out_counts.values()) < total:
            raise InputError(
                f"{self.first}. {self.count} of {total} rows cannot be used; drop --strict-rows to keep them."
            )
        others = {name: count for name, count in left_out_counts.items() if name in LEFT_OUT}
        more = "".join(f", {name} {count:,}" for name, count in others.items())
        raise InputError(
            f"{_source_path(source)}: none of the {total} rows has both a question and an answer{more}.\n"
            f"The first, {self.first}. Name the columns with --map question=COLUMN --map answer=COLUMN."
        )


def _source_path(source: Source) -> str:
    return source.parts[0].where if source.kind == "file" else source.name


def batches_of(source: Source) -> Iterator[tuple[DataFile, RecordBatch, int]]:
    """(part, batch, number of the batch's first row), in order."""
    first = 0
    for part in source.parts:
        for batch in read_part(part):
            if batch.records:
                yield part, batch, first
            first += len(batch.records)


def _frame(
    extracted: Sequence[tuple[int, Extracted]], groups: Sequence[str], numbers: Sequence[int], first: int
) -> pl.DataFrame:
    """Rows as a frame. `numbers`: theirs; `first`: the number of the first record of their batch."""
    items = [item for _, item in extracted]
    data: dict[str, Sequence[object]] = {
        **{name: [getattr(item, name) for item in items] for name in Extracted._fields},
        "row": numbers,
        "record": [first + at for at, _ in extracted],
        "group": groups,
        "flags": [[flag for flag in (item.left_out, THOUGHT if item.thought else None) if flag] for item in items],
    }
    return pl.DataFrame({name: pl.Series(name, data[name], dtype=dtype) for name, dtype in ROWS.items()})


def _missing_text_message(layout: Layout, record: Record, no_question: bool) -> str:
    """What a row that cannot be used lacks, and what was found in its place."""
    asks = ("question", "prompt", "messages", "conversations", "instruction", "subject", "relation")
    golds = ("answer", "answers", "object", "completion", "messages", "conversations")
    wanted = asks if no_question else golds
    pairs = [(layout.columns[ours], record.get(layout.columns[ours])) for ours in wanted if ours in layout.columns]
    values = ", ".join(
        f"{column} is {'null or missing' if value is None else quoted(value, 60)}" for column, value in pairs
    )
    return f"no {'question' if no_question else 'answer'}: {values}, expected a text"
