"""This module writes the sentences of a study's page: what each chart shows, and what the paper has.

Its functions have no side effects. A sentence states a difference only if its 95 % interval lies entirely on one
side of 0; otherwise it says that the two do not clearly differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from foreknow import paper
from foreknow.categories import HIGHLY_KNOWN, UNKNOWN
from foreknow.format.numbers import exact
from foreknow.paper import Figure
from foreknow.stages.study.aggregation import ALL, EARLY, LATE, POINTS
from foreknow.stages.study.score_sweep import em_at
from foreknow.stats import wilson

NAMES = {EARLY: "EARLY_STOP", LATE: "CONVERGENCE"}
Row = Mapping[str, Any]


def signed(share: float) -> str:
    """A difference of shares (0 to 1) in points with its sign: −3.1."""
    text = f"{abs(100 * share):.1f}"
    return text if text == "0.0" else f"{'−' if share < 0 else '+'}{text}"


def points(share: float, low: float | None = None, high: float | None = None) -> str:
    """A difference in points, with its interval if it has one: −3.1 points (−4.5 to −1.7)."""
    ends = "" if low is None or high is None else f" ({signed(low)} to {signed(high)})"
    return f"{signed(share)} points{ends}"


def moved(line: Row) -> str:
    """A contrast in words; whether it is called a difference depends on its interval."""
    value, low, high = line["difference"], line["ci_low"], line["ci_high"]
    if low > 0 or high < 0:
        ends = sorted((abs(low), abs(high)))
        way = "higher" if low > 0 else "lower"
        return f"is {way} by {abs(100 * value):.1f} points ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return f"does not clearly differ ({signed(value)} points, {signed(low)} to {signed(high)})"


def find(frame: pl.DataFrame, **values: Any) -> Row | None:
    """The first line of a frame with these values; None if there is none."""
    rows = frame.filter(*(pl.col(name) == value for name, value in values.items()))
    return rows.row(0, named=True) if rows.height else None


def lead(claims: pl.DataFrame, model: str) -> str:
    """The scorecard in one sentence."""
    counts = {name: int((claims["verdict"] == name).sum()) for name in ("holds", "fails", "not decided", "not tested")}
    test_count = 9 - counts["not tested"]
    if test_count == 0:
        return f"None of the paper's nine claims could be tested on {model} with these runs."
    parts = [f"{counts['holds'] or 'none'} {'hold' if counts['holds'] > 1 else 'holds'}"]
    parts.append(f"{counts['fails'] or 'none'} {'fail' if counts['fails'] > 1 else 'fails'}")
    parts.append(f"{counts['not decided'] or 'none'} {'are' if counts['not decided'] > 1 else 'is'} left open")
    untested = f" {_number(counts['not tested'])} could not be tested." if counts["not tested"] else ""
    of = (
        "the paper's nine claims"
        if test_count == 9
        else f"the {test_count} of the paper's nine claims that were tested"
    )
    return f"Of {of}, on {model} {', '.join(parts[:2])}, and {parts[2]} by these rows and seeds.{untested}"


def _number(count: int) -> str:
    return ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")[count]


_PAPERS = {
    1: ("{} from no to all Unknown",),
    2: ("at EARLY_STOP {}", "at CONVERGENCE {}"),
    3: ("{}",),
    4: ("b_kn {}, b_unk {}",),
    5: ("b_kn {}, b_unk {}",),
    6: ("less HighlyKnown {}", "less WeaklyKnown {}", "less Unknown {}"),
    8: ("at CONVERGENCE, against D at EARLY_STOP {}", "at CONVERGENCE {}"),
}
"""The words around the paper's figures for a claim, in the order of `paper.contrast`."""


def papers(number: int) -> str:
    """The paper's value for a claim (1 to 9), in the claim's own contrast."""
    figures = list(paper.contrast(number).values())
    if number == 7:
        return f"at most {exact(figures[0])}"
    if number == 9:
        return f"{points(figures[0])} ({paper.REFUSALS['D_IDK', EARLY][0]:.1f} % at both)"
    return "; ".join(_PAPERS[number]).format(*map(points, figures))


