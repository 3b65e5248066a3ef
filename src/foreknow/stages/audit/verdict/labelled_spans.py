"""Summarises the labelled spans inside long answers: what in these texts is new to the model.

Its functions have no side effects. A span is in one of five parts: the three Known categories (*expressed in place*),
Unknown but *recognised*, and *neither*, which is what the page calls new. All shares are of labelled spans, given the
text before each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import polars as pl

from foreknow.categories import CATEGORIES, KNOWN
from foreknow.data.spans.schema import is_new
from foreknow.stages.audit.verdict.excerpts import InSentence, in_sentence
from foreknow.stats import Interval

PARTS: Final = (*KNOWN, "recognised", "neither")
"""The parts of labelled spans, from what the model says to what is new to it."""
UNLABELLED: Final = len(PARTS)
"""The place, after `PARTS`, of spans without a category."""
TYPE_NAMES: Final = {
    "name": "names",
    "number": "numbers",
    "date": "dates",
    "code": "codes",
    "term": "rare terms",
    "own": "your own spans",
}
GROUPS_SHOWN: Final = 12
THINGS_SHOWN: Final = 8
"""The page lists at most this many new things of each type."""


@dataclass(frozen=True)
class SpanLine:
    """The labelled spans of one type or group, or of all: their number, by part, and in how many rows they stand."""

    name: str
    counts: tuple[int, ...]
    rows: int
    rows_with_new: int

    @property
    def spans(self) -> int:
        """The number of labelled spans."""
        return sum(self.counts)

    @property
    def shares(self) -> list[float]:
        """The share of each part; zeros if there are no spans."""
        return [count / max(self.spans, 1) for count in self.counts]

    @property
    def expressed(self) -> float:
        """The share of the spans that are expressed in place."""
        return sum(self.counts[: len(KNOWN)]) / max(self.spans, 1)


@dataclass(frozen=True)
class NewThing:
    """A text that is new to the model: its type, how many spans and rows have it, and one of them in its sentence."""

    text: str
    type: str
    spans: int
    rows: int
    row: int
    sentence: InSentence


@dataclass(frozen=True)
class LabelledSpans:
    """What the page shows of the labelled spans of an audit.

    `all`: all labelled spans together. `texts`: rows with any span. `all_groups`: the number of groups. `new`: the
    share of new spans, with its interval over rows. `unlabelled`: spans without a category. `long`: rows with long
    answers. `rows`: how many of them have no labelled span, no new one, some new ones, and only new ones. `things`: the
    new things of each type, the most frequent first; `kinds_of_things`: how many different ones there are, by type.
    `share_to_draw`: a small share of new spans, in whole per cent, that a set of these rows can have; None if none can.
    """

    all: SpanLine
    texts: int
    all_groups: int
    new: Interval
    unlabelled: int
    long: int
    rows: dict[str, int]
    types: tuple[SpanLine, ...]
    groups: tuple[SpanLine, ...]
    things: tuple[tuple[str, tuple[NewThing, ...]], ...]
    kinds_of_things: dict[str, int]
    share_to_draw: float | None

    @property
    def rows_with_spans(self) -> int:
        """The number of rows with a labelled span."""
        return self.long - self.rows["none"]

    @property
    def rows_with_new(self) -> int:
        """The number of rows with a new span."""
        return self.rows["some"] + self.rows["only"]


def with_parts(spans: pl.DataFrame) -> pl.DataFrame:
    """Add `part`: the place of each span's part in `PARTS`, or `UNLABELLED`. `spans`: a frame `SPANS`."""
    part = pl.lit(UNLABELLED)
    for place, name in enumerate(CATEGORIES[:-1]):
        part = pl.when(pl.col("category") == name).then(place).otherwise(part)
    unknown = pl.when(is_new()).then(PARTS.index("neither")).otherwise(PARTS.index("recognised"))
    return spans.with_columns(part=pl.when(pl.col("category") == CATEGORIES[-1]).then(unknown).otherwise(part))


