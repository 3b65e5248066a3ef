"""The result of a check: what was counted and found, and how a terminal shows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from foreknow import notebook
from foreknow.data.row_accounting import account
from foreknow.data.validation_rules import MOST_SPLITS, SEVERITIES, Finding, FindingExample
from foreknow.io.quoting import isolate_bidi, printable


@dataclass(frozen=True, repr=False)
class CheckResult:
    """What `check` found.

    `summary`: everything counted, findings included, ready for JSON. `by_group`: one line per group. `flags`: row
    and the flags it lacks, only rows that lack one. `findings`: errors first. `near`: see
    `near_duplicates.near_duplicates`.
    """

    summary: dict[str, Any]
    by_group: pl.DataFrame
    flags: pl.DataFrame
    findings: tuple[Finding, ...]
    near: pl.DataFrame

    @property
    def fails(self) -> bool:
        """Whether there is an error or a warning: then `--strict` exits 3."""
        return any(finding.severity != "note" for finding in self.findings)

    def __repr__(self) -> str:
        """Return the counts in one line."""
        return f"CheckResult({self._sentence()})"

    def _repr_html_(self) -> str:
        lines = [(f.severity, f.name, f.count, f.message) for f in self.findings]
        table = notebook.table(("", "finding", "count", "what it means"), lines) if lines else ""
        return notebook.card("check", self._sentence(), table)

    def _sentence(self) -> str:
        severities = [finding.severity for finding in self.findings]
        counts = [f"{count} {_plural(count, name)}" for name in SEVERITIES if (count := severities.count(name))]
        return (
            f"{self.summary['rows']:,} rows, {self.summary['usable']:,} usable; {', '.join(counts) or 'nothing found'}"
        )


COLUMNS: Final = (
    "golds: different answers; words: of an answer, median; near: nearly the question of another row; in subject: the "
    "answer stands in the subject"
)
"""What the columns of `groups_table` hold whose names do not say it."""


def groups_table(checked: CheckResult, most: int = 24) -> pl.DataFrame:
    """The counts by group as texts, the largest groups first, at most `most` of them."""
    largest = checked.by_group.sort(["usable", "group"], descending=[True, False]).head(most)
    return pl.DataFrame(
        [
            {
                "group": _one_line(line["group"], 40),
                "rows": f"{line['rows']:,}",
                "usable": f"{line['usable']:,}",
                "golds": f"{line['golds']:,}",
                "words": "" if line["words"] is None else f"{line['words']:g}",
                "duplicate": f"{line['duplicate']:,}",
                "conflicting": f"{line['conflicting']:,}",
                "near": f"{line['near_duplicate']:,}",
                "in subject": f"{line['answer_in_subject']:,}",
                "majority floor": "" if line["floor"] is None else f"{line['floor']:.1%}",
                "majority answer": _one_line(line["majority_answer"] or "", 24),
            }
            for line in largest.iter_rows(named=True)
        ]
    )


def finding_lines(checked: CheckResult) -> list[str]:
    """What to print: the totals, then each finding with its examples. No control character of the data is in it."""
    summary = checked.summary
    sizes, words = summary["group_sizes"], summary["answer_words"]
    splits = ", ".join(
        f"{_one_line(name, 40)} {rows:,}" for name, rows in list(summary["splits"].items())[:MOST_SPLITS]
    )
    lines = [
        account(summary["records"], summary["rows"], summary["left_out"], summary["thoughts"]),
        f"{summary['usable']:,} rows in {summary['groups']:,} {_plural(summary['groups'], 'group')}",
    ]
    if sizes:
        lines[1] += f" of {sizes['min']:,} to {sizes['max']:,} usable rows (median {sizes['median']:,g})"
    if splits:
        lines.append(f"splits: {splits}" + (f", none {summary['no_split']:,}" if summary["no_split"] else ""))
    if words:
        lines.append(
            f"answers: {words['min']:,} to {words['max']:,} words, median {words['median']:g}, 95 % have at most "
            f"{words['p95']:,}; {summary['several_answers']:,} rows accept more than one"
        )
        lines.append(
            f"right without any knowledge, by each group's most frequent answer: {summary['majority_floor']:.1%}"
        )
    for finding in checked.findings:
        lines.append(
            f"{finding.severity}: {finding.name}: {finding.count:,} {_plural(finding.count, finding.of[:-1])} "
            f"({_percent(finding.share)}): {_one_line(finding.message, 400)}"
        )
        for example in finding.examples:
            other = "" if example.other_row is None else f"  (see row {example.other_row})"
            lines.append(
                f"    {_place(example)}: {isolate_bidi(_one_line(example.question, 80))} -> "
                f"{isolate_bidi(_one_line(example.answer, 40))}{other}"
            )
    if any(finding.examples for finding in checked.findings):
        apart = any(example.record != example.row for finding in checked.findings for example in finding.examples)
        lines.append(
            "rows and records are counted from 0: record 0 is the first, and a record may have several rows"
            if apart
            else "rows are counted from 0: row 0 is the first record"
        )
    return lines if checked.findings else [*lines, "nothing found"]


def _place(example: FindingExample) -> str:
    """The row of an example, and its record in the file where that has another number."""
    return f"row {example.row}" + ("" if example.record == example.row else f" (record {example.record})")


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _one_line(text: str | None, most: int) -> str:
    """A text in one short line that cannot steer a terminal."""
    if text is None:
        return "(none)"
    text_shown = printable(text[: most + 1])
    return text_shown if len(text_shown) <= most else f"{text_shown[: most - 3]}..."
