"""What must hold of every reader, whatever the bytes: rows that are all accounted for, or an error that names the file.

`readers()` are all of them, with the inputs to try. Used by `test_fuzz.py` and, for a long run, `benchmarks/fuzz.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import polars as pl

from foreknow.data.builtin import entityquestions, popqa
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.layouts import relation_templates
from foreknow.data.layouts.registry import LAYOUTS
from foreknow.data.schema import ROWS, USABLE
from foreknow.errors import ForeknowError, InputError
from foreknow.io.compression import zstd
from foreknow.io.readers import read_part
from odd_files import (
    LARGEST,
    POPQA,
    SEEDS,
    TEMPLATES,
    Random,
    as_anything,
    as_arrow,
    as_json,
    as_jsonl,
    as_parquet,
    as_table,
    as_wrapped,
    mutated,
    odd_dialect,
    odd_saved,
    odd_templates,
    odd_tree,
    odd_zip,
    seeds_of,
)

SLOW = 5.0
"""Seconds of computing within which an input must be read."""


class Reader(NamedTuple):
    """What reads `file`. `seeds`: valid contents. `made`: contents of odd values.

    `unpack` takes a packing off, so that what is inside can be changed, and `pack` puts it on again.
    """

    file: str
    read: Callable[[Path], None]
    seeds: Callable[[], Sequence[bytes]]
    made: Callable[[Random], bytes]
    unpack: Callable[[bytes], bytes] | None = None
    pack: Callable[[bytes], bytes] | None = None
    called: str = ""
    """How messages call the file, if not by its name."""


class Unlike(AssertionError):
    """A reader kept to no rule of ours."""


def outcome(reader: Reader, path: Path) -> str:
    """Whether the file is read ("clean") or "refused"; whatever else happens is raised."""
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(path)
        said = None
    except ForeknowError as error:
        said = str(error)
    seconds = time.process_time() - began
    if seconds > SLOW:
        raise Unlike(f"took {seconds:.1f} s")
    if said is None:
        return "clean"
    said.encode()
    if (reader.called or path.name) not in said:
        raise Unlike(f"does not name the file: {said}")
    if len(said) > LARGEST or said.count("\n") > 1:
        raise Unlike(f"says too much: {said[:80]}")
    return "refused"


def read_rows(path: Path, **how: Any) -> None:
    """Every record becomes rows, is written back beside labels, and is the same rows when it is read again."""
    read = partial(read_dataset, templates=TEMPLATES, **how)
    facts = read(path)
    rows = facts.rows
    if facts.source.kind == "file":
        _hold(facts.records in (counts := records(path)), f"rows of {facts.records} records, found {counts}")
    _hold(facts.total == rows.filter(USABLE).height + sum(facts.left_out.values()), "rows are not accounted for")
    _hold(rows["row"].to_list() == list(range(facts.total)) == facts.audited.to_list(), "rows are lost")
    _hold(rows.schema == pl.Schema(ROWS), "another schema")
    facts.extra([name for name in facts.columns if "\ud800" not in name])
    labels = pl.DataFrame({"row": [0], "category": ["Unknown"], "p_hit": [0.5], "flags": [["a", "b"]]})
    annotated = path.with_name(f"annotated{facts.suffix}")
    facts.annotate(labels, annotated)
    _hold(read(annotated).rows.equals(rows), "annotated, it reads as other rows")
    if facts.source.kind == "file":
        _rewrite(facts, path.with_name(f"written{facts.suffix}"), read)


def _rewrite(facts: Dataset, path: Path, read: Callable[..., Dataset]) -> None:
    """One row is written with another answer; all else of it stays, and no other is one to learn."""
    part = facts.source.parts[0]
    layout = facts.layouts[part.name]
    columns = set(layout.columns.values())
    every = [record for batch in read_part(part) for record in batch.records]
    if layout.choices is not None:  # a column of a table is there where it is empty, and is no question's then
        every = [{name: value for name, value in record.items() if value != ""} for record in every]
    # a row without some of its layout's columns would be of another layout, were it alone
    places = facts.rows.filter(USABLE).select("row", "record").iter_rows()
    row = next((row for row, record in places if columns <= set(every[record])), None)
    if row is None:
        return
    facts.write(pl.DataFrame({"row": [row], "category": ["Unknown"]}), path, {row: "I don't know."})
    back, was = read(path, layout=facts.layout).rows, facts.rows.filter(pl.col("row") == row)
    back = back.filter(USABLE)
    same = ["question", "subject", "relation", "split", "turn", "context", "facts"]
    _hold(back.height == 1 and back.select(same).equals(was.select(same)), "written, it reads as another row")
    _hold(back["answers"].to_list() == [["I don't know."]], "the answer was not replaced")


def read_drawn(path: Path) -> None:
    """With a limit, and with the layout named: the rows drawn are those of the whole, and all are counted."""
    content = path.read_bytes()
    how = {"layout": LAYOUTS[len(content) % len(LAYOUTS)]} if sum(content) % 2 else {"strict_rows": True}
    part = read_dataset(path, templates=TEMPLATES, limit=2, **how)
    whole = read_dataset(path, templates=TEMPLATES, **how)
    _hold(part.records == whole.records and part.total == whole.total, "rows are lost")
    _hold(whole.records in records(path), "records are lost")
    _hold(part.rows.equals(whole.rows.filter(pl.col("row").is_in(part.rows["row"].implode()))), "other rows are drawn")
    _hold(part.audited.len() == min(2, whole.rows.filter(USABLE).height) or part.total <= 2, "too few are drawn")


def read_standard_input(path: Path) -> None:
    """The format is told by the first bytes."""
    kept = sys.stdin
    with path.open("rb") as stream:
        sys.stdin = SimpleNamespace(buffer=stream)
        try:
            facts = read_dataset("-", templates=TEMPLATES)
        finally:
            sys.stdin = kept
    _hold(facts.rows.height == facts.total, "rows are lost")
    facts.annotate(pl.DataFrame({"row": [0], "category": ["Unknown"]}), path.with_name(f"annotated{facts.suffix}"))


def read_popqa(path: Path) -> None:
    """Every record becomes a row."""
    rows = popqa.read_popqa(str(path)).rows
    _hold(rows.height in records(path), "rows are lost")


def read_templates(path: Path) -> None:
    """Every template gives its subject back."""
    for template in relation_templates.read_templates(path).values():
        question = relation_templates.question(template, "Ann")
        _hold(relation_templates.subject_of(template, question) == "Ann", "the subject is lost")
        question.encode()


def read_tree(path: Path) -> None:
    """Every row is written or accounted for."""
    rows = entityquestions.read_tree(str(path), complete=False).rows
    try:
        splits = entityquestions.paper_splits(rows, TEMPLATES, check=False)
    except InputError:  # of the rows, not of a file: names relation and question
        return
    _hold(splits.account["rows"].sum() == rows.height, "rows are lost")


def records(path: Path) -> set[int]:
    """How many records a file holds, counted without foreknow: each number that a way to read it gives."""
    content = path.read_bytes()
    for magic, unpack in ((b"\x1f\x8b", ".gz"), (b"\x28\xb5\x2f\xfd", ".zst")):
        if content.startswith(magic):
            content = _unpackers()[unpack](content)
    kind = Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix
    if kind == ".parquet" or content.startswith(b"PAR1"):
        return {pl.read_parquet(io.BytesIO(content)).height}
    if content.startswith(b"ARROW1"):
        return {pl.read_ipc(io.BytesIO(content)).height}
    if content.startswith(b"\xff\xff\xff\xff"):
        return {pl.read_ipc_stream(io.BytesIO(content)).height}
    text = _decoded(content)
    if text.lstrip()[:1] in ("{", "["):
        return _json_rows(text)
    return _table_rows(text, "\t" if kind == ".tsv" else ",")


def _json_rows(text: str) -> set[int]:
    """The rows of a JSON text: the values that stand one behind the other, on however many lines, or of one value its
    lists and objects."""
    values, decoder, at, end = [], json.JSONDecoder(), 0, len(text.rstrip(" \t\r\n"))
    while at < end:
        value, at = decoder.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip(" \t\r\n")))
        values.append(value)
    return {len(values)} | (set(_sizes(values[0])) if len(values) == 1 else set())


def _sizes(value: Any, depth: int = 4) -> Iterator[int]:
    """The sizes of a value and of those in it; and of those that stand side by side, together."""
    if isinstance(value, dict | list) and depth:
        inner = list(value.values()) if isinstance(value, dict) else value
        yield len(inner)
        yield sum(len(each) for each in inner if isinstance(each, list))
        paragraphs = [each.get("paragraphs") for each in inner if isinstance(each, dict)]
        flat = [p for listed in paragraphs if isinstance(listed, list) for p in listed if isinstance(p, dict)]
        yield sum(len(p["qas"]) for p in flat if isinstance(p.get("qas"), list))
        for each in inner:
            yield from _sizes(each, depth - 1)


def _decoded(content: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding)
    return content.decode("utf-8-sig")


def _table_rows(text: str, usual: str) -> set[int]:
    """The rows of a table read in the usual way, where each has the header's cells; else in any way that gives rows."""
    lines = list(io.StringIO(text, newline=""))
    if lines and (stated := re.fullmatch(r'"?sep=(.)"?[ \t,;]*[\r\n]*', lines[0], re.IGNORECASE)):
        lines, usual = lines[1:], stated.group(1)
    ways: list[dict[str, Any]] = [
        {}, {"quotechar": "'"}, {"escapechar": "\\"}, {"quoting": csv.QUOTE_NONE},
        {"quotechar": "'", "escapechar": "\\"}, {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
    ]  # fmt: skip
    found: set[int] = set()
    limit = csv.field_size_limit(2**25)
    for start in sorted({0, next((n for n, line in enumerate(lines) if not line.startswith("#")), 0)}):
        for delimiter in dict.fromkeys([usual, *",;\t|~^\x1f\x01"]):
            for way in ways:
                for blank in (False, True):
                    read = csv.reader(lines[start:], delimiter=delimiter, strict=True, skipinitialspace=blank, **way)
                    try:
                        cells = [c for c in read if c and (len(c) > 1 or not c[0] or c[0].strip(" "))]
                    except csv.Error:
                        continue
                    widths = {len(c) for c in cells}
                    if (start, delimiter, way, blank) == (0, usual, {}, False) and len(widths) == 1 < max(widths):
                        found = {len(cells) - 1}
                        if "'" not in text:
                            csv.field_size_limit(limit)
                            return found
                    found.add(len(cells) - 1)
    csv.field_size_limit(limit)
    return found


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unlike(otherwise)


def random_input(rng: Random, reader: Reader, seeds: Sequence[bytes]) -> bytes:
    """Odd values, or a valid file, or either with its bytes changed: outside, or inside of its packing."""
    made = reader.made(rng) if rng.random() < 0.7 else rng.choice(seeds)
    if rng.random() < 0.4:
        return made
    return inside(reader, made, lambda content: mutated(rng, content, seeds), rng.random() < 0.5)


def inside(reader: Reader, content: bytes, change: Callable[[bytes], bytes], inner: bool) -> bytes:
    """The content changed; with `inner`, what is packed in it, where it is packed and can be unpacked."""
    if inner and reader.pack is not None and reader.unpack is not None:
        try:
            return reader.pack(change(reader.unpack(content)))
        except Exception:
            pass
    return change(content)


@cache
def _unpackers() -> dict[str, Callable[[bytes], bytes]]:
    return {".gz": gzip.decompress, ".zst": zstd().decompress}


def _packed(file: str, kind: str, made: Callable[[Random], bytes]) -> Reader:
    pack = {".gz": partial(gzip.compress, compresslevel=1), ".zst": zstd().compress}[Path(file).suffix]
    unpack = _unpackers()[Path(file).suffix]
    return Reader(file, read_rows, lambda: [pack(s) for s in seeds_of(kind)], lambda r: pack(made(r)), unpack, pack)


@cache
def readers() -> dict[str, Reader]:
    """Every reader by name."""
    csv_, tsv = partial(as_table, delimiter=","), partial(as_table, delimiter="\t")
    dialects = partial(seeds_of, "dialects")
    chats = [seed for seed in SEEDS if any(isinstance(value, list) for value in seed.values())]
    grouped = [{**seed, "relation": "capital"} for seed in SEEDS]
    lines, table, tree = partial(seeds_of, "jsonl"), partial(seeds_of, "tsv", [POPQA]), partial(_some, odd_tree)
    made = [as_jsonl, as_json, csv_, tsv, as_parquet, lambda rng: gzip.compress(as_jsonl(rng))]
    every = lambda: [content for kind in ("jsonl", "json", "csv", "tsv", "parquet") for content in seeds_of(kind)]  # noqa: E731
    by_relation = partial(read_rows, group_by="relation")
    return {
        "jsonl": Reader("a.jsonl", read_rows, lines, as_jsonl),
        "json": Reader("a.json", read_rows, partial(seeds_of, "json"), as_json),
        "csv": Reader("a.csv", read_rows, partial(seeds_of, "csv"), csv_),
        "tsv": Reader("a.tsv", read_rows, partial(seeds_of, "tsv"), tsv),
        "dialects": Reader("b.csv", read_rows, dialects, odd_dialect),
        "dialects-tsv": Reader("b.tsv", read_rows, dialects, odd_dialect),
        "parquet": Reader("a.parquet", read_rows, partial(seeds_of, "parquet"), as_parquet),
        "gzip": _packed("a.jsonl.gz", "jsonl", as_jsonl),
        "zstd": _packed("a.csv.zst", "csv", csv_),
        "zip": Reader("a.zip", read_rows, partial(_some, odd_zip), odd_zip),
        "chats": Reader("c.jsonl", read_rows, lines, partial(as_jsonl, seeds=chats)),
        "groups": Reader("g.jsonl", by_relation, partial(seeds_of, "jsonl", grouped), partial(as_jsonl, seeds=grouped)),
        "drawn": Reader("d.json", read_drawn, partial(seeds_of, "json"), as_json),
        "stdin": Reader(
            "stdin", read_standard_input, every, lambda rng: rng.choice(made)(rng), called="standard input"
        ),
        "wrapped": Reader("w.json", read_rows, partial(seeds_of, "wrapped"), as_wrapped),
        "arrow": Reader("a.arrow", read_rows, partial(seeds_of, "arrow"), as_arrow),
        "saved": Reader("s.zip", read_rows, partial(_some, odd_saved), odd_saved),
        "misnamed": Reader("m.txt", read_rows, every, as_anything),
        "templates": Reader("t.yaml", read_templates, partial(_some, odd_templates), odd_templates),
        "templates-json": Reader("t.json", read_templates, lambda: [json.dumps(TEMPLATES).encode()], odd_templates),
        "popqa": Reader("p.tsv", read_popqa, table, partial(tsv, seeds=[POPQA])),
        "tree": Reader("e.zip", read_tree, tree, odd_tree),
        "tree-rows": Reader("f.zip", read_rows, tree, odd_tree),
    }


def _some(made: Callable[[Random], bytes]) -> list[bytes]:
    return [made(Random(number)) for number in range(9)]