def labelled_spans(rows: pl.DataFrame, spans: pl.DataFrame | None, long: int) -> LabelledSpans | None:
    """Summarise the spans of an audit; None if none has a label.

    `rows`: the audit's rows, with row, group and answer. `spans`: a frame `SPANS`. `long`: rows with long answers.
    """
    if spans is None or not spans["category"].count():
        return None
    every = with_parts(spans).join(rows.select("row", "group", "answer"), on="row")
    labelled = every.filter(pl.col("part") < UNLABELLED)
    new = labelled.group_by("row").agg(new=(pl.col("part") == PARTS.index("neither")).sum(), spans=pl.len())
    only = new.filter(pl.col("new") == pl.col("spans")).height
    counts = {
        "none": max(long - new.height, 0),
        "no": new.filter(pl.col("new") == 0).height,
        "some": new.filter(pl.col("new") > 0).height - only,
        "only": only,
    }
    groups = [_line(str(name), part) for (name,), part in labelled.group_by("group")]
    types = [_line(name, part) for name in TYPE_NAMES if (part := labelled.filter(type=name)).height]
    things, kinds = new_things(labelled)
    return LabelledSpans(
        all=_line("all", labelled),
        texts=every["row"].n_unique(),
        all_groups=len(groups),
        new=share_over_rows(new["new"].to_list(), new["spans"].to_list()),
        unlabelled=every.height - labelled.height,
        long=max(long, new.height),
        rows=counts,
        types=tuple(types),
        groups=tuple(sorted(groups, key=lambda line: (-line.spans, line.name))[:GROUPS_SHOWN]),
        things=things,
        kinds_of_things=kinds,
        share_to_draw=_share_to_draw((new["new"] / new["spans"]).to_list(), int(new["new"].sum()) / labelled.height),
    )


def _share_to_draw(shares: list[float], overall: float) -> float | None:
    """A tenth, or half of the `overall` share if that is less; more where no row has so few, None where none has more.

    `shares`: the share of new spans in each row.
    """
    share = math.ceil(100 * max(min(shares), min(0.1, overall / 2))) / 100
    return share if share <= max(shares) else None


def share_over_rows(hits: list[int], totals: list[int]) -> Interval:
    """The share of hits of all spans, with a 95 % interval that treats the spans of a row as belonging together.

    The interval is that of a ratio of sums over rows (linearised variance); it is cut at 0 and 1.
    """
    whole, rows = sum(totals), len(totals)
    share = sum(hits) / max(whole, 1)
    if rows < 2:
        return Interval(share, 0.0, 1.0)
    off = sum((hit - share * total) ** 2 for hit, total in zip(hits, totals, strict=True))
    width = 1.96 * math.sqrt(off * rows / (rows - 1)) / max(whole, 1)
    return Interval(share, max(0.0, share - width), min(1.0, share + width))


def new_things(
    labelled: pl.DataFrame, most: int = THINGS_SHOWN
) -> tuple[tuple[tuple[str, tuple[NewThing, ...]], ...], dict[str, int]]:
    """The texts of new spans by type, and how many different ones each type has. Texts that differ in case are one.

    `labelled`: spans with `part` and `answer`. In each type those in most rows come first.
    """
    new = labelled.filter(pl.col("part") == PARTS.index("neither"))
    table = (
        new.sort("row", "start")
        .with_columns(same=pl.col("text").str.to_lowercase())
        .group_by("type", "same", maintain_order=True)
        .agg(
            pl.col("text", "row", "start", "end", "answer").first(),
            spans=pl.len(),
            rows=pl.col("row").n_unique(),
        )
        .sort(["rows", "spans", "same"], descending=[True, True, False])
    )
    things, kinds = [], {}
    for name in TYPE_NAMES:
        own = table.filter(type=name)
        if own.is_empty():
            continue
        kinds[name] = own.height
        lines = [
            NewThing(
                line["text"],
                name,
                line["spans"],
                line["rows"],
                line["row"],
                in_sentence(line["answer"] or "", line["start"], line["end"]),
            )
            for line in own.head(most).iter_rows(named=True)
        ]
        things.append((name, tuple(lines)))
    return tuple(things), kinds


def _line(name: str, spans: pl.DataFrame) -> SpanLine:
    new = spans.filter(pl.col("part") == PARTS.index("neither"))
    counts = tuple(int((spans["part"] == place).sum()) for place in range(len(PARTS)))
    return SpanLine(name, counts, spans["row"].n_unique(), new["row"].n_unique())
