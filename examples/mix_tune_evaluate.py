"""Train on the rows that the model knows already, and see what the training kept and lost.

    python examples/mix_tune_evaluate.py train.jsonl dev.jsonl test.jsonl --model smollm2-135m --out runs/known

Four steps, each in a folder or file of its own below --out: audit the training and the test rows, write a training set
without the Unknown rows, fine-tune on it, and ask the tuned model every test question.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import foreknow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="rows to train on")
    parser.add_argument("dev", help="rows that choose the best epoch, and serve as few-shot examples in audits")
    parser.add_argument("test", help="rows that are only measured")
    parser.add_argument("--model", default="smollm2-135m", help="a packaged model, a folder, a .gguf file or a hub id")
    parser.add_argument("--out", type=Path, default=Path("runs/known"), help="the folder to write everything in")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    model, out = options.model, options.out

    train = foreknow.audit(options.train, exemplars=options.dev, model=model, out=str(out / "audit-train"))
    test = foreknow.audit(options.test, exemplars=options.dev, model=model, out=str(out / "audit-test"))

    known = out / "known.jsonl"
    foreknow.mix(str(train.folder), drop=("Unknown",), out=str(known))

    tuned = foreknow.tune(
        str(known),
        dev=options.dev,
        # the audit's copy of the file has a column `category`, so that exact match is reported by category
        test={"test": str(test.folder / "annotated.jsonl")},
        model=model,
        epochs=options.epochs,
        learning_rate=5e-5,
        batch_size=16,
        out=str(out / "tuned"),
    )
    best = tuned.results["early_stop"]["metrics"]
    print(f"best epoch: {best['epoch']}, exact match on dev {best['em']['dev']:.1%}, on test {best['em']['test']:.1%}")

    evaluation = foreknow.evaluate(
        str(tuned.folder / "early_stop"), options.test, audit=str(test.folder), out=str(out / "evaluation")
    )
    print(f"what the tuned model answers: {evaluation.folder / 'report.html'}")


if __name__ == "__main__":
    main()
