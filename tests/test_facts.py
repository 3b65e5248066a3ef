from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import rows_frame, write_jsonl
from foreknow.data.dataset import read_dataset
from foreknow.data.schema import ROWS, flag_rows, has_word, largest_remainder, majority_floor, take
from foreknow.errors import ConfigError, InputError

QA = [
    {"question": "Capital of France?", "answer": "Paris"},
    {"question": "Capital of Peru?", "answer": "Lima"},
]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# layouts


def test_question_and_answer_under_their_usual_names(tmp_path: Path) -> None:
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", QA))
    assert facts.rows.schema == pl.Schema(ROWS)
    assert facts.rows["row"].to_list() == [0, 1]
    assert facts.rows["question"].to_list() == ["Capital of France?", "Capital of Peru?"]
    assert facts.rows["answers"].to_list() == [["Paris"], ["Lima"]]
    assert facts.rows["group"].to_list() == ["all", "all"]
    assert (facts.layout, facts.name, facts.suffix) == ("question", "a.jsonl", ".jsonl")
    assert facts.reason == "layout question: question and answer, from the columns question, answer"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("q", "gold"),
        ("query", "target"),
        ("input", "output"),
        ("Question", "Answers"),
    ],
)
def test_other_usual_names(tmp_path: Path, question: str, answer: str) -> None:
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [{question: " Who? ", answer: " Me "}]))
    assert facts.rows.select("question", "answers").row(0) == ("Who?", ["Me"])
    assert f"question={question}" in facts.reason


def test_every_kind_of_answer_and_the_optional_columns(tmp_path: Path) -> None:
    record = {
        "question": "When?", "answer": 1975, "possible_answers": '["1975", " in 1975 ", ""]',
        "aliases": ["never"], "subj": "Acme", "prop": "founded", "split": "dev", "s_pop": "12.5",
    }  # fmt: skip
    row = read_dataset(write_jsonl(tmp_path / "a.jsonl", [record])).rows.row(0, named=True)
    assert row["answers"] == ["1975", "in 1975"]
    assert (row["subject"], row["relation"], row["split"], row["popularity"]) == (
        "Acme",
        "founded",
        "dev",
        12.5,
    )
    assert row["group"] == "founded"


def test_an_answer_that_only_looks_like_a_list_stays_text(tmp_path: Path) -> None:
    records = [{"question": "Rows?", "answer": "[1, 2]"}, {"question": "Open?", "answer": "[a"}]
    assert read_dataset(write_jsonl(tmp_path / "a.jsonl", records)).rows["answers"].to_list() == [["[1, 2]"], ["[a"]]


def test_a_map_beats_the_usual_names(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "no", "text": "yes?", "answer": "no", "label": "yes"}])
    facts = read_dataset(path, columns={"question": "text", "answer": "label"})
    assert facts.rows.select("question", "answers").row(0) == ("yes?", ["yes"])


def test_triples_take_their_question_from_the_template(tmp_path: Path) -> None:
    records = [
        {"subject": "Lyon", "relation": "P17", "object": "France", "aliases": ["Lugdunum"]},
        {"subject": "Cusco", "relation": "P17", "object": ["Peru", "Republic of Peru"]},
        {"subject": "X", "relation": "P99", "object": "Y", "question": "Its own question?"},
    ]
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", records), templates={"P17": "Which country is [X] in?"})
    assert facts.layout == "triples"
    assert facts.rows["question"].to_list() == [
        "Which country is Lyon in?", "Which country is Cusco in?", "Its own question?",
    ]  # fmt: skip
    assert facts.rows["answers"].to_list() == [["France"], ["Peru", "Republic of Peru"], ["Y"]]


def test_triples_with_questions_need_no_template(tmp_path: Path) -> None:
    record = {"subject": "s", "relation": "r", "question": "q?", "object": "o", "aliases": ["a"]}
    assert read_dataset(write_jsonl(tmp_path / "a.jsonl", [record])).rows["answers"].to_list() == [["o"]]


