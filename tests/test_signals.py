"""SIGTERM and Ctrl-C reach the verb wherever they fall."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import signal, sys, time
from foreknow import signals

class Owner:
    def __del__(self):
        signal.raise_signal(STRUCK)
        time.sleep(0.01)

def into_a_finaliser():
    owner = Owner()
    del owner

def swallowed():
    try:
        signal.raise_signal(STRUCK)
    except BaseException:
        pass

signals.AGAIN = 0.2
signals.install_sigterm()
try:
    WHERE()
    time.sleep(20)
except KeyboardInterrupt as stop:
    signals.cancel_repeat()
    time.sleep(0.4)  # it is not raised again
    print(type(stop).__name__)
"""


@pytest.mark.parametrize(
    ("where", "struck", "name"),
    [
        ("into_a_finaliser", signal.SIGTERM, "Terminated"),
        ("into_a_finaliser", signal.SIGINT, "KeyboardInterrupt"),
        ("swallowed", signal.SIGTERM, "Terminated"),
    ],
)
def test_an_interrupt_that_is_lost_is_raised_again(where: str, struck: signal.Signals, name: str) -> None:
    code = textwrap.dedent(PROGRAM).replace("STRUCK", str(int(struck))).replace("WHERE", where)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, name, "")
