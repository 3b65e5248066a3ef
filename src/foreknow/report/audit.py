"""An audit -> its page: one HTML file without a request to anywhere.

All text goes through Jinja's autoescape; the rows travel as JSON in a data block and reach the page through
`textContent` only. The content security policy allows exactly our own style sheet and script, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from foreknow.report import charts, tables
from foreknow.report import verdict as words
from foreknow.stats import Interval

SAMPLE_ROWS = 20_000
"""More rows than this are not all embedded: a seeded sample of this size is."""
LONGEST_TEXT = 400
"""Longer questions and answers are cut in the table; rows.parquet has them whole."""
RELATIONS_SHOWN = 24
CARRIERS_SHOWN = 10

LABELS = {
    "name": "name",
    "note": "note",
    "fingerprint": "fingerprint",
    "layout": "layout read",
    "shots": "exemplars per prompt",
    "exemplar_sets": "exemplar sets",
    "samples": "samples per exemplar set",
    "temperature": "sampling temperature",
    "top_k": "sampling top-k",
    "match": "answer matching",
    "bos": "BOS token",
    "chat_template": "chat template",
    "prompt": "prompt",
    "dtype": "number format",
    "device": "device",
}
UNSAFE_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
"""Control characters, and marks that turn the direction of the text around them."""
PRIVATE_KEYS = frozenset({"folder", "path", "file", "cache"})
"""Keys that hold paths of the machine: never shown."""


def render_audit(
    rows: pl.DataFrame, probes: pl.DataFrame, summary: Mapping[str, Any], *, show_rows: bool = True
) -> str:
    """The whole page. With `show_rows=False` no question, answer or subject of the data is in it."""
    frame = tables.complete(rows)
    seed = int(summary.get("seed") or 0)
    model = dict(summary.get("model") or {})
    data = dict(summary.get("data") or {})
    protocol = dict(summary.get("protocol") or {})
    groups = frame["group"].unique().sort().to_list()
    floors = dict(summary.get("majority_floor") or {})
    relations = tables.relation_lines(frame, floors, groups, seed)
    mix = _mix(frame, relations, display(model.get("name") or "the model"), seed)
    bins = tables.probability_bins(frame)
    popular = tables.popularity_lines(frame, seed)
    sets = int(protocol.get("exemplar_sets") or probes["exemplar_set"].n_unique() or 0)
    largest = sorted(relations, key=lambda line: (-line.rows, line.name))[:RELATIONS_SHOWN]
    style, script = _asset("style.css"), _asset("table.js")
    return (
        _environment()
        .from_string(_asset("audit.html.j2"))
        .render(
            csp=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            model=model,
            data=data,
            protocol=protocol,
            facts={"model": _facts(model), "data": _facts(data), "protocol": _facts(protocol)},
            cost=_cost(frame, summary, protocol, sets),
            version=summary.get("version"),
            mix=mix,
            verdict=words.verdict(mix),
            options=words.options(mix),
            paper=words.PAPER,
            categories=tables.category_lines(frame, _expected(summary), seed),
            meanings=_meanings(protocol, sets),
            relations=[line for line in relations if line in largest],
            folded=[line for line in relations if line not in largest],
            several=len(groups) > 1,
            spread=tables.exemplar_spread(probes),
            charts={
                "probability": _pair(charts.probability_chart, bins),
                "popularity": _pair(charts.popularity_chart, popular),
            },
            bins=_bin_table(bins),
            popular=popular,
            popular_groups=tables.popularity_by_group(frame) if popular else (),
            fifths=tables.FIFTHS,
            carriers=tables.carriers(frame, CARRIERS_SHOWN) if show_rows else (),
            flags=tables.flag_lines(frame),
            undecided=frame["flags"].list.contains("undecided").sum(),
            unlabelled=len(frame) - mix.labelled,
            moved=_moved(frame),
            show_rows=show_rows,
            embedded=min(len(frame), SAMPLE_ROWS),
            row_data=Markup(row_json(frame, probes, groups, sets, seed)) if show_rows else "",
        )
    )


def row_json(frame: pl.DataFrame, probes: pl.DataFrame, groups: list[str], sets: int, seed: int) -> str:
    """The rows of the table as JSON that can stand inside a script element."""
    shown = frame.sample(SAMPLE_ROWS, seed=seed).sort("row") if len(frame) > SAMPLE_ROWS else frame
    flags = [line.name for line in tables.flag_lines(shown)]
    place = {name: index for index, name in enumerate(groups)}
    flag_place = {name: index for index, name in enumerate(flags)}
    first = dict(probes.filter(pl.col("exemplar_set") == 0).select("row", "greedy_correct").iter_rows())
    lines = [
        [
            r["row"],
            clip(r["question"]),
            clip(r["answer"]),
            [clip(a) for a in r["answers"] or [] if a != r["answer"]],
            clip(r["model_answer"]),
            first.get(r["row"]),
            tables.CATEGORIES.index(r["category"]) if r["category"] else -1,
            _short(r["p_greedy"]),
            _short(r["p_sampled"]),
            _short(r["p_sampled_error"]),
            place[r["group"]],
            sorted(flag_place[f] for f in set(r["flags"])),
        ]
        for r in shown.iter_rows(named=True)
    ]
    document = {
        "categories": tables.CATEGORIES,
        "groups": [display(g) for g in groups],
        "flags": flags,
        "sets": sets,
        "rows": lines,
    }
    return script_json(document)


def script_json(document: object) -> str:
    """JSON with every character escaped that could end a script element or a JavaScript line."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


