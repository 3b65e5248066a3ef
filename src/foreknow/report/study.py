"""This module renders the page of a study from `study.html.j2`.

The page shows the scorecard of the paper's nine claims, then every figure and table of the paper as a chart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from foreknow import paper as paper_figures
from foreknow.categories import UNKNOWN
from foreknow.config import TuneConfig
from foreknow.format.numbers import exact, rounded_duration
from foreknow.format.text import display, file_name
from foreknow.report import page, study_tables, study_text
from foreknow.report.study_sections import sections
from foreknow.report.study_tables import p_text
from foreknow.report.study_text import points
from foreknow.stages.study.aggregation import ALL, LATE
from foreknow.stages.study.tables import all_tables

if TYPE_CHECKING:
    from foreknow.stages.study.result import StudyResult

SETTINGS = {
    "epochs": "epochs",
    "learning_rate": "learning rate",
    "batch_size": "rows per step",
    "dropout": "dropout",
    "method": "method",
    "metric": "metric that chose the epoch",
}


def render_study(study: StudyResult, tables: Mapping[str, pl.DataFrame] | None = None) -> str:
    """Render the whole page. `tables`: the tables of `stages.study.tables.all_tables`; computed here if None."""
    of = dict(tables or all_tables(study))
    config = study.settings
    model = dict(study.manifest.get("model") or {"name": config.get("model")})
    name = display(model.get("name") or "this model")
    parts, missing = sections(of, study.results)
    return page.render(
        "study.html.j2",
        version=study.manifest.get("foreknow"),
        model=model,
        warning=page.warning_of(model),
        lead=study_text.lead(of["claims"], name),
        second=" ".join(study_text.shares(of["differences"], "test")[:2]),
        claims=[_claim(line) for line in of["claims"].iter_rows(named=True)],
        margin=float(config.get("margin") or 0.02),
        cautions=_cautions(study.results, of),
        sections=parts,
        missing=missing,
        relations=study_tables.relations(study.relations),
        runs=study_tables.runs(study.results),
        facts=_facts(study, config, model),
        limits=_limits(study.results, config),
        paper=paper_figures.NAME,
        paper_model=paper_figures.MODEL,
    )


class ClaimRow(NamedTuple):
    """A line of the scorecard, in words. `part`: the part of the claim that the estimate is of, if it has several."""

    number: int
    text: str
    contrast: str
    verdict: str
    estimate: str
    part: str
    paper: str
    p: str
    detectable: str
    notes: tuple[str, ...]


def _claim(line: Mapping[str, Any]) -> ClaimRow:
    """Format a line of the claims table (`stages.study.claims.SCORECARD`)."""
    value, number = line["estimate"], int(line["claim"])
    if value is None:
        estimate = "–"
    elif number == 7:  # a level, not a difference
        estimate = f"{exact(value)} ({100 * line['ci_low']:.1f} to {100 * line['ci_high']:.1f})"
    else:
        estimate = points(value, line["ci_low"], line["ci_high"])
    note = _typeset(line["note"] or "")
    notes = [note] if line["verdict"] == "not tested" else [part for part in note.split("; ") if part]
    part_name = next((part.removeprefix("shown: ") for part in notes if part.startswith("shown: ")), "")
    return ClaimRow(
        number=number,
        text=_typeset(line["text"]),
        contrast=_typeset(line["contrast"]),
        verdict=line["verdict"],
        estimate=estimate,
        part=part_name,
        paper=study_text.papers(number),
        p=p_text(line["p_holm"]),
        detectable="–" if line["mde"] is None else f"{100 * line['mde']:.1f} points",
        notes=tuple(part for part in notes if not part.startswith("shown: ")),
    )


def _typeset(text: str) -> str:
    """Set minus signs, arrows and spaces before "%" as in print."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text.replace(" - ", " − ").replace(" -> ", " → "))
    return re.sub(r"(?<=\d)%", " %", text)


