"""Facts: the rows of an input in one frame, whatever layout they came in, and back to that input.

`read_facts` opens the source (`sources.py`), finds the layout (`layouts.py`) and streams the records
(`formats.py`) into the frame that every later stage works on (`rows.ROWS`). `Facts.annotate` streams the input
again and writes it back with labels beside its own columns.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from foreknow.data.accounting import THOUGHT, account, left_out
from foreknow.data.chats import LEFT_OUT
from foreknow.data.detection import detect
from foreknow.data.layout_edits import with_answers
from foreknow.data.layout_rows import TURNS, Extracted, extract
from foreknow.data.layouts import GOLDS, Layout, check_column
from foreknow.data.rows import ROWS, USABLE, digests, drawn, flags_of, pool
from foreknow.data.templates import check_templates, derive_template, subject_of
from foreknow.data.turn_labels import by_record, free_names, values_of
from foreknow.data.values import holds_floats
from foreknow.errors import InputError
from foreknow.files.cells import number_of
from foreknow.files.formats import Batch, Record, read_part, where
from foreknow.files.quoting import quoted
from foreknow.files.sources import Part, Source, source_of
from foreknow.files.writing import Change, cell_text, write_joined, write_parts

CANDIDATES = 1024
"""Of each group so many rows are kept as possible exemplars where not all rows are."""


@dataclass(frozen=True)
class Facts:
    """The rows of an input, and all that is needed to write it back.

    `rows` is the whole input, or with a limit the rows `audited` (by number) and possible exemplars.
    `total` counts all rows of the input, `digest` is a hash of what they say, in whatever layout. `places` has the
    record and the turn of every row of the input. `left_out`: of `total`, the rows that cannot be used, by reason.
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
    def accounted(self) -> str:
        """What became of the input, in a line: rows in = rows read + rows left out by reason."""
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
        """How reports call the input."""
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
        write_parts(self.source, Change(self._beside(labels)), path)

    def write(
        self, labels: pl.DataFrame, path: Path, answers: Mapping[int, str] | None = None, name: str | None = None
    ) -> None:
        """Write only the rows of `labels` into one file, in input order; otherwise as `annotate`.

        A record is written once. Where some of its usable rows are not among `labels`, it ends with the last that
        is, and the answers that are not are marked so that trainers pass them over (`loss_marks`). `answers`: by row
        number, an answer that takes the place of the row's own. `name`: what the file will be called, if not as
        `path`; its suffix must be of the input's format. What only the names of several files tell (relation, split)
        becomes columns.
        """
        kept = labels["row"]
        chosen = self.places[kept.to_list()].with_columns(row=kept)
        records = pl.Series(range(self.records), dtype=pl.Int64).is_in(chosen["record"].implode())
        turns = dict(chosen.group_by("record").agg("turn").iter_rows())
        replaced: dict[int, dict[int | None, str]] = {}
        for row, record, turn in chosen.select("row", "record", "turn").iter_rows():
            if answers and row in answers:
                replaced.setdefault(record, {})[turn] = answers[row]
        in_part = set(self.in_part(kept))
        firsts = list(_firsts(self.source.parts, self._counts()))
        counted = any(layout.choices and layout.choices.kind == "index1" for layout in self.layouts.values())

        def edited(record: Record, number: int) -> Record | None:
            if number not in replaced and number not in in_part and not counted:
                return None
            name, _ = firsts[bisect_right(firsts, number, key=lambda part: part[1]) - 1]
            own = turns[number] if number in in_part else None
            return with_answers(self.layouts[name], record, replaced.get(number, {}), own)

        told = [n for n in ("relation", "split") if any(getattr(layout, n) for layout in self.layouts.values())]
        told += ["subject"] if "relation" in told else []
        named = self.rows.select("record", *told).unique("record", keep="first", maintain_order=True)
        write_joined(
            self.source.parts,
            Change(self._beside(labels, named if told else None), records, edited),
            path,
            name or path.name,
        )

    def in_part(self, kept: pl.Series) -> list[int]:
        """The records some of whose usable rows are among `kept` (row numbers), and some are not."""
        usable = self.rows.filter(USABLE).select("record", kept=pl.col("row").is_in(kept.implode()))
        some = usable.group_by("record").agg(any=pl.col("kept").any(), all=pl.col("kept").all())
        return some.filter(pl.col("any") & ~pl.col("all"))["record"].sort().to_list()

    def extra(self, names: Sequence[str], *, last: Sequence[str] = ()) -> pl.DataFrame:
        """Columns of the input that are not ours: row, then `names`. The input is read again.

        A column whose every value is a number is Float64, any other is of texts, with what is no text as JSON.
        A value that a record lacks is null. In lists beside `labelled_turns`, each row has its own value; any other
        value holds for every row of its record, or for its last one in the columns `last`.
        """
        values: dict[str, list[object]] = {name: [] for name in names}
        turns = self.places.group_by("record", maintain_order=True).agg("turn")["turn"].to_list()
        for _, batch, first in _stream(self.source):
            for number, record in enumerate(batch.records, first):
                for name in names:
                    values[name] += values_of(record, name, turns[number], name in last)
        rows = pl.Series(range(self.total), dtype=pl.Int64)
        return pl.DataFrame({"row": rows, **{name: _column(found) for name, found in values.items()}})

    def _beside(self, labels: pl.DataFrame, named: pl.DataFrame | None = None) -> pl.DataFrame:
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
            for part, batch, _ in _stream(self.source):
                counts[part.name] += len(batch.records)
        return counts


