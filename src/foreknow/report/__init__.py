"""This package renders a finished run as one self-contained HTML page that works offline.

page.py               what all pages share: shell, macros, style, content security policy
markup.py             escapes texts and data for a page
charts.py             draws chart data as SVG in theme colours (Altair); vega_process.py renders it in its own process
audit.py              the page of an audit; audit_tables.py, audit_options.py and row_data.py make its parts
long_answer_options.py, span_options.py   what to do with a file whose answers are mostly long
tune.py               the page of a training run; tune_tables.py, tune_text.py, tune_charts.py, tune_examples.py
evaluation.py         the page of an evaluation; evaluation_chart.py draws its chart
study.py              the page of a study; study_sections.py, study_tables.py, study_text.py, study_charts.py
"""