def _facts(study: StudyResult, config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, list[page.Fact]]:
    results = study.results
    grid = study.manifest.get("grid") or []
    counts = results.filter((pl.col("category") == ALL) & pl.col("set").is_in(["dev", "test", "ood"]))
    sets = counts.group_by("set", maintain_order=True).agg(pl.col("rows").max())
    shape = [
        ("runs", f"{len(grid):,}", False),
        ("training sets", f"{results['variant'].n_unique():,}", False),
        ("seeds", str(results["seed"].n_unique()), False),
        ("|D|", f"{_most(results, 'size'):,}", False),
        *((f"{name} rows", f"{rows:,}", False) for name, rows in sets.iter_rows()),
        ("data", file_name(config.get("data")) or "–", False),
        ("relations held out", ", ".join(map(str, config.get("ood") or ())) or "none", False),
    ]
    audit = _read(study, "audit/summary.json")
    seconds = dict(study.manifest.get("seconds") or {})
    cost = [("audit", audit.get("seconds")), ("all runs, one after the other", seconds.get("runs"))]
    return {
        "model": page.model_facts(model),
        "grid": [(label, display(value, 200), long) for label, value, long in shape],
        "settings": page.facts({name: _tune(config, name) for name in SETTINGS}, SETTINGS),
        "protocol": page.facts(audit.get("protocol") or {}),
        "cost": [(label, rounded_duration(float(value)), False) for label, value in cost if value is not None],
    }


def _most(results: pl.DataFrame, column: str) -> int:
    return int(results[column].to_numpy().max()) if results.height else 0


def _tune(config: Mapping[str, Any], name: str) -> Any:
    """A setting of the runs: the study's own, else the default of `foreknow tune`."""
    return (config.get("tune") or {}).get(name, TuneConfig.model_fields[name].default)


def _read(study: StudyResult, name: str) -> dict[str, Any]:
    """A JSON file of the study's folder; empty if it is missing."""
    path = study.folder / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _cautions(results: pl.DataFrame, of: Mapping[str, pl.DataFrame]) -> list[str]:
    """What a reader should know before relying on the scorecard."""
    cautions = []
    per = results.group_by("variant").agg(pl.col("seed").n_unique())["seed"]
    if len(per) and max(per) == 1:
        cautions.append("One seed: no interval here says what another seed would give. Ask for more with --seeds.")
    elif len(per) and min(per) < max(per):
        cautions.append(
            f"Some training sets have {min(per)} seeds, others {max(per)}: contrasts use the seeds that both sets have."
        )
    test = results.filter((pl.col("set") == "test") & (pl.col("category") == ALL))["rows"]
    if len(test) and (most := int(max(test))) < 1000:
        cautions.append(
            f"There are only {most:,} test rows, so differences of a few points cannot be told from chance."
        )
    ends = results.filter((pl.col("kind") == "shares") & pl.col("early_stop") & pl.col("convergence"))
    if ends.height:
        names = ", ".join(sorted(ends["variant"].unique()))
        cautions.append(f"The best epoch is the last one for {names}: longer training could still change the results.")
    of_d = of["fitted"].filter(pl.col("trained_on") == "D")
    late = of_d.filter((pl.col("point") == LATE) & (pl.col("part") == UNKNOWN))
    if late.height and min(late["em"]) < 0.9:
        cautions.append(
            f"At CONVERGENCE only {exact(min(late['em']))} of the Unknown rows are fitted in some training set; the "
            "paper trains until all are fitted."
        )
    return cautions


def _limits(results: pl.DataFrame, config: Mapping[str, Any]) -> list[str]:
    """The limits of the study, for the end of the page."""
    match = (
        "letter by letter" if _tune(config, "match") == "strict" else "without regard to case, punctuation and articles"
    )
    return [
        f"|D| is {_most(results, 'size'):,} and training lasts {_most(results, 'epoch')} epochs; the paper has "
        f"{paper_figures.SIZE:,} and {paper_figures.EPOCHS}. Levels of EM depend on "
        "model and data: compare signs and differences, not levels.",
        f"Short closed-book answers only, matched {match}; a right answer in other words counts as wrong.",
        "Unknown means not expressed under the protocol of the audit, not absent from the model.",
        "Dev EM chooses EARLY_STOP; dev is a set of other rows of the same relations.",
    ]
