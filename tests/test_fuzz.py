"""Every reader on odd files: rows that are all accounted for, or an error that names the file. And what was found so.

The same inputs at every run; `benchmarks/fuzz.py` tries others, many more.
"""

from __future__ import annotations

import json
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from foreknow.data.dataset import read_dataset
from foreknow.data.layouts.relation_templates import read_templates
from foreknow.errors import InputError
from foreknow.io.readers import read_part
from fuzzing import Random, outcome, random_input, readers, records

SEEDS = {name: reader.seeds() for name, reader in readers().items()}
REFUSAL = "I don't know."


@pytest.mark.parametrize("name", readers())
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200) | st.integers(0, 2**32))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path: Path, name: str, content: bytes | int) -> None:
    """Bytes as they come, or (by the number of a draw) a valid file with its values and bytes changed."""
    reader = readers()[name]
    if isinstance(content, int):
        content = random_input(Random(content), reader, SEEDS[name])
    path = tmp_path / reader.file
    path.write_bytes(content)
    assert outcome(reader, path) in ("clean", "refused")


ODD = ("zip", "templates", "tree", "tree-rows", "dialects", "dialects-tsv", "wrapped", "saved", "misnamed")


@pytest.mark.parametrize("name", [name for name in readers() if name not in ODD])
def test_the_valid_files_are_read(tmp_path: Path, name: str) -> None:
    """Or the fuzzer would only ever see how files are refused."""
    for content in SEEDS[name]:
        path = tmp_path / readers()[name].file
        path.write_bytes(content)
        assert outcome(readers()[name], path) == "clean"


@pytest.mark.parametrize("name", ["dialects", "dialects-tsv"])
def test_tables_of_many_dialects_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / readers()[name].file
    outcomes = []
    for content in SEEDS[name]:
        path.write_bytes(content)
        outcomes.append(outcome(readers()[name], path))
    assert outcomes.count("clean") > len(outcomes) / 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}\n\n{"a": 2}\n', {2}),
        ('{"a":\n1}\n{"a":\n[1, 2, 3]}', {2}),
        ('{"a": 1}{"a": 2} {"a": 3}', {3}),
        ('{\n"question": "q",\n"answer": "a"\n}\n', {1, 2}),
        ('[{"a": 1},\n{"a": 2},\n{"a": 3}]', {1, 3}),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_the_rows_of_json_are_counted_by_values_and_not_by_lines(
    tmp_path: Path, name: str, text: str, expected: set[int]
) -> None:
    (tmp_path / name).write_text(text)
    found = records(tmp_path / name)
    assert expected <= found
    assert text.count("\n") + 1 not in found - expected


def test_the_members_of_a_zip_are_not_counted_as_one_file(tmp_path: Path) -> None:
    """A zip is one whatever stands before its members."""
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"question": "q?", "answer": "a"}')
    path = tmp_path / readers()["zip"].file
    path.write_bytes(b"\xa7" + (tmp_path / "b.zip").read_bytes())
    assert outcome(readers()["zip"], path) == "clean"


# found by fuzzing, and mended


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def rewritten(path: Path, row: int = 0, **how: Any) -> Path:
    """The file with all its rows, one of them with another answer."""
    facts = read_dataset(path, **how)
    labels = pl.DataFrame({"row": range(facts.total), "category": ["Unknown"] * facts.total})
    out = path.with_name(f"out{facts.suffix}")
    facts.write(labels, out, {row: REFUSAL})
    return out


QA = {"question": "q?", "answer": "a"}
HALF = "\ud800"


def test_half_a_surrogate_pair_in_a_role_or_a_group_is_read(tmp_path: Path) -> None:
    chat = [{"role": HALF, "content": "x"}, {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    assert read_dataset(jsonl(tmp_path / "a.jsonl", [{"messages": chat}])).rows["context"].to_list() == [None]
    path = jsonl(tmp_path / "b.jsonl", [{**QA, "topic": HALF}, {**QA, "topic": "x"}])
    assert read_dataset(path, group_by="topic").rows["group"].to_list() == ["\\ud800", "x"]


def test_half_a_surrogate_pair_in_a_field_that_stays_is_written_as_it_was(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{**QA, "note": f"\\{HALF}"}])
    assert json.loads(rewritten(path).read_text()) == {
        **QA,
        "answer": REFUSAL,
        "note": f"\\{HALF}",
        "category": "Unknown",
    }
    chat = [{"role": "user", "content": "q?", "id": HALF}, {"role": "assistant", "content": "a"}]
    text = json.dumps(chat).replace('"', '""')
    (tmp_path / "b.csv").write_text(f'messages\n"{text}"\n')
    back = read_dataset(rewritten(tmp_path / "b.csv")).source.parts[0]
    with back.open() as stream:
        assert b"\\ud800" in stream.read()


def test_half_a_surrogate_pair_in_a_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"P17": "Is [X] \\ud800?"}')
    with pytest.raises(InputError, match=r"t\.json: relation 'P17': .* holds half a surrogate pair"):
        read_templates(tmp_path / "t.json")


