"""The paper's splits: its rules against a plain oracle, its figures on the real release, and every broken tree."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.data.builtin.entityquestions import (
    IN_DISTRIBUTION,
    NOT_USED,
    OUT_OF_DISTRIBUTION,
    PUBLISHED,
    REASONS,
    RELATIONS,
    ROWS,
    SETS,
    TOTALS,
    TREE,
    differences_from_paper,
    majority_floor,
    paper_splits,
    read_tree,
)
from foreknow.data.layouts.relation_templates import FEWEST, SLOT, derive_template, question, read_templates, subject_of
from foreknow.errors import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "entityquestions.zip").is_file(), reason="needs ENTITYQUESTIONS as ../shared/data/entityquestions.zip"
)
TEMPLATES = {relation: f"What is the {relation} of {SLOT}?" for relation in RELATIONS}
Row = tuple[str, str, str, list[str]]


def tree_of(rows: list[Row]) -> pl.DataFrame:
    """(relation, published split, subject, answers) as published rows."""
    told = [(r, s, question(TEMPLATES[r], subject), answers) for r, s, subject, answers in rows]
    return pl.DataFrame(told, schema=TREE, orient="row")


def subjects(frame: pl.DataFrame) -> list[str]:
    return frame["subject"].to_list()


# templates


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("Who is [X]'s child?", [f"Ann{n} B{n}s" for n in range(FEWEST)]),
        ("Where is [X] located?", [f"Mar{n}burg" for n in range(FEWEST)]),
        ("Who founded [X]?", [f"{n} & Sons" if n % 2 else f"Sons of {n}" for n in range(FEWEST)]),
        ("[X] is the capital of what?", [f"{n} City" for n in range(FEWEST - 1)] + ["Oslo"]),
        ("Who wrote [X]", [f"Book {n}" for n in range(FEWEST - 1)] + ["Emma"]),
    ],
)
def test_the_template_is_what_all_questions_share(template: str, names: list[str]) -> None:
    assert derive_template([question(template, name) for name in [*names, *names]]) == template


words = st.sampled_from(["a", "Ab", "the", "éa", "7", "Ba", "b", "is"])


@given(
    st.lists(words, min_size=1, max_size=3),
    st.lists(words, max_size=2),
    st.lists(st.tuples(words, words).map(" ".join), min_size=FEWEST, max_size=30, unique=True),
)
@settings(max_examples=150, deadline=None)
def test_a_template_comes_back_from_its_questions(before: list[str], after: list[str], names: list[str]) -> None:
    """Subjects of two words, all pairs of eight: twenty of them cannot all share their first or their last."""
    template = f"{' '.join(before)} {SLOT}{''.join(f' {word}' for word in after)}?"
    assert derive_template([question(template, name) for name in names]) == template


@given(st.lists(st.text("ab ?[X]", max_size=8), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_derived_template_fits_every_question(questions: list[str]) -> None:
    template = derive_template([f"a {text} b" for text in questions])
    if template is not None:
        assert template.count(SLOT) == 1
        assert all(subject_of(template, f"a {text} b") for text in questions)


@pytest.mark.parametrize(
    "questions",
    [
        [],
        [f"Who is {n}?" for n in range(FEWEST - 1)] * 3,
        [f"{n} {n}?" for n in range(FEWEST)],
        [f"Who is {n}?" for n in range(FEWEST)] + ["Who is ?"],
        [f"Who is {n}?" for n in range(FEWEST)] + ["Whois"],
        [f"Who is [X] or {n}?" for n in range(FEWEST)],
    ],
    ids=["none", "too few", "no word shared", "one without subject", "one of other words", "the slot itself"],
)
def test_no_template_where_none_is_sure(questions: list[str]) -> None:
    assert derive_template(questions) is None


@needs_data
def test_the_derived_templates_are_the_published_ones(real: Any) -> None:
    published = read_templates(DATA / "entityquestions_templates.json")
    assert dict(real.templates) == {relation: published[relation] for relation in RELATIONS}


# the rules


def oracle(rows: list[Row]) -> dict[str, list[Row]]:
    """The rules of the paper's section 2, row by row."""
    tested = {subject for _, s, subject, _ in rows if s == "test"}
    sets: dict[str, list[Row]] = {name: [] for name in SETS}
    for r in rows:
        if r[0] in OUT_OF_DISTRIBUTION and r[1] == "test" and len(r[3]) == 1:
            sets["test_ood"].append(r)
        if r[0] in IN_DISTRIBUTION and len(r[3]) == 1 and not (r[1] == "train" and r[2] in tested):
            sets[r[1]].append(r)
    train = {(r[0], r[2]) for r in sets["train"]}
    sets["dev"] = [r for r in sets["dev"] if (r[0], r[2]) not in train]
    return sets


