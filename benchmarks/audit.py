"""How fast is the exact probe? Ours, the rivals and the machine's own limit, side by side in one run.

    python benchmarks/audit.py [--model smollm2-135m] [--dtype bfloat16] [--rows 256] [--out FILE.json]
    python benchmarks/audit.py --memory 1000 10000      peak memory at so many rows, each in a fresh process

(a) `generate`, one prompt at a time: 1 greedy call and 1 call with 16 return sequences for each of a row's prompts.
(b) `generate`, batched over rows and exemplar sets, left-padded, greedy and sampled.
(c) the probe, exemplar prefixes included.
limit: the matrix products of the model's own layers and head for as many tokens as (c) computed, at the same
dtype, nothing else: with plain weights as torch multiplies them, and with weights laid out for the processor.

(a) and (b) run on the first rows of each relation that (c) runs on; all figures are rates. Model load excluded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

from foreknow.config import AuditConfig
from foreknow.data.schema import chunks, take
from foreknow.inference.exact_probe import Prober
from foreknow.inference.generate import Generator, exact_head
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment
from foreknow.inference.prepacked_linear import _PrepackedLinear
from foreknow.stages.audit.executor import AuditContext
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes

RELATIONS = ["city_country", "company_headquarters", "us_city_state", "airport_city"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--one-by-one", type=int, default=4, help="rows for (a)")
    parser.add_argument("--batched", type=int, default=16, help="rows for (b)")
    parser.add_argument("--batch", type=int, default=160, help="sequences at once in (b)")
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.model, args.peak))
        return
    if args.memory:
        for count in args.memory:
            command = [sys.executable, __file__, "--model", args.model, "--peak", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{count:,} rows: peak {float(done.stdout.split()[-1]):,.0f} MiB", flush=True)
        return
    found = speed(args)
    for key, value in found.items():
        print(f"{key:<44}{f'{value:,.3f}' if isinstance(value, float) else value}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def speed(args: argparse.Namespace) -> dict[str, Any]:
    config = with_batch_sizes(AuditConfig(data="facts", model=args.model, dtype=args.dtype), "cpu", "", Path())
    given = read_input(config)
    wanted = given.facts.rows.filter(pl.col("group").is_in(RELATIONS) & pl.col("split").is_in(["train", "test"]))
    rows = take(wanted, args.rows, 0)
    with open_context(config, given._replace(rows=rows)) as context:
        if context.probing.packed is None:
            raise SystemExit("the packed engine does not take this model")
        plan = chunks(context.plan.rows, int(config.chunk_rows or 128))
        prober: Any = context.probing.prober
        prober.probe(plan[0].head(8))  # first touch of the weights
        prober.engine._families.clear()
        counted = count_tokens(context.probing.packed)
        began = time.perf_counter()
        for part in plan:
            prober.probe(part)
        ours = time.perf_counter() - began
    plain, ordered = limits(context, counted)
    first = pl.concat([part.head(-(-args.batched // len(RELATIONS))) for part in rows.partition_by("group")])
    single = pl.concat([part.head(-(-args.one_by_one // len(RELATIONS))) for part in rows.partition_by("group")])
    with exact_head(context.loaded.model):
        slow = generated(context, prober, single, 1)
        batched = generated(context, prober, first, args.batch)
    c = rows.height / ours
    return {
        "model": args.model,
        "dtype": context.loaded.dtype,
        "threads": torch.get_num_threads(),
        "(a) generate, one prompt at a time, rows/s": slow,
        "(b) generate, batched, rows/s": batched,
        "(c) probe, rows/s": c,
        "(c) / (a)": c / slow,
        "(c) / (b)": c / batched,
        "(c) useful tokens/s": counted["tokens"] / ours,
        "(c) head positions/s": counted["wanted"] / ours,
        "limit, plain weights, tokens/s": counted["tokens"] / plain,
        "limit, weights laid out, tokens/s": counted["tokens"] / ordered,
        "(c) / limit, plain weights": plain / ours,
        "(c) / limit, weights laid out": ordered / ours,
        "rows: (a), (b), (c)": f"{single.height}, {first.height}, {rows.height}",
        "tokens of (c), head positions": f"{counted['tokens']:,}, {counted['wanted']:,}",
    }


def count_tokens(packed: PackedModel) -> dict[str, int]:
    """Count the unpadded tokens of every forward pass from here on."""
    counted, forward = {"tokens": 0, "wanted": 0}, packed.forward

    def counting(segments: Sequence[Segment], *, keep: bool = False) -> Any:
        for segment in segments:
            counted["tokens"] += sum(len(b.ids) for b in segment.branches)
            counted["wanted"] += sum(len(b.wanted) for b in segment.branches)
        return forward(segments, keep=keep)

    packed.forward = counting  # type: ignore[method-assign]
    return counted


@torch.inference_mode()
def limits(context: AuditContext, counted: dict[str, int], at_once: int = 1024) -> tuple[float, float]:
    """Seconds the model's own matrix products take for these tokens: plain weights, and laid out.

    Called after the probe is done: while it runs, the plain layers are swapped for laid-out ones.
    """
    assert context.probing.packed is not None
    packed = context.probing.packed
    weights = [p for n, p in packed.body.named_parameters() if p.dim() == 2 and "embed" not in n]
    head = packed.head.weight
    inputs = {n: torch.randn(at_once, n, dtype=head.dtype) for n in {w.shape[1] for w in [*weights, head]}}
    laid = [_PrepackedLinear(_as_linear(w)) for w in weights] if head.dtype == torch.bfloat16 else []

    def body() -> None:
        for w in weights:
            nn.functional.linear(inputs[w.shape[1]], w)

    def body_laid() -> None:
        for w, layer in zip(weights, laid, strict=True):
            layer(inputs[w.shape[1]])

    some = inputs[head.shape[1]][:256]
    per_head = seconds(lambda: nn.functional.linear(some, head)) / 256 * counted["wanted"]
    plain = seconds(body) / at_once * counted["tokens"] + per_head
    ordered = seconds(body_laid) / at_once * counted["tokens"] + per_head if laid else plain
    return plain, ordered


def _as_linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def seconds(work: Callable[[], None], at_least: float = 3.0) -> float:
    """The best of as many rounds as fit: a limit, so the machine's other business is left out."""
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < at_least:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def generated(context: AuditContext, prober: Prober, rows: pl.DataFrame, batch: int) -> float:
    """Rows a second by `generate`: every prompt's greedy answer and 16 samples."""
    generator = Generator(context.loaded.model, prober.vocabulary, prober.engine.sampling, batch)  # type: ignore[attr-defined]
    found, prompts = prober.prompts.build(rows)
    flat = [(row, p.ids) for row, line in zip(found, prompts, strict=True) for p in line]
    began = time.perf_counter()
    if batch == 1:
        for row, ids in flat:
            generator.answers([ids], row.max_new, None)
            generator.answers([ids], row.max_new, 16)
    else:
        # prompts of like length together, so that little is padded
        flat.sort(key=lambda pair: (pair[0].max_new, len(pair[1])))
        for start in range(0, len(flat), 160):
            part = flat[start : start + 160]
            longest = max(row.max_new for row, _ in part)
            generator.answers([ids for _, ids in part], longest, None)
            generator.answers([ids for _, ids in part], longest, 16)
    return rows.height / (time.perf_counter() - began)


def peak(model: str, count: int) -> float:
    """Peak resident memory in MiB of an audit of `count` rows; one exemplar set, so that it ends today."""
    base = read_input(AuditConfig(data="facts")).facts.rows.select("question", "answers", "relation", "split")
    copies = [
        base.with_columns(question=pl.lit(f"Question {n}: ") + pl.col("question")) for n in range(-(-count // 4000))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pl.concat(copies).head(count).write_parquet(path)
        import foreknow

        foreknow.audit(str(path), model=model, out=str(Path(folder) / "out"), exemplar_sets=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
