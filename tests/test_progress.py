"""Messages: quiet as a library, on standard error from the command line, each where logging is set up."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


class ZMQInteractiveShell:
    """The shell of a notebook's kernel, by its name."""


class Display:
    """What a notebook shows: every text that was displayed, the last one on top."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def display(self, text: str, *, display_id: bool) -> Display:
        assert display_id
        self.texts.append(text)
        return self

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_a_notebook_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = Display(), iter(range(100))
    shown = SimpleNamespace(HTML=str, display=screen.display)
    kernel = SimpleNamespace(get_ipython=ZMQInteractiveShell, display=shown)
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with progress.meter("probing <rows>", 4) as bar:
        for _ in range(4):
            bar.advance(1)
    assert screen.texts[-1] == ""
    assert 'value="2" max="4"' in screen.texts[2]
    assert all("probing &lt;rows&gt;" in text for text in screen.texts[:-1])


def test_without_a_notebook_or_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress.in_notebook()
    with progress.meter("probing", 4) as bar:
        assert type(bar).__name__ == "_Log"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.meter("probing", 4) as bar:
        assert type(bar).__name__ == "_Bar"
