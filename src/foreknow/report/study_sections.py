"""This module builds the sections of a study's page, one for each figure or table of the paper.

A section has sentences on what the charts show, the charts, and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import polars as pl
from markupsafe import Markup

from foreknow import paper
from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.report import page, study_charts, study_tables, study_text
from foreknow.report.charts import FILLS, NARROW, SOFT, UNKNOWN_INK
from foreknow.report.study_charts import DASHED, DOTTED, HALF, SOLID, Axes, Bar, ChartLine, ChartPosition
from foreknow.report.study_tables import SETS, TERMS, TextTable, at, whole
from foreknow.stages.study.aggregation import ALL, ALL_KNOWN, EARLY, LATE, POINTS

Tables = Mapping[str, pl.DataFrame]
Chart = tuple[Markup, Markup]
WITH_UNKNOWN, WITHOUT = UNKNOWN_INK, FILLS[1]
"""The colours of D, which has Unknown rows, and of D_Known, which has none; also those of Unknown and Known rows."""
STYLES = {
    ("D", EARLY): ("D, EARLY_STOP", "D, early", WITH_UNKNOWN, DASHED),
    ("D", LATE): ("D, CONVERGENCE", "D, conv.", WITH_UNKNOWN, SOLID),
    ("D_Known", EARLY): ("D_Known, EARLY_STOP", "D_Known, early", WITHOUT, DASHED),
    ("D_Known", LATE): ("D_Known, CONVERGENCE", "D_Known, conv.", WITHOUT, SOLID),
}
SHARES = tuple(share / 100 for share in paper.SHARES)
THEIRS = f"The paper, {paper.MODEL}"
X = "Unknown share of D"
TESTS = (
    " In the table of contrasts, “rows and seeds” resamples both; the paper's test splits the shuffled rows into 100 "
    "parts (median p of 200 shuffles); McNemar's test is exact and for one seed. The last two say nothing about other "
    "seeds."
)


class Section(NamedTuple):
    """A section of the page.

    `about`: how to read it. `charts`: title (may be empty) and chart. `sheets`: title and table. `files`: names of
    its CSV files. `bars`: label, and the shares of right, wrong and refused rows.
    """

    id: str
    title: str
    about: str
    sentences: tuple[str, ...]
    charts: tuple[tuple[str, Chart], ...]
    sheets: tuple[tuple[str, TextTable], ...]
    files: tuple[str, ...]
    note: str = ""
    bars: tuple[tuple[str, tuple[float, float, float]], ...] = ()


def sections(of: Tables, results: pl.DataFrame) -> tuple[list[Section], list[str]]:
    """Build every section that the study has runs for; for each of the others, a line on what it would need."""
    parts: tuple[tuple[str, str, Callable[[], Section]], ...] = (
        (
            "curves",
            "Train and dev curves (Figure 1) need a share between 0 and 1 in the setting unknown.",
            partial(_curves, of),
        ),
        ("shares", "EM by Unknown share (Figure 3) needs shares in the setting unknown.", partial(_shares, of, "test")),
        ("fitted", "Rows fitted at EARLY_STOP (Figure 4) need shares in the setting unknown.", partial(_fitted, of)),
        (
            "linear",
            "The linear model (Table 1) needs several shares in the setting unknown, and is better with known too.",
            partial(_linear, of),
        ),
        (
            "single",
            "Sets of one category (Table 2) need the setting only, and the setting natural for the natural mix.",
            partial(_single, of),
        ),
        (
            "ood",
            "EM on unseen relations needs shares in the setting unknown, and relations held out.",
            partial(_shares, of, "ood"),
        ),
        (
            "sweep",
            "SliCK against P(True) needs the setting natural, or shares in unknown, and the setting p_true.",
            partial(_sweep, of, results),
        ),
        ("refusals", "Refusing needs a share in the setting idk.", partial(_refusals, of)),
    )
    available = [make() for name, _, make in parts if not of[name].is_empty()]
    return available, [requirement for name, requirement, _ in parts if of[name].is_empty()]


def half(lines: Sequence[ChartLine], axes: Axes) -> Chart:
    """Draw a chart twice: for half of a wide screen, and for a narrow screen."""
    wide, narrow = (study_charts.lines_chart(lines, axes, width) for width in (HALF, NARROW))
    return Markup(wide), Markup(narrow)


def _curves(of: Tables) -> Section:
    table = of["curves"]
    last = max(table["epoch"])
    axes = Axes("epoch", tuple(float(tick) for tick in epochs(last)), is_share=False)
    train = [
        ChartLine(f"{part} rows", part, places, colour, band=True)
        for part, colour in ((ALL_KNOWN, WITHOUT), (UNKNOWN, WITH_UNKNOWN))
        if (places := _over_epochs(table, "D", part.lower()))
    ]
    dev = [
        ChartLine(label, short, places, colour, dash, band=True)
        for on, label, short, colour, dash in (
            ("D", "D", "D", WITH_UNKNOWN, SOLID),
            ("D_Known", "its Known rows alone", "D_Known", WITHOUT, DASHED),
        )
        if (places := _over_epochs(table, on, "dev"))
    ]
    charts = [("Train rows of D fitted", half(train, axes._replace(y=(0.0, 1.0))))] if train else []
    charts += [("Dev EM", half(dev, axes))] if dev else []
    share = "half" if table["share"][0] == 0.5 else whole(table["share"][0])
    return Section(
        "curves",
        "Known rows first, Unknown rows late",
        f"The paper's Figure 1: {share} of D is Unknown. A row is fitted if the model gives the row's own answer. "
        "Shaded: the range over seeds, from smallest to largest.",
        tuple(study_text.curves(table, of["shares"])),
        tuple(charts),
        (("Epoch by epoch", study_tables.curves(table)),),
        ("curves",),
        "The paper trains 50 epochs at a learning rate of 1e-5: compare the shape of its curves with ours, not single "
        "epochs.",
    )


def epochs(last: int) -> list[int]:
    """About ten ticks for an axis of epochs that ends at `last`."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, last) if last / s <= 10)
    return [1, *range(max(step, 2), last + 1, step)] if last > 1 else [1, 2]


