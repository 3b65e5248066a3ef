"""The rows of a finished run as one table in memory: its columns, its filters, and the text that is searched.

Texts are cut for the table's cells; the text that is searched is whole. A filter is a column of small numbers, each the
place of a value in the filter's list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.format.text import LONGEST_TEXT
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.evaluate.result import EvaluateResult, open_evaluation
from foreknow.stages.finished_run import read_by_stage
from foreknow.stages.train.result import TrainResult, open_train

GROUPS_LISTED: Final = 500
"""The filter by group lists at most this many groups, those with the most rows; the search finds the others."""
NO_VALUE: Final = "(none)"

Kind = Literal["number", "text", "category", "share", "probability", "mark", "flags"]
"""How a column's cells are shown: `share` is a count of the exemplar sets, `mark` is right or wrong."""
Run = AuditResult | EvaluateResult | TrainResult


@dataclass(frozen=True)
class Column:
    """A column of the table: its name in the frame, its title, how its cells are shown."""

    name: str
    title: str
    kind: Kind

    @property
    def sort_key(self) -> str:
        """The frame's column by whose values the table is sorted: of a text its place in the alphabet."""
        return f"key_{self.name}" if self.kind in ("text", "flags") else self.name


@dataclass(frozen=True)
class Filter:
    """A filter: `values` by their places. `flag_columns`: for a filter of flags, the frame's columns of truth values.

    A filter without them is a column of the frame, `filter_NAME`, with the places of its values; null is none of them.
    """

    name: str
    title: str
    values: tuple[str, ...]
    flag_columns: tuple[str, ...] = ()
    unlisted: int = 0

    @property
    def column(self) -> str:
        """The frame's column with the places of the values."""
        return f"filter_{self.name}"


@dataclass(frozen=True)
class RowTable:
    """All rows of a run, in the run's order.

    `frame`: the cells of `columns`, what they are sorted by, the columns of `filters`, and `search`, the lower-case
    text that is searched. `sets`: the number of exemplar sets of an audit, otherwise 0.
    """

    run: Run
    stage: str
    title: str
    frame: pl.DataFrame
    columns: tuple[Column, ...]
    filters: tuple[Filter, ...]
    sets: int = 0


def open_table(folder: str | Path) -> RowTable:
    """Read the rows of a finished audit, evaluation or tune run.

    Raises InputError for a folder that none of them finished or whose files were changed, RunFolderError for one of
    another format.
    """
    readers: Mapping[str, Callable[[Path], RowTable]] = {
        "audit": lambda path: audit_table(open_audit(path)),
        "evaluate": lambda path: evaluation_table(open_evaluation(path)),
        "tune": lambda path: train_table(open_train(path)),
    }
    return read_by_stage(folder, readers)


def audit_table(audit: AuditResult) -> RowTable:
    """The rows of an audit with their labels and probabilities."""
    summary = audit.summary
    scan = pl.scan_parquet(audit.folder / "rows.parquet")
    has_spans = "new_spans" in scan.collect_schema()
    lenient = summary["protocol"]["match"] == "lenient"
    greedy, sampled = ("p_greedy_lenient", "p_sampled") if lenient else ("p_greedy", "p_sampled")
    counts = ("n_spans", "new_spans") if has_spans else ()
    cells = scan.select(
        "row",
        *_cells("question", "answer", "model_answer", "group"),
        pl.col("category").cast(pl.Enum(CATEGORIES)),
        pl.col(greedy).fill_nan(None).alias("p_greedy"),
        pl.col(sampled).fill_nan(None).alias("p_sampled"),
        pl.col("flags").fill_null([]),
        *counts,
        search=_search_text("row", "question", pl.col("answers").list.join("\n"), "model_answer", "group"),
    )
    frame = cells.collect()
    columns = [
        Column("row", "#", "number"),
        Column("question", "Question", "text"),
        Column("answer", "Gold answer", "text"),
    ]
    if not has_spans or summary["labelled"]:
        columns += [
            Column("model_answer", "Model says", "text"),
            Column("category", "Category", "category"),
            Column("p_greedy", "Right", "share"),
            Column("p_sampled", "P", "probability"),
        ]
        filters = [_category_filter("Category")]
    else:
        filters = []
    frame = frame.with_columns(_category_places())
    if has_spans:
        columns += [Column("n_spans", "Spans", "number"), Column("new_spans", "New", "number")]
        filters.append(Filter("spans", "Spans", ("every span new", "some spans new", "no span new", "no span")))
        frame = frame.with_columns(filter_spans=_span_places())
    frame, more_columns, more_filters = _group_and_flags(frame)
    columns += more_columns
    return RowTable(
        run=audit,
        stage="audit",
        title=f"Audit with {summary['model']['name']}",
        frame=_with_sort_keys(frame, columns),
        columns=tuple(columns),
        filters=(*filters, *more_filters),
        sets=int(summary["protocol"].get("exemplar_sets") or 0),
    )


