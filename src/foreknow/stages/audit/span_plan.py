"""Plan the labelling of fact spans: the spans of each long answer, their alternatives, and the exemplars.

This needs a tokenizer but no weights, and the plan is plain values, so that it can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.data.schema import GOLD, USABLE
from foreknow.data.spans.alternatives import AlternativePool, SpanMention
from foreknow.data.spans.column import ColumnFinder
from foreknow.data.spans.finder import AnswerText, Finder, Span, Words, first_mentions
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import ROLL_UP, TYPES, is_new
from foreknow.data.spans.spacy_finder import PREFIX, SpacyFinder
from foreknow.errors import ConfigError
from foreknow.inference import slick
from foreknow.prompts.long_exemplars import LongExemplars, cut_text, draw_long_exemplars

if TYPE_CHECKING:
    from foreknow.config import AuditConfig
    from foreknow.prompts.few_shot import Exemplar
    from foreknow.prompts.prompt_template import Prompter

FACT_SPANS: Final = pl.List(
    pl.Struct(
        {"start": pl.Int64(), "end": pl.Int64(), "type": pl.String(), "alternatives": pl.List(pl.String())},
    )
)
"""Type of the column `fact_spans` of the rows to label: each row's spans in the order of the text."""
EXEMPLAR_TOKENS: Final = 256
"""The most tokens of one exemplar, question and answer; a longer answer is cut at the end of a sentence."""
_LONGEST_TOKEN: Final = 64


class SpanPlan(NamedTuple):
    """How fact spans are labelled: the exemplar sets, the finder's name, and the settings for the summary."""

    exemplars: LongExemplars
    finder: str
    protocol: dict[str, Any]


class PlannedSpans(NamedTuple):
    """The plan, the rows with their spans in the column `fact_spans`, and lines for the user."""

    plan: SpanPlan
    long: pl.DataFrame
    notes: tuple[str, ...]


def plan_spans(
    config: AuditConfig,
    long: pl.DataFrame,
    every: pl.DataFrame,
    pool: pl.DataFrame | None,
    prompter: Prompter,
    positions: int,
    source: str,
) -> PlannedSpans | None:
    """Find the fact spans of `long`, the rows to label, and draw exemplars and alternatives for them.

    `every`: all rows of the file; `pool`: those of `--exemplars`; `positions`: the most tokens that the model takes in;
    `source`: the file's name. Returns None with `--spans none`, or where no row has a long answer. Raises ConfigError
    for a finder that cannot be had, and InputError for a bad entry in the rows' own column.
    """
    if config.spans == "none" or long.is_empty():
        return None
    texts = _texts(long)
    finder = open_finder(config.spans, texts, source)
    spans_by_row = finder.find(texts)
    if finder.name != "column":
        spans_by_row = [first_mentions(text, spans) for text, spans in zip(texts, spans_by_row, strict=True)]
    column = with_alternatives(texts, spans_by_row, config.span_alternatives, config.seed)
    exemplars = draw_long_exemplars(
        every,
        long,
        shots=config.span_shots,
        sets=config.span_sets,
        seed=config.seed,
        shorten=shortener(prompter, exemplar_budget(positions, config.span_shots)),
        pool=pool,
    )
    protocol = {
        "finder": finder.name,
        "sets": config.span_sets,
        "shots": config.span_shots,
        "alternatives": config.span_alternatives,
        "exemplars": exemplars.reason,
    }
    line = (
        f"{sum(map(len, column)):,} fact spans in {sum(map(bool, column)):,} of {long.height:,} rows with long answers "
        f"(finder: {finder.name}); exemplars for them are drawn {exemplars.reason}"
    )
    rows = long.with_columns(fact_spans=pl.Series("fact_spans", column, dtype=FACT_SPANS))
    return PlannedSpans(SpanPlan(exemplars, finder.name, protocol), rows, (line, *exemplars.notes))


def check_finder(name: str, rows: pl.DataFrame, source: str) -> None:
    """Raise for a finder that cannot be had, or for a bad entry in the rows' own column, before a model is read.

    `name`: `--spans`; `rows`: those to audit (`schema.ROWS`). Raises ConfigError and InputError.
    """
    texts = _texts(rows.filter(USABLE & pl.col("spans").is_not_null()))
    if name == "column" and not texts:
        raise ConfigError(
            f"--spans column: no row of {source} has an entry in a column spans; name the column with --map "
            "spans=COLUMN, or use --spans rules"
        )
    finder = open_finder(name, texts, source)
    if finder.name == "column":
        finder.find(texts)


