"""Mixes: totals exact, one relation mix over all variants, sets that hold one another's rows, D_Known, refusals."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.config import MixConfig
from foreknow.errors import ConfigError, InputError
from foreknow.io.run_dir import fingerprint, write_json
from foreknow.settings import settings_of
from foreknow.stages.mix.sampling import (
    MIX,
    Mix,
    draw_mix,
    manifest_path,
    mix_table,
    numbers_text,
    read_manifest,
    rows_of,
    size_table,
)
from foreknow.stages.mix.sizes import COUNTS, Family, drawable, largest, natural_counts, unknown_counts

PAPER = {  # Table 3: train rows by category; sum and Unknown share are printed there too
    "P131": (553, 2529, 1493, 3071), "P136": (236, 3410, 1892, 1978), "P17": (4387, 2628, 511, 364),
    "P19": (369, 1884, 1498, 4170), "P26": (1609, 1503, 1087, 3257), "P264": (206, 1444, 1854, 3820),
    "P36": (4160, 1634, 449, 572), "P40": (692, 1467, 1271, 2680), "P495": (5459, 1101, 408, 706),
    "P69": (233, 1126, 1712, 3650), "P740": (1323, 1618, 1428, 2902), "P800": (301, 330, 222, 503),
}  # fmt: skip
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
AUDIT = {
    "stage": "audit",
    "identity": {"data": "sha256:facts", "model": "sha256:weights", "seed": 0},
    "model": {"name": "tiny", "fingerprint": "sha256:weights"},
    "rows": "sha256:labels",
}
Counts = dict[str, tuple[int, int, int, int]]


def audited(counts: Counts, split: str | None = None) -> pl.DataFrame:
    """An audit's rows with so many of each category in each relation, the columns that a mix reads."""
    found = [
        (relation, category, f"{category} {n} of {relation}?")
        for relation, of in counts.items()
        for category, many in zip(CATEGORIES, of, strict=True)
        for n in range(many)
    ]
    return pl.DataFrame(
        {
            "row": range(len(found)),
            "group": [line[0] for line in found],
            "relation": [line[0] for line in found],
            "split": pl.Series([split] * len(found), dtype=pl.String),
            "question": [line[2] for line in found],
            "answer": [f"answer to {line[2]}" for line in found],
            "category": pl.Series([line[1] for line in found], dtype=pl.String),
            "flags": pl.Series([[] for _ in found], dtype=pl.List(pl.String)),
        },
        schema_overrides={"row": pl.Int64(), "group": pl.String(), "relation": pl.String()},
    )


def wanted(**given: Any) -> MixConfig:
    return settings_of(MixConfig, {"audit": "audit", "out": "train.jsonl", **given})


def mixed(rows: pl.DataFrame, **given: Any) -> Mix:
    return draw_mix(rows, wanted(**given), AUDIT)


def by_relation(mix: Mix) -> dict[str, int]:
    return dict(sorted(mix.rows.group_by("group").len().iter_rows()))


def numbers(mix: Mix, *categories: str) -> set[int]:
    return set(mix.rows.filter(pl.col("category").is_in(categories or CATEGORIES))["row"])


def refusal(rows: pl.DataFrame, **given: Any) -> str:
    with pytest.raises(InputError) as caught:
        mixed(rows, **given)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


few = st.integers(0, 12)
tables = st.dictionaries(
    st.sampled_from(["born", "capital", "river", "spouse", "label", "genre"]),
    st.tuples(few, few, few, few),
    min_size=1,
)
shares = st.one_of(st.sampled_from(SHARES), st.integers(0, 1000).map(lambda n: n / 1000))


# Sizes


def test_the_papers_counts_give_its_size() -> None:
    rows = audited(PAPER)
    assert rows.height == 81_700
    categories = largest(rows, "categories")
    assert categories.total == 6_142
    assert categories.limits == {relation: min(of) for relation, of in PAPER.items()}
    only_shares = largest(rows, "shares")
    assert only_shares.total == 26_359
    assert only_shares.limits == {relation: min(sum(of[:3]), of[3]) for relation, of in PAPER.items()}
    assert dict(only_shares.by_relation.schema) == COUNTS


