"""Fuzz every reader: whatever the bytes, rows that are all accounted for, or an error of ours that names the file.

    python benchmarks/fuzz.py --inputs 100000 [--reader csv ...] [--engine random|atheris|both] [--out runs/fuzz]

`random` changes valid files: their values, and their bytes (before they are packed, and after). `atheris` is guided
by coverage, where it is installed. Each reader runs in a process of its own with 4 GiB of address space; one that
dies or hangs is a failure too, and is started again. An input that reads cleanly is also annotated, one row of it
is written with another answer, and both outputs are read back. Failing inputs are kept under --out.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import importlib.util
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

LARGEST = 4096
"""Bytes of an input."""
ADDRESS_SPACE = 4 << 30
SLOW, HANGS = 5.0, 60.0
"""Seconds: an input that takes longer is a failure; its process is ended."""
INSTRUMENTED = [
    f"foreknow.{name}" for name in ("formats", "layouts", "chats", "sources", "facts", "templates", "popqa")
]
TEMPLATES = {"capital": "What is the capital of [X]?", "P17": "Where is [X]?"}

Json = Any
Random = random.Random


class Reader(NamedTuple):
    """`seeds`: valid files. `made`: a file of odd values. `repack`: takes a packing off, and puts it on again."""

    file: str
    read: Callable[[Path], None]
    seeds: Callable[[], Sequence[bytes]]
    made: Callable[[Random], bytes]
    unpack: Callable[[bytes], bytes] | None = None
    pack: Callable[[bytes], bytes] | None = None


class Unlike(AssertionError):
    """A reader kept to no rule of ours."""


# what must hold


def outcome(reader: Reader, path: Path) -> str:
    """ "clean" or "refused"; whatever else happens is raised."""
    from foreknow.errors import ForeknowError

    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(path)
        said = None
    except ForeknowError as error:
        said = str(error)
    seconds = time.perf_counter() - began
    if seconds > SLOW:
        raise Unlike(f"took {seconds:.1f} s")
    if said is None:
        return "clean"
    said.encode()
    if path.name not in said:
        raise Unlike(f"does not name the file: {said}")
    if len(said) > 4 * LARGEST or said.count("\n") > 2:
        raise Unlike(f"says too much: {said[:80]}")
    return "refused"


def read_rows(path: Path, **how: Any) -> None:
    """Every record becomes a row, is written back, and is the same row when it is read again."""
    import polars as pl

    from foreknow.facts import read_facts
    from foreknow.formats import read_part
    from foreknow.rows import ROWS, USABLE

    read = partial(read_facts, templates=TEMPLATES, **how)
    facts = read(path)
    rows = facts.rows
    count = records(path)
    _hold(count is None or facts.total == count, f"{facts.total} rows of {count} records")
    _hold(rows["row"].to_list() == list(range(facts.total)) == facts.audited.to_list(), "rows are lost")
    _hold(rows.schema == pl.Schema(ROWS), "another schema")
    facts.extra([name for name in facts.columns if "\ud800" not in name])
    labels = pl.DataFrame({"row": [0], "category": ["Unknown"], "p_hit": [0.5], "flags": [["a", "b"]]})
    whole, some = (path.with_name(f"{name}{facts.suffix}") for name in ("whole", "some"))
    facts.annotate(labels, whole)
    _hold(read(whole).rows.equals(rows), "annotated, it reads as other rows")
    if facts.source.kind == "file":
        part = facts.source.parts[0]
        columns = set(facts.layouts[part.name].columns.values())
        every = [record for batch in read_part(part) for record in batch.records]
        # a row without some of its layout's columns would be of another layout, were it alone
        whole_rows = [row for row in rows.filter(USABLE)["row"] if columns <= set(every[row])]
        for row in whole_rows[:1]:
            facts.write(labels.with_columns(row=pl.Series([row])), some, {row: "I don't know."})
            back, was = read(some, layout=facts.layout).rows, rows.filter(pl.col("row") == row)
            same = ["question", "subject", "relation", "split", "context", "facts"]
            _hold(back.height == 1 and back.select(same).equals(was.select(same)), "written, it reads as another row")
            _hold(back["answers"].to_list() == [["I don't know."]], "the answer was not replaced")


def read_popqa(path: Path) -> None:
    from foreknow.popqa import read_popqa

    rows = read_popqa(str(path)).rows
    _hold(rows.height == records(path), "rows are lost")


def read_templates(path: Path) -> None:
    from foreknow.templates import question, read_templates, subject_of

    for template in read_templates(path).values():
        _hold(subject_of(template, question(template, "Ann")) == "Ann", "the subject is lost")
        template.encode()


def read_tree(path: Path) -> None:
    from foreknow.entityquestions import paper_splits, read_tree
    from foreknow.errors import InputError

    rows = read_tree(str(path), complete=False).rows
    try:
        splits = paper_splits(rows, TEMPLATES, check=False)
    except InputError:  # of the rows, not of a file: names relation and question
        return
    _hold(splits.account["rows"].sum() == rows.height, "rows are lost")


def records(path: Path) -> int | None:
    """How many records a file holds, counted without foreknow; None for a zip."""
    import polars as pl

    if path.suffix == ".zip":
        return None
    content = path.read_bytes()
    if path.suffix in (".gz", ".zst"):
        content = _unpackers()[path.suffix](content)
    kind = Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix
    if kind == ".parquet":
        return pl.read_parquet(io.BytesIO(content)).height
    text = content.decode("utf-8-sig")
    if kind == ".jsonl":
        return sum(bool(line.strip(" \t\r")) for line in text.split("\n"))
    if kind == ".json":
        return len(json.loads(text))
    cells = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
    return sum(map(bool, cells)) - 1


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unlike(otherwise)


# inputs

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris"}]  # fmt: skip
PARTS = [CHAT[3], {"role": "assistant", "content": [{"type": "text", "text": "Paris"}]}]
SHAREGPT = [{"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "Paris"}]
POPQA = {"id": "1", "subj": "France", "prop": "capital", "obj": "Paris", "s_pop": "12",
         "question": "Capital of France?", "possible_answers": '["Paris", "Paname"]'}  # fmt: skip
SEEDS: list[dict[str, Json]] = [
    {"question": "Capital of France?", "answer": "Paris", "split": "train", "popularity": 7},
    {"question": "Capital of France?", "answers": ["Paris", "Paname"], "facts": [{"question": "q", "answer": "a"}]},
    {"prompt": "Capital of France?", "completion": "Paris", "system": "Be brief."},
    {"prompt": CHAT[:4], "completion": CHAT[4:]},
    {"messages": CHAT},
    {"messages": PARTS},
    {"conversations": SHAREGPT, "system": "Be brief."},
    {"instruction": "Name the capital.", "input": "France", "output": "Paris", "history": [["a", "b"]]},
    POPQA,
    {"subject": "France", "relation": "capital", "object": "Paris"},
]
KEYS = sorted({key for record in SEEDS for key in record} | {"gold", "label", "q", "role", "x", "", "\ufeff", "\ud800"})
ODD: list[Json] = [
    "", " ", "Paris", "é", "e\u0301", "\x00", "\ud800", "\udc00\ud83d", "\u2028", "\x85", "\ufeffq", "[", "[]", '["a"]',
    '[["a"]]', '[{"role": "user", "content": "q"}]', "[X]", "null", "nan", "1e999", "9" * 30, '"', "a,b", "\r", "\r\n",
    "\n", "\t", "'", "\\", "{}", "true", "validation", "P17", "capital", 0, -1, 7, 10**30, 1.5, 1e308, float("nan"),
    float("inf"), True, False, None, [], {}, [None], [[]], [{}], ["a", 1], {"question": "q", "answer": "a"},
]  # fmt: skip
TOKENS = [json.dumps(value).encode() for value in ODD] + [
    b"{", b"}", b"]", b",", b":", b'"', b"\\u", b"\\ud800", b"\n", b"\r", b"\r\n", b"\t", b"\x00", b"\xff", b"\xc3",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[" * 2000, b'{"a":' * 500, b"9" * 1000, b"PAR1", b"PK\x03\x04", b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x08", b"!!int ''", b"&a [*a]",
    b"question", b"answer", b"messages", b"role", b"content", b"? ", b"- ", b"<<: ", b"!!timestamp x", b"%YAML 9",
]  # fmt: skip


def odd_value(rng: Random, depth: int = 3) -> Json:
    kind = rng.random()
    if depth and kind < 0.12:
        return [odd_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if depth and kind < 0.24:
        return {rng.choice(KEYS): odd_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    if depth and kind < 0.4:
        role, content = rng.choice([("role", "content"), ("from", "value")])
        roles = ["user", "assistant", "gpt", "human", "system", "tool", "\ud800", "", None, 7, "USER "]
        return [{role: rng.choice(roles), content: odd_value(rng, depth - 2)} for _ in range(rng.randrange(5))]
    return copy.deepcopy(rng.choice(ODD))


def odd_record(rng: Random, seed: dict[str, Json]) -> dict[str, Json]:
    """A record with some of its fields left out, renamed, or of another value, at any depth."""
    made = json.loads(json.dumps(seed))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        inner = rng.choice(list(_containers(made)))
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = rng.choice(keys) if keys and rng.random() < 0.9 else None
        if isinstance(inner, dict) and (key is None or rng.random() < 0.2):
            inner[rng.choice(KEYS)] = odd_value(rng) if key is None else inner.pop(key)
        elif key is None or rng.random() < 0.1:
            inner.insert(0, odd_value(rng)) if isinstance(inner, list) else inner.pop(key)
        else:
            inner[key] = odd_value(rng)
    return made


def _containers(value: Json) -> Iterator[Json]:
    """The value's objects and arrays, itself first."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def odd_records(rng: Random, seeds: Sequence[dict[str, Json]] = ()) -> list[Json]:
    seed = rng.choice(seeds or SEEDS)
    made: list[Json] = [odd_record(rng, seed) for _ in range(rng.randrange(1, 5))]
    return made if rng.random() < 0.95 else [*made, odd_value(rng)]


