"""This module renders the page of a study of remedies from `remedies.html.j2`.

The page shows the recommendation, the recipes at the same share of new facts learnt, and what each learns and loses.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from markupsafe import Markup

from foreknow.config.remedies import RECIPES
from foreknow.format.numbers import rounded_duration, whole_percent
from foreknow.format.text import display, file_name, shown_path
from foreknow.report import page
from foreknow.report.charts import FILLS, INK, SOFT, UNKNOWN_INK
from foreknow.report.study_charts import DASHED, DOTTED, HALF, SOLID, Axes, ChartLine, ChartPosition, lines_chart
from foreknow.stages.remedies.matching import TARGETS
from foreknow.stages.remedies.recipes import RECIPE_FILE, recipe

if TYPE_CHECKING:
    from foreknow.stages.remedies.comparison import Comparison
    from foreknow.stages.remedies.result import RemediesResult

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
STYLES = (
    (INK, SOLID), (INK, DASHED), (FILLS[0], SOLID), (FILLS[1], SOLID), (FILLS[1], DASHED), (UNKNOWN_INK, SOLID),
    (UNKNOWN_INK, DASHED), (FILLS[1], DOTTED), (FILLS[2], DASHED), (FILLS[0], DASHED), (FILLS[0], DOTTED),
    (SOFT, SOLID), (SOFT, DASHED), (SOFT, DOTTED), (INK, DOTTED), (UNKNOWN_INK, DOTTED),
)  # fmt: skip
"""Colour and dash of each recipe's line, in the order of the recipes."""


_WITHOUT_AUDIT = frozenset({"plain", "average", "small-rate", "attention", "lora", "known-late", "flow"})
"""The recipes whose command needs no audit."""


class FirmnessTable(NamedTuple):
    """What recipes keep by how surely the model knew it. `bins`: headings; `lines`: recipe, then a cell a bin."""

    bins: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    sentence: str


class RecipeLine(NamedTuple):
    """A recipe at the share of the recommendation, in words. `kept_at`: what is kept at each of the shares compared."""

    name: str
    about: str
    command: str
    mark: str
    kept: str
    interval: str
    kept_at: tuple[str, ...]
    lost: str
    gained: str
    other: str
    canaries: str
    reworded: str
    made_up: str
    kl: str
    text: str
    cost: str
    memory: str
    rate: str
    seeds: str
    end: str


def render_remedies(study: RemediesResult, comparison: Comparison) -> str:
    """Render the whole page."""
    manifest = study.manifest
    model = dict(manifest.get("model") or {})
    advice = comparison.recommendation
    lines = [_line(name, study, comparison) for name in RECIPES if name in comparison.ends]
    return page.render(
        "remedies.html.j2",
        version=manifest.get("foreknow"),
        model=model,
        warning=page.warning_of(model),
        lead=lead(comparison, display(model.get("name") or "this model")),
        second=second(comparison),
        cautions=_cautions(study, comparison),
        target=whole_percent(advice.target),
        targets=[whole_percent(share) for share in TARGETS],
        lines=lines,
        has={
            "plain": "plain" in comparison.curves["recipe"],
            **{name: any(getattr(line, name) != "–" for line in lines) for name in ("other", "canaries", "reworded")},
        },
        firmness=firmness_table(comparison),
        retrieval=_retrieval(study.retrieval),
        chart=_chart(comparison.curves),
        panels=_panels(comparison.curves),
        command=_command(study, comparison),
        audit_use=_audit_use(comparison),
        right_before=_right_before(study),
        facts=_facts(study, model),
    )


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f} %"


def lead(comparison: Comparison, model: str) -> str:
    """Write the recommendation in one sentence or two."""
    advice = comparison.recommendation
    at = whole_percent(advice.target)
    if advice.recipe is None:
        if advice.best is None or (not advice.alike and advice.best.recipe != "plain"):
            return advice.reason
        kept = whole_percent(advice.best.kept.value)
        return f"{advice.reason} Where {at} of the new facts are learnt, the one that keeps the most keeps {kept}."
    best = advice.recipe
    text = (
        f"To teach {model} facts like these, take “{best.recipe}”: where it has learnt {at} of the new facts, it keeps "
        f"{whole_percent(best.kept.value)} of those it knew before"
    )
    own = comparison.table.filter((pl.col("recipe") == "plain") & (pl.col("learnt") == advice.target))
    return f"{text}; plain training keeps {whole_percent(own['kept'][0])}." if own.height else f"{text}."


