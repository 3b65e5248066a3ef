"""How fast is tuning? Our trainer and the rivals as they come, in turns, in one run on the same rows and batches.

    python benchmarks/tune.py [--model smollm2-135m] [--rows 256] [--batch 32] [--rounds 2] [--dropout 0]
                              [--dtype bfloat16] [--only ours trainer] [--out FILE.json]

ours       FactTrainer: packed rows, the head on the answers' positions only
trainer    transformers.Trainer as it comes: rows padded to the longest of their batch, labels masked up to the answer
trl        TRL's SFTTrainer as it comes, on prompt and completion: activations computed twice (its default)
trl-plain  the same with that turned off
trl-packing  the same, and rows packed into sequences of as many tokens as a batch has on average (packing=True,
           padding-free as TRL makes it): its batches are others, so only the mean loss of the epoch can be compared
limit      nothing but the matrix products of the model's layers and head, forward and backward, for the tokens that
           `ours` computes: no trainer that computes these tokens can be faster on this machine

A round trains one epoch with each, from the same weights, on the same batches in the same order; rounds repeat, so
that what else the machine does strikes all alike. The first step of every training builds kernels and is left out
of the rates. Then the rows are asked for their answers: by the tracker; by `generate` as a trainer calls it (greedy,
the model as it is trained, under autocast, 32 new tokens at most); and by `generate` as well as it can be done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from foreknow.config import TuneConfig
from foreknow.data import schema as facts
from foreknow.data.builtin import default_facts
from foreknow.data.exact_match import Accepted, answer_of
from foreknow.inference.malloc import keep_memory
from foreknow.models import loading
from foreknow.models.quiet import quiet
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.train.answer_loss import open_pass, shared_beginning
from foreknow.stages.train.batches import step_rows
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.tracker import EvalModelCopy, Tracker, vocabulary_for
from foreknow.stages.train.trainer import FactTrainer, arguments, set_dropout
from foreknow.stages.train.training_examples import TRAINING, TrainingExample, examples

Run = tuple[list[float], list[float]]
"""A training's seconds and losses, step by step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=["ours", "trainer", "trl", "trl-plain", "trl-packing"])
    parser.add_argument("--measured", type=int, default=128, help="rows to ask by generate")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # TRL uses old names of transformers
    keep_memory()
    found = measure(args)
    for key, value in found.items():
        print(f"{key:<58}{f'{value:,.4g}' if isinstance(value, float) else value}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    loaded = loading.load_model(args.model, dtype="float32", device=args.device)
    rows = chosen_rows(args.rows)
    prompter = Prompter(loaded.tokenizer, TRAINING)
    lessons = examples(LabelledSplit("train", "facts", rows, 0, "", ""), prompter, int(loaded.tokenizer.eos_token_id))
    runs: dict[str, list[Run]] = {name: [] for name in args.only}
    for number in range(args.rounds):
        for name in args.only:
            # a fresh model: what accelerate has done to one it does not do again, mixed precision among it
            loaded = loading.load_model(args.model, dtype="float32", device=args.device)
            set_dropout(loaded.model, args.dropout)
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(CONTENDERS[name](args, loaded, lessons, Path(folder)))
            print(f"round {number + 1}, {name}: {rate(runs[name][-1], args):.1f} rows/s", flush=True)
    found: dict[str, Any] = {
        "model, dtype, threads": f"{args.model}, {args.dtype}, {torch.get_num_threads()}",
        "rows, batch, rounds, dropout": f"{rows.height}, {args.batch}, {args.rounds}, {args.dropout}",
        "tokens a row, tokens of its answer": f"{mean(e.length for e in lessons):.1f}, "
        f"{mean(len(e.answer) for e in lessons):.1f}",
    }
    rates = {name: mean(rate(run, args) for run in some) for name, some in runs.items()}
    for name, value in rates.items():
        found[f"{name}, rows/s"] = value
        if name != "ours" and "ours" in rates:
            found[f"ours / {name}"] = rates["ours"] / value
            losses, theirs = runs["ours"][0][1], runs[name][0][1]
            if name == "trl-packing":
                found[f"mean loss, ours and {name}"] = f"{mean(losses):.3f}, {mean(theirs):.3f}"
                continue
            pairs = list(zip(losses, theirs, strict=True))
            found[f"loss, ours - {name}: first step, mean, largest"] = (
                f"{pairs[0][0] - pairs[0][1]:+.5f}, {mean(a - b for a, b in pairs):+.5f}, "
                f"{max((a - b for a, b in pairs), key=abs):+.5f} of {mean(b for _, b in pairs):.3f}"
            )
    found["limit: matrix products of ours, rows/s"] = limit(loaded.model, lessons, args)
    if "ours" in rates:
        found["ours / limit"] = rates["ours"] / found["limit: matrix products of ours, rows/s"]
    return found | answering(args, loaded, rows, prompter)


def limit(model: Any, lessons: Sequence[TrainingExample], args: argparse.Namespace, at_least: float = 3.0) -> float:
    """Rows a second if a step were only its matrix products: output, gradient of the input, gradient of the weights."""
    batch = list(lessons[: args.batch])
    shared = shared_beginning(batch)
    tokens = shared + sum(example.length - shared for example in batch)
    answers = sum(len(example.answer) for example in batch)
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    head = model.get_output_embeddings().weight.detach().to(dtype)
    layers = [p.detach().to(dtype) for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    layers = [weight for weight in layers if weight.shape != head.shape]
    products = [(weight, torch.randn(tokens, weight.shape[1], dtype=dtype)) for weight in layers]
    products.append((head, torch.randn(answers, head.shape[1], dtype=dtype)))
    gradients = [torch.randn(len(rows), weight.shape[0], dtype=dtype) for weight, rows in products]

    def work() -> None:
        for (weight, rows), gradient in zip(products, gradients, strict=True):
            torch.nn.functional.linear(rows, weight)
            gradient @ weight
            gradient.T @ rows

    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < at_least:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return len(batch) / best


def chosen_rows(count: int) -> pl.DataFrame:
    """Real facts of several relations, as a set to train on."""
    every = default_facts.read_default().rows.filter(pl.col("split") == "train")
    rows = facts.take(every, count, 0).sample(count, shuffle=True, seed=0)
    return rows.with_columns(
        category=pl.lit(None, pl.String), weight=pl.lit(1.0), loss_exclude=pl.lit(None, SET["loss_exclude"])
    ).select(*SET)


def mean(values: Any) -> float:
    return statistics.fmean(values)


def rate(run: Run, args: argparse.Namespace) -> float:
    """Rows a second, the first step left out (and a last, smaller one)."""
    full = run[0][1 : args.rows // args.batch] or run[0]
    return args.batch / mean(full)


class _Clock(TrainerCallback):
    """Seconds and losses of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class _Meter:
    def advance(self, count: int) -> None:
        pass


class _Timed(FactTrainer):
    """Ours, its losses told; nothing is measured or saved."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.told.append(float(loss))
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        self.control.should_evaluate = False
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pass

    told: list[float]


def ours(args: Any, loaded: loading.Loaded, lessons: Sequence[TrainingExample], folder: Path) -> Run:
    config = TuneConfig(
        train="facts", dev="facts", epochs=1, batch_size=args.batch, learning_rate=5e-5, dropout=args.dropout,
        micro_batch_tokens=2048 if args.device == "cpu" else 16384,
    )  # fmt: skip
    clock = _Clock()
    with ExitStack() as stack:
        losses, _ = stack.enter_context(open_pass(loaded.model, lessons[:2]))
        trainer = _Timed(
            loaded.model, arguments(config, folder, 1, args.device), list(lessons), config, losses,
            lambda _: ({}, False), _Meter(), autocast=args.dtype == "bfloat16",
        )  # fmt: skip
        trainer.told = []
        trainer.add_callback(clock)
        trainer.train()
    return clock.seconds, trainer.told


def settings(args: Any, folder: Path) -> dict[str, Any]:
    """What all rivals are told; the rest is as it comes."""
    return {
        "output_dir": str(folder), "num_train_epochs": 1, "per_device_train_batch_size": args.batch,
        "learning_rate": 5e-5, "lr_scheduler_type": "constant", "use_cpu": args.device == "cpu", "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "bf16": args.dtype == "bfloat16",
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False, "log_level": "error",
    }  # fmt: skip


def in_order(args: Any, count: int) -> list[int]:
    """Places of the rows in the order in which ours trains on them."""
    return [place for step in range(-(-count // args.batch)) for place in step_rows(0, step, count, args.batch)]


def trainer(args: Any, loaded: loading.Loaded, lessons: Sequence[TrainingExample], folder: Path) -> Run:
    data = [
        {"input_ids": [*e.prompt, *e.answer], "labels": [-100] * len(e.prompt) + list(e.answer)}
        for e in (lessons[place] for place in in_order(args, len(lessons)))
    ]
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token  # labels mask the padding
    rival = Trainer(
        loaded.model, TrainingArguments(**settings(args, folder)), train_dataset=data,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(loaded.tokenizer), processing_class=loaded.tokenizer,
    )  # fmt: skip
    return _run(rival)


def trl(
    args: Any,
    loaded: loading.Loaded,
    lessons: Sequence[TrainingExample],
    folder: Path,
    plain: bool = False,
    packing: bool = False,
) -> Run:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    spell = loaded.tokenizer.decode
    ordered = [lessons[place] for place in in_order(args, len(lessons))]
    data = Dataset.from_list([{"prompt": spell(e.prompt), "completion": spell(e.answer[:-1])} for e in ordered])
    given = {**settings(args, folder), **({"gradient_checkpointing": False} if plain else {})}
    if packing:
        tokens = round(mean(e.length + 1 for e in lessons) * args.batch)
        given |= {"packing": True, "max_length": tokens, "per_device_train_batch_size": 1}
    rival = SFTTrainer(loaded.model, SFTConfig(**given), train_dataset=data, processing_class=loaded.tokenizer)
    seconds, losses = _run(rival)
    if packing:  # the first sequence is as long as a batch; the time of all others is spread over the other batches
        others = len(lessons) // args.batch - 1
        seconds = [seconds[0], *[sum(seconds[1:]) / others] * others]
    return seconds, losses


def _run(rival: Any) -> Run:
    clock = _Clock()
    rival.add_callback(clock)
    rival.remove_callback(PrinterCallback)
    rival.train()
    disable = getattr(rival.model, "activation_checkpointing_disable", rival.model.gradient_checkpointing_disable)
    disable()
    rival.model.config.use_cache = True
    return clock.seconds, clock.losses


CONTENDERS: dict[str, Callable[..., Run]] = {
    "ours": ours,
    "trainer": trainer,
    "trl": trl,
    "trl-plain": lambda *given: trl(*given, plain=True),
    "trl-packing": lambda *given: trl(*given, plain=True, packing=True),
}


def answering(args: Any, loaded: loading.Loaded, rows: pl.DataFrame, prompter: Prompter) -> dict[str, Any]:
    """Rows a second by the tracker and by `generate`, on the model as the last training left it."""
    dtype = getattr(torch, args.dtype)
    mirror = EvalModelCopy(dtype)
    track = Tracker(prompter, vocabulary_for(loaded.model, loaded.tokenizer), {"dev": rows})
    track(mirror.of(loaded.model))
    began = time.perf_counter()
    outcomes = track(mirror.of(loaded.model))
    tracked = rows.height / (time.perf_counter() - began)
    some = rows.head(args.measured)
    ours_right = dict(outcomes.select("row", "correct").iter_rows())
    found: dict[str, Any] = {"tracker, rows/s (copy of the weights included)": tracked}
    for name, by_hand in (("generate as it comes", False), ("generate, bf16 copy, sorted, short", True)):
        model = mirror.of(loaded.model) if by_hand else loaded.model
        with quiet(), torch.autocast(args.device, torch.bfloat16, enabled=not by_hand and args.dtype == "bfloat16"):
            began = time.perf_counter()
            right = generated(model, loaded.tokenizer, prompter, some, args.batch, by_hand)
            found[f"{name}, rows/s"] = some.height / (time.perf_counter() - began)
        found[f"tracker / {name}"] = tracked / found[f"{name}, rows/s"]
        differ = sum(ours_right[row] != one for row, one in zip(some["row"], right, strict=True))
        found[f"{name}: right, judged differently"] = f"{sum(right)} of {some.height}, {differ}"
    return found


@torch.inference_mode()
def generated(
    model: Any, tokenizer: Any, prompter: Prompter, rows: pl.DataFrame, batch: int, by_hand: bool
) -> list[bool]:
    """Which rows `generate` answers right. `by_hand`: like lengths together, and no more tokens than needed."""
    model.eval()
    prompts = prompter.ids([prompter.text((), question) for question in rows["question"]])
    answers = rows["answers"].to_list()
    longest = max(len(tokenizer(a)["input_ids"]) for some in answers for a in some) + 4 if by_hand else 32
    found: dict[int, bool] = {}
    order = sorted(range(rows.height), key=lambda n: len(prompts[n])) if by_hand else list(range(rows.height))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        width = max(len(prompts[n]) for n in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, n in enumerate(part):
            ids[r, width - len(prompts[n]) :] = torch.tensor(prompts[n])
            mask[r, width - len(prompts[n]) :] = 1
        made = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=longest,
            do_sample=False,            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        for n, line in zip(part, made[:, width:], strict=True):
            said = answer_of(tokenizer.decode(line, skip_special_tokens=True))
            found[n] = Accepted.of(answers[n]).right(said, "strict")
    return [found[n] for n in range(rows.height)]


if __name__ == "__main__":
    main()
