"""Draw sets of exemplars with long answers, which stand before the rows whose fact spans are probed. Pure.

They come from the same rows as the exemplars of short answers: `--exemplars`, else dev rows, else the file's own rows.
A row never sees an exemplar that is the row itself, asks its question, has its subject, or shares much of its text:
another exemplar takes that place, and where there is none, the place stays empty.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.data.schema import USABLE, has_flag
from foreknow.prompts.few_shot import Exemplar, key, same_fact

RESERVE: Final = 8
"""Exemplars kept per group to take the place of those that a row must not see."""
NEAR: Final = 0.8
"""Two answers are near-duplicates if this share of the shorter one's runs of five words is in the other."""
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?。！？](?=\s|\Z)|\n")


@dataclass(frozen=True)
class LongExemplars:
    """Exemplar sets by group. `reserve`: by group, exemplars that take another's place. `reason`: where they are from.

    `notes`: lines for the user where there are fewer sets or shots than the settings ask for.
    """

    sets: dict[str, tuple[tuple[Exemplar, ...], ...]]
    reserve: dict[str, tuple[Exemplar, ...]]
    reason: str
    notes: tuple[str, ...] = ()

    def for_row(
        self, group: str, question: str, answer: str, subject: str | None, record: int | None
    ) -> list[tuple[Exemplar, ...]]:
        """Return the sets as one row sees them: at least one, and that may be empty."""
        shingles = _shingles(answer)

        def clashes(exemplar: Exemplar) -> bool:
            return same_fact(exemplar, question, subject, record) or _near(shingles, _shingles(exemplar.answer))

        own_sets = []
        for number, exemplars in enumerate(self.sets[group]):
            bad = {exemplar for exemplar in exemplars if clashes(exemplar)}
            spare = [e for e in self.reserve[group] if e not in exemplars and not clashes(e)] if bad else []
            filled: list[Exemplar] = []
            for slot, exemplar in enumerate(exemplars):
                if exemplar not in bad:
                    filled.append(exemplar)
                elif spare:
                    filled.append(spare.pop((number * len(exemplars) + slot) % len(spare)))
            own_sets.append(tuple(filled))
        return list(dict.fromkeys(own_sets)) or [()]

    def as_json(self) -> dict[str, Any]:
        """Return group -> sets -> exemplars in slot order, for `exemplars.json`."""
        return {
            group: [[{"question": e.question, "answer": e.answer} for e in own] for own in sets]
            for group, sets in self.sets.items()
        }


def draw_long_exemplars(
    rows: pl.DataFrame,
    audited: pl.DataFrame,
    *,
    shots: int,
    sets: int,
    seed: int,
    shorten: Callable[[Exemplar], Exemplar | None],
    pool: pl.DataFrame | None = None,
) -> LongExemplars:
    """Draw `sets` x `shots` exemplars with long answers for each group of `audited`, the rows to probe.

    `rows`: every row of the file, `pool`: those of `--exemplars`; both with the flag `long_answer`. `shorten` cuts an
    exemplar to what one may take, or returns None where too little is left. A group with too few candidates
    shares the sets of all groups. With fewer candidates than shots, the sets are smaller, down to one empty set.
    """
    groups = sorted(audited["group"].unique())
    if shots == 0 or not groups:
        empty: tuple[tuple[Exemplar, ...], ...] = ((),)
        return LongExemplars(dict.fromkeys(groups, empty), dict.fromkeys(groups, ()), "no exemplars: zero shots")
    candidates, reason = _choose_candidates(rows, audited, pool, shots * sets)
    need = shots * sets + RESERVE
    shared = _draw(_exemplars(candidates), shots, sets, np.random.default_rng([seed, 1]), shorten)
    by_group = {str(name): part for (name,), part in candidates.group_by("group", maintain_order=True)}
    sets_by_group, reserve = {}, {}
    for group in groups:
        drawn = shared
        if len(groups) > 1 and group in by_group and by_group[group].height >= need:
            rng = np.random.default_rng([seed, 1, zlib.crc32(group.encode())])
            own = _draw(_exemplars(by_group[group]), shots, sets, rng, shorten)
            drawn = own if own.candidates >= need else shared
        sets_by_group[group], reserve[group] = drawn.sets, drawn.reserve
    notes = []
    if shared.candidates <= shots * sets:
        notes.append(
            f"spans of long answers: {shared.candidates} rows can serve as exemplars, {sets} sets of {shots} need "
            f"{shots * sets + 1}: {len(shared.sets)} x {len(shared.sets[0])} are used"
        )
    return LongExemplars(sets_by_group, reserve, reason, tuple(notes))


