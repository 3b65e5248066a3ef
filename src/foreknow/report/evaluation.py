"""This module renders the page of an evaluation from `evaluation.html.j2`.

The page shows EM by category, the wrong answers, the refusals, and the rows on which the tuned model differs from the
base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.format.numbers import count, exact, exact_interval, number, p_value, rounded_duration
from foreknow.format.text import display, source
from foreknow.report import page
from foreknow.report.evaluation_chart import em_chart
from foreknow.report.tune_tables import FEW, Count
from foreknow.report.tune_text import TrainVerdict
from foreknow.stages.audit.verdict.row_flags import fault_lines
from foreknow.stats import mcnemar

if TYPE_CHECKING:
    from foreknow.stages.evaluate.result import EvaluateResult

GROUPS_SHOWN = 24
WRONG_SHOWN = 12
EXAMPLES = 8
_SPAN_NAMES = {"all": "all spans", "new": "new to the model"}
OFTEN, TAKES_OVER = 5, 0.15
"""An answer has taken over a relation if the model gives it at least `OFTEN` times, to at least this share of the
relation's rows, and at least twice as often as it is right."""
LATE = 0.02
"""If at least this share of the answers reached the token limit without ending, the verdict says so."""


class EmRow(NamedTuple):
    """EM and refusals of a set of rows.

    `em`: by the matching of the run. `lenient`: by lenient matching. `refused`: rows that the model refused. `base`:
    rows that the base model answered right; None if that is not known.
    """

    name: str
    em: Count
    lenient: Count
    refused: Count
    base: Count | None

    @property
    def few(self) -> bool:
        """Whether there are too few rows for the share to say much."""
        return self.em.rows < FEW


class SpanLine(NamedTuple):
    """Gold spans of one label that turn up in the model's texts, in the base model's, and in those for other rows."""

    name: str
    said: Count
    base: Count | None
    by_accident: Count


@dataclass(frozen=True)
class LongAnswers:
    """What the model writes to rows with long answers: how many gold spans turn up, and what else it names.

    `lines`: all spans, each category, and the new ones. `other`, `base_other`: how many other spans there are.
    `frequent`: text, type and rows of the most frequent ones.
    """

    rows: int
    ended: int
    lines: tuple[SpanLine, ...]
    other: int
    base_other: int | None
    frequent: tuple[tuple[str, str, int], ...]


class Guess(NamedTuple):
    """An answer that the model gives in a relation far more often than it is right there.

    `rows`: rows to which the model gives it, of all rows of the relation. `golds`: rows on which it is right.
    """

    group: str
    prediction: str
    rows: Count
    golds: int


@dataclass(frozen=True)
class AnswerExample:
    """One row: the right answer, the base model's few-shot answer (`base`) and the tuned model's (`prediction`)."""

    question: str
    answer: str
    base: str | None
    prediction: str
    group: str


def render_evaluation(evaluation: EvaluateResult, *, show_rows: bool = True) -> str:
    """Render the whole page. With `show_rows=False` it contains no question and no answer, of the data or the model."""
    summary, rows = evaluation.summary, evaluation.rows
    model, protocol, data = (dict(summary.get(key) or {}) for key in ("model", "protocol", "data"))
    lenient, notes = protocol.get("match") == "lenient", protocol.pop("notes", [])
    rows = rows.drop_nulls("prediction").with_columns(counts=pl.col("correct_lenient" if lenient else "correct"))
    categories = by(summary, "by_category", lenient)
    relations = sorted(by(summary, "by_relation", lenient), key=lambda line: (-line.em.rows, line.name))
    guesses = taken_over(rows)
    return page.render(
        "evaluation.html.j2",
        version=summary.get("version"),
        notes=[*notes, *fault_lines("rows", summary.get("row_faults") or {})],
        model=model,
        warning=page.warning_of(model),
        data=data,
        verdict=verdict(summary, categories, guesses, lenient=lenient),
        summary=summary,
        lenient=lenient,
        overall=_line("all rows", summary["em"]["overall"], summary["refusals"]["overall"], None, lenient),
        categories=categories,
        splits=by(summary, "by_split", lenient),
        relations=relations if len(relations) > 1 else [],
        groups_shown=GROUPS_SHOWN,
        chart=page.both(em_chart, [(c.name, c.em, c.base) for c in categories]) if categories else None,
        moves=summary.get("moves"),
        wrong=[line for line in summary["wrong_answers"]["overall"][:WRONG_SHOWN] if line["count"] > 1]
        if show_rows
        else [],
        collapse=summary["collapse"]["overall"],
        guesses=guesses,
        examples=examples(rows) if show_rows else {},
        long=long_answers(summary),
        answering=_answering(summary),
        over_refusal=_count(summary["refusals"]["over_refusal"]),
        prompt=_prompt_used(summary.get("training_prompt") or {}),
        show_rows=show_rows,
        p=p_value,
        of=_count,
        facts=_facts(summary, model, protocol, data),
    )


