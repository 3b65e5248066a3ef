"""Everything a run folder has on one row, as sections that the page shows one below the other.

A section has a `kind` (`lines`, `table`, `prompts`, `reading` or `notes`) and a `title`; the page's script shows its
texts as text only. Only the row's own lines are read from the run's Parquet files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from foreknow.data.spans.schema import is_new
from foreknow.format.numbers import percent
from foreknow.report.span_data import span_pieces
from foreknow.stages.audit.explain import between
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.audit.verdict.labelled_spans import TYPE_NAMES, with_parts
from foreknow.stages.evaluate.metrics import ANSWERED
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.explore.row_table import RowTable
from foreknow.stages.train.result import TrainResult

Section = dict[str, Any]


def row_detail(table: RowTable, place: int) -> dict[str, Any]:
    """Return the detail of the row at a place of the table: `heading`, `question`, `lead`, `category`, `sections`."""
    key = table.frame.row(place, named=True)
    if isinstance(table.run, AuditResult):
        return audit_detail(table.run, key["row"])
    if isinstance(table.run, EvaluateResult):
        return evaluation_detail(table.run, key["row"])
    return train_detail(table.run, key["set"], key["row"])


def audit_detail(audit: AuditResult, row: int) -> dict[str, Any]:
    """The prompts of an audited row, the model's answers with their probabilities, and the rule of its label."""
    why = audit.explain(row)
    lead, sections = why.why, [_lines("Accepted answers", why.answers)]
    spans = _own_lines(audit, "spans.parquet", pl.col("row") == row)
    if spans is not None and not spans.is_empty():
        lead = _spans_lead(spans)
        pieces = span_pieces(why.answers[0] if why.answers else "", with_parts(spans).sort("start").to_dicts())
        sections = [{"kind": "reading", "title": "The answer, with its fact spans", "pieces": pieces}]
        sections += [_lines("Other accepted answers", why.answers[1:])] if why.answers[1:] else []
    if why.model_answer is not None:
        sections.append(_lines("The model's greedy answer behind exemplar set 0", [why.model_answer]))
    if not why.probes.is_empty():
        rows = [
            [number, "✓ right" if right else "✗ wrong", between(low, high)]
            for number, right, low, high in why.probes.iter_rows()
        ]
        head = ["Exemplar set", "Greedy answer", "Probability that a sample is right"]
        sections.append(_table("Behind each exemplar set", head, rows))
    if why.prompts:
        prompts = [[f"Exemplar set {number}", text] for number, text in enumerate(why.prompts)]
        sections.append({"kind": "prompts", "title": "The prompts", "prompts": prompts})
    facts = _own_lines(audit, "facts.parquet", pl.col("parent") == row)
    if facts is not None and not facts.is_empty():
        columns = ("question", "answer", "category", "model_answer")
        lines = [[value if value is not None else "–" for value in line] for line in facts.select(columns).iter_rows()]
        sections.append(_table("Its short facts", ["Question", "Answer", "Category", "Model says"], lines))
    if why.prompts and why.notes:
        sections.append({"kind": "notes", "title": "Notes", "lines": list(why.notes)})
    return _detail(f"Row {row}", why.question, lead, why.category, sections)


def _spans_lead(spans: pl.DataFrame) -> str:
    """What the labels of a long answer's spans (`SPANS`) say of it."""
    labelled = spans.filter(pl.col("category").is_not_null()).height
    new = spans.filter(is_new()).height
    return (
        f"The answer is long, so that its facts have labels and the row has none: {new} of {labelled} labelled spans "
        "are new to the model, neither expressed in place nor recognised."
    )


