"""Draw few-shot exemplars, the question-answer pairs before each question of a group (paper, section 2). Pure.

They are drawn once per group from its dev rows, and used for all its questions. A prompt never shows the row's own
fact: a slot with the row's subject is filled from the group's reserve instead. A prompt does not show another answer of
the row's chat either: a record gives at most one exemplar, and the record's own rows never see it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from foreknow.data.exact_match import canonical
from foreknow.errors import InputError


class Exemplar(NamedTuple):
    """A question and answer as shown in a prompt, with the fact's `subject` and the number of its `record`."""

    question: str
    answer: str
    subject: str | None
    record: int | None = None


class Substitution(NamedTuple):
    """An exemplar that stands in a slot in place of the row's own fact."""

    slot: int
    exemplar: Exemplar


@dataclass(frozen=True)
class GroupExemplars:
    """A group's `sets` (each of `shots` exemplars) and `reserve`. `borrowed`: they come from rows of all groups."""

    sets: tuple[tuple[Exemplar, ...], ...]
    reserve: tuple[Exemplar, ...]
    borrowed: bool = False

    def for_row(
        self, question: str, subject: str | None, record: int | None = None
    ) -> list[tuple[tuple[Exemplar, ...], list[Substitution]]]:
        """Return the sets for one row. Exemplars of the row's own fact or record are replaced from the reserve.

        Reserve exemplars of the row's own fact, or already in the set, are skipped.
        """
        own = self._sets_with(question, subject, record)
        sets_for_row: list[tuple[tuple[Exemplar, ...], list[Substitution]]] = []
        for number, exemplars in enumerate(self.sets):
            if number not in own:
                sets_for_row.append((exemplars, []))
                continue
            filled, swapped = list(exemplars), list[Substitution]()
            for slot, exemplar in enumerate(exemplars):
                if not same_fact(exemplar, question, subject, record):
                    continue
                taken_keys = {key(e) for e in filled}
                others = [e for e in self.reserve if not same_fact(e, question, subject, record)]
                # the smallest pools may have none left: showing an exemplar twice is better than showing the answer
                spare = [e for e in others if key(e) not in taken_keys] or others
                if spare:
                    filled[slot] = spare[(number * len(exemplars) + slot) % len(spare)]
                    swapped.append(Substitution(slot, filled[slot]))
            sets_for_row.append((tuple(filled), swapped))
        return sets_for_row

    def shows(self, answer: str, question: str, subject: str | None, record: int | None = None) -> bool:
        """Return whether a prompt of this row shows an exemplar of another fact that has the answer.

        An exemplar of the row's own fact does not count: it is replaced in the row's own prompts.
        """
        if answer not in self._answers:
            return False
        return any(
            exemplar.answer == answer and not same_fact(exemplar, question, subject, record)
            for exemplars, _ in self.for_row(question, subject, record)
            for exemplar in exemplars
        )

    @cached_property
    def _answers(self) -> frozenset[str]:
        return frozenset(e.answer for exemplars in (*self.sets, self.reserve) for e in exemplars)

    def _sets_with(self, question: str, subject: str | None, record: int | None) -> set[int]:
        """Return the numbers of the sets with an exemplar of this fact, as `same_fact` decides."""
        of_question, of_subject, of_record = self._sets_by_fact
        numbers = set(of_question.get(_fold(question), ()))
        if subject:
            numbers.update(of_subject.get(_fold(subject), ()))
        if record is not None:
            numbers.update(of_record.get(record, ()))
        return numbers

    @cached_property
    def _sets_by_fact(self) -> tuple[dict[str, set[int]], dict[str, set[int]], dict[int, set[int]]]:
        of_question: dict[str, set[int]] = {}
        of_subject: dict[str, set[int]] = {}
        of_record: dict[int, set[int]] = {}
        for number, exemplars in enumerate(self.sets):
            for exemplar in exemplars:
                of_question.setdefault(_fold(exemplar.question), set()).add(number)
                if exemplar.subject:
                    of_subject.setdefault(_fold(exemplar.subject), set()).add(number)
                if exemplar.record is not None:
                    of_record.setdefault(exemplar.record, set()).add(number)
        return of_question, of_subject, of_record


@dataclass(frozen=True)
class Exemplars:
    """Exemplar sets by group, and the reason for the rows they were drawn from."""

    groups: dict[str, GroupExemplars]
    reason: str
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the content of `exemplars.json`: group -> sets -> exemplars in slot order."""
        return {
            group: [[{"question": e.question, "answer": e.answer} for e in exemplar_set] for exemplar_set in g.sets]
            for group, g in self.groups.items()
        }


def key(exemplar: Exemplar) -> str:
    """Return the text by which two exemplars count as the same fact: the subject if there is one, else the question."""
    return _fold(exemplar.subject or exemplar.question)


def same_fact(exemplar: Exemplar, question: str, subject: str | None, record: int | None = None) -> bool:
    """Return whether an exemplar is about the row's subject, asks its question, or is of its record."""
    if record is not None and exemplar.record == record:
        return True
    if _fold(exemplar.question) == _fold(question):
        return True
    return bool(subject and exemplar.subject and _fold(subject) == _fold(exemplar.subject))


@lru_cache(maxsize=4096)
def _fold(text: str) -> str:
    """Return a form that is equal for texts that differ only in case, or in how Unicode spells their accents."""
    return canonical(canonical(text).casefold())


class TooFewExemplars(InputError):
    """There are fewer rows that could serve as exemplars than a prompt needs."""


