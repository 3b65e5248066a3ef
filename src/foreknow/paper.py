"""The figures of the paper that studies are compared with: Gekhman et al. 2024, arXiv 2405.05904, PaLM 2-M. Pure.

All functions return shares, 0 to 1. A figure is *printed* in the paper's text or tables, or *read* off its plots,
with an error of about 0.002 of test EM and 0.01 of rows fitted. They return None where the paper has no figure.
"""

from __future__ import annotations

from statistics import linear_regression, mean
from typing import Final, NamedTuple

from foreknow.categories import CATEGORIES, MAYBE_KNOWN, UNKNOWN


class Figure(NamedTuple):
    """A value of the paper, its place there, and whether it is printed or was read off a plot."""

    value: float
    where: str
    printed: bool


NAME: Final = "Gekhman et al. 2024, arXiv 2405.05904"
MODEL: Final = "PaLM 2-M"
EPOCHS: Final = 50
SIZE: Final = 6142
"""|D| of every variant (section 3)."""

CURVE_EPOCHS: Final = (1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 50)
CURVES: Final = {
    "known": (59, 63, 67, 73, 79, 82.5, 89, 93, 97, 99.4, 100),
    "unknown": (0.4, 1, 1.8, 4, 9, 14, 32.5, 54, 79, 96, 100),
    "dev": (39, 40.4, 42.0, 42.9, 43.2, 43.1, 43.0, 42.1, 41.0, 40.1, 39.8),
}
"""Figure 1: half of D is Unknown; Known and Unknown rows fitted and dev EM (%) at `CURVE_EPOCHS`. Read off."""

SHARES: Final = (0, 10, 25, 50, 75, 90, 100)
TEST_EM: Final[dict[tuple[str, str], tuple[float | None, ...]]] = {
    ("D", "early_stop"): (43.9, 43.7, 43.9, 43.0, 42.0, 39.6, 37.5),
    ("D", "epoch 20"): (43.5, 43.4, 43.2, 42.1, 39.4, 34.5, 28.9),
    ("D", "convergence"): (42.6, 42.2, 41.1, 38.8, 36.4, 31.6, 25.8),
    ("D_Known", "early_stop"): (43.9, 43.7, 43.1, 43.0, 41.9, 40.5, None),
    ("D_Known", "convergence"): (42.6, 42.3, 42.3, 41.5, 40.7, 39.5, None),
}
"""Figure 3: ID test EM (%) by Unknown share of D (%, `SHARES`); D_Known of 0 % is D itself."""
PRINTED_EM: Final = frozenset({
    ("D", "early_stop", 50), ("D", "early_stop", 100), ("D", "convergence", 50), ("D", "convergence", 100),
})  # fmt: skip
"""The figures of `TEST_EM` that the paper's text prints."""

FITTED: Final[dict[str, tuple[float | None, ...]]] = {
    "Known": (91, 86, 81, 78, 72, 60, None),
    "Unknown": (None, 22, 16, 17, 10, 3, 1),
}
"""Figure 4: the share (%) of D's Known rows, and of its Unknown rows, fitted at EARLY_STOP, by `SHARES`. Read off."""

LINEAR: Final = {
    "test": {"b0": 0.369, "b_kn": 0.073, "b_unk": -0.083, "r2": 0.86},
    "ood": {"b0": 0.362, "b_kn": 0.032, "b_unk": -0.030, "r2": 0.95},
}
"""Table 1, on one point per epoch and variant. Printed."""

DROP: Final = {"test": 0.14, "ood": 0.06}
"""About the largest fall of EM from EARLY_STOP to CONVERGENCE (section 4)."""

SINGLE: Final[dict[tuple[str, str], tuple[float, ...]]] = {
    ("HighlyKnown", "early_stop"): (40.5, 98.7, 60.1, 9.0, 0.6),
    ("HighlyKnown", "convergence"): (40.0, 98.4, 58.8, 8.5, 0.7),
    ("MaybeKnown", "early_stop"): (43.6, 98.4, 69.9, 12.1, 1.0),
    ("MaybeKnown", "convergence"): (43.2, 97.5, 68.2, 12.9, 1.3),
    ("WeaklyKnown", "early_stop"): (39.2, 95.0, 59.2, 8.6, 0.4),
    ("WeaklyKnown", "convergence"): (35.4, 73.5, 55.8, 17.2, 2.2),
    ("Unknown", "early_stop"): (37.5, 95.6, 52.9, 6.5, 0.6),
    ("Unknown", "convergence"): (25.8, 55.8, 36.6, 12.2, 3.2),
    ("natural", "early_stop"): (43.5, 98.0, 67.6, 14.1, 1.8),
    ("natural", "convergence"): (41.8, 95.5, 61.7, 14.8, 2.5),
}
"""Table 2: test EM (%) of all rows and of each category, by what was trained on. Printed."""

REFUSALS: Final[dict[tuple[str, str], tuple[float, float]]] = {
    ("D", "early_stop"): (43.0, 100.0),
    ("D", "convergence"): (38.8, 100.0),
    ("D_IDK", "early_stop"): (61.8, 58.7),
    ("D_IDK", "convergence"): (61.8, 55.6),
}
"""Half of D is Unknown, in D_IDK relabelled as a refusal: accuracy (%) on answered questions, questions answered (%).
Printed."""

SWEEP: Final = {"unknown": 0.33, "early_stop": 0.018, "convergence": 0.025}
"""Share of test rows that are Unknown by SliCK, and EM on those after training on the natural mix (Figure 5, Table 2).
At the same share P(True) calls rows Unknown that are answered right more often."""


