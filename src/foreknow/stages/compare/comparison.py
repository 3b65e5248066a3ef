"""Compares the outcomes of several runs: shares with intervals, and a paired test against the first run.

The first run is the reference: every other one is tested against it on the rows that both have. With several tests the
p-values are Holm's, so that the chance of calling any difference real by mistake stays below 5 %. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.errors import UsageError
from foreknow.stages.compare.run_outcomes import KEY, RunOutcomes
from foreknow.stats import Interval, mcnemar, wilson

DECIDED: Final = 0.05
"""A difference is decided where Holm's p is below this."""
MOST_RUNS: Final = 26
DECISIVE: Final = (
    "match",
    "max_new_tokens",
    "protocol",
    "prompt_template",
    "chat_template",
    "bos",
    "top_k",
    "temperature",
)
"""Settings that change how answers are asked for or counted, so that a difference may be theirs."""


@dataclass(frozen=True)
class Share:
    """Right rows of some rows, with Wilson's 95 % interval."""

    right: int
    rows: int

    @property
    def interval(self) -> Interval:
        """The share and its interval."""
        return wilson(self.right, self.rows)


@dataclass(frozen=True)
class Paired:
    """A run against the reference on the rows that both have.

    `won`: right in the run alone; `lost`: right in the reference alone. `difference`: the run's share minus the
    reference's, with its 95 % interval. `p`: exact McNemar; `holm`: the same, adjusted for the number of runs tested.
    `of_run`, `of_reference`: how many rows each has in all.
    """

    rows: int
    won: int
    lost: int
    difference: Interval
    p: float
    holm: float
    of_run: int
    of_reference: int

    @property
    def decided(self) -> bool:
        """Whether the difference is larger than chance allows."""
        return self.rows > 0 and self.holm < DECIDED


@dataclass(frozen=True)
class RunLine:
    """A run on one set. `letter`: how charts and tables name it. `paired`: None for the reference itself."""

    letter: str
    run: RunOutcomes
    overall: Share
    categories: Mapping[str, Share]
    paired: Paired | None


@dataclass(frozen=True)
class SetComparison:
    """All runs on one set of rows (`name` is "" where runs have no named sets)."""

    name: str
    lines: tuple[RunLine, ...]


@dataclass(frozen=True)
class RunComparison:
    """Several finished runs of one kind beside each other; the first is the reference.

    `sets`: one comparison for each set that the reference and another run have, the one that the verdict is about
    first. `settings`: by name, one text for each run, where they differ. `cautions`: why figures may not be comparable.
    """

    stage: str
    runs: tuple[RunOutcomes, ...]
    letters: tuple[str, ...]
    sets: tuple[SetComparison, ...]
    settings: Mapping[str, tuple[str, ...]]
    cautions: tuple[str, ...]

    @property
    def table(self) -> pl.DataFrame:
        """One line for each set and run: shares (0 to 1), the difference to the reference, won and lost rows, p."""
        return pl.DataFrame([_line(of, line) for of in self.sets for line in of.lines], infer_schema_length=None)


def _line(of: SetComparison, line: RunLine) -> dict[str, Any]:
    share, paired = line.overall.interval, line.paired
    return {
        "run": line.letter,
        "name": line.run.name,
        "set": of.name,
        "rows": line.overall.rows,
        "right": line.overall.right,
        "share": share.value,
        "ci_low": share.low,
        "ci_high": share.high,
        "rows_in_both": paired.rows if paired else None,
        "difference": paired.difference.value if paired and paired.rows else None,
        "difference_low": paired.difference.low if paired and paired.rows else None,
        "difference_high": paired.difference.high if paired and paired.rows else None,
        "won": paired.won if paired else None,
        "lost": paired.lost if paired else None,
        "p": paired.p if paired and paired.rows else None,
        "p_holm": paired.holm if paired and paired.rows else None,
    }


