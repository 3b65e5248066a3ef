"""Facts: the rows of a file in one frame, whatever layout they came in, and back to that file.

`read_facts` finds the layout, `Facts.rows` is the frame every later stage works on (`ROWS`), and
`Facts.annotate` writes the input back with labels beside its own columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from foreknow.errors import ConfigError, InputError
from foreknow.formats import Record, Source, read_source, write_source
from foreknow.layouts import Extracted, Layout, check_column, detect, extract
from foreknow.templates import check_templates

ROWS: dict[str, pl.DataType] = {
    "row": pl.Int64(),  # 0-based position in the input
    "question": pl.String(),  # null where the row has none; such a row is never labelled
    "answers": pl.List(pl.String()),  # the first is the gold; every one is accepted
    "subject": pl.String(),
    "relation": pl.String(),
    "split": pl.String(),
    "group": pl.String(),  # exemplars are drawn within it
    "popularity": pl.Float64(),
    "flags": pl.List(pl.String()),  # sorted, each once
}
OUR_FLAGS = ("answer_in_subject", "conflicting", "duplicate", "no_answer", "no_question")
USABLE = pl.col("question").is_not_null() & pl.col("answers").is_not_null()
GOLD = pl.col("answers").list.first()


@dataclass(frozen=True)
class Facts:
    """The rows of a file, and all that is needed to write the file back."""

    rows: pl.DataFrame
    layout: str
    reason: str
    source: Source
    name: str

    @property
    def suffix(self) -> str:
        """The suffix of the annotated file, such as ".jsonl"."""
        return self.source.suffix

    def annotate(self, labels: pl.DataFrame, path: Path) -> None:
        """Write the input to `path` in its own format, with the columns of `labels` beside its own.

        `labels` has `row` (each at most once) and the new columns; a row without a label gets nulls. Every
        original row is kept, in order, its fields untouched; JSON objects keep their very text. A label
        whose name the file already has is written as `foreknow_<name>`, so nothing of the user's is lost.
        """
        names = {name: _free_name(name, self.source.columns) for name in labels.columns if name != "row"}
        every = pl.DataFrame({"row": pl.Series(range(self.rows.height), dtype=pl.Int64)})
        added = every.join(labels, on="row", how="left", validate="1:1", maintain_order="left")
        floats = pl.selectors.float().fill_nan(None)  # NaN is not JSON
        write_source(self.source, added.drop("row").with_columns(floats).rename(names), path)


def read_facts(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    templates: Mapping[str, str] | None = None,
    group_by: str | None = None,
    strict_rows: bool = False,
) -> Facts:
    """Read a data file (JSONL, JSON, CSV, TSV, Parquet) into one frame.

    `columns` maps our names to the file's (`{"question": "q"}`), `templates` relations to question texts,
    `group_by` names the column that exemplars are drawn within. A readable row without question or answer
    is kept and flagged; with `strict_rows`, or where no row is usable, it is an InputError.
    """
    source, records = read_source(path)
    if templates is not None:
        check_templates(templates, "templates")
    layout = detect(source.columns, columns or {}, str(path))
    if group_by is not None:
        check_column(source.columns, group_by, f"--group-by {group_by}", str(path))
    extracted = _extract_all(layout, records, templates or {}, source)
    rows = flag_rows(_frame(extracted, _groups(extracted, records, group_by)))
    _check_usable(rows, layout, records, source, strict_rows)
    return Facts(rows, layout.name, layout.reason, source, path.name)


def flag_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with our own flags computed anew; flags that others set are kept.

    `duplicate`: question and gold of an earlier row. `conflicting`: question and group of another row with
    a different gold. `answer_in_subject`: the gold, capitals aside, is a whole word of the subject, or of
    the question where there is no subject. `no_question`, `no_answer`: the row has none.
    """
    within = pl.when(USABLE)
    twin = pl.int_range(pl.len()).over("question", GOLD.alias("gold"), order_by="row") > 0
    golds = GOLD.n_unique().over("question", "group", USABLE.alias("usable"))
    gold_and_text = rows.select(GOLD.alias("gold"), pl.coalesce("subject", "question").alias("text"))
    inside = [has_word(text, gold) for gold, text in gold_and_text.iter_rows()]
    marks = {
        "answer_in_subject": within.then(pl.Series(inside, dtype=pl.Boolean)),
        "conflicting": within.then(golds > 1),
        "duplicate": within.then(twin),
        "no_answer": pl.col("answers").is_null(),
        "no_question": pl.col("question").is_null(),
    }
    ours = [pl.when(mark).then(pl.lit(flag)) for flag, mark in marks.items()]
    kept = pl.col("flags").fill_null([]).list.set_difference(pl.lit(list(OUR_FLAGS)))
    flags = pl.concat_list(kept, *ours).list.drop_nulls().list.unique().list.sort()
    return rows.with_columns(flags.alias("flags"))


def add_flag(rows: pl.DataFrame, flag: str, where: pl.Series | pl.Expr) -> pl.DataFrame:
    """The rows with `flag` on those where `where` holds; flags stay sorted, each once."""
    more = pl.when(where).then(pl.col("flags").list.concat(pl.lit([flag]))).otherwise(pl.col("flags"))
    return rows.with_columns(flags=more.list.unique().list.sort())