def test_the_papers_variants_can_be_drawn() -> None:
    rows = audited(PAPER)
    sets = {share: mixed(rows, unknown=share, family="categories") for share in (0.1, 0.5, 1.0)}
    sets |= {name: mixed(rows, only=name, family="categories") for name in ("MaybeKnown", UNKNOWN)}
    sets["natural"] = mixed(rows, natural=True, family="categories")
    assert {mix.rows.height for mix in sets.values()} == {6_142}
    assert all(
        by_relation(mix) == {relation: min(PAPER[relation]) for relation in sorted(PAPER)} for mix in sets.values()
    )
    assert [sets[share].manifest["counts"]["overall"][UNKNOWN] for share in (0.1, 0.5, 1.0)] == [614, 3_071, 6_142]
    assert numbers(sets[1.0]) == numbers(sets[UNKNOWN]), "100 % Unknown and only Unknown are one set"
    natural = sets["natural"].manifest["counts"]["overall"]
    due = {c: sum(min(of) * of[i] / sum(of) for of in PAPER.values()) for i, c in enumerate(CATEGORIES)}
    assert all(abs(natural[name] - due[name]) < 5 for name in CATEGORIES), (natural, due)


@settings(deadline=None, max_examples=80)
@given(tables, shares)
def test_the_limits_are_the_largest_that_hold(counts: Counts, share: float) -> None:
    rows = audited(counts)
    if rows.is_empty():
        return
    exact = Fraction(str(share))
    for family in ("shares", "categories"):
        limits = largest(rows, family).limits
        for relation, of in counts.items():
            parts = of if family == "categories" else (sum(of[:3]), of[3])
            if sum(of):
                assert all(part >= limits[relation] for part in parts)
                assert any(part < limits[relation] + 1 for part in parts)
    own = largest(rows, "own", share=share)
    for relation, of in counts.items():
        if sum(of):
            known, unknown, n = sum(of[:3]), of[3], own.limits[relation]
            assert n * (1 - exact) <= known
            assert n * exact <= unknown
            assert (n + 1) * (1 - exact) > known or (n + 1) * exact > unknown
    assert own.total >= largest(rows, "shares").total >= largest(rows, "categories").total
    assert largest(rows, "own", categories=KNOWN).total == sum(sum(of[:3]) for of in counts.values())


@settings(deadline=None, max_examples=120)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(0, 40), min_size=1, max_size=12))
def test_unknown_rows_are_shared_out_exactly_and_never_taken_back(sizes: dict[str, int]) -> None:
    whole = sum(sizes.values())
    before = dict.fromkeys(sizes, 0)
    for total in range(whole + 1):
        counts = unknown_counts(sizes, float(Fraction(total, whole or 1)))
        assert sum(counts.values()) == total
        for name, n in sizes.items():
            assert n * total // whole <= counts[name] <= -(-n * total // whole) if whole else counts[name] == 0
            assert counts[name] >= before[name]
        before = counts
    assert before == sizes


def test_a_large_relation_beside_many_small_ones_keeps_its_share() -> None:
    sizes = {**{f"small {n:02}": 1 for n in range(50)}, "large": 50}
    assert [unknown_counts(sizes, share)["large"] for share in (0.2, 0.4, 0.6)] == pytest.approx([10, 20, 30], abs=1)


def test_dues_are_rounded_to_the_nearest() -> None:
    sizes = dict(zip("abcdefghijk", (18, 17, 14, 9, 8, 8, 6, 5, 4, 3, 3), strict=True))
    for share in SHARES:
        counts = unknown_counts(sizes, share)
        total = sum(counts.values())
        assert all(counts[name] == pytest.approx(n * total / 95, abs=0.65) for name, n in sizes.items()), share


def test_a_relation_that_lacks_rows_for_its_rounded_due_leaves_it_to_others() -> None:
    counts: Counts = {"scarce": (7, 0, 0, 3), **{f"small {n}": (1, 0, 0, 1) for n in range(22)}}
    assert unknown_counts({name: 10 if name == "scarce" else 1 for name in counts}, 0.3)["scarce"] == 4
    mix = mixed(audited(counts), unknown=0.3, family="own")
    assert (mix.rows.height, len(numbers(mix, UNKNOWN))) == (32, 10)
    assert mix.manifest["counts"]["by_relation"]["scarce"] == dict(zip(CATEGORIES, (7, 0, 0, 3), strict=True))


