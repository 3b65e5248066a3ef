"""This module formats the tables of a study as lines of texts for its page.

Its functions have no side effects and write no HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.format.numbers import exact, exact_interval
from foreknow.format.text import display
from foreknow.report.study_text import NAMES, find, share_text, signed
from foreknow.stages.study.aggregation import ALL, ALL_KNOWN, POINTS
from foreknow.stats import Interval

Row = Mapping[str, Any]
SETS = {"test": "test", "ood": "unseen relations"}
TERMS = {"b0": "b0", "b_kn": "Known fitted, b_kn", "b_unk": "Unknown fitted, b_unk"}


class TextTable(NamedTuple):
    """A table of the page: column heads, lines of texts, and how many columns from the left hold words."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: int = 1


def p_text(p: float | None) -> str:
    """A p-value with two significant digits, or "p < 0.001"; a dash for None."""
    return "–" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def at(point: str) -> str:
    """The name of a point in training: EARLY_STOP, epoch 20, CONVERGENCE."""
    return NAMES.get(point, point)


def whole(share: float) -> str:
    """A nominal share (0 to 1) in per cent: 50 %."""
    return f"{100 * share:g} %"


def _paper(line: Row | None) -> str:
    return share_text(line["paper"] if line else None)


def em_text(line: Row | None) -> str:
    """EM with its interval: 48.0 % (45–51)."""
    if line is None or line["em"] is None:
        return "–"
    return exact_interval(Interval(line["em"], line["ci_low"], line["ci_high"]))


def _range(line: Row) -> str:
    if line["seeds"] == 1:
        return "one seed"
    return f"{100 * line['seed_min']:.1f}–{100 * line['seed_max']:.1f} of {line['seeds']}"


def curves(table: pl.DataFrame) -> TextTable:
    """Figure 1, one line per epoch."""
    own = ("known", "unknown", "dev")
    lines = []
    for epoch in sorted(table["epoch"].unique()):
        of = table.filter(pl.col("epoch") == epoch)
        values = [find(of, trained_on="D", measure=measure) for measure in own]
        control = find(of, trained_on="D_Known", measure="dev")
        lines.append((str(epoch), *(_ranged(line) for line in (*values, control)), *(_paper(line) for line in values)))
    heads = ("Epoch", "Known fitted", "Unknown fitted", "Dev EM", "D_Known: dev EM")
    return TextTable((*heads, "Paper: Known", "Paper: Unknown", "Paper: dev EM"), tuple(lines))


def _ranged(line: Row | None) -> str:
    """A value with its range over seeds."""
    if line is None:
        return "–"
    ends = f" ({100 * line['seed_min']:.0f}–{100 * line['seed_max']:.0f})" if line["seeds"] > 1 else ""
    return f"{exact(line['value'])}{ends}"


def by_share(every: pl.DataFrame, *, paper: bool) -> TextTable:
    """Figure 3 for all rows of the set. `paper`: whether to add a column with the paper's figures."""
    lines = [
        (
            *(line["trained_on"], whole(line["share"]), at(line["point"])),
            *(f"{line['epoch']:.3g}", f"{line['rows']:,}", em_text(line), _range(line), line["interval"]),
            *((_paper(line),) if paper else ()),
        )
        for line in every.iter_rows(named=True)
    ]
    heads = ("Trained on", "Unknown", "At", "Epoch", "Rows", "EM (95 %)", "Over seeds", "Interval over")
    return TextTable((*heads, "Paper") if paper else heads, tuple(lines), 3)


def by_category(table: pl.DataFrame) -> TextTable:
    """Figure 3 by category of the test rows, at EARLY_STOP and CONVERGENCE."""
    of = table.filter(pl.col("point").is_in(POINTS))
    lines = []
    for (on, share, point), part in of.group_by("trained_on", "share", "point", maintain_order=True):
        texts = [em_text(find(part, category=category)) for category in (ALL_KNOWN, *CATEGORIES)]
        lines.append((str(on), whole(float(str(share))), at(str(point)), *texts))
    return TextTable(("Trained on", "Unknown", "At", ALL_KNOWN, *CATEGORIES), tuple(lines), 3)


def contrasts(table: pl.DataFrame, name: str, kinds: Iterable[str] = ()) -> TextTable:
    """The contrasts on the set `name` with the p-values of three tests.

    `kinds`: the kinds of contrast to list; if empty, all except "single category".
    """
    is_listed = pl.col("contrast").is_in(list(kinds)) if kinds else pl.col("contrast") != "single category"
    lines = [
        (
            f"{line['first']}, {at(line['first_point'])}",
            f"{line['second']}, {at(line['second_point'])}",
            f"{signed(line['difference'])} ({signed(line['ci_low'])} to {signed(line['ci_high'])})",
            *(p_text(line["p"]), p_text(line["parts_p"]), _seeds(line["mcnemar_p"])),
            "–" if line["paper"] is None else signed(line["paper"]),
        )
        for line in table.filter((pl.col("set") == name) & is_listed).iter_rows(named=True)
    ]
    heads = ("From", "To", "Points (95 %)", "Rows and seeds", "The paper's test", "McNemar, by seed", "Paper, points")
    return TextTable(heads, tuple(lines), 2)


def _seeds(text: str) -> str:
    """The smallest and the largest p-value of a text such as "seed 0: 0.012; seed 1: 0.3"."""
    values = [float(one.split(": ")[1]) for one in text.split("; ")]
    low, high = min(values), max(values)
    return f"p = {high:.2g}" if low == high and low >= 0.001 else f"{_bare(low)} to {_bare(high)}"


