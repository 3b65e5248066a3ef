"""Compute the chance baseline: each row's hit probability under guessing, and shares corrected for it. Pure functions.

A model that knows only which *kind* of answer a relation takes hits small pools of answers by luck. So a row's
gold is also searched for behind questions of its group that the model answers wrongly; these are its *references*. A
reference that the model knows would produce its own answer and understate chance; a reference that shares the row's
answer would overstate it. If a group has too few references, questions with invented subjects fill up the number.

The baseline (the row's "null") does not see clues in the subject's own name: a town whose name sounds Polish is a
better guess for Poland than chance says, and counts as known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from foreknow.data.exact_match import canonical, normalise
from foreknow.data.schema import sampling_hash
from foreknow.stats import DRAWS, LEVEL, SMALL_STRATUM, wilson

CHANCE: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "p_chance": pl.Float64(),
    "p_chance_upper": pl.Float64(),
    "p_chance_greedy": pl.Float64(),
    "lift": pl.Float64(),
    "lift_lower": pl.Float64(),
    "rank": pl.Float64(),
    "guessable": pl.Boolean(),
    "references": pl.Int64(),
    "flag": pl.String(),
}
"""One line per probed row. `p_chance`, `p_chance_greedy`: means over its references of `p_hit` and P(T=0) of *this
row's* accepted answers, letter by letter, 0 to 1. `lift`: logit of `p_sampled` less the mean logit of the
references'. `p_chance_upper`, `lift_lower`: were all that was not searched a hit of the reference. `rank`: (1 +
references that score at least this row) / (references + 1). `flag`: FEW, MADE_UP, or why there are no values."""

MADE_UP: Final = "made_up_references"
FEW: Final = "few_references"
NONE: Final = "no_references"
CONTEXT: Final = "context"
OWN_SETS: Final = "own_fact_in_every_set"


class Rules(NamedTuple):
    """How references are chosen and evaluated.

    `references`: the number wanted for each row; `least`: a row with fewer has no null. `floor`: probabilities are
    clipped to [floor, 1 - floor] before their logit is taken. `guessable`: a row with a higher rank may be a guess.
    """

    references: int = 20
    least: int = 5
    floor: float = 1e-6
    guessable: float = 0.1
    seed: int = 0


class Reference(NamedTuple):
    """A question that the model is asked in place of a row's own.

    `row`: the row that the question comes from; None for an invented subject. `says`: that row's normalised answers.
    """

    row: int | None
    question: str
    subject: str | None
    says: frozenset[str]


class Chosen(NamedTuple):
    """A group's references, those with invented subjects last, and which of them serve which of the group's rows.

    `serves`: bool [rows, references], with rows in the order of the input.
    """

    references: list[Reference]
    serves: NDArray[np.bool_]


def choose(rows: pl.DataFrame, rules: Rules) -> Chosen:
    """Choose references for the rows of one group.

    `rows`: question, subject, answers, flags, p_greedy, p_greedy_lenient, of every probed row of the group.
    A candidate is a row that the model answers wrongly behind every exemplar set, also by lenient matching. There is
    one candidate per fact, and they are taken in the order of their `sampling_hash`. A candidate is taken if some row
    that it can serve has fewer than `rules.references`; at most four times as many are taken in all. Invented subjects
    serve only rows that have too few real references.
    """
    says = [_normalised_answers(answers) for answers in rows["answers"].to_list()]
    keys = [_fact(*texts) for texts in rows.select("question", "subject").iter_rows()]
    lacking = np.zeros(rows.height, dtype=np.int64)
    same: dict[str, list[int]] = {}
    for i, (texts, fact) in enumerate(zip(says, keys, strict=True)):
        for name in (*(f"answer {text}" for text in texts), f"fact {fact}"):
            same.setdefault(name, []).append(i)
    taken: list[Reference] = []
    barred: list[list[int]] = []
    for i in _candidates(rows, keys, rules.seed):
        needy = len(taken) - lacking < rules.references
        if not needy.any() or len(taken) >= 4 * rules.references:
            break
        names = (*(f"answer {text}" for text in says[i]), f"fact {keys[i]}")
        bars = sorted({other for name in names for other in same[name]})
        if needy.sum() > needy[bars].sum():
            lacking[bars] += 1
            barred.append(bars)
            taken.append(Reference(rows["row"][i], rows["question"][i], rows["subject"][i], says[i]))
    serves = np.ones((rows.height, len(taken)), dtype=np.bool_)
    for number, bars in enumerate(barred):
        serves[bars, number] = False
    short = np.maximum(rules.references - serves.sum(axis=1), 0)
    invented = invent_references(rows, int(short.max(initial=0)), rules.seed)
    more = np.arange(len(invented))[None, :] < short[:, None]
    return Chosen([*taken, *invented], np.hstack([serves, more]))


def _candidates(rows: pl.DataFrame, keys: Sequence[str], seed: int) -> list[int]:
    """Return the positions of rows that may be references, one per fact, in the order of their sampling hash."""
    wrong = rows.select(
        (pl.col("p_greedy") == 0) & (pl.col("p_greedy_lenient") == 0) & ~pl.col("flags").list.contains(CONTEXT)
    ).to_series()
    hashed = [
        (sampling_hash(seed, question, answers[0]), i)
        for i, (question, answers, is_wrong) in enumerate(
            zip(rows["question"].to_list(), rows["answers"].to_list(), wrong.to_list(), strict=True)
        )
        if is_wrong
    ]
    place_by_fact: dict[str, int] = {}
    for _, i in sorted(hashed):
        place_by_fact.setdefault(keys[i], i)
    return list(place_by_fact.values())


def invent_references(rows: pl.DataFrame, count: int, seed: int) -> list[Reference]:
    """Invent up to `count` questions about subjects that do not exist, by splicing two subjects' names.

    Only questions that contain their subject exactly once are used. No invented name is one of the group's subjects.
    """
    real = {subject.casefold() for subject in rows["subject"].to_list() if subject}
    usable = rows.filter(~pl.col("flags").list.contains(CONTEXT))
    pairs = {s: q for q, s in usable.select("question", "subject").rows() if s and s.strip() and q.count(s) == 1}
    order = sorted(pairs, key=lambda subject: (sampling_hash(seed, "made up", subject), subject))
    references: dict[str, Reference] = {}
    for shift in range(1, len(order)):
        for at, subject in enumerate(order):
            if len(references) >= count:
                return list(references.values())
            name = splice_names(subject, order[(at + shift) % len(order)])
            if name.casefold() not in real and name.casefold() not in references:
                question = pairs[subject].replace(subject, name)
                references[name.casefold()] = Reference(None, question, name, frozenset())
    return list(references.values())[:count]


def splice_names(name: str, other_name: str) -> str:
    """Replace the end of the last word of `name` by that of `other_name`: Arland and Borvia give Arlvia."""
    *words, last = name.split()
    ending = other_name.rsplit(maxsplit=1)[-1]
    return " ".join([*words, last[: (len(last) + 1) // 2] + ending[len(ending) // 2 :]])


def _normalised_answers(answers: Iterable[str]) -> frozenset[str]:
    """Normalise accepted answers to compare two rows' answers leniently: a gold in another case is the same gold."""
    return frozenset(normalise(answer) for answer in answers if answer.strip())


