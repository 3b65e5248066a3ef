"""This module renders an audit as one HTML file that makes no network request.

row_data.py writes the rows into a JSON data block of the file; the page's script shows them through `textContent`
only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from markupsafe import Markup

from foreknow import paper
from foreknow.categories import UNKNOWN
from foreknow.format.numbers import number, rounded_duration
from foreknow.report import audit_options, audit_tables, charts, page
from foreknow.report.hold_option import hold_option
from foreknow.report.long_answer_options import steps
from foreknow.report.row_data import row_json
from foreknow.report.span_data import TEXTS, drawn_rows, text_json
from foreknow.report.span_options import TITLES, span_purposes, span_steps
from foreknow.stages.audit.verdict import row_flags
from foreknow.stages.audit.verdict.category_lines import category_lines
from foreknow.stages.audit.verdict.fact_summary import ShortFacts
from foreknow.stages.audit.verdict.figures import audit_figures
from foreknow.stages.audit.verdict.labelled_spans import TYPE_NAMES, LabelledSpans
from foreknow.stages.audit.verdict.long_answers import LongAnswers
from foreknow.stages.audit.verdict.sentences import FEW_SHORT, MIN_LABELLED, CategoryShares

SAMPLE_ROWS = 20_000
"""The page embeds at most this many rows; of a larger audit it embeds a seeded sample of this size."""
ROW_BYTES = 3_000_000
"""The embedded rows take at most this many bytes, so that the page stays below 5 MB and opens in two seconds. Of long
rows the sample is smaller."""
TEXT_BYTES = 1_000_000
"""The embedded texts with their spans take at most this many bytes."""
RELATIONS_SHOWN = 24
WOULD_GO_SHOWN = 12
CARRIERS_SHOWN = 10


def render_audit(
    rows: pl.DataFrame,
    probes: pl.DataFrame,
    summary: Mapping[str, Any],
    facts: pl.DataFrame | None = None,
    *,
    chance: Mapping[str, Any] | None = None,
    forecast: Mapping[str, Any] | None = None,
    spans: pl.DataFrame | None = None,
    paths: Mapping[str, str | None] | None = None,
    remedies: Mapping[str, Any] | None = None,
    show_rows: bool = True,
) -> str:
    """Render the whole page. With `show_rows=False` the page contains no question, answer or subject of the data.

    `rows`: one line per row. `probes`: one line per row and exemplar set. `summary`: the content of `summary.json`.
    `facts`: the short facts that the rows contain (`Audit.facts`). `chance`: the shares that guessing would reach
    (`chance.json`). `forecast`: the predicted effect of training on a mix (`forecast.json`). `spans`: the labelled
    spans inside long answers (`AuditResult.spans`). `paths`: what the words in capitals stand for in the commands,
    where that is known. `remedies`: a study of remedies of the same model (`hold_option.comparison_beside`).
    """
    figures = audit_figures(rows, summary, facts, spans)
    frame, seed, groups, relations = figures.rows, figures.seed, figures.groups, figures.relations
    long, mix, mostly_long = figures.long, figures.mix, figures.mostly_long
    span_summary = figures.spans if mostly_long else None
    own = probes.filter(pl.col("row").is_in(frame["row"].implode()))  # without the probes of short facts
    model, data = dict(summary.get("model") or {}), dict(summary.get("data") or {})
    protocol = dict(summary.get("protocol") or {})
    notes = protocol.pop("notes", [])
    span_protocol = dict((summary.get("spans") or {}).get("protocol") or {})
    texts_embedded, text_data = 0, ""
    if show_rows and span_summary and spans is not None:
        texts_embedded, text_data = _texts(frame, spans, span_summary, groups, seed)
    purposes = span_purposes(span_summary) if span_summary else () if mostly_long else audit_options.purposes(mix)
    # if a file of long answers has only a few short ones, the page counts them and does not analyse them
    analysed = mix.labelled >= FEW_SHORT or (mix.labelled > 0 and not mostly_long)
    bins = audit_tables.probability_bins(frame) if analysed else ()
    popular = audit_tables.popularity_lines(frame, seed) if analysed else ()
    sets = int(protocol.get("exemplar_sets") or probes["exemplar_set"].n_unique() or 0)
    largest = sorted(relations, key=lambda line: (-line.rows, line.name))[:RELATIONS_SHOWN]
    embedded, row_data = 0, ""
    if show_rows:
        embedded, row_data = _rows(
            frame, _linked(long, figures.facts), seed, lambda rows: row_json(rows, probes, facts, groups, sets)
        )
    return page.render(
        "audit.html.j2",
        *("table.js", *(["spans.js"] if span_summary else [])),
        model=model,
        warning=page.warning_of(model),
        data=data,
        protocol=protocol,
        facts={
            "model": page.model_facts(model),
            "data": page.facts(data),
            "protocol": page.facts(protocol),
            "spans": page.facts(span_protocol),
        },
        cost=_cost(probes["row"].n_unique(), summary, protocol, sets),
        version=summary.get("version"),
        notes=notes,
        mix=mix,
        mostly_long=mostly_long,
        analysed=analysed,
        verdict=figures.verdict,
        options=audit_options.with_paths(
            span_steps(span_summary, figures.long_mix)
            if span_summary
            else steps(figures.long_mix)
            if mostly_long
            else (*audit_options.options(mix), *_hold(mix, remedies)),
            paths or {},
        ),
        spans=span_summary,
        type_names=TYPE_NAMES,
        texts_embedded=texts_embedded,
        text_data=Markup(text_data),
        purposes=purposes,
        titles=TITLES if span_summary else audit_options.TITLES,
        least=MIN_LABELLED,
        would_go=_would_go(frame) if show_rows and any(p.option == "drop" for p in purposes) else None,
        paper=paper.NAME,
        categories=category_lines(frame, _expected(summary), seed),
        meanings=_meanings(protocol, sets),
        relations=[line for line in relations if line in largest],
        folded=[line for line in relations if line not in largest],
        several=len(groups) > 1,
        spread=None if _is_zero_shot(protocol) else audit_tables.exemplar_spread(own),
        zero_shot=_is_zero_shot(protocol),
        charts={
            "probability": page.both(charts.probability_chart, bins) if bins else None,
            "popularity": page.both(charts.popularity_chart, popular) if popular else None,
            "expectation": page.both(charts.expectation_chart, long.bins) if long and long.bins else None,
        },
        bins=_bin_table(bins),
        popular=popular,
        popular_groups=audit_tables.popularity_by_group(frame) if popular else (),
        fifths=audit_tables.FIFTHS,
        carriers=audit_tables.carriers(frame, CARRIERS_SHOWN) if show_rows else (),
        long=long,
        limit=figures.long_mix.limit,
        fact_summary=figures.facts,
        accounted=row_flags.accounted(data),
        findings=row_flags.findings(figures.flagged),
        flags=[line for line in figures.flagged if not line.is_finding],
        chance=_chance(chance, sets * int(protocol.get("samples") or 0)) if chance else None,
        forecast=_forecast(forecast) if forecast else None,
        undecided=frame["flags"].list.contains("undecided").sum(),
        unlabelled=len(frame) - mix.labelled,
        moved=_moved(frame),
        show_rows=show_rows,
        embedded=embedded,
        row_data=Markup(row_data),
    )


def _hold(mix: CategoryShares, remedies: Mapping[str, Any] | None) -> tuple[audit_options.Option, ...]:
    """The option to teach the Unknown rows without losing what the model knew, where the file has such rows."""
    return (hold_option(remedies, tuned=False),) if mix.labelled and mix.unknown.value > 0 else ()


def _would_go(frame: pl.DataFrame) -> dict[str, Any]:
    """The Unknown rows, which dropping them would leave out: how many, and the first questions and answers."""
    unknown = frame.filter(pl.col("category") == UNKNOWN)
    return {"count": unknown.height, "rows": unknown.select("question", "answer").head(WOULD_GO_SHOWN).rows()}


def _chance(chance: Mapping[str, Any], tries: int) -> dict[str, Any]:
    """The Known shares corrected for guessing, largest relations first. `tries`: answers sampled per row."""
    hit = chance["corrected"]["hit"]
    lines = [{"name": name, **of} for name, of in hit["by_relation"].items()]
    lines.sort(key=lambda line: (-line["rows"], line["name"]))
    table = {"lines": lines[:RELATIONS_SHOWN], "note": chance["note"].capitalize()}
    return {"all": hit["overall"], "tries": tries, **table}


def _forecast(forecast: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `forecast.json` that the page shows."""
    test_error = forecast["left_out"].get("test", {})
    about = {"model": forecast["study"]["model"], "unknown": forecast["unknown"], "rmse": test_error.get("rmse")}
    return {**about, "lines": forecast["forecast"]}