def clip(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """The text, cut where it is too long for a table cell."""
    return text if text is None or len(text) <= longest else text[: longest - 1] + "…"


def display(text: str | None, longest: int = 90) -> str:
    """A name fit to stand in a line: never empty, no control characters, long ones cut in the middle."""
    clean = UNSAFE_IN_LINE.sub(" ", text or "").strip()
    if not clean:
        return "(no name)"
    return clean if len(clean) <= longest else f"{clean[: longest - 21]}…{clean[-20:]}"


def tight(text: str) -> Markup:
    """Escaped text in which "61 %" and "(57–65)" are not broken over two lines."""
    safe = str(escape(text)).replace(" %", "\u00a0%")
    return Markup(re.sub(r"\(\d+–\d+\)", lambda m: f'<span class="nb">{m[0]}</span>', safe))


def number(value: float | None) -> str:
    """A probability or rate in as many digits as it deserves."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _mix(frame: pl.DataFrame, relations: tuple[tables.RelationLine, ...], model: str, seed: int) -> words.Mix:
    """What the verdict needs to know."""
    lines = tables.category_lines(frame, None, seed)
    nothing = Interval(0.0, 0.0, 1.0)
    unknown = lines[-1].share if lines else nothing
    return words.Mix(
        rows=len(frame),
        labelled=sum(line.rows for line in lines),
        known=Interval(1 - unknown.value, 1 - unknown.high, 1 - unknown.low) if lines else nothing,
        unknown=unknown,
        highly_known=lines[0].share.value if lines else 0.0,
        alarmed=tuple(display(line.name, 40) for line in relations if line.alarm) if len(relations) > 1 else (),
        groups=len(relations),
        model=model,
    )


def _meanings(protocol: Mapping[str, Any], sets: int) -> dict[str, str]:
    """One line on each category, with the numbers of this protocol."""
    tries = sets * int(protocol.get("samples") or 0)
    prompts = f"all {sets} prompts" if sets else "every prompt"
    samples = f"{tries} samples" if tries else "the samples"
    return {
        "HighlyKnown": f"right in {prompts}, each with other examples in front of the question",
        "MaybeKnown": "right in some of the prompts, wrong in others",
        "WeaklyKnown": f"never the first choice, but likely to turn up among {samples}",
        "Unknown": "neither: not expressed under this protocol",
    }


def _expected(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    expected = summary.get("expected_categories")
    return None if not expected else dict(expected.get("overall", expected))


def _moved(frame: pl.DataFrame) -> int | None:
    """Rows whose category is another one under lenient matching; None where that was not measured."""
    both = frame.filter(pl.col("category").is_not_null(), pl.col("category_lenient").is_not_null())
    return int((both["category"] != both["category_lenient"]).sum()) if len(both) else None


def _bin_table(bins: tuple[tables.BinLine, ...]) -> list[tuple[str, list[int]]]:
    """The probability chart as a table: one line per bin."""
    names = list(dict.fromkeys(b.bin for b in bins))
    return [(name, [b.rows for b in bins if b.bin == name]) for name in names]


def _cost(
    frame: pl.DataFrame, summary: Mapping[str, Any], protocol: Mapping[str, Any], sets: int
) -> list[tuple[str, str]]:
    """What the audit took, and what sampling would have taken."""
    lines = []
    if (seconds := summary.get("seconds")) is not None:
        lines.append(("time", duration(float(seconds))))
    if (rate := summary.get("rows_per_second")) is not None:
        lines.append(("rows per second", number(float(rate))))
    samples = int(protocol.get("samples") or 0)
    if sets and samples:
        each = sets * (1 + samples)
        what = "generations" if protocol.get("name") == "sampled" else "generations that sampling would take"
        lines.append((what, f"{each * len(frame):,} ({each} a row)"))
    return lines


def _facts(mapping: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Label, value and whether it spans lines, for whatever a section of the summary holds."""
    keys = [k for k in LABELS if k in mapping] + [k for k in mapping if k not in LABELS]
    shown = [(k, mapping[k]) for k in keys if k not in PRIVATE_KEYS and mapping[k] is not None]
    return [(LABELS.get(k, k.replace("_", " ")), (t := _plain(v)), "\n" in t) for k, v in shown]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _pair(draw: Any, lines: tuple[Any, ...]) -> tuple[Markup, Markup] | None:
    """A chart for wide and for narrow screens; None where there is nothing to draw."""
    return (Markup(draw(lines, charts.WIDE)), Markup(draw(lines, charts.NARROW))) if lines else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _asset(name: str) -> str:
    return files("foreknow.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy under which only these two texts take effect."""

    def sha(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{sha(style)}'; script-src 'sha256-{sha(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": words.percent,
        "interval": words.percent_interval,
        "display": display,
        "number": number,
        "tight": tight,
    }
    return environment
