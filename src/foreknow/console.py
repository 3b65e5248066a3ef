"""Prints a command's results: tables and lines for a terminal, without control characters of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreknow.format.numbers import format_rate
from foreknow.io.quoting import isolate_bidi, printable

if TYPE_CHECKING:
    import polars as pl

    from foreknow.data.builtin.export import ExportResult
    from foreknow.stages.audit.cost import ScaledEstimate


def print_audit(summary: dict[str, Any]) -> None:
    """Print an audit's result in a dozen lines: category shares overall and by group."""
    import polars as pl

    by_group = summary["categories"]["by_relation"]
    floors = summary["majority_floor"]
    groups = sorted(by_group, key=lambda g: -by_group[g]["Unknown"])[:24]
    counts = summary["categories"]["rows_by_relation"]
    entries = [
        (
            "all",
            summary["categories"]["overall"],
            summary["labelled"],
            floors.get(groups[0]) if len(groups) == 1 else None,
        )
    ]
    if len(groups) > 1:
        entries += [(g, by_group[g], counts[g], floors.get(g)) for g in groups]
    table = pl.DataFrame(
        [
            {
                "group": name,
                "rows": f"{rows:,}",
                **{category: f"{share:.1%}" for category, share in shares.items()},
                "majority floor": "" if floor is None else f"{floor['floor']:.1%}",
            }
            for name, shares, rows, floor in entries
        ]
    )
    speed = f", {format_rate(summary['rows_per_second'])}" if summary["labelled"] else ""
    name, spans = plain(summary["model"]["name"]), summary.get("spans")
    if summary["labelled"] or not spans:
        print(f"{summary['labelled']:,} of {summary['rows']:,} rows labelled with {name}{speed}")
    else:
        print(f"no row has a category of {name}; the spans inside long answers have labels")
    if summary["labelled"]:
        print_table(table, "share of rows by category")
    if len(by_group) > len(groups):
        print(f"and {len(by_group) - len(groups)} more groups: see the report")
    for group, greedy in summary["greedy"].items():
        if greedy["guessing"] and floors[group]["rows"] >= 20 and by_group[group]["Unknown"] < 0.8:
            print(
                f"{plain(group)}: greedy answers are right on {greedy['em']:.1%} of the rows, always saying "
                f"{plain(floors[group]['answer'])!r} on {floors[group]['floor']:.1%}: its Known rows may be guesses"
            )
    flags = ", ".join(f"{name} {count:,}" for name, count in summary["flags"].items())
    if flags:
        print(f"flags: {flags}")
    long = (summary.get("long_answers") or {}).get("rows") or summary["flags"].get("long_answer", 0)
    if long:
        limit, has_spans = summary["protocol"]["max_answer_tokens"], (summary.get("spans") or {}).get("labelled")
        print(
            f"{long:,} rows have answers longer than {limit} tokens and get no category: "
            + (
                "the spans inside them have labels instead"
                if has_spans
                else "get their short facts with foreknow extract, or raise --max-answer-tokens"
            )
        )
    if broken := summary["flags"].get("not_finite", 0):
        print(
            f"{broken:,} rows get no category: the model's logits were not finite (NaN or infinity) for one of their "
            "prompts; use --dtype float32, or look for broken weights"
        )
    if precision := summary.get("precision"):
        from foreknow.stages.audit.precision_check import format_differences  # keeps pydantic out

        print(format_differences(precision))
    if scored := summary.get("long_answers"):
        print(
            f"long answers: median {scored['tokens']:,.0f} tokens; mean log-probability of a token "
            f"{scored['logprob']:.2f} with the question, {scored['logprob_alone']:.2f} without"
        )
    if spans:
        rows = ", ".join(f"{name} {count:,}" for name, count in spans["rows"].items())
        print(
            f"spans of long answers: {spans['labelled']:,} of {spans['spans']:,} labelled, {spans['new']:,} of them "
            f"new ({spans['categories']['Unknown']:.1%} are not expressed in place; those that were compared and "
            f"recognised are not new); rows by their spans: {rows}"
        )
    if facts := summary.get("facts"):
        rows = ", ".join(f"{name} {count:,}" for name, count in facts["rows"].items())
        print(
            f"short facts: {facts['labelled']:,} of {facts['facts']:,} labelled, "
            f"{facts['categories']['Unknown']:.1%} Unknown; rows by their facts: {rows}"
        )


def print_table(frame: pl.DataFrame, title: str) -> None:
    """Print a frame as a table: the first column left-aligned, the others right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for at, name in enumerate(frame.columns):
        table.add_column(name, justify="left" if at == 0 else "right", no_wrap=at > 0)
    for line in frame.iter_rows():
        table.add_row(*(plain(value) for value in line))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def plain(value: Any) -> str:
    """A cell without control characters: data must not steer a terminal."""
    return isolate_bidi(printable(str(value)))


def print_estimate(estimate: dict[str, Any]) -> None:
    """Print what a run would cost, one line per figure."""
    width = max(map(len, estimate), default=0) + 2
    for key, value in estimate.items():
        print(f"{key.replace('_', ' ') + ':':<{width}}{f'{value:,}' if isinstance(value, int) else value}")


def print_scaled(scaled: ScaledEstimate, rows: int) -> None:
    """Print what an audit of `rows` rows would cost on other machines, with every input and its source."""
    print_table(scaled.table, f"{rows:,} rows")
    for name, value, source in scaled.inputs.iter_rows():
        print(f"{name}: {value} ({source})")
    for note in scaled.notes:
        print(note)


def print_written(result: ExportResult) -> None:
    """Print what a prepared data set holds, and its folder."""
    print_table(result.counts, "rows by relation and split")
    for note in result.notes:
        print(note)
    print(f"{'already complete' if result.was_complete else 'written'}: {result.folder}")