def read_facts(
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
) -> Facts:
    """Read an input (`sources.py` lists what it may be) into one frame.

    `columns` maps our names to the file's (`{"question": "q"}`), `layout` names one of `layouts.LAYOUTS`,
    `templates` gives relations their question texts, `group_by` names the column that exemplars are drawn
    within, `turns` says whether `all` answers of a chat are rows or only its `last`. With `limit` only the rows
    drawn (`rows.drawn`, by `seed`) and possible exemplars are held in memory, and a few numbers for each of the
    others; the input is read twice. A readable row that cannot be used is kept and flagged with the reason; one that
    lacks a question or an answer is an InputError with `strict_rows`, as is an input in which no row is usable.
    """
    source = data if isinstance(data, Source) else source_of(str(data))
    if templates is not None:
        check_templates(templates, "templates")
    reader = _Reader(source, dict(columns or {}), layout, dict(templates or {}), group_by, turns, null_words)
    frames, light, places, faults = [], [], [pl.DataFrame(schema=_PLACES)], _Faults(strict_rows)
    for rows, batch, part, first in reader.frames():
        faults.note(rows, batch, part, first, reader.layouts[part.name])
        light.append(digests(rows, seed))
        places.append(rows.select(*_PLACES))
        if limit is None:
            frames.append(rows)
    every = pl.concat(light) if light else digests(pl.DataFrame(schema=ROWS), seed)
    every = every.with_columns(flags=flags_of(every))
    lost = left_out(every)
    faults.check(source, every.height, lost)
    audited = every["row"] if limit is None or limit >= every.height else drawn(every, limit)
    if limit is not None:
        whole = limit >= every.height
        kept = every["row"] if whole else pl.concat([audited, pool(every, audited, CANDIDATES)]).unique().sort()
        frames = [reader.picked(pl.concat(places), set(kept))]
        keys = digests(frames[0], seed).select("row", "key")
        if not keys.equals(every.filter(pl.col("row").is_in(kept.implode())).select("row", "key")):
            raise InputError(f"{source.name}: the file changed while it was read. Run the same command again.")
    flags = every.select("row", "flags")
    found = pl.concat(frames).drop("flags").join(flags, on="row", how="left", maintain_order="left").select(*ROWS)
    return Facts(
        reader.with_subjects(found),
        audited,
        every.height,
        reader.digest,
        reader.layouts,
        reader.reason,
        source,
        tuple(reader.columns),
        pl.concat(places),
        lost,
        int(every["flags"].list.contains(THOUGHT).sum()),
    )


_PLACES = {name: ROWS[name] for name in ("record", "turn")}


