"""An audit's frames and summary -> one self-contained HTML page that works offline.

verdict.py       shares -> the sentences at the top and what to do; thresholds and the paper's figures; pure
verdict_long.py  the same for a file whose answers are mostly long
tables.py        frames -> the lines of every table on the page; pure
flags.py         flags -> what they mean and what to do; pure
long_answers.py  log-probabilities -> how expected an answer's wording is, and where least so; pure
short_facts.py   the facts that rows bring -> what rows come to; pure
excerpts.py      long texts -> the parts that are shown; pure
charts.py        lines -> SVG in theme colours (Altair, vl-convert)
text.py          texts and numbers as the page shows them
row_data.py      rows -> the JSON behind the table of rows (table.js)
audit.py         all of it -> the page (audit.html.j2 and its parts, style.css, table.js)
"""

from __future__ import annotations

from foreknow.report.audit import render_audit

__all__ = ["render_audit"]
