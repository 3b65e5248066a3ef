"""Labels of spans for tests: found by a plain pattern, labelled by a rule, written into a finished audit's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.data.spans.schema import SPANS, count_spans, is_new
from foreknow.io.run_dir import SEAL, checksums_of, with_checksum, write_frame, write_json

SPAN = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+)*|\d+")
Label = tuple[str | None, bool | None]
"""Category and recognised."""


def span_table(answers: dict[int, str], label: Callable[[str, int], Label]) -> pl.DataFrame:
    """Capitalised words and numbers of the answers as a frame `SPANS`; `label`: from a span's text and number."""
    lines = []
    count = 0
    for row, answer in sorted(answers.items()):
        for at, match in enumerate(SPAN.finditer(answer)):
            category, recognised = label(match.group(), count)
            p = {None: None, "HighlyKnown": 0.9, "MaybeKnown": 0.4, "WeaklyKnown": 0.05, "Unknown": 0.0001}[category]
            lines.append(
                {
                    "row": row, "span": at, "start": match.start(), "end": match.end(), "text": match.group(),
                    "type": "number" if match.group().isdigit() else "name", "finder": "rules",
                    "p_greedy": None if p is None else round(p), "p_sampled": p, "p_hit": p, "category": category,
                    "recognised": recognised, "p_recognised": None if recognised is None else 0.3 + 0.5 * recognised,
                    "rank": None if recognised is None else 1 if recognised else 4, "alternatives": 9, "flags": [],
                }
            )  # fmt: skip
            count += 1
    return pl.DataFrame(lines, schema=SPANS)


def by_turns(_: str, at: int) -> Label:
    """The four categories in turn; every second Unknown span is recognised."""
    category = CATEGORIES[at % 4]
    return category, at % 8 == 7 if category == "Unknown" else True


def add_spans(
    folder: Path, label: Callable[[str, int], Label] = by_turns, rows: list[int] | None = None
) -> pl.DataFrame:
    """Write `spans.parquet` and the columns of `rows.parquet` as an audit with labels of spans does; return the spans.

    `rows`: the rows with long answers; None for those that the audit flagged.
    """
    frame = pl.read_parquet(folder / "rows.parquet")
    long = rows if rows is not None else frame.filter(pl.col("flags").list.contains("long_answer"))["row"].to_list()
    answers = dict(frame.filter(pl.col("row").is_in(long)).select("row", "answer").iter_rows())
    spans = span_table(answers, label)
    write_frame(folder / "spans.parquet", spans)
    flags = pl.col("flags").list.set_union(
        pl.when(pl.col("row").is_in(long)).then(pl.lit(["long_answer"], pl.List(pl.String))).otherwise([])
    )
    category = pl.when(~pl.col("row").is_in(long)).then(pl.col("category"))
    counts = count_spans(pl.Series("row", long, dtype=pl.Int64), spans)
    old = [name for name in counts.columns if name != "row"]
    frame = frame.drop(old, strict=False).with_columns(flags=flags, category=category)
    write_frame(folder / "rows.parquet", frame.join(counts, on="row", how="left", maintain_order="left"))
    labelled = spans.filter(pl.col("category").is_not_null())
    shares = dict(labelled.group_by("category").agg((pl.len() / labelled.height).alias("share")).iter_rows())
    path = folder / "summary.json"
    if path.is_file():
        summary = json.loads(path.read_text())
        new = labelled.filter(is_new()).height
        summary["spans"] = {
            "spans": spans.height, "labelled": labelled.height, "categories": shares, "new": new / labelled.height,
            "recognised": labelled["recognised"].mean(), "by_type": {}, "rows": len(long), "protocol": {"shots": 2},
        }  # fmt: skip
        write_json(path, summary)
    manifest = json.loads((folder / "manifest.json").read_text())
    if "files" in manifest:
        manifest.pop(SEAL, None)
        manifest["files"] = checksums_of(folder, [*manifest["files"], "spans.parquet"])
        write_json(folder / "manifest.json", with_checksum(manifest))
    return spans
