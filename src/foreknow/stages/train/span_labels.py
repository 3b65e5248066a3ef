"""Finds the labelled spans of the rows of a set in an audit, and counts those that a model gets right. Pure.

A span is *fitted* if each of its tokens is the arg max behind the gold text before it: the model would say it there.
`dev_spans` is the share fitted of the spans of dev that are *kept*: they are HighlyKnown or MaybeKnown, which means
that the model said them before training, and their text stands in no answer to train on. So nothing but forgetting can
lower the share: a span that was never said cannot be lost, and one that is trained on cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES, KNOWN
from foreknow.data.schema import GOLD, SAME_GOLD, SAME_QUESTION, earlier_turns
from foreknow.data.spans.finder import Words
from foreknow.data.spans.schema import is_new

WATCHED_SPANS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "span": pl.Int64(),
    "start": pl.Int64(),
    "end": pl.Int64(),
    "text": pl.String(),
    "type": pl.String(),
    "category": pl.String(),
    "new": pl.Boolean(),
    "kept": pl.Boolean(),
}
"""The labelled spans of a set. `row`: the row's position in the set's file. `start`, `end`: characters of its gold."""
SPAN_OUTCOMES: Final[dict[str, pl.DataType]] = {
    "set": pl.String(),
    "row": pl.Int64(),
    "span": pl.Int64(),
    "fitted": pl.Boolean(),
}
"""The frame has one line per measured span."""
FITTED: Final[dict[str, pl.DataType]] = {"epoch": pl.Float64(), "step": pl.Int64(), **SPAN_OUTCOMES}
"""The contract of `fitted_spans.parquet`: one line per evaluation and labelled span."""
FITTED_SPANS: Final = "fitted_spans"
"""The name of the chunks that hold the outcomes of spans at one evaluation."""
NEW: Final = "new"
KEPT: Final = "kept"
_SAID: Final = CATEGORIES[:2]
"""The categories of spans that some exemplar set made the model say greedily."""

SpanCounts = dict[str, list[int]]
"""Fitted spans and all spans, by category, and by `new` and `kept`."""


def watched_spans(rows: pl.DataFrame, audited: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Return the labelled spans of `rows` (`dataset.SET`) as `WATCHED_SPANS`, with `kept` as far as categories tell.

    `audited`: the audit's `rows.parquet`; `spans`: its `spans.parquet`. A row has the spans of the audited row with the
    same question, gold and earlier turns; a span whose text does not stand at its place in the row's gold is left out.
    """
    keys = ["question", "earlier_turns", "gold"]
    known = (
        audited.filter(pl.col("row").is_in(spans["row"].unique().implode()))
        .select(SAME_QUESTION, "earlier_turns", gold=SAME_GOLD, audited="row")
        .unique(keys, keep="first", maintain_order=True)
    )
    own = rows.select("row", SAME_QUESTION, earlier_turns(rows), gold=SAME_GOLD, text_of_row=GOLD)
    pairs = own.join(known, on=keys, nulls_equal=True).select("row", "audited", "text_of_row")
    labelled = spans.filter(pl.col("category").is_not_null()).with_columns(
        new=is_new(), kept=pl.col("category").is_in(_SAID)
    )
    found = pairs.join(labelled.rename({"row": "audited"}), on="audited")
    in_place = pl.col("text_of_row").str.slice(pl.col("start"), pl.col("end") - pl.col("start")) == pl.col("text")
    return found.filter(in_place).sort("row", "start").select(pl.col(n).cast(t) for n, t in WATCHED_SPANS.items())


def without_trained(spans: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Set `kept` to false for spans whose words stand in a gold of `train`, case and a plural `s` aside."""
    trained = Words("\n".join(gold for (gold,) in train.select(GOLD).iter_rows()))
    stands = {text: trained.mentions(Words(text)) for text in spans["text"].unique()}
    unseen = pl.Series([not stands[text] for text in spans["text"]], dtype=pl.Boolean)
    return spans.with_columns(kept=pl.col("kept") & unseen)


def spans_of_sets(sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return the spans of all sets in one frame: `set` and `WATCHED_SPANS`, the contract of a run's `spans.parquet`."""
    schema = {"set": pl.String(), **WATCHED_SPANS}
    parts = [own.with_columns(set=pl.lit(name)).select(*schema) for name, own in sets.items()]
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def spans_at(line: Mapping[str, Any], spans: pl.DataFrame) -> pl.DataFrame:
    """Return the outcomes of one measurement's spans (`SPAN_OUTCOMES`) as `FITTED`, with its line's epoch and step."""
    place = {"epoch": pl.lit(float(line["epoch"])), "step": pl.lit(line["step"], pl.Int64)}
    return spans.with_columns(**place).select(*FITTED)


def count_fitted(outcomes: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> dict[str, SpanCounts]:
    """Count the fitted spans of every set (`WATCHED_SPANS`) that has any. `outcomes`: a frame `SPAN_OUTCOMES`.

    `kept` is counted for every set but train.
    """
    counts: dict[str, SpanCounts] = {}
    for name, spans in sets.items():
        of = spans.join(outcomes.filter(pl.col("set") == name), on=["row", "span"])
        if of.is_empty():
            continue
        parts = {category: pl.col("category") == category for category in CATEGORIES}
        parts |= {NEW: pl.col("new"), **({} if name == "train" else {KEPT: pl.col("kept")})}
        counts[name] = {
            part: [int(some["fitted"].sum()), some.height]
            for part, chosen in parts.items()
            if (some := of.filter(chosen)).height
        }
    return counts


def share_known(counts: SpanCounts) -> float | None:
    """Return the share fitted of the spans of the three Known categories; None if there are none."""
    pairs = [counts[category] for category in KNOWN if category in counts]
    total = sum(count for _, count in pairs)
    return sum(fitted for fitted, _ in pairs) / total if total else None


def flat_shares(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of a line's `spans` by metric name: dev_spans, dev_known_spans, dev_new_spans, ..."""
    shares = {}
    for name, counts in line.get("spans", {}).items():
        if (known := share_known(counts)) is not None:
            shares[f"{name}_known_spans"] = known
        for part, metric in ((NEW, f"{name}_new_spans"), (KEPT, f"{name}_spans")):
            if part in counts:
                shares[metric] = counts[part][0] / counts[part][1]
    return shares


def format_spans(line: Mapping[str, Any]) -> list[str]:
    """Write a line's `spans` for the terminal: known and new spans of train, then of the other sets."""
    parts = []
    for name, counts in line.get("spans", {}).items():
        known = share_known(counts)
        texts = [] if known is None else [f"known spans {known:.0%}"]
        texts += [f"new {counts[NEW][0] / counts[NEW][1]:.0%}"] if NEW in counts else []
        if texts:
            parts.append(("" if name == "train" else f"{name} ") + ", ".join(texts))
    return parts