def curves(table: pl.DataFrame, shares: pl.DataFrame) -> list[str]:
    """The sentences on Figure 1. `table`: its curves. `shares`: EM by Unknown share, for the epoch of EARLY_STOP."""
    mixed = table.filter(pl.col("trained_on") == "D")
    variant, share = mixed.row(0, named=True)["variant"], mixed["share"][0]
    early = find(shares, variant=variant, point=EARLY, category=ALL)
    last = int(mixed["epoch"].max())  # type: ignore[arg-type]
    best = round(early["epoch"]) if early else last
    sentences = []
    by = {name: _by_epoch(mixed, name) for name in ("known", "unknown", "dev")}
    if by["known"] and by["unknown"]:
        of = "half" if share == 0.5 else exact(share)
        first, end = ({k: by[k].get(at) for k in ("known", "unknown")} for at in (best, last))
        sentences.append(
            f"With {of} of D Unknown, {share_text(first['known'])} of the Known rows and "
            f"{share_text(first['unknown'])} of the Unknown ones are fitted at EARLY_STOP (epoch {best}), and "
            f"{share_text(end['known'])} and {share_text(end['unknown'])} at CONVERGENCE (epoch {last}). {_halves(by)}"
        )
    if by["dev"]:
        peak = max(by["dev"].values())
        text = f"Dev EM is {share_text(peak)} at its best and {share_text(by['dev'].get(last))} at the end"
        control = _by_epoch(table.filter(pl.col("trained_on") == "D_Known"), "dev")
        if control:
            text += f"; trained on its Known rows alone, {share_text(max(control.values()))} and "
            text += share_text(control[max(control)])
        sentences.append(f"{text}.")
    return sentences


def _by_epoch(table: pl.DataFrame, measure: str) -> dict[int, float]:
    of = table.filter(pl.col("measure") == measure).sort("epoch")
    return dict(of.select("epoch", "value").iter_rows())


def _halves(by: Mapping[str, Mapping[int, float]]) -> str:
    """The first epochs at which half of the Known and half of the Unknown rows are fitted."""
    ends = {name: next((e for e, v in by[name].items() if v >= 0.5), None) for name in ("known", "unknown")}
    known, unknown = ends["known"], ends["unknown"]
    if known is None:
        return "Half of the Known rows are never fitted."
    if unknown is None:
        return f"Half of the Known rows are fitted by epoch {known}, half of the Unknown ones never."
    return f"Half of the Known rows are fitted by epoch {known}, half of the Unknown ones by epoch {unknown}."


def share_text(value: float | None) -> str:
    """A share (0 to 1) in per cent; a dash for None."""
    return "–" if value is None else exact(value)


def shares(differences: pl.DataFrame, name: str) -> list[str]:
    """The sentences on Figure 3 for the set `name`.

    They compare the most Unknown rows with none, the same D with and without them, and EARLY_STOP with CONVERGENCE.
    """
    of = differences.filter(pl.col("set") == name)
    words = _set(name)
    sentences = []
    most = of.filter(pl.col("contrast") == "share")
    if most.height:
        second = most.filter(pl.col("second_point") == LATE)["second"][-1]
        lines = [find(most, second=second, second_point=point) for point in POINTS]
        sentences.append(
            f"With {_percent(second)} of D Unknown instead of {_percent(most['first'][0])}, {words} {_both(lines)}."
            + _paper(lines)
        )
    dropped = of.filter(pl.col("contrast") == "without Unknown")
    if dropped.height:
        second = min(dropped["first"].unique().sort(), key=lambda v: abs(float(v.split("-")[-1]) - 50))
        lines = [find(dropped, first=second, second_point=point) for point in POINTS]
        sentences.append(
            f"Without the Unknown rows of the D that has {_percent(second)} Unknown, {words} {_both(lines)}."
            + _paper(lines)
        )
    on = of.filter((pl.col("contrast") == "training on") & pl.col("first").str.starts_with("unknown-"))
    if on.height:
        worst = on.sort("difference").row(0, named=True)
        sentences.append(
            f"Further training from EARLY_STOP to CONVERGENCE costs most with {_percent(worst['first'])} Unknown: "
            f"{words} {moved(worst)}"
            + (
                f"; in the paper by about {100 * paper.DROP[name]:.0f} points at most."
                if worst["ci_high"] < 0
                else f"; the paper has a fall of about {100 * paper.DROP[name]:.0f} points at most."
            )
        )
    return sentences


def _both(lines: Iterable[Row | None]) -> str:
    parts = [f"{moved(line)} at {NAMES[line['second_point']]}" for line in lines if line]
    return " and ".join(parts)


def _paper(lines: Iterable[Row | None]) -> str:
    values = [line["paper"] for line in lines if line and line["paper"] is not None]
    return f" In the paper: {' and '.join(signed(v) for v in values)} points." if values else ""