def as_jsonl(rng: Random, seeds: Sequence[dict[str, Json]] = ()) -> bytes:
    dump = partial(json.dumps, ensure_ascii=rng.random() < 0.5)
    ends = rng.choice(["\n", "\n", "\r\n", "\n\n", " \n"])
    return "".join(dump(each) + ends for each in odd_records(rng, seeds)).encode("utf-8", "backslashreplace")


def as_json(rng: Random, seeds: Sequence[dict[str, Json]] = ()) -> bytes:
    text = json.dumps(odd_records(rng, seeds), indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "backslashreplace")


def as_table(rng: Random, delimiter: str, seeds: Sequence[dict[str, Json]] = ()) -> bytes:
    rows = [record for record in odd_records(rng, seeds) if isinstance(record, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO(newline="")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n", "\r"]))
    writer.writerows([header, *([_cell(row.get(key)) for key in header] for row in rows)])
    return (rng.choice(["", "", "\ufeff"]) + out.getvalue()).encode("utf-8", "replace")


def as_parquet(rng: Random, frame: Any = None) -> bytes:
    """A table of chats and texts, or one whose columns are of any type there is."""
    import polars as pl

    frame = _odd_frame(rng) if frame is None else frame
    out = io.BytesIO()
    packing = rng.choice(["uncompressed", "uncompressed", "snappy", "zstd", "gzip", "lz4"])
    try:
        frame.write_parquet(
            out, compression=packing, statistics=rng.random() < 0.5, row_group_size=rng.choice([None, 2])
        )
    except pl.exceptions.PolarsError:  # a type that Parquet does not have
        pl.DataFrame({"question": ["q"], "answer": ["a"]}).write_parquet(out)
    return out.getvalue()


def _odd_frame(rng: Random) -> Any:
    import polars as pl

    if rng.random() < 0.4:
        return pl.DataFrame([rng.choice(_uniform())] * rng.randrange(1, 4), infer_schema_length=None)
    columns: list[pl.Series] = []
    for name in dict.fromkeys([*rng.choices([key for key in KEYS if key != "\ud800"], k=2), "question", "answer"]):
        dtype, value = rng.choice(_columns())
        columns.append(pl.Series(name, [value, None, value][:3], dtype=dtype, strict=False))
    return pl.DataFrame(columns)


def _uniform() -> list[dict[str, Json]]:
    """The seeds whose lists hold values of one type."""
    return [seed for seed in SEEDS if seed.get("messages") is not PARTS]


@cache
def _columns() -> list[tuple[Any, Any]]:
    import polars as pl

    kinds: list[tuple[Any, Any]] = [(pl.String(), "Paris")] * 6 + [
        (pl.Int8(), 7), (pl.UInt64(), 2**64 - 1), (pl.Int128(), 2**100), (pl.Float32(), 1.5), (pl.Float64(), float("nan")),
        (pl.Boolean(), True), (pl.Date(), date(1975, 1, 1)), (pl.Binary(), b"\xff"), (pl.Null(), None),
        (pl.Datetime("ns", "UTC"), datetime(1975, 1, 1)), (pl.Duration("us"), timedelta(days=1)),
        (pl.Decimal(38, 2), Decimal("1.50")), (pl.Categorical(), "a"), (pl.Enum(["a", "b"]), "a"),
        (pl.List(pl.String()), ["a", None]), (pl.List(pl.Int64()), [1]), (pl.Array(pl.String(), 2), ["a", "b"]),
        (pl.Struct({"a": pl.Int64()}), {"a": 1}), (pl.List(pl.Struct({"role": pl.String(), "content": pl.String()})),
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]), (pl.Time(), None),
        (pl.List(pl.Struct({"from": pl.String(), "value": pl.Int64()})), [{"from": "gpt", "value": 1}]),
    ]  # fmt: skip
    return [*kinds, (pl.Date(), 2**31 - 1), (pl.Datetime("ms"), 2**63 - 1), (pl.Duration("ms"), 2**63 - 1)]


def as_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, method)
    return out.getvalue()


