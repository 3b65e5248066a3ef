"""Does an audit through a server agree with the exact audit here? Same rows, prompts, exemplars; one model.

    python benchmarks/server_agreement.py --server openai:http://localhost:8000/v1#NAME --local smollm2-135m \\
        --rows 64 --out FILE.json

Without --server one of our own is started on loopback with the local model. Counted: rows whose label differs,
the largest difference of any prompt's P_Correct, prompts whose local value lies outside the server's interval,
greedy decisions that differ, requests, tokens, rows a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data.schema import chunks
from foreknow.inference import slick
from foreknow.inference.server.model import Address, address_of
from foreknow.models.resolve import resolve
from foreknow.stages.audit.server_executor import connect_server, open_server_executor
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server")
    parser.add_argument("--local", default="smollm2-135m")
    parser.add_argument("--data", default="facts")
    parser.add_argument("--exemplars", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    given = {
        "data": args.data, "model": args.local, "dtype": args.dtype, "limit": args.rows, "top_k": args.top_k,
        "exemplar_sets": args.sets, "exemplars": args.exemplars,
    }  # fmt: skip
    config = with_batch_sizes(AuditConfig(**given), "cpu", "", Path())
    data = read_input(config)
    with open_context(config, data) as context:
        began = time.monotonic()
        local = [context.probing.prober.probe(c) for c in chunks(context.plan.rows, 32)]
        local_seconds = time.monotonic() - began
    with _server(args.server, args.local) as address:
        patient = {"tokenizer": str(resolve(args.local).folder), "concurrency": args.concurrency}
        config = config.model_copy(update=patient)
        with connect_server(config, data, address) as server:
            executor = open_server_executor(config, data, server)
            before = server.usage
            began = time.monotonic()
            plan = list(enumerate(chunks(executor.plan.rows, 32)))
            served = [chunk for _, chunk, _ in executor.probe(plan)]
            seconds = time.monotonic() - began
            used = {key: value - getattr(before, key) for key, value in server.usage._asdict().items()}
            reasons = server.reasons
    result: dict[str, Any] = {
        "server": reasons, "rows": executor.plan.rows.height, **compared(local, served), **used,
        "seconds": seconds, "rows_per_second": executor.plan.rows.height / seconds, "local_seconds": local_seconds,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


@contextmanager
def _server(given: str | None, model: str) -> Iterator[Address]:
    """The server that was named, or one of our own."""
    if given is not None:
        address = address_of(given)
        if address is None:
            raise SystemExit("--server: expected openai:URL#NAME")
        yield address
        return
    script = Path(__file__).parents[1] / "tests" / "completions_server.py"
    command = [sys.executable, str(script), str(resolve(model).folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield Address(child.stdout.readline().strip(), "m")
    finally:
        child.kill()
        child.wait()


def compared(local: list[Any], served: list[Any]) -> dict[str, Any]:
    here, there = (pl.concat([chunk.probes for chunk in some]) for some in (local, served))
    both = here.join(there, on=["row", "exemplar_set"], suffix="_server")
    outside = (pl.col("p_correct_upper") < pl.col("p_correct_server") - 1e-4) | (
        pl.col("p_correct") > pl.col("p_correct_upper_server") + 1e-4
    )
    labels = slick.label(here, samples=16).join(slick.label(there, samples=16), on="row", suffix="_server")
    said = pl.concat([c.answers for c in local]).join(
        pl.concat([c.answers for c in served]), on="row", suffix="_server"
    )
    answer = [name for name in said.columns if name != "row"]
    return {
        "labels_that_differ": labels.filter(pl.col("category") != pl.col("category_server")).height,
        "prompts": both.height,
        "largest_difference": float((both["p_correct"] - both["p_correct_server"]).abs().max()),  # type: ignore[arg-type]
        "mean_difference": float((both["p_correct"] - both["p_correct_server"]).abs().mean()),  # type: ignore[arg-type]
        "outside_the_interval": both.filter(outside).height,
        "widest_interval": float((both["p_correct_upper_server"] - both["p_correct_server"]).max()),  # type: ignore[arg-type]
        "undecided": int(labels["undecided_server"].sum()),
        "greedy_decisions_that_differ": both.filter(pl.col("greedy_correct") != pl.col("greedy_correct_server")).height,
        "greedy_answers_that_differ": said.filter(pl.col(answer[0]) != pl.col(answer[1])).height,
    }


if __name__ == "__main__":
    main()