some_rows = st.lists(
    st.tuples(
        st.sampled_from(["P17", "P19", "P50", "P20"]),
        st.sampled_from(PUBLISHED),
        st.sampled_from(["Lyon", "lyon", "Oslo", "Lima", "Kyoto"]),
        st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
    ),
    max_size=40,
)


@given(some_rows)
@settings(max_examples=150, deadline=None)
def test_the_rules_are_those_of_the_paper(rows: list[Row]) -> None:
    found = paper_splits(tree_of(rows), TEMPLATES, check=False)
    for name, expected in oracle(rows).items():
        got = found.sets[name].select("relation", "subject", "answer").rows()
        assert got == [(r, subject, answers[0]) for r, _, subject, answers in expected], name
        assert dict(found.sets[name].schema) == ROWS
        assert set(found.sets[name]["split"]) <= {name}


@given(some_rows)
@settings(max_examples=100, deadline=None)
def test_every_row_read_is_written_or_accounted_for(rows: list[Row]) -> None:
    found = paper_splits(tree_of(rows), TEMPLATES, check=False)
    assert found.account["rows"].sum() == len(rows)
    assert set(found.account["fate"]) <= {*SETS, *REASONS}
    for name in SETS:
        assert found.account.filter(pl.col("fate") == name)["rows"].sum() == found.sets[name].height
    by_split = Counter((relation, split) for relation, split, _, _ in rows)
    counted = found.account.group_by("relation", "split").agg(pl.col("rows").sum())
    assert {(r, s): n for r, s, n in counted.iter_rows()} == by_split


@pytest.mark.parametrize(
    ("test_row", "kept"),
    [
        (("P19", "test", "Ann", ["a"]), False),
        (("P50", "test", "Ann", ["a"]), False),
        (("P20", "test", "Ann", ["a"]), False),
        (("P19", "test", "Ann", ["a", "b"]), False),
        (("P19", "test", "ann", ["a"]), True),
        (("P19", "dev", "Ann", ["a"]), True),
    ],
    ids=["in distribution", "out of it", "a relation not used", "several answers", "other capitals", "dev only"],
)
def test_train_loses_whom_any_published_test_question_is_about(test_row: Row, kept: bool) -> None:
    found = paper_splits(tree_of([("P17", "train", "Ann", ["x"]), test_row]), TEMPLATES, check=False)
    assert subjects(found.sets["train"]) == (["Ann"] if kept else [])


def test_one_answer_twice_is_not_one_answer() -> None:
    """As the paper's totals have it: the rule counts the list, not what is different in it."""
    found = paper_splits(tree_of([("P17", "train", "Ann", ["x", "x"])]), TEMPLATES, check=False)
    assert found.account.rows() == [("P17", "train", "not_one_answer", 1)]