def _rows(frame: pl.DataFrame, linked: list[int], seed: int, write: Callable[[pl.DataFrame], str]) -> tuple[int, str]:
    """The number of rows to embed, and what `write` makes of them, of at most `ROW_BYTES` bytes.

    All rows, or a sample that includes the rows `linked`, to which tables of the page link.
    """
    count = min(len(frame), SAMPLE_ROWS)
    while True:
        rows = _sample(frame, linked, count, seed)
        text = write(rows)
        size = len(text.encode())
        if size <= ROW_BYTES or count <= max(len(linked), 1):
            return len(rows), text
        count = max(int(0.95 * count * ROW_BYTES / size), len(linked), 1)


def _sample(frame: pl.DataFrame, linked: list[int], count: int, seed: int) -> pl.DataFrame:
    """At least `count` rows, in row order: all of them, or a seeded draw that includes the rows `linked`."""
    if len(frame) <= count:
        return frame
    is_linked = pl.col("row").is_in(linked)
    named = frame.filter(is_linked)
    drawn = frame.filter(~is_linked).sample(max(count - len(named), 0), seed=seed)
    return pl.concat([named, drawn]).sort("row")


def _linked(long: LongAnswers | None, fact_summary: ShortFacts | None) -> list[int]:
    """The rows to which tables of the page link."""
    rows = [*(h.row for h in (*long.least, *long.most)), *(w.row for w in long.words)] if long else []
    return list(dict.fromkeys([*rows, *(line.row for line in fact_summary.worst)] if fact_summary else rows))


