"""This module renders the page of a study of long answers from `long_study.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from markupsafe import Markup

from foreknow.categories import HIGHLY_KNOWN, KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.format.numbers import exact, rounded_duration
from foreknow.report import page
from foreknow.report.charts import INK
from foreknow.report.study_tables import p_text
from foreknow.report.study_text import points
from foreknow.report.tune_charts import COLOURS, Curve, epochs_chart
from foreknow.stages.train.span_labels import NEW

if TYPE_CHECKING:
    from foreknow.stages.study.long_result import LongStudyResult

_NAMES = {"none": "as it is", "mask": "new spans masked", "cut": "their sentences cut", "drop": "their rows dropped"}
_POINTS = {"early_stop": "EARLY_STOP", "convergence": "CONVERGENCE"}


class LongClaim(NamedTuple):
    """A line of the scorecard, in words."""

    number: int
    text: str
    remedy: str
    verdict: str
    estimate: str
    contrast: str
    p: str
    note: str


def render_long_study(study: LongStudyResult) -> str:
    """Render the whole page."""
    claims, remedies = study.tables["claims"], study.tables["remedies"]
    model = dict(study.manifest.get("model") or {})
    return page.render(
        "long_study.html.j2",
        version=study.manifest.get("foreknow"),
        model=model,
        warning=page.warning_of(model),
        data=study.manifest["data"],
        spans=study.manifest["spans"],
        claims=[_claim(line) for line in claims.iter_rows(named=True)],
        margin=float(study.settings["margin"]),
        remedies=[_remedy(line) for line in remedies.iter_rows(named=True)],
        charts=_charts(study.results),
        seeds=study.results["seed"].n_unique(),
        facts={"model": page.model_facts(model), "study": _facts(study)},
    )


def _claim(line: Mapping[str, Any]) -> LongClaim:
    value = line["estimate"]
    if value is None:
        estimate = "–"
    elif line["claim"] == 7:  # a level, not a difference
        estimate = f"{exact(value)} ({100 * line['ci_low']:.1f} to {100 * line['ci_high']:.1f})"
    else:
        estimate = points(value, line["ci_low"], line["ci_high"])
    remedy = "" if line["remedy"] is None else _NAMES[line["remedy"]]
    note, contrast = (str(line[name] or "").replace(" - ", " − ") for name in ("note", "contrast"))
    p = p_text(line["p_holm"])
    return LongClaim(line["claim"], line["text"], remedy, line["verdict"], estimate, contrast, p, note)


def _remedy(line: Mapping[str, Any]) -> dict[str, Any]:
    """Format a line of the comparison (`long_claims.REMEDIES`)."""
    shares = {name: line[name] for name in ("known_fitted", "new_fitted", "kept", "new_said")}
    away = None if line["difference"] is None else points(line["difference"], line["ci_low"], line["ci_high"])
    return {
        "share": f"{100 * line['share']:g} %",
        "remedy": _NAMES[line["remedy"]],
        "point": _POINTS[line["point"]],
        "epoch": f"{line['epoch']:.1f}",
        "rows": f"{line['train_rows']:,.0f}",
        **{name: "–" if value is None else exact(value) for name, value in shares.items()},
        "difference": away or "–",
    }


def _charts(results: pl.DataFrame) -> list[tuple[str, tuple[Markup, Markup]]]:
    """For the largest share, and each remedy of it: train spans fitted and test spans kept by epoch, mean of seeds."""
    if results.is_empty():
        return []
    share = results["share"].max()
    kinds = results.filter(pl.col("share") == share)["kind"].unique(maintain_order=True).to_list()
    charts = []
    for kind in kinds:
        own = results.filter((pl.col("share") == share) & (pl.col("kind") == kind))
        curves = [
            curve
            for curve in (
                _curve(own, "train", KNOWN, "Known spans, fitted:", "Known", COLOURS["MaybeKnown"]),
                _curve(own, "train", (NEW,), "new spans, fitted:", "new", COLOURS[UNKNOWN]),
                _curve(own, "test", (HIGHLY_KNOWN, MAYBE_KNOWN), "test spans kept:", "test kept", INK),
            )
            if curve.points
        ]
        if curves:
            name = _NAMES["none" if kind == "shares" else kind]
            charts.append((f"{100 * float(str(share)):g} % new, {name}", page.both(epochs_chart, curves, [])))
    return charts


def _curve(results: pl.DataFrame, name: str, labels: tuple[str, ...], text: str, short: str, colour: str) -> Curve:
    counted = (
        results.filter((pl.col("set") == name) & pl.col("label").is_in(labels))
        .group_by("seed", "epoch")
        .agg(share=pl.col("correct").sum() / pl.col("rows").sum())
        .group_by("epoch")
        .agg(pl.col("share").mean())
        .sort("epoch")
    )
    places = tuple((float(epoch), float(share)) for epoch, share in counted.iter_rows())
    return Curve(text, short, places, colour)


def _facts(study: LongStudyResult) -> list[page.Fact]:
    settings, seconds = study.settings, study.manifest["seconds"]
    tune = settings["tune"]
    lines = [
        ("data", study.manifest["data"], False),
        ("runs", f"{len(study.manifest.get('grid') or ()):,}", False),
        ("shares of new spans", ", ".join(f"{100 * share:g} %" for share in settings["unknown"]), False),
    ]
    names = [name for name in ("epochs", "learning_rate", "batch_size") if name in tune]
    lines += [(name.replace("_", " "), str(tune[name]), False) for name in names]
    if "runs" in seconds:
        lines.append(("training and measuring", rounded_duration(float(seconds["runs"])), False))
    return lines
