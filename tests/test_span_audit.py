"""Fact spans in an audit from end to end: outputs, a column of the user's own, interruption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import foreknow
from builders import write_jsonl
from conftest import CAPITALS, RIVERS, Cli, fact_rows
from foreknow.categories import CATEGORIES
from foreknow.data.spans.schema import SPAN_COUNTS, SPANS, count_spans, is_new
from foreknow.inference.span_probe import SpanProber
from foreknow.stages.audit import run as audit_run

NAMES = list(CAPITALS)


def long_row(number: int, **more: object) -> dict[str, Any]:
    name = NAMES[number]
    answer = (
        f"{CAPITALS[name]} is the place that all the people there name first. Then comes the {RIVERS[name]} in "
        f"{1000 + 37 * number}, and {NAMES[-1 - number]} lies behind it."
    )
    return {"question": f"What is the capital of {name}?", "answer": answer, **more}


def data_file(folder: Path, rows: int = 7) -> Path:
    short = [{k: row[k] for k in ("question", "answer")} for row in fact_rows()[40:47]]
    return write_jsonl(folder / "long.jsonl", [*map(long_row, range(rows)), *short])


def settings(tiny_folder: Path) -> list[object]:
    words = [
        "--model",
        tiny_folder,
        "--dtype",
        "float32",
        "--shots",
        2,
        "--exemplar-sets",
        2,
        "--max-answer-tokens",
        16,
    ]
    return [*words, "--span-sets", 2, "--span-shots", 1, "--span-alternatives", 3]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    foreknow.audit(
        str(data_file(folder)),
        model=str(tiny_folder),
        out=str(folder / "a"),
        dtype="float32",
        shots=2,
        exemplar_sets=2,
        max_answer_tokens=16,
        span_sets=2,
        span_shots=1,
        span_alternatives=3,
    )
    return folder / "a"


def test_every_long_row_gets_labelled_spans(finished: Path) -> None:
    audit = foreknow.open_audit(finished)
    spans, rows = audit.spans, audit.rows
    assert spans is not None
    assert dict(spans.schema) == dict(pl.DataFrame(schema=SPANS).schema)
    assert spans.equals(spans.sort("row", "start"))
    golds = dict(rows.select("row", "answer").iter_rows())
    assert all(golds[s["row"]][s["start"] : s["end"]] == s["text"] for s in spans.iter_rows(named=True))
    assert set(spans["row"]) == set(range(7))
    assert spans["category"].null_count() == 0
    assert set(spans["category"]) <= set(CATEGORIES)
    assert spans["finder"].unique().to_list() == ["rules"]
    assert {"name", "date"} <= set(spans["type"])
    assert (
        spans.group_by("row")
        .agg(pl.col("span").sort())
        .filter(pl.col("span") != pl.int_ranges(0, pl.col("span").list.len()))
        .is_empty()
    )
    long = rows.filter(pl.col("n_spans").is_not_null())
    assert long["row"].to_list() == list(range(7))
    assert long.select(list(SPAN_COUNTS)).equals(count_spans(long["row"], spans))
    assert long["new_spans"].sum() == spans.filter(is_new()).height
    assert rows.filter(pl.col("row") >= 7)["spans_category"].null_count() == 7


def test_the_summary_and_the_annotated_file_say_the_same(finished: Path) -> None:
    audit = foreknow.open_audit(finished)
    spans, told = pl.read_parquet(finished / "spans.parquet"), audit.summary["spans"]
    assert told["spans"] == told["labelled"] == spans.height
    assert told["new"] == spans.filter(is_new()).height
    assert told["recognised"] == spans["recognised"].sum()
    assert sum(told["categories"].values()) == pytest.approx(1)
    assert sum(told["rows"].values()) == 7
    assert sum(own["spans"] for own in told["by_type"].values()) == spans.height
    assert {**told["protocol"], "exemplars": ""} == {
        **{"finder": "rules", "sets": 2, "shots": 1, "alternatives": 3, "exemplars": ""}
    }
    annotated = [json.loads(line) for line in (finished / "annotated.jsonl").read_text().splitlines()]
    first = spans.filter(pl.col("row") == 0)
    assert [s["text"] for s in annotated[0]["spans"]] == first["text"].to_list()
    assert [s["new"] for s in annotated[0]["spans"]] == first.select(is_new()).to_series().to_list()
    assert annotated[0]["n_spans"] == first.height
    assert annotated[9]["spans"] is None
    manifest = json.loads((finished / "manifest.json").read_text())
    assert "spans.parquet" in manifest["files"]
    shown = json.loads((finished / "span_exemplars.json").read_text())
    assert [len(own) for own in shown["all"]] == [1, 1]


def test_an_interrupted_audit_goes_on_and_gives_the_same_bytes(
    run: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, words = data_file(tmp_path), settings(tiny_folder)
    for name in ("LONG_ROWS", "SPAN_ROWS"):
        monkeypatch.setattr(audit_run, name, 2)
    assert run("audit", data, "--out", tmp_path / "whole", *words)[0] == 0
    probe, calls = SpanProber.probe, []

    def dying(self: SpanProber, rows: pl.DataFrame, finder: str) -> pl.DataFrame:
        calls.append(rows["row"].to_list())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return probe(self, rows, finder)

    monkeypatch.setattr(SpanProber, "probe", dying)
    assert run("audit", data, "--out", tmp_path / "b", *words)[0] == 130
    code, _, err = run("audit", data, "--out", tmp_path / "b", *words)
    assert code == 0
    assert "spans of 2 of 4 parts are labelled; going on" in err
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    for name in ("spans.parquet", "rows.parquet", "annotated.jsonl", "span_exemplars.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_rows_own_spans_are_taken_where_there_is_a_column(run: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [long_row(n) for n in range(7)]
    rows[0]["spans"] = [[0, 5], "place"]
    rows[1]["answer"] = f"  {rows[1]['answer']}"
    rows[1]["spans"] = [{"start": 2, "end": 10, "type": "name"}]
    out = tmp_path / "a"
    data = write_jsonl(tmp_path / "f.jsonl", rows)
    code, _, err = run("audit", data, "--out", out, *settings(tiny_folder))
    assert code == 0
    assert "3 fact spans in 2 of 7 rows with long answers (finder: column)" in err
    spans = pl.read_parquet(out / "spans.parquet")
    assert spans.select("row", "text", "type", "finder").rows() == [
        *((0, "Avens", "own", "column"), (0, "place", "own", "column")),
        (1, "Brigston", "name", "column"),
    ]
    annotated = [json.loads(line) for line in (out / "annotated.jsonl").read_text().splitlines()]
    assert annotated[0]["spans"] == [[0, 5], "place"]
    assert [s["text"] for s in annotated[0]["foreknow_spans"]] == ["Avens", "place"]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (["nowhere"], "a text that stands in the row's answer"),
        ([[0, 5000]], "a place within the answer's"),
        ([[5, 2]], "a place within the answer's"),
        ([[0, "5"]], "a text, or [start, end]"),
        ([{"start": 0, "end": 5, "text": "Avons"}], "the text at its place, 'Avens'"),
        ([[0, 5], [3, 8]], "spans that do not overlap"),
    ],
)
def test_a_bad_entry_for_spans_is_refused_with_file_and_row(
    run: Cli, tiny_folder: Path, tmp_path: Path, entry: object, what: str
) -> None:
    rows = [long_row(n) for n in range(3)]
    rows[0]["spans"] = entry
    data = write_jsonl(tmp_path / "f.jsonl", rows)
    code, _, err = run("audit", data, "--out", tmp_path / "a", *settings(tiny_folder))
    assert code == 2
    assert "f.jsonl: row 0: column spans: found" in err
    assert what in err
    assert "--spans rules" in err


def test_spans_can_be_left_out_and_finders_that_are_not_there_are_refused(
    run: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "f.jsonl", [long_row(n) for n in range(3)])
    code, _, _ = run("audit", data, "--out", tmp_path / "a", *settings(tiny_folder), "--spans", "none")
    assert code == 0
    assert not (tmp_path / "a" / "spans.parquet").exists()
    assert "spans" not in foreknow.open_audit(tmp_path / "a").summary
    code, _, err = run("audit", data, "--out", tmp_path / "b", *settings(tiny_folder), "--spans", "column")
    assert code == 2
    assert "--map spans=COLUMN" in err
    assert not (tmp_path / "b").exists(), "refused before anything is written"
    code, _, err = run("audit", data, "--out", tmp_path / "b", *settings(tiny_folder), "--spans", "spacy:none_such")
    assert code == 2
    assert "--spans spacy:none_such: spaCy" in err
    code, _, err = run("audit", data, "--out", tmp_path / "b", *settings(tiny_folder), "--spans", "magic")
    assert code == 2
    assert "expected auto, rules, spacy:MODEL, column or none" in err


def test_a_dry_run_counts_the_spans(run: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("audit", data_file(tmp_path), "--dry-run", *settings(tiny_folder))
    assert code == 0
    assert "spans" in out


@pytest.mark.slow
def test_spans_labelled_on_ray_are_those_of_one_process(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LONG_ROWS", "SPAN_ROWS"):
        monkeypatch.setattr(audit_run, name, 3)
    data, threads = data_file(tmp_path), torch.get_num_threads()
    torch.set_num_threads(1)  # equal bytes are promised for equal numbers of threads
    for name, more in (("local", {}), ("ray", {"ray": True, "ray_workers": 1})):
        foreknow.audit(
            str(data),
            model=str(tiny_folder),
            out=str(tmp_path / name),
            dtype="float32",
            shots=2,
            exemplar_sets=2,
            max_answer_tokens=16,
            span_sets=2,
            span_shots=1,
            span_alternatives=3,
            **more,
        )
    torch.set_num_threads(threads)
    for name in ("spans.parquet", "annotated.jsonl"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name