def _prompt_used(of: Mapping[str, Any]) -> str:
    """Words for the prompt beside that of the tune run."""
    if not of.get("known"):
        return "with the prompt below (how it was tuned is not recorded beside its weights)"
    return "with another prompt than it was tuned with" if of["differences"] else "with the prompt it was tuned with"


def long_answers(summary: Mapping[str, Any]) -> LongAnswers | None:
    """Read the section `long_answers` of the summary (`span_recall.py`); None without rows that have labelled spans."""
    of = summary.get("long_answers")
    if not of:
        return None
    lines = [
        SpanLine(
            _SPAN_NAMES.get(name, name),
            _count(line["said"]),
            _count(line["base"]) if line["base"] else None,
            _count(line["by_accident"]),
        )
        for name, line in of["by_label"].items()
    ]
    others = of["other_spans"]
    frequent = tuple((line["text"], line["type"], line["rows"]) for line in others["frequent"][:WRONG_SHOWN])
    return LongAnswers(of["rows"], of["ended"], tuple(lines), others["count"], others["base_count"], frequent)


def by(summary: Mapping[str, Any], key: str, lenient: bool) -> list[EmRow]:
    """EM and refusals of each category, split or relation (`key`: `by_category`, `by_split`, `by_relation`).

    Categories have the base model's right rows too, if the summary has them.
    """
    moved = (summary.get("moves") or {}).get(key, {}) if key == "by_category" else {}
    lines = []
    for name, em in summary["em"][key].items():
        base = moved.get(name, {})
        base_count = _count(base["base_correct"]) if base.get("compared") else None
        lines.append(_line(name, em, summary["refusals"][key][name], base_count, lenient))
    return lines


def _line(name: str, em: Mapping[str, Any], refused: Mapping[str, Any], base: Count | None, lenient: bool) -> EmRow:
    first = em["lenient" if lenient else "strict"]
    return EmRow(name, _count(first), _count(em["lenient"]), _count(refused), base)


def _count(of: Mapping[str, Any]) -> Count:
    return Count(of["count"], of["rows"])


def _answering(summary: Mapping[str, Any]) -> list[tuple[str, Count, Count, Count]]:
    """Name, coverage, accuracy and yield of all rows and of each category."""
    answering = summary["answering"]
    parts = {"all rows": answering["overall"], **answering["by_category"]}
    return [(n, _count(of["coverage"]), _count(of["accuracy"]), _count(of["yield"])) for n, of in parts.items()]


def taken_over(rows: pl.DataFrame) -> list[Guess]:
    """The answers that have taken over a relation (see `TAKES_OVER`), those with the largest share first.

    `rows`: a frame as `answers.ANSWERED`, with the column `counts`: whether the row is right.
    """
    sizes = rows.group_by("group").agg(size=pl.len())
    answers = (
        rows.filter(~pl.col("refused"))
        .group_by("group", "prediction")
        .agg(given=pl.len(), correct=pl.col("counts").sum())
        .join(sizes, on="group")
        .filter(
            pl.col("given") >= OFTEN,
            pl.col("given") >= TAKES_OVER * pl.col("size"),
            pl.col("given") >= 2 * pl.col("correct"),
        )
        .sort([pl.col("given") / pl.col("size"), "group", "prediction"], descending=[True, False, False])
    )
    columns = ("group", "prediction", "given", "size", "correct")
    return [Guess(g, s, Count(n, size), right) for g, s, n, size, right in answers.select(columns).iter_rows()]