RESULTS: Final = ("right", "wrong", "refused", "no answer")
CHANGES: Final = ("right before and now", "newly right", "newly wrong", "wrong before and now")


def evaluation_table(evaluation: EvaluateResult) -> RowTable:
    """The rows of an evaluation with the model's answers, and what the base model's probe said of them."""
    summary = evaluation.summary
    lenient = summary["protocol"]["match"] == "lenient"
    correct, before = pl.col("correct_lenient" if lenient else "correct"), pl.col("base_correct")
    frame = (
        pl.scan_parquet(evaluation.folder / "rows.parquet")
        .select(
            "row",
            *_cells("question", "answer", "prediction", "group"),
            correct.alias("correct"),
            "refused",
            pl.col("category").cast(pl.Enum(CATEGORIES)),
            "base_correct",
            search=_search_text("row", "question", pl.col("answers").list.join("\n"), "prediction", "group"),
        )
        .collect()
    )
    now = pl.col("correct")
    frame = frame.with_columns(
        _category_places(),
        filter_result=_places(pl.col("refused"), now, ~now, order=(2, 0, 1), otherwise=3),
        filter_change=_places(before & now, ~before & now, before & ~now, ~before & ~now),
    )
    frame, more_columns, more_filters = _group_and_flags(frame)
    known = frame["category"].null_count() < frame.height
    compared = frame["base_correct"].null_count() < frame.height
    columns = [
        Column("row", "#", "number"),
        Column("question", "Question", "text"),
        Column("answer", "Gold answer", "text"),
        Column("prediction", "Model says", "text"),
        Column("correct", "Right", "mark"),
        *([Column("base_correct", "Base right", "mark")] if compared else []),
        *([Column("category", "Category", "category")] if known else []),
    ]
    filters = [
        Filter("result", "Answer", RESULTS),
        *([_category_filter("Category of the base model")] if known else []),
        *([Filter("change", "Change", CHANGES)] if compared else []),
    ]
    title = f"Evaluation of {summary['model']['name']}"
    columns += more_columns
    frame = _with_sort_keys(frame, columns)
    return RowTable(evaluation, "evaluate", title, frame, tuple(columns), (*filters, *more_filters))


def train_table(train: TrainResult) -> RowTable:
    """The watched rows of a tune run: whether each was right at the best and at the last epoch.

    A row of the set `train` is right if it is fitted.
    """
    results, rows = train.results, pl.scan_parquet(train.folder / "rows.parquet")
    outcomes = pl.scan_parquet(train.folder / "outcomes.parquet")
    frame = rows.select(
        "set",
        "row",
        *_cells("question", "answer", "group"),
        pl.col("category").cast(pl.Enum(CATEGORIES)),
        search=_search_text("row", "question", "answer", "group"),
    )
    for name, key in (("best", "early_stop"), ("last", "convergence")):
        then = outcomes.filter(pl.col("step") == results[key]["metrics"]["step"])
        own = then.select("set", "row", pl.col("correct").alias(name)).unique(["set", "row"], keep="last")
        frame = frame.join(own, on=["set", "row"], how="left", maintain_order="left")
    table = frame.collect()
    sets = tuple(table["set"].unique(maintain_order=True).to_list())
    best, last = pl.col("best"), pl.col("last")
    table = table.with_columns(
        _category_places(),
        filter_set=pl.col("set").replace_strict({name: n for n, name in enumerate(sets)}, return_dtype=pl.Int32),
        filter_change=_places(best & last, ~best & last, best & ~last, ~best & ~last),
    )
    table, more_columns, more_filters = _group_and_flags(table)
    known = table["category"].null_count() < table.height
    columns = [
        Column("set", "Set", "text"),
        Column("row", "#", "number"),
        Column("question", "Question", "text"),
        Column("answer", "Gold answer", "text"),
        Column("best", "Best epoch", "mark"),
        Column("last", "Last epoch", "mark"),
        *([Column("category", "Category", "category")] if known else []),
    ]
    filters = [
        Filter("set", "Set", sets),
        *([_category_filter("Category of the base model")] if known else []),
        Filter("change", "Right", ("best and last epoch", "last epoch alone", "best epoch alone", "neither")),
    ]
    title = f"Training of {results['model']['name']}"
    columns += more_columns
    table = _with_sort_keys(table, columns)
    return RowTable(train, "tune", title, table, tuple(columns), (*filters, *more_filters))