def _percent(variant: str) -> str:
    """The share in a variant's name: unknown-50 -> 50 %."""
    return f"{variant.rsplit('-', maxsplit=1)[-1]} %"


def fitted(table: pl.DataFrame) -> list[str]:
    """The sentences on Figure 4."""
    of = table.filter((pl.col("trained_on") == "D") & (pl.col("point") == EARLY))
    parts = []
    for part in ("Known", UNKNOWN):
        values = of.filter(pl.col("part") == part)["em"]
        if len(values):
            theirs = [v for v in paper.FITTED[part] if v is not None]
            ours = f"{exact(min(values))} to {exact(max(values))}" if len(values) > 1 else exact(values[0])
            parts.append(f"{ours} of the {part} rows (the paper: {min(theirs):g} to {max(theirs):g} %)")
    return [f"Over these training sets, {' and '.join(parts)} are fitted at EARLY_STOP."] if parts else []


def linear(table: pl.DataFrame, name: str) -> list[str]:
    """The sentences on Table 1 for the set `name`."""
    terms = {c: find(table, set=name, fit="from epoch 1", coefficient=c) for c in ("b_kn", "b_unk")}
    if not all(line and line["value"] is not None for line in terms.values()):
        why = next((line["note"] for line in terms.values() if line and line["note"]), None)
        return [f"No model for {_set(name)}: {why}."] if why else []
    parts = []
    for which, line in terms.items():
        assert line is not None
        whose = "Known" if which == "b_kn" else "Unknown"
        ends = points(line["value"], line["ci_low"], line["ci_high"])
        sure = line["ci_low"] is not None and (line["ci_low"] > 0 or line["ci_high"] < 0)
        doubt = (
            ""
            if sure
            else (", with a sign that is not certain" if line["ci_low"] is not None else ", without an interval")
        )
        parts.append(f"if all of D were {whose} rows and all were fitted, {_set(name)} would change by {ends}{doubt}")
    text = f"Compared with no row fitted: {'; '.join(parts)}. The paper: "
    text += " and ".join(f"{signed(f.value)}" for c in terms if (f := paper.linear(name, c))) + " points."
    note = next((line["note"] for line in terms.values() if line and line["note"]), None)
    return [text + (f" ({note[0].upper()}{note[1:]}.)" if note else ""), *_later(table, name, terms)]


def _later(table: pl.DataFrame, name: str, terms: Mapping[str, Row | None]) -> list[str]:
    """Whether the signs depend on the first epoch, in which the model learns the form of an answer."""
    later = {c: find(table, set=name, fit="from epoch 2", coefficient=c) for c in terms}
    values = [line["value"] for line in later.values() if line]
    if not values or any(v is None for v in values):
        return []
    same = all(
        a and b and (a["value"] > 0) == (b["value"] > 0) for a, b in zip(terms.values(), later.values(), strict=True)
    )
    return [
        f"Without the first epoch, the two are {' and '.join(signed(v) for v in values)} points: "
        f"the signs {'stay the same' if same else 'do not both stay the same'}."
    ]


def _set(name: str) -> str:
    return "test EM" if name == "test" else "EM on unseen relations"


def single(table: pl.DataFrame, differences: pl.DataFrame) -> list[str]:
    """The sentences on Table 2."""
    sentences = []
    for point in POINTS:
        alone = table.filter(
            (pl.col("point") == point) & (pl.col("category") == ALL) & (pl.col("trained") != "natural")
        )
        if alone.height < 2:
            continue
        best = alone.sort("em", descending=True).row(0, named=True)
        text = f"At {NAMES[point]} the best single category is {best['trained']} ({exact(best['em'])})"
        of = differences.filter((pl.col("contrast") == "single category") & (pl.col("second_point") == point))
        rivals = of.filter(pl.col("first") != "natural").sort("difference")
        if rivals.height:
            nearest = rivals.row(0, named=True)
            other = nearest["first"].removeprefix("only-")
            text += f"; compared with training on {other} rows, EM after training on MaybeKnown rows {moved(nearest)}"
        sentences.append(f"{text}.")
    lost = find(table, trained=UNKNOWN, point=LATE, category=HIGHLY_KNOWN)
    if lost:
        sentences.append(
            f"After training on Unknown rows alone until CONVERGENCE, {exact(lost['em'])} of the HighlyKnown test rows "
            "are right" + (f" (the paper: {exact(lost['paper'])})." if lost["paper"] is not None else ".")
        )
    return sentences


