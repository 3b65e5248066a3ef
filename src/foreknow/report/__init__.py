"""A finished run -> one self-contained HTML page that works offline.

page.py               what all pages share: shell, macros, style, content security policy
format.py             texts and numbers as a page shows them
charts.py             lines -> SVG in theme colours (Altair); vega_process.py renders them in a process of its own
audit.py              the page of an audit; audit_tables.py, audit_text.py, row_data.py and row_flags.py make its parts
long_answers.py       the part on long answers; long_answers_text.py and excerpts.py make its sentences
short_facts.py        the part on short facts that rows bring
tune.py               the page of a training run; tune_tables.py, tune_text.py, tune_charts.py, tune_examples.py
evaluation.py         the page of an evaluation
study.py              the page of a study; study_sections.py, study_tables.py, study_text.py, study_charts.py
"""
