"""The validation rules: the severity of each, what it means and what to do; and the findings made from counts. Pure.

`validation.py` counts; this module turns the counts into findings with examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import polars as pl

from foreknow.data import similar_questions
from foreknow.data.row_accounting import REASONS
from foreknow.data.schema import GOLD

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")

LONG_WORDS: Final = 32
"""Golds of more words are called long; an audit counts tokens instead (`--max-answer-tokens`)."""
FEW_ROWS: Final = 5
"""A group needs so many usable rows for four exemplars beside the row that is asked."""
MOST_SPLITS: Final = 16
"""Overlap is counted between so many splits, the largest."""


class Rule(NamedTuple):
    """What is said of rows with the flag `name`; the message may hold figures in braces."""

    name: str
    severity: Severity
    message: str


RULES: Final = (
    Rule("no_question", "warning", "no question, so the row cannot be used: fill it in, or name its column with --map"),
    Rule("no_answer", "warning", "no answer, so the row cannot be used: fill it in, or name its column with --map"),
    Rule(
        "masked",
        "note",
        "the turn is marked not to be trained on (weight: 0, train: false and the like), so it is context: "
        "take the mark away where the turn is to be learnt",
    ),
    Rule(
        "tool_call",
        "note",
        "the turn calls a tool, which is no answer in words: nothing, unless the calls were to be left out of the file",
    ),
    Rule(
        "only_thought",
        "warning",
        "the answer is a thought that no answer follows, so the row cannot be used: close the thought's mark, and "
        "write the answer behind it",
    ),
    Rule("refusal", "note", "the turn is marked as a refusal, which says nothing about knowledge: leave it as it is"),
    Rule(
        "not_text",
        "note",
        "pictures, sounds or files belong to the question or the answer, and a model is asked in text here: label such "
        "rows with another tool",
    ),
    Rule(
        "no_user_turn",
        "note",
        "the turn answers no turn of the user (a greeting, or a second answer in a row), so it is context: "
        "join it to the answer it belongs to, or leave it",
    ),
    Rule(
        "long_chat",
        "note",
        "too much of the chat stands before the answer for it to be asked: cut the chat, or use --turns last",
    ),
    Rule(
        "thought",
        "note",
        "a thought stands before the answer (<think> and the like, or a key of its own), and is not part of the gold: "
        "nothing; it is kept in the files that are written",
    ),
    Rule(
        "missing_value",
        "warning",
        "question or answer is a word that files write where a value is missing (nan, null, None, N/A, -), so the row "
        "is left out: fill it in, or take such answers as they stand with --null-words keep",
    ),
    Rule(
        "null_word",
        "warning",
        "the answer is a word that files write where a value is missing too (nan, null, None, N/A, -): see that it is "
        "meant as an answer",
    ),
    Rule(
        "conflicting",
        "error",
        "the same question has different answers, so at least {unfit} can never be fitted: keep one of "
        "them, list all as accepted answers, or say in the question what is meant",
    ),
    Rule(
        "question_in_other_split",
        "warning",
        "the question stands in an earlier split too ({questions}), so a score there is partly memory: take the rows "
        "out of one side",
    ),
    Rule(
        "near_duplicate_in_other_split",
        "warning",
        "nearly the same question stands in an earlier split, so a score there is partly memory: look at the pairs "
        "and take the rows out of one side",
    ),
    Rule(
        "similar_question_in_other_split",
        "warning",
        "a question that asks the same in other words stands in an earlier split, so a score there is partly memory: "
        "look at the pairs and take the rows out of one side",
    ),
    Rule(
        "answer_in_other_split",
        "warning",
        f"nearly the same answer of {similar_questions.LONG_WORDS} words or more stands in an earlier split, so a "
        "score or a loss there is partly memory: look at the pairs and take the rows out of one side",
    ),
    Rule(
        "subject_in_other_split",
        "warning",
        "the subject stands in an earlier split too ({subjects}), so training may teach about it: split by subject if "
        "the splits are to be independent",
    ),
    Rule("duplicate", "warning", "question and answer of an earlier row, so the fact counts twice: keep one"),
    Rule(
        "near_duplicate",
        "warning",
        "nearly the question of an earlier row of its group ({ambiguous} in families with different answers): keep "
        "one wording, or say in the questions what tells them apart",
    ),
    Rule(
        "similar_question",
        "warning",
        "a question of an earlier row of its group asked in other words, so what it teaches counts twice: look at the "
        "pairs and keep one, or keep the variants on one side of every split",
    ),
    Rule(
        "answer_in_subject",
        "warning",
        "the answer stands in the subject or the question, so a model may copy what it does not know: read results "
        "with and without these rows",
    ),
    Rule(
        "answer_newline",
        "warning",
        "the answer has a line break, at which a generated answer is cut, so none can match: put it on one line",
    ),
    Rule(
        "invisible_characters",
        "warning",
        "question or answer has characters that nobody sees ({characters}), and no model spells an answer with them: "
        "take them out",
    ),
    Rule(
        "odd_answer",
        "warning",
        "the answer has garbled characters, or blanks at its ends, which no model will spell: clean it",
    ),
    Rule("unfilled_template", "warning", "the question holds a slot that was never filled: put the subject in"),
    Rule("odd_question", "note", "the question has garbled characters: clean it"),
    Rule(
        "mixed_scripts",
        "note",
        "Latin and Cyrillic letters that look alike stand in one word: write it in one script",
    ),
    Rule("bare_question", "note", "the question is only its subject and asks nothing: write what is asked"),
)


@dataclass(frozen=True)
class FindingExample:
    """A row of a finding; `other_row` is the row it repeats, contradicts or overlaps with, if there is one.

    `record`: the place of the row's record in the file; a chat is one record with a row for each answer.
    """

    row: int
    record: int
    question: str | None
    answer: str | None
    group: str
    split: str | None
    other_row: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing: `count` rows or groups (`of`), `share` of the rows or groups (0 to 1)."""

    name: str
    severity: Severity
    count: int
    share: float
    of: Literal["rows", "groups"]
    message: str
    examples: tuple[FindingExample, ...]


