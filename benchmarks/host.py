"""How much of a row's time is Python's? The probe's own share, beside the model's layers and its output head.

    python benchmarks/host.py [--layers 1] [--rows 256] [--rounds 3] [--logits FILE] [--out FILE.json] [--profile]

The whole model probes the rows once, and the logits that its output head gives are recorded. In the rounds that are
measured, a model with SmolLM2's vocabulary, tokenizer and first layer only stands in its place, and the head returns
the recorded logits: the search does what it does with the whole model, and a round takes seconds. One thread computes,
so processor time is work and no thread waits for another. A round probes all rows, exemplar prefixes included, with
nothing remembered of earlier rows. Its processor time is that of the one layer, and of the host, which is all the rest
(prompts, tokens, packing, next-token distributions, search, frames). Each figure is the median of the rounds.

`--logits` keeps what was recorded in a file, so that a second run (for instance of changed code) takes seconds. The
digest is that of the probes and answers: it is the same in two runs if, and only if, all their bytes are.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import hashlib
import json
import pstats
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save_file

from foreknow.config import AuditConfig
from foreknow.data.schema import chunks, take
from foreknow.models.resolve import resolve
from foreknow.stages.audit.executor import AuditContext
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes

Logits = tuple[torch.Tensor, torch.Tensor]
RELATIONS = ["city_country", "company_headquarters", "us_city_state", "airport_city"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--logits", type=Path, help="where the recorded logits are, or are to be written")
    parser.add_argument("--profile", action="store_true", help="print where the host's time goes, slower than it is")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = resolve("smollm2-135m").folder
        logits = read_logits(args)
        if logits is None:
            logits = record(whole, args)
            if args.logits:
                torch.save({"what": what(args), "logits": logits}, args.logits)
        torch.set_num_threads(1)
        found = host_share(shallow_model(whole, Path(folder), args.layers), logits, args)
    for key, value in found.items():
        print(f"{key:<44}{f'{value:,.3f}' if isinstance(value, float) else value}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def shallow_model(source: Path, folder: Path, layers: int) -> Path:
    """Write a copy of a model that keeps only its first layers, and return its folder."""
    for path in source.iterdir():
        if path.name not in ("model.safetensors", "config.json", "foreknow.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:layers]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    few = {
        k: v for k, v in weights.items() if ".layers." not in k or int(k.split(".layers.")[1].split(".")[0]) < layers
    }
    save_file(few, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def what(args: argparse.Namespace) -> dict[str, int]:
    """Return what recorded logits depend on."""
    return {"rows": args.rows, "chunk_rows": args.chunk_rows}


def read_logits(args: argparse.Namespace) -> list[Logits] | None:
    """Return the logits of an earlier run; None if there is no file. Raises SystemExit if they are of other rows."""
    if args.logits is None or not args.logits.exists():
        return None
    recorded: dict[str, Any] = torch.load(args.logits, weights_only=True)
    if recorded["what"] != what(args):
        raise SystemExit(f"{args.logits}: recorded with {recorded['what']}, expected {what(args)}; name another file")
    logits: list[Logits] = recorded["logits"]
    return logits


def record(model: Path, args: argparse.Namespace) -> list[Logits]:
    """Probe the rows once, and return the ids and logits of each call of the output head."""
    logits: list[Logits] = []
    with opened(model, args) as context:
        assert context.probing.packed is not None
        head = context.probing.packed.head
        top = head.top

        def recording(states: torch.Tensor, k: int) -> Logits:
            logits.append(top(states, k))
            return logits[-1]

        head.top = recording  # type: ignore[method-assign]
        for part in chunks(context.plan.rows, args.chunk_rows):
            context.probing.prober.probe(part)
    return logits


@contextmanager
def opened(model: Path, args: argparse.Namespace) -> Iterator[AuditContext]:
    """Load a model and draw the prompts of the packaged facts."""
    settings = AuditConfig(data="facts", model=str(model), dtype="float32", chunk_rows=args.chunk_rows)
    config = with_batch_sizes(settings, "cpu", "", Path())
    inputs = read_input(config)
    wanted = inputs.facts.rows.filter(pl.col("group").is_in(RELATIONS) & pl.col("split").is_in(["train", "test"]))
    with open_context(config, inputs._replace(rows=take(wanted, args.rows, 0))) as context:
        if context.probing.packed is None:
            raise SystemExit("the packed engine does not take this model")
        yield context


def host_share(model: Path, logits: list[Logits], args: argparse.Namespace) -> dict[str, Any]:
    """Probe the rows several times; return milliseconds of processor time a row for each part."""
    with opened(model, args) as context:
        prober: Any = context.probing.prober
        engine = prober.engine
        plan, spent = chunks(context.plan.rows, args.chunk_rows), Counter[str]()
        digest = hashlib.sha256()
        engine.packed.body.forward = timed(engine.packed.body.forward, "layers", spent)
        nested = Counter[str]()
        object.__setattr__(prober.prompts, "build", timed(prober.prompts.build, "prompts", nested))  # it is frozen

        def one_round() -> dict[str, float]:
            """Return the seconds of processor time of each part of one round."""
            replayed = iter(logits)
            engine.packed.head.top = lambda *_: next(replayed)
            for memory in (engine._families, prober._path_states, prober.prompts._groups):
                memory.clear()
            spent.clear()
            nested.clear()
            gc.collect()
            began = time.process_time()
            results = [prober.probe(part) for part in plan]
            host = time.process_time() - began - spent["layers"]
            for probes, answers in results:
                digest.update(probes.write_json().encode() + answers.write_json().encode())
            return {**spent, "host": host, "prompts": nested["prompts"]}

        one_round()  # first touch of the weights
        digest_of_one = digest.copy().hexdigest()[:16]
        rounds = [one_round() for _ in range(args.rounds)]
        if args.profile:
            profile = cProfile.Profile()
            profile.runcall(one_round)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    rows = sum(part.height for part in plan)
    parts = {name: statistics.median(r[name] for r in rounds) / rows * 1000 for name in ("layers", "host", "prompts")}
    return {
        "layers, rows": f"{args.layers}, {rows}",
        **{f"{name}, ms of a core a row": value for name, value in parts.items()},
        "digest of probes and answers": digest_of_one,
        "host of each round, ms a row": ", ".join(f"{r['host'] / rows * 1000:.2f}" for r in rounds),
    }


def timed(work: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    """Return `work`, adding its processor time to `spent`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.process_time() - began  # type: ignore[assignment]

    return run


if __name__ == "__main__":
    main()
