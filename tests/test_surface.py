"""What a user meets first: import, --help, the README's commands, the façade."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foreknow
from foreknow.cli import main
from foreknow.config import AuditConfig, CheckConfig, ExtractConfig, MixConfig, TuneConfig
from foreknow.stages.study.settings import StudyConfig

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "polars", "altair", "scipy", "numpy")


def _modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines())


def test_import_is_light() -> None:
    assert not _modules("import foreknow").intersection(HEAVY)


def test_help_is_light() -> None:
    loaded = _modules(
        "from foreknow import cli\n"
        "for words in (['--help'], ['audit', '--help'], ['study', '--help-all'], ['config', 'tune']):\n"
        "    try:\n        cli.main(words)\n    except SystemExit: pass"
    )
    assert not loaded.intersection(HEAVY)


def test_every_setting_is_a_flag() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from foreknow.cli import main; main(['audit', '--help-all'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    flags = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    wanted = {f"--{name.replace('_', '-')}" for name in AuditConfig.model_fields if name != "data"}
    assert wanted <= flags
    assert "--config" in flags


def test_the_facade_exports_what_it_says() -> None:
    for name in foreknow.__all__:
        assert getattr(foreknow, name) is not None
    assert set(foreknow._LAZY) <= set(foreknow.__all__)


def test_the_readme_has_exactly_two_commands_for_set_up() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    commands = re.findall(r"^make (\S+)", readme, re.M)
    assert commands[:2] == ["demo", "test"]
    assert set(commands) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


SETTINGS = {
    **{"audit": AuditConfig, "check": CheckConfig, "mix": MixConfig, "tune": TuneConfig, "extract": ExtractConfig},
    "study": StudyConfig,
}
OTHERS = {"forecast": {"--study", "--unknown", "--fitted", "--force"}, "data": {"--from", "--out"}}
"""Verbs that have no settings of their own."""


def test_the_readme_names_only_settings_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"\.venv/bin/foreknow (\w+)([^\n]*)", readme)
    assert {verb for verb, _ in lines} >= {"audit", "check", "mix", "tune"}
    for verb, rest in lines:
        fields = SETTINGS[verb].model_fields if verb in SETTINGS else ()
        known = {f"--{name.replace('_', '-')}" for name in fields} | {"--config", "--strict"} | OTHERS.get(verb, set())
        assert set(re.findall(r"(?<!\w)--[a-z][a-z-]+", rest)) <= known, verb


def run_main(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


def test_check_prints_and_gates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    rows = [{"question": f"Who wrote book {n}?", "answer": f"Author {n}"} for n in range(8)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps(rows[0]) + "\n")
    told = tmp_path / "found.json"
    assert run_main(["check", str(train), str(test), "--json", str(told), "--strict"]) == 3
    shown = capsys.readouterr()
    assert "question_in_other_split: 1 row" in shown.out
    assert "--strict" in shown.err
    assert json.loads(told.read_text())["rows"] == 9
    assert run_main(["check", str(train)]) == 0
    assert run_main(["check", str(tmp_path / "gone.jsonl")]) == 2
    assert run_main(["check"]) == 2


def test_the_packaged_facts_as_a_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "facts"
    assert run_main(["data", "facts", "--out", str(out)]) == 0
    assert "written: " in capsys.readouterr().out
    assert run_main(["data", "facts", "--out", str(out)]) == 0
    assert "already complete: " in capsys.readouterr().out
    assert run_main(["check", str(out)]) == 0


def test_a_dash_is_standard_input() -> None:
    words = [sys.executable, "-c", "from foreknow.cli import main; main()", "check", "-"]
    done = subprocess.run(words, input=b'{"question": "a?", "answer": "b"}\n', capture_output=True, check=False)
    assert (done.returncode, b"1 record: 1 row read" in done.stdout) == (0, True), done.stderr


def test_a_billion_rows_may_be_written_1e9(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"question": "Capital {n}?", "answer": "A{n}"}}\n' for n in range(12)))
    words = ["audit", str(data), "--model", str(tiny_folder), "--dry-run"]
    assert run_main([*words, "--rows", "1e9"]) == 0
    assert "1,000,000,000 rows" in capsys.readouterr().out
    assert run_main([*words, "--rows", "2.5"]) == 2


@pytest.mark.parametrize("wrong", ["2.5", "abc", "1e3"])
def test_a_whole_number_is_not_rounded(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["audit", "facts", "--limit", wrong]) == 2
    assert capsys.readouterr().err == f"foreknow: --limit: found '{wrong}', expected a whole number\n"
