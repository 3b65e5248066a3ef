"""Makes a training set of rows with long answers from the labels of the spans, or of the facts, inside them. Pure.

    span_sampling.py   which rows: a share of new spans in the set
    span_edits.py      what becomes of a row: its new spans masked, or its sentences of new spans cut

Rows with a short answer have a category of their own and no spans. They are taken as they are (without those of the
categories that `--drop` names), but for `--new-share`, which draws only rows that have labelled spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.config import MixConfig
from foreknow.data.schema import sampling_hash
from foreknow.data.spans.schema import SPANS, is_new
from foreknow.errors import InputError
from foreknow.format.numbers import count, row_numbers
from foreknow.stages.mix.sampling import MIX, Mix, numbers_text, of_relations, source_of_mix
from foreknow.stages.mix.sizes import count_categories, train_rows
from foreknow.stages.mix.span_edits import (
    LOSS_EXCLUDE,
    LOSS_EXCLUDE_TYPE,
    Cut,
    Masked,
    cut_sentences,
    mask_spans,
)
from foreknow.stages.mix.span_sampling import SpanRow, draw_share
from foreknow.stages.mix.unusable_rows import LISTED, UNTRAINABLE, check_left_out, left_out, unusable_lines

LONG: str = "long_answer"
"""The flag of rows whose answer is too long for a category."""


class _Pool(NamedTuple):
    """Holds the rows that can be drawn, with `spans`, `new` and `long` of each, how many rows they are of, and words
    for which rows these are.

    `long`: whether the row's spans, not a category, say what is new in it.
    """

    rows: pl.DataFrame
    of: int
    which: str


def draw_span_mix(rows: pl.DataFrame, spans: pl.DataFrame | None, config: MixConfig, audit: Mapping[str, Any]) -> Mix:
    """Draw the set that `config` asks for by the labels of spans or of facts.

    `rows`: an audit's `rows.parquet`. `spans`: its `spans.parquet` (`SPANS`), None if it has none. `audit`: its
    manifest. Raises InputError if the audit has no labels of the kind that is asked for, or if no row is left.
    """
    if config.drop_facts_above is not None and not rows["n_facts"].fill_null(0).sum():
        raise InputError(
            f"{config.audit}: found no row with labelled facts, which --drop-facts-above needs; write them with "
            "foreknow extract and audit the file that it writes"
        )
    if spans is None and not config.uses_spans:
        spans = pl.DataFrame(schema=SPANS)
    if spans is None or (config.uses_spans and not spans["category"].count()):
        if (spans is None or spans.is_empty()) and not rows["flags"].list.contains(LONG).any():
            raise InputError(
                f"{config.audit}: found no row with a long answer, which {_setting(config)} is for; rows with short "
                "answers are left out or weighed by their category: --drop unknown, --weight half-unknown"
            )
        raise InputError(
            f"{config.audit}: found no labels of spans inside long answers (spans.parquet), which "
            f"{_setting(config)} needs; audit the file again, with spans"
        )
    related = of_relations(rows, config.relations)
    pool = _pool(related, spans, config)
    trained_on, _ = train_rows(related)
    gone = left_out(trained_on.filter(~pl.col("row").is_in(pool.rows["row"].implode())))
    if config.new_share is not None and (bare := gone.pop("long_answer", None)):
        gone["no_labelled_span"] = bare
    check_left_out(gone, config.bad_rows)
    drawn, above = _drawn(pool.rows, config)
    own = spans.filter(pl.col("row").is_in(drawn["row"].implode()))
    masked = mask_spans(own, config.mask) if config.mask else None
    cut = cut_sentences(dict(drawn.select("row", "answer").iter_rows()), own) if config.cut else None
    if cut is not None:
        drawn = drawn.filter(~pl.col("row").is_in(cut.empty))
    if drawn.is_empty():
        raise InputError(f"{_setting(config)}: no row is left of {pool.rows.height:,}")
    mixed = _frame(drawn, masked, cut)
    manifest = {
        **source_of_mix(audit),
        **_about(mixed, config, pool),
        "spans": _span_counts(mixed, drawn.filter("long")["row"], own, config, masked, cut, above),
        "left_out": gone,
        "known_of": None,
        "rows": numbers_text(mixed["row"]),
        "sha256": None,
    }
    return Mix(mixed, manifest, _notes(manifest, pool), cut)


def _setting(config: MixConfig) -> str:
    """Return the flag that asks for labels of spans, as it is written on the command line."""
    if config.new_share is not None:
        return f"--new-share {config.new_share:g}"
    if config.drop_new_above is not None:
        return f"--drop-new-above {config.drop_new_above:g}"
    if config.drop_facts_above is not None:
        return f"--drop-facts-above {config.drop_facts_above:g}"
    return f"--mask {config.mask}" if config.mask else f"--cut {config.cut}"


def _pool(rows: pl.DataFrame, spans: pl.DataFrame, config: MixConfig) -> _Pool:
    chosen, which = train_rows(rows)
    labelled = spans.filter(pl.col("category").is_not_null())
    counts = labelled.group_by("row").agg(spans=pl.len().cast(pl.Int64), new=is_new().sum().cast(pl.Int64))
    base = chosen.drop("spans", "new", strict=False)
    counted = base.join(counts, on="row", how="left", maintain_order="left").with_columns(
        pl.col("spans", "new").fill_null(0)
    )
    long = pl.col("category").is_null() & (pl.col("flags").list.contains(LONG) | (pl.col("spans") > 0))
    counted = counted.with_columns(long=long)
    usable = pl.col("flags").list.set_intersection(list(UNTRAINABLE)).list.len() == 0
    if config.new_share is not None:
        return _pool_of(counted, usable & (pl.col("spans") > 0), rows.height, which)
    short = pl.col("category").is_in(config.categories).fill_null(False)
    if set(config.categories) == set(CATEGORIES):  # so a short row that the audit could not ask stays too
        short |= pl.col("category").is_null() & ~pl.col("long")
    return _pool_of(counted, usable & (short | pl.col("long")), rows.height, which)


def _pool_of(chosen: pl.DataFrame, can_be_drawn: pl.Expr, of: int, which: str) -> _Pool:
    rows = chosen.filter(can_be_drawn)
    less = f"; {chosen.height - rows.height:,} are left out" if rows.height < chosen.height else ""
    return _Pool(rows, of, f"{which}{less}")


def _drawn(pool: pl.DataFrame, config: MixConfig) -> tuple[pl.DataFrame, int]:
    """Return the rows of the set, in row order, and the number of rows dropped for their new spans or Unknown facts."""
    above = 0
    keys = [sampling_hash(config.seed, *texts) for texts in pool.select("group", "question", "answer").iter_rows()]
    if config.new_share is not None:
        columns = pool.select("row", pl.Series("key", keys, dtype=pl.UInt64), "spans", "new")
        numbers = draw_share([SpanRow(*line) for line in columns.iter_rows()], config.new_share, config.size)
        return pool.filter(pl.col("row").is_in(numbers)).sort("row"), above
    ordered = pool.with_columns(pl.Series("key", keys, dtype=pl.UInt64)).sort("key", "row")
    if config.drop_new_above is not None:
        kept = ordered.filter(pl.col("new") <= config.drop_new_above * pl.col("spans") + 1e-9)
        ordered, above = kept, ordered.height - kept.height
    if config.drop_facts_above is not None:
        kept = ordered.filter(pl.col("unknown_facts").fill_null(0) <= config.drop_facts_above + 1e-9)
        ordered, above = kept, ordered.height - kept.height
    if config.size is not None and config.size > ordered.height:
        raise InputError(f"--size {config.size}: found {ordered.height:,} rows. Lower --size, or leave it out")
    return ordered.head(config.size or ordered.height).sort("row"), above


def _frame(drawn: pl.DataFrame, masked: Masked | None, cut: Cut | None) -> pl.DataFrame:
    numbers = drawn["row"].to_list()
    answers = [cut.answers.get(row) if cut else None for row in numbers]
    ranges = [masked.ranges.get(row, []) if masked else None for row in numbers]
    return drawn.with_columns(
        pl.Series("new_answer", answers, dtype=pl.String),
        pl.Series(LOSS_EXCLUDE, ranges, dtype=LOSS_EXCLUDE_TYPE),
        weight=pl.lit(1.0),
    ).select(*MIX)


def _about(mixed: pl.DataFrame, config: MixConfig, pool: _Pool) -> dict[str, Any]:
    """Return the part of the manifest that every set has."""
    counts = count_categories(mixed)
    labelled = mixed["category"].count()
    unknown = int((mixed["category"] == UNKNOWN).sum())
    return {
        "kind": config.kind,
        "relations": list(config.relations) or None,
        "categories": list(config.categories),
        "share": {"asked": None, "achieved": unknown / labelled if labelled else None},
        "size": mixed.height,
        "family": None,
        "largest": pool.rows.height,
        "counts": {
            "overall": {name: int(counts[name].sum()) for name in CATEGORIES},
            "by_relation": {
                line["relation"]: {name: line[name] for name in CATEGORIES} for line in counts.iter_rows(named=True)
            },
        },
        "relations_left_out": {},
        "flags": {},
        "idk": None,
        "weight": None,
        "seed": config.seed,
    }


def _span_counts(
    mixed: pl.DataFrame,
    long_rows: pl.Series,
    spans: pl.DataFrame,
    config: MixConfig,
    masked: Masked | None,
    cut: Cut | None,
    above: int,
) -> dict[str, Any]:
    """Count the spans of the set as it is written, and what is masked or cut. Lengths are in characters.

    `long_rows`: the row numbers of those with long answers. `spans`: those of the drawn rows, before anything is cut.
    """
    before = _counted(spans)
    written = before if cut is None else _counted(cut.left)
    long = mixed.filter(pl.col("row").is_in(long_rows.implode()))
    return {
        "new_share": {"asked": config.new_share, "achieved": written["new_share"]},
        **{name: written[name] for name in ("labelled", "unknown", "new")},
        "rows": {
            "with_spans": written["rows"],
            "without_spans": long.height - written["rows"],
            "short": mixed.height - long.height,
        },
        **{
            name: None if share is None else {"share": share, "rows": above}
            for name, share in (
                ("drop_new_above", config.drop_new_above),
                ("drop_facts_above", config.drop_facts_above),
            )
        },
        "mask": masked
        and {
            "spans_that_are": config.mask,
            "rows": len(masked.ranges),
            "spans": masked.spans,
            "characters": masked.characters,
            "of_characters": int(long["answer"].str.len_chars().sum()),
        },
        "cut": cut
        and {
            "rows": len(cut.answers),
            "sentences": cut.sentences,
            "spans": cut.spans,
            "characters": cut.characters,
            "empty_rows": {"rows": len(cut.empty), "first": cut.empty[:LISTED]},
            "before": before,
        },
    }


def _counted(spans: pl.DataFrame) -> dict[str, Any]:
    """Count the labelled spans, the rows that have some, and the share of them that is new; None without any."""
    labelled = spans.filter(pl.col("category").is_not_null())
    new = labelled.filter(is_new()).height
    return {
        "labelled": labelled.height,
        "unknown": int((labelled["category"] == UNKNOWN).sum()),
        "new": new,
        "new_share": new / labelled.height if labelled.height else None,
        "rows": labelled["row"].n_unique(),
    }


def _notes(manifest: Mapping[str, Any], pool: _Pool) -> tuple[str, ...]:
    of, rows = manifest["spans"], manifest["spans"]["rows"]
    notes = [f"rows are drawn from {pool.rows.height:,} of the audit's {pool.of:,} ({pool.which})"]
    if gone := manifest["left_out"]:
        notes.append(f"never drawn: {'; '.join(unusable_lines(gone))}")
    if drop := of["drop_new_above"]:
        notes.append(f"{drop['rows']:,} rows dropped: more than {drop['share']:.1%} of their spans are new")
    if drop := of["drop_facts_above"]:
        notes.append(f"{drop['rows']:,} rows dropped: more than {drop['share']:.1%} of their facts are Unknown")
    asked = of["new_share"]["asked"]
    cut, before = of["cut"], (of["cut"] or {}).get("before")
    counted = before or {**of, "new_share": of["new_share"]["achieved"]}
    size = manifest["size"] + (cut["empty_rows"]["rows"] if cut else 0)
    notes.append(
        f"{f'drawn, before the cut: {size:,}' if cut else f'{size:,}'} rows with {_shares_text(counted, asked)}"
    )
    bare = size - rows["short"] - (before["rows"] if before else rows["with_spans"])
    if rows["short"] or bare:
        kinds = {"with a short answer": rows["short"], "without a labelled span": bare}
        parts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
        notes.append(f"taken as they are: {parts}")
    if mask := of["mask"]:
        notes.append(
            f"masked: {mask['spans']:,} spans in {mask['rows']:,} rows, {mask['characters']:,} of "
            f"{mask['of_characters']:,} characters of long answers ({LOSS_EXCLUDE}); they stay in the text"
        )
    if cut:
        notes.append(
            f"cut: {cut['sentences']:,} sentences with {cut['spans']:,} new spans from "
            f"{cut['rows'] + cut['empty_rows']['rows']:,} rows, {cut['characters']:,} characters"
        )
        if empty := cut["empty_rows"]["rows"]:
            numbers = row_numbers(cut["empty_rows"]["first"], empty)
            notes.append(f"{count(empty, 'row')} dropped, as nothing was left of their answer ({numbers})")
        written = {**of, "new_share": of["new_share"]["achieved"]}
        notes.append(f"written: {manifest['size']:,} rows with {_shares_text(written, None)}")
    return tuple(notes)


def _shares_text(counted: Mapping[str, Any], asked: float | None) -> str:
    share = counted["new_share"]
    told = "" if share is None else f" ({share:.2%}{'' if asked is None else f', asked for {asked:.2%}'})"
    return f"{counted['labelled']:,} labelled spans, {counted['new']:,} of them new to the model{told}"


def span_mix_table(mix: Mix) -> pl.DataFrame:
    """Return a table of the set for the terminal: its rows, and its spans by what they are to the model."""
    of = mix.manifest["spans"]
    return pl.DataFrame(
        {
            "rows": [mix.rows.height],
            "with spans": [of["rows"]["with_spans"]],
            "spans": [of["labelled"]],
            "expressed": [of["labelled"] - of["unknown"]],
            "recognised only": [of["unknown"] - of["new"]],
            "new": [of["new"]],
            "new share": ["-" if of["new_share"]["achieved"] is None else f"{of['new_share']['achieved']:.1%}"],
        }
    )
