"""The demo's own parts: which rows it takes, what it says beforehand, and that its commands fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import demo
from builders import write_jsonl
from demo import REFERENCE, STEPS, Machine, StepTime
from foreknow import cli


def test_rows_are_of_each_relation_and_spaced_evenly(tmp_path: Path) -> None:
    records = [{"relation": relation, "n": n} for relation in (*demo.RELATIONS, "other") for n in range(30)]
    lines = [json.loads(line) for line in demo.evenly(write_jsonl(tmp_path / "facts.jsonl", records), 13)]
    assert [sum(line["relation"] == name for line in lines) for name in demo.RELATIONS] == [4, 3, 3, 3]
    assert [line["n"] for line in lines if line["relation"] == demo.RELATIONS[1]] == [5, 15, 25]


def test_the_files_hold_what_the_steps_read(tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    facts.mkdir()
    for split in ("train", "dev", "test"):
        records = [
            {"question": f"{relation} {n} {split}?", "answer": "x", "relation": relation, "split": split}
            for relation in demo.RELATIONS
            for n in range(40)
        ]
        write_jsonl(facts / f"{split}.jsonl", records)
    demo.write_rows(facts, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {split: sum(row["split"] == split for row in rows) for split in ("train", "test")} == demo.AUDITED
    assert len({row["question"] for row in rows}) == len(rows)
    dev = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    assert len(dev) == demo.DEV_ROWS
    assert {row["split"] for row in dev} == {"dev"}
    audit = tmp_path / "audit"
    audit.mkdir()
    write_jsonl(audit / "annotated.jsonl", [{**row, "category": "Unknown"} for row in rows])
    demo.write_test(audit, tmp_path)
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(test) == demo.AUDITED["test"]
    assert {(row["split"], row["category"]) for row in test} == {("test", "Unknown")}


def test_an_estimate_scales_with_both_bursts_and_the_cores() -> None:
    step = StepTime(10, 60)
    assert demo.estimate(step, REFERENCE, 2) == pytest.approx(40)
    twice = Machine(REFERENCE.start_seconds / 2, REFERENCE.gflops * 2)
    assert demo.estimate(step, twice, 2) == pytest.approx(20)
    assert demo.estimate(step, REFERENCE, 4) == pytest.approx(25)


def test_every_step_is_estimated_and_the_commands_are_of_foreknow(tmp_path: Path) -> None:
    road = demo.steps(tmp_path)
    assert [step.name for step in road] == list(STEPS)
    verbs = {step.command[0] for step in road}
    assert {"audit", "mix", "tune", "evaluate", "report"} <= verbs
    parser = cli.command_line()
    for step in road:
        command, bound, *_ = parser.parse_args(list(step.command), exit_on_error=False, print_error=False)
        assert command is not None
        assert bound.arguments or bound.kwargs


def test_what_it_found_stands_beside_intervals(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "tuned").mkdir()
    summary = {"labelled": 136, "categories": {"overall": {"Unknown": 0.5}}}
    (tmp_path / "audit" / "summary.json").write_text(json.dumps(summary))
    point = {"epoch": 2, "metrics": {"em": {"test": 0.25}}}
    (tmp_path / "tuned" / "results.json").write_text(json.dumps({"early_stop": point, "convergence": point}))
    write_jsonl(tmp_path / "test.jsonl", [{}] * 40)
    lines = demo.closing(tmp_path)
    assert lines[0] == "Unknown before training: 68 of 136 (42% to 58%) audited rows"
    assert lines[1] == "the epoch to keep (2): right on 10 of 40 (14% to 40%) test rows"


def test_columns_line_up() -> None:
    assert demo.table([("step", "about"), ("audit", "1 min 1 s")]) == "step       about\naudit  1 min 1 s"