@pytest.mark.parametrize("value", ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "2020-13-45"])
def test_yaml_that_does_not_fit_its_tag_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.yaml").write_text(f"P17: {value}\n")
    with pytest.raises(InputError, match=r"t\.yaml: .*not readable"):
        read_templates(tmp_path / "t.yaml")


def test_yaml_that_would_grow_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: y}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
    (tmp_path / "t.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"t\.yaml:2: not valid YAML"):
        read_templates(tmp_path / "t.yaml")


@pytest.mark.parametrize(("depth", "expected"), [(150, "clean"), (250, "refused"), (930, "refused"), (990, "refused")])
@pytest.mark.parametrize("name", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("key", ["question", "note"])
def test_what_nests_deep_is_refused_before_python_fails_on_it(
    tmp_path: Path, name: str, key: str, depth: int, expected: str
) -> None:
    """Just under the depth that Python's parser takes, what comes after it would fail."""
    deep = "[" * depth + "]" * depth
    record = '{"question": "q?", "answer": "a"}, {"' + key + f'": {deep}, "answer": "a"' + "}"
    table = f"question,answer,messages\nq?,a,{deep}\n"  # text in a cell, and only read where it is a chat
    path = tmp_path / readers()[name].file
    path.write_text({"jsonl": record.replace("}, {", "}\n{"), "json": f"[{record}]"}.get(name, table))
    assert outcome(readers()[name], path) == ("clean" if name == "csv" else expected)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_long_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("foreknow.io.batches.LARGEST_BATCH", 250)
    records = [{"question": f"q{n}?", "answer": "a" * 100} for n in range(7)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        pl.DataFrame(records).write_csv(path)
    else:
        path.write_text(json.dumps(records)) if suffix == ".json" else jsonl(path, records)
    facts = read_dataset(path)
    sizes = [len(batch.records) for batch in read_part(facts.source.parts[0])]
    assert max(sizes) <= 3
    assert sum(sizes) == facts.total == 7
    facts.annotate(pl.DataFrame({"row": [6], "category": ["Known"]}), tmp_path / f"b{suffix}")
    assert read_dataset(tmp_path / f"b{suffix}").rows.equals(facts.rows)


@pytest.mark.parametrize(("suffix", "head"), [(".jsonl", ""), (".csv", "question,answer\n")])
def test_a_line_too_long_to_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, head: str
) -> None:
    monkeypatch.setattr("foreknow.io.batches.LONGEST_LINE", 1 << 20)
    path = tmp_path / f"a{suffix}.zst"
    path.write_bytes(zstd.compress(f"{head}{'x' * (1 << 20)}".encode()))
    assert path.stat().st_size < 200
    with pytest.raises(
        InputError, match=rf"a\{suffix}\.zst:{1 + bool(head)}: longer than 1 MiB, expected one row a line"
    ):
        read_dataset(path)


def test_long_names_do_not_fill_the_message(tmp_path: Path) -> None:
    long = "x y" * 5_000
    path = jsonl(tmp_path / "a.jsonl", [{"subject": "s", "relation": long, "object": "o"}])
    (tmp_path / "t.json").write_text(json.dumps({long: long}))
    (tmp_path / "b.csv").write_text(f"{long},{long}\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({long: 1}))
    for read in (
        lambda: read_dataset(path, templates={long[:-1]: "Is [X]?"}),
        lambda: read_templates(tmp_path / "t.json"),
        lambda: read_dataset(tmp_path / "b.csv"),
        lambda: read_dataset(tmp_path / "c.jsonl"),
    ):
        with pytest.raises(InputError, match=r"\.(jsonl|json|csv)") as caught:
            read()
        assert len(str(caught.value)) < 1_000


def test_a_zip_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "")
        archive.writestr("a.jsonl", json.dumps(QA))
    raw = (tmp_path / "a.zip").read_bytes()
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"PK\x01\x02"))  # of the first member: its name's length is at 28
    nameless = raw[: entry + 28] + b"\0\0\1\0" + raw[entry + 32 :]  # the name becomes an extra field
    (tmp_path / "b.zip").write_bytes(nameless)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.namelist() == ["", "a.jsonl"]
    facts = read_dataset(tmp_path / "b.zip")
    assert (facts.total, facts.source.left_out) == (1, 1)


