"""What a hit is worth: the null of every row, and shares without the hits that luck explains. Pure.

A model that knows only which *kind* of answer a relation takes hits small pools of answers by luck. So a row's
gold is also looked for behind questions of its group that the model answers wrongly: its *references*. A
reference the model knows would say its own answer and understate chance; one that shares the row's answer would
overstate it. Where a group has too few, subjects are made up.

The null does not see clues in the subject's own name: a town whose name sounds Polish is a better guess for
Poland than chance says, and counts as known.
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
    """How references are chosen and what is made of them.

    `references`: so many for each row; `least`: with fewer a row has no null. `floor`: probabilities are clipped
    at it, and at 1 less it, before their logit is taken. `guessable`: the rank above which a row may be a guess.
    """

    references: int = 20
    least: int = 5
    floor: float = 1e-6
    guessable: float = 0.1
    seed: int = 0


class Reference(NamedTuple):
    """A question the model is asked in a row's place. `row`: whose question it is; None for a made-up subject."""

    row: int | None
    question: str
    subject: str | None
    says: frozenset[str]


class Chosen(NamedTuple):
    """A group's references, those with made-up subjects last, and for each of its rows which of them serve it.

    `serves`: bool [rows, references], rows in the order they were given.
    """

    references: list[Reference]
    serves: NDArray[np.bool_]


def choose(rows: pl.DataFrame, rules: Rules) -> Chosen:
    """References for the rows of one group.

    `rows`: question, subject, answers, flags, p_greedy, p_greedy_lenient, of every probed row of the group.
    A candidate is a row no exemplar set gets right, leniently neither; one a fact, in the order of its
    `sampling_hash`. It is taken as long as a row that it can serve has fewer than `rules.references`, up to four
    times as many in all. Made-up subjects serve only rows that real ones do not suffice for.
    """
    says = [_said(answers) for answers in rows["answers"].to_list()]
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
    invented = made_up(rows, int(short.max(initial=0)), rules.seed)
    more = np.arange(len(invented))[None, :] < short[:, None]
    return Chosen([*taken, *invented], np.hstack([serves, more]))


def _candidates(rows: pl.DataFrame, keys: Sequence[str], seed: int) -> list[int]:
    """Places of the rows that may serve, one a fact, by their key in the draw."""
    wrong = rows.select(
        (pl.col("p_greedy") == 0) & (pl.col("p_greedy_lenient") == 0) & ~pl.col("flags").list.contains(CONTEXT)
    ).to_series()
    drawn = [
        (sampling_hash(seed, question, answers[0]), i)
        for i, (question, answers, is_wrong) in enumerate(
            zip(rows["question"].to_list(), rows["answers"].to_list(), wrong.to_list(), strict=True)
        )
        if is_wrong
    ]
    found: dict[str, int] = {}
    for _, i in sorted(drawn):
        found.setdefault(keys[i], i)
    return list(found.values())


def made_up(rows: pl.DataFrame, count: int, seed: int) -> list[Reference]:
    """Up to `count` questions about nobody: a subject's last word goes on as another subject's ends.

    Made only where the subject stands in its question once. No name is one of the group's subjects.
    """
    real = {subject.casefold() for subject in rows["subject"].to_list() if subject}
    usable = rows.filter(~pl.col("flags").list.contains(CONTEXT))
    pairs = {s: q for q, s in usable.select("question", "subject").rows() if s and s.strip() and q.count(s) == 1}
    order = sorted(pairs, key=lambda subject: (sampling_hash(seed, "made up", subject), subject))
    found: dict[str, Reference] = {}
    for shift in range(1, len(order)):
        for at, subject in enumerate(order):
            if len(found) >= count:
                return list(found.values())
            name = spliced(subject, order[(at + shift) % len(order)])
            if name.casefold() not in real and name.casefold() not in found:
                question = pairs[subject].replace(subject, name)
                found[name.casefold()] = Reference(None, question, name, frozenset())
    return list(found.values())[:count]


