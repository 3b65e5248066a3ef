"""Puts the paper's nine claims side by side, as the paper and our studies measured them: a table and a picture.

    python benchmarks/claims.py --picture docs/images/claims.svg

The studies are those committed in `docs/studies/`. Where a study cannot test a claim, another one of the same model may
(sets of one category, "I don't know"). Each claim is about one or more figures, with 95 % intervals over rows and
seeds; `foreknow.stages.study.contrasts` says what they are. Prints a Markdown table, and draws the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import altair as alt
import polars as pl
import vl_convert

from foreknow import paper
from foreknow.stages.study.claims import CLAIMS, evidence, verdict
from foreknow.stages.study.contrasts import ContrastPart, Evidence, StudyData
from foreknow.stages.study.result import open_study

STUDIES: Final[dict[str, tuple[str, ...]]] = {
    "fair lab": ("lab-fair", "lab-single-contested"),
    "SmolLM2-135M": ("smollm2", "smollm2-single"),
    "Gemma 3 270M": ("gemma", "gemma-single", "gemma-idk"),
}
"""By model, the folders below `docs/studies/`; the first one that tests a claim gives its figures."""
PAPER: Final = "paper"
COLOURS: Final = {PAPER: "#555555", "fair lab": "#0072b2", "SmolLM2-135M": "#d55e00", "Gemma 3 270M": "#009e73"}
SHAPES: Final = {PAPER: "diamond", "fair lab": "circle", "SmolLM2-135M": "square", "Gemma 3 270M": "triangle-up"}
SHORT: Final = {
    1: "1 more Unknown rows, lower EM",
    2: "2 the damage needs long training",
    3: "3 Unknown rows are fitted later",
    4: "4 Known rows help, Unknown rows harm",
    5: "5 the same on unseen relations, less",
    6: "6 MaybeKnown is the best category",
    7: "7 Unknown test facts stay wrong",
    8: "8 without Unknown rows no harm, no loss",
    9: "9 “I don’t know” keeps accuracy",
}
WIDTH: Final = 280
WIDE: Final = 270
"""Pixels of a panel of the picture, and of the names beside it."""
CAPTION: Final = (
    "Points of exact match (claim 3: of rows fitted), 95 % intervals. Green: the side on which the claim holds."
)


class Line(NamedTuple):
    """A figure of a claim, in points: whose it is, what it is, its interval (None: the paper), and its reference.

    `above`: the claim says that the figure lies above its reference; else below it.
    """

    claim: int
    part: str
    model: str
    value: float
    low: float | None
    high: float | None
    reference: float
    above: bool


def evidence_of(folders: Sequence[Path]) -> dict[int, Evidence]:
    """Return each claim's evidence from the first of the studies that tests it."""
    found: dict[int, Evidence] = {}
    for folder in folders:
        study = open_study(folder)
        for number, one in evidence(StudyData.of(study.results, study.outcomes), CLAIMS).items():
            if isinstance(one, Evidence):
                found.setdefault(number, one)
    return found


def lines_of(claim: int, parts: Mapping[str, Sequence[ContrastPart]], theirs: Mapping[str, float]) -> list[Line]:
    """Return a claim's figures, those of one part together. `parts`: by model. `theirs`: the paper's, by part."""
    names = list(dict.fromkeys(part.name for own in parts.values() for part in own))
    lines = []
    for name in names:
        own = {model: part for model, some in parts.items() for part in some if part.name == name}
        first = next(iter(own.values()))
        side = (100 * first.reference, first.above)
        lines.append(Line(claim, name, PAPER, 100 * theirs[name], None, None, *side))
        lines += [
            Line(claim, name, model, 100 * part.value, 100 * part.low, 100 * part.high, *side)
            for model, part in own.items()
        ]
    return lines