def test_columns_of_mixed_values_come_as_texts(tmp_path: Path) -> None:
    values: list[Any] = [[], {"b": [1]}, "text", None, 1.5, True, HALF]
    path = jsonl(tmp_path / "a.jsonl", [{**QA, "x": value, "n": 10**n} for n, value in enumerate(values)])
    found = read_dataset(path).extra(["x", "n", "none"])
    assert found["x"].to_list() == ["[]", '{"b": [1]}', "text", None, "1.5", "true", "\\ud800"]
    assert found["n"].to_list() == [10.0**n for n in range(7)]
    assert found["none"].to_list() == [None] * 7
    huge = jsonl(tmp_path / "b.jsonl", [{**QA, "n": 10**400}, {**QA, "n": 1}])
    assert read_dataset(huge).extra(["n"])["n"].to_list() == [None, 1.0]


def test_an_answer_that_only_looks_like_a_list_is_replaced_by_text(tmp_path: Path) -> None:
    record = {"question": "q?", "answer": '["a"]', "answers": '["b", "c"]'}
    back = json.loads(rewritten(jsonl(tmp_path / "a.jsonl", [record])).read_text())
    assert (back["answer"], back["answers"]) == (REFUSAL, json.dumps([REFUSAL]))
    assert read_dataset(tmp_path / "out.jsonl").rows["answers"].to_list() == [[REFUSAL]]


def test_an_assistant_turn_of_the_prompt_is_no_answer(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    records = [
        {"prompt": [*prompt, {"role": "user", "content": "q?"}], "completion": [{"role": "tool", "content": "x"}]},
        {"prompt": [*prompt, {"role": "user", "content": "q?"}], "completion": {"text": "a"}},
        {"prompt": [*prompt, {"role": "user", "content": "q?"}], "completion": "a"},
    ]
    assert read_dataset(jsonl(tmp_path / "a.jsonl", records)).rows["answers"].to_list() == [None, None, ["a"]]


def test_a_new_completion_keeps_the_blanks_around_the_old(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "q?", "completion": " a\n"}])
    assert json.loads(rewritten(path).read_text())["completion"] == f" {REFUSAL}\n"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (pl.Series([1975, 1976]), [REFUSAL, "1976"]),
        (pl.Series([[1, 2], [3, None]]), [[REFUSAL], ["3", None]]),
        (pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])), [REFUSAL, "y"]),
        (pl.Series(["x", "y"], dtype=pl.Categorical()), [REFUSAL, "y"]),
        (pl.Series([["x"], ["y", "z"]]), [[REFUSAL], ["y", "z"]]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_a_refusal_among_typed_answers_of_a_parquet_file(tmp_path: Path, answers: pl.Series, expected: Any) -> None:
    table = pl.DataFrame({
        "question": ["p?", "q?"],
        "answer": answers,
        "at": pl.Series([1, 2], dtype=pl.Datetime("ns")),  # Python would lose the nanoseconds
        "late": [datetime(1975, 1, 1), None],
    })  # fmt: skip
    table.write_parquet(tmp_path / "a.parquet")
    back = pl.read_parquet(rewritten(tmp_path / "a.parquet"))
    assert back["answer"].to_list() == expected
    assert back.drop("answer", "category").equals(table.drop("answer"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_with_a_carriage_return_alone_are_quoted(tmp_path: Path, suffix: str) -> None:
    tab = "\t" if suffix == ".tsv" else ","
    text = f'question{tab}answer{tab}note\nq?{tab}a{tab}"x\ry"\n'
    (tmp_path / f"a{suffix}").write_bytes(text.encode())
    facts = read_dataset(tmp_path / f"a{suffix}")
    facts.annotate(pl.DataFrame({"row": [0], "category": ["Unknown"]}), tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == (
        f'question{tab}answer{tab}note{tab}category\nq?{tab}a{tab}"x\ry"{tab}Unknown\n'.encode()
    )


def test_parquet_whose_footer_counts_fewer_rows_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"question": [f"q{i}?" for i in range(33)], "answer": ["a"] * 33}).write_parquet(path)
    whole = path.read_bytes()
    counted, one = b"\x16\x42\x19", b"\x16\x02\x19"  # thrift: field 3 of the footer, 33 rows, then the row groups
    assert whole.count(counted) == 1
    path.write_bytes(whole.replace(counted, one))
    assert pl.scan_parquet(path).select(pl.len()).collect().item() == 1
    with pytest.raises(InputError, match=r"a\.parquet: .*footer counts 1 rows, its row groups hold 33"):
        read_dataset(path)