def findings_of(marked: pl.DataFrame, groups: pl.DataFrame, summary: Mapping[str, Any]) -> tuple[Finding, ...]:
    """The findings, errors first, from the counts of `validation.py`: its marked rows, groups and summary."""
    usable, overlaps = summary["usable"], summary["overlap"]
    from_train = any(pair["questions"] and stage(pair["earlier"]) == 0 for pair in overlaps)
    unfit = round(usable * (1 - (summary["fit_ceiling"] or 0)))
    figures = {
        "unfit": f"{unfit:,} row{'' if unfit == 1 else 's'}",
        "ambiguous": f"{summary['near_with_other_answers']:,}",
        "characters": _format_characters(summary["invisible_characters"]),
        "questions": _format_pairs(overlaps, "questions"),
        "subjects": _format_pairs(overlaps, "subjects"),
    }
    findings = []
    for name, severity, message in RULES:
        rows = marked.filter(name)
        worst: Severity = "error" if name == "question_in_other_split" and from_train else severity
        total = marked.height if name in REASONS else usable
        examples = _examples(rows.head(3), marked, name)
        findings.append(
            Finding(name, worst, rows.height, rows.height / max(total, 1), "rows", message.format(**figures), examples)
        )
    findings += [
        _row_finding(
            "long_answer", marked.filter(pl.col("words") > LONG_WORDS), marked,
            f"the answer has more than {LONG_WORDS} words: an audit gives such a row no category, but labels the "
            "names, numbers and rare words in it",
        ),
        _row_finding(
            "no_split", marked.filter(pl.col("split").is_null() & (len(summary["splits"]) > 0)), marked,
            "the row has no split while others have one, so it takes no part in the overlap: give it one",
        ),
        _group_finding(
            "few_rows", groups.filter(pl.col("usable") < FEW_ROWS), groups, marked,
            f"fewer than {FEW_ROWS} usable rows, too few for exemplars of their own: merge such groups or name another "
            "column with --group-by",
        ),
        _group_finding(
            "majority_answer", groups.filter(pl.col("usable") >= FEW_ROWS, pl.col("floor") > 0.5), groups, marked,
            "one answer is right for more than half of the rows, so guessing looks like knowing: read such groups "
            "beside their majority floor",
        ),
    ]  # fmt: skip
    if not usable:
        message = "no row has both a question and an answer: name their columns with --map"
        findings.append(Finding("nothing_usable", "error", marked.height, 1.0, "rows", message, ()))
    findings = [finding for finding in findings if finding.count or finding.name == "nothing_usable"]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _format_pairs(overlaps: list[dict[str, Any]], what: str) -> str:
    pairs = [f"{pair['earlier']}/{pair['later']} {pair[what]:,}" for pair in overlaps if pair[what]]
    return ", ".join(pairs[:6]) + (f", and {len(pairs) - 6} more pairs" if len(pairs) > 6 else "")