def test_dev_loses_what_stands_in_train_and_keeps_what_test_asks() -> None:
    rows = [
        ("P17", "train", "Ann", ["x"]),
        ("P17", "train", "Bob", ["x"]),
        ("P17", "train", "Bob", ["y"]),
        ("P17", "train", "Bob", ["y"]),
        ("P17", "dev", "Ann", ["x"]),
        ("P17", "dev", "Ann", ["z"]),
        ("P17", "dev", "Cid", ["x"]),
        ("P17", "dev", "Dora", ["x"]),
        ("P17", "test", "Cid", ["x"]),
        ("P17", "test", "Dora", ["q", "r"]),
        ("P17", "test", "Eve", ["q"]),
    ]
    found = paper_splits(tree_of(rows), TEMPLATES, check=False)
    assert subjects(found.sets["dev"]) == ["Cid", "Dora"]
    of = found.overlaps
    assert (of["dev_rows_dropped_as_in_train"], of["dev_questions_dropped_as_in_train"]) == (2, 1)
    assert of["dev_rows_asking_a_published_test_question"] == 2
    assert of["dev_rows_asking_a_written_test_question"] == 1
    assert (of["train_questions_with_conflicting_golds"], of["train_rows_with_conflicting_golds"]) == (1, 3)
    assert of["train_rows_repeated"] == 1
    assert (of["test_rows_with_a_train_gold"], of["share_of_test_rows_with_a_train_gold"]) == (1, 0.5)
    # x and y stand in train twice each: the tie goes to x
    assert of["majority_floor"] == {"overall": 0.5, "by_relation": {"P17": {"floor": 0.5, "answer": "x", "rows": 2}}}


def test_the_floor_is_of_the_train_golds_and_by_relation() -> None:
    train = pl.DataFrame({"relation": ["r", "r", "r", "s", "t"], "answer": ["b", "b", "a", "c", "d"]})
    test = pl.DataFrame({"relation": ["r", "r", "s", "s"], "answer": ["a", "b", "c", "c"]})
    assert majority_floor(train, test).rows() == [("r", "b", 2, 1), ("s", "c", 2, 2), ("t", "d", 0, 0)]


def test_given_templates_win_and_must_fit() -> None:
    rows = tree_of([("P17", "train", f"s{n}", ["x"]) for n in range(FEWEST)])
    assert paper_splits(rows, check=False).templates == {"P17": TEMPLATES["P17"]}
    own = {"P17": f"What is the {SLOT}?"}
    assert subjects(paper_splits(rows, own, check=False).sets["train"])[0] == "P17 of s0"
    with pytest.raises(InputError, match=r"P17, train: the question 'What is the P17 of s0\?' does not fit"):
        paper_splits(rows, {"P17": f"Where is {SLOT}?"}, check=False)


def test_a_template_that_cannot_be_derived_is_asked_for() -> None:
    rows = tree_of([("P17", "train", "Ann", ["x"])])
    with pytest.raises(InputError, match=r"P17: no template can be derived from its 1 distinct questions\.\n.*\"P17\""):
        paper_splits(rows, check=False)


# the figures


@pytest.fixture(scope="module")
def real() -> Any:
    return paper_splits(read_tree(str(DATA / "entityquestions.zip")).rows)


@needs_data
def test_the_real_release_gives_exactly_the_papers_rows(real: Any) -> None:
    counts = {name: frame.height for name, frame in real.sets.items()}
    assert counts == {"train": 81_700, "dev": 10_329, "test": 10_481, "test_ood": 5_848}
    for name, expected in TOTALS.items():
        assert dict(real.sets[name].group_by("relation").len().iter_rows()) == expected


@needs_data
def test_the_real_release_overlaps_as_it_is_said_to(real: Any) -> None:
    of = real.overlaps
    assert round(of["share_of_test_rows_with_a_train_gold"], 3) == 0.679
    assert of["train_questions_with_conflicting_golds"] == 383
    assert (of["dev_rows_dropped_as_in_train"], of["dev_questions_dropped_as_in_train"]) == (132, 125)
    assert of["dev_rows_asking_a_published_test_question"] == 32
    assert round(of["majority_floor"]["overall"], 3) == 0.112
    assert round(of["majority_floor"]["by_relation"]["P495"]["floor"], 3) == 0.719
    assert real.account["rows"].sum() == 220_703


