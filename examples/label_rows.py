"""Label rows for a pipeline of your own: dictionaries in, the same dictionaries with a category out.

    python examples/label_rows.py rows.jsonl labelled.jsonl --model smollm2-135m

`label` is what you would copy: it needs only rows with a `question` and an `answer`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import foreknow


def label(rows: Sequence[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """The rows, each with `category`; it is None where a row gets no label (a long answer, an empty question)."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_jsonl(data, rows)
        labelled = foreknow.audit(str(data), model=model, out=str(Path(folder) / "audit")).rows
        # `record` is the number of the line that a row stands in; a chat would have several rows to a line
        categories = dict(labelled.select("record", "category").iter_rows())
    return [{**row, "category": categories.get(number)} for number, row in enumerate(rows)]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="JSONL with `question` and `answer`")
    parser.add_argument("out", type=Path, help="the file to write: the same rows with `category`")
    parser.add_argument("--model", default="smollm2-135m", help="a packaged model, a folder, a .gguf file or a hub id")
    options = parser.parse_args()

    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    labelled = label(rows, options.model)
    write_jsonl(options.out, labelled)
    unknown = sum(row["category"] == "Unknown" for row in labelled)
    print(f"{len(labelled)} rows written to {options.out}, {unknown} of them Unknown")


if __name__ == "__main__":
    main()