def refusals(table: pl.DataFrame) -> list[str]:
    """The sentences on the refusal experiment; they give accuracy together with coverage and yield."""
    sentences = []
    for share in table["share"].unique().sort():
        lines = {p: find(table, trained_on="D_IDK", share=share, point=p) for p in POINTS}
        early, late = lines[EARLY], lines[LATE]
        if not early or not late or early["accuracy"] is None or late["accuracy"] is None:
            continue
        plain = {p: find(table, trained_on="D", share=share, point=p) for p in POINTS}
        d = [plain[p] for p in POINTS]
        text = (
            "With the Unknown half relabelled" if share == 0.5 else f"With the {exact(share)} Unknown rows relabelled"
        )
        text += (
            f", {exact(early['accuracy'])} of the answers given are right at EARLY_STOP and "
            f"{exact(late['accuracy'])} at CONVERGENCE"
        )
        if all(d):
            text += f" (without relabelling: {' and '.join(exact(line['accuracy']) for line in d if line)})"
        text += (
            f"; it answers {exact(early['coverage'])} and {exact(late['coverage'])} of the questions, so right answers "
            f"come to {exact(early['yield'])} and {exact(late['yield'])} of all"
        )
        if all(d):
            text += f" ({' and '.join(exact(line['yield']) for line in d if line)})"
        sentences.append(f"{text}.")
        if early["paper_accuracy"] is not None and late["paper_accuracy"] is not None:
            theirs = [[exact(line[f"paper_{n}"]) for line in (early, late)] for n in ("accuracy", "coverage", "yield")]
            text = "In the paper {} of the answers are right, {} of the questions answered, {} of all right."
            sentences.append(text.format(*(" and ".join(ends) for ends in theirs)))
        if early["refused_highly_known"] is not None:
            sentences.append(
                f"It also refuses {exact(early['refused_highly_known'])} and {exact(late['refused_highly_known'])} "
                "of the HighlyKnown rows, which the base model answers right every time."
            )
    return sentences


def sweep(table: pl.DataFrame, seeds: int) -> list[str]:
    """The sentences that compare SliCK's label with P(True) at the same share, and with a smaller budget.

    `seeds`: the number of seeds of the variant.
    """
    labels = table.filter(pl.col("score") == "SliCK")
    if labels.is_empty():
        return []
    own = labels.row(0, named=True)
    training_set = "the natural mix" if own["variant"] == "natural" else f"D with {_percent(own['variant'])} Unknown"
    if not own["rows"]:
        return [
            f"SliCK calls no test row Unknown here, so there is nothing to compare after training on {training_set}."
        ]
    distinct = own["rows"] // max(seeds, 1)
    span = wilson(round(own["em"] * distinct), distinct)
    sentences = [
        f"SliCK calls {exact(own['share'])} of the test rows Unknown; after training on {training_set}, "
        f"{exact(own['em'])} of them are right ({100 * span.low:.1f}–{100 * span.high:.1f}; the paper: "
        f"{exact(paper.SWEEP['early_stop'])} to {exact(paper.SWEEP['convergence'])} of "
        f"{exact(paper.SWEEP['unknown'])})."
    ]
    rival = em_at(table.filter(pl.col("score") == "P(True)"), own["share"])
    if rival is not None:
        other = wilson(round(rival * distinct), distinct)
        clear = (
            "SliCK's share is lower"
            if span.high < other.low
            else "P(True)'s share is lower"
            if other.high < span.low
            else None
        )
        sentences.append(
            f"If P(True) calls as many rows Unknown, {exact(rival)} of them are right "
            f"({100 * other.low:.1f}–{100 * other.high:.1f}): "
            + (f"{clear}, and the intervals do not overlap." if clear else "the two intervals overlap.")
        )
    fewest = labels.filter(pl.col("setting").str.starts_with("1 sets")).head(1)
    if fewest.height and labels.height > 1:
        one = fewest.row(0, named=True)
        sentences.append(
            f"With a single exemplar set SliCK would call {exact(one['share'])} of the test rows Unknown, and "
            f"{exact(one['em'] or 0.0)} of those are right."
        )
    return sentences


def figure_note(figures: Iterable[Figure | None]) -> str:
    """The note on whether the paper prints these figures or they were read off its plots."""
    kinds = {figure.printed for figure in figures if figure}
    if kinds == {True}:
        return "The paper's figures are printed in it."
    return "The paper's figures were read off its plots, to about 0.2 points of EM and a point of rows fitted."