def compare_outcomes(runs: Sequence[RunOutcomes]) -> RunComparison:
    """Compare finished runs of one kind; the first is the reference.

    Raises UsageError for fewer than two runs, more than 26, runs of different kinds, or runs that share no set.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise UsageError(f"compare: found {len(runs)} runs, expected 2 to {MOST_RUNS}")
    stages = list(dict.fromkeys(run.stage for run in runs))
    if len(stages) > 1:
        raise UsageError(
            f"compare: found runs of {' and '.join(stages)}, expected all of one kind; compare two tuned models by an "
            "evaluation of each"
        )
    letters = tuple(chr(ord("A") + number) for number in range(len(runs)))
    first, others = runs[0], runs[1:]
    shared = {name for run in others for name in run.rows["set"].unique()}
    names = [name for name in first.rows["set"].unique(maintain_order=True) if name in shared]
    if not names:
        kinds = "; ".join(f"{run.name} has {', '.join(run.rows['set'].unique()) or 'no rows'}" for run in runs)
        raise UsageError(f"compare: no set of the first run is in another one: {kinds}")
    names.sort(key=lambda name: name == "dev")  # the epoch was chosen on dev: a test set tells more
    settings = differing_settings(runs)
    return RunComparison(
        stage=stages[0],
        runs=tuple(runs),
        letters=letters,
        sets=tuple(_compare_set(name, runs, letters) for name in names),
        settings=settings,
        cautions=_cautions(runs, letters, settings, names),
    )


def differing_settings(runs: Sequence[RunOutcomes]) -> dict[str, tuple[str, ...]]:
    """The settings in which the runs differ, by name, one text for each run."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    texts = {name: tuple(str(run.settings.get(name, "–")) for run in runs) for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def _compare_set(name: str, runs: Sequence[RunOutcomes], letters: Sequence[str]) -> SetComparison:
    frames = [run.rows.filter(pl.col("set") == name) for run in runs]
    categories = frames[0].select(*KEY, "category")
    lines = []
    for letter, run, frame in zip(letters, runs, frames, strict=True):
        # audits differ in the categories themselves: the reference's are those of every run
        rows = (
            frame.drop("category").join(categories, on=KEY, how="left", nulls_equal=True)
            if run.stage == "audit"
            else frame
        )
        parts = {
            str(category): Share(int(part["correct"].sum()), part.height)
            for (category,), part in rows.drop_nulls("category").group_by("category")
        }
        lines.append(
            RunLine(
                letter=letter,
                run=run,
                overall=Share(int(frame["correct"].sum()), frame.height),
                categories={category: parts[category] for category in CATEGORIES if category in parts},
                paired=None if letter == letters[0] else paired_test(frames[0], frame),
            )
        )
    return SetComparison(name, tuple(_with_holm(lines)))


def paired_test(reference: pl.DataFrame, run: pl.DataFrame) -> Paired:
    """Test two frames `OUTCOMES` on the rows that both have, by the exact McNemar test.

    The interval of the difference is Agresti and Min's (Statistics in Medicine 24, 2005): half a row is added to each
    of the four cells, and the difference and its error are those of the larger table.
    """
    both = reference.select(*KEY, was="correct").join(run.select(*KEY, now="correct"), on=KEY, nulls_equal=True)
    won = int((both["now"] & ~both["was"]).sum())
    lost = int((both["was"] & ~both["now"]).sum())
    count = both.height
    if not count:
        nothing = Interval(0.0, -1.0, 1.0)
        return Paired(0, 0, 0, nothing, 1.0, 1.0, run.height, reference.height)
    more, fewer, size = won + 0.5, lost + 0.5, count + 2
    middle = (more - fewer) / size
    error = math.sqrt(max(more + fewer - (more - fewer) ** 2 / size, 0.0)) / size
    half = NormalDist().inv_cdf(0.975) * error
    difference = Interval((won - lost) / count, max(-1.0, middle - half), min(1.0, middle + half))
    p = mcnemar(lost, won)
    return Paired(count, won, lost, difference, p, p, run.height, reference.height)


def _with_holm(lines: Sequence[RunLine]) -> list[RunLine]:
    """Adjust the p-values of all lines for their number (Holm, 1979)."""
    tested = sorted((line for line in lines if line.paired and line.paired.rows), key=_p)
    adjusted, largest = {}, 0.0
    for number, line in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - number) * _p(line)))
        adjusted[line.letter] = largest
    return [
        replace(line, paired=replace(line.paired, holm=adjusted[line.letter]))
        if line.paired and line.letter in adjusted
        else line
        for line in lines
    ]


def _p(line: RunLine) -> float:
    assert line.paired is not None
    return line.paired.p


def _cautions(
    runs: Sequence[RunOutcomes], letters: Sequence[str], settings: Mapping[str, tuple[str, ...]], names: Sequence[str]
) -> tuple[str, ...]:
    found = []
    if decisive := [name for name in DECISIVE if name in settings]:
        found.append(
            f"The runs differ in {', '.join(decisive)}, which changes how answers are asked for or counted: a "
            "difference between them may be that of the protocol."
        )
    for letter, run in zip(letters, runs, strict=True):
        if run.not_known:
            what = "have no category" if run.stage == "audit" else "have no known answer"
            found.append(f"{run.not_known:,} rows of {letter} {what} and are left out.")
    if names == ["dev"]:
        found.append("The epoch of each run was chosen on dev, so its figures there are a little too high.")
    return tuple(found)