def spliced(one: str, other: str) -> str:
    """`one`, with the end of its last word taken from the last word of `other`: Arland and Borvia give Arlvia."""
    *words, last = one.split()
    ending = other.rsplit(maxsplit=1)[-1]
    return " ".join([*words, last[: (len(last) + 1) // 2] + ending[len(ending) // 2 :]])


def _said(answers: Iterable[str]) -> frozenset[str]:
    """Accepted answers as two rows' are compared: leniently, for a gold in another case is the same gold."""
    return frozenset(normalise(answer) for answer in answers if answer.strip())


def _fact(question: str, subject: str | None) -> str:
    return canonical((subject or question).casefold())


class ReferenceQuestion(NamedTuple):
    """What the references of a group said: for reference r, exemplar set j and text t of some accepted answers.

    `p`, `high`: the ends of the probability that one sample is t, [r, j, t]. `greedy`: the text said at T = 0,
    -1 where it is none of them, [r, j].
    """

    p: NDArray[np.float64]
    high: NDArray[np.float64]
    greedy: NDArray[np.int64]


class ChanceRow(NamedTuple):
    """A row to be judged: its texts (places in `ReferenceQuestion`), the references that serve it, the sets that count.

    A set does not count where the row's own fact stands among its exemplars: the row never saw it there.
    `invented`: whether some of its references are made up.
    """

    number: int
    p_sampled: float
    texts: Sequence[int]
    serves: NDArray[np.bool_]
    sets: NDArray[np.bool_]
    invented: bool


def line_of(row: ChanceRow, asked: ReferenceQuestion, samples: int, rules: Rules) -> dict[str, Any]:
    """A line of `CHANCE`. Where some sets do not count, `p_hit` is that of as many samples in the others."""
    count = int(row.serves.sum())
    if count < rules.least:
        return blank(row.number, NONE, count)
    if not row.sets.any():
        return blank(row.number, OWN_SETS, count)
    every = len(row.sets)
    picked = np.ix_(np.flatnonzero(row.serves), np.flatnonzero(row.sets))
    low, high = (_clip(ends[picked][:, :, list(row.texts)].sum(axis=2)) for ends in (asked.p, asked.high))
    greedy = np.isin(asked.greedy[picked], list(row.texts))
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
    """The line of a row without a null."""
    return {**dict.fromkeys(CHANCE), "row": row, "references": references, "flag": flag}


def _clip(p: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped: NDArray[np.float64] = np.clip(p, 0.0, 1.0)
    return clipped


def logits(p: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """log(p / (1 - p)), p clipped at `floor` and 1 less it."""
    clipped = np.clip(p, floor, 1.0 - floor)
    found: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return found


def corrected(rows: pl.DataFrame, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Shares without what chance explains: max(0, (observed - chance) / (1 - chance)), by group and overall ("").

    `rows`: group, observed, chance (0 to 1, no nulls). Overall is the mean of the groups' corrected shares by
    their rows: pooled first, a group of easy guesses would hide what is known in the others. `ci_low` and `ci_high`:
    95 % bootstrap interval, rows drawn within each group; where all rows are observed alike Wilson's interval of
    `observed` stands in, and groups of fewer than 5 rows have none. Null where chance is 1.
    """
    parts = sorted((str(group), part) for (group,), part in rows.group_by("group"))
    shown: dict[str, dict[str, Any]] = {}
    drawn: list[tuple[int, float, NDArray[np.float64]]] = []
    for number, (group, part) in enumerate(parts):
        observed, chance = part.sort("observed", "chance").select("observed", "chance").to_numpy().T
        share = _without(observed.mean(), chance.mean())
        draws = _resampled(observed, chance, np.random.default_rng([seed, number]))
        shown[group] = {
            "rows": part.height,
            "observed": float(observed.mean()),
            "chance": float(chance.mean()),
            "corrected": None if np.isnan(share) else float(share),
            **_ends(observed, float(chance.mean()), draws),
        }
        if not np.isnan(share):
            drawn.append((part.height, float(share), draws))
    total = sum(count for count, _, _ in drawn)
    pooled = np.sum([count * draws for count, _, draws in drawn], axis=0) / total if total else np.empty(0)
    overall = {
        "rows": rows.height,
        "observed": rows["observed"].mean(),
        "chance": rows["chance"].mean(),
        "corrected": sum(count * share for count, share, _ in drawn) / total if total else None,
        **_ends(np.empty(0), 0.0, pooled),
    }
    return {"": overall, **shown}


def _without(observed: Any, chance: Any) -> Any:
    """The corrected share; not a number where chance is 1."""
    room = 1.0 - np.asarray(chance, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(room > 1e-9, np.maximum(0.0, (observed - chance) / room), np.nan)


def _resampled(
    observed: NDArray[np.float64], chance: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Corrected shares of `DRAWS` bootstrap samples of the rows; a few at a time, whatever their number."""
    size = len(observed)
    at_once = max(1, 2**21 // size)
    found = []
    for start in range(0, DRAWS, at_once):
        picks = rng.integers(0, size, (min(at_once, DRAWS - start), size))
        found.append(_without(observed[picks].mean(axis=1), chance[picks].mean(axis=1)))
    return np.concatenate(found)


def _ends(observed: NDArray[np.float64], chance: float, draws: NDArray[np.float64]) -> dict[str, float | None]:
    known = draws[~np.isnan(draws)]
    if not len(known) or 0 < len(observed) < SMALL_STRATUM:
        return {"ci_low": None, "ci_high": None}
    if len(observed) and observed.min() == observed.max() and observed[0] in (0.0, 1.0):
        whole = wilson(round(float(observed.sum())), len(observed))
        return {"ci_low": float(_without(whole.low, chance)), "ci_high": float(_without(whole.high, chance))}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"ci_low": float(low), "ci_high": float(high)}


def chance_table(told: dict[str, Any], most: int = 24) -> pl.DataFrame:
    """`chance.json` for the terminal: shares of rows by relation as labelled, by chance, and without it, in %."""
    hit, greedy = told["corrected"]["hit"], told["corrected"]["greedy"]
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
