"""Fact spans of long answers against how often the lab's model was really told each fact.

    python benchmarks/lab_spans.py --model lab --out runs/lab-spans [--sets 4 --shots 2]

Writes long answers of the lab's own statements (the three facts of one subject, one sentence each), audits them, and
prints as Markdown: categories and recognition by exposures, how well each score tells facts told six times or more from
those never told (area under the ROC curve: 0.5 is chance, 1 is perfect), and what `--spans rules` finds of the facts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import polars as pl

import foreknow
from foreknow.categories import CATEGORIES
from foreknow.data.builtin import lab_world
from foreknow.data.spans.finder import AnswerText
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import is_new
from foreknow.stages.study.lab_truth import auc

BINS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 60))
"""The smallest and the largest number of exposures in each line of the table."""
OFTEN = 6
MANY = 100
"""Facts with at least so many possible answers are seldom guessed."""


def long_answers(seed: int = 0) -> tuple[list[dict[str, object]], pl.DataFrame]:
    """The rows of a file of long answers, each with its facts' places; and the facts: row, start, exposures, pool."""
    rng = np.random.default_rng(seed)
    by_name = {relation.name: relation for relation in lab_world.RELATIONS}
    table = lab_world.facts().filter(~pl.col("relation").str.starts_with(lab_world.OOD))
    records: list[dict[str, object]] = []
    truth = []
    for (subject,), facts in table.group_by("subject", maintain_order=True):
        answer, spans = "", []
        for n in rng.permutation(facts.height).tolist():
            fact = facts.row(n, named=True)
            form = int(rng.integers(len(by_name[fact["relation"]].statements)))
            gold = fact["answers"][0]
            sentence = lab_world.statement_text(by_name[fact["relation"]], form, str(subject), gold)
            start = len(answer) + bool(answer) + sentence.rindex(gold)
            answer = f"{answer} {sentence}".strip()
            spans.append({"start": start, "end": start + len(gold), "type": "name"})
            truth.append({"row": len(records), "start": start, "exposures": fact["exposures"], "pool": fact["pool"]})
        question = f"What is told of {subject}?"
        split = facts["split"][0]
        records.append({"question": question, "answer": answer, "subject": subject, "split": split, "spans": spans})
    return records, pl.DataFrame(truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--shots", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    records, truth = long_answers()
    file = args.out / "lab_long.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    began, cpu = time.perf_counter(), time.process_time()
    foreknow.audit(
        str(file),
        model=args.model,
        out=str(args.out / f"audit-{args.sets}x{args.shots}"),
        dtype="float32",
        span_sets=args.sets,
        span_shots=args.shots,
        max_answer_tokens=4,  # every answer counts as long
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    spans = pl.read_parquet(args.out / f"audit-{args.sets}x{args.shots}" / "spans.parquet")
    spans = spans.join(truth, on=["row", "start"])
    assert spans.height == truth.height
    print(f"{len(records)} rows, {spans.height} spans; {seconds:.0f} s, {cpu:.0f} s of processor time\n")
    show("Categories by exposures", by_exposures(spans))
    show(f"Told {OFTEN} times or more against never (AUC)", separations(spans))
    show("What the rules find of the facts", found_by_rules(records, truth))


def by_exposures(spans: pl.DataFrame) -> pl.DataFrame:
    """Per cent of each category, of the recognised and of the new spans, by exposures."""
    lines = []
    for low, high in BINS:
        own = spans.filter(pl.col("exposures").is_between(low, high))
        line: dict[str, object] = {"told": f"{low}-{high}" if high > low else str(low), "n": own.height}
        line |= {name: 100 * own.filter(pl.col("category") == name).height / max(own.height, 1) for name in CATEGORIES}
        line["recognised"] = 100 * (own["recognised"].cast(pl.Float64).mean() or 0.0)
        line["new"] = 100 * own.filter(is_new()).height / max(own.height, 1)
        lines.append(line)
    return pl.DataFrame(lines)


def separations(spans: pl.DataFrame) -> pl.DataFrame:
    """AUC of every score, over all facts and over those with many possible answers."""
    chosen = spans.filter((pl.col("exposures") == 0) | (pl.col("exposures") >= OFTEN)).with_columns(
        label=3.0 - pl.col("category").replace_strict(dict(zip(CATEGORIES, range(4), strict=True))),
        less_rank=-pl.col("rank").cast(pl.Float64),
        recognised=pl.col("recognised").cast(pl.Float64),
    )
    lines = []
    for score in ("label", "p_greedy", "p_sampled", "p_hit", "p_recognised", "less_rank", "recognised"):
        line: dict[str, object] = {"score": score}
        for name, part in (("all", chosen), (f"{MANY} answers or more", chosen.filter(pl.col("pool") >= MANY))):
            scored = part.drop_nulls(score)
            line[name] = auc(scored[score].to_numpy(), (scored["exposures"] > 0).to_numpy())
        lines.append(line)
    return pl.DataFrame(lines)


def found_by_rules(records: list[dict[str, object]], truth: pl.DataFrame) -> pl.DataFrame:
    """How many of the facts the rules find with exact edges, and how many other spans they find."""
    texts = [AnswerText(n, str(r["answer"]), str(r["question"])) for n, r in enumerate(records)]
    spans = RuleFinder(text.answer for text in texts).find(texts)
    golds = {(n, s["start"], s["end"]) for n, r in enumerate(records) for s in r["spans"]}  # type: ignore[attr-defined]
    found = {(n, span.start, span.end) for n, own in enumerate(spans) for span in own}
    return pl.DataFrame([{"facts": truth.height, "found exactly": len(golds & found), "others": len(found - golds)}])


def show(title: str, frame: pl.DataFrame) -> None:
    """A frame as a Markdown table."""
    print(f"{title}\n\n| {' | '.join(frame.columns)} |\n|{'---|' * frame.width}")
    for line in frame.iter_rows():
        print(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in line)} |")
    print()


if __name__ == "__main__":
    main()
