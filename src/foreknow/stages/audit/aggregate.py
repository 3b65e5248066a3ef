"""Build the frame of rows and the summary of an audit (design, section 3). Pure functions on frames."""

from __future__ import annotations

from typing import Any

import polars as pl

from foreknow.data.schema import GOLD, add_flag, earlier_turns, majority_floor
from foreknow.inference import slick
from foreknow.prompts import few_shot
from foreknow.prompts.few_shot import Exemplars
from foreknow.stages.audit.short_facts import roll_up_facts, summary


def rows_frame(
    audited: pl.DataFrame, labelled: pl.DataFrame, answers: pl.DataFrame, exemplars: Exemplars
) -> pl.DataFrame:
    """Build `rows.parquet`: every audited row, labelled or not, in input order.

    `labelled`: the frame of `slick.label`. `answers`: the model's answers (row, model_answer).
    """
    rows = audited.join(labelled, on="row", how="left").join(answers, on="row", how="left").sort("row")
    exemplar_keys = {group: {few_shot.key(e) for one in g.sets for e in one} for group, g in exemplars.groups.items()}
    marks: dict[str, list[bool]] = {"answer_in_exemplars": [], "seen_in_exemplars": [], "few_exemplars": []}
    columns = ("question", "answers", "subject", "record", "group", "category")
    for question, accepted, subject, record, group, category in rows.select(columns).iter_rows():
        own = exemplar_keys.get(group, set())
        known = category is not None
        marks["answer_in_exemplars"].append(
            known and exemplars.groups[group].shows(accepted[0], question, subject, record)
        )
        marks["seen_in_exemplars"].append(known and few_shot.key(few_shot.Exemplar(question, "", subject)) in own)
        marks["few_exemplars"].append(known and exemplars.groups[group].borrowed)
    for flag, where in marks.items():
        rows = add_flag(rows, flag, pl.Series(where, dtype=pl.Boolean))
    for flag in ("undecided", "not_finite"):
        rows = add_flag(rows, flag, pl.col(flag).fill_null(False))
    finite_answer = pl.when(~pl.col("not_finite").fill_null(False)).then("model_answer")
    return rows.with_columns(earlier_turns(rows), answer=GOLD, model_answer=finite_answer).select(
        *("row", "record", "turn", "group", "relation", "subject", "split"),
        *("question", "earlier_turns", "answer", "answers"),
        *("p_greedy", "p_greedy_lenient", "p_sampled", "p_sampled_width", "p_hit", "p_hit_upper", "p_hit_lenient"),
        *("category", "category_lenient", "model_answer", "popularity", "flags"),
    )


def split_rows_and_facts(
    probed: pl.DataFrame, shorts: pl.DataFrame, long: pl.DataFrame, span_counts: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the probed rows into the input's rows, with the scores of their long answers and facts, and the short
    facts.

    `shorts`: `short_facts.short_rows`. `long`: `surprisal.LONG`. `span_counts`: `spans.schema.SPAN_COUNTS`, if spans
    were labelled. The frame of facts also has `parent` and `fact`.
    """
    facts = probed.join(shorts.select("row", "parent", "fact"), on="row").sort("parent", "fact")
    own = probed.join(shorts.select("row"), on="row", how="anti")
    rolled = roll_up_facts(own["row"], facts)
    rows = own.join(long, on="row", how="left").join(rolled, on="row", how="left")
    if span_counts is not None:
        rows = rows.join(span_counts, on="row", how="left")
    return rows.sort("row"), facts


def greedy_by_group(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return by group: `em`, the share of greedy answers that are right (0 to 1); `answer`, the model's most frequent
    answer behind exemplar set 0; `share`, the share of rows with that answer; `guessing`, whether `em` is no better
    than the group's majority floor, so that its Known rows may be guesses.
    """
    labelled = rows.filter(pl.col("category").is_not_null())
    floors = {group: floor for group, floor, _, _ in majority_floor(labelled).iter_rows()}
    answer_counts = (
        labelled.group_by("group", "model_answer").len("count").sort("count", "model_answer", descending=[True, False])
    )
    top = {
        group: (answer, count)
        for group, answer, count in answer_counts.group_by("group", maintain_order=True).first().rows()
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
    """Compute the counts and shares of `summary.json` from the frame of rows and the frame of their short facts.

    The majority floor of a group is that of its labelled rows; a group without any has none.
    """
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
    floors = majority_floor(labelled).select("group", "floor", "majority_answer", "rows")
    return {
        "rows": rows.height,
        "labelled": labelled.height,
        "categories": {
            "overall": slick.shares(rows["category"]),
            "rows_by_relation": {
                str(group): count for group, count in labelled.group_by("group").len().sort("group").rows()
            },
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
