"""Write the HTML report of a finished audit."""

from __future__ import annotations

from pathlib import Path

from foreknow.format.text import shown_path
from foreknow.io.run_dir import write_text
from foreknow.report.hold_option import comparison_beside
from foreknow.settings import read_settings
from foreknow.stages.audit.result import AuditResult


def write_page(audit: AuditResult, *, show_rows: bool = True) -> Path:
    """Write `report.html` of an audit and return its path. `show_rows=False` leaves out every text of a row."""
    from foreknow.report.audit import render_audit  # keeps altair out

    path = audit.folder / "report.html"
    page = render_audit(
        audit.rows,
        audit.probes,
        audit.summary,
        audit.facts,
        chance=audit.chance,
        forecast=audit.forecast,
        spans=audit.spans,
        paths=_paths(audit),
        remedies=comparison_beside(audit.folder, (audit.summary.get("model") or {}).get("fingerprint")),
        show_rows=show_rows,
    )
    write_text(path, page)
    return path


def _paths(audit: AuditResult) -> dict[str, str | None]:
    """What the words in capitals stand for in the page's commands."""
    settings = read_settings(audit.folder)
    data = shown_path(settings.get("data"))
    return {"AUDIT": shown_path(audit.folder), "DATA": data, "TRAIN": data, "MODEL": shown_path(settings.get("model"))}
