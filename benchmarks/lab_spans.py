"""Fact spans of long answers against how often the lab's model was really told each fact.

    python benchmarks/lab_spans.py --model lab --out runs/lab-spans [--sets 4 --shots 2]
    python benchmarks/lab_spans.py --model lab --out runs/lab-sweep --sweep
    python benchmarks/lab_spans.py --lab FOLDER --out runs/other-lab-sweep --sweep
    python benchmarks/lab_spans.py --model lab --out runs/lab-mean --by-mean

Writes long answers of the lab's own statements (the three facts of one subject, one sentence each), audits them, and
prints as Markdown: categories and recognition by exposures, how well each score tells facts told six times or more from
those never told (area under the ROC curve: 0.5 is chance, 1 is perfect), and what `--spans rules` finds of the facts.
--sweep does so for 0, 1, 2 and 4 exemplars in 1, 4 and 10 sets, and prints one line for each; stopped, it goes on with
the same command. --by-mean recognises a span by its mean log p of a token in place of its sum. --lab takes a lab that
`foreknow lab build` made, with its own world, in place of the lab's model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl

import foreknow
from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.data.builtin.lab_long import long_answers
from foreknow.data.builtin.lab_world import WORLD, World
from foreknow.data.spans.finder import AnswerText
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import is_new
from foreknow.inference.span_distributions import SpanDistributions
from foreknow.inference.span_tree import PathStates, SpanPaths
from foreknow.stages.study.lab_truth import auc
from markdown_table import show

BINS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 60))
"""The smallest and the largest number of exposures in each line of the table."""
OFTEN = 6
SWEEP = ((0, 1), *((shots, sets) for shots in (1, 2, 4) for sets in (1, 4, 10)))
"""Exemplars and sets of the sweep; without exemplars all sets are the same."""
MANY = 100
"""Facts with at least so many possible answers are seldom guessed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--by-mean", action="store_true")
    parser.add_argument("--lab", type=Path, help="the folder of a built lab")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.by_mean:
        recognise_by_mean()
    model, world = args.model, WORLD
    if args.lab is not None:
        model = str(args.lab)
        world = world_of(args.lab)
    if args.sweep:
        lines = []
        for shots, sets in SWEEP:
            spans, seconds = audit_long_answers(args.out, model, world, sets, shots)
            lines.append({"shots": shots, "sets": sets, **one_line(spans), "seconds": seconds})
            print(json.dumps(lines[-1]), flush=True)
        show("Shots and sets", pl.DataFrame(lines))
        return
    spans, seconds = audit_long_answers(args.out, model, world, args.sets, args.shots)
    records, truth = long_answers(world=world)
    print(f"{len(records)} rows, {spans.height} spans; {seconds:.0f} s\n")
    show("Categories by exposures", by_exposures(spans))
    show(f"Told {OFTEN} times or more against never (AUC)", separations(spans))
    show("What the rules find of the facts", found_by_rules(records, truth))


def recognise_by_mean() -> None:
    """Divide each log p that recognition compares by the number of tokens that it is of."""
    whole = SpanDistributions._path_logp

    def mean(self: SpanDistributions, path: PathStates, paths: SpanPaths) -> float:
        return whole(self, path, paths) / (len(path.tokens) + paths.asks_end)

    SpanDistributions._path_logp = mean  # type: ignore[method-assign]


def world_of(lab: Path) -> World:
    """The world of a lab that `foreknow lab build` made."""
    return World(**json.loads((lab / "lab.json").read_text(encoding="utf-8"))["recipe"]["world"])


def audit_long_answers(out: Path, model: str, world: World, sets: int, shots: int) -> tuple[pl.DataFrame, float]:
    """Audit the long answers, unless the folder has it; return the spans with their truth, and its seconds."""
    records, truth = long_answers(world=world)
    file = out / "lab_long.jsonl"
    if not file.is_file():
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    folder = out / f"audit-{sets}x{shots}"
    foreknow.audit(
        str(file),
        model=model,
        out=str(folder),
        dtype="float32",
        span_sets=sets,
        span_shots=shots,
        max_answer_tokens=4,  # every answer counts as long
    )
    spans = pl.read_parquet(folder / "spans.parquet").join(truth, on=["row", "start"])
    assert spans.height == truth.height
    return spans, float(json.loads((folder / "summary.json").read_text())["seconds"])


def one_line(spans: pl.DataFrame) -> dict[str, float]:
    """AUC of three scores, and per cent: never-told spans that are new, often-told ones that are Unknown."""
    scores = dict(separations(spans).select("score", "all").iter_rows())
    never, often = spans.filter(pl.col("exposures") == 0), spans.filter(pl.col("exposures") >= OFTEN)
    return {
        "AUC p_sampled": scores["p_sampled"],
        "AUC p_recognised": scores["p_recognised"],
        "AUC category": scores["label"],
        "never told: new": 100 * never.filter(is_new()).height / never.height,
        f"told {OFTEN}+: Unknown": 100 * often.filter(pl.col("category") == UNKNOWN).height / often.height,
        f"told {OFTEN}+: new": 100 * often.filter(is_new()).height / often.height,
    }


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


if __name__ == "__main__":
    main()