def examples(rows: pl.DataFrame) -> dict[str, list[AnswerExample]]:
    """Example rows by kind; kinds without rows are left out.

    `lost`: HighlyKnown rows that are wrong. `turned`: other rows that the base model had right and that are wrong.
    `gained`: Unknown rows that are right. `refused`: refused rows, HighlyKnown or right in the base model.
    """
    highly, unknown = pl.col("category") == HIGHLY_KNOWN, pl.col("category") == UNKNOWN
    kinds = {
        "lost": highly & ~pl.col("counts"),
        "turned": ~highly.fill_null(False) & pl.col("base_correct") & ~pl.col("counts"),
        "gained": unknown & pl.col("counts"),
        "refused": pl.col("refused") & ~pl.col("counts") & (highly | pl.col("base_correct").fill_null(False)),
    }
    columns = ("question", "answer", "base_answer", "prediction", "group")
    lines_by_kind = {}
    for kind, which in kinds.items():
        # take one row of each relation in turn, so that the largest relation does not fill the table
        turn = pl.int_range(pl.len()).over("group")
        rows_of_kind = rows.filter(which).with_columns(turn=turn).sort("turn", "row").head(EXAMPLES)
        lines_by_kind[kind] = [AnswerExample(*values) for values in rows_of_kind.select(columns).iter_rows()]
    return {kind: lines for kind, lines in lines_by_kind.items() if lines}


