"""The bench that all fault tests share, and the count of what was done and how it was met."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import TALLY, Bench, Forge


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Bench]:
    """The tiny model, files, and a process that starts commands."""
    base = tmp_path_factory.mktemp("faults")
    before = os.environ.get("FOREKNOW_CACHE")
    os.environ["FOREKNOW_CACHE"] = str(base / "cache")
    forge = Forge(base / "said")
    try:
        yield Bench(forge, base, tiny_folder)
    finally:
        forge.close()
        if before is None:
            del os.environ["FOREKNOW_CACHE"]
        else:
            os.environ["FOREKNOW_CACHE"] = before


def pytest_configure(config: pytest.Config) -> None:
    """The marker is ours; it may stand in pyproject.toml as well."""
    config.addinivalue_line("markers", "faults: real processes struck, disks filled, files damaged; many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only where they are asked for, by `-m faults` or by name, do the long ones run."""
    if "faults" in config.option.markexpr or any("faults" in arg for arg in config.args):
        return
    long = [item for item in items if item.get_closest_marker("faults")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults of each kind were tried on each stage, and how they were met."""
    if not TALLY:
        return
    terminalreporter.section("faults")
    for (fault, stage, met), times in sorted(TALLY.items()):
        terminalreporter.write_line(f"{fault:<34}{stage:<10}{met:<16}{times:>6}")