def evaluation_detail(evaluation: EvaluateResult, row: int) -> dict[str, Any]:
    """What the model and the base model answered to a row, and the spans of its long answer that turn up."""
    lines = _own_lines(evaluation, "rows.parquet", pl.col("row") == row)
    assert lines is not None
    line: dict[str, Any] = {**dict.fromkeys(ANSWERED), **lines.row(0, named=True)}  # an older run may lack a column
    lenient = evaluation.summary["protocol"]["match"] == "lenient"
    correct = line["correct_lenient" if lenient else "correct"]
    if correct is None:
        lead = "The model's logits were not finite, so that its answer is not known."
    else:
        answer = "is right" if correct else "is a refusal" if line["refused"] else "is wrong"
        ended = "" if line["ended"] else " It had not ended within the tokens that a right answer may have."
        lead = f"The model's answer {answer}.{ended}"
    sections = [_lines("Accepted answers", line["answers"] or ())]
    if line["prediction"] is not None:
        sections.append(_lines("The model's answer", [line["prediction"]]))
    if line["base_prediction"] is not None:
        mark = " (right)" if line["base_prediction_correct"] else " (wrong)"
        sections.append(_lines(f"The base model's answer in the same format{mark}", [line["base_prediction"]]))
    if line["base_p_greedy"] is not None:
        text = f"{percent(line['base_p_greedy'])} of the base model's greedy answers in the audit are right"
        said = f"; behind exemplar set 0 it says {line['base_answer']!r}" if line["base_answer"] is not None else ""
        sections.append(_lines("The base model in the audit", [f"{text}{said}."]))
    for name, title in (
        ("long_answer", "The text that the model wrote"),
        ("base_long_answer", "The text that the base model wrote"),
    ):
        if line[name] is not None:
            sections.append({"kind": "reading", "title": title, "pieces": [line[name]]})
    if line["gold_spans"]:
        rows = [
            [span["text"], span["type"], span["category"] or "–", _yes(span["in_text"]), _yes(span["in_base_text"])]
            for span in line["gold_spans"]
        ]
        head = ["Span", "Type", "Category", "In the model's text", "In the base model's"]
        sections.append(_table("The gold answer's spans", head, rows))
    if line["other_spans"]:
        rows = [[span["text"], span["type"]] for span in line["other_spans"]]
        sections.append(_table("Other spans that the model names", ["Span", "Type"], rows))
    return _detail(f"Row {row}", line["question"], lead, line["category"], sections)


def train_detail(train: TrainResult, name: str, row: int) -> dict[str, Any]:
    """At which evaluations a watched row was right."""
    own = (pl.col("set") == name) & (pl.col("row") == row)
    lines, outcomes = _own_lines(train, "rows.parquet", own), _own_lines(train, "outcomes.parquet", own)
    assert lines is not None
    line = lines.row(0, named=True)
    history = [] if outcomes is None else outcomes.sort("step").select("epoch", "step", "correct").rows()
    verb = "fitted" if name == "train" else "right"
    right = sum(bool(correct) for _, _, correct in history)
    lead = f"The row is {verb} at {right} of {len(history)} evaluations."
    rows = [[f"{epoch:g}", step, f"✓ {verb}" if correct else f"✗ not {verb}"] for epoch, step, correct in history]
    sections = [_lines("Gold answer", [line["answer"]]), _table("At each evaluation", ["Epoch", "Step", ""], rows)]
    return _detail(f"Row {row} of {name}", line["question"], lead, line["category"], sections)


def _own_lines(run: AuditResult | EvaluateResult | TrainResult, file: str, own: pl.Expr) -> pl.DataFrame | None:
    """The lines of a Parquet file that belong to a row; None if the run has no such file."""
    path = run.folder / file
    return pl.scan_parquet(path).filter(own).collect() if path.is_file() else None


def _detail(
    heading: str, question: str | None, lead: str, category: str | None, sections: list[Section]
) -> dict[str, Any]:
    return {"heading": heading, "question": question, "lead": lead, "category": category, "sections": sections}


def _lines(title: str, lines: Sequence[str]) -> Section:
    return {"kind": "lines", "title": title, "lines": [line if line else "(nothing)" for line in lines]}


def _table(title: str, head: list[str], rows: list[list[Any]]) -> Section:
    return {"kind": "table", "title": title, "head": head, "rows": [[str(cell) for cell in row] for row in rows]}


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


def span_names() -> list[str]:
    """The names of the types of spans, by the numbers that `reading` sections hold."""
    return list(TYPE_NAMES.values())
