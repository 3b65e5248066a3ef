"""This module writes the rows of an audit as JSON for the page's table.

The JSON stands in a data block of the page, and the page's script inserts it as text only.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.format.numbers import factor, one_in
from foreknow.format.text import clip, display
from foreknow.report.markup import script_json
from foreknow.stages.audit.short_facts import ROLL_UP
from foreknow.stages.audit.verdict.excerpts import marked
from foreknow.stages.audit.verdict.fact_summary import ShortFactRow, by_parent
from foreknow.stages.audit.verdict.long_answers import times
from foreknow.stages.audit.verdict.row_flags import flag_lines


def row_json(rows: pl.DataFrame, probes: pl.DataFrame, facts: pl.DataFrame | None, groups: list[str], sets: int) -> str:
    """Write the rows (`category_lines.complete`) as JSON that is safe inside a script element.

    `groups`: all relations of the audit. `sets`: the number of exemplar sets.
    """
    flags = [line.name for line in flag_lines(rows)]
    place = {name: index for index, name in enumerate(groups)}
    flag_place = {name: index for index, name in enumerate(flags)}
    shown = pl.col("row").is_in(rows["row"].implode())
    first = dict(probes.filter(shown, pl.col("exemplar_set") == 0).select("row", "greedy_correct").iter_rows())
    own = by_parent(facts)
    lines = [
        [
            r["row"],
            clip(r["question"]),
            _answer(r),
            [clip(a) for a in r["answers"] or [] if a != r["answer"]],
            clip(r["model_answer"]),
            first.get(r["row"]),
            CATEGORIES.index(r["category"]) if r["category"] else -1,
            _short(r["p_greedy"]),
            _short(r["p_sampled"]),
            _short(r["p_sampled_width"]),
            place[r["group"]],
            sorted(flag_place[f] for f in set(r["flags"])),
            *_more(r, own),
        ]
        for r in rows.iter_rows(named=True)
    ]
    document = {
        "categories": CATEGORIES,
        "groups": [display(g) for g in groups],
        "flags": flags,
        "sets": sets,
        "rollUp": ROLL_UP if own else [],
        "rows": lines,
    }
    return script_json(document)


def _answer(r: dict[str, Any]) -> str | list[str] | None:
    """The answer; if it has least expected words, a list of pieces in which every second piece is such words."""
    if not r["spans"]:
        return clip(r["answer"])
    return marked(r["answer"], [(span["start"], span["end"]) for span in r["spans"]])


def _more(r: dict[str, Any], own: dict[int, list[ShortFactRow]]) -> list[Any]:
    """The further cells of a row: how expected its long answer is, and its short facts, if the audit has any."""
    scored = r["logprob"] is not None and r["logprob_alone"] is not None
    helps = times(r["logprob"], r["logprob_alone"]) if scored else 0.0
    long = [_short(-r["logprob"]), one_in(r["logprob"]), _short(helps), factor(helps)] if scored else None
    if not own:
        return [] if long is None else [long]
    category = {name: index for index, name in enumerate(CATEGORIES)}
    facts = [
        [clip(f.question), clip(f.answer), category.get(f.category or "", -1), clip(f.model_answer)]
        for f in own.get(r["row"], ())
    ]
    roll_up = ROLL_UP.index(r["facts_category"] or ROLL_UP[0])
    return [long, roll_up, _short(r["unknown_facts"]), facts]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
