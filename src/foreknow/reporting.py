"""A finished run's folder -> its page, whatever stage made it."""

from __future__ import annotations

from pathlib import Path

from foreknow.errors import ConfigError, InputError
from foreknow.files.remote import fetched
from foreknow.files.runs import read_json, read_sealed, write_text


def write_report(folder: str | Path, *, show_rows: bool = True, control: Path | None = None) -> Path:
    """Write `report.html` of a finished run again and return its path.

    `control`: for a tune run, another one to hold it against; without it, one beside it that belongs to it is
    taken (`control_of`). Raises InputError for a folder that no finished run wrote.
    """
    folder = fetched(folder)
    stage = (read_sealed(folder / "manifest.json") or {}).get("stage")
    if control is not None and stage != "tune":
        raise ConfigError(f"--control: {folder} is not a tune run, which alone has one")
    path = folder / "report.html"
    if stage == "audit":
        from foreknow.audits.auditing import open_audit

        return open_audit(folder).report(show_rows=show_rows)
    if stage == "tune":
        from foreknow.report import render_tune
        from foreknow.training.tuning import open_tuned

        beside = control if control is not None else control_of(folder)
        write_text(path, render_tune(open_tuned(folder), open_tuned(beside) if beside else None, show_rows=show_rows))
        return path
    if stage == "evaluate":
        from foreknow.evaluation.evaluating import open_evaluation
        from foreknow.report import render_evaluation

        write_text(path, render_evaluation(open_evaluation(folder), show_rows=show_rows))
        return path
    if stage == "study":
        from foreknow.studies.studying import open_study, write_tables

        return write_tables(open_study(folder))
    raise InputError(
        f"{folder}: not a finished run of audit, tune, evaluate or study (no such manifest.json); run it again"
    )


def control_of(folder: Path) -> Path | None:
    """A finished run in the same place that trained on the same set without its Unknown rows, else none of them.

    First D_Known of this run's very file, then a set of the same size, audit and seed with a share of 0.
    """
    ours = (read_json(folder / "results.json") or {}).get("mix")
    if not isinstance(ours, dict) or ours.get("kind") == "known_of":
        return None
    found: dict[str, Path] = {}
    for path in sorted(folder.parent.glob("*/results.json")):
        theirs = (read_json(path) or {}).get("mix")
        if not isinstance(theirs, dict) or path.parent == folder or not (path.parent / "manifest.json").is_file():
            continue
        if (theirs.get("known_of") or {}).get("sha256") == ours.get("sha256"):
            found.setdefault("known_of", path.parent)
        same = all(theirs.get(key) == ours.get(key) for key in ("audit", "size", "seed"))
        if same and theirs.get("kind") == "unknown" and theirs["share"]["asked"] == 0:
            found.setdefault("none", path.parent)
    return found.get("known_of") or found.get("none")