@needs_data
def test_one_row_less_is_noticed(real: Any) -> None:
    sets = {**real.sets, "train": real.sets["train"].head(-1), "dev": real.sets["dev"].head(-1)}
    assert differences_from_paper(sets) == [
        "P800 train: found 1,355 rows, expected 1,356",
        "dev: found 10,328 rows, expected 10,329",
    ]


def test_the_expected_totals_add_up_to_the_papers() -> None:
    assert {name: sum(rows.values()) for name, rows in TOTALS.items()} == {
        "train": 81_700, "test": 10_481, "test_ood": 5_848,
    }  # fmt: skip
    assert set(TOTALS["train"]) == set(TOTALS["test"]) == set(IN_DISTRIBUTION)
    assert set(TOTALS["test_ood"]) == set(OUT_OF_DISTRIBUTION)
    assert len({*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION, *NOT_USED}) == len(RELATIONS) == 24


def test_another_release_is_refused_with_what_differs() -> None:
    with pytest.raises(InputError, match=r"P131 train: found 0 rows, expected 7,646.*and 28 more.*Tables 3-5"):
        paper_splits(tree_of([("P17", "train", "Ann", ["x"])]), TEMPLATES)


# reading the tree

GOOD = [{"question": "Where is Lyon?", "answers": ["France"]}, {"question": "Where is Oslo?", "answers": []}]


def files(**changed: str | bytes | None) -> dict[str, bytes]:
    """A whole tree of the same two rows, by member; `P17_dev=...` replaces one, or leaves it out."""
    members: dict[str, bytes] = {}
    for relation in RELATIONS:
        for split in PUBLISHED:
            content = changed.get(f"{relation}_{split}", json.dumps(GOOD))
            if content is not None:
                members[f"{split}/{relation}.{split}.json"] = content.encode() if isinstance(content, str) else content
    return members


def zipped(path: Path, members: dict[str, bytes], below: str = "dataset/") -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(below + name, content)
    return str(path)


def unpacked(path: Path, members: dict[str, bytes]) -> str:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def test_a_folder_and_a_zip_wherever_the_tree_lies_read_alike(tmp_path: Path) -> None:
    members = files()
    backwards = dict(reversed(members.items()))
    trees = [
        read_tree(zipped(tmp_path / "a.zip", members)),
        read_tree(zipped(tmp_path / "b.zip", backwards, below="")),
        read_tree(unpacked(tmp_path / "c", members)),
        read_tree(unpacked(tmp_path / "d" / "EntityQuestions-main" / "dataset", backwards)),
    ]
    for tree in trees:
        assert tree.content == trees[0].content
        assert tree.rows.equals(trees[0].rows)
    first = trees[0].rows.head(3).rows()
    assert first[:2] == [
        ("P17", "train", "Where is Lyon?", ["France"]),
        ("P17", "train", "Where is Oslo?", []),
    ]
    assert first[2][:2] == ("P17", "dev")
    assert trees[0].rows.height == 24 * 3 * 2


def test_another_content_has_another_hash(tmp_path: Path) -> None:
    changed = json.dumps(GOOD).replace("France", "Gaul")
    other = read_tree(zipped(tmp_path / "b.zip", files(P17_dev=changed)))
    assert other.content != read_tree(zipped(tmp_path / "a.zip", files())).content


def test_files_beside_the_tree_are_left_alone(tmp_path: Path) -> None:
    extra = {
        "one-off/no-overlap/P19/P19_no_overlap.dev.json": b"not JSON",
        "train/P17.dev.json": b"not JSON",
        "README.md": b"",
        "../__MACOSX/dataset/train/._P17.train.json": b"\x00",
    }
    plain = read_tree(zipped(tmp_path / "a.zip", files()))
    assert read_tree(zipped(tmp_path / "b.zip", {**files(), **extra})).content == plain.content