def test_a_template_gives_back_the_subject_of_a_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Is Lyon in France?", "answer": "yes", "relation": "in"}])
    assert read_dataset(path, templates={"in": "Is [X] in France?"}).rows["subject"].to_list() == ["Lyon"]


def test_group_by_a_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**QA[0], "topic": 7, "relation": "r"}, {**QA[1], "topic": None}])
    assert read_dataset(path, group_by="topic").rows["group"].to_list() == ["7", "all"]
    assert read_dataset(path).rows["group"].to_list() == ["r", "all"]


# formats


def test_every_format_reads_to_the_same_rows(tmp_path: Path) -> None:
    records = [{**record, "n": str(n)} for n, record in enumerate(QA)]
    table = pl.DataFrame(records)
    write_jsonl(tmp_path / "a.jsonl", records)
    write_jsonl(tmp_path / "a.ndjson", records)
    put(tmp_path / "a.json", json.dumps(records, indent=2))
    table.write_csv(tmp_path / "a.csv")
    table.write_csv(tmp_path / "a.tsv", separator="\t")
    table.write_parquet(tmp_path / "a.parquet")
    expected = read_dataset(tmp_path / "a.jsonl").rows
    for suffix in ("ndjson", "json", "csv", "tsv", "parquet"):
        assert read_dataset(tmp_path / f"a.{suffix}").rows.equals(expected), suffix


def test_cells_with_lists_line_breaks_and_quotes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'question,answers\r\n"Two\nlines, ""quoted""","[""a"", ""b""]"\r\nq,plain\r\n')
    rows = read_dataset(path).rows
    assert rows["question"].to_list() == ['Two\nlines, "quoted"', "q"]
    assert rows["answers"].to_list() == [["a", "b"], ["plain"]]