def complete_series(trained_on: str, point: str) -> tuple[float, ...]:
    """The figures of a line of Figure 3 (%), in the order of `SHARES`, without missing ones."""
    return tuple(value for value in TEST_EM[trained_on, point] if value is not None)


def curve(part: str, epoch: int) -> Figure | None:
    """Figure 1 at an epoch; `part`: known, unknown or dev."""
    if epoch not in CURVE_EPOCHS:
        return None
    return Figure(_share(CURVES[part][CURVE_EPOCHS.index(epoch)]), "Figure 1", False)


def exact_match(trained_on: str, share: float | None, point: str, category: str = "all") -> Figure | None:
    """Figure 3, ID test set; `trained_on`: D or D_Known. By category only where all of D is Unknown (Table 2)."""
    if category != "all":
        return single(UNKNOWN, point, category) if trained_on == "D" and share == 1 else None
    place, series = _place(share), TEST_EM.get((trained_on, point))
    if place is None or series is None or (value := series[place]) is None:
        return None
    return Figure(_share(value), "Figure 3", (trained_on, point, SHARES[place]) in PRINTED_EM)


def fitted(part: str, share: float | None) -> Figure | None:
    """Figure 4 at EARLY_STOP; `part`: Known or Unknown."""
    place = _place(share)
    value = None if place is None else FITTED[part][place]
    return None if value is None else Figure(_share(value), "Figure 4", False)


def linear(which: str, coefficient: str) -> Figure | None:
    """Table 1; `which`: test or ood; `coefficient`: b0, b_kn, b_unk or r2."""
    value = LINEAR.get(which, {}).get(coefficient)
    return None if value is None else Figure(value, "Table 1", True)


def single(trained: str, point: str, category: str = "all") -> Figure | None:
    """Table 2; `trained`: a category, or natural."""
    line, columns = SINGLE.get((trained, point)), ("all", *CATEGORIES)
    if line is None or category not in columns:
        return None
    return Figure(_share(line[columns.index(category)]), "Table 2", True)


def refusals(trained_on: str, point: str) -> tuple[Figure, Figure, Figure] | None:
    """Accuracy when answering, coverage, and their product, the yield; `trained_on`: D or D_IDK."""
    percents = REFUSALS.get((trained_on, point))
    if percents is None:
        return None
    accuracy, coverage = _share(percents[0]), _share(percents[1])
    where = "relabelling as “I don't know”"
    return (
        Figure(accuracy, where, True),
        Figure(coverage, where, True),
        Figure(accuracy * coverage, where, False),
    )


def contrast(number: int) -> dict[str, float]:
    """The paper's figure of each part of a claim (1 to 9), by the part's name in `stages/study/contrasts.py`.

    Those of claims 1, 2, 3 and 8 are computed from Figures 3 and 4 as a study's are from its runs, over the paper's own
    shares; that of claim 7 is the highest EM on Unknown test rows.
    """
    d, known = ({point: TEST_EM[name, point] for point in ("early_stop", "convergence")} for name in ("D", "D_Known"))
    mixed = range(1, 6)

    def difference(first: tuple[float | None, ...], second: tuple[float | None, ...]) -> float:
        return mean(float(first[k] or 0) - float(second[k] or 0) for k in mixed) / 100

    single = {category: SINGLE[category, "early_stop"][0] for category in CATEGORIES}
    test, ood = LINEAR["test"], LINEAR["ood"]
    slope = linear_regression([share / 100 for share in SHARES], complete_series("D", "convergence")).slope / 100
    right = [REFUSALS["D_IDK", point][0] for point in ("early_stop", "convergence")]
    contrasts: dict[int, dict[str, float]] = {
        1: {"slope": slope},
        2: {
            "D - D_Known at EARLY_STOP": difference(d["early_stop"], known["early_stop"]),
            "D - D_Known at CONVERGENCE": difference(d["convergence"], known["convergence"]),
        },
        3: {"Known - Unknown fitted at EARLY_STOP": difference(FITTED["Known"], FITTED["Unknown"])},
        4: {"b_kn test": test["b_kn"], "b_unk test": test["b_unk"]},
        5: {
            "b_kn OOD": ood["b_kn"],
            "b_unk OOD": ood["b_unk"],
            "b_unk OOD - b_unk test": ood["b_unk"] - test["b_unk"],
        },
        6: {
            f"{MAYBE_KNOWN} - {category}": (single[MAYBE_KNOWN] - em) / 100
            for category, em in single.items()
            if category != MAYBE_KNOWN
        },
        7: {"EM on Unknown test rows": max(line[4] for line in SINGLE.values()) / 100},
        8: {
            "D_Known at CONVERGENCE - D at EARLY_STOP": difference(known["convergence"], d["early_stop"]),
            "D_Known - D at CONVERGENCE": difference(known["convergence"], d["convergence"]),
        },
        9: {"right / answered, CONVERGENCE - EARLY_STOP": (right[1] - right[0]) / 100},
    }
    return contrasts[number]


def _place(share: float | None) -> int | None:
    """The index of the share in `SHARES`."""
    percent = None if share is None else round(100 * share, 6)
    return SHARES.index(int(percent)) if percent is not None and percent in SHARES else None


def _share(percent: float) -> float:
    """Convert percent to a share, rounded to hide floating-point error."""
    return round(percent / 100, 6)
