"""Compares finished runs and writes their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foreknow.errors import UsageError
from foreknow.io.run_dir import write_text
from foreknow.report.comparison import render_comparison
from foreknow.stages.audit.compare import compare_audits
from foreknow.stages.audit.result import open_audit
from foreknow.stages.compare.comparison import RunComparison, compare_outcomes
from foreknow.stages.compare.run_outcomes import read_run


def compare_folders(folders: Sequence[str | Path]) -> RunComparison:
    """Compare finished audits, evaluations or tune runs; the first is the reference.

    Raises InputError for a folder of no such run, what `compare_outcomes` raises, and UsageError for audits of other
    rows or under another protocol than the first one's (`compare_audits`).
    """
    compared = compare_outcomes([read_run(folder) for folder in folders])
    if compared.stage == "audit":
        first, *others = map(open_audit, folders)
        for other in others:
            compare_audits(first, other)
    return compared


def write_page(comparison: RunComparison, path: Path) -> Path:
    """Write the page of a comparison and return its path. Raises UsageError for another suffix than .html."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--page {path}: found suffix {path.suffix!r}, expected .html")
    write_text(path, render_comparison(comparison))
    return path
