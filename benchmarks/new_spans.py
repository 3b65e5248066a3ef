"""What would a person say of the spans that an audit calls new? Draws a sample to judge, or counts the verdicts on one.

    python benchmarks/new_spans.py runs/medquad runs/faq --count 30                  # prints the sample, to judge
    python benchmarks/new_spans.py --verdicts docs/studies/span-precision/new-spans.csv

A line of the verdicts has the audit's name, the row, the span's first and last character, its type and the verdict,
which one reader gave before looking at any probability:

special    only someone of the trade (or of the company) knows it: that the model does not say it is to be believed
general    a person of general education knows it, or would expect it in this place
given      the question or the sentence gives it away, so it is not a fact of its own
cut        words that could be others, or a piece of a fact
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foreknow.data.schema import sampling_hash
from foreknow.data.spans.schema import is_new
from foreknow.stages.audit.result import open_audit
from span_precision import in_context, read_verdicts, show_verdicts

VERDICTS = ("special", "general", "given", "cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audits", type=Path, nargs="*")
    parser.add_argument("--count", type=int, default=30, help="how many spans of each audit to draw (default: 30)")
    parser.add_argument("--verdicts", type=Path)
    args = parser.parse_args()
    if args.verdicts is None:
        for folder in args.audits:
            for line in sample(folder, args.count):
                print(line)
        return
    show_verdicts(read_verdicts(args.verdicts, VERDICTS), VERDICTS, by="audit", good=("special",))


def sample(folder: Path, count: int) -> list[str]:
    """Return `count` new spans of an audit, drawn by a hash of their places: what identifies each, and its context."""
    audit = open_audit(folder)
    rows = {line["row"]: line for line in audit.rows.select("row", "question", "answers").iter_rows(named=True)}
    new = audit.spans.filter(is_new()).select("row", "start", "end", "type")
    drawn = sorted(new.iter_rows(), key=lambda line: sampling_hash(0, folder.name, *map(str, line[:2])))[:count]
    lines = []
    for row, start, end, kind in sorted(drawn):
        context = in_context(rows[row]["answers"][0], start, end)
        lines.append(f"{folder.name},{row},{start},{end},{kind}\t{rows[row]['question'][:90]!r}\t{context}")
    return lines


if __name__ == "__main__":
    main()