def _format_characters(counts: Mapping[str, int], most: int = 4) -> str:
    counts_as_text = [f"{name} in {count:,}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    return ", ".join(counts_as_text[:most]) + (
        f", and {len(counts_as_text) - most} others" if len(counts_as_text) > most else ""
    )


def _row_finding(name: str, rows: pl.DataFrame, marked: pl.DataFrame, message: str) -> Finding:
    share = rows.height / max(marked.height, 1)
    return Finding(name, "note", rows.height, share, "rows", message, _examples(rows.head(3), marked, name))


def _group_finding(
    name: str, flagged_groups: pl.DataFrame, groups: pl.DataFrame, marked: pl.DataFrame, message: str
) -> Finding:
    largest = flagged_groups.sort(["usable", "group"], descending=[True, False])["group"].head(3)
    rows = marked.filter(pl.col("group").is_in(largest.implode())).unique("group", keep="first").sort("row")
    share = flagged_groups.height / max(groups.height, 1)
    return Finding(name, "note", flagged_groups.height, share, "groups", message, _examples(rows, marked, name))


def _examples(rows: pl.DataFrame, marked: pl.DataFrame, name: str) -> tuple[FindingExample, ...]:
    columns = {
        "row": "row",
        "record": "record",
        "question": "question",
        "answer": "own_answer",
        "group": "group",
        "split": "split",
    }
    return tuple(
        FindingExample(
            **{ours: line[column] for ours, column in columns.items()}, other_row=_other_row(line, marked, name)
        )
        for line in rows.with_columns(own_answer=GOLD).iter_rows(named=True)
    )


def _other_row(line: Mapping[str, Any], marked: pl.DataFrame, name: str) -> int | None:
    """The first row that `line` repeats, contradicts or overlaps with; null for what a row has by itself."""
    same = {
        "duplicate": ("input", "gold"),
        "conflicting": ("input", "group"),
        "near_duplicate": ("near_row",),
        "question_in_other_split": ("input",),
        "subject_in_other_split": ("folded_subject",),
        "near_duplicate_in_other_split": ("near_row",),
        "similar_question": ("similar_row",),
        "similar_question_in_other_split": ("similar_row",),
        "answer_in_other_split": ("same_answer_row",),
    }
    if name not in same:
        return None
    others = marked.filter(pl.col(key) == line[key] for key in same[name])
    if name.endswith("_in_other_split"):
        others = others.filter(pl.col("at") < line["at"])
    elif name == "conflicting":
        others = others.filter(pl.col("gold") != line["gold"])
    return None if others.is_empty() else others["row"].item(0)


def stage(split: str) -> int:
    """0 train, 1 dev, 2 test, 3 another, by the name."""
    stages = (("train",), ("dev", "val"), ("test", "eval"))
    return next((n for n, names in enumerate(stages) if any(name in split.casefold() for name in names)), 3)