def test_part_of_a_tree_can_be_read_where_that_is_asked_for(tmp_path: Path) -> None:
    some = {name: content for name, content in files().items() if "/P17." in name and "dev" not in name}
    path = zipped(tmp_path / "a.zip", some)
    assert read_tree(path, complete=False).rows.height == 4
    with pytest.raises(InputError, match=r"dev/P17\.dev\.json, train/P19\.train\.json.* and 67 more missing"):
        read_tree(path)


ROW = '{"question": "Where is Lyon?", "answers": ["France"]}'
BROKEN: list[tuple[str | bytes, str]] = [
    ("[", r"P17\.dev\.json:1: broken JSON at column 2"),
    ("[\n" + ROW + "\n" + ROW + "]", r"P17\.dev\.json:3: broken JSON at column 1"),
    ("", r"P17\.dev\.json:1: broken JSON"),
    (b"[\xff]", r"P17\.dev\.json: byte 2 is not UTF-8"),
    ("[" * 100_000, r"P17\.dev\.json: nested too deeply"),
    ("[" + "9" * 5_000 + "]", r"P17\.dev\.json: .*not readable as JSON"),
    (ROW, r"P17\.dev\.json: found dict, expected an array"),
    (f"[{ROW}, 7]", r"P17\.dev\.json: row 1: found int"),
    ('[{"answers": ["a"]}]', r"P17\.dev\.json: row 0: question: found null"),
    ('[{"question": " ", "answers": ["a"]}]', r'row 0: question: found " "'),
    ('[{"question": "\\ud800", "answers": ["a"]}]', r"row 0: question"),
    (f'[{ROW}, {ROW}, {{"question": "q", "answers": "a"}}]', r'row 2: answers: found "a"'),
    ('[{"question": "q", "answers": ["a", 1]}]', r'row 0: answers: found \["a", 1\]'),
    ('[{"question": "q", "answers": [""]}]', r"row 0: answers"),
    ('[{"question": "q"}]', r"row 0: answers: found null; expected \{.question"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_broken_member_is_named_with_its_row(tmp_path: Path, kind: str, content: str | bytes, message: str) -> None:
    members = {name: raw for name, raw in files(P17_dev=content).items() if "/P17." in name}
    path = unpacked(tmp_path / "t", members) if kind == "folder" else zipped(tmp_path / "t.zip", members)
    with pytest.raises(InputError, match=message) as caught:
        read_tree(path, complete=False)
    assert str(path) in str(caught.value)


def test_what_is_no_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tree(str(tmp_path / "none.zip"))
    (tmp_path / "page.zip").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"page\.zip: cannot be read \(File is not a zip file\)"):
        read_tree(str(tmp_path / "page.zip"))
    with pytest.raises(InputError, match=r"no ENTITYQUESTIONS files found; expected train/P17\.train\.json"):
        read_tree(zipped(tmp_path / "a.zip", {"train/other.json": b"[]"}))
    twice = {**files(), "copy/train/P17.train.json": b"[]"}
    with pytest.raises(InputError, match=r"P17 train is there twice: dataset/copy/train/P17.*Keep one"):
        read_tree(zipped(tmp_path / "b.zip", twice))


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreknow.data.builtin.entityquestions.MEMBER_BYTES", 1 << 20)
    path = zipped(tmp_path / "bomb.zip", {"train/P17.train.json": b" " * (1 << 20) + b"[]"})
    assert Path(path).stat().st_size < 5_000
    with pytest.raises(InputError, match=r"P17\.train\.json: over 1 MiB"):
        read_tree(path, complete=False)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_zip_is_read_or_refused_never_worse(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    members = {f"{split}/P17.{split}.json": json.dumps(GOOD).encode() for split in PUBLISHED}
    raw = bytearray(Path(zipped(folder / "a.zip", members)).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    (folder / "b.zip").write_bytes(bytes(raw[:cut]))
    with contextlib.suppress(InputError):
        assert read_tree(str(folder / "b.zip"), complete=False).rows.height <= 6