def odd_zip(rng: Random) -> bytes:
    makers: dict[str, Callable[[Random], bytes]] = {
        "train.jsonl": as_jsonl, "a/dev.json": as_json, "../b.csv": partial(as_table, delimiter=","),
        "P17.test.json": as_json, "c.jsonl.gz": lambda rng: gzip.compress(as_jsonl(rng)), "README.md": as_jsonl,
    }  # fmt: skip
    names = rng.sample(sorted(makers), rng.randrange(1, 4))
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    return as_zip({name: makers[name](rng) for name in names}, method)


def odd_tree(rng: Random) -> bytes:
    rows = [{"question": f"Where is {n}?", "answers": ["x"]} for n in "ab"]
    names = [f"{split}/P17.{split}.json" for split in ("train", "dev", "test")]
    members = {name: json.dumps(rows).encode() for name in names if rng.random() < 0.8}
    members[rng.choice(names)] = as_json(rng, rows)
    return as_zip(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def odd_templates(rng: Random) -> bytes:
    made = odd_record(rng, {**TEMPLATES, rng.choice(["x", "\ud800", "1"]): rng.choice(["[X]", "[X][X]", "\ud800 [X]"])})
    if rng.random() < 0.5:
        return json.dumps(made).encode()
    return "".join(f"{k}: {json.dumps(v)}\n" for k, v in made.items()).encode("utf-8", "replace")


def seeds_of(kind: str) -> list[bytes]:
    """Valid files of a format, one of each layout."""
    import polars as pl

    if kind == "parquet":
        rng = Random(0)
        return [as_parquet(rng, pl.DataFrame([seed] * 2)) for seed in _uniform()]
    files = []
    for seed in SEEDS:
        header, cells = list(seed), [_cell(value) for value in seed.values()]
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n").writerows([header, cells, cells])
        line = json.dumps(seed)
        files.append({"jsonl": f"{line}\n{line}\n", "json": f"[{line},\n {line}]"}.get(kind, out.getvalue()).encode())
    return files


def _cell(value: Json) -> Json:
    return json.dumps(value) if isinstance(value, list | dict) else value


def mutated(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes with up to eight things done to them."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.choice([1, 1, 2, 4, 16, 256]))
        kind = rng.randrange(8)
        if kind == 0:
            made[at:end] = b""
        elif kind == 1:
            made[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            made[at:end] = rng.choice(TOKENS)
        elif kind == 3:
            made[at:at] = made[at:end]
        elif kind == 4:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            made[at:end] = other[cut : cut + rng.choice([4, 64, 1024])]
        elif kind == 5:
            del made[at:]
        elif at < len(made):
            made[at] = rng.randrange(256) if kind == 6 else made[at] ^ (1 << rng.randrange(8))
    return bytes(made[:LARGEST])


def random_input(rng: Random, reader: Reader, seeds: Sequence[bytes]) -> bytes:
    """Odd values, or a valid file, or either with its bytes changed: outside, or inside of its packing."""
    made = reader.made(rng) if rng.random() < 0.7 else rng.choice(seeds)
    if rng.random() < 0.4:
        return made
    if reader.pack is None or reader.unpack is None or rng.random() < 0.5:
        return mutated(rng, made, seeds)
    return reader.pack(mutated(rng, reader.unpack(made), [reader.unpack(seed) for seed in seeds]))


@cache
def _unpackers() -> dict[str, Callable[[bytes], bytes]]:
    from foreknow.sources import _zstd

    return {".gz": gzip.decompress, ".zst": _zstd().decompress}


def _packed(file: str, kind: str, made: Callable[[Random], bytes]) -> Reader:
    from foreknow.sources import _zstd

    pack = {".gz": partial(gzip.compress, compresslevel=1), ".zst": _zstd().compress}[Path(file).suffix]
    unpack = _unpackers()[Path(file).suffix]
    return Reader(file, read_rows, lambda: [pack(s) for s in seeds_of(kind)], lambda r: pack(made(r)), unpack, pack)


@cache
def readers() -> dict[str, Reader]:
    """Every reader by name."""
    chats = [seed for seed in SEEDS if any(isinstance(value, list) for value in seed.values())]
    return {
        "jsonl": Reader("a.jsonl", read_rows, partial(seeds_of, "jsonl"), as_jsonl),
        "json": Reader("a.json", read_rows, partial(seeds_of, "json"), as_json),
        "csv": Reader("a.csv", read_rows, partial(seeds_of, "csv"), partial(as_table, delimiter=",")),
        "tsv": Reader("a.tsv", read_rows, partial(seeds_of, "tsv"), partial(as_table, delimiter="\t")),
        "parquet": Reader("a.parquet", read_rows, partial(seeds_of, "parquet"), as_parquet),
        "gzip": _packed("a.jsonl.gz", "jsonl", as_jsonl),
        "zstd": _packed("a.csv.zst", "csv", partial(as_table, delimiter=",")),
        "zip": Reader("a.zip", read_rows, lambda: [odd_zip(Random(n)) for n in range(9)], odd_zip),
        "chats": Reader("c.jsonl", read_rows, partial(seeds_of, "jsonl"), partial(as_jsonl, seeds=chats)),
        "grouped": Reader("g.jsonl", partial(read_rows, group_by="relation"), partial(seeds_of, "jsonl"),
                          partial(as_jsonl, seeds=[{**seed, "relation": "capital"} for seed in SEEDS])),
        "templates": Reader("t.yaml", read_templates, lambda: [odd_templates(Random(n)) for n in range(9)], odd_templates),
        "templates-json": Reader("t.json", read_templates, lambda: [b'{"P17": "Where is [X]?"}'], odd_templates),
        "popqa": Reader("p.tsv", read_popqa, lambda: [as_table(Random(0), "\t", [POPQA])],
                        partial(as_table, delimiter="\t", seeds=[POPQA])),
        "tree": Reader("e.zip", read_tree, lambda: [odd_tree(Random(n)) for n in range(9)], odd_tree),
        "tree-rows": Reader("f.zip", read_rows, lambda: [odd_tree(Random(n)) for n in range(9)], odd_tree),
    }  # fmt: skip


# a process for one reader


class Tally:
    """What came of the inputs so far, in a file that outlives the process."""

    FIELDS = ("clean", "refused", "failed", "peak_kib", "first_kib", "slowest_us")
    FORM = struct.Struct(f"<{len(FIELDS)}q")

    def __init__(self, folder: Path):
        self.file = (folder / "tally").open("r+b" if (folder / "tally").exists() else "w+b", buffering=0)
        self.found = dict(zip(self.FIELDS, self.FORM.unpack(self.file.read() or bytes(self.FORM.size)), strict=True))

    def add(self, what: str, seconds: float = 0.0) -> None:
        self.found[what] += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if seconds else 0
        self.found["peak_kib"] = max(self.found["peak_kib"], peak)
        self.found["first_kib"] = self.found["first_kib"] or peak
        self.found["slowest_us"] = max(self.found["slowest_us"], int(seconds * 1e6))
        self.file.seek(0)
        self.file.write(self.FORM.pack(*self.found.values()))

    @property
    def inputs(self) -> int:
        return self.found["clean"] + self.found["refused"] + self.found["failed"]


def child(name: str, engine: str, inputs: int, seed: int, folder: Path) -> None:
    """Run so many inputs through one reader."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with (folder / "stderr.txt").open("a") as log:
        os.dup2(log.fileno(), 2)
    reader = readers()[name]
    tally = Tally(folder)
    kept: dict[str, int] = {}

    def one(content: bytes) -> None:
        path = folder / reader.file
        path.write_bytes(content[:LARGEST])
        began = time.perf_counter()
        try:
            what = outcome(reader, path)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            what = "failed"
            _keep(folder, path, error, kept)
        tally.add(what, time.perf_counter() - began)

    if engine == "atheris":
        _atheris(reader, one, inputs, seed, folder)
        return
    rng, seeds = Random(f"{name} {seed}"), reader.seeds()
    for _ in range(inputs):
        one(random_input(rng, reader, seeds))


def _atheris(reader: Reader, one: Callable[[bytes], None], inputs: int, seed: int, folder: Path) -> None:
    """Inputs guided by coverage of our own code; half of the changes are ours, half libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        import foreknow.facts
        import foreknow.popqa  # noqa: F401
    seeds = reader.seeds()
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)

    def mutate(content: bytes, largest: int, number: int) -> bytes:
        rng = Random(number)
        if rng.random() < 0.5:
            return random_input(rng, reader._replace(made=lambda _: content), seeds)[:largest]
        if reader.pack and reader.unpack and rng.random() < 0.5:
            try:
                return reader.pack(bytes(atheris.Mutate(reader.unpack(content), LARGEST)))[:largest]
            except Exception:  # no valid packing to take off
                pass
        return bytes(atheris.Mutate(content, largest))

    flags = [f"-runs={inputs}", f"-seed={seed + 1}", f"-max_len={LARGEST}", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def _keep(folder: Path, path: Path, error: BaseException, kept: dict[str, int]) -> None:
    """Keep the input and the traceback, once for each place that fails."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "foreknow" in frame.filename]
    key = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else repr(error)[:80]
    kept[key] = kept.get(key, 0) + 1
    if kept[key] > 1 or len(kept) > 20:
        return
    failures = folder / "failures"
    failures.mkdir(exist_ok=True)
    number = len(list(failures.glob("*.txt")))
    shutil.copy(path, failures / f"{number}-{path.name}")
    (failures / f"{number}.txt").write_text("".join(traceback.format_exception(error)), "utf-8", "backslashreplace")


# the run


def fuzz(name: str, engine: str, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """Run a reader's process, again after each death, until all inputs are through."""
    folder = out / f"{name}-{engine}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tally, began, deaths = Tally(folder), time.perf_counter(), []
    while tally.inputs < inputs and len(deaths) < 10:
        left = inputs - tally.inputs
        command = [sys.executable, __file__, "--child", name, engine, str(left), str(seed + len(deaths)), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "RUST_BACKTRACE": "0"})
        seen, moved = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            tally = Tally(folder)
            if tally.inputs != seen:
                seen, moved = tally.inputs, time.monotonic()
            elif time.monotonic() - moved > HANGS:
                process.kill()
        tally = Tally(folder)
        if process.returncode:
            deaths.append(f"ended with {process.returncode}" if process.returncode != -signal.SIGKILL else "hung")
            tally.add("failed")
            _keep(folder, folder / readers()[name].file, Unlike(deaths[-1]), {})
        elif tally.inputs < inputs:  # libFuzzer counts a few inputs of its own
            seed += 1
    panics = re.findall(r"panicked at", (folder / "stderr.txt").read_text("utf-8", "replace"))
    return {
        "reader": name, "engine": engine, "inputs": tally.inputs, **tally.found, "panics_caught": len(panics),
        "deaths": deaths, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, shared out over the readers")
    parser.add_argument("--reader", nargs="*", choices=list(readers()), default=list(readers()))
    parser.add_argument("--engine", choices=["random", "atheris", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, engine, inputs, seed, folder = args.child
        child(name, engine, int(inputs), int(seed), Path(folder))
        return
    engines = ["random", "atheris"] if args.engine == "both" else [args.engine]
    if "atheris" in engines and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: changes at random only", file=sys.stderr)
        engines = ["random"]
    each = -(-args.inputs // (len(args.reader) * len(engines)))
    print("| reader | engine | inputs | clean | refused | failed | Rust panics | slowest | peak memory | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    results = []
    for name in args.reader:
        for engine in engines:
            r = fuzz(name, engine, each, args.seed, args.out)
            results.append(r)
            cells = [f"{r[key]:,}" for key in ("inputs", "clean", "refused", "failed", "panics_caught")]
            cells += [f"{r['slowest_us'] / 1e3:.0f} ms", f"{r['peak_kib'] / 1024:.0f} MiB", f"{r['seconds']:.0f}"]
            print(f"| {name} | {engine} | {' | '.join(cells)} |", flush=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    total = {key: sum(r[key] for r in results) for key in ("inputs", "clean", "refused", "failed", "seconds")}
    peak, first = (max(r[key] for r in results) / 1024 for key in ("peak_kib", "first_kib"))
    print(
        f"\n{total['inputs']:,} inputs: {total['clean']:,} clean, {total['refused']:,} refused, {total['failed']:,} "
        f"failed; peak memory {peak:.0f} MiB (after a first input {first:.0f}), {total['seconds']:.0f} s"
    )
    sys.exit(1 if total["failed"] else 0)


if __name__ == "__main__":
    main()