def _over_epochs(table: pl.DataFrame, on: str, measure: str) -> tuple[ChartPosition, ...]:
    of = table.filter((pl.col("trained_on") == on) & (pl.col("measure") == measure)).sort("epoch")
    return _places(of.select("epoch", "value", "seed_min", "seed_max"))


def _places(frame: pl.DataFrame) -> tuple[ChartPosition, ...]:
    return tuple(ChartPosition(*line) for line in frame.iter_rows())


def _share_axes(shares: Sequence[float], y: tuple[float, float] | None = None) -> Axes:
    ticks = tuple(sorted(set(shares)))
    return Axes(X, ticks if len(ticks) > 1 else (0.0, 1.0), y=y)


def _shares(of: Tables, name: str) -> Section:
    file = "shares" if name == "test" else "ood"
    every = of[file].filter(pl.col("category") == ALL)
    ours, axes = _by_share(every), _share_axes(every["share"].to_list())
    charts = [("Here", half(ours, axes))] if name == "test" else [("", page.both(study_charts.lines_chart, ours, axes))]
    if name == "test":
        title = "More Unknown rows, lower EM?"
        about = (
            "The paper's Figure 3: test EM by the share of Unknown rows in D. D_Known is the same D without them, so "
            "it has fewer rows. Whiskers: 95 % intervals (rows and seeds resampled). All lines are for the same rows, "
            "so their differences are more certain than the whiskers suggest."
        )
        charts.append((THEIRS, half(_theirs(), _share_axes(SHARES))))
        note = study_text.figure_note([paper.exact_match("D", 0.25, EARLY)]) + TESTS
    else:
        title = "Relations that no training set has"
        about = (
            "The same chart for relations held out of training. The paper draws this chart and prints no figures "
            "for it."
        )
        note = ""
    tables = [
        ("By Unknown share", study_tables.by_share(every, paper=name == "test")),
        ("By category of the test rows", study_tables.by_category(of[file])),
    ]
    tests = study_tables.contrasts(of["differences"], name)
    tables += [("Every contrast, tested three ways", tests)] if tests.lines else []
    sentences = tuple(study_text.shares(of["differences"], name))
    return Section(file, title, about, sentences, tuple(charts), tuple(tables), (file, "differences"), note)