def _texts(long: pl.DataFrame) -> list[AnswerText]:
    columns = long.select("row", GOLD.alias("gold"), "question", "context", "spans")
    return [
        AnswerText(row, gold, "\n".join([*(turn["content"] for turn in context or ()), question]), own)
        for row, gold, question, context, own in columns.iter_rows()
    ]


def with_alternatives(
    texts: Sequence[AnswerText], spans_by_row: Sequence[Sequence[Span]], count: int, seed: int
) -> list[list[dict[str, Any]]]:
    """Return each row's spans with up to `count` alternatives each, as values of `FACT_SPANS`."""
    pairs = list(zip(texts, spans_by_row, strict=True))
    mentions = [[_mention(text.answer, span) for span in spans] for text, spans in pairs]
    pool = AlternativePool((mention for own in mentions for mention in own), seed)
    column = []
    for (text, spans), own in zip(pairs, mentions, strict=True):
        mentioned = Words(f"{text.before}\n{text.answer}") if spans else Words("")
        column.append(
            [
                {
                    **{"start": s.start, "end": s.end, "type": s.type},
                    "alternatives": pool.draw(text.row, mention, mentioned, count),
                }
                for s, mention in zip(spans, own, strict=True)
            ]
        )
    return column


def _mention(answer: str, span: Span) -> SpanMention:
    return SpanMention(span.type, answer[span.start : span.end], answer[max(span.start - 80, 0) : span.start])


def open_finder(name: str, texts: Sequence[AnswerText], source: str) -> Finder:
    """Return the finder that `--spans` names; with `auto`, the column if some text has an entry, else the rules.

    Raises ConfigError if it cannot be had.
    """
    has_column = any(text.own is not None for text in texts)
    if name == "column" or (name == "auto" and has_column):
        return ColumnFinder(source)
    if name.startswith(PREFIX):
        return SpacyFinder(name.removeprefix(PREFIX))
    return RuleFinder(text.answer for text in texts)


def exemplar_budget(positions: int, shots: int) -> int:
    """Return the most tokens of one exemplar: all of a prompt's exemplars take at most a third of the positions."""
    return min(EXEMPLAR_TOKENS, positions // 3 // max(shots, 1))


def shortener(prompter: Prompter, budget: int) -> Callable[[Exemplar], Exemplar | None]:
    """Return the function that cuts an exemplar to `budget` tokens, or refuses one whose question takes over half."""

    def shorten(exemplar: Exemplar) -> Exemplar | None:
        question, answer = prompter.special.encode(
            [exemplar.question[: budget * _LONGEST_TOKEN], exemplar.answer[: budget * _LONGEST_TOKEN]],
            around=False,
            offsets=True,
        )
        room = budget - len(question.ids)
        if room < budget // 2:
            return None
        if len(answer.ids) <= room:
            return exemplar
        end = answer.offsets[room - 1][1] if answer.offsets else len(exemplar.answer) * room // len(answer.ids)
        text = cut_text(exemplar.answer, end)
        return exemplar._replace(answer=text) if text else None

    return shorten


def summarise_spans(rows: pl.DataFrame, spans: pl.DataFrame, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the counts for `summary.json`. `rows`: with `spans_category`; `spans`: a frame `SPANS`."""
    labelled = spans.filter(pl.col("category").is_not_null())
    compared = labelled.filter(pl.col("recognised").is_not_null())
    counts = dict(rows["spans_category"].drop_nulls().value_counts().iter_rows())
    by_type = {}
    for kind in TYPES:
        own = labelled.filter(pl.col("type") == kind)
        if own.height:
            by_type[kind] = {
                "spans": own.height,
                "unknown": own.filter(pl.col("category") == UNKNOWN).height,
                "new": own.filter(is_new()).height,
            }
    return {
        "spans": spans.height,
        "labelled": labelled.height,
        "categories": slick.shares(spans["category"]),
        "new": labelled.filter(is_new()).height,
        "compared": compared.height,
        "recognised": int(compared["recognised"].sum()),
        "by_type": by_type,
        "rows": {word: int(counts.get(word, 0)) for word in ROLL_UP},
        "flags": dict(spans["flags"].explode().drop_nulls().value_counts().sort("flags").iter_rows()),
        "protocol": protocol,
    }
