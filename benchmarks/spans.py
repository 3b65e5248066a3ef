"""Where does the time of labelling spans go, and how far is it from the machine's own limit?

    python benchmarks/spans.py FILE [--model smollm2-135m] [--rows 8 --skip 0] [--rounds 2]
        [--sets 4 --shots 2 --alternatives 9] [--out LABELS.parquet]

Labels the spans of long rows of FILE as `foreknow audit` does, and prints processor seconds and tokens by part:
exemplar prefixes, the rows' own tokens, alternatives, the output head, and all the rest. limit: the matrix products of
the model's own layers and head for as many tokens, and nothing else, measured after every round. Both are processor
seconds of all threads, and the least of the rounds, so that the machine's other business counts less. Loading the
model is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from foreknow.config import AuditConfig
from foreknow.inference.packing import Segment
from foreknow.inference.span_probe import SpanProber
from foreknow.stages.audit.chunks import open_span_prober
from foreknow.stages.audit.executor import AuditContext
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes

SPAN_ROWS = 8
"""Rows that an audit labels and saves together."""


class Clock:
    """Processor seconds and counts by part. Parts that run inside another are taken out of it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._inside: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        began = time.process_time()
        yield
        own = time.process_time() - began
        inner = self._inside.pop()
        self.seconds[name] += own - inner
        if self._inside:
            self._inside[-1] += own


def watch(prober: SpanProber, clock: Clock) -> None:
    """Count tokens and time of every part of a prober."""
    engine: Any = prober.engine
    forward, prefixes, logits = engine.packed.forward, engine.packed.prefixes, engine.logits
    inside_prefixes = [False]

    def counting(segments: Sequence[Segment], *, keep: bool = False) -> Any:
        name = "prefixes" if inside_prefixes[0] else "alternatives" if segments[0].past is not None else "rows"
        clock.counts[f"{name} tokens"] += sum(len(b.ids) for s in segments for b in s.branches)
        clock.counts[f"{name} passes"] += 1
        with clock.part(f"forward: {name}"):
            return forward(segments, keep=keep)

    def of_prefixes(prompts: Sequence[Sequence[int]]) -> Any:
        inside_prefixes[0] = True
        try:
            return prefixes(prompts)
        finally:
            inside_prefixes[0] = False

    def head(states: Tensor) -> Tensor:
        clock.counts["head positions"] += len(states)
        with clock.part("head"):
            return logits(states)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with clock.part(name):
                return work(*args)

        return run

    engine.packed.forward, engine.packed.prefixes, engine.logits = counting, of_prefixes, head
    prober._scores = timed("distributions", prober._scores)  # type: ignore[method-assign]
    prober._prepare = timed("tokenising rows", prober._prepare)  # type: ignore[method-assign]
    prober._job = timed("building trees", prober._job)  # type: ignore[method-assign]
    prober.probe = timed("the rest", prober.probe)  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--alternatives", type=int, default=9)
    parser.add_argument("--skip", type=int, default=0, help="long rows to leave out before the first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the labels there, to compare two versions")
    args = parser.parse_args()
    asked = AuditConfig(
        data=args.file,
        model=args.model,
        dtype=args.dtype,
        span_sets=args.sets,
        span_shots=args.shots,
        span_alternatives=args.alternatives,
    )
    config = with_batch_sizes(asked, "cpu", "", Path())
    with open_context(config, read_input(config)) as context:
        rows = context.plan.long.slice(args.skip, args.rows)
        best: tuple[float, pl.DataFrame, Clock] | None = None
        limit = float("inf")
        for _ in range(args.rounds):
            seconds, spans, clock = label(config, context, rows)
            best = min(best or (seconds, spans, clock), (seconds, spans, clock), key=lambda one: one[0])
            limit = min(limit, limit_seconds(context, clock.counts))
    assert best is not None
    if args.out:
        best[1].write_parquet(args.out)
    report(best[2], rows.height, best[1].height, best[0], limit)


def label(config: AuditConfig, context: AuditContext, rows: pl.DataFrame) -> tuple[float, pl.DataFrame, Clock]:
    """Return processor seconds of all, the labels, and the clock. The prefixes are computed anew."""
    plan, packed = context.plan.spans, context.probing.packed
    if plan is None or packed is None:
        raise SystemExit("the file has no fact spans, or the packed engine does not take this model")
    clock, frames, forward = Clock(), [], packed.forward
    with open_span_prober(context.loaded, context.probing.prompter, config, plan, packed) as prober:
        watch(prober, clock)
        began = time.process_time()
        for start in range(0, rows.height, SPAN_ROWS):
            frames.append(prober.probe(rows.slice(start, SPAN_ROWS), plan.finder))
        seconds = time.process_time() - began
    del packed.prefixes  # the methods as they were
    packed.forward = forward  # type: ignore[method-assign]
    clock.counts["all tokens"] = sum(count for name, count in clock.counts.items() if name.endswith(" tokens"))
    return seconds, pl.concat(frames), clock


@torch.inference_mode()
def limit_seconds(context: AuditContext, counts: Counter[str], at_once: int = 512, rounds: int = 3) -> float:
    """Processor seconds of the model's own matrix products for the counted tokens and head positions."""
    assert context.probing.packed is not None
    packed = context.probing.packed
    weights = [p for n, p in packed.body.named_parameters() if p.dim() == 2 and "embed" not in n]
    head = packed.head.weight
    inputs = {n: torch.randn(at_once, n, dtype=head.dtype) for n in {w.shape[1] for w in [*weights, head]}}

    def least(layers: Sequence[Tensor]) -> float:
        times = []
        for _ in range(rounds):
            began = time.process_time()
            for weight in layers:
                nn.functional.linear(inputs[weight.shape[1]], weight)
            times.append(time.process_time() - began)
        return min(times) / at_once

    return least(weights) * counts["all tokens"] + least([head]) * counts["head positions"]


def report(clock: Clock, rows: int, spans: int, seconds: float, limit: float) -> None:
    """Print the parts, the largest first, and the totals."""
    print(f"{rows} rows, {spans} spans: {seconds:.1f} s of processor time, {seconds / rows:.2f} s a row\n")
    print("| part | seconds | share |\n|---|---|---|")
    for name, own in clock.seconds.most_common():
        print(f"| {name} | {own:.2f} | {own / seconds:.0%} |")
    print()
    for name, count in sorted(clock.counts.items()):
        print(f"{name:<24}{count:,}")
    tokens = clock.counts["all tokens"]
    print(f"useful tokens/s{tokens / seconds:>15,.0f}\nlimit, tokens/s{tokens / limit:>15,.0f}")
    print(f"share of the limit{limit / seconds:>12.0%}")


if __name__ == "__main__":
    main()
