"""`audit --minutes`: the arithmetic of the budget, the burst on a clock of its own, and runs that go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foreknow
from builders import rows_frame
from conftest import Cli
from foreknow.errors import ConfigError
from foreknow.inference.exact_probe import Prober
from foreknow.io.run_dir import RunDir
from foreknow.stages.audit import time_budget
from foreknow.stages.audit.burst import measure_burst, measure_long_answers
from foreknow.stages.audit.time_budget import Speed, Work, rows_within, seconds_of

WORK = Work({"capital": 300, "river": 100}, {"capital": 800.0, "river": 1000.0}, 400, 400, 0, 120.0, 5000)
SPEED = Speed(0.005, 0.01, 0.0, 10.0)


class SlowProber:
    """A prober on a clock of its own: 5 s for the exemplar prefixes of a group, unless the last call had them too, and
    2 s a row."""

    def __init__(self) -> None:
        self.now, self.cached, self.calls = 0.0, set[str](), list[int]()

    def clock(self) -> float:
        return self.now

    def probe(self, rows: pl.DataFrame) -> Any:
        groups = set(rows["group"])
        self.now += 5 * len(groups - self.cached) + 2 * rows.height
        self.cached = groups
        self.calls.append(rows.height)

    @property
    def prompts(self) -> Any:
        raise AssertionError("a burst tokenizes nothing by itself")


def grouped(*sizes: int) -> pl.DataFrame:
    """Rows of groups of these sizes."""
    groups = [f"g{at}" for at, size in enumerate(sizes) for _ in range(size)]
    return rows_frame({"question": f"q{n}?", "answers": ["a"], "group": group} for n, group in enumerate(groups))


def test_a_burst_tells_prefixes_from_rows() -> None:
    slow = SlowProber()
    burst = measure_burst(slow, grouped(10, 10), 60.0, clock=slow.clock)
    assert (burst.prefix_seconds, burst.row_seconds) == (5.0, 2.0)
    assert burst.seconds == slow.now <= 60.0
    assert slow.calls == [2, 2, 20]
    assert burst.rows.height == 20


def test_a_burst_that_is_over_after_the_first_rows_probes_no_more() -> None:
    slow = SlowProber()
    burst = measure_burst(slow, grouped(10), 1.0, clock=slow.clock)
    assert slow.calls == [2, 2]
    assert (burst.prefix_seconds, burst.row_seconds, burst.rows.height) == (5.0, 2.0, 2)


def test_long_answers_are_measured_on_rows_spaced_by_length() -> None:
    rows = rows_frame({"question": "q?", "answers": ["x" * n]} for n in range(1, 10))
    lengths: list[int] = []

    def score(some: pl.DataFrame) -> None:
        lengths.extend(len(answers[0]) for answers in some["answers"].to_list())

    measure_long_answers(score, rows, 3)
    measure_long_answers(score, rows)
    assert lengths == [2, 5, 8, 5]
    assert measure_long_answers(score, rows.clear()) == 0.0


def test_seconds_of_a_limit_by_hand() -> None:
    assert seconds_of(400, WORK, SPEED) == pytest.approx(10 + 1800 * 0.005 + 400 * 120 * 0.01)
    assert seconds_of(4000, WORK, SPEED) == pytest.approx(10 + 1800 * 0.005 + 4000 * 120 * 0.01)
    # one row of four groups' sizes comes from the largest group
    assert seconds_of(1, WORK, SPEED) == pytest.approx(10 + 800 * 0.005 + 120 * 0.01)


def test_long_answers_and_rows_without_a_question_count_as_they_are() -> None:
    half_long = WORK._replace(probed=100, long=200)
    speed = SPEED._replace(long_answer=3.0)
    assert seconds_of(400, half_long, speed) == pytest.approx(10 + 1800 * 0.005 + 100 * 120 * 0.01 + 200 * 3)


def test_rows_that_each_have_a_group_bring_a_prefix_each() -> None:
    alone = Work({f"g{n}": 1 for n in range(400)}, {f"g{n}": 900.0 for n in range(400)}, 400, 400, 0, 120.0, 5000)
    assert seconds_of(4000, alone, SPEED) == pytest.approx(10 + 4000 * (900 * 0.005 + 120 * 0.01))


@given(
    st.floats(1, 10_000), st.floats(1e-5, 0.1), st.floats(1e-5, 0.1), st.floats(0, 60), st.floats(0, 5),
    st.integers(0, 400), st.integers(0, 400), st.integers(1, 10**7),
)  # fmt: skip
def test_the_limit_is_the_largest_that_fits(
    seconds: float, prefix: float, row: float, overhead: float, long: float, probed: int, longs: int, total: int
) -> None:
    work = WORK._replace(probed=probed, long=longs, total=total)
    speed = Speed(prefix, row, long, overhead)
    limit = rows_within(seconds, work, speed)
    assert 1 <= limit <= total
    if limit > 1:
        assert seconds_of(limit, work, speed) <= seconds
    if limit < total:
        assert seconds_of(limit + 1, work, speed) > seconds


@pytest.fixture
def settings(tiny_folder: Path) -> list[object]:
    return ["--model", tiny_folder, "--dtype", "float32", "--shots", 2]


def no_burst(*_: object) -> Any:
    raise AssertionError("the limit stands in the folder: nothing is measured again")


def test_a_budget_that_suffices_labels_every_row(
    run: Cli, facts_file: Path, settings: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["audit", facts_file, "--out", tmp_path / "a", *settings, "--minutes", 30]
    code, _, err = run(*words)
    assert code == 0, err
    assert "labels 48 of 48 rows in about" in err
    assert "--minutes 30: took" in err
    assert foreknow.open_audit(tmp_path / "a").summary["labelled"] == 48
    monkeypatch.setattr(time_budget, "choose_limit", no_burst)
    code, _, err = run(*words)
    assert code == 0, err
    assert "complete; nothing to do" in err


def slow_probing(monkeypatch: pytest.MonkeyPatch, seconds_a_row: float) -> None:
    """Let the clock of the budget see `seconds_a_row` for each row that is probed, and nothing else."""
    now, probe = [0.0], Prober.probe

    def slower(self: Prober, rows: pl.DataFrame, *prepared: Any) -> Any:
        now[0] += seconds_a_row * rows.height
        return probe(self, rows, *prepared)

    choose = time_budget.choose_limit
    monkeypatch.setattr(Prober, "probe", slower)
    monkeypatch.setattr(time_budget, "choose_limit", lambda config, _: choose(config, 0.0, lambda: now[0]))


def test_rows_are_chosen_as_by_limit_and_the_same_command_goes_on(
    run: Cli, facts_file: Path, settings: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_probing(monkeypatch, 10.0)
    out = tmp_path / "a"
    words = ["audit", facts_file, "--out", out, *settings, "--chunk-rows", 8, "--minutes", 4]
    with monkeypatch.context() as stopped:
        save = RunDir.save_chunk

        def stop_at_second(self: RunDir, number: int, part: str, frame: pl.DataFrame) -> None:
            if number == 1:
                raise KeyboardInterrupt
            save(self, number, part, frame)

        stopped.setattr(RunDir, "save_chunk", stop_at_second)
        code, _, err = run(*words)
    assert code == 130
    # 240 s less 40 s for the burst and 4 s to finish are about 19 rows of 10 s each; rows differ in their tokens
    limit = int(re.search(r"labels (\d+) of 48 rows in about \d(\.5)? minutes on this machine", err)[1])  # type: ignore[index]
    assert 14 <= limit <= 24
    identity = json.loads((out / ".run.json").read_text())["identity"]
    assert (identity["limit"], identity["minutes"]) == (limit, 4)
    monkeypatch.setattr(time_budget, "choose_limit", no_burst)
    code, _, err = run(*words)
    assert code == 0, err
    assert f"going on with the {limit} rows that this run began with" in err
    assert f"1 of {-(-limit // 8)} chunks are finished" in err
    by_limit = foreknow.audit(
        str(facts_file),
        model=str(settings[1]),
        dtype="float32",
        shots=2,
        chunk_rows=8,
        limit=limit,
        out=str(tmp_path / "b"),
    )
    assert foreknow.open_audit(out).rows.equals(by_limit.rows)
    assert (out / "rows.parquet").read_bytes() == (tmp_path / "b" / "rows.parquet").read_bytes()
    code, _, err = run(*words[:-1], 5)
    assert code == 2
    assert "minutes: 4.0 -> 5.0" in err
    code, _, err = run(*words[:-2])
    assert code == 2
    assert "made by another run" in err


def test_a_budget_too_short_for_one_row_is_refused_with_one_that_is_not(
    run: Cli, facts_file: Path, settings: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_probing(monkeypatch, 60.0)
    code, _, err = run("audit", facts_file, "--out", tmp_path / "a", *settings, "--minutes", 2)
    assert code == 2
    # 240 s for the burst of two rows twice, about 60 s for one row, 4 s to finish
    assert re.search(r"one row takes about [45] min \d+ s on this machine", err)
    assert re.search(r"give at least --minutes [56],", err)
    assert not (tmp_path / "a" / ".run.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit", 5], "--limit 5: --minutes 3 chooses the number of rows"),
        (["--ray"], "--ray computes in others"),
        (["--model", "openai:http://127.0.0.1:9#m"], "measures this machine"),
        (["--dry-run"], "leave out one of them"),
        (["--minutes", "0"], "greater than 0"),
    ],
)
def test_what_minutes_excludes_is_refused(
    run: Cli, facts_file: Path, settings: list[object], tmp_path: Path, more: list[object], message: str
) -> None:
    words = {**dict(zip(settings[::2], settings[1::2], strict=True)), "--minutes": 3}
    words.update(dict(zip(more[::2], more[1::2], strict=True)) if len(more) == 2 else {})
    flat = [word for pair in words.items() for word in pair]
    code, _, err = run("audit", facts_file, "--out", tmp_path / "a", *flat, *(more if len(more) == 1 else []))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) <= 2


def test_long_answers_take_their_part_of_the_budget(
    run: Cli, facts_file: Path, settings: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [json.loads(line) for line in facts_file.read_text().splitlines()]
    for at, record in enumerate(records):
        if at % 2:
            record["answer"] = " ".join([record["answer"]] * 40)
    data = tmp_path / "half_long.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in records))
    now = [0.0]

    def score(_: object, __: object, chunks: Any, ___: int) -> list[object]:
        now[0] += 20.0 * sum(rows.height for _, rows in chunks)
        return []

    choose = time_budget.choose_limit
    monkeypatch.setattr(time_budget, "score_long_answers", score)
    monkeypatch.setattr(time_budget, "choose_limit", lambda config, _: choose(config, 0.0, lambda: now[0]))
    code, _, err = run("audit", data, "--exemplars", facts_file, "--out", tmp_path / "a", *settings, "--minutes", 4)
    assert code == 0, err
    # 240 s less 60 s for three long answers and 4 s to finish are 8 to 9 long answers of 20 s, half of the rows
    assert "labels 17 of 48 rows" in err


def test_minutes_needs_a_positive_number() -> None:
    with pytest.raises(ConfigError, match="minutes"):
        foreknow.audit("facts", minutes=-1, out="x")
