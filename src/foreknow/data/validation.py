"""Validate a file of facts before any model runs.

check_files       the inputs of a command -> CheckResult
concat_as_splits  several files (train, dev, test) -> one frame, so that their overlap can be counted
check             rows -> CheckResult: summary, counts by group, flags to add, findings (validation_rules.py)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.config.shared import DataSettings
from foreknow.data.load import read_data
from foreknow.data.near_duplicates import near_duplicates
from foreknow.data.row_accounting import REASONS, THOUGHT, left_out
from foreknow.data.schema import GOLD, ROWS, SAME_QUESTION, USABLE, flag_rows, majority_floor
from foreknow.data.similar_questions import similar_questions
from foreknow.data.unicode_checks import garbled, invisible, invisible_characters, mixed_scripts
from foreknow.data.validation_result import CheckResult
from foreknow.data.validation_rules import MOST_SPLITS, RULES, findings_of, stage
from foreknow.errors import ConfigError
from foreknow.io.data_file import suffixes

logger = logging.getLogger(__name__)

_EDGE = r"^[\s\p{Z}]|[\s\p{Z}]$|\r|\t"


def concat_as_splits(files: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The rows of several files in one frame `rows.ROWS`, each file a split by its name, all numbered anew."""
    parts, first = [pl.DataFrame(schema=ROWS)], 0
    for name, rows in files.items():
        parts.append(rows.select(*ROWS).with_columns(pl.col("record") + first, split=pl.lit(name)))
        first += int(str(rows["record"].max() or 0)) + 1
    every_row = pl.concat(parts)
    return every_row.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))


def check_files(inputs: Sequence[DataSettings]) -> CheckResult:
    """Check one input, or several as the splits their names tell. Raises the errors of `dataset.read_dataset`."""
    datasets = [read_data(settings) for settings in inputs]
    for line in dict.fromkeys(line for facts in datasets for line in (facts.reason, facts.first_row)):
        logger.info(line)
    frames = [facts.rows for facts in datasets]
    if not frames:
        raise ConfigError("data: missing; give a file to check")
    if len(frames) == 1:
        return check(frames[0])
    names = [Path(settings.data).name.removesuffix("".join(suffixes(settings.data))) for settings in inputs]
    if len(set(names)) < len(names):
        names = [settings.data for settings in inputs]
    return check(concat_as_splits(dict(zip(names, frames, strict=True))))


def check(rows: pl.DataFrame) -> CheckResult:
    """Count and judge the rows of a frame `rows.ROWS`, in which `row` names each row once.

    Flags of `rows.flag_rows` are computed anew, so files may have been put together after they were read. Counts
    do not depend on the order of the rows, but for which of two copies is the later one. In overlaps the later of
    two splits is counted, in the order train, dev, test, others; splits are told by their names.
    """
    cleaned = flag_rows(_clean(rows)).sort("row")
    near = near_duplicates(cleaned)
    splits = _splits(cleaned)
    marked = _with_rule_columns(cleaned, near, similar_questions(cleaned), splits)
    groups = _by_group(marked)
    summary = _summary(marked, groups, splits)
    findings = findings_of(marked, groups, summary)
    summary_json = {**summary, "findings": [asdict(finding) for finding in findings]}
    return CheckResult(summary_json, groups, _new_flags(marked), findings, near)


def _clean(rows: pl.DataFrame) -> pl.DataFrame:
    """No answer is blank, no list of answers empty: null where nothing is left. Texts are composed (NFC), so that
    equal ones are equal letter by letter. `had`: the flags as they came."""
    nfc = pl.element().str.normalize("NFC")
    answers = pl.col("answers").list.eval(nfc.filter(pl.element().str.strip_chars() != ""))
    flags = pl.col("flags").list.drop_nulls().fill_null([])
    context = pl.when(pl.col("context").list.len() > 0).then("context")
    return rows.with_columns(
        question=pl.when(pl.col("question").str.strip_chars() != "").then(SAME_QUESTION),
        answers=pl.when(answers.list.len() > 0).then(answers),
        group=pl.col("group").fill_null("all"),
        flags=flags,
        had=flags,
        context=context,
    )


