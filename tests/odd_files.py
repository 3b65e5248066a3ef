"""Odd files: bytes of every format that a reader must either take or refuse. Every choice is a `random.Random`'s."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from typing import Any

import polars as pl

LARGEST = 4096
"""Bytes of an input."""
TEMPLATES = {"capital": "What is the capital of [X]?", "P17": "Where is [X]?"}
Json = Any
Random = random.Random

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris"}]  # fmt: skip
PARTS = [CHAT[3], {"role": "assistant", "content": [{"type": "text", "text": "Paris"}]}]
SHAREGPT = [{"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "Paris"}]
CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
AGENT = [CHAT[3], {"role": "assistant", "content": None, "tool_calls": CALL}, {"role": "tool", "content": "Paris"},
         CHAT[4], {"role": "user", "content": "Sure?"},
         {"role": "assistant", "content": "Yes", "weight": 0}]  # fmt: skip
THOUGHTS = [CHAT[3], {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nParis", "reasoning_content": "Hm."},
            {"role": "user", "content": [{"type": "text", "text": "And of Peru?"}]},
            {"role": "assistant", "content": "Lima", "train": True}]  # fmt: skip
POPQA = {"id": "1", "subj": "France", "prop": "capital", "obj": "Paris", "s_pop": "12",
         "question": "Capital of France?", "possible_answers": '["Paris", "Paname"]'}  # fmt: skip
TREE = {"message_tree_id": "t", "prompt": {"text": "Capital?", "role": "prompter", "replies": [
    {"text": "Paris", "role": "assistant", "rank": 0, "replies": [{"text": "And?", "role": "prompter", "replies": [
        {"text": "Rome", "role": "assistant", "replies": []}]}]},
    {"text": "Rome", "role": "assistant", "rank": 1, "replies": []}]}}  # fmt: skip
SEEDS: list[dict[str, Json]] = [
    {"question": "Capital of France?", "answer": "Paris", "split": "train", "popularity": 7},
    {"question": "Capital of France?", "answers": ["Paris", "Paname"], "facts": [{"question": "q", "answer": "a"}]},
    {"prompt": "Capital of France?", "completion": "Paris", "system": "Be brief."},
    {"prompt": CHAT[:4], "completion": CHAT[4:]},
    {"messages": CHAT},
    {"messages": PARTS},
    {"messages": AGENT, "loss_mask": [1, 1, 1]},
    {"messages": THOUGHTS, "labelled_turns": [1, 3], "category": ["Unknown", None], "images": []},
    {
        "conversations": [
            *SHAREGPT,
            {"from": "human", "value": "And of Peru?"},
            {"from": "gpt", "value": "Lima", "loss": True},
        ]
    },
    {"prompt": CHAT[:2], "completion": [*CHAT[2:], {"role": "function_call", "content": "{}"}]},
    {"question": "Capital of France?", "answer": "<think>Hm.</think><answer>Paris</answer>"},
    {"conversations": SHAREGPT, "system": "Be brief."},
    {"instruction": "Name the capital.", "input": "France", "output": "Paris", "history": [["a", "b"]]},
    POPQA,
    {"subject": "France", "relation": "capital", "object": "Paris"},
    {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Rome", "margin": 0.5},
    {"chosen": CHAT, "rejected": [*CHAT[:4], {"role": "assistant", "content": "Rome"}]},
    {"chosen": "\n\nHuman: Capital?\n\nAssistant: Paris", "rejected": "\n\nHuman: Capital?\n\nAssistant: Rome"},
    {"prompt": "Capital of France?", "completion": "Paris", "label": True},
    {"question": "Capital of France?", "choices": ["Rome", "Paris", "Bern", "Oslo"], "answer": 1, "subject": "x"},
    {"question": "Capital of France?", "choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": "Capital of France?", "A": "Rome", "B": "Paris", "C": "Bern", "answer": "B"},
    {"question": "Capital?", "context": "It is Paris.", "answers": {"text": ["Paris"], "answer_start": [6]}},
    {"question": "Capital?", "answer": {"value": "Paris", "aliases": ["Paname"], "normalized_value": "paris"}},
    {"question": "is it so", "passage": "It is.", "answer": True},
    {"text": "<|im_start|>user\nCapital?<|im_end|>\n<|im_start|>assistant\nParis<|im_end|>\n"},
    {"text": "### Human: Hello?### Assistant: Hi.### Human: Capital?### Assistant: Paris"},
    {"text": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nCapital? [/INST] Paris </s>"},
    {"text": "Below is an instruction.\n\n### Instruction:\nName it.\n\n### Input:\nFrance\n\n### Response:\nParis"},
    {"prompt": "<|user|>\nCapital?<|end|>\n<|assistant|>\n", "completion": "Paris<|end|>"},
    {"conversation": [{"human": "Capital?", "assistant": "Paris"}, {"human": "Of Italy?", "assistant": "Rome"}]},
    {"conversations": ["Capital?", "Paris", "Of Italy?", "Rome"]},
    {"dialog": [{"speaker": "user", "text": "Capital?"}, {"speaker": "assistant", "text": "Paris"}]},
    {"instruction": "Name it.", "instances": [{"input": "France", "output": "Paris"}, {"input": "", "output": "b"}]},
    TREE,
]
KEYS = sorted({key for record in SEEDS for key in record} | {"gold", "label", "q", "role", "x", "", "\ufeff", "\ud800"})
ODD: list[Json] = [
    "", " ", "Paris", "None", "nan", "1912.0", "東京", "القاهرة", "a\u200bb", "'a'", "it''s", "a;b", "a|b",
    "é", "e\u0301", "\x00", "\ud800", "\udc00\ud83d", "\u2028", "\x85", "\ufeffq", "[", "[]", '["a"]',
    '[["a"]]', '[{"role": "user", "content": "q"}]', "[X]", "null", "nan", "1e999", "9" * 30, '"', "a,b", "\r", "\r\n",
    "\n", "\t", "'", "\\", "{}", "true", "<think>", "</think>", "<think>x</think>a",
    "<answer>a</answer>", "validation", "P17", "capital", 0, -1, 7, 10**30, 1.5, 1e308, float("nan"),
    float("inf"), True, False, None, [], {}, [None], [[]], [{}], ["a", 1], {"question": "q", "answer": "a"},
]  # fmt: skip
MARKS = [
    "weight",
    "train",
    "loss_mask",
    "masked",
    "tool_calls",
    "reasoning_content",
    "labelled_turns",
    "channel",
    "type",
]
"""Keys that say what a turn is."""
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
        roles = ["user", "assistant", "gpt", "human", "system", "tool", "\ud800", "", None, 7, "USER ", "thought"]
        mark = {rng.choice(MARKS): odd_value(rng, 0)} if rng.random() < 0.3 else {}
        turns = range(rng.randrange(5))
        return [{role: rng.choice(roles), content: odd_value(rng, depth - 2), **mark} for _ in turns]
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


def as_wrapped(rng: Random, seeds: Sequence[dict[str, Json]] = ()) -> bytes:
    """JSON that is no array of rows: an object around them, a table, one row, rows one behind the other."""
    rows = odd_records(rng, seeds)
    columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    cells = [[row.get(key) if isinstance(row, dict) else row for key in columns] for row in rows]
    qas = [
        {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}], "is_impossible": False},
        *rows[1:],
    ]
    value = rng.choice([
        {"version": 1, "data": rows}, {"n": {"rows": rows}}, {"train": rows, "test": rows[:1], "validation": rows},
        {"rows": [{"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(rows)], "features": []},
        {"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": qas}, {"context": "a", "qas": qas[:1]}]}]},
        {f"id{n}": row for n, row in enumerate(rows)}, dict(zip(columns, zip(*cells, strict=True), strict=True)),
        {key: {str(n): row[at] for n, row in enumerate(cells)} for at, key in enumerate(columns)},
        {"columns": columns, "index": list(range(len(rows))), "data": cells}, rows[0], [CHAT, SHAREGPT, *rows],
        {"data": [CHAT, CHAT]}, {"messages": CHAT},
    ])  # fmt: skip
    indent = rng.choice([None, None, 1])
    texts = [json.dumps(each, indent=indent) for each in (rows if rng.random() < 0.2 else [value])]
    return rng.choice(["", "\n", " \r\n"]).join(texts).encode("utf-8", "backslashreplace")


def as_arrow(rng: Random, frame: Any = None) -> bytes:
    """A table as an Arrow stream or file."""
    frame = _odd_frame(rng) if frame is None else frame
    out = io.BytesIO()
    try:
        if rng.random() < 0.5:
            frame.write_ipc_stream(out, compression=rng.choice(["uncompressed", "lz4", "zstd"]))
        else:
            frame.write_ipc(out, compression=rng.choice(["uncompressed", "lz4", "zstd"]))
    except pl.exceptions.PolarsError:  # a type that Arrow does not have
        pl.DataFrame({"question": ["q"], "answer": ["a"]}).write_ipc_stream(out)
    return out.getvalue()


def odd_saved(rng: Random) -> bytes:
    """A zip of what save_to_disk writes."""
    members: dict[str, bytes] = {}
    splits = rng.sample(["train", "validation", "test"], rng.randrange(1, 4))
    for split in splits:
        names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
        frame = pl.DataFrame([{"question": "q?", "answer": "a", "n": 1}])
        for name in names:
            members[f"{split}/{name}"] = as_arrow(rng, frame if rng.random() < 0.8 else None)
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_split": split}
        info = {"features": {"question": {"dtype": "string", "_type": "Value"}}, "description": ""}
        members[f"{split}/state.json"] = json.dumps(odd_record(rng, state) if rng.random() < 0.3 else state).encode()
        members[f"{split}/dataset_info.json"] = json.dumps(odd_record(rng, info)).encode()
    members["dataset_dict.json"] = json.dumps({"splits": splits}).encode()
    return as_zip(members, zipfile.ZIP_STORED)


def as_anything(rng: Random) -> bytes:
    """A content of any kind, under whatever name."""
    makers = [as_jsonl, as_json, as_wrapped, as_parquet, as_arrow, partial(as_table, delimiter=","), odd_zip]
    made = rng.choice(makers)(rng)
    return gzip.compress(made) if rng.random() < 0.2 else made


def as_table(rng: Random, delimiter: str, seeds: Sequence[dict[str, Json]] = ()) -> bytes:
    rows = [record for record in odd_records(rng, seeds) if isinstance(record, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO(newline="")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n", "\r"]))
    writer.writerows([header, *([_cell(row.get(key)) for key in header] for row in rows)])
    return (rng.choice(["", "", "\ufeff"]) + out.getvalue()).encode("utf-8", "replace")


def odd_dialect(rng: Random, record: dict[str, Json] | None = None) -> bytes:
    """A table with any delimiter, quotes, line ends, encoding and lines before its header; of a record or odd ones."""
    # the rows of cells with line breaks cannot be counted without knowing the dialect
    seeds = [seed for seed in SEEDS if "history" not in seed and not any("\n" in str(v) for v in seed.values())]
    odd = odd_records(rng, seeds) if record is None else [record] * 3
    rows = [record for record in odd if isinstance(record, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    delimiter, out = rng.choice(",;\t|\x1f~"), io.StringIO(newline="")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, *([csv.QUOTE_NONE] if len(header) > 1 else [])])
    escape = rng.choice([None, "\\"]) if quoting != csv.QUOTE_NONE else "\\"
    writer = csv.writer(
        out, delimiter=delimiter, quoting=quoting, quotechar=rng.choice("\"'"), escapechar=escape,
        doublequote=escape is None, lineterminator=rng.choice(["\n", "\r\n", "\r"]),
    )  # fmt: skip
    cells = [[_cell(row.get(key)) for key in header] for row in rows]
    writer.writerows([header, *cells])
    if quoting == csv.QUOTE_NONE and rng.random() < 0.5:
        out = io.StringIO("\n".join(delimiter.join(map(str, row)) for row in [header, *cells]))
    before = rng.choice(["", "", "", f"sep={delimiter}\n", "# by hand\n# today\n", "\n"])
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
    return (before + out.getvalue()).encode(encoding, "replace")


def as_parquet(rng: Random, frame: Any = None) -> bytes:
    """A table of chats and texts, or one whose columns are of any type there is."""
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
    if rng.random() < 0.4:
        return pl.DataFrame([rng.choice(_uniform())] * rng.randrange(1, 4), infer_schema_length=None)
    columns: list[pl.Series] = []
    for name in dict.fromkeys([*rng.choices([key for key in KEYS if key != "\ud800"], k=2), "question", "answer"]):
        dtype, value = rng.choice(_columns())
        columns.append(pl.Series(name, [value, None, value][:3], dtype=dtype, strict=False))
    return pl.DataFrame(columns)


def _uniform() -> list[dict[str, Json]]:
    """The seeds whose lists hold values of one type."""
    return [seed for seed in SEEDS if not any(seed.get("messages") is mixed for mixed in (PARTS, AGENT, THOUGHTS))]


@cache
def _columns() -> list[tuple[Any, Any]]:
    kinds: list[tuple[Any, Any]] = [(pl.String(), "Paris")] * 6 + [
        (pl.Int8(), 7), (pl.UInt64(), 2**64 - 1), (pl.Int128(), 2**100), (pl.Float32(), 1.5),
        (pl.Float64(), float("nan")), (pl.Boolean(), True), (pl.Date(), date(1975, 1, 1)), (pl.Binary(), b"\xff"),
        (pl.Null(), None),
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
    more = {rng.choice(["x", "\ud800", "1"]): rng.choice(["[X]", "[X][X]", "\ud800 [X]", "Is [X] 'it'?"])}
    made = odd_record(rng, {**TEMPLATES, **(more if rng.random() < 0.5 else {})})
    if rng.random() < 0.5:
        return json.dumps(made).encode()
    return "".join(f"{k}: {json.dumps(v)}\n" for k, v in made.items()).encode("utf-8", "replace")


def seeds_of(kind: str, records: Sequence[dict[str, Json]] = SEEDS) -> list[bytes]:
    """Valid files of a format, one of each record twice."""
    if kind == "parquet":
        rng = Random(0)
        return [as_parquet(rng, pl.DataFrame([record] * 2)) for record in _uniform()]
    files = []
    if kind == "arrow":
        rng = Random(0)
        return [as_arrow(rng, pl.DataFrame([record] * 2)) for record in _uniform()]
    if kind == "wrapped":
        return [as_wrapped(Random(n), [record]) for n, record in enumerate([*records] * 2)]
    if kind == "dialects":
        plain = [record for record in records if not any("\n" in str(value) for value in record.values())]
        return [odd_dialect(Random(n), record) for n, record in enumerate(plain * 3)]
    for record in records:
        header, cells = list(record), [_cell(value) for value in record.values()]
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n").writerows([header, cells, cells])
        line = json.dumps(record)
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