def _texts(
    frame: pl.DataFrame, spans: pl.DataFrame, summary: LabelledSpans, groups: list[str], seed: int
) -> tuple[int, str]:
    """The number of texts to embed, and their JSON, of at most `TEXT_BYTES` bytes unless tables link to more."""
    count, before = TEXTS, -1
    while True:
        rows = drawn_rows(frame, spans, summary, seed, count)
        text = text_json(rows, spans, groups)
        size = len(text.encode())
        if size <= TEXT_BYTES or rows.height == before:
            return rows.height, text
        count, before = int(0.95 * rows.height * TEXT_BYTES / size), rows.height


def _meanings(protocol: Mapping[str, Any], sets: int) -> dict[str, str]:
    """One sentence on the meaning of each category, with the numbers of this protocol."""
    tries = sets * int(protocol.get("samples") or 0)
    prompts = f"all {sets} prompts" if sets else "every prompt"
    samples = f"{tries} samples" if tries else "the samples"
    if _is_zero_shot(protocol):
        right = "right by greedy decoding, asked without examples"
        some = "no row: all prompts of a row are the same, and so are its answers"
    else:
        right = f"right in {prompts}, which have different examples before the question"
        some = "right in some of the prompts, wrong in others"
    return {
        "HighlyKnown": right,
        "MaybeKnown": some,
        "WeaklyKnown": f"never right by greedy decoding, but likely to be right at least once among {samples}",
        "Unknown": "neither: not expressed under this protocol",
    }


def _is_zero_shot(protocol: Mapping[str, Any]) -> bool:
    """Whether the rows were asked without examples, so that all prompts of a row are the same."""
    return protocol.get("shots") == 0


def _expected(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The expected share of each category, if the summary has it."""
    expected = summary.get("expected_categories")
    return None if not expected else dict(expected.get("overall", expected))


def _moved(frame: pl.DataFrame) -> int | None:
    """How many rows would have another category under lenient matching; None if the audit did not measure it."""
    both = frame.filter(pl.col("category").is_not_null(), pl.col("category_lenient").is_not_null())
    return int((both["category"] != both["category_lenient"]).sum()) if len(both) else None


def _bin_table(bins: tuple[audit_tables.BinLine, ...]) -> list[tuple[str, list[int]]]:
    """The numbers of the probability chart as a table, one line per bin."""
    names = list(dict.fromkeys(b.bin for b in bins))
    return [(name, [b.rows for b in bins if b.bin == name]) for name in names]


def _cost(probed: int, summary: Mapping[str, Any], protocol: Mapping[str, Any], sets: int) -> list[tuple[str, str]]:
    """The time that the audit took, and the number of generations that sampling takes or would take."""
    lines = []
    if (seconds := summary.get("seconds")) is not None:
        lines.append(("time", rounded_duration(float(seconds))))
    if (rate := summary.get("rows_per_second")) is not None:
        lines.append(("rows per second", number(float(rate))))
    samples = int(protocol.get("samples") or 0)
    if sets and samples and probed:
        each = sets * (1 + samples)
        what = "generations" if protocol.get("name") == "sampled" else "generations that sampling would take"
        lines.append((what, f"{each * probed:,} ({each} per row)"))
    return lines