def _by_share(every: pl.DataFrame) -> list[ChartLine]:
    """A line for D and for D_Known at each point; fixed epochs of D are dotted. At 0 % Unknown, D_Known is D itself."""
    lines = []
    for (on, point), (label, short, colour, dash) in STYLES.items():
        here = every.filter(pl.col("point") == point)
        of = here.filter(pl.col("trained_on") == on)
        if on == "D_Known" and of.height:
            of = pl.concat([here.filter((pl.col("trained_on") == "D") & (pl.col("share") == 0)), of])
        if of.height:
            lines.append(
                ChartLine(
                    label, short, _places(of.sort("share").select("share", "em", "ci_low", "ci_high")), colour, dash
                )
            )
    for point in every["point"].unique(maintain_order=True):
        of = every.filter((pl.col("trained_on") == "D") & (pl.col("point") == point)).sort("share")
        if point not in POINTS and of.height:
            lines.append(ChartLine(f"D, {point}", point, _places(of.select("share", "em")), SOFT, DOTTED))
    return lines


def _theirs() -> list[ChartLine]:
    """The lines of the paper's Figure 3."""
    lines = []
    for (on, point), series in paper.TEST_EM.items():
        label, short, colour, dash = STYLES.get((on, point), (f"{on}, {point}", point, SOFT, DOTTED))
        lines.append(ChartLine(label, short, _read_off(series), colour, dash))
    return lines


def _read_off(series: Sequence[float | None]) -> tuple[ChartPosition, ...]:
    """The points of a series of the paper (%) over its Unknown shares."""
    pairs = zip(SHARES, series, strict=True)
    return tuple(ChartPosition(share, value / 100) for share, value in pairs if value is not None)


def _fitted(of: Tables) -> Section:
    table = of["fitted"].filter(pl.col("trained_on") == "D")
    early = table.filter(pl.col("point") == EARLY).sort("share")
    ours, theirs = [], []
    for part, colour in ((ALL_KNOWN, WITHOUT), (UNKNOWN, WITH_UNKNOWN)):
        values = early.filter(pl.col("part") == part).select("share", "em", "ci_low", "ci_high")
        if values.height:
            ours.append(ChartLine(f"{part} rows", part, _places(values), colour))
        theirs.append(ChartLine(f"{part} rows", part, _read_off(paper.FITTED[part]), colour))
    whole = (0.0, 1.0)
    charts = [("Here", half(ours, _share_axes(early["share"].to_list(), whole)))] if ours else []
    return Section(
        "fitted",
        "Rows fitted at EARLY_STOP",
        "The paper's Figure 4: the share of each part of D that is fitted at EARLY_STOP. Whiskers: 95 % intervals "
        "(Wilson) over the rows of all seeds.",
        tuple(study_text.fitted(of["fitted"])),
        (*charts, (THEIRS, half(theirs, _share_axes(SHARES, whole)))),
        (("Rows fitted at the two points", study_tables.fitted(table)),),
        ("fitted",),
        study_text.figure_note([paper.fitted(ALL_KNOWN, 0.5)]),
    )


def _linear(of: Tables) -> Section:
    table = of["linear"]
    own = table.filter(
        (pl.col("fit") == "from epoch 1") & (pl.col("coefficient") != "b0") & pl.col("value").is_not_null()
    )
    bars = [
        Bar(
            f"{TERMS[line['coefficient']]}, {SETS[line['set']]}",
            *(line["value"], line["ci_low"], line["ci_high"], line["paper"]),
            short=f"{line['coefficient']}, {'test' if line['set'] == 'test' else 'unseen'}",
        )
        for line in own.iter_rows(named=True)
    ]
    title = "points of EM"
    draw = partial(study_charts.intervals_chart, bars, title, zero=True)
    return Section(
        "linear",
        "EM from the rows fitted",
        "The paper's Table 1: EM = b0 + b_kn · (Known rows fitted / |D|) + b_unk · (Unknown rows fitted / |D|), with "
        "one point per epoch of every D and D_Known. A coefficient is the change of EM if all of D were rows of that "
        "kind and fitted. Errors are clustered by run, because the epochs of a run are alike. Hollow: the paper.",
        (*study_text.linear(table, "test"), *study_text.linear(table, "ood")),
        (("", page.both(draw)),) if bars else (),
        (("All coefficients", study_tables.linear(table)),),
        ("linear",),
        "Intervals: CR2 with Satterthwaite degrees of freedom. “The paper's 14 "
        "points” is our fit to the points that can be read off its figures; its Table 1 uses every epoch.",
    )