def _fact(question: str, subject: str | None) -> str:
    return canonical((subject or question).casefold())


class ReferenceQuestion(NamedTuple):
    """What the model answers to a group's references: for reference r, exemplar set j and text t of the accepted
    answers.

    `p`, `high`: lower and upper bound of the probability that one sample is t, [r, j, t]. `greedy`: the index of the
    text answered at T = 0, or -1 if it is none of them, [r, j].
    """

    p: NDArray[np.float64]
    high: NDArray[np.float64]
    greedy: NDArray[np.int64]


class ChanceRow(NamedTuple):
    """A row whose chance is computed: its texts (indices in `ReferenceQuestion`), its references, the sets that count.

    A set does not count if the row's own fact is among its exemplars, because the row was asked without that exemplar.
    `invented`: whether some of its references have invented subjects.
    """

    number: int
    p_sampled: float
    texts: Sequence[int]
    serves: NDArray[np.bool_]
    sets: NDArray[np.bool_]
    invented: bool


def chance_line(row: ChanceRow, reference_answers: ReferenceQuestion, samples: int, rules: Rules) -> dict[str, Any]:
    """Return a row's line of `CHANCE`. If some sets do not count, the others get as many samples in total."""
    count = int(row.serves.sum())
    if count < rules.least:
        return blank(row.number, NONE, count)
    if not row.sets.any():
        return blank(row.number, OWN_SETS, count)
    every = len(row.sets)
    selection = np.ix_(np.flatnonzero(row.serves), np.flatnonzero(row.sets))
    low, high = (
        _clip(ends[selection][:, :, list(row.texts)].sum(axis=2))
        for ends in (reference_answers.p, reference_answers.high)
    )
    greedy = np.isin(reference_answers.greedy[selection], list(row.texts))
    draws = samples * every / low.shape[1]
    hit, hit_high = (1.0 - np.exp((np.log1p(-np.minimum(p, 1 - 1e-15)) * draws).sum(axis=1)) for p in (low, high))
    scores = logits(low.mean(axis=1), rules.floor)
    own = float(logits(np.array([row.p_sampled]), rules.floor)[0])
    rank = (1 + int((scores >= own).sum())) / (count + 1)
    flag = FEW if count < rules.references else MADE_UP if row.invented else None
    return {
        "row": row.number,
        "p_chance": float(hit.mean()),
        "p_chance_upper": float(hit_high.mean()),
        "p_chance_greedy": float(greedy.mean()),
        "lift": own - float(scores.mean()),
        "lift_lower": own - float(logits(high.mean(axis=1), rules.floor).mean()),
        "rank": rank,
        "guessable": rank > rules.guessable,
        "references": count,
        "flag": flag,
    }


