"""This package renders a finished run as one self-contained HTML page that works offline.

page.py               what all pages share: shell, macros, style, content security policy
markup.py             escapes texts and data for a page
charts.py             draws chart data as SVG in theme colours (Altair); vega_process.py renders it in its own process
audit.py              the page of an audit; audit_tables.py, audit_text.py, row_data.py and row_flags.py make its parts
long_answers.py       the section on long answers; long_answers_text.py and excerpts.py write its sentences
short_facts.py        the section on the short facts that rows contain
tune.py               the page of a training run; tune_tables.py, tune_text.py, tune_charts.py, tune_examples.py
evaluation.py         the page of an evaluation; evaluation_chart.py draws its chart
study.py              the page of a study; study_sections.py, study_tables.py, study_text.py, study_charts.py
"""