def _single(of: Tables) -> Section:
    table = of["single"].filter(pl.col("point").is_in(POINTS))
    bars = [
        Bar(line["trained"], line["em"], line["ci_low"], line["ci_high"], line["paper"], line["point"] == LATE)
        for line in table.filter(pl.col("category") == ALL).iter_rows(named=True)
    ]
    tables = [("By category of the test rows, with the paper's figures below", study_tables.single(table))]
    tests = study_tables.contrasts(of["differences"], "test", ("single category",))
    tables += [("MaybeKnown rows against the others, tested three ways", tests)] if tests.lines else []
    return Section(
        "single",
        "Which rows are worth training on",
        "The paper's Table 2: sets of one category alone, and the natural mix, judged on all test rows. Circles: "
        "EARLY_STOP; squares: CONVERGENCE; hollow: the paper; whiskers: 95 % intervals (rows and seeds resampled).",
        tuple(study_text.single(table, of["differences"])),
        (("", page.both(study_charts.intervals_chart, bars, "test EM")),),
        tuple(tables),
        ("single", "differences"),
        study_text.figure_note([paper.single(HIGHLY_KNOWN, EARLY)]),
    )


def _sweep(of: Tables, results: pl.DataFrame) -> Section:
    table = of["sweep"]
    own = table.filter(pl.col("score") == "SliCK")
    lines = []
    for score, setting, label, colour in (
        ("P(True)", "", "P(True)", WITH_UNKNOWN),
        ("p_hit", own["setting"][0] if own.height else "", "p_hit", WITHOUT),
    ):
        # a share below 2 % has too few rows to say anything
        has_share = (pl.col("score") == score) & (pl.col("setting") == setting) & (pl.col("share") >= 0.02)
        places = _places(table.filter(has_share).drop_nulls("em").sort("share").select("share", "em"))
        if places:
            lines.append(ChartLine(label, label, places, colour, dots=False))
    crosses = _places(own.drop_nulls("em").select("share", "em"))
    variant = str(table["variant"][0])
    training_set = "the natural mix" if variant == "natural" else f"{variant}, because the study has no natural mix"
    return Section(
        "sweep",
        "Which score finds the rows that stay wrong",
        f"Rows that a score calls Unknown should be wrong after training ({training_set}, at CONVERGENCE). Further to "
        "the right, the score calls more rows Unknown; the lower the line, the better the score. Cross: SliCK's own "
        "label; circles: its label with fewer exemplar sets or samples; p_hit: the same label as a score.",
        tuple(study_text.sweep(table, results.filter(pl.col("variant") == variant)["seed"].n_unique())),
        (("", page.both(study_charts.sweep_chart, lines, crosses)),) if lines else (),
        (("SliCK's label by budget", study_tables.sweep(own)),),
        ("sweep",),
        "Every row counts once per seed.",
    )


def _refusals(of: Tables) -> Section:
    table = of["refusals"]
    bars = [
        (
            f"{line['trained_on']}, {whole(line['share'])} Unknown, {at(line['point'])}",
            (line["yield"], max(0.0, line["coverage"] - line["yield"]), 1 - line["coverage"]),
        )
        for line in table.filter(pl.col("point").is_in(POINTS)).iter_rows(named=True)
    ]
    return Section(
        "refusals",
        "Saying “I don't know”",
        "The Unknown rows of D keep their questions and get a refusal as their answer (D_IDK). Accuracy on the answers "
        "given may stay the same while the model gives fewer, so the bars show right, wrong and refused rows together. "
        "Bars: all test rows.",
        tuple(study_text.refusals(table)),
        (),
        (("In numbers, with the paper's figures below", study_tables.refusals(table)),),
        ("refusals",),
        "For runs whose refusals were not counted (D), the table assumes none." if not table["measured"].all() else "",
        tuple(bars),
    )