def blank(row: int, flag: str, references: int = 0) -> dict[str, Any]:
    """Return the line of a row that has no null."""
    return {**dict.fromkeys(CHANCE), "row": row, "references": references, "flag": flag}


def _clip(p: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped: NDArray[np.float64] = np.clip(p, 0.0, 1.0)
    return clipped


def logits(p: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) with p clipped to [floor, 1 - floor]."""
    clipped = np.clip(p, floor, 1.0 - floor)
    result: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return result


def corrected_shares(rows: pl.DataFrame, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Correct shares for chance, max(0, (observed - chance) / (1 - chance)), by group and overall (key "").

    `rows`: group, observed, chance (0 to 1, no nulls). The overall share is the mean of the groups' corrected shares,
    weighted by their rows; if the groups were pooled first, a group of easy guesses would hide what is known in the
    others. `ci_low` and `ci_high`: 95 % bootstrap interval, with rows resampled within each group. If all rows are
    observed alike, Wilson's interval of `observed` is used instead; groups of fewer than 5 rows have no interval. The
    share is None where chance is 1.
    """
    parts = sorted((str(group), part) for (group,), part in rows.group_by("group"))
    by_group: dict[str, dict[str, Any]] = {}
    shares_and_draws: list[tuple[int, float, NDArray[np.float64]]] = []
    for number, (group, part) in enumerate(parts):
        observed, chance = part.sort("observed", "chance").select("observed", "chance").to_numpy().T
        share = _without(observed.mean(), chance.mean())
        draws = _bootstrap(observed, chance, np.random.default_rng([seed, number]))
        by_group[group] = {
            "rows": part.height,
            "observed": float(observed.mean()),
            "chance": float(chance.mean()),
            "corrected": None if np.isnan(share) else float(share),
            **_ends(observed, float(chance.mean()), draws),
        }
        if not np.isnan(share):
            shares_and_draws.append((part.height, float(share), draws))
    total = sum(count for count, _, _ in shares_and_draws)
    pooled = np.sum([count * draws for count, _, draws in shares_and_draws], axis=0) / total if total else np.empty(0)
    overall = {
        "rows": rows.height,
        "observed": rows["observed"].mean(),
        "chance": rows["chance"].mean(),
        "corrected": sum(count * share for count, share, _ in shares_and_draws) / total if total else None,
        **_ends(np.empty(0), 0.0, pooled),
    }
    return {"": overall, **by_group}


def _without(observed: Any, chance: Any) -> Any:
    """Return the corrected share; NaN where chance is 1."""
    room = 1.0 - np.asarray(chance, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(room > 1e-9, np.maximum(0.0, (observed - chance) / room), np.nan)


def _bootstrap(
    observed: NDArray[np.float64], chance: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the corrected shares of `DRAWS` bootstrap samples of the rows, computed a few at a time to limit
    memory."""
    size = len(observed)
    at_once = max(1, 2**21 // size)
    parts = []
    for start in range(0, DRAWS, at_once):
        picks = rng.integers(0, size, (min(at_once, DRAWS - start), size))
        parts.append(_without(observed[picks].mean(axis=1), chance[picks].mean(axis=1)))
    return np.concatenate(parts)


def _ends(observed: NDArray[np.float64], chance: float, draws: NDArray[np.float64]) -> dict[str, float | None]:
    known = draws[~np.isnan(draws)]
    if not len(known) or 0 < len(observed) < SMALL_STRATUM:
        return {"ci_low": None, "ci_high": None}
    if len(observed) and observed.min() == observed.max() and observed[0] in (0.0, 1.0):
        whole = wilson(round(float(observed.sum())), len(observed))
        return {"ci_low": float(_without(whole.low, chance)), "ci_high": float(_without(whole.high, chance))}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"ci_low": float(low), "ci_high": float(high)}


def chance_table(summary: dict[str, Any], most: int = 24) -> pl.DataFrame:
    """Tabulate `chance.json` for the terminal: shares of rows by relation as labelled, by chance, and corrected, in
    %."""
    hit, greedy = summary["corrected"]["hit"], summary["corrected"]["greedy"]
    names = [("all", hit["overall"], greedy["overall"])]
    names += [(name, hit["by_relation"][name], greedy["by_relation"][name]) for name in sorted(hit["by_relation"])]

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    lines = []
    for name, known, first in names[: most + 1]:
        lines.append({
            "relation": name,
            "Known": percent(known["observed"]),
            "by chance": percent(known["chance"]),
            "without chance": percent(known["corrected"]),
            "greedy": percent(first["observed"]),
            "greedy by chance": percent(first["chance"]),
            "greedy without chance": percent(first["corrected"]),
        })  # fmt: skip
    return pl.DataFrame(lines)
