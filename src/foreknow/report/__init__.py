"""An audit's frames and summary -> one self-contained HTML page that works offline.

verdict.py  shares -> the sentences at the top and what to do; thresholds and the paper's figures; pure
tables.py   frames -> the lines of every table on the page; pure
charts.py   lines -> SVG in theme colours (Altair, vl-convert)
audit.py    all of it -> the page (audit.html.j2, style.css, table.js)
"""

from __future__ import annotations

from foreknow.report.audit import render_audit

__all__ = ["render_audit"]