def test_a_byte_order_mark_a_blank_line_and_odd_separators_are_read(tmp_path: Path) -> None:
    text = '\ufeff{"q": "a\u2028b", "answer": "x", "score": NaN}\r\n\r\n{"q": "c", "answer": "y"}'
    assert read_dataset(put(tmp_path / "a.jsonl", text)).rows["question"].to_list() == ["a\u2028b", "c"]
    assert read_dataset(put(tmp_path / "a.csv", "\ufeffq,answer\n1,2\n")).rows["question"].to_list() == ["1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_megabyte_in_one_line(tmp_path: Path, suffix: str) -> None:
    long = "x" * 1_000_000
    text = json.dumps({"q": long, "a": 1, "answer": "y"}) if suffix == ".jsonl" else f"q,answer\n{long},y"
    limit = csv.field_size_limit()
    assert read_dataset(put(tmp_path / f"a{suffix}", text)).rows["question"].to_list() == [long]
    assert csv.field_size_limit() == limit


# bad input

GOOD = '{"question": "a", "answer": "b"}\n'
BAD: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", GOOD + '{"question": }\n', r"a\.jsonl:2: broken JSON at column 14.*found '}'"),
    ("a.jsonl", GOOD + '{"question": "c', r"a\.jsonl:2: broken JSON"),
    ("a.jsonl", GOOD + "{\n" + GOOD + "\nx\n", r"a\.jsonl:2: broken JSON.*; the text ends\. 1 more line .* JSON: 5\.$"),
    ("a.jsonl", GOOD + "{\n" * 8 + GOOD, r"a\.jsonl:2: broken JSON.* 7 more lines .* as JSON: 3, 4, 5, 6, 7 and on\.$"),
    ("a.jsonl", GOOD + "[1]\n", r"a\.jsonl:2: found an array, expected an object"),
    ("a.jsonl", '"text"\n', r"a\.jsonl:1: found a string, expected an object"),
    ("a.jsonl", b'{"q": "a"}\n{"q": "\xe9"}\n', r"a\.jsonl:2: not UTF-8: found byte 0xe9 at byte 8 "),
    ("a.jsonl", b'\xef\xbb\xbf{"q": "\xe9"}\n', r"a\.jsonl:1: not UTF-8: found byte 0xe9 at byte 11"),
    ("a.csv", "q,answer\n\xe9,b\n".encode("latin-1"), r"a\.csv:2: not UTF-8: found byte 0xe9 at byte 1 "),
    ("a.jsonl", "[" * 200_000, r"a\.jsonl:1: nested too deeply"),
    ("a.json", "[" * 200_000, r"a\.json:1: nested too deeply"),
    ("a.jsonl", '{"q": ' + "9" * 5_000 + "}", r"a\.jsonl:1: not readable as JSON"),
    ("a.jsonl", "", r"a\.jsonl is empty: found no rows"),
    ("a.jsonl", "\n \n", r"a\.jsonl is empty"),
    ("a.json", "", r"a\.json is empty"),
    ("a.json", "[]", r"a\.json is empty"),
    ("a.csv", "", r"a\.csv is empty"),
    ("a.csv", "question,answer\n", r"a\.csv is empty"),
    ("a.parquet", b"", r"a\.parquet is empty"),
    ("a.parquet", b"not parquet at all", r"a\.parquet: not a readable Parquet file"),
    ("a.json", '{"data": []}', r"a\.json: found an object, expected an array of objects"),
    ("a.json", '[\n{"q": 1},\n{"q": }\n]', r"a\.json:3: broken JSON at column 7"),
    ("a.json", '[{"q": 1}\n{"q": 2}]', r"a\.json:2: broken JSON at column 1: Expecting ',' or '\]'"),
    ("a.json", '[{"q": 1}] x', r"a\.json:1: broken JSON at column 12: Extra data"),
    ("a.json", '[{"q": 1},\n 3]', r"a\.json:2: found a number, expected an object"),
    ("a.json", '[{"q": 1},', r"a\.json:1: broken JSON.*the text ends"),
    ("a.csv", "question,answer\na,b\na,b,c\n", r"a\.csv:3: found 3 cells, expected 2 as in the header"),
    ("a.csv", 'question,answer\n"a\nb",c\nd\n', r"a\.csv:4: found 1 cells, expected 2"),
    ("a.csv", 'question,answer\na,"b\n', r"a\.csv:2: broken CSV row: unexpected end of data"),
    ("a.csv", "q,q,answer\na,b,c\n", r"a\.csv:1: the column 'q' stands in the header twice"),
    ("a.txt", "hello", r"a\.txt: unknown suffix '\.txt', expected one of \.jsonl"),
    ("a.csv", "foo,bar baz\n1,2\n", r"(?s)in the columns foo, 'bar baz'\..*--map question=foo --map 'answer=bar baz'"),
    ("a.jsonl", '{"instruction": "a", "input": "", "outcome": "b"}', r"no known layout in .* instruction"),
    ("a.jsonl", '{"subject": "s", "relation": "P9", "object": "o"}', r":1: relation 'P9' has no template"),
    ("a.jsonl", '{"question": "", "answer": "b"}\n', r"(?s)none of .*:1: no question: question is ''"),
    ("a.jsonl", '{"question": "a", "answer": {"x": 1}}\n', r"(?s)none of .* no answer: answer is {'x': 1}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_says_where_and_what(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(put(tmp_path / name, content))
    assert len(str(caught.value).splitlines()) <= 2


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        read_dataset(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="no data file in this folder"):
        read_dataset(tmp_path)


def test_columns_that_are_not_there_are_answered_with_those_that_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", QA)
    with pytest.raises(
        InputError, match=r"--map question=qq: there is no column 'qq'. Columns found: question, answer"
    ):
        read_dataset(path, columns={"question": "qq"})
    with pytest.raises(InputError, match=r"--group-by topic: there is no column 'topic'"):
        read_dataset(path, group_by="topic")
    with pytest.raises(ConfigError, match=r"'ask' is not one of our names: question, answer"):
        read_dataset(path, columns={"ask": "question"})


def test_a_relation_without_template_names_the_line_and_those_given(tmp_path: Path) -> None:
    records = [{"subject": "s", "relation": relation, "object": "o"} for relation in ("P17", "P18")]
    with pytest.raises(InputError, match=r"a\.jsonl:2: relation 'P18' has no template \(templates given for P17\)"):
        read_dataset(write_jsonl(tmp_path / "a.jsonl", records), templates={"P17": "Is [X]?"})


def test_rows_that_cannot_be_used_are_kept_and_flagged(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        QA[0],
        {"question": "No answer?"},
        {"question": None, "answer": "x"},
        {"question": "  ", "answer": ["", None]},
        {"question": ["wrong"], "answer": {"x": True}},
        {"question": "\ud800", "answer": float("nan")},
    ]
    path = put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    rows = read_dataset(path).rows
    both = ["no_answer", "no_question"]
    assert rows["flags"].to_list() == [[], ["no_answer"], ["no_question"], both, both, both]
    assert rows["answers"].to_list() == [["Paris"], None, ["x"], None, None, None]
    with pytest.raises(InputError, match=r"a\.jsonl:2: no answer: answer is null or missing.* 5 of 6 rows"):
        read_dataset(path, strict_rows=True)


# flags


def test_flags() -> None:
    rows = rows_frame([
        {"question": "q", "answers": ["a"]},
        {"question": "q", "answers": ["a", "b"]},
        {"question": "q", "answers": ["b"]},
        {"question": "q", "answers": ["c"], "group": "other"},
        {"question": "Capital of Mexico?", "answers": ["Mexico City"], "subject": "Mexico"},
        {"question": "City of PARIS, where?", "answers": ["Paris"]},
        {"question": "Parisian?", "answers": ["Paris"]},
        {"question": None, "answers": ["a"], "flags": ["mine", "duplicate"]},
        {"question": None, "answers": ["b"]},
    ])  # fmt: skip
    flags = flag_rows(rows)["flags"].to_list()
    assert flags[:4] == [["conflicting"], ["conflicting", "duplicate"], ["conflicting"], []]
    assert flags[4:7] == [[], ["answer_in_subject"], []]
    assert flags[7:] == [["mine", "no_question"], ["no_question"]]
    assert flag_rows(flag_rows(rows)).equals(flag_rows(rows))


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [("New York City", "york", True), ("Yorkshire", "York", False), ("A+B", "A", True),
     ("C++ is", "C++", True), ("Niger, Nigeria", "Nigeria", True), ("Nigeria Niger", "Niger", True),
     ("Łódź", "ŁÓDŹ", True),
     ("", "x", False), ("x", "", False)],
)  # fmt: skip
def test_has_word(text: str, word: str, found: bool) -> None:
    assert has_word(text, word) is found


# majority floor and take

texts = st.sampled_from("abc")
made_rows = st.lists(
    st.fixed_dictionaries({
        "question": st.none() | st.sampled_from([f"q{n}" for n in range(30)]),
        "answers": st.none() | st.lists(texts, min_size=1, max_size=3, unique=True),
        "group": st.sampled_from(["g1", "g2", "g3"]),
        "split": st.sampled_from([None, "dev", "train"]),
    }),
    max_size=40,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(made_rows)
def test_majority_floor_against_brute_force(made: list[dict[str, Any]]) -> None:
    expected = []
    usable = [row for row in made if row["question"] is not None and row["answers"] is not None]
    for group in sorted({row["group"] for row in usable}):
        mine = [row["answers"] for row in usable if row["group"] == group]
        counts = Counter(answers[0] for answers in mine)
        best = min(counts, key=lambda gold: (-counts[gold], gold))
        expected.append((group, sum(best in answers for answers in mine) / len(mine), best, len(mine)))
    assert majority_floor(rows_frame(made)).rows() == expected


@settings(max_examples=40, deadline=None)
@given(made_rows, st.integers(1, 50), st.integers(0, 3), st.randoms(use_true_random=False))
def test_take_is_exact_proportional_and_blind_to_order(
    made: list[dict[str, Any]], limit: int, seed: int, random: Any
) -> None:
    rows = rows_frame(made)
    taken = take(rows, limit, seed)
    usable = [row for row in made if row["question"] is not None and row["answers"] is not None]
    free = [row for row in usable if row["split"] != "dev"]
    assert taken.height == min(limit, len(usable))
    assert taken["row"].is_sorted()
    assert taken["row"].is_unique().all()
    assert taken.filter(pl.col("split").eq_missing(pl.lit("dev"))).height == max(0, taken.height - len(free))
    if limit <= len(free):
        assert Counter(taken["group"]) == +Counter(largest_remainder(Counter(row["group"] for row in free), limit))
    shuffled = list(range(len(made)))
    random.shuffle(shuffled)
    moved = take(rows[shuffled].with_columns(pl.Series("row", range(len(made)), dtype=pl.Int64)), limit, seed)
    key = ["group", "question", "split"]
    assert Counter(moved.select(pl.col(key[:2])).rows()) == Counter(taken.select(pl.col(key[:2])).rows())


def test_take_depends_on_the_seed_and_refuses_nothing() -> None:
    rows = rows_frame([{"question": f"q{n}", "answers": ["a"]} for n in range(100)])
    assert take(rows, 10, 0).equals(take(rows, 10, 0))
    assert not take(rows, 10, 0).equals(take(rows, 10, 1))
    assert set(take(rows, 10, 0)["row"]) <= set(take(rows, 20, 0)["row"])
    with pytest.raises(ConfigError, match="--limit 0: found 0, expected at least 1"):
        take(rows, 0, 0)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), min_size=1), st.integers(0, 200))
