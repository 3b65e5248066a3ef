"""What an audit says: the frame of rows and the summary (design, section 3). Pure: frames in, frames out."""

from __future__ import annotations

from typing import Any

import polars as pl

from foreknow.data.schema import GOLD, add_flag, earlier_turns, majority_floor
from foreknow.inference import slick
from foreknow.prompts import few_shot
from foreknow.prompts.few_shot import Exemplars
from foreknow.stages.audit.short_facts import rolled_up, summary


def rows_frame(audited: pl.DataFrame, labelled: pl.DataFrame, answers: pl.DataFrame, drawn: Exemplars) -> pl.DataFrame:
    """The contract of `rows.parquet`: every audited row, labelled or not, in input order.

    `labelled` is what `slick.label` returns, `answers` what the model says (row, model_answer).
    """
    rows = audited.join(labelled, on="row", how="left").join(answers, on="row", how="left").sort("row")
    shown = {
        group: ({e.answer for one in g.sets for e in one}, {few_shot.key(e) for one in g.sets for e in one})
        for group, g in drawn.groups.items()
    }
    marks: dict[str, list[bool]] = {"answer_in_exemplars": [], "seen_in_exemplars": [], "few_exemplars": []}
    columns = ("question", "answers", "subject", "group", "category")
    for question, accepted, subject, group, category in rows.select(columns).iter_rows():
        golds, own = shown.get(group, (set(), set()))
        known = category is not None
        marks["answer_in_exemplars"].append(known and accepted[0] in golds)
        marks["seen_in_exemplars"].append(known and few_shot.key(few_shot.Exemplar(question, "", subject)) in own)
        marks["few_exemplars"].append(known and drawn.groups[group].borrowed)
    for flag, where in marks.items():
        rows = add_flag(rows, flag, pl.Series(where, dtype=pl.Boolean))
    for flag in ("undecided", "not_finite"):
        rows = add_flag(rows, flag, pl.col(flag).fill_null(False))
    said = pl.when(~pl.col("not_finite").fill_null(False)).then("model_answer")
    return rows.with_columns(earlier_turns(rows), answer=GOLD, model_answer=said).select(
        *("row", "record", "turn", "group", "relation", "subject", "split"),
        *("question", "earlier_turns", "answer", "answers"),
        *("p_greedy", "p_greedy_lenient", "p_sampled", "p_sampled_width", "p_hit", "p_hit_upper", "p_hit_lenient"),
        *("category", "category_lenient", "model_answer", "popularity", "flags"),
    )


def parted(probed: pl.DataFrame, shorts: pl.DataFrame, long: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was probed, parted: the input's rows with what their long answers and short facts come to; the facts.

    `shorts`: `short_facts.short_rows`. `long`: `surprisal.LONG`. A fact's line has `parent` and `fact` beside it.
    """
    facts = probed.join(shorts.select("row", "parent", "fact"), on="row").sort("parent", "fact")
    own = probed.join(shorts.select("row"), on="row", how="anti")
    rolled = rolled_up(own["row"], facts)
    return own.join(long, on="row", how="left").join(rolled, on="row", how="left").sort("row"), facts


def greedy_by_group(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """By group: `em`, the share of greedy answers that are right (0 to 1); `answer`, what the model says most
    often behind exemplar set 0; `share` of the rows it is said to; `guessing`: whether `em` is no better than the
    group's majority floor, so that its Known rows may be guesses.
    """
    labelled = rows.filter(pl.col("category").is_not_null())
    floors = {group: floor for group, floor, _, _ in majority_floor(labelled).iter_rows()}
    said = (
        labelled.group_by("group", "model_answer").len("count").sort("count", "model_answer", descending=[True, False])
    )
    top = {
        group: (answer, count) for group, answer, count in said.group_by("group", maintain_order=True).first().rows()
    }
    return {
        str(group): {
            "em": em,
            "answer": top[group][0],
            "share": top[group][1] / count,
            "guessing": em > 0 and em <= floors[group],
        }
        for group, em, count in labelled.group_by("group").agg(pl.col("p_greedy").mean(), pl.len()).sort("group").rows()
    }


def summarise_audit(rows: pl.DataFrame, shorts: pl.DataFrame | None = None) -> dict[str, Any]:
    """The counts and shares of `summary.json`, from the frame of rows and that of their short facts."""
    long = rows.filter(pl.col("scored_tokens") > 0) if "scored_tokens" in rows.columns else rows.clear()
    extra: dict[str, Any] = {}
    if not long.is_empty():
        extra["long_answers"] = {
            "rows": long.height,
            "tokens": long["answer_tokens"].median(),
            "logprob": long["logprob"].mean(),
            "logprob_alone": long["logprob_alone"].mean(),
        }
    if shorts is not None and not shorts.is_empty():
        extra["facts"] = summary(rows, shorts)
    labelled = rows.filter(pl.col("category").is_not_null())
    flags = rows["flags"].explode().drop_nulls().value_counts().sort("flags")
    floors = majority_floor(rows).select("group", "floor", "majority_answer", "rows")
    return {
        "rows": rows.height,
        "labelled": labelled.height,
        "categories": {
            "overall": slick.shares(rows["category"]),
            "by_relation": {
                str(group): slick.shares(part["category"])
                for (group,), part in sorted(labelled.group_by("group"), key=lambda pair: str(pair[0][0]))
            },
        },
        "categories_lenient": slick.shares(rows["category_lenient"]),
        "expected_categories": slick.expected_shares(rows),
        "majority_floor": {
            group: {"floor": floor, "answer": answer, "rows": count}
            for group, floor, answer, count in floors.iter_rows()
        },
        "greedy": greedy_by_group(rows),
        "flags": dict(flags.iter_rows()),
        **extra,
    }
