"""An audit on two Ray workers of this machine against one process; kills; memory over time.

    python benchmarks/ray_audit.py pair [--model smollm2-135m] [--dtype float32] [--rows 300] [--out FILE.json]
    python benchmarks/ray_audit.py kills [--model smollm2-135m] [--dtype float32] [--rows 300] [--out FILE.json]
    python benchmarks/ray_audit.py memory [--rows 200000] [--every 10] [--out FILE.json]

pair: the packaged facts audited by one process with one thread, by two Ray workers with one thread each and, with
--both, by one process with two threads. Labels and probabilities row by row; rows/s of probing; seconds and
processor seconds of the whole command.
kills: the same on Ray; one worker is killed after a third of the chunks, the driver after two thirds, and the command
is given again. Every row once, and the same bytes as a run that nobody disturbs.
memory: synthetic rows and a model of two small layers with random weights, the whole pipeline; memory that belongs to
each process alone (USS), sampled while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import yaml

WORKER = "ray::MapWorker"
P = ("p_greedy", "p_sampled", "p_hit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pair", "kills", "memory"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--chunk-rows", type=int)
    parser.add_argument("--both", action="store_true", help="pair: audit by one process with two threads too")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples of memory")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == "memory":
            found = memory(folder, args.rows or 200_000, args.every)
        else:
            given = {"data": "facts", "limit": args.rows or 300, "model": args.model, "dtype": args.dtype}
            given |= {"device": "cpu", "chunk_rows": args.chunk_rows or 24}
            found = pair(folder, given, args.both) if args.what == "pair" else kills(folder, given)
    print(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def pair(folder: Path, given: dict[str, Any], both: bool) -> dict[str, Any]:
    """The same rows audited in two ways, or three."""
    ways = {"one process, 1 thread": (1, ()), "two Ray workers, 1 thread each": (1, RAY)}
    if both:
        ways["one process, 2 threads"] = (2, ())
    found: dict[str, Any] = {"settings": given, "load_average": [], "ways": {}}
    for n, (name, (threads, flags)) in enumerate(ways.items()):
        found["load_average"].append(round(os.getloadavg()[0], 1))
        began = time.monotonic()
        process = start(folder / str(n), given, threads, *flags)
        spent = processor_seconds(process)
        finish(process)
        summary = json.loads((folder / str(n) / "summary.json").read_text())
        found["ways"][name] = {
            "rows_per_second": round(summary["rows_per_second"], 2),
            "seconds": round(time.monotonic() - began, 1),
            "processor_seconds": round(spent, 1),
        }
        print(name, found["ways"][name], file=sys.stderr, flush=True)
    for n, name in ((0, "1 thread"), (2, "2 threads")):
        if (folder / str(n)).is_dir():
            found[f"Ray against {name}"] = compared(folder / str(n), folder / "1")
    return found


def kills(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Kill a worker, then the driver; give the command again."""
    calm, struck = folder / "calm", folder / "struck"
    finish(start(calm, given, 1, *RAY))
    rows = pl.read_parquet(calm / "rows.parquet").height
    chunks = -(-pl.read_parquet(calm / "rows.parquet")["category"].count() // given["chunk_rows"])
    process = start(struck, given, 1, *RAY)
    wait_for(struck, chunks // 3, process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith(WORKER)]
    workers[0].kill()
    at_first = kept(struck)
    wait_for(struck, 2 * chunks // 3, process)
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    at_second, began = kept(struck), time.monotonic()
    _, alive = psutil.wait_procs([p for p in others if p.name().startswith((WORKER, "raylet", "gcs_server"))], 60)
    gone = time.monotonic() - began
    _, agents = psutil.wait_procs(others, 120)
    said = finish(start(struck, given, 1, *RAY))
    found = pl.read_parquet(struck / "rows.parquet")
    return {
        "settings": given,
        "chunks": chunks,
        "worker_killed_after_chunks": at_first,
        "driver_killed_after_chunks": at_second,
        "going_on": next(line for line in said.splitlines() if "chunks are finished" in line),
        "workers_left": len(alive),
        "seconds_until_workers_ended": round(gone, 1),
        "seconds_until_all_ended": None if agents else round(time.monotonic() - began, 1),
        "rows": found.height,
        "rows_twice": found.height - found["row"].n_unique(),
        "rows_lost": rows - found["row"].n_unique(),
        **compared(calm, struck),
    }


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Two audits of the same rows."""
    a, b = (
        pl.read_parquet(folder / "rows.parquet").filter(pl.col("category").is_not_null()) for folder in (one, other)
    )
    both = a.join(b, on="row", suffix="_b")
    probes = pl.read_parquet(one / "probes.parquet").join(
        pl.read_parquet(other / "probes.parquet"), on=["row", "exemplar_set"], suffix="_b"
    )
    largest = {name: (both[name] - both[f"{name}_b"]).abs().max() for name in P}
    largest["p_correct"] = (probes["p_correct"] - probes["p_correct_b"]).abs().max()
    return {
        "rows_compared": both.height,
        "labels_apart": both.filter(pl.col("category") != pl.col("category_b")).height,
        "greedy_answers_apart": probes.filter(pl.col("greedy_correct") != pl.col("greedy_correct_b")).height,
        "prompts": probes.height,
        "largest_difference": {name: float(f"{value:.3g}") for name, value in largest.items()},
        "same_bytes": (one / "rows.parquet").read_bytes() == (other / "rows.parquet").read_bytes(),
    }


def memory(folder: Path, rows: int, every: float) -> dict[str, Any]:
    """Many synthetic rows through the whole pipeline with a tiny model, its processes weighed meanwhile."""
    data = folder / "rows.jsonl"
    lines = (
        {"question": f"Land {n}?", "answer": f"{n % 10}", "relation": f"r{n % 20}",
         "split": "dev" if n % 1000 < 20 else "train"}
        for n in range(rows)
    )  # fmt: skip
    with data.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    tiny_model(folder / "model")
    given = {"data": str(data), "model": str(folder / "model"), "dtype": "float32", "device": "cpu"}
    given |= {"exemplar_sets": 1, "shots": 1, "max_expansions": 1, "samples": 1, "tolerance": 1.0, "chunk_rows": 256}
    out, began = folder / "out", time.monotonic()
    process, samples = start(out, given, 1, *RAY), []
    while process.poll() is None:
        time.sleep(every)
        if (sample := weighed(process, out)) is not None:
            samples.append({"seconds": round(time.monotonic() - began), **sample})
    finish(process)
    probing = [s for s in samples if s["chunks"] and len(s["workers_mib"]) == 2]
    probing = [s for s in probing if s["chunks"] < probing[-1]["chunks"]]
    quarter = max(1, len(probing) // 4)
    second, last = probing[quarter : 2 * quarter], probing[-quarter:]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "rows": rows,
        "seconds": round(time.monotonic() - began),
        "load_average": os.getloadavg()[2],
        "rows_per_second": round(summary["rows_per_second"], 1),
        "rows_labelled": int(pl.read_parquet(out / "rows.parquet")["category"].count()),
        "driver_mib": {"second_quarter": mean(second, "driver_mib"), "last_quarter": mean(last, "driver_mib")},
        "workers_mib": {"second_quarter": mean(second, "workers_mib"), "last_quarter": mean(last, "workers_mib")},
        "ray_mib": {"second_quarter": mean(second, "ray_mib"), "last_quarter": mean(last, "ray_mib")},
        "driver_mib_at_most": max(s["driver_mib"] for s in samples),
        "samples": samples,
    }


def mean(samples: list[dict[str, Any]], name: str) -> float:
    values = [v for s in samples for v in (s[name] if isinstance(s[name], list) else [s[name]])]
    return round(sum(values) / len(values), 1)


def weighed(process: subprocess.Popen[str], out: Path) -> dict[str, Any] | None:
    """Memory of a run's processes, in MiB that each has for itself, and how far it has come."""
    try:
        driver = psutil.Process(process.pid)
        own = {one: one.memory_full_info().uss >> 20 for one in (driver, *driver.children(recursive=True))}
        names = {one: one.name() for one in own}
    except psutil.Error:
        return None
    workers = [mib for one, mib in own.items() if names[one].startswith(WORKER)]
    rest = sum(own.values()) - sum(workers) - own[driver]
    return {"chunks": kept(out), "driver_mib": own[driver], "workers_mib": workers, "ray_mib": rest}


def tiny_model(folder: Path) -> None:
    """Two layers with random weights, and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE({**letters, "<|end|>": len(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=len(letters), pad_token_id=len(letters),
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


RAY = ("--ray", "--ray-workers", "2")


def start(out: Path, given: dict[str, Any], threads: int, *flags: str) -> subprocess.Popen[str]:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "foreknow", "audit", "--config", str(file), "--out", str(out), *flags]
    said = (out.parent / f"{out.name}.log").open("w+", encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True)
    process.stderr = said
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command's end; what it said."""
    code = process.wait()
    assert process.stderr is not None
    process.stderr.seek(0)
    said = process.stderr.read()
    process.stderr.close()
    if code:
        raise SystemExit(said)
    return said


def kept(out: Path) -> int:
    return len(list((out / ".chunks").glob("*.cost.parquet")))


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """What a command and all processes under it have computed until it ends: the same on a busy machine."""
    spent: dict[psutil.Process, float] = {}
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(process.pid)
            for one in (driver, *driver.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    spent[one] = times.user + times.system
        time.sleep(0.5)
    return sum(spent.values())


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while kept(out) < count:
        if process.poll() is not None:
            raise SystemExit("it ended before it could be killed")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
