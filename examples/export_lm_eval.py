"""Ask the rows of an audit with lm-evaluation-harness: write the tasks, and print the command that runs them.

    python examples/export_lm_eval.py train.jsonl --model smollm2-135m --out runs/export

With `pip install 'foreknow[harness]'` the printed command runs as it is (docs/tasks/lm-eval.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import foreknow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data file with short answers")
    parser.add_argument("--model", default="smollm2-135m", help="a packaged model, a folder, a .gguf file or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args()

    audit = foreknow.audit(options.data, model=options.model, out=options.out / "audit")
    export = foreknow.export_lm_eval(audit, options.out / "tasks")
    print(export.command)


if __name__ == "__main__":
    main()
