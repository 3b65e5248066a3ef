"""A finished run -> one self-contained HTML page that works offline: of audit, tune and evaluate.

verdict.py       shares -> the sentences at the top and what to do; thresholds and the paper's figures; pure
verdict_long.py  the same for a file whose answers are mostly long
tables.py        frames -> the lines of every table on the page; pure
flags.py         flags -> what they mean and what to do; pure
long_answers.py  log-probabilities -> how expected an answer's wording is, and where least so; pure
short_facts.py   the facts that rows bring -> what rows come to; pure
excerpts.py      long texts -> the parts that are shown; pure
charts.py        lines -> SVG in theme colours (Altair)
drawing.py       specs -> SVG in a process of its own (vl-convert)
text.py          texts and numbers as the page shows them
row_data.py      rows -> the JSON behind the table of rows (table.js)
audit.py         all of it -> the page (audit.html.j2 and its parts, table.js)

tune_tables.py   a training run -> points, courses, facts kept, lost and gained, against a control; pure
tune_examples.py rows that show what happened; pure
tune_words.py    which epoch, what training on cost, what to do; pure
tune_charts.py   curves over epochs with chosen epochs marked
tune.py          all of it -> the page (tune.html.j2)
evaluation.py    an evaluation -> its page (evaluation.html.j2)

study_words.py   the study's tables -> one sentence for each finding; pure
study_sheets.py  the study's tables as the page shows them; pure
study_charts.py  curves, shares and intervals
study_sections.py   a section for each figure or table of the paper
study.py         all of it -> the page (study.html.j2)

page.py          what all pages share (shell.html.j2, macros.html.j2, style.css)
"""

from __future__ import annotations

from foreknow.report.audit import render_audit
from foreknow.report.evaluation import render_evaluation
from foreknow.report.study import render_study
from foreknow.report.tune import render_tune

__all__ = ["render_audit", "render_evaluation", "render_study", "render_tune"]