def _splits(rows: pl.DataFrame) -> dict[str, int]:
    """The splits whose overlap is counted, by name, with their place in the order train, dev, test, others."""
    sizes = rows.filter(USABLE).drop_nulls("split").group_by("split").len()
    names = sizes.sort(["len", "split"], descending=[True, False])["split"].head(MOST_SPLITS).to_list()
    return {name: place for place, name in enumerate(sorted(names, key=lambda name: (stage(name), name)))}


def _with_rule_columns(
    rows: pl.DataFrame, near: pl.DataFrame, similar: pl.DataFrame, splits: Mapping[str, int]
) -> pl.DataFrame:
    """The rows with one Boolean column for each rule; `at`: the split's place, null where it is not compared;
    `input`: a hash of the question and the turns before it."""
    question, gold, subject = pl.col("question"), pl.col("gold"), pl.col("subject")
    answers = pl.col("answers").list.join(" ")
    flags = (*REASONS, THOUGHT, "conflicting", "duplicate", "answer_in_subject", "null_word")
    places = pl.DataFrame(
        {"split": list(splits), "at": list(splits.values())}, schema={"split": pl.String, "at": pl.Int64}
    )
    marks = {
        **{flag: pl.col("flags").list.contains(flag) for flag in flags},
        "near_duplicate": pl.col("flagged"),
        "question_in_other_split": _stands_earlier("input"),
        "subject_in_other_split": _stands_earlier("folded_subject"),
        "near_duplicate_in_other_split": _stands_earlier("near_row") & ~_stands_earlier("input"),
        "similar_question": (pl.col("similar_row") < pl.col("row")) & ~pl.col("flagged").fill_null(False),
        "similar_question_in_other_split": (
            _stands_earlier("similar_row") & ~_stands_earlier("input") & ~_stands_earlier("near_row").fill_null(False)
        ),
        "answer_in_other_split": _stands_earlier("same_answer_row"),
        "answer_newline": gold.str.contains("\n", literal=True),
        "invisible_characters": invisible(question) | invisible(answers, answer=True),
        "odd_answer": garbled(gold) | gold.str.contains(_EDGE),
        "odd_question": garbled(question),
        "mixed_scripts": mixed_scripts(question) | mixed_scripts(gold),
        "unfilled_template": question.str.contains_any(["[X]", "{subject}", "{X}"]),
        "bare_question": question.str.strip_chars(" ?.!") == subject.str.strip_chars(" ?.!"),
    }
    return (
        rows.join(near.unique("row"), on="row", how="left", maintain_order="left")
        .join(similar, on="row", how="left", maintain_order="left")
        .join(places, on="split", how="left", maintain_order="left")
        .with_columns(
            usable=USABLE,
            at=pl.when(USABLE).then("at"),
            gold=pl.when(USABLE).then(GOLD),
            input=pl.when(USABLE).then(pl.struct("question", "context").hash()),
            folded_subject=subject.str.to_lowercase().str.replace_many(["ß", "ς"], ["ss", "σ"]),
        )
        .with_columns(
            words=gold.str.count_matches(r"\S+"),
            **{rule.name: marks[rule.name].fill_null(False) for rule in RULES},
        )
    )


def _stands_earlier(key: str) -> pl.Expr:
    """Whether the row's key stands in an earlier split than the row."""
    return (pl.col("at") > pl.col("at").min().over(key)) & pl.col(key).is_not_null()


def _by_group(marked: pl.DataFrame) -> pl.DataFrame:
    """One line per group: rows, usable, golds (different ones), words (median of a gold), flagged rows, majority."""
    flagged = ("duplicate", "conflicting", "near_duplicate", "answer_in_subject")
    counted = marked.group_by("group").agg(
        rows=pl.len().cast(pl.Int64),
        usable=pl.col("usable").sum().cast(pl.Int64),
        golds=pl.col("gold").drop_nulls().n_unique().cast(pl.Int64),
        words=pl.col("words").median(),
        **{name: pl.col(name).sum().cast(pl.Int64) for name in flagged},
    )
    floors = majority_floor(marked.select(*ROWS)).select("group", "floor", "majority_answer")
    return counted.join(floors, on="group", how="left").sort("group")