def verdict(
    summary: Mapping[str, Any], categories: list[EmRow], guesses: list[Guess], *, lenient: bool
) -> TrainVerdict:
    """Write the verdict: the result, the points it is based on, and the cautions."""
    answers, rows = summary["answers"], summary["rows"]
    em = _count(summary["em"]["overall"]["lenient" if lenient else "strict"])
    model = display((summary.get("model") or {}).get("name") or "the model")
    same = summary.get("same_format")
    headline = f"{model} answers {exact_interval(em.interval)} of {count(rows, 'question')} right; "
    if same:
        base = _count(same["base_correct"])
        headline += f"the model it was tuned from, asked in the same form, {exact_interval(base.interval)}. "
        headline += f"{answers['wrong']:,} answers are wrong, {answers['refused']:,} refused."
    else:
        headline += f"{answers['wrong']:,} are wrong, {answers['refused']:,} refused."
    points = {
        "Same form": _in_same_form(same) if same else "",
        "Known before": _by_category(categories),
        "Few-shot base": _against(summary),
        "Long answers": _long_point(long_answers(summary)),
    }
    over = _count(summary["refusals"]["over_refusal"])
    if answers["refused"]:
        accuracy = _count(summary["answering"]["overall"]["accuracy"])
        points["Refusals"] = (
            f"It answers {exact(accuracy.rows / rows)} of the questions, and {exact(accuracy.share)} of those right"
            + (f"; of {count(over.rows, 'HighlyKnown row')} it refuses {over.hits:,}." if over.rows else ".")
        )
    if guesses:
        names = [display(g.group, 30) for g in guesses]
        names_text = ", ".join(dict.fromkeys(names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        points["Guessing"] = (
            f"In {'a relation' if len(guesses) == 1 else 'some relations'} the model gives one answer far more often "
            f"than it is right: {names_text}. See below."
        )
    of = long_answers(summary)
    if (
        of is not None and 2 * of.rows > rows
    ):  # where most answers are long, the share right letter by letter says little
        headline, points["Long answers"] = points["Long answers"], ""
        points |= {"Letter by letter": f"{em.hits:,} of {count(em.rows, 'answer')} are right.", "Same form": ""}
    return TrainVerdict(headline, tuple((k, v) for k, v in points.items() if v), _cautions(summary, em))


def _long_point(of: LongAnswers | None) -> str:
    if of is None:
        return ""
    every = of.lines[0]
    base = f" (the base model's: {exact(every.base.share)})" if every.base else ""
    new = next((line.said for line in of.lines if line.name == _SPAN_NAMES["new"]), None)
    learnt = f" Of {count(new.rows, 'span')} that were new to the model, {new.hits:,} turn up." if new else ""
    return (
        f"In {count(of.rows, 'text')} that the model writes where a long answer is wanted, "
        f"{exact_interval(every.said.interval)} of the answers' names, numbers and other spans turn up{base}.{learnt} "
        f"The texts name {of.other:,} other things, which stand in neither the answer nor the question."
    )


def _in_same_form(same: Mapping[str, Any]) -> str:
    """The rows lost and gained against the base model asked as the tuned model is."""
    lost, gained = _count(same["correct_to_wrong"]), _count(same["wrong_to_correct"])
    return (
        f"Of {count(lost.rows, 'row')} that the base model answered right in this form, {lost.hits:,} are not right "
        f"now; of the {gained.rows:,} others, {gained.hits:,} are right now "
        f"({p_value(mcnemar(lost.hits, gained.hits))})."
    )


def _by_category(categories: list[EmRow]) -> str:
    of = {line.name: line.em for line in categories}
    parts = []
    if highly := of.get(HIGHLY_KNOWN):
        parts.append(f"{highly.rows - highly.hits:,} of {count(highly.rows, 'HighlyKnown row')} are lost")
    if unknown := of.get(UNKNOWN):
        parts.append(f"{unknown.hits:,} of {count(unknown.rows, 'Unknown row')} are gained")
    shares = ", ".join(f"{name} {exact(em.share)}" for name, em in of.items())
    return f"{'; '.join(parts)}. EM: {shares}." if parts else f"EM: {shares}." if shares else ""


def _against(summary: Mapping[str, Any]) -> str:
    moved = (summary.get("moves") or {}).get("overall")
    if not moved or not moved["compared"]:
        return ""
    lost, gained = _count(moved["correct_to_wrong"]), _count(moved["wrong_to_correct"])
    return (
        f"Of {count(lost.rows, 'row')} that the base model answered right with few-shot examples, {lost.hits:,} "
        f"({exact(lost.share)}) are not right now; of the {gained.rows:,} others, {gained.hits:,} "
        f"({exact(gained.share)}) are right now ({p_value(mcnemar(lost.hits, gained.hits))}). The examples showed the "
        "base model the form of an answer, and the tuned model is asked without any: this compares what was known."
    )


def _cautions(summary: Mapping[str, Any], em: Count) -> tuple[str, ...]:
    answers, rows, cautions = summary["answers"], summary["rows"], []
    prompt = summary.get("training_prompt") or {}
    if em.rows < 100:
        cautions.append(f"Only {count(em.rows, 'row')}, so the interval is wide: treat this as a first look.")
    if differ := prompt.get("differences"):
        cautions.append(
            f"The model was asked with another prompt than it was tuned with ({'; '.join(differ)}). That alone can "
            "make its answers wrong."
        )
    reason = (summary.get("model") or {}).get("base_in_same_format")
    if not summary.get("same_format") and reason:
        cautions.append(
            f"{str(reason)[0].upper()}{str(reason)[1:]}, so what tuning changed in this form is not measured."
        )
    if of := summary.get("long_answers"):
        cautions.append(
            f"{count(of['rows'], 'row')} {'has a long answer' if of['rows'] == 1 else 'have long answers'}, which a "
            "model hardly ever gives letter by letter: for them, read the section on long answers instead of EM."
        )
    if broken := summary.get("not_finite"):
        cautions.append(
            f"The figures here leave out {count(broken, 'row')}, because the model's logits were not finite (NaN or "
            "infinity)."
        )
    if rows and answers["not_ended"] / rows >= LATE:
        cautions.append(
            f"{count(answers['not_ended'], 'answer')} reached the token limit without ending and "
            f"{'counts' if answers['not_ended'] == 1 else 'count'} as wrong: the model may not have learnt to stop"
            f"{'' if prompt.get('known') else ', or the prompt may differ from the one it was tuned with'}."
        )
    if answers["empty"]:
        cautions.append(
            f"Of the refused answers, {answers['empty']:,} {'is' if answers['empty'] == 1 else 'are'} empty."
        )
    if summary.get("moves") is None and not summary.get("long_answers"):  # spans have labels of their own
        cautions.append(
            "No categories are known for these rows, so this page cannot say which facts were kept, lost or gained."
        )
    elif summary.get("moves") and not summary["moves"]["overall"]["compared"]:
        cautions.append(
            "The base model's own answers are not known: name its audit with --audit to compare row by row."
        )
    return tuple(cautions)


def _facts(
    summary: Mapping[str, Any], model: dict[str, Any], protocol: dict[str, Any], data: dict[str, Any]
) -> dict[str, list[page.Fact]]:
    base, audit = model.pop("base", None), summary.get("audit")
    row_facts = [("rows asked", f"{summary['rows']:,}", False)]
    row_facts += [("rows left out", f"{summary['skipped']:,}", False)] if summary.get("skipped") else []
    row_facts += [("categories from", source(whence), False)] if (whence := summary.get("categories_from")) else []
    origin = [("tuned from", str(base.get("name")), False)] if base else []
    origin += [("audit made with", str((audit.get("model") or {}).get("name")), False)] if audit else []
    cost = []
    if (seconds := summary.get("seconds")) is not None:
        cost.append(("answering", rounded_duration(float(seconds)), False))
    if (rate := summary.get("rows_per_second")) is not None:
        cost.append(("rows per second", number(float(rate)), False))
    return {
        "protocol": page.facts(protocol, {**page.LABELS, "max_new_tokens": "tokens per answer, at most"}),
        "model": [*page.model_facts(model), *origin],
        "data": [*row_facts, *page.facts(data)],
        "cost": cost,
    }