def second(comparison: Comparison) -> str:
    """Write which recipes cannot be told from the best."""
    advice = comparison.recommendation
    if advice.recipe is None or not advice.alike:
        return ""
    return f"These runs cannot tell it from {_list(advice.alike)}."


def _list(names: tuple[str, ...]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _line(name: str, study: RemediesResult, comparison: Comparison) -> RecipeLine:
    advice, kl = comparison.recommendation, float(study.manifest["identity"]["kl"])
    own = {line["learnt"]: line for line in comparison.table.filter(pl.col("recipe") == name).to_dicts()}
    at = own.get(advice.target)
    end, cost = comparison.ends[name], comparison.costs[name]
    mark = ""
    if advice.recipe is not None:
        mark = "best" if name == advice.recipe.recipe else "not told from the best" if name in advice.alike else ""
    value = (at or {}).get
    lost = None if at is None else 1 - at["kept"]
    step = cost["step_seconds"]
    return RecipeLine(
        name=name,
        about=RECIPES[name],
        command=recipe(name, kl).flags,
        mark=mark,
        kept=whole_percent(value("kept")),
        interval=_interval(value("kept_low"), value("kept_high")),
        kept_at=tuple(_short(own.get(share)) for share in TARGETS),
        lost=whole_percent(lost),
        gained=whole_percent(value("known_gained")),
        other=whole_percent(value("other_kept")),
        canaries=whole_percent(value("canaries_kept")),
        reworded=whole_percent(value("reworded")),
        made_up=_made_up(value("refused"), value("attraction"), value("chance")),
        kl="–" if value("kl") is None else f"{value('kl'):.2f}",
        text="–" if value("text_loss") is None else f"{value('text_loss'):.2f}",
        cost="–" if step is None else f"{1000 * step:,.0f} ms",
        memory="–" if cost["memory_gib"] is None else f"{cost['memory_gib']:.1f} GiB",
        rate="–" if at is None else f"{at['rate']:g}",
        seeds=f"{at['seeds']} of {at['of_seeds']}" if at else f"0 of {end['seeds']}",
        end=f"{whole_percent(end['learnt'])} learnt, {whole_percent(end['known_kept'])} kept",
    )


def _short(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "–"
    few = "" if line["seeds"] == line["of_seeds"] else f" ({line['seeds']} of {line['of_seeds']} seeds)"
    return f"{whole_percent(line['kept'])}{few}"


def firmness_table(comparison: Comparison) -> FirmnessTable | None:
    """Write what is kept by how surely it was known, at the share of the recommendation; None with fewer than two bins.

    The sentence says that the least sure facts are lost first only where each recipe's intervals of the lowest and the
    highest bin lie apart, or for how many recipes they do.
    """
    own = comparison.firmness.filter(pl.col("learnt") == comparison.recommendation.target)
    bins = own.select("from", "to").unique().sort("from").rows()
    if len(bins) < 2:
        return None
    names = [name for name in RECIPES if name in set(own["recipe"])]
    cells = {(line["recipe"], line["from"]): line for line in own.to_dicts()}
    rows = {low: own.filter(pl.col("from") == low)["rows"][0] for low, _ in bins}
    apart = [name for name in names if _lies_below(cells.get((name, bins[0][0])), cells.get((name, bins[-1][0])))]
    return FirmnessTable(
        tuple(f"{_share_range(low, high)} of samples ({rows[low]:,} facts)" for low, high in bins),
        tuple((name, *(_kept_cell(cells.get((name, low))) for low, _ in bins)) for name in names),
        _firmness_sentence(len(apart), len(names)),
    )


def _share_range(low: float, high: float) -> str:
    if not low:
        return f"under {whole_percent(high)}"
    return f"{whole_percent(low)} and more" if high == 1 else f"{whole_percent(low)} to {whole_percent(high)}"


def _lies_below(low: Mapping[str, Any] | None, high: Mapping[str, Any] | None) -> bool:
    if low is None or high is None or low["kept_high"] is None or high["kept_low"] is None:
        return False
    return bool(low["kept_high"] < high["kept_low"])


def _kept_cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "–"
    interval = _interval(line["kept_low"], line["kept_high"])
    return f"{whole_percent(line['kept'])} ({interval})" if interval else whole_percent(line["kept"])


def _firmness_sentence(apart: int, recipes: int) -> str:
    if not apart:
        return "No recipe clearly keeps less of the facts that the model gave least surely."
    whom = "Every recipe keeps" if apart == recipes else f"{apart} of {recipes} recipes keep"
    return f"{whom} clearly less of the facts that the model gave least surely (the intervals lie apart)."


def _made_up(refused: float | None, attraction: float | None, chance: float | None) -> str:
    if refused is None:
        return "–"
    taken = "–" if attraction is None else f"{whole_percent(attraction)} (chance {whole_percent(chance)})"
    return f"{whole_percent(refused)} / {taken}"


def _retrieval(found: Mapping[str, Any]) -> str:
    """Write what the model answers with the fact in the prompt, without any training."""
    right, rows = found["new"]
    text = (
        f"with its own sentence before each question it answers {whole_percent(right / rows)} of the {rows:,} new facts"
    )
    if found.get("reworded"):
        others, of = found["reworded"]
        text += f", and {whole_percent(others / of)} of them in another wording"
    if 2 * right < rows:
        return f"Retrieval is no way out for this model: without any training, {text}."
    return (
        "If the facts change often, or if nothing old may be lost, put them into the prompt instead (retrieval): "
        f"without any training, {text}."
    )


def _lines_of(curves: pl.DataFrame, name: str) -> tuple[ChartPosition, ...]:
    own = curves.filter(pl.col("recipe") == name).sort("learnt")
    start = (ChartPosition(0.0, 0.0, 0.0, 0.0),) if own.height and own["learnt"][0] < 0.1 else ()
    places = own.select("learnt", "lost", "low", "high").iter_rows()
    return (*start, *(ChartPosition(*place) for place in places))


def _names(curves: pl.DataFrame) -> list[str]:
    present = set(curves["recipe"])
    return [name for name in RECIPES if name in present]


def _chart(curves: pl.DataFrame) -> tuple[Markup, Markup] | None:
    """Draw one line a recipe: known facts lost over new facts learnt."""
    lines = [
        ChartLine(name, name, _lines_of(curves, name), colour, dash, dots=False)
        for name, (colour, dash) in zip(RECIPES, STYLES, strict=True)
        if name in _names(curves)
    ]
    bare = [line._replace(places=tuple(place._replace(low=None, high=None) for place in line.places)) for line in lines]
    return page.both(lines_chart, bare, Axes("new facts learnt", TICKS)) if bare else None


def _panels(curves: pl.DataFrame) -> list[tuple[str, tuple[Markup, Markup]]]:
    """Draw each recipe with its interval, and plain training for comparison."""
    names = _names(curves)
    highest = max(curves["high"].drop_nulls().to_list(), default=1.0)
    axes = Axes("new facts learnt", TICKS, y=(0.0, min(1.0, highest + 0.05)))
    panels = []
    for name in names:
        lines = [ChartLine(name, name, _lines_of(curves, name), UNKNOWN_INK, band=True, dots=False)]
        if "plain" in names and name != "plain":
            plain = tuple(place._replace(low=None, high=None) for place in _lines_of(curves, "plain"))
            lines.append(ChartLine("plain", "plain", plain, SOFT, DOTTED, dots=False))
        drawn = Markup(lines_chart(lines, axes, HALF)), Markup(lines_chart(lines, axes, 330))
        panels.append((name, drawn))
    return panels


def _command(study: RemediesResult, comparison: Comparison) -> str:
    """Return the command that trains by the recommended recipe; "" if none is recommended."""
    best = comparison.recommendation.recipe
    if best is None:
        return ""
    known = "" if best.recipe in _WITHOUT_AUDIT else " --audit AUDIT"
    file = shlex.quote(str(Path(shown_path(study.folder) or study.folder.name) / RECIPE_FILE))
    return f"foreknow tune NEW --model MODEL{known} --config {file} --out RUN"


def _audit_use(comparison: Comparison) -> str:
    """Return what the command takes of an audit; "" if it takes none."""
    best = comparison.recommendation.recipe
    if best is None or best.recipe in _WITHOUT_AUDIT:
        return ""
    if best.recipe.startswith("kl-known-epoch"):
        return "whose HighlyKnown rows are trained on first, and whose rows of every category then hold the model"
    if best.recipe.startswith("kl-all"):
        return "whose rows of every category, where they are not in NEW, hold the model"
    if best.recipe.startswith("kl"):
        return "whose HighlyKnown rows hold the model"
    return "whose HighlyKnown rows may be trained on again"


def _cautions(study: RemediesResult, comparison: Comparison) -> list[str]:
    cautions = []
    seeds = study.points["seed"].n_unique()
    if seeds == 1:
        cautions.append(
            "There is one seed: no interval here says what another seed would give. Ask for more with --seeds."
        )
    sets = study.manifest["sets"]
    right = _right_before(study)
    if right < 100:
        cautions.append(f"Only {right} known facts are counted: small differences cannot be seen.")
    uneven = comparison.table.filter(pl.col("seeds") < pl.col("of_seeds"))
    if uneven.height:
        names = ", ".join(uneven["recipe"].unique(maintain_order=True))
        cautions.append(
            f"Some runs did not learn enough to be compared everywhere: {names}. Their means are of the rest."
        )
    if not (study.manifest.get("canaries") or {}).get("rows"):
        turned_off = study.manifest["identity"]["tune"].get("canaries") == "none"
        cautions.append(
            "No facts outside these rows' domain were watched, as canaries: none asks."
            if turned_off
            else "The model knows too few packaged facts to watch facts outside these rows' domain"
            + ("." if "other" in sets else "; name relations to hold out with --ood.")
        )
    return cautions


def _right_before(study: RemediesResult) -> int:
    """Return how many of the watched known facts were right before training; only these can be kept or lost."""
    watched = (study.manifest.get("watched") or {}).get("known") or {}
    return int(watched.get("before", study.manifest["sets"]["known"]))


def _facts(study: RemediesResult, model: Mapping[str, Any]) -> dict[str, list[page.Fact]]:
    manifest, settings = study.manifest, study.settings
    sets = manifest["sets"]
    labels = {
        "new": "new facts taught", "reworded": "of them in another wording", "known": "known facts watched",
        "other": "of relations held out", "replay": "known facts for replay", "hold": "rows that may hold the model",
        "dev": "dev",
    }  # fmt: skip
    shape = [(labels[name], f"{sets[name]:,}", False) for name in labels if name in sets]
    rates = sorted(set(study.points["rate"]), reverse=True)
    grid = [
        ("trainings", f"{study.costs.select('recipe', 'rate', 'seed').unique().height:,} curves", False),
        ("seeds", str(study.points["seed"].n_unique()), False),
        ("learning rates", ", ".join(f"{rate:g}" for rate in rates), False),
        ("data", file_name(settings.get("data")) or "–", False),
        ("relations held out", display(", ".join(map(str, settings.get("ood") or ())) or "none", 200), False),
    ]
    seconds = manifest.get("seconds") or {}
    cost = [
        (name, rounded_duration(float(seconds[key])), False)
        for key, name in (("audit", "audit"), ("all", "all"))
        if key in seconds
    ]
    return {
        "model": page.model_facts(model),
        "sets": shape,
        "grid": grid,
        "protocol": page.facts(manifest.get("protocol") or {}),
        "cost": cost,
    }
