"""Exemplar sets: drawn once, apart from each other, and never with a row's own fact in its prompt."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import rows_frame
from foreknow.errors import InputError
from foreknow.prompts.few_shot import Exemplar, Exemplars, GroupExemplars, draw_exemplars, key, same_fact


def facts(count: int, group: str = "all", **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{group} {i}?",
            "answers": [f"{group} answer {i}", "other"],
            "subject": f"{group} {i}",
            "group": group,
            **more,
        }
        for i in range(count)
    ]


def shown(drawn: Exemplars, row: dict[str, Any]) -> list[tuple[Exemplar, ...]]:
    return [exemplars for exemplars, _ in drawn.groups[row["group"]].for_row(row["question"], row["subject"])]


def groups_of(rows: pl.DataFrame) -> list[str]:
    return rows["group"].unique(maintain_order=True).to_list()


rows_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {
            "question": st.sampled_from([f"Q{i}" for i in range(12)] + ["q1 ", " Q2"]),
            "answers": st.just(["x"]),
            "subject": st.sampled_from([None, *(f"S{i}" for i in range(9)), "s1", " S2 "]),
            "group": st.sampled_from(["one", "one", "two"]),
            "split": st.sampled_from([None, "train", "dev"]),
            "flags": st.sampled_from([[], [], ["long_answer"]]),
        }
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(rows_of_any_kind, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_a_rows_own_fact_never_stands_in_its_prompts(
    records: list[dict[str, Any]], shots: int, sets: int, seed: int, with_audited: bool
) -> None:
    rows = rows_frame(records)
    audited = rows["row"].head(rows.height // 2) if with_audited else None
    try:
        drawn = draw_exemplars(rows, groups_of(rows), shots=shots, sets=sets, seed=seed, audited=audited)
    except InputError:
        # a fact has a row at least, so there were fewer facts than a prompt needs and one to stand in
        usable = rows.filter(~pl.col("flags").list.contains("long_answer"))
        facts = {(subject or question).strip().casefold() for question, subject in usable["question", "subject"].rows()}
        dev = set(rows.filter(split="dev")["group"])
        assert len(facts) <= shots or dev
        return
    for row in rows.iter_rows(named=True):
        group = drawn.groups[row["group"]]
        filled = group.for_row(row["question"], row["subject"])
        assert len(filled) == sets
        everyone = {*group.reserve, *(e for one in group.sets for e in one)}
        others = [e for e in everyone if not same_fact(e, row["question"], row["subject"])]
        for planned, (exemplars, swapped) in zip(group.sets, filled, strict=True):
            assert len(exemplars) == shots
            own = [e for e in exemplars if same_fact(e, row["question"], row["subject"])]
            # one shot and two candidates, both the row's own: nothing is left to show
            assert not own or not others
            slots = [slot for slot, (was, now) in enumerate(zip(planned, exemplars, strict=True)) if was != now]
            assert slots == [s.slot for s in swapped]
            assert all(exemplars[s.slot] == s.exemplar for s in swapped)
            if len(others) >= shots:
                assert len({key(e) for e in exemplars}) == shots


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 8), st.integers(0, 3))
def test_sets_share_nothing_while_the_pool_lasts(count: int, shots: int, sets: int, seed: int) -> None:
    rows = rows_frame(facts(count))
    if count < shots + 1:
        with pytest.raises(InputError, match=f"found {count} rows that could serve, a prompt of {shots} shots needs"):
            draw_exemplars(rows, ["all"], shots=shots, sets=sets, seed=seed)
        return
    group = draw_exemplars(rows, ["all"], shots=shots, sets=sets, seed=seed).groups["all"]
    used = [e for one in group.sets for e in one]
    assert [len(one) for one in group.sets] == [shots] * sets
    assert all(len(set(one)) == shots for one in group.sets)
    assert not group.borrowed
    if count >= shots * sets:
        assert len(set(used)) == len(used)
        left = count - len(used)
        assert len(group.reserve) == (left if left >= 8 else count)
        assert set(group.reserve).isdisjoint(used) == (left >= 8)
    else:
        assert len(group.reserve) == count
    for row in rows.iter_rows(named=True):
        for exemplars, swapped in group.for_row(row["question"], row["subject"]):
            assert row["subject"] not in {e.subject for e in exemplars}
            assert len(set(exemplars)) == shots
            assert len(swapped) <= 1


def test_the_draw_follows_the_seed() -> None:
    rows = rows_frame(facts(40))
    first = draw_exemplars(rows, ["all"], shots=4, sets=3, seed=0)
    assert first == draw_exemplars(rows, ["all"], shots=4, sets=3, seed=0)
    assert first != draw_exemplars(rows, ["all"], shots=4, sets=3, seed=1)


def test_a_groups_draw_does_not_hang_on_other_groups() -> None:
    one, two = facts(30, "one"), facts(30, "two")
    alone = draw_exemplars(rows_frame(one), ["one"], shots=4, sets=3, seed=0).groups["one"]
    mixed = rows_frame([fact for pair in zip(two, one, strict=True) for fact in pair])
    assert draw_exemplars(mixed, ["one", "two"], shots=4, sets=3, seed=0).groups["one"] == alone
    assert draw_exemplars(mixed, ["two", "one"], shots=4, sets=3, seed=0).groups["one"] == alone
    other = draw_exemplars(mixed, ["two"], shots=4, sets=3, seed=0).groups["two"]
    names = [e.question.replace("two", "one") for one in other.sets for e in one]
    assert names != [e.question for g in alone.sets for e in g], "groups of one size are drawn differently"


def test_dev_rows_are_preferred_and_groups_without_them_use_their_own() -> None:
    rows = rows_frame([*facts(20, "one", split="train"), *facts(12, "one dev", split="dev")])
    rows = rows.with_columns(group=pl.col("group").str.replace(" dev", ""))
    drawn = draw_exemplars(rows, ["one"], shots=4, sets=3, seed=0)
    group = drawn.groups["one"]
    assert {e.question.startswith("one dev") for one in group.sets for e in one} == {True}
    assert drawn.reason == "exemplars are drawn from each group's dev rows (12 in all)"
    more = pl.concat([rows, rows_frame(facts(9, "two", split="train")).with_columns(row=pl.col("row") + 100)])
    drawn = draw_exemplars(more, ["one", "two"], shots=4, sets=3, seed=0)
    assert drawn.groups["one"] == group
    assert all(e.question.startswith("two") for one in drawn.groups["two"].sets for e in one)
    assert not drawn.groups["two"].borrowed
    assert drawn.reason.endswith("; groups without dev rows use their own rows")


def test_rows_that_are_not_audited_serve_if_they_are_enough() -> None:
    rows = rows_frame(facts(40))
    audited = rows["row"].head(20)
    drawn = draw_exemplars(rows, ["all"], shots=4, sets=4, seed=0, audited=audited)
    used = {e.question for one in drawn.groups["all"].sets for e in one}
    assert used <= set(rows["question"].tail(20))
    assert drawn.reason.endswith("rows that are not audited")
    drawn = draw_exemplars(rows, ["all"], shots=4, sets=5, seed=0, audited=audited)
    assert "a row's own fact is replaced in its prompts" in drawn.reason
    twice = rows.with_columns(subject=pl.lit("the same"))
    twice = pl.concat([rows.head(20), twice.tail(20)])
    drawn = draw_exemplars(twice, ["all"], shots=4, sets=4, seed=0, audited=audited)
    assert "a row's own fact is replaced" in drawn.reason, "many rows, but one fact only"
    everything = draw_exemplars(rows, ["all"], shots=4, sets=4, seed=0, audited=rows["row"])
    assert "a row's own fact is replaced in its prompts" in everything.reason


def test_a_pool_that_is_given_is_the_only_one() -> None:
    rows, pool = rows_frame(facts(40, split="dev")), rows_frame(facts(9, "pool")).with_columns(group=pl.lit("all"))
    drawn = draw_exemplars(rows, ["all"], shots=4, sets=2, seed=0, pool=pool)
    assert {e.question.split()[0] for one in drawn.groups["all"].sets for e in one} == {"pool"}
    assert drawn.reason == "exemplars are drawn from the 9 rows given with --exemplars"


def test_a_small_group_borrows_and_says_so() -> None:
    rows = rows_frame([*facts(20, "large"), *facts(4, "small"), *facts(5, "enough")])
    drawn = draw_exemplars(rows, ["large", "small", "enough", "absent"], shots=4, sets=3, seed=0)
    borrowed = {name: group.borrowed for name, group in drawn.groups.items()}
    assert borrowed == {"large": False, "small": True, "enough": False, "absent": True}
    assert drawn.notes == (
        "group 'small' has 4 possible exemplars, needs 5: drawn from all groups instead",
        "group 'absent' has 0 possible exemplars, needs 5: drawn from all groups instead",
    )
    assert {e.question.split()[0] for e in drawn.groups["small"].reserve} == {"large", "small", "enough"}


def test_too_few_rows_in_all() -> None:
    rows = rows_frame([*facts(2, "one"), *facts(2, "two")])
    with pytest.raises(InputError, match=r"found 4 rows that could serve, a prompt of 4 shots needs 5; .* --shots"):
        draw_exemplars(rows, ["one", "two"], shots=4, sets=10, seed=0)
    assert draw_exemplars(rows, ["one"], shots=3, sets=10, seed=0).groups["one"].borrowed


def test_rows_that_cannot_serve() -> None:
    good = facts(6)
    bad = [
        {**good[0], "question": "long", "subject": "long", "flags": ["long_answer"]},
        {**good[0], "question": "lines", "subject": "lines", "answers": ["two\nlines"]},
        {**good[0], "question": None, "subject": "none"},
        {**good[0], "question": "no answer", "subject": "no answer", "answers": None},
        {**good[0], "question": "empty", "subject": "empty", "answers": []},
        {**good[0], "question": "again", "subject": " ALL 0 "},
    ]
    group = draw_exemplars(rows_frame([*bad, *good]), ["all"], shots=4, sets=3, seed=0).groups["all"]
    assert {e.subject for e in group.reserve} == {"all 1", "all 2", "all 3", "all 4", "all 5", " ALL 0 "}
    assert {e.question for e in group.reserve} == {*(f"all {i}?" for i in range(1, 6)), "again"}
    assert all(e.answer.startswith("all answer") for e in group.reserve)


def test_substitutions_are_told_by_slot() -> None:
    a, b, c, d, e, f = (Exemplar(f"{name}?", name.upper(), name) for name in "abcdef")
    group = GroupExemplars(((a, b), (c, d), (b, c)), (e, f))
    first, second, third = group.for_row("asked otherwise?", " B ")
    assert first[0][0] == a
    assert [s.slot for s in first[1]] == [1]
    assert first[0][1] == first[1][0].exemplar in (e, f)
    assert second == ((c, d), [])
    assert [s.slot for s in third[1]] == [0]
    assert {first[0][1], third[0][0]} == {e, f}, "sets do not all get the same stand-in"
    by_question = group.for_row(" C? ", None)
    assert [[s.slot for s in swapped] for _, swapped in by_question] == [[], [0], [1]]
    own_reserve = group.for_row("e?", "e")
    assert own_reserve == [(one, []) for one in group.sets]


def test_two_own_facts_in_the_smallest_pool_are_both_replaced() -> None:
    asked = Exemplar("Who?", "1", "someone else")
    named = Exemplar("Other?", "2", "me")
    a, b, c = (Exemplar(f"{name}?", name, name) for name in "abc")
    group = GroupExemplars(((asked, named, a, b),), (asked, named, a, b, c))
    exemplars, swapped = group.for_row("Who?", "me")[0]
    assert asked not in exemplars
    assert named not in exemplars
    assert [s.slot for s in swapped] == [0, 1]


def test_an_answer_is_shown_by_another_fact_only() -> None:
    mine, twin, own_record = Exemplar("a?", "x", "a"), Exemplar("b?", "x", "b"), Exemplar("c?", "y", "c", 7)
    other, spare = Exemplar("d?", "z", "d"), Exemplar("e?", "w", "e")
    group = GroupExemplars(((mine, other), (own_record, other)), (spare,))
    assert not group.shows("x", "a?", "a"), "the row's own fact is replaced in its prompts"
    assert group.shows("x", "b?", "b"), "another fact with its answer"
    assert group.shows("w", "a?", "a"), "what takes the place of the own fact"
    assert not group.shows("w", "d2?", "d2"), "a spare one that stands in none of its prompts"
    assert not group.shows("y", "f?", "f", 7), "an answer of its own chat"
    assert group.shows("y", "f?", "f", 8)
    assert GroupExemplars(((mine, twin),), ()).shows("x", "a?", "a")


def test_zero_shots() -> None:
    drawn = draw_exemplars(rows_frame(facts(1)), ["all"], shots=0, sets=3, seed=0)
    assert drawn.groups["all"].for_row("all 0?", "all 0") == [((), [])] * 3
    assert drawn.reason == "no exemplars: zero shots"
    assert drawn.as_json() == {"all": [[], [], []]}


def test_json_holds_every_prompt_in_order() -> None:
    drawn = draw_exemplars(rows_frame(facts(12)), ["all"], shots=2, sets=3, seed=0)
    assert drawn.as_json() == {
        "all": [[{"question": e.question, "answer": e.answer} for e in one] for one in drawn.groups["all"].sets]
    }