def test_largest_remainder(sizes: dict[str, int], total: int) -> None:
    whole = sum(sizes.values())
    total = min(total, whole)
    shares = largest_remainder(sizes, total)
    assert sum(shares.values()) == total
    assert all(abs(shares[key] - sizes[key] * total / whole) < 1 for key in sizes if whole)
    assert all(shares[key] <= sizes[key] for key in sizes)


# annotate

LABELS = pl.DataFrame({"row": [1], "category": ["Unknown"], "p_hit": [0.5], "flags": [["a", "b"]]})


def readers(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes().decode() if path.suffix != ".parquet" else ""
    if path.suffix in (".jsonl", ".ndjson"):
        return [json.loads(line) for line in text.split("\n") if line]
    if path.suffix == ".json":
        return list(json.loads(text))
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def test_json_lines_keep_their_very_text(tmp_path: Path) -> None:
    lines = [
        '{"question":"a",  "answer" : "b", "x": 1.50e3, "x": 2 }',
        "{}",
        '{"question": "\\u00e9", "answer": "c"}',
    ]
    facts = read_dataset(put(tmp_path / "a.jsonl", "\n".join(lines)))
    facts.annotate(
        pl.DataFrame({"row": [0, 2], "category": ["A", None], "p": [float("nan"), 0.25]}),
        tmp_path / "b.jsonl",
    )
    assert (tmp_path / "b.jsonl").read_text("utf-8").split("\n") == [
        '{"question":"a",  "answer" : "b", "x": 1.50e3, "x": 2, "category": "A", "p": null}',
        '{"category": null, "p": null}',
        '{"question": "\\u00e9", "answer": "c", "category": null, "p": 0.25}',
        "",
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_keep_their_cells_and_line_ends(tmp_path: Path, suffix: str) -> None:
    tab = "\t" if suffix == ".tsv" else ","
    text = f'id{tab}q{tab}answer\r\n007{tab}"a{tab}b"{tab}\r\n1.50{tab} c {tab}NA\r\n'
    read_dataset(put(tmp_path / f"a{suffix}", text), null_words="keep").annotate(LABELS, tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes().decode() == (
        f'id{tab}q{tab}answer{tab}category{tab}p_hit{tab}flags\r\n007{tab}"a{tab}b"{tab}{tab}{tab}{tab}\r\n'
        + (f'1.50{tab} c {tab}NA{tab}Unknown{tab}0.5{tab}"[""a"", ""b""]"\r\n')
    )


def test_a_label_never_replaces_a_column_of_the_file(tmp_path: Path) -> None:
    record = {**QA[0], "category": "theirs", "foreknow_category": "theirs too"}
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [record, record]))
    facts.annotate(LABELS, tmp_path / "b.jsonl")
    assert readers(tmp_path / "b.jsonl")[1] == {
        **record, "foreknow_foreknow_category": "Unknown", "p_hit": 0.5, "flags": ["a", "b"],
    }  # fmt: skip


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pl.DataFrame({"q": ["a", "b"], "answers": [["x"], ["y", "z"]], "n": pl.Series([1, 2], dtype=pl.UInt8)})
    table.write_parquet(tmp_path / "a.parquet")
    facts = read_dataset(tmp_path / "a.parquet")
    facts.annotate(LABELS, tmp_path / "b.parquet")
    back = pl.read_parquet(tmp_path / "b.parquet")
    assert back.select(table.columns).equals(table)
    assert back["n"].dtype == pl.UInt8
    assert back.drop(table.columns).rows() == [(None, None, None), ("Unknown", 0.5, ["a", "b"])]
    assert not (tmp_path / "b.parquet.part").exists()


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff"), min_size=1, max_size=5)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | cells | st.lists(cells, max_size=2)
others = st.dictionaries(names, values, max_size=3)
others_text = st.lists(names, max_size=3, unique=True).flatmap(
    lambda keys: st.lists(st.tuples(*[cells for _ in keys]), min_size=1, max_size=4).map(
        lambda rows: [dict(zip(keys, row, strict=True)) for row in rows]
    )
)


def check_round_trip(records: list[dict[str, Any]], write: Callable[[Path, Any], object], suffix: str) -> None:
    for number, record in enumerate(records):
        record |= {"question": f"q{number}", "answer": "a"}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"a{suffix}"), Path(folder, f"b{suffix}")
        write(path, records)
        first = read_dataset(path, columns={"question": "question", "answer": "answer"})
        first.annotate(pl.DataFrame({"row": [0], "foreknow_label": ["x"]}), out)
        back = readers(out)
        assert [list(record) for record in back] == [[*record, "foreknow_label"] for record in records]
        assert [dict(list(record.items())[:-1]) for record in back] == records
        mapped: Mapping[str, str] = {"question": "question", "answer": "answer"}
        assert read_dataset(out, columns=mapped).rows.equals(first.rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(others, min_size=1, max_size=4), st.sampled_from([".jsonl", ".json"]), st.sampled_from([None, 1]))
def test_json_round_trip_keeps_every_field(records: list[dict[str, Any]], suffix: str, indent: int | None) -> None:
    def write(path: Path, made: Any) -> None:
        if suffix == ".jsonl":
            write_jsonl(path, made)
        else:
            put(path, json.dumps(made, indent=indent))

    check_round_trip(records, write, suffix)


@settings(max_examples=30, deadline=None)
@given(others_text, st.sampled_from([".csv", ".tsv"]))
def test_table_round_trip_keeps_every_field(records: list[dict[str, Any]], suffix: str) -> None:
    def write(path: Path, made: Any) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(made[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(made)

    check_round_trip(records, write, suffix)
