"""Rows and a model that lie in memory: audit, look, mix, train with a loop of your own, and audit again in between.

    python examples/in_memory.py rows.jsonl --model path/to/model

This is what one does in a notebook; there `audit` alone shows the verdict with a bar, and `audit.plot()` the chart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow

SETTINGS: dict[str, Any] = {"shots": 2, "exemplar_sets": 4}
"""Cheaper than the default of 10 sets of 4 exemplars: enough to see whether training moves something."""


def train(model: Any, tokenizer: Any, rows: list[dict[str, Any]], steps: int) -> float:
    """Some steps of plain training on questions and answers; the loss of the last one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    loss = torch.zeros(())
    for step in range(steps):
        row = rows[step % len(rows)]
        text = f"Q: {row['question']}\nA: {row['answer']}\n"
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="JSONL with `question` and `answer`")
    parser.add_argument("--model", required=True, help="a folder saved by save_pretrained, or a hub id")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, help="keep the last audit in this folder")
    options = parser.parse_args()

    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)

    print(foreknow.check(rows))
    before = foreknow.audit(rows, model=model, tokenizer=tokenizer, **SETTINGS)
    print(before)
    unknown = before.rows.filter(before.rows["category"] == "Unknown")
    if not unknown.is_empty():
        print(before.explain(unknown["row"][0]))

    mixed = foreknow.mix(before, natural=True)  # or drop="unknown", unknown=0.5, ...
    print(mixed)
    for part in (1, 2):
        loss = train(model, tokenizer, mixed.records(), options.steps // 2)
        now = foreknow.audit(rows, model=model, tokenizer=tokenizer, **SETTINGS)  # the model stays in training mode
        moved = foreknow.compare(before, now).summary
        print(
            f"after part {part}, loss {loss:.2f}: {moved['better_known']} rows better known, "
            f"{moved['less_known']} less known"
        )
    if options.out is not None:
        print(f"saved: {now.save(options.out).folder}")


if __name__ == "__main__":
    main()
