"""Large run folders without a model: the rows of a small finished run, repeated under new numbers and questions."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import polars as pl

from foreknow.io.run_dir import MANIFEST, read_checked, with_checksum

BY_ROW: Final = ("rows", "probes", "facts", "spans", "outcomes", "fitted_spans")
"""The Parquet files with a line or more for each row."""
WORDS: Final = (
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "juniper",
    "kelp",
    "loch",
)


def enlarge(source: Path, target: Path, rows: int) -> Path:
    """Write a run of `rows` rows that repeats those of a finished audit, evaluation or tune run.

    A copy's question names the copy and three words drawn by its number; its other texts, its label and, but for their
    last digits, its probabilities are those of the row that it repeats. Counts in the summary are scaled. The manifest
    fits the files.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("annotated.*", "report.html", ".lock"))
    frames = {
        name: pl.read_parquet(target / f"{name}.parquet") for name in BY_ROW if (target / f"{name}.parquet").is_file()
    }
    per_set = "set" in frames["rows"].columns  # a tune run numbers the rows of each set from 0
    own = frames["rows"].height
    stride = 1 + max(int(frame["row"].max() or 0) for frame in frames.values())  # type: ignore[arg-type]
    copies = pl.DataFrame({"copy": pl.Series(range(-(-rows // own)), dtype=pl.Int64)})
    for name, frame in frames.items():
        lines = (
            frame.with_row_index("line").join(copies, how="cross").with_columns(pl.col("row") + pl.col("copy") * stride)
        )
        shares = [column for column, kind in frame.schema.items() if kind == pl.Float64 and column.startswith("p_")]
        # no two copies have the same probabilities to the last digit, as no two rows of a real run have
        fewer = 1 - 1e-12 * (pl.col("copy") * 7_919 + pl.col("row") % 7_907)
        lines = lines.with_columns(
            (pl.col(column) * fewer).alias(column) for column in shares if not column.startswith("p_greedy")
        )
        if "parent" in frame.columns:
            lines = lines.with_columns(pl.col("parent") + pl.col("copy") * stride)
        if "question" in frame.columns and name == "rows":
            word = [pl.lit(pl.Series(WORDS)).gather((pl.col("row") * factor) % len(WORDS)) for factor in (1, 7, 29)]
            copy = pl.format(" (copy {}: {} {} {})", "copy", *word)
            lines = lines.with_columns(
                pl.when(pl.col("copy") > 0).then(pl.col("question") + copy).otherwise("question").alias("question")
            )
        lines = lines.sort(["step", "set", "row"] if name == "outcomes" and per_set else ["copy", "line"])
        if name == "rows":
            lines = lines.head(rows)
            kept = lines.select(*(["set"] if per_set else []), "row")
        elif name in ("facts",):
            lines = lines.filter(pl.col("parent") <= kept["row"].max())
        elif per_set:
            lines = lines.join(kept, on=["set", "row"], how="semi", maintain_order="left")
        else:
            last = kept["row"].max()
            lines = lines.filter((pl.col("row") // stride) * stride <= last)
        lines.select(frame.columns).write_parquet(target / f"{name}.parquet", compression="zstd", statistics=True)
    _scale_summary(target, rows / own)
    manifest = read_checked(target / MANIFEST)
    assert manifest is not None
    manifest["files"] = {name: "" for name in manifest["files"] if (target / name).is_file()}
    for name in manifest["files"]:
        with (target / name).open("rb") as file:
            manifest["files"][name] = hashlib.file_digest(file, "sha256").hexdigest()
    (target / MANIFEST).write_text(json.dumps(with_checksum(manifest)))
    return target


def _scale_summary(folder: Path, factor: float) -> None:
    """Multiply the counts of rows in an audit's or an evaluation's summary."""
    path = folder / "summary.json"
    if not path.is_file():
        return
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("rows", "labelled"):
        if key in summary:
            summary[key] = round(summary[key] * factor)
    by_group = summary.get("categories", {}).get("rows_by_relation")
    if by_group:
        summary["categories"]["rows_by_relation"] = {name: round(count * factor) for name, count in by_group.items()}
    for floor in (summary.get("majority_floor") or {}).values():
        floor["rows"] = round(floor["rows"] * factor)
    path.write_text(json.dumps(summary), encoding="utf-8")
