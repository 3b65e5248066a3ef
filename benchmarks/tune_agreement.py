"""Does the tracker's arg max say what real greedy generation says? Row by row, for several checkpoints.

    python benchmarks/tune_agreement.py FILE [FILE ...] --models smollm2-135m RUN/early_stop RUN/convergence
                                        [--dtype float32] [--out FILE.json]

Every row of the files is asked by `foreknow evaluate`, which generates, and by the tracker, which does not, in the
training format, at the same dtype. A difference is printed with what was said and the smallest gap between the two
largest logits along the answer: a near tie explains it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from foreknow.config import EvaluateConfig
from foreknow.models import loading
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.evaluate.run import read_inputs, run
from foreknow.stages.train.tracker import Tracker, vocabulary_for
from foreknow.stages.train.training_examples import TRAINING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns = ("question", "answer", "relation")
        file = folder / "rows.jsonl"
        pl.concat([pl.read_ndjson(path).select(*columns) for path in args.data]).write_ndjson(file)
        found = [compared(model, file, folder / f"run-{n}", args.dtype) for n, model in enumerate(args.models)]
    for one in found:
        print(
            f"{one['model']}: {one['rows']:,} rows, {one['correct']:,} right, {one['correct_lenient']:,} leniently; "
            f"judged differently {len(one['different']):,}, leniently {one['different_lenient']:,}"
        )
        for difference in one["different"]:
            print(f"  {json.dumps(difference, ensure_ascii=False)}")
    if args.out:
        args.out.write_text(json.dumps({"dtype": args.dtype, "models": found}, indent=1, ensure_ascii=False) + "\n")


def compared(name: str, file: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Rows on which the two differ for one model."""
    config = EvaluateConfig(model=name, data=str(file), out=out, dtype=dtype)
    said = run(config).rows
    loaded = loading.load_model(name, dtype=dtype, device="auto")
    prompter = Prompter(loaded.tokenizer, TRAINING)
    tracker = Tracker(
        prompter, vocabulary_for(loaded.model, loaded.tokenizer), {"rows": read_inputs(config).rows}, lenient=True
    )
    both = said.join(tracker(loaded.model).select("row", tracked="correct", tracked_lenient="lenient"), on="row")
    apart = both.filter(pl.col("correct") != pl.col("tracked"))
    return {
        "model": "/".join(Path(name).parts[-2:]),
        "rows": both.height,
        "correct": int(both["correct"].sum()),
        "correct_lenient": int(both["correct_lenient"].sum()),
        "different": [
            {**row, "smallest_gap": gap(loaded, prompter, str(row["question"]))}
            for row in apart.select("row", "question", "answer", "prediction", "correct", "tracked").to_dicts()
        ],
        "different_lenient": int((both["correct_lenient"] != both["tracked_lenient"]).sum()),
    }


@torch.inference_mode()
def gap(loaded: loading.Loaded, prompter: Prompter, question: str) -> float:
    """The smallest gap between the two largest logits along the greedy answer."""
    ids = torch.tensor([prompter.ids([prompter.text((), question)])[0]]).to(loaded.model.device)
    made = loaded.model.generate(ids, do_sample=False, max_new_tokens=16, pad_token_id=0)
    top = loaded.model(made).logits[0, ids.shape[1] - 1 : -1].float().topk(2, dim=-1).values
    return float((top[:, 0] - top[:, 1]).min())


if __name__ == "__main__":
    main()
