"""The result of a check: what was counted and found, and how a terminal shows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from foreknow.data.row_accounting import account
from foreknow.data.validation_rules import MOST_SPLITS, Finding
from foreknow.io.quoting import isolated, printable


@dataclass(frozen=True)
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


def groups_table(checked: CheckResult, most: int = 24) -> pl.DataFrame:
    """The counts by group as texts, the largest groups first, at most `most` of them."""
    largest = checked.by_group.sort(["usable", "group"], descending=[True, False]).head(most)
    return pl.DataFrame(
        [
            {
                "group": _plain(line["group"], 40),
                "rows": f"{line['rows']:,}",
                "usable": f"{line['usable']:,}",
                "golds": f"{line['golds']:,}",
                "words": "" if line["words"] is None else f"{line['words']:g}",
                "duplicate": f"{line['duplicate']:,}",
                "conflicting": f"{line['conflicting']:,}",
                "near": f"{line['near_duplicate']:,}",
                "in subject": f"{line['answer_in_subject']:,}",
                "majority floor": "" if line["floor"] is None else f"{line['floor']:.1%}",
                "majority answer": _plain(line["majority_answer"] or "", 24),
            }
            for line in largest.iter_rows(named=True)
        ]
    )


def finding_lines(checked: CheckResult) -> list[str]:
    """What to print: the totals, then each finding with its examples. No control character of the data is in it."""
    of = checked.summary
    sizes, words = of["group_sizes"], of["answer_words"]
    splits = ", ".join(f"{_plain(name, 40)} {rows:,}" for name, rows in list(of["splits"].items())[:MOST_SPLITS])
    told = [
        account(of["records"], of["rows"], of["left_out"], of["thoughts"]),
        f"{of['usable']:,} rows in {of['groups']:,} {_plural(of['groups'], 'group')}",
    ]
    if sizes:
        told[1] += f" of {sizes['min']:,} to {sizes['max']:,} usable rows (median {sizes['median']:,g})"
    if splits:
        told.append(f"splits: {splits}" + (f", none {of['no_split']:,}" if of["no_split"] else ""))
    if words:
        told.append(
            f"answers: {words['min']:,} to {words['max']:,} words, median {words['median']:g}, 95 % have at most "
            f"{words['p95']:,}; {of['several_answers']:,} rows accept more than one"
        )
        told.append(f"right without any knowledge, by each group's most frequent answer: {of['majority_floor']:.1%}")
    for found in checked.findings:
        told.append(
            f"{found.severity}: {found.name}: {found.count:,} {_plural(found.count, found.of[:-1])} "
            f"({_percent(found.share)}): {_plain(found.message, 400)}"
        )
        for one in found.examples:
            other = "" if one.other_row is None else f"  (see row {one.other_row})"
            told.append(
                f"    row {one.row}: {isolated(_plain(one.question, 80))} -> {isolated(_plain(one.answer, 40))}{other}"
            )
    return told if checked.findings else [*told, "nothing found"]


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _plain(text: str | None, most: int) -> str:
    """A text in one short line that cannot steer a terminal."""
    if text is None:
        return "(none)"
    shown = printable(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