def _cells(*names: str) -> list[pl.Expr]:
    """Texts cut for a cell of the table."""
    cut = [pl.col(name).str.slice(0, LONGEST_TEXT - 1) + "…" for name in names]
    return [
        pl.when(pl.col(name).str.len_chars() > LONGEST_TEXT).then(short).otherwise(pl.col(name)).alias(name)
        for name, short in zip(names, cut, strict=True)
    ]


def _search_text(*parts: str | pl.Expr) -> pl.Expr:
    """All texts of a row in one lower-case text, a line each."""
    texts = [pl.col(part).cast(pl.String) if isinstance(part, str) else part for part in parts]
    return pl.concat_str(texts, separator="\n", ignore_nulls=True).str.to_lowercase()


def _places(*tests: pl.Expr, order: Sequence[int] | None = None, otherwise: int | None = None) -> pl.Expr:
    """The number of the first test that holds, or its number in `order`; `otherwise` where none does."""
    numbers = range(len(tests)) if order is None else order
    result = pl.lit(otherwise, dtype=pl.Int32)
    for number, test in reversed(list(zip(numbers, tests, strict=True))):
        result = pl.when(test.fill_null(False)).then(pl.lit(number, dtype=pl.Int32)).otherwise(result)
    return result


def _category_filter(title: str) -> Filter:
    return Filter("category", title, (*CATEGORIES, "no category"))


def _category_places() -> pl.Expr:
    place = pl.col("category").to_physical().cast(pl.Int32)
    return place.fill_null(len(CATEGORIES)).alias("filter_category")


def _span_places() -> pl.Expr:
    new, spans = pl.col("new_spans"), pl.col("n_spans")
    return _places(spans.fill_null(0) == 0, new == spans, new > 0, new == 0, order=(3, 0, 1, 2))


def _group_and_flags(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[Column], list[Filter]]:
    """Add the filters by group and by flag, where rows differ in them; return the frame, columns and filters."""
    columns, filters = [], []
    groups = frame.select(pl.col("group").fill_null(NO_VALUE)).to_series().value_counts()
    listed = groups.sort(["count", "group"], descending=[True, False]).head(GROUPS_LISTED)["group"].sort().to_list()
    if groups.height > 1:
        places = pl.DataFrame({"group": listed, "filter_group": pl.Series(range(len(listed)), dtype=pl.Int32)})
        frame = frame.with_columns(pl.col("group").fill_null(NO_VALUE))
        frame = frame.join(places, on="group", how="left", maintain_order="left")
        columns.append(Column("group", "Group", "text"))
        filters.append(Filter("group", "Group", tuple(listed), unlisted=groups.height - len(listed)))
    if "flags" in frame.columns:
        flags = sorted(frame["flags"].explode().drop_nulls().unique().to_list())
        names = tuple(f"flag_{n}" for n in range(len(flags)))
        frame = frame.with_columns(
            pl.col("flags").list.contains(flag).alias(name) for flag, name in zip(flags, names, strict=True)
        ).with_columns(pl.col("flags").list.join(", "))
        if flags:
            columns.append(Column("flags", "Flags", "flags"))
            filters.append(Filter("flag", "Flag", tuple(flags), flag_columns=names))
    return frame, columns, filters


def _with_sort_keys(frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """Add what the table is sorted by where that is not a column of its own."""
    return frame.with_columns(
        pl.col(c.name).str.to_lowercase().rank("dense").alias(c.sort_key) for c in columns if c.sort_key != c.name
    )


def table_facts(table: RowTable) -> dict[str, Any]:
    """What the page has to know of a table: columns, filters, categories, the number of rows."""
    return {
        "rows": table.frame.height,
        "sets": table.sets,
        "categories": CATEGORIES,
        "columns": [{"name": c.name, "title": c.title, "kind": c.kind} for c in table.columns],
        "filters": [
            {"name": f.name, "title": f.title, "values": f.values, "unlisted": f.unlisted} for f in table.filters
        ],
    }
