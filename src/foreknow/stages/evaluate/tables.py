"""Turns the summary of `foreknow evaluate` into tables and lines for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl


def em_table(summary: Mapping[str, Any], most: int = 24) -> pl.DataFrame:
    """Return a table of EM for the terminal.

    Its lines are all rows, then each category, each split, and at most `most` relations, the largest first.
    """
    em, refusals = summary["em"], summary["refusals"]
    lines = [("all", em["overall"], refusals["overall"])]
    for by in ("by_category", "by_split", "by_relation"):
        names = sorted(em[by], key=lambda n: -em[by][n]["strict"]["rows"])[:most] if by == "by_relation" else em[by]
        prefix = "split " if by == "by_split" else ""
        if by == "by_relation" and len(names) == 1:
            continue  # it would say the first line again
        lines += [(f"{prefix}{name}", em[by][name], refusals[by][name]) for name in names]
    return pl.DataFrame(
        [
            {
                "rows of": name,
                "rows": f"{of['strict']['rows']:,}",
                "EM": percent(of["strict"]),
                "95 % interval": interval(of["strict"]),
                "EM lenient": percent(of["lenient"]),
                "refused": percent(refused),
            }
            for name, of, refused in lines
        ]
    )


def moves_table(summary: Mapping[str, Any]) -> pl.DataFrame | None:
    """Return a table for the terminal of each category's rows and how many are right and wrong after training.

    Returns None if there are no categories.
    """
    moves = summary["moves"]
    if moves is None:
        return None
    return pl.DataFrame(
        [
            {
                "before": name,
                "rows": f"{of['rows']:,}",
                "now right": f"{of['now_correct']['count']:,}",
                "now wrong": f"{of['rows'] - of['now_correct']['count']:,}",
                "right": percent(of["now_correct"]),
                "95 % interval": interval(of["now_correct"]),
                "base right": f"{of['base_correct']['count']:,} of {of['compared']:,}",
                "right to wrong": f"{of['correct_to_wrong']['count']:,}",
                "wrong to right": f"{of['wrong_to_correct']['count']:,}",
            }
            for name, of in moves["by_category"].items()
        ]
    )


def wrong_table(summary: Mapping[str, Any], most: int = 10) -> pl.DataFrame:
    """Return a table for the terminal of wrong answers that are given more than once, the most frequent first.

    `most`: how many of the most frequent wrong answers are considered.
    """
    return pl.DataFrame(
        [
            {
                "wrong answer": cut(line["prediction"]),
                "count": f"{line['count']:,}",
                "of wrong answers": f"{line['share']:.1%}",
            }
            for line in summary["wrong_answers"]["overall"][:most]
            if line["count"] > 1
        ],
        schema={"wrong answer": pl.String(), "count": pl.String(), "of wrong answers": pl.String()},
    )


def collapse_table(summary: Mapping[str, Any], most: int = 24) -> pl.DataFrame:
    """Return a table of answer collapse for the terminal.

    Its lines are all rows and then at most `most` relations, the largest first.
    """
    collapse = summary["collapse"]
    several = collapse["by_relation"] if len(collapse["by_relation"]) > 1 else {}
    largest = sorted(several, key=lambda name: -several[name]["rows"])[:most]
    return pl.DataFrame(
        [
            {
                "relation": name,
                "answered": f"{of['rows']:,}",
                "top answer": cut(of["predictions"]["top"] or "", 20),
                "share": percent(of["predictions"]),
                "distinct": f"{of['predictions']['distinct']:,}",
                "top gold": cut(of["golds"]["top"] or "", 20),
                "gold share": percent(of["golds"]),
                "distinct golds": f"{of['golds']['distinct']:,}",
            }
            for name, of in [("all", collapse["overall"]), *((name, collapse["by_relation"][name]) for name in largest)]
        ]
    )


def span_table(summary: Mapping[str, Any]) -> pl.DataFrame | None:
    """Return a table for the terminal of the gold spans that turn up in the texts; None without long answers."""
    if (of := summary.get("long_answers")) is None:
        return None
    return pl.DataFrame(
        [
            {
                "gold spans": name,
                "spans": f"{line['said']['rows']:,}",
                "turn up": percent(line["said"]),
                "95 % interval": interval(line["said"]),
                **({"base model": percent(line["base"])} if line["base"] else {}),
                "by accident": percent(line["by_accident"]),
            }
            for name, line in of["by_label"].items()
        ]
    )


def span_line(of: Mapping[str, Any]) -> str:
    """Write one sentence on long answers. `of`: the section `long_answers` of the summary."""
    said, others = of["by_label"]["all"]["said"], of["other_spans"]
    new = of["by_label"].get("new", {}).get("said")
    base = of["by_label"]["all"]["base"]
    return (
        f"long answers: {_count(said)} gold spans turn up in the model's texts"
        + (f", the base model's mention {percent(base)}" if base else "")
        + (f"; of the spans that were new to the model, {_count(new)}" if new and new["rows"] else "")
        + f"; the texts name {others['count']:,} other things, which stand in neither the answer nor the question"
        + (f" (the base model's {others['base_count']:,})" if others["base_count"] is not None else "")
    )


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a few lines on what the tables do not show."""
    answers, of = summary["answers"], summary["answering"]["overall"]
    lines = [
        f"{answers['correct']:,} right, {answers['wrong']:,} wrong, {answers['refused']:,} refused "
        f"({answers['empty']:,} of them empty), {answers['not_ended']:,} not ended in time",
        f"coverage {percent(of['coverage'])}, accuracy when answering {percent(of['accuracy'])}, "
        f"yield {percent(of['yield'])}",
    ]
    if broken := summary.get("not_finite"):
        lines.append(
            f"{broken:,} rows are in no figure: the model's logits were not finite (NaN or infinity); use --dtype "
            "float32, or look for broken weights"
        )
    if of := summary.get("long_answers"):
        lines.append(span_line(of))
    over = summary["refusals"]["over_refusal"]
    lines += [f"over-refusal: {_count(over)} HighlyKnown rows refused"] if over["rows"] else []
    if same := summary.get("same_format"):
        lines.append(
            f"against the base model asked in the same format: it has {_count(same['base_correct'])} right; "
            f"right to wrong {_count(same['correct_to_wrong'])}, wrong to right {_count(same['wrong_to_correct'])}"
        )
    moves = summary["moves"]
    if moves is None and summary.get("long_answers"):
        return lines
    if moves is None:
        return [*lines, "no categories: no --audit and no column 'category' in the rows, so nothing can be compared"]
    lines.append(f"lost: {_count(moves['lost'])} HighlyKnown rows; gained: {_count(moves['gained'])} Unknown rows")
    if (overall := moves["overall"])["compared"]:
        lines.append(
            "against the base model behind exemplars, which show it the form (right if at least "
            f"{moves['base_correct_from']:.0%} of its answers are): "
            f"right to wrong {_count(overall['correct_to_wrong'])}, "
            f"wrong to right {_count(overall['wrong_to_correct'])}"
        )
    return lines


def _count(of: Mapping[str, Any]) -> str:
    return f"{of['count']:,} of {of['rows']:,} ({percent(of)}, {interval(of)})" if of["rows"] else "0 of 0"


def percent(of: Mapping[str, Any]) -> str:
    """Write a share in percent; write a dash if there are no rows."""
    return "-" if of["share"] is None else f"{of['share']:.1%}"


def interval(of: Mapping[str, Any]) -> str:
    """Write a share's interval in percent; write a dash if there are no rows."""
    return "-" if of["share"] is None else f"{of['ci_low']:.1%} to {of['ci_high']:.1%}"


def cut(text: str, most: int = 40) -> str:
    """Cut a text to at most `most` characters, so that it fits into a table; a cut text ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