def majority_floor(rows: pl.DataFrame) -> pl.DataFrame:
    """Per group, the EM (0 to 1) of always answering its most frequent gold: a floor to print.

    Returns group, floor, majority_answer, rows (the usable ones). A row counts as hit where any of its
    accepted answers is the majority answer; ties are broken by the order of the texts. (Paper, section 2:
    11.2 % on the ENTITYQUESTIONS test set.)
    """
    usable = rows.filter(USABLE)
    majority = (
        usable.group_by("group", GOLD.alias("majority_answer"))
        .len("count")
        .sort(["group", "count", "majority_answer"], descending=[False, True, False])
        .group_by("group", maintain_order=True)
        .first()
    )
    hit = pl.col("answers").list.contains(pl.col("majority_answer"))
    return (
        usable.join(majority, on="group")
        .group_by("group", "majority_answer")
        .agg(hit.mean().alias("floor"), pl.len().cast(pl.Int64).alias("rows"))
        .select("group", "floor", "majority_answer", "rows")
        .sort("group")
    )


def take(rows: pl.DataFrame, limit: int, seed: int, pool_split: str = "dev") -> pl.DataFrame:
    """At most `limit` usable rows, spread over the groups by their size, in row order.

    Totals are exact (largest remainder). Within a group the rows with the smallest hash of the seed and
    the row's own text are drawn, so the draw depends neither on positions nor on the machine. Rows of
    `pool_split`, which exemplars come from, are drawn only where the others do not suffice.
    """
    if limit < 1:
        raise ConfigError(f"--limit {limit}: found {limit}, expected at least 1.")
    usable = rows.filter(USABLE)
    pool = pl.col("split").eq_missing(pl.lit(pool_split))
    drawn = _draw(usable.filter(~pool), limit, seed)
    more = limit - drawn.height
    return pl.concat([drawn, _draw(usable.filter(pool), more, seed)]).sort("row")


def largest_remainder(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` split in proportion to `sizes`, exact; ties in the remainders go to the earlier key by text.

    Where `total` is at most the sum of the sizes, no share exceeds its size.
    """
    whole = sum(sizes.values())
    if whole == 0:
        return dict.fromkeys(sizes, 0)
    shares = {key: size * total // whole for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(sizes[key] * total % whole), key))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def has_word(text: str | None, word: str | None) -> bool:
    """Whether `word` stands in `text` as whole words, capitals aside."""
    if not text or not word:
        return False
    text, word = text.casefold(), word.casefold()
    at = text.find(word)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        starts = not (before.isalnum() and word[0].isalnum())
        if starts and not (after.isalnum() and word[-1].isalnum()):
            return True
        at = text.find(word, at + 1)
    return False


def _draw(rows: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    if limit >= rows.height:
        return rows
    sizes = dict(rows.group_by("group").len().iter_rows())
    shares = largest_remainder(sizes, limit)
    keys = [_key(seed, *texts) for texts in rows.select("group", "question", GOLD).iter_rows()]
    ordered = rows.with_columns(pl.Series("key", keys, dtype=pl.String)).sort("key", "row")
    place = pl.int_range(pl.len()).over("group")
    share = pl.col("group").replace_strict(shares, return_dtype=pl.Int64)
    return ordered.filter(place < share).drop("key")


def _key(seed: int, *texts: str) -> str:
    return hashlib.blake2b("\x1f".join([str(seed), *texts]).encode(), digest_size=8).hexdigest()


def _extract_all(
    layout: Layout, records: Sequence[Record], templates: Mapping[str, str], source: Source
) -> list[Extracted]:
    extracted = []
    for row, record in enumerate(records):
        try:
            extracted.append(extract(layout, record, templates))
        except InputError as error:
            raise InputError(f"{source.where(row)}: {error}") from error
    return extracted


def _groups(extracted: Sequence[Extracted], records: Sequence[Record], group_by: str | None) -> list[str]:
    """The group of every row: the named column, else the relation, else "all"."""
    if group_by is None:
        return [item.relation or "all" for item in extracted]
    values = (record.get(group_by) for record in records)
    return ["all" if value is None else str(value).strip() or "all" for value in values]


def _frame(extracted: Sequence[Extracted], groups: Sequence[str]) -> pl.DataFrame:
    columns = {name: [getattr(item, name) for item in extracted] for name in Extracted._fields}
    data = {**columns, "row": range(len(extracted)), "group": groups, "flags": [[] for _ in extracted]}
    return pl.DataFrame({name: pl.Series(name, data[name], dtype=dtype) for name, dtype in ROWS.items()})


def _check_usable(rows: pl.DataFrame, layout: Layout, records: Sequence[Record], source: Source, strict: bool) -> None:
    bad = rows.filter(~USABLE)
    if bad.is_empty() or (bad.height < rows.height and not strict):
        return
    row, no_question = bad.select("row", pl.col("question").is_null()).row(0)
    first = f"{source.where(row)}: {_fault(layout, records[row], no_question)}"
    if bad.height < rows.height:
        raise InputError(
            f"{first}. {bad.height} of {rows.height} rows cannot be used; drop --strict-rows to keep them."
        )
    raise InputError(
        f"{source.path}: none of the {rows.height} rows has both a question and an answer.\n"
        f"The first, {first}. Name the columns with --map question=COLUMN --map answer=COLUMN."
    )


def _fault(layout: Layout, record: Record, no_question: bool) -> str:
    """What a row that cannot be used lacks, and what was found in its place."""
    wanted = ("question", "subject", "relation") if no_question else ("answer", "answers", "object")
    pairs = [(layout.columns[ours], record.get(layout.columns[ours])) for ours in wanted if ours in layout.columns]
    found = ", ".join(f"{column} is {_shown(value)}" for column, value in pairs)
    return f"no {'question' if no_question else 'answer'}: {found}, expected a text"


def _shown(value: object) -> str:
    text = "null or missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"foreknow_{name}"
    return name
