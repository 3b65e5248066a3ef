"""Labels of spans in place against the labels of the same facts asked as short questions, in several wordings.

    python benchmarks/span_wordings.py --model smollm2-135m --out runs/wordings [--per-relation 30]
    python benchmarks/span_wordings.py --facts lab --out runs/wordings-lab [--lab FOLDER]
    python benchmarks/span_wordings.py --labels docs/studies/span-wordings/smollm2-135m.parquet

Audits packaged facts as short questions (the paper's protocol), writes each as one sentence in four wordings, audits
those files with the fact's place as the only span, and prints as Markdown for each wording: how well the two labels
agree (confusion, Cohen's kappa with linear weights), how well the figures in place tell facts known by the question
from the others of the same relation (area under the ROC curve), and how far wording moves a label. `--facts lab` does
so with the lab's made-up facts, three sentences of one subject in a row, in one wording; `--lab` takes a lab that
`foreknow lab build` made. Stopped, the same command goes on. `--labels` prints the tables of labels that it wrote
(`labels.parquet`), and asks no model.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.inter_rater import cohens_kappa

import foreknow
from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.data.builtin import default_facts, lab_world
from foreknow.data.builtin.lab_long import long_answers
from foreknow.data.schema import GOLD, sampling_hash
from foreknow.data.spans.schema import is_new
from foreknow.stages.study.lab_truth import auc
from lab_spans import recognise_by_mean, world_of
from markdown_table import show

WORDINGS = {
    "city_country": (
        "[X] is a city in [Y].",
        "The city of [X] is found in a country called [Y].",
        "If you travel to [X], the country that you arrive in is [Y].",
        "[Y] is the country in which this city lies.",
    ),
    "us_city_state": (
        "[X] is a city in the US state of [Y].",
        "The city of [X] belongs to the American state [Y].",
        "If you travel to [X], the state that you arrive in is [Y].",
        "[Y] is the US state in which this city lies.",
    ),
    "country_capital": (
        "The capital of [X] is [Y].",
        "The government of [X] has its seat in the capital, [Y].",
        "If you travel to [X], the capital that you may want to see is [Y].",
        "[Y] is the capital of this country.",
    ),
    "country_currency": (
        "The three-letter code of the currency of [X] is [Y].",
        "Banks write the currency of [X] as [Y].",
        "If you travel to [X], you pay in a currency with the code [Y].",
        "[Y] is the three-letter code of this country's currency.",
    ),
    "country_calling_code": (
        "The international calling code of [X] is [Y].",
        "Telephone numbers in [X] begin with the country code [Y].",
        "If you want to call somebody in [X] from abroad, dial [Y].",
        "[Y] is the international calling code of this country.",
    ),
    "company_headquarters": (
        "[X] has its headquarters in [Y].",
        "The main office of [X] stands in the city of [Y].",
        "If you want to visit the head office of [X], travel to [Y].",
        "[Y] is the city in which this company has its headquarters.",
    ),
    "company_founded": (
        "[X] was founded in [Y].",
        "The history of [X] as a company begins in the year [Y].",
        "If you ask when [X] was founded, the year is [Y].",
        "[Y] is the year in which this company was founded.",
    ),
    "company_ticker": (
        "The stock ticker symbol of [X] is [Y].",
        "Shares of [X] are traded under the symbol [Y].",
        "If you want to buy shares of [X], look for the ticker [Y].",
        "[Y] is the ticker symbol of this company.",
    ),
    "element_symbol": (
        "The chemical symbol of [X] is [Y].",
        "In formulas the element [X] is written as [Y].",
        "If you look for [X] in the periodic table, find the letters [Y].",
        "[Y] is the chemical symbol of this element.",
    ),
    "element_number": (
        "The atomic number of [X] is [Y].",
        "The number of protons in an atom of [X] is [Y].",
        "If you look for [X] in the periodic table, find the number [Y].",
        "[Y] is the atomic number of this element.",
    ),
    "airport_city": (
        "The airport with the IATA code [X] serves the city of [Y].",
        "Flights to [X] take you to the city of [Y].",
        "If you read [X] on your luggage tag, you are travelling to [Y].",
        "[Y] is the city that the airport with this code serves.",
    ),
    "airport_country": (
        "[X] is an airport in [Y].",
        "Flights to [X] land in a country called [Y].",
        "If you fly to [X], the country that you arrive in is [Y].",
        "[Y] is the country in which this airport lies.",
    ),
}
"""Sentences by relation, in this order: a plain statement, one with more words, one that speaks to the reader, one that
begins with the answer (the subject then stands in the row's question alone)."""
NAMES = ("statement", "more words", "to the reader", "answer first")
SHORT = 4
"""Longer answers than this many tokens count as long."""
ENOUGH = 5
"""A relation shows how well a figure separates if so many of its facts are known and so many are not."""
CATEGORY_NUMBER = {name: n for n, name in enumerate(CATEGORIES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--labels", type=Path, help="labels that an earlier run wrote")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", choices=["packaged", "lab"], default="packaged")
    parser.add_argument("--lab", type=Path, help="the folder of a built lab")
    parser.add_argument("--by-mean", action="store_true", help="recognise by the mean log p of a token, not its sum")
    parser.add_argument("--per-relation", type=int, default=30)
    args = parser.parse_args()
    if args.labels is not None:
        report(pl.read_parquet(args.labels))
        return
    if args.out is None:
        parser.error("--out or --labels is required")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.by_mean:
        recognise_by_mean()
    model = args.model
    if args.facts == "lab":
        model = "lab" if args.lab is None else str(args.lab)
        facts, answers = lab_facts(args.lab)
    else:
        facts = packaged_facts(args.per_relation)
        answers = {name: list(written(facts, n)) for n, name in enumerate(NAMES)}
    asked = audit_questions(facts, args.out, model)
    labels = pl.concat(audit_answers(name, rows, args.out, model) for name, rows in answers.items())
    both = labels.join(asked, on="fact", suffix="_asked")
    both.select("wording", "relation", "fact", *FIGURES, *(f"{name}_asked" for name in FIGURES[:4])).write_parquet(
        args.out / "labels.parquet"
    )
    report(both)


FIGURES = ["category", "p_greedy", "p_sampled", "p_hit", "recognised", "p_recognised", "new"]


def packaged_facts(each: int) -> pl.DataFrame:
    """`each` packaged facts of every relation of `WORDINGS`, drawn by a hash of their text, with their number."""
    rows = default_facts.load_facts().filter(pl.col("relation").is_in(list(WORDINGS)))
    keys = [sampling_hash(0, question) for question in rows["question"]]
    drawn = rows.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).sort("key")
    chosen = drawn.group_by("relation", maintain_order=True).head(each)
    return chosen.select("question", "answers", "subject", "relation").with_row_index("fact")


def written(facts: pl.DataFrame, wording: int) -> Iterator[dict[str, Any]]:
    """Each fact as a row with one sentence, and the place of its gold as the row's only span."""
    for fact in facts.iter_rows(named=True):
        before, after = WORDINGS[fact["relation"]][wording].replace("[X]", fact["subject"]).split("[Y]")
        before = before[:1].upper() + before[1:]
        gold = fact["answers"][0]
        yield {
            "question": f"What can you tell me about {fact['subject']}?",
            "answer": before + gold + after,
            "subject": fact["subject"],
            "relation": fact["relation"],
            "spans": [{"start": len(before), "end": len(before) + len(gold)}],
            "facts_by_span": [fact["fact"]],
        }


def lab_facts(lab: Path | None) -> tuple[pl.DataFrame, dict[str, list[dict[str, Any]]]]:
    """The lab's facts that its long answers hold, and those answers."""
    world = lab_world.WORLD if lab is None else world_of(lab)
    records, _ = long_answers(world=world)
    facts = lab_world.facts(world).with_row_index("fact")
    number = {(row["subject"], row["answers"][0]): row["fact"] for row in facts.iter_rows(named=True)}
    for row in records:
        golds = [row["answer"][span["start"] : span["end"]] for span in row["spans"]]
        row["facts_by_span"] = [number[row["subject"], gold] for gold in golds]
    used = pl.Series([n for row in records for n in row["facts_by_span"]], dtype=pl.UInt32)
    return facts.filter(pl.col("fact").is_in(used.implode())), {"the lab's statements": records}


def audit_questions(facts: pl.DataFrame, out: Path, model: str) -> pl.DataFrame:
    """The category and the figures of every fact, asked as a short question by the paper's protocol."""
    file = out / "questions.jsonl"
    facts.with_columns(answer=GOLD).select("question", "answer", "answers", "subject", "relation").write_ndjson(file)
    rows = foreknow.audit(str(file), model=model, out=str(out / "questions"), dtype="float32").rows
    figures = rows.select(pl.col("record"), "category", "p_greedy", "p_sampled", "p_hit").drop_nulls("category")
    numbers = facts.select("fact", "relation").with_row_index("record")
    return figures.join(numbers.cast({"record": pl.Int64}), on="record")


def audit_answers(name: str, rows: list[dict[str, Any]], out: Path, model: str) -> pl.DataFrame:
    """The labels in place of one wording's spans, with the number of the fact of each."""
    stem = name.replace(" ", "-").replace("'", "")
    file = out / f"{stem}.jsonl"
    own = [{key: value for key, value in row.items() if key != "facts_by_span"} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    folder = out / stem
    audit = foreknow.audit(str(file), model=model, out=str(folder), dtype="float32", max_answer_tokens=SHORT)
    places = pl.DataFrame(
        [
            (record, span["start"], fact)
            for record, row in enumerate(rows)
            for span, fact in zip(row["spans"], row["facts_by_span"], strict=True)
        ],
        schema={"record": pl.Int64, "start": pl.Int64, "fact": pl.UInt32},
        orient="row",
    )
    spans = pl.read_parquet(folder / "spans.parquet").join(audit.rows.select("row", "record"), on="row")
    return spans.join(places, on=["record", "start"]).select(
        "fact", *FIGURES[:6], pl.lit(name).alias("wording"), is_new().alias("new")
    ).drop_nulls("category")  # fmt: skip


def report(both: pl.DataFrame) -> None:
    """Print every table."""
    wordings = both["wording"].unique(maintain_order=True).to_list()
    print(f"{both['fact'].n_unique()} facts of {both['relation'].n_unique()} relations\n")
    show("Asked as a question (lines) and in place (columns), all wordings", confusion(both))
    parts = [(name, both.filter(pl.col("wording") == name)) for name in wordings]
    show("Agreement by wording", pl.DataFrame([{"wording": name, **agreement(part)} for name, part in parts]))
    show("Per cent of the spans, by what the question says", pl.DataFrame([line for p in parts for line in shares(*p)]))
    if len(wordings) > 1:
        lines = [moved(one, other, dict(parts)) for one, other in itertools.combinations(wordings, 2)]
        show("How far wording moves a label", pl.DataFrame(lines))
        stable = both.group_by("fact").agg(pl.col("category").n_unique(), pl.col("recognised").n_unique(), pl.len())
        every = stable.filter(pl.col("len") == len(wordings))
        print(
            f"the same category in all wordings: {100 * (every['category'] == 1).mean():.0f} % of {every.height} facts"
        )
        print(f"recognised in all wordings or in none: {100 * (every['recognised'] == 1).mean():.0f} %\n")


def confusion(both: pl.DataFrame) -> pl.DataFrame:
    """Spans by the category of their question (a line each) and in place."""
    lines = []
    for asked in CATEGORIES:
        own = both.filter(pl.col("category_asked") == asked)
        counts = {name: own.filter(pl.col("category") == name).height for name in CATEGORIES}
        lines.append({"asked": asked, "n": own.height, **counts})
    return pl.DataFrame(lines)


def agreement(part: pl.DataFrame) -> dict[str, float | int]:
    """Kappa of the two labels, and the area under the ROC of figures in place within a relation."""
    greedy = pl.col("category_asked").is_in([HIGHLY_KNOWN, MAYBE_KNOWN])
    return {
        "n": part.height,
        "kappa, four categories": kappa(part["category"], part["category_asked"]),
        "kappa, Unknown or not": kappa(part["category"] == UNKNOWN, part["category_asked"] == UNKNOWN),
        "p_sampled: right greedily": within(part, "p_sampled", greedy),
        "p_recognised: right greedily": within(part, "p_recognised", greedy),
        "p_sampled: not Unknown": within(part, "p_sampled", pl.col("category_asked") != UNKNOWN),
        "p_recognised: not Unknown": within(part, "p_recognised", pl.col("category_asked") != UNKNOWN),
    }


def kappa(one: pl.Series, other: pl.Series) -> float:
    """Cohen's kappa with linear weights (0: chance, 1: the same); of two truth values it is the plain one."""
    if one.dtype == pl.Boolean:
        pairs, size = zip(one.cast(pl.Int64), other.cast(pl.Int64), strict=True), 2
    else:
        pairs, size = zip(one.replace_strict(CATEGORY_NUMBER), other.replace_strict(CATEGORY_NUMBER), strict=True), 4
    table = np.zeros((size, size))
    for n, m in pairs:
        table[n, m] += 1
    return float(cohens_kappa(table, weights=np.arange(size), return_results=False, wt="linear"))


def within(part: pl.DataFrame, score: str, known: pl.Expr) -> float:
    """Area under the ROC of `score` for `known` facts against the others of their relation, weighted by pairs."""
    total, pairs = 0.0, 0
    for _, own in part.drop_nulls(score).with_columns(known=known).group_by("relation", maintain_order=True):
        yes = int(own["known"].sum())
        no = own.height - yes
        if min(yes, no) >= ENOUGH:
            total += auc(own[score].to_numpy(), own["known"].to_numpy()) * yes * no
            pairs += yes * no
    return total / pairs if pairs else float("nan")


def shares(wording: str, part: pl.DataFrame) -> list[dict[str, object]]:
    """Per cent not Unknown in place, recognised and new, by the category of the question."""
    lines: list[dict[str, object]] = []
    for asked in CATEGORIES:
        own = part.filter(pl.col("category_asked") == asked)
        if own.height:
            lines.append(
                {
                    "wording": wording,
                    "asked": asked,
                    "n": own.height,
                    "expressed in place": 100 * own.filter(pl.col("category") != UNKNOWN).height / own.height,
                    "recognised": 100 * (own["recognised"].cast(pl.Float64).mean() or 0.0),  # type: ignore[operator]
                    "new": 100 * own.filter(pl.col("new")).height / own.height,
                }
            )
    return lines


def moved(one: str, other: str, parts: dict[str, pl.DataFrame]) -> dict[str, object]:
    """How much two wordings of the same facts differ."""
    pair = parts[one].join(parts[other], on="fact", suffix="_other")
    return {
        "wordings": f"{one}, {other}",
        "n": pair.height,
        "kappa": kappa(pair["category"], pair["category_other"]),
        "another category, %": 100 * pair.filter(pl.col("category") != pl.col("category_other")).height / pair.height,
        "p_sampled differs by": (pair["p_sampled"] - pair["p_sampled_other"]).abs().mean(),
        "recognised in one only, %": 100 * (pair["recognised"] != pair["recognised_other"]).mean(),  # type: ignore[operator]
        "new in one only, %": 100 * (pair["new"] != pair["new_other"]).mean(),  # type: ignore[operator]
    }


if __name__ == "__main__":
    main()
