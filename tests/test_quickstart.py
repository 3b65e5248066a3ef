"""The first steps: what `foreknow` alone prints, and the walk of `foreknow quickstart`."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from conftest import Cli
from foreknow import quickstart
from foreknow.cli import command_line
from foreknow.quickstart import Step, count_steps, quickstart_steps, walk


def test_foreknow_alone_names_three_commands_that_exist(run: Cli) -> None:
    code, out, _ = run()
    commands = [line.split() for line in out.splitlines() if line.startswith("  foreknow ")]
    assert code == 0
    assert len(commands) == 3
    assert {words[1] for words in commands} <= set(command_line())


def test_the_steps_run_on_a_users_file_and_are_shown(
    run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "quick"
    code, out, err = run("quickstart", facts_file, "--model", tiny_folder, "--out", out_folder, "--minutes", 0.2)
    assert code == 0, err
    shown = [line for line in out.splitlines() if line.startswith("$ foreknow")]
    assert [line.split()[2] for line in shown] == ["check", "audit", "mix"]
    assert f"read the page: {out_folder / 'audit' / 'report.html'}" in out
    assert (out_folder / "audit" / "report.html").is_file()
    known = pl.read_ndjson(out_folder / "known.jsonl")
    assert known.height > 0
    assert "Unknown" not in known["category"]
    again, text, _ = run("quickstart", facts_file, "--model", tiny_folder, "--out", out_folder, "--minutes", 0.2)
    assert again == 0
    assert "3 of 3" in text


def test_the_packaged_facts_need_no_check() -> None:
    steps = list(quickstart_steps("facts", None, Path("q"), 1.0))
    assert [step.words[0] for step in steps] == ["audit", "mix"]
    assert len(steps) == count_steps("facts")
    assert steps[0].command == "foreknow audit facts --minutes 1 --exemplar-sets 3 --out q/audit"


def test_a_key_goes_on_and_q_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = iter(["", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(keys))
    ran: list[tuple[str, ...]] = []
    steps = [Step("One.", ("a",)), Step("Two.", ("b",))]
    assert walk(steps, 2, lambda words: ran.append(tuple(words)), ask=True) is False
    assert ran == [("a",)]
    assert "stopped before step 2" in capsys.readouterr().out


def test_nothing_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert not quickstart.can_ask()


def test_a_step_that_fails_ends_the_walk_with_its_own_error(run: Cli, tmp_path: Path) -> None:
    code, out, err = run("quickstart", tmp_path / "none.jsonl", "--out", tmp_path / "q")
    assert code == 2
    assert "none.jsonl" in err
    assert "2 of 3" not in out
