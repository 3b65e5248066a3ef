"""Works out the figures of an audit from its frames, for its page and for its verdict alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from foreknow.format.text import display, suffix_of
from foreknow.stages.audit.verdict.category_lines import RelationLine, category_lines, complete, relation_lines
from foreknow.stages.audit.verdict.fact_summary import ShortFacts, short_facts
from foreknow.stages.audit.verdict.labelled_spans import LabelledSpans, labelled_spans
from foreknow.stages.audit.verdict.long_answers import LongAnswers, long_answers
from foreknow.stages.audit.verdict.row_flags import FlagLine, flag_lines
from foreknow.stages.audit.verdict.sentences import (
    AuditVerdict,
    CategoryShares,
    LongMix,
    long_verdict,
    span_verdict,
    spans_besides,
    verdict,
)
from foreknow.stats import Interval


@dataclass(frozen=True)
class AuditFigures:
    """The figures of an audit.

    `rows`: one line per row, with every column of `ROW_SCHEMA`. `seed`: of the intervals. `groups`: all names, sorted.
    `mix`: of the rows with short answers. `mostly_long`: whether more rows have long answers than have a category.
    `spans`: the labelled spans inside long answers; None if there are none.
    """

    rows: pl.DataFrame
    seed: int
    groups: list[str]
    relations: tuple[RelationLine, ...]
    long: LongAnswers | None
    facts: ShortFacts | None
    flagged: tuple[FlagLine, ...]
    mix: CategoryShares
    long_mix: LongMix
    mostly_long: bool
    spans: LabelledSpans | None

    @property
    def verdict(self) -> AuditVerdict:
        """The verdict on spans inside long answers, on long answers, or on short ones: what the file has most of."""
        if self.mostly_long:
            return span_verdict(self.spans, self.mix.model) if self.spans else long_verdict(self.long_mix)
        found = verdict(self.mix)
        if self.spans is None:
            return found
        return replace(found, cautions=(*found.cautions, spans_besides(self.spans, self.mix.model)))


def audit_figures(
    rows: pl.DataFrame,
    summary: Mapping[str, Any],
    facts: pl.DataFrame | None = None,
    spans: pl.DataFrame | None = None,
) -> AuditFigures:
    """Work out the figures of an audit.

    `rows`: one line per row. `summary`: the content of `summary.json`. `facts`: the short facts that the rows contain
    (`AuditResult.facts`). `spans`: the labelled spans inside long answers (`AuditResult.spans`).
    """
    frame = complete(rows)
    seed, groups = int(summary.get("seed") or 0), frame["group"].unique().sort().to_list()
    relations = relation_lines(frame, dict(summary.get("majority_floor") or {}), groups, seed)
    long, fact_summary, flagged = long_answers(frame), short_facts(frame, facts), flag_lines(frame)
    model, data = summary.get("model") or {}, summary.get("data") or {}
    mix = _mix(frame, relations, display(model.get("name") or "the model"), suffix_of(data.get("name")), seed)
    limit = int((summary.get("protocol") or {}).get("max_answer_tokens") or 32)
    mostly_long = long is not None and long.rows > mix.labelled
    return AuditFigures(
        rows=frame,
        seed=seed,
        groups=groups,
        relations=relations,
        long=long,
        facts=fact_summary,
        flagged=flagged,
        mix=mix,
        long_mix=_long_mix(mix, long, fact_summary, limit, flagged),
        mostly_long=mostly_long,
        spans=labelled_spans(frame, spans, long.rows if long else 0),
    )


def _mix(
    frame: pl.DataFrame, relations: tuple[RelationLine, ...], model: str, suffix: str, seed: int
) -> CategoryShares:
    """Collect the numbers that the verdict on short answers is based on."""
    lines = category_lines(frame, None, seed)
    nothing = Interval(0.0, 0.0, 1.0)
    unknown = lines[-1].share if lines else nothing
    return CategoryShares(
        rows=len(frame),
        labelled=sum(line.rows for line in lines),
        known=Interval(1 - unknown.value, 1 - unknown.high, 1 - unknown.low) if lines else nothing,
        unknown=unknown,
        highly_known=lines[0].share.value if lines else 0.0,
        alarmed=tuple(display(line.name, 40) for line in relations if line.alarm) if len(relations) > 1 else (),
        groups=len(relations),
        model=model,
        suffix=suffix,
    )


def _long_mix(
    mix: CategoryShares,
    long: LongAnswers | None,
    fact_summary: ShortFacts | None,
    limit: int,
    flagged: tuple[FlagLine, ...],
) -> LongMix:
    """Collect the numbers that the verdict is based on when most answers of the file are long."""
    return LongMix(
        rows=mix.rows,
        long=long.rows if long else 0,
        limit=limit,
        labelled=mix.labelled,
        unknown=round(mix.unknown.value * mix.labelled),
        logprob=long.logprob if long else None,
        alone=long.alone if long else None,
        facts=fact_summary.labelled if fact_summary else 0,
        rows_with_facts=fact_summary.rows_with_facts if fact_summary else 0,
        unknown_facts=fact_summary.unknown if fact_summary else 0,
        rows_by_roll_up=fact_summary.rows if fact_summary else {},
        flagged=any(line.is_finding for line in flagged),
        model=mix.model,
        suffix=mix.suffix,
    )