def _choose_candidates(
    rows: pl.DataFrame, audited: pl.DataFrame, pool: pl.DataFrame | None, need: int
) -> tuple[pl.DataFrame, str]:
    """Return the rows that exemplars are drawn from, and why these."""
    if pool is not None and (given := _usable(pool)).height > 1:
        return given.with_columns(record=pl.lit(None, pl.Int64)), "from the rows given with --exemplars"
    usable = _usable(rows)
    dev = usable.filter(pl.col("split") == "dev")
    if dev.height > need:
        return dev, "from the dev rows"
    rest = usable.filter(~pl.col("row").is_in(audited["row"].implode()))
    if rest.height > need:
        return rest, "from rows that are not audited"
    return usable, "from the audited rows themselves; a row never sees itself"


def _usable(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with long answers that can be shown, those that follow no earlier turns if there are enough."""
    usable = rows.filter(
        USABLE & has_flag("long_answer") & ~has_flag("long_prompt", "template_refuses", "template_drops", "unspellable")
    )
    earlier = pl.col("context").list.eval(pl.element().struct.field("role") != "system").list.any().fill_null(False)
    alone = usable.filter(~earlier)
    return alone if alone.height > 1 else usable


def _exemplars(rows: pl.DataFrame) -> list[Exemplar]:
    """Return one exemplar for each fact and record, in row order."""
    seen: set[str | int] = set()
    exemplars = []
    for question, answers, subject, record in rows.select("question", "answers", "subject", "record").iter_rows():
        exemplar = Exemplar(question, answers[0], subject, record)
        names: set[str | int] = {key(exemplar), *([] if record is None else [record])}
        if seen.isdisjoint(names):
            seen |= names
            exemplars.append(exemplar)
    return exemplars


class _Draw(NamedTuple):
    """Drawn sets, a reserve, and how many candidates could serve, up to those that were needed."""

    sets: tuple[tuple[Exemplar, ...], ...]
    reserve: tuple[Exemplar, ...]
    candidates: int


def _draw(
    candidates: Sequence[Exemplar],
    shots: int,
    sets: int,
    rng: np.random.Generator,
    shorten: Callable[[Exemplar], Exemplar | None],
) -> _Draw:
    """Draw sets and a reserve; sets share exemplars only where there are too few candidates."""
    order: list[Exemplar] = []
    for i in rng.permutation(len(candidates)):
        if len(order) == shots * sets + RESERVE:
            break
        if (exemplar := shorten(candidates[i])) is not None:
            order.append(exemplar)
    if len(order) > shots * sets:
        chosen = [tuple(order[i * shots : (i + 1) * shots]) for i in range(sets)]
        return _Draw(tuple(chosen), tuple(order[sets * shots :]), len(order))
    size = min(shots, max(len(order) - 1, 0))  # one candidate may be the row itself
    drawn = [tuple(order[i] for i in rng.choice(len(order), size, replace=False)) for _ in range(sets)] if size else []
    return _Draw(tuple(dict.fromkeys(drawn)) or ((),), tuple(order), len(order))


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return frozenset(zip(*(words[i:] for i in range(5)), strict=False))


def _near(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    smaller = min(len(one), len(other))
    return smaller > 0 and len(one & other) >= NEAR * smaller


def cut_text(text: str, end: int) -> str:
    """Return the text up to the last end of a sentence in front of character `end`, else up to the last blank."""
    if end >= len(text):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, end)]
    cut = ends[-1] if ends and ends[-1] > end // 3 else max(text.rfind(" ", 0, end), 0) or end
    return text[:cut].rstrip()