def _bare(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def fitted(table: pl.DataFrame) -> TextTable:
    """Figure 4, and the same figures at CONVERGENCE."""
    lines = [
        (
            *(at(line["point"]), whole(line["share"]), line["part"], f"{line['rows']:,}"),
            *(em_text(line), _range(line), _paper(line)),
        )
        for line in table.iter_rows(named=True)
    ]
    heads = ("At", "Unknown", "Part", "Rows of all seeds", "Fitted (95 %)", "Over seeds", "Paper")
    return TextTable(heads, tuple(lines), 3)


def linear(table: pl.DataFrame) -> TextTable:
    """Table 1, every fit."""
    lines = [
        (
            *(SETS[line["set"]], line["fit"], TERMS[line["coefficient"]], _term(line)),
            p_text(line["p"]),
            "–" if line["r2"] is None else f"{line['r2']:.2f}",
            f"{line['points']:,} of {line['runs']:,} runs",
            "–" if line["paper"] is None else _level(line, "paper"),
        )
        for line in table.iter_rows(named=True)
    ]
    heads = ("Set", "Fit", "Term", "Points (95 %)", "p", "R²", "Evaluations", "Paper")
    return TextTable(heads, tuple(lines), 3)


def _level(line: Row, name: str) -> str:
    """A coefficient as text: b0 is a level, the others are differences with a sign."""
    return exact(line[name]) if line["coefficient"] == "b0" else signed(line[name])


def _term(line: Row) -> str:
    if line["value"] is None:
        return "–"
    ends = "" if line["ci_low"] is None else f" ({_level(line, 'ci_low')} to {_level(line, 'ci_high')})"
    return f"{_level(line, 'value')}{ends}"


def single(table: pl.DataFrame) -> TextTable:
    """Table 2, with the paper's figures below ours."""
    lines = []
    for (training_set, point), part in table.group_by("trained", "point", maintain_order=True):
        values = [find(part, category=category) for category in (ALL, *CATEGORIES)]
        lines.append((str(training_set), at(str(point)), *(em_text(line) for line in values)))
        if any(line and line["paper"] is not None for line in values):
            lines.append(("", "the paper", *(_paper(line) for line in values)))
    return TextTable(("Trained on", "At", "All rows", *CATEGORIES), tuple(lines), 2)


def sweep(own: pl.DataFrame) -> TextTable:
    """SliCK's own label for each budget of exemplar sets and samples."""
    lines = [
        (line["setting"], exact(line["share"]), share_text(line["em"]), f"{line['correct']:,} of {line['rows']:,}")
        for line in own.iter_rows(named=True)
    ]
    return TextTable(("Exemplar sets and samples", "Called Unknown", "EM of those", "Right"), tuple(lines))


def refusals(table: pl.DataFrame) -> TextTable:
    """The refusal experiment, with the paper's figures below ours."""
    lines = []
    for line in table.iter_rows(named=True):
        low, high = line["accuracy_ci_low"], line["accuracy_ci_high"]
        ends = "" if low is None else f" ({100 * low:.0f}–{100 * high:.0f})"
        texts = [share_text(line[n]) for n in ("coverage", "yield", "refused_highly_known", "refused_unknown")]
        place = (line["trained_on"], whole(line["share"]), at(line["point"]))
        lines.append((*place, f"{share_text(line['accuracy'])}{ends}", *texts))
        if line["paper_accuracy"] is not None:
            theirs = [share_text(line[f"paper_{name}"]) for name in ("accuracy", "coverage", "yield")]
            lines.append(("", "", "the paper", *theirs, "–", "–"))
    heads = ("Trained on", "Unknown", "At", "Right of the answers", "Answered", "Right of all")
    return TextTable((*heads, "HighlyKnown refused", "Unknown refused"), tuple(lines), 3)


def relations(table: pl.DataFrame) -> TextTable:
    """The base model's greedy accuracy in each relation, and that of always giving one answer."""
    lines = [
        (
            *(display(str(line["relation"]), 60), f"{line['rows']:,}", exact(line["greedy"]), exact(line["floor"])),
            *(f"{signed(line['above'])} points", "yes" if line["used"] else "left out"),
        )
        for line in table.iter_rows(named=True)
    ]
    return TextTable(("Relation", "Rows", "Right greedily", "Always one answer", "Above it", "Used"), tuple(lines))


def runs(results: pl.DataFrame) -> TextTable:
    """One line per training set: seeds, rows, epochs."""
    lines = []
    for (variant,), part in results.group_by("variant", maintain_order=True):
        train = part.filter((pl.col("set") == "train") & (pl.col("category") == ALL) & pl.col("convergence"))
        best = sorted(part.filter("early_stop")["epoch"].unique())
        rows_trained_on = float(train["rows"].sum()) / max(train.height, 1)
        epochs = "–" if not best else f"{best[0]}" if len(best) == 1 else f"{best[0]}–{best[-1]}"
        cells = (str(part["seed"].n_unique()), f"{part['size'][0]:,}", f"{rows_trained_on:,.0f}", epochs)
        lines.append((str(variant), *cells, str(part["epoch"].max())))
    return TextTable(("Training set", "Seeds", "|D|", "Rows trained on", "EARLY_STOP, epoch", "Epochs"), tuple(lines))