def _summary(marked: pl.DataFrame, groups: pl.DataFrame, splits: Mapping[str, int]) -> dict[str, Any]:
    usable = marked.filter("usable")
    sizes = marked.drop_nulls("split")["split"].value_counts().sort("split")
    by_split = sorted(sizes.iter_rows(), key=lambda pair: (stage(pair[0]), pair[0]))
    floor = (groups["floor"] * groups["usable"]).sum() / max(usable.height, 1)
    return {
        "records": marked["record"].n_unique(),
        "rows": marked.height,
        "usable": usable.height,
        "left_out": left_out(marked),
        "thoughts": int(marked[THOUGHT].sum()),
        "several_answers": usable.filter(pl.col("answers").list.n_unique() > 1).height,
        "answer_words": _quantiles(usable["words"]),
        "answer_characters": _quantiles(usable["gold"].str.len_chars()),
        "groups": groups.height,
        "group_sizes": _quantiles(groups["usable"]),
        "splits": dict(by_split),
        "no_split": marked["split"].null_count() if by_split else 0,
        "overlap": _overlaps(usable, splits),
        "near_with_other_answers": marked.filter(pl.col("near_duplicate"), pl.col("golds") > 1).height,
        "invisible_characters": invisible_characters(
            marked.filter("invisible_characters").select(text)[text.meta.output_name()]
            for text in (pl.col("question"), pl.col("answers").list.join(" "))
        ),
        "fit_ceiling": _ceiling(usable),
        "fit_ceiling_by_split": {name: _ceiling(usable.filter(pl.col("at") == at)) for name, at in splits.items()},
        "majority_floor": float(floor),
        "flags": {rule.name: count for rule in RULES if (count := int(marked[rule.name].sum()))},
        "by_group": {line.pop("group"): line for line in groups.to_dicts()},
    }


def _quantiles(numbers: pl.Series) -> dict[str, float] | None:
    if numbers.is_empty():
        return None
    values = numbers.cast(pl.Int64)
    quantiles = values.min(), values.median(), values.quantile(0.95, "nearest"), values.max()
    low, middle, most, high = (float(str(number)) for number in quantiles)
    return {"min": int(low), "median": middle, "p95": int(most), "max": int(high)}


def _ceiling(usable: pl.DataFrame) -> float | None:
    """The largest share of rows that can be fitted when equal inputs get equal outputs; null without rows."""
    if usable.is_empty():
        return None
    most = usable.group_by("input", "gold").len().group_by("input").agg(pl.col("len").max())
    return float(most["len"].sum()) / usable.height


def _overlaps(usable: pl.DataFrame, splits: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each pair of splits: how many rows of the later one have a question, or a subject, of the earlier one."""
    counts = {key: _shared_rows(usable, key) for key in ("input", "folded_subject")}
    sizes = dict(usable.drop_nulls("at").group_by("at").len().iter_rows())
    return [
        {
            "earlier": earlier,
            "later": later,
            "rows": sizes[b],
            "questions": counts["input"].get((a, b), 0),
            "subjects": counts["folded_subject"].get((a, b), 0),
        }
        for earlier, a in splits.items()
        for later, b in splits.items()
        if a < b
    ]


def _shared_rows(usable: pl.DataFrame, key: str) -> dict[tuple[int, int], int]:
    met = usable.drop_nulls(["at", key]).group_by(key, "at").len("rows").filter(pl.len().over(key) > 1)
    pairs = met.join(met, on=key, suffix="_later").filter(pl.col("at") < pl.col("at_later"))
    return {(a, b): rows for a, b, rows in pairs.group_by("at", "at_later").agg(pl.col("rows_later").sum()).iter_rows()}


def _new_flags(marked: pl.DataFrame) -> pl.DataFrame:
    """The flags that rows did not come with: row, flags (sorted); only rows that get one."""
    names = [rule.name for rule in RULES]
    each = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in sorted(names)).list.drop_nulls()
    flagged = marked.filter(pl.any_horizontal(names)).select("row", "had", flags=each)
    new = flagged.select("row", flags=pl.col("flags").list.set_difference("had").list.sort())
    return new.filter(pl.col("flags").list.len() > 0)