def draw_exemplars(
    rows: pl.DataFrame,
    groups: Sequence[str],
    *,
    shots: int,
    sets: int,
    seed: int,
    pool: pl.DataFrame | None = None,
    audited: pl.Series | None = None,
) -> Exemplars:
    """Draw `sets` x `shots` exemplars for each of `groups`.

    `rows`: every row of the file (design, section 3). `pool`: the rows of `--exemplars`. Without it, a group's dev
    rows are the pool. Without dev rows, the pool is the group's rows that are not `audited` (row numbers), or, if
    these are too few, all its rows, each replaced in its own prompts. A group with fewer than shots + 1 candidates
    borrows from all groups. Raises TooFewExemplars where even these are too few. Draws nothing for no group.
    """
    if shots == 0:
        empty = GroupExemplars(tuple(() for _ in range(sets)), ())
        return Exemplars(dict.fromkeys(groups, empty), "no exemplars: zero shots")
    if not groups:
        return Exemplars({}, "no exemplars of short answers: no row with a short answer is asked")
    source, reason = _choose_pool(rows, pool, audited, shots * sets)
    need = shots + 1
    everything = _candidates(source, need)
    if len(everything) < need:
        raise TooFewExemplars(
            f"exemplars: found {len(everything)} rows that could serve, a prompt of {shots} shots needs {need}; "
            "add rows with question and answer, give --exemplars FILE, or lower --shots"
        )
    by_group = {str(name): _candidates(frame, need) for (name,), frame in source.group_by("group", maintain_order=True)}
    sets_by_group, notes = {}, []
    for group in groups:
        own = by_group.get(group, [])
        borrowed = len(own) < need
        if borrowed:
            notes.append(
                f"group {group!r} has {len(own)} possible exemplars, needs {need}: drawn from all groups instead"
            )
        rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
        sets_by_group[group] = _draw_group(everything if borrowed else own, shots, sets, rng, borrowed)
    return Exemplars(sets_by_group, reason, tuple(notes))


def _choose_pool(
    rows: pl.DataFrame, pool: pl.DataFrame | None, audited: pl.Series | None, plenty: int
) -> tuple[pl.DataFrame, str]:
    if pool is not None:
        apart = pool.with_columns(record=pl.lit(None, pl.Int64))  # its numbers are those of another file's records
        return apart, f"exemplars are drawn from the {pool.height:,} rows given with --exemplars"
    dev = rows.filter(pl.col("split") == "dev")
    if dev.height > 0:
        # a group without dev rows falls back to its own rows, not to another group's
        groups = dev["group"].unique().implode()
        rest = rows.filter(~pl.col("group").is_in(groups))
        reason = f"exemplars are drawn from each group's dev rows ({dev.height:,} in all)"
        if rest.height:
            reason += "; groups without dev rows use their own rows"
        return pl.concat([dev, rest]), reason
    if audited is not None and audited.len() < rows.height:
        rest = rows.filter(~pl.col("row").is_in(audited.implode()))
        # count the facts that could serve, not rows: duplicates and long answers do not count
        smallest = min((len(_candidates(frame)) for _, frame in rest.group_by("group")), default=0)
        if rest["group"].n_unique() == rows["group"].n_unique() and smallest > plenty:
            return (
                rest,
                "no row is marked dev: exemplars are drawn from each group's rows that are not audited",
            )
    return rows, (
        "no row is marked dev: exemplars are drawn from each group's own rows, and a row's own fact is "
        "replaced in its prompts"
    )


def _candidates(rows: pl.DataFrame, need: int = 0) -> list[Exemplar]:
    """Return usable exemplars in row order: one for each fact, and one for each record.

    Rows that follow earlier turns of a chat, which an exemplar does not show, are used only if the others are too few.
    """
    usable = rows.filter(
        pl.col("question").is_not_null()
        & (pl.col("answers").list.len() > 0)
        & ~pl.col("flags").list.contains("long_answer")
        & ~pl.col("flags").list.contains("long_prompt")
    )
    earlier = pl.col("context").list.eval(pl.element().struct.field("role") != "system").list.any().fill_null(False)
    exemplars = _one_per_fact(usable.filter(~earlier)) if "context" in usable.columns else _one_per_fact(usable)
    return exemplars if len(exemplars) >= need else _one_per_fact(usable)


def _one_per_fact(usable: pl.DataFrame) -> list[Exemplar]:
    seen: set[str | int] = set()
    exemplars = []
    columns = ("question", "answers", "subject", *(["record"] if "record" in usable.columns else []))
    for question, answers, subject, *record in usable.select(columns).iter_rows():
        exemplar = Exemplar(question, answers[0], subject, *record)
        names = {key(exemplar), *(n for n in record if n is not None)}
        if seen.isdisjoint(names) and "\n" not in answers[0]:
            seen |= names
            exemplars.append(exemplar)
    return exemplars


def _draw_group(
    candidates: list[Exemplar], shots: int, sets: int, rng: np.random.Generator, borrowed: bool
) -> GroupExemplars:
    """Draw sets without shared exemplars if there are enough candidates. The reserve is the rest, or all candidates."""
    order = [candidates[i] for i in rng.permutation(len(candidates))]
    if len(order) >= sets * shots:
        chosen = [tuple(order[i * shots : (i + 1) * shots]) for i in range(sets)]
        reserve = order[sets * shots :]
    else:
        chosen = [tuple(order[i] for i in rng.choice(len(order), shots, replace=False)) for _ in range(sets)]
        reserve = []
    return GroupExemplars(tuple(chosen), tuple(reserve if len(reserve) >= 8 else order), borrowed)
