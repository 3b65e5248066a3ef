"""Messages: quiet as a library, on standard error from the command line, each where logging is set up."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from foreknow import progress

FACTS = '{"question": "What is the capital of Peru?", "answer": "Lima"}\n' * 2


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text(FACTS, encoding="utf-8")
    return path


def test_the_library_is_quiet_and_the_command_line_is_not(file: Path) -> None:
    quiet = python("import sys, foreknow; print(foreknow.check(sys.argv[1]).summary['rows'])", str(file))
    assert (quiet.stdout.strip(), quiet.stderr) == ("2", "")
    spoken = python("import sys; from foreknow.cli import main; main(['check', sys.argv[1]])", str(file))
    assert "first row: Q 'What is the capital of Peru?'" in spoken.stderr


def test_logging_that_is_set_up_shows_each_message_once_with_its_module(file: Path) -> None:
    code = (
        "import sys, logging; logging.basicConfig(level='INFO', format='%(name)s %(message)s')\n"
        "import foreknow; foreknow.check(sys.argv[1])"
    )
    lines = [line for line in python(code, str(file)).stderr.splitlines() if "first row" in line]
    assert len(lines) == 1
    assert lines[0].startswith("foreknow.data.validation first row")


def test_messages_go_to_standard_error_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    progress.log_to_stderr()
    progress.log_to_stderr()
    logging.getLogger("foreknow.some.module").info("100 % of {rows}")
    assert capsys.readouterr().err == "100 % of {rows}\n"


def test_a_subject_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress.log_once("a subject of this test", "first")
    progress.log_once("a subject of this test", "second")
    assert capsys.readouterr().err == "first\n"
