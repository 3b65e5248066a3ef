"""Watch what your own trainer fits and forgets: `KnowledgeCallback` in a `transformers.Trainer`.

    python examples/watch_a_trainer.py runs/train/annotated.jsonl dev.jsonl --model path/to/model --out runs/trained

`annotated.jsonl` is what an audit writes: your file with a column `category`. TRL's `SFTTrainer` takes the callback in
the same way. After each epoch the trainer's log has `eval_dev_em`, `eval_train_Unknown_fitted` and their kin, and
`metric_for_best_model` may name one of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from foreknow import KnowledgeCallback

PROMPT = "Answer the following question. {question}\n"
"""What `foreknow tune` puts before an answer; the callback asks in the same way unless it is given a template."""


def encode(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """A row as token ids; the loss is taken at the answer's tokens only."""
    prompt = tokenizer(PROMPT.format(question=row["question"]))["input_ids"]
    answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt + answer,
        "attention_mask": [1] * (len(prompt) + len(answer)),
        "labels": [-100] * len(prompt) + answer,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="an audit's annotated.jsonl with `question` and `answer`")
    parser.add_argument("dev", help="rows that choose the best epoch")
    parser.add_argument("--model", required=True, help="a folder saved by save_pretrained, or a hub id")
    parser.add_argument("--out", default="runs/trained", help="the trainer's folder")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token is None:  # as many base models; padding is never learnt from, as its labels are -100
        tokenizer.pad_token = tokenizer.eos_token
    rows = [json.loads(line) for line in Path(options.train).read_text(encoding="utf-8").splitlines()]
    callback = KnowledgeCallback(options.train, sets={"dev": options.dev})
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(options.model),
        TrainingArguments(
            output_dir=options.out,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=8,
            learning_rate=5e-5,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="dev_em",
            greater_is_better=True,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=[encode(tokenizer, row) for row in rows],
        eval_dataset=[encode(tokenizer, row) for row in rows[:8]],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.attach(trainer)  # the metrics go to the trainer's own log and trackers
    trainer.train()
    for line in callback.lines:
        print(f"epoch {line['epoch']}: fitted {line['fitted']}, exact match {line['em']}")
    print(f"best checkpoint: {trainer.state.best_model_checkpoint}")


if __name__ == "__main__":
    main()