@dataclass
class _Reader:
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

    def frames(self) -> Iterator[tuple[pl.DataFrame, Batch, Part, int]]:
        """(rows, batch, part, number of the batch's first record). Sets `layouts`, `columns` and `digest`."""
        total = 0
        content = hashlib.sha256()
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        for part, batch, first in _stream(self.source):
            self.columns.update(dict.fromkeys(key for record in batch.records for key in record))
            known = self.layouts.get(part.name) or self._layout(part, batch)
            found = self._extracted(known, batch, part, range(len(batch.records)))
            rows = _frame(found, self._groups(found, batch.records), range(total, total + len(found)), first)
            total += len(found)
            for (_, item), group in zip(found, rows["group"], strict=True):
                content.update(encode([*item, group]).encode())
            yield rows, batch, part, first
        self.digest = "sha256:" + content.hexdigest()

    def picked(self, places: pl.DataFrame, numbers: set[int]) -> pl.DataFrame:
        """Only the rows of these numbers, once `frames` has found the layouts. `places`: every row's record."""
        frames = [pl.DataFrame(schema=ROWS)]
        rows = places.with_row_index("row").group_by("record", maintain_order=True).agg(pl.col("row").first(), pl.len())
        firsts, counts = rows["row"].to_list(), rows["len"].to_list()
        for part, batch, first in _stream(self.source):
            if first + len(batch.records) > len(firsts):
                break  # the file has grown since
            at = [
                n
                for n in range(len(batch.records))
                if not numbers.isdisjoint(range(firsts[first + n], firsts[first + n] + counts[first + n]))
            ]
            if at and part.name in self.layouts:
                found = self._extracted(self.layouts[part.name], batch, part, at)
                whole = [first + n for n in dict.fromkeys(n for n, _ in found)]
                own = [firsts[n] + k for n in whole for k in range(counts[n])]
                if len(own) == len(found):
                    frame = _frame(found, self._groups(found, batch.records), own, first)
                    frames.append(frame.filter(pl.col("row").is_in(list(numbers))))
        return pl.concat(frames)

    @property
    def reason(self) -> str:
        """The layout's reason, for the user to read."""
        reasons = list(dict.fromkeys(layout.reason for layout in self.layouts.values()))
        count = len(self.source.parts)
        files = f" ({count} file{'s' if count > 1 else ''}" if count > 1 or self.source.left_out else ""
        left = f", {self.source.left_out} left out that hold no data" if self.source.left_out else ""
        said = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        if self._tree:
            said += "; relation and split from the files' names"
        elif any(layout.split for layout in self.layouts.values()):
            said += "; split from the files' names"
        notes = "".join(f"; {note}" for note in self.source.notes)
        return said + notes + (f"{files}{left})" if files else "")

    def with_subjects(self, rows: pl.DataFrame) -> pl.DataFrame:
        """In the ENTITYQUESTIONS tree every relation has one template: its subjects are read off the questions."""
        if not self._tree:
            return rows
        parts = []
        for (relation,), part in rows.group_by("relation", maintain_order=True):
            questions = part["question"].drop_nulls()
            template = self.templates.get(str(relation)) or derive_template(questions)
            subjects = [template and q and subject_of(template, q) for q in part["question"]]
            parts.append(part.with_columns(subject=pl.Series(subjects, dtype=pl.String)))
        return pl.concat(parts).sort("row")

    @property
    def _tree(self) -> bool:
        return bool(self.layouts) and all(layout.relation for layout in self.layouts.values())

    def _layout(self, part: Part, batch: Batch) -> Layout:
        columns = list(dict.fromkeys(key for record in batch.records for key in record))
        found = detect(columns, self.mapped, part.where, batch.records, self.named)
        if batch.note:
            found = replace(found, reason=f"{found.reason}; {batch.note}")
        if self.group_by is not None:
            check_column(columns, self.group_by, f"--group-by {self.group_by}", part.where)
        columns_of_golds = {found.columns[name] for name in GOLDS if name in found.columns}
        if any(holds_floats(record.get(name) for record in batch.records) for name in columns_of_golds):
            said = f"{found.reason}; answers are numbers such as 1912.0, read as 1912"
            found = replace(found, of_floats=True, reason=said)
        if batch.table is not None and batch.table.dialect.reason:
            found = replace(found, reason=f"{found.reason}; {batch.table.dialect.reason}")
        if len(self.source.parts) > 1:
            found = replace(found, split=part.split, relation=part.relation)
        self.layouts[part.name] = found
        return found

    def _extracted(
        self, layout: Layout, batch: Batch, part: Part, places: Sequence[int]
    ) -> list[tuple[int, Extracted]]:
        """The rows of these records of a batch, each with its record's place in the batch."""
        found = []
        for at in places:
            try:
                found += [
                    (at, row) for row in extract(layout, batch.records[at], self.templates, self.turns, self.null_words)
                ]
            except InputError as error:
                raise InputError(f"{where(part, batch, at)}: {error}") from error
        return found

    def _groups(self, found: Sequence[tuple[int, Extracted]], records: Sequence[Record]) -> list[str]:
        """The group of every row: the named column, else the relation, else "all"."""
        if self.group_by is None:
            return [item.relation or "all" for _, item in found]
        values = (records[at].get(self.group_by) for at, _ in found)
        return ["all" if value is None else cell_text(value).strip() or "all" for value in values]