def test_halves_are_rounded_up_and_shares_are_read_as_written() -> None:
    assert unknown_counts({"a": 5}, 0.5) == {"a": 3}
    assert unknown_counts({"a": 10}, 0.25) == {"a": 3}
    assert unknown_counts({"a": 1000}, 0.0005) == {"a": 1}
    assert unknown_counts({"a": 45}, 0.7) == {"a": 32}, "0.7 x 45 is 31.4999... in binary"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.data())
def test_natural_counts_are_the_due_ones_rounded(counts: list[int], data: st.DataObject) -> None:
    whole = sum(counts)
    size = data.draw(st.integers(0, whole))
    taken = natural_counts(counts, size, data.draw(st.integers(0, max(whole - 1, 0))))
    assert sum(taken) == size
    for count, n in zip(counts, taken, strict=True):
        assert (count * size // whole if whole else 0) <= n <= min(count, -(-count * size // (whole or 1)))


# What is drawn


@settings(deadline=None, max_examples=60)
@given(
    tables, st.lists(shares, min_size=2, max_size=4, unique=True), st.sampled_from(["shares", "categories"]), st.data()
)
def test_a_family_has_one_size_one_relation_mix_and_shared_rows(
    counts: Counts, asked: list[float], family: Family, data: st.DataObject
) -> None:
    rows = audited(counts)
    total = 0 if rows.is_empty() else largest(rows, family).total
    if total == 0:
        with pytest.raises(InputError):
            mixed(rows, unknown=asked[0], family=family)
        return
    size = data.draw(st.integers(1, total))
    sets = [mixed(rows, unknown=share, family=family, size=size) for share in sorted(asked)]
    for share, mix in zip(sorted(asked), sets, strict=True):
        assert mix.rows.height == size == mix.manifest["size"]
        assert by_relation(mix) == by_relation(sets[0])
        unknown = len(numbers(mix, UNKNOWN))
        assert abs(unknown - Fraction(str(share)) * size) <= Fraction(1, 2), "no other total is nearer"
        assert mix.manifest["share"] == {"asked": share, "achieved": unknown / size}
        for relation, n in by_relation(mix).items():
            here = mix.rows.filter((pl.col("group") == relation) & (pl.col("category") == UNKNOWN)).height
            assert n * unknown // size <= here <= -(-n * unknown // size)
    for less, more in pairwise(sets):
        assert numbers(less, UNKNOWN) <= numbers(more, UNKNOWN)
        assert numbers(less, *KNOWN) >= numbers(more, *KNOWN)
    assert f"largest size is {total}" in refusal(rows, unknown=asked[0], family=family, size=total + 1)


@settings(deadline=None, max_examples=60)
@given(tables, shares, st.data())
def test_a_set_of_its_own_size_has_the_share_in_every_relation(
    counts: Counts, share: float, data: st.DataObject
) -> None:
    rows = audited(counts)
    total = 0 if rows.is_empty() else largest(rows, "own", share=share).total
    if total == 0:
        return
    size = data.draw(st.sampled_from([total, data.draw(st.integers(1, total))]))
    mix = mixed(rows, unknown=share, family="own", size=size)
    assert mix.rows.height == size
    assert abs(len(numbers(mix, UNKNOWN)) - Fraction(str(share)) * size) <= Fraction(1, 2)
    refusal(rows, unknown=share, family="own", size=total + 1)
    for relation, n in by_relation(mix).items():
        here = mix.rows.filter((pl.col("group") == relation) & (pl.col("category") == UNKNOWN)).height
        assert abs(here - share * n) < 2


@settings(deadline=None, max_examples=50)
@given(
    tables,
    st.sampled_from(
        [{"unknown": 0.3}, {"natural": True}, {"only": "maybe"}, {"drop": "unknown"}, {"unknown": 0.6, "family": "own"}]
    ),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_neither_the_order_of_the_rows_nor_their_numbers_matter(
    counts: Counts, kind: dict[str, Any], seed: int, random: Any
) -> None:
    rows = audited(counts)
    order = list(range(rows.height))
    random.shuffle(order)
    try:
        mix = mixed(rows, seed=seed, **kind)
    except InputError as error:
        with pytest.raises(InputError, match="^" + str(error)[:40].replace("(", r"\(").replace("+", r"\+")):
            mixed(rows[order], seed=seed, **kind)
        return
    size = random.randint(1, mix.rows.height)
    mix, again = mixed(rows, seed=seed, size=size, **kind), mixed(rows[order], seed=seed, size=size, **kind)
    assert again.rows.equals(mix.rows)
    assert again.manifest == mix.manifest
    moved = rows[order].with_columns(row=pl.int_range(rows.height, dtype=pl.Int64))
    assert set(mixed(moved, seed=seed, size=size, **kind).rows["question"]) == set(mix.rows["question"])


def test_another_seed_draws_other_rows_in_the_same_numbers() -> None:
    rows = audited({"a": (40, 40, 40, 120), "b": (9, 9, 9, 27)})
    first, second = (mixed(rows, unknown=0.5, size=60, seed=seed) for seed in (1, 2))
    assert by_relation(first) == by_relation(second)
    assert 5 < len(numbers(first) & numbers(second)) < 55


def test_known_rows_are_drawn_from_the_three_categories_together() -> None:
    mix = mixed(audited({"a": (300, 600, 100, 1000)}), unknown=0.5, size=1000)
    found = mix.manifest["counts"]["overall"]
    assert found[UNKNOWN] == 500
    assert [found[name] for name in KNOWN] == pytest.approx([150, 300, 50], abs=35)
    assert len({found[name] / due for name, due in zip(KNOWN, (150, 300, 50), strict=True)}) > 1, "not stratified"


@settings(deadline=None, max_examples=60)
@given(tables, st.data())
def test_natural_sets_keep_the_shares_of_every_relation(counts: Counts, data: st.DataObject) -> None:
    rows = audited(counts)
    if rows.is_empty():
        return
    dropped = data.draw(st.sets(st.sampled_from(CATEGORIES), max_size=3))
    kind: dict[str, Any] = {"drop": sorted(dropped)} if dropped else {"natural": True}
    left = {r: tuple(0 if c in dropped else n for c, n in zip(CATEGORIES, of, strict=True)) for r, of in counts.items()}
    total = sum(map(sum, left.values()))
    if total == 0:
        refusal(rows, **kind)
        return
    assert numbers(mixed(rows, **kind)) == set(rows.filter(~pl.col("category").is_in(dropped))["row"])
    mix = mixed(rows, size=data.draw(st.integers(1, total)), **kind)
    for relation, n in by_relation(mix).items():
        for category, count in zip(CATEGORIES, left[relation], strict=True):
            here = mix.manifest["counts"]["by_relation"][relation][category]
            assert count * n // sum(left[relation]) <= here <= -(-count * n // sum(left[relation]))
    refusal(rows, size=total + 1, **kind)


def test_many_small_relations_do_not_sum_to_a_wrong_share() -> None:
    mix = mixed(audited({f"r{n}": (1, 1, 1, 5) for n in range(400)}), natural=True, size=400)
    assert set(by_relation(mix).values()) == {1}
    assert mix.manifest["share"]["achieved"] == pytest.approx(5 / 8, abs=0.08), "not all of the largest category"


def test_one_category() -> None:
    counts = {"a": (3, 5, 2, 9), "b": (0, 4, 1, 1)}
    rows = audited(counts)
    assert mixed(rows, only="maybe").manifest["counts"]["overall"]["MaybeKnown"] == 9
    fair = [mixed(rows, only=name, family="categories") for name in CATEGORIES]
    assert [by_relation(mix) for mix in fair] == [{"a": 2}] * 4
    assert [set(mix.rows["category"]) for mix in fair] == [{name} for name in CATEGORIES]
    assert fair[0].manifest["relations_left_out"] == {"b": 6}
    told = refusal(rows, only="highly", family="categories", size=3)
    assert told.startswith("--size 3: the largest size is 2, the sum over relations of the smallest category")
    assert "This set alone can have 3 rows (--family own)." in told
    assert "Relation 'a' would have to give 3 rows and has room for 2 (HighlyKnown 3, " in told


def test_what_cannot_be_filled_is_refused_with_the_numbers() -> None:
    rows = audited({"a": (30, 0, 0, 5), "b": (10, 10, 0, 40)})
    assert refusal(rows, unknown=0.5, size=60, family="shares") == (
        "--size 60: the largest size is 25, the sum over relations of the smaller of Known and Unknown "
        "(--family shares). This set alone can have 50 rows (--family own).\n"
        "Relation 'b' would have to give 48 rows and has room for 20 "
        "(HighlyKnown 10, MaybeKnown 10, WeaklyKnown 0, Unknown 40). Lower --size, or leave it out"
    )
    told = refusal(audited({"a": (3, 0, 0, 0), "b": (0, 0, 0, 8)}), unknown=0.5, family="shares")
    assert told.startswith(
        "no relation can fill this set: the sum over relations of the smaller of Known and Unknown is 0"
    )
    assert told.endswith("Found HighlyKnown 3, MaybeKnown 0, WeaklyKnown 0, Unknown 8 in 2 relations.")
    assert "can have" not in told
    assert "This set alone can have 3 rows" in refusal(audited({"a": (3, 0, 0, 0)}), unknown=0, family="shares")


# Which rows may be drawn


def test_only_train_rows_are_drawn_where_a_row_is_marked_train() -> None:
    rows = pl.concat([audited({"a": (2, 2, 2, 6)}, split) for split in ("train", "dev", None)])
    rows = rows.with_columns(row=pl.int_range(rows.height, dtype=pl.Int64))
    mix = mixed(rows, natural=True)
    assert numbers(mix) == set(range(12))
    assert mix.notes[0] == "rows are drawn from 12 of the audit's 36 (train rows)"
    assert largest(rows, "shares").total == 6


def test_where_no_row_is_marked_train_rows_without_a_split_are_drawn() -> None:
    rows = pl.concat([audited({"a": (2, 2, 2, 6)}, split) for split in ("dev", None)])
    rows = rows.with_columns(row=pl.int_range(rows.height, dtype=pl.Int64))
    mix = mixed(rows, natural=True)
    assert numbers(mix) == set(range(12, 24))
    assert "(rows without a split)" in mix.notes[0]
    assert "(every row)" in mixed(audited({"a": (1, 0, 0, 1)}), natural=True).notes[0]
    told = refusal(audited({"a": (2, 2, 2, 6)}, "dev"), natural=True)
    assert told == "no train row to draw from: found splits dev 12, expected train or none"


def test_rows_without_a_category_are_never_drawn() -> None:
    rows = audited({"a": (2, 2, 2, 6)})
    bare = rows.with_columns(category=pl.when(pl.col("row") % 3 > 0).then("category"))
    mix = mixed(bare, natural=True)
    assert numbers(mix) == {n for n in range(12) if n % 3}
    assert "; 4 without a category are left out" in mix.notes[0]
    assert drawable(bare)[0].height == 8
    assert "none of the 12 rows has a category" in refusal(
        rows.with_columns(category=pl.lit(None, pl.String)), natural=True
    )


def test_duplicate_and_conflicting_rows_are_kept_and_counted() -> None:
    rows = audited({"a": (2, 0, 0, 2)})
    twice = pl.concat([rows, rows.with_columns(flags=pl.lit(["duplicate"]))])
    twice = twice.with_columns(row=pl.int_range(8, dtype=pl.Int64))
    twice = twice.with_columns(
        flags=pl.when(pl.col("row") == 0).then(pl.lit(["conflicting", "undecided"])).otherwise("flags")
    )
    mix = mixed(twice, natural=True)
    assert mix.rows.height == 8
    assert mix.manifest["flags"] == {"conflicting": 1, "duplicate": 4, "undecided": 1}
    assert "kept as the audit has them: 4 duplicate, 1 conflicting" in mix.notes
    for size in (2, 3, 4):
        assert mixed(twice[::-1], unknown=0.5, size=size).rows.equals(mixed(twice, unknown=0.5, size=size).rows)


# D_Known


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from([{"unknown": 0.3}, {"unknown": 0.5, "idk": True}, {"natural": True}, {"unknown": 1}]))
def test_d_known_is_the_variant_without_its_unknown_rows(counts: Counts, kind: dict[str, Any]) -> None:
    rows = audited(counts)
    try:
        variant = mixed(rows, **kind)
    except InputError:
        return
    manifest = json.loads(json.dumps({**variant.manifest, "sha256": "sha256:file"}))
    config = wanted(known_of="variant.jsonl")
    if not numbers(variant, *KNOWN):
        with pytest.raises(InputError, match=r"^--known-of variant.jsonl: all of its \d+ rows are Unknown; nothing"):
            draw_mix(rows, config, AUDIT, manifest)
        return
    known = draw_mix(rows[::-1], config, AUDIT, manifest)
    assert known.rows.equals(
        variant.rows.filter(pl.col("category") != UNKNOWN).with_columns(new_answer=pl.lit(None, pl.String))
    )
    assert known.manifest["share"] == {"asked": None, "achieved": 0}
    assert known.manifest["known_of"]["sha256"] == "sha256:file"
    assert known.manifest["known_of"]["size"] == variant.rows.height
    assert rows_of(known.manifest) == sorted(numbers(variant, *KNOWN))


def test_d_known_of_another_audit_is_refused() -> None:
    rows = audited({"a": (5, 5, 5, 15)})
    variant = mixed(rows, unknown=0.5).manifest
    relabelled = {**AUDIT, "rows": "sha256:other labels"}
    with pytest.raises(
        InputError, match=r"^--known-of d.jsonl: made from another audit: found sha256:.*, expected sha"
    ):
        draw_mix(rows, wanted(known_of="d.jsonl"), relabelled, variant)
    for broken in ({}, {"stage": "audit"}, {**variant, "rows": [1, 2]}, None):
        with pytest.raises(InputError, match=r"^--known-of d.jsonl: its manifest is not one that foreknow mix writes"):
            draw_mix(rows, wanted(known_of="d.jsonl"), AUDIT, broken)


# What is changed


def test_unknown_rows_get_the_refusal_and_known_rows_keep_their_answer() -> None:
    rows = audited({"a": (2, 2, 2, 6)})
    mix = mixed(rows, unknown=0.5, family="shares", idk=True, idk_answer=" No idea. ")
    told = dict.fromkeys(numbers(mix, UNKNOWN), "No idea.")
    assert mix.answers == told
    assert len(told) == 3
    assert (
        mix.rows["question"].to_list()
        == rows.filter(pl.col("row").is_in(mix.rows["row"].implode()))["question"].to_list()
    )
    assert mix.manifest["idk"] == {"answer": "No idea.", "rows": 3, "conflicts": {"questions": 0, "rows": 0}}
    plain = mixed(rows, unknown=0.5, family="shares")
    assert plain.answers == {}
    assert plain.manifest["idk"] is None
    assert plain.rows.drop("new_answer").equals(mix.rows.drop("new_answer"))


def test_alike_questions_that_are_answered_and_refused_are_counted() -> None:
    rows = audited({"a": (2, 1, 0, 4)}).with_columns(
        question=pl.Series(
            ["Who is the king?", "Where is X?", "One", "who is  king", "Who, is the KING?!", "Where is Y?", "Two"]
        )
    )
    mix = mixed(rows, idk=True)
    assert mix.manifest["idk"]["conflicts"] == {"questions": 1, "rows": 3}
    assert mix.notes[-1].startswith("1 questions are answered in one row and refused in another (3 rows):")
    assert mixed(rows, only=UNKNOWN, idk=True).manifest["idk"]["conflicts"] == {"questions": 0, "rows": 0}


def test_refusals_and_weights_alone_take_the_audit_as_it_is() -> None:
    rows = audited({"a": (2, 2, 2, 6), "b": (0, 0, 0, 3)})
    assert numbers(mixed(rows, idk=True)) == numbers(mixed(rows, weight="fading")) == set(range(15))
    assert mixed(rows, idk=True).manifest["kind"] == "natural"


def test_every_row_is_weighed_by_its_category() -> None:
    rows = audited({"a": (2, 2, 2, 6)})
    mix = mixed(rows, natural=True, weight="HighlyKnown=0.5,unknown=2")
    due = {"HighlyKnown": 0.5, "MaybeKnown": 1.0, "WeaklyKnown": 1.0, "Unknown": 2.0}
    assert mix.labels["weight"].to_list() == [due[name] for name in mix.rows["category"]]
    assert mix.manifest["weight"] == due
    assert mixed(rows, natural=True, weight="half-unknown").manifest["weight"]["Unknown"] == 0.5
    plain = mixed(rows, natural=True)
    assert plain.labels.columns == ["row", "category"]
    assert plain.manifest["weight"] is None


# What is told


def test_the_manifest_says_all_that_made_the_set() -> None:
    rows = audited({"a": (2, 2, 2, 6), "b": (4, 0, 0, 1), "c": (0, 0, 0, 9)})
    mix = mixed(rows, unknown=0.25, seed=7, family="shares")
    assert dict(mix.rows.schema) == MIX
    assert mix.rows["row"].is_sorted()
    found = json.loads(json.dumps(mix.manifest, allow_nan=False))
    assert found == mix.manifest
    assert found["audit"] == {
        "fingerprint": fingerprint({"identity": AUDIT["identity"], "rows": AUDIT["rows"]}),
        "data": "sha256:facts",
        "rows": "sha256:labels",
    }
    assert found["model"] == AUDIT["model"]
    assert (found["kind"], found["family"], found["largest"], found["size"], found["seed"]) == (
        "unknown",
        "shares",
        7,
        7,
        7,
    )
    assert found["relations_left_out"] == {"c": 9}
    assert found["share"] == {"asked": 0.25, "achieved": 2 / 7}
    counts = Counter(mix.rows["category"])
    assert found["counts"]["overall"] == {name: counts[name] for name in CATEGORIES}
    assert rows_of(found) == mix.rows["row"].to_list()
    assert found["sha256"] is None
    assert mix.notes == (
        "rows are drawn from 26 of the audit's 26 (every row)",
        "the largest size is 7: the sum over relations of the smaller of Known and Unknown (--family shares)",
        "7 rows, 2 of them Unknown (28.57%, asked for 25.00%)",
        "relations without a row in the set: c (9)",
    )


def test_relations_that_are_nearly_all_unknown_are_named() -> None:
    rows = audited({"a": (1, 0, 0, 19), "b": (1, 0, 0, 18)})
    assert mixed(rows, natural=True).notes[-1].endswith("(KnownPatch, 2511.02626): a")
    assert "KnownPatch" not in "".join(mixed(rows, unknown=1).notes), "asked for"


@given(st.sets(st.integers(0, 60)))
def test_row_numbers_survive_as_text(rows: set[int]) -> None:
    assert rows_of({"rows": numbers_text(sorted(rows))}) == sorted(rows)
    assert numbers_text([0, 1, 2, 3, 7, 9, 10]) == "0-3,7,9-10"


def test_the_manifest_lies_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    assert manifest_path(file) == manifest_path(manifest_path(file)) == tmp_path / "train.jsonl.manifest.json"
    with pytest.raises(InputError, match=r"train.jsonl.manifest.json: cannot be read \(No such file"):
        read_manifest(file)
    mix = mixed(audited({"a": (2, 2, 2, 6)}), unknown=0.5)
    write_json(manifest_path(file), mix.manifest)
    assert read_manifest(file) == read_manifest(manifest_path(file)) == mix.manifest
    for text, told in (("{", "broken JSON"), ("[]", "not the manifest"), ('{"stage": "audit"}', "not the manifest")):
        manifest_path(file).write_text(text)
        with pytest.raises(InputError, match=told):
            read_manifest(file)


def test_a_set_is_as_large_as_the_file_allows_unless_a_study_asks_for_less() -> None:
    """Ten Known and sixteen Unknown rows: at 50 % Unknown the file has twenty, the family of all shares fewer."""
    rows = audited({"a": (2, 2, 2, 6), "b": (4, 0, 0, 1), "c": (0, 0, 0, 9)})
    own, shares = mixed(rows, unknown=0.5), mixed(rows, unknown=0.5, family="shares")
    assert own.manifest["family"] == "own"
    assert own.manifest["size"] > shares.manifest["size"]
    assert mixed(rows, unknown=0.5, family="own").rows.equals(own.rows)


def test_tables_for_the_terminal() -> None:
    rows = audited({"a": (2, 2, 2, 6), "b": (4, 0, 0, 1), "c": (0, 0, 0, 9)})
    assert size_table(rows).select("relation", "Known", UNKNOWN, "shares", "categories").rows() == [
        ("all", 10, 16, 7, 2),
        ("a", 6, 6, 6, 2),
        ("b", 4, 1, 1, 0),
        ("c", 0, 9, 0, 0),
    ]
    shown = mix_table(mixed(rows, unknown=1, family="shares"), most=1)
    assert shown.columns == ["relation", *CATEGORIES, "rows", "Unknown share"]
    assert shown.rows() == [("all", 0, 0, 0, 7, 7, "100.0%"), ("a", 0, 0, 0, 6, 6, "100.0%")]


# Settings


def test_the_names_of_the_categories_are_one_list() -> None:
    assert [wanted(only=name).only for name in ("highly", "MAYBE", " weaklyknown ", "Unknown")] == list(CATEGORIES)
    assert wanted(drop=["unknown,weakly", "Unknown"]).drop == ("WeaklyKnown", "Unknown")
    assert wanted(drop="weakly").categories == ("HighlyKnown", "MaybeKnown", "Unknown")
    assert wanted(weight=["weakly=0.5", "Unknown=0"]).weight == {"WeaklyKnown": 0.5, "Unknown": 0}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "which rows: found nothing, expected one of --unknown SHARE, "),
        ({"unknown": 0.5, "natural": True}, "--unknown and --natural: found both, expected one of them"),
        ({"only": "maybe", "drop": "weakly"}, "--only and --drop: found both, expected one of them"),
        ({"unknown": 50}, "--unknown: found 50: input should be less than or equal to 1"),
        ({"unknown": float("nan")}, "--unknown: found nan: "),
        ({"only": "known"}, "--only: found 'known', expected HighlyKnown, MaybeKnown, WeaklyKnown or Unknown"),
        ({"drop": "un"}, "--drop: found 'un', expected HighlyKnown, "),
        ({"drop": ["highly", "maybe", "weakly", "unknown"]}, "--drop: found all four categories"),
        ({"natural": True, "size": 0}, "--size: found 0: "),
        (
            {"natural": True, "weight": "double"},
            "--weight: found 'double', expected CATEGORY=WEIGHT,... or one of half-",
        ),
        ({"natural": True, "weight": "maybe=-1"}, "--weight: found MaybeKnown=-1.0, expected a number that is not neg"),
        ({"natural": True, "weight": {"maybe": float("inf")}}, "--weight: found MaybeKnown=inf, expected a number"),
        ({"natural": True, "weight": dict.fromkeys(CATEGORIES, 0)}, "--weight: found 0 for every category"),
        ({"known_of": "d.jsonl", "size": 5}, "--known-of: found --size, --family or --relations too"),
        ({"known_of": "d.jsonl", "idk": True}, "--idk with --known-of: the set has no Unknown rows"),
        ({"only": "maybe", "idk": True}, "--idk with --only: the set has no Unknown rows"),
        ({"drop": "unknown", "idk": True}, "--idk with --drop: the set has no Unknown rows"),
        ({"natural": True, "idk_answer": "No."}, "--idk-answer: found without --idk"),
        ({"idk": True, "idk_answer": "a\nb"}, "--idk-answer: found 'a\\nb', expected one line of text"),
        ({"idk": True, "idk_answer": "  "}, "--idk-answer: found '  ', expected one line of text"),
        ({"only": "maybe", "family": "shares"}, "--only with --family shares: "),
        ({"drop": "weakly", "family": "categories"}, "--drop with --family categories: "),
    ],
)
def test_settings_that_make_no_set(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wanted(**given)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"unknown": 0.5, "idk": True, "weight": "fading"},
        {"only": "weakly", "family": "categories", "size": 10},
        {"known_of": "d.jsonl"},
        {"drop": "unknown,weakly", "seed": 3},
    ],
)
def test_the_settings_written_down_read_back(given: dict[str, Any]) -> None:
    assert settings_of(MixConfig, wanted(**given).resolved()) == wanted(**given)
