"""Writes the HTML page of a finished training run."""

from __future__ import annotations

from pathlib import Path

from foreknow.io.run_dir import read_json, write_text
from foreknow.stages.train.result import TrainResult, open_train


def write_page(result: TrainResult, *, control: Path | None = None, show_rows: bool = True) -> Path:
    """Write `report.html` of a training run and return its path.

    `control`: another run to compare it with. By default this is the run in the same parent folder that `control_of`
    finds. Raises InputError if the control is not a finished run.
    """
    from foreknow.report.tune import render_tune  # keeps altair out

    path = result.folder / "report.html"
    beside = control if control is not None else control_of(result.folder)
    write_text(path, render_tune(result, open_train(beside) if beside else None, show_rows=show_rows))
    return path


def control_of(folder: Path) -> Path | None:
    """Find a finished run in the same parent folder that trained without this run's Unknown rows.

    Prefers a run on the D_Known of this run's own training file. Otherwise takes a run on a set of the same size, audit
    and seed with an Unknown share of 0. Returns None if there is neither.
    """
    ours = (read_json(folder / "results.json") or {}).get("mix")
    if not isinstance(ours, dict) or ours.get("kind") == "known_of":
        return None
    controls: dict[str, Path] = {}
    for path in sorted(folder.parent.glob("*/results.json")):
        theirs = (read_json(path) or {}).get("mix")
        if not isinstance(theirs, dict) or path.parent == folder or not (path.parent / "manifest.json").is_file():
            continue
        if (theirs.get("known_of") or {}).get("sha256") == ours.get("sha256"):
            controls.setdefault("known_of", path.parent)
        same = all(theirs.get(key) == ours.get(key) for key in ("audit", "size", "seed"))
        if same and theirs.get("kind") == "unknown" and theirs["share"]["asked"] == 0:
            controls.setdefault("none", path.parent)
    return controls.get("known_of") or controls.get("none")