@dataclass
class _Faults:
    """The rows that lack a question or an answer, and the first of them in words."""

    strict: bool
    count: int = 0
    first: str | None = None

    def note(self, rows: pl.DataFrame, batch: Batch, part: Part, before: int, layout: Layout) -> None:
        told = pl.col("flags").list.set_intersection(pl.lit(list(LEFT_OUT))).list.len() > 0
        bad = rows.filter(~USABLE & ~told)
        if bad.is_empty():
            return
        self.count += bad.height
        if self.first is None:
            record, no_question = bad.select("record", pl.col("question").is_null()).row(0)
            at = record - before
            self.first = f"{where(part, batch, at)}: {_fault(layout, batch.records[at], no_question)}"

    def check(self, source: Source, total: int, lost: Mapping[str, int]) -> None:
        if total == 0:
            raise InputError(f"{_path(source)} is empty: found no rows, expected at least one.")
        if sum(lost.values()) == total and self.first is None:
            why = ", ".join(f"{name} {count:,}" for name, count in lost.items())
            raise InputError(f"{_path(source)}: none of the {total} rows can be used: found {why}.")
        if self.first is None or (sum(lost.values()) < total and not self.strict):
            return
        if sum(lost.values()) < total:
            raise InputError(
                f"{self.first}. {self.count} of {total} rows cannot be used; drop --strict-rows to keep them."
            )
        others = {name: count for name, count in lost.items() if name in LEFT_OUT}
        more = "".join(f", {name} {count:,}" for name, count in others.items())
        raise InputError(
            f"{_path(source)}: none of the {total} rows has both a question and an answer{more}.\n"
            f"The first, {self.first}. Name the columns with --map question=COLUMN --map answer=COLUMN."
        )


def _column(values: Sequence[object]) -> pl.Series:
    """Values of any kind as a column: of numbers where all are numbers, else of texts."""
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pl.Series([None if value is None else number_of(value) for value in values], dtype=pl.Float64)
    return pl.Series([None if value is None else cell_text(value) for value in values], dtype=pl.String)


def _path(source: Source) -> str:
    return source.parts[0].where if source.kind == "file" else source.name


def _stream(source: Source) -> Iterator[tuple[Part, Batch, int]]:
    """(part, batch, number of the batch's first row), in order."""
    first = 0
    for part in source.parts:
        for batch in read_part(part):
            if batch.records:
                yield part, batch, first
            first += len(batch.records)


def _firsts(parts: Sequence[Part], counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(part, number of its first row) for parts that have rows."""
    first = 0
    for part in parts:
        if counts[part.name] or len(parts) == 1:
            yield part.name, first
        first += counts[part.name]


def _frame(
    found: Sequence[tuple[int, Extracted]], groups: Sequence[str], numbers: Sequence[int], first: int
) -> pl.DataFrame:
    """Rows as a frame. `numbers`: theirs; `first`: the number of the first record of their batch."""
    items = [item for _, item in found]
    data: dict[str, Sequence[object]] = {
        **{name: [getattr(item, name) for item in items] for name in Extracted._fields},
        "row": numbers,
        "record": [first + at for at, _ in found],
        "group": groups,
        "flags": [[flag for flag in (item.left_out, THOUGHT if item.thought else None) if flag] for item in items],
    }
    return pl.DataFrame({name: pl.Series(name, data[name], dtype=dtype) for name, dtype in ROWS.items()})


def _fault(layout: Layout, record: Record, no_question: bool) -> str:
    """What a row that cannot be used lacks, and what was found in its place."""
    asks = ("question", "prompt", "messages", "conversations", "instruction", "subject", "relation")
    golds = ("answer", "answers", "object", "completion", "messages", "conversations")
    wanted = asks if no_question else golds
    pairs = [(layout.columns[ours], record.get(layout.columns[ours])) for ours in wanted if ours in layout.columns]
    found = ", ".join(
        f"{column} is {'null or missing' if value is None else quoted(value, 60)}" for column, value in pairs
    )
    return f"no {'question' if no_question else 'answer'}: {found}, expected a text"