def table(lines: Sequence[Line], verdicts: Mapping[tuple[int, str], str]) -> str:
    """Return the Markdown table: a row for each figure, a column for each model, the verdict at a claim's first."""
    models = list(STUDIES)
    rows = [f"| claim, in points | paper | {' | '.join(models)} |", f"|{'---|' * (len(models) + 2)}"]
    seen: set[int] = set()
    for key in dict.fromkeys((line.claim, line.part) for line in lines):
        own = {line.model: line for line in lines if (line.claim, line.part) == key}
        first = key[0] not in seen
        seen.add(key[0])
        several = len({line.part for line in lines if line.claim == key[0]}) > 1
        name = f"**{SHORT[key[0]]}**" if first else ""
        cells = [f"{name}{': ' * (first and several)}{key[1] * several}"]
        cells.append(f"{own[PAPER].value:+.1f}")
        for model in models:
            said = f"**{verdicts.get((key[0], model), 'not tested')}**" if first else ""
            line = own.get(model)
            figure = f"{line.value:+.1f} ({line.low:+.1f} to {line.high:+.1f})" if line else ""
            cells.append(": ".join(part for part in (said, figure) if part))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def picture(lines: Sequence[Line]) -> alt.ConcatChart:
    """Return the picture: a panel for each claim, with a scale of its own; figures, intervals, and what they are."""
    models = [PAPER, *STUDIES]
    colour = alt.Color("model:N", scale=alt.Scale(domain=models, range=[COLOURS[m] for m in models]), title=None)
    shape = alt.Shape("model:N", scale=alt.Scale(domain=models, range=[SHAPES[m] for m in models]), title=None)
    panels = []
    for claim in dict.fromkeys(line.claim for line in lines):
        own = pl.DataFrame([line for line in lines if line.claim == claim], schema=Line._fields, orient="row")
        parts, title = own["part"].unique(maintain_order=True).to_list(), SHORT[claim]
        labels = alt.Axis(labelLimit=WIDE, minExtent=WIDE, maxExtent=WIDE, title=None, ticks=False, domain=False)
        place = alt.Y("part:N", sort=parts, axis=labels, scale=alt.Scale(paddingInner=0.35))
        x = alt.X("value:Q", title=None, scale=alt.Scale(zero=True))
        each = alt.Chart(own).encode(y=place)
        base = each.encode(yOffset=alt.YOffset("model:N", sort=models, scale=alt.Scale(domain=models)))
        sides = [
            each.transform_filter(f"datum.model == '{PAPER}' && {'' if above else '!'}datum.above")
            .mark_rect(color="#e6f2e6")
            .encode(x=alt.X("reference:Q", title=None), x2=alt.value(WIDTH if above else 0))
            for above in (True, False)
        ]
        panels.append(
            alt.layer(
                *sides,
                base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q", color=colour),
                base.mark_point(filled=True, size=60, opacity=1).encode(x=x, color=colour, shape=shape),
            ).properties(width=WIDTH, height=66 * len(parts), title=alt.Title(title, anchor="start", fontSize=13))
        )
    joined = alt.concat(*panels, columns=2, spacing=26).resolve_scale(x="independent", y="independent")
    joined = joined.properties(title=alt.Title(CAPTION, anchor="start", fontSize=13, fontWeight="normal"))
    return joined.configure_legend(orient="top", labelFontSize=13).configure_view(stroke="#dddddd")


def main() -> None:
    """Print the table, and draw the picture where one is asked for."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--studies", type=Path, default=Path("docs/studies"), help="the folder of the studies")
    asked.add_argument("--picture", type=Path, help="the file of the picture (.svg)")
    options = asked.parse_args()
    found = {model: evidence_of([options.studies / name for name in names]) for model, names in STUDIES.items()}
    lines, verdicts = [], {}
    for claim in CLAIMS:
        tested = {model: own[claim.number] for model, own in found.items() if claim.number in own}
        lines += lines_of(
            claim.number, {model: one.parts for model, one in tested.items()}, paper.contrast(claim.number)
        )
        verdicts |= {(claim.number, model): verdict(one.parts) for model, one in tested.items()}
    print(table(lines, verdicts))
    if options.picture is not None:
        options.picture.write_text(vl_convert.vegalite_to_svg(picture(lines).to_json()), encoding="utf-8")


if __name__ == "__main__":
    main()
