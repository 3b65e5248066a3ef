"""Measure all that is claimed of a GPU in one call of at most nine minutes; write one JSON and one Markdown file.

    python benchmarks/gpu.py [--device cuda] [--model smollm2-135m] [--data facts] [--minutes 9] [--out runs/gpu]
    python benchmarks/gpu.py --tiny      the same code on the CPU, with small models and few rows

Sections, in this order; each is written as soon as it is done, one that fails is reported with its error, and one for
which no time is left is named:

peak        the device's matrix peak: the best of several products of two large square matrices, in the dtype used
agreement   the model on the device against the CPU, both in float32: labels, greedy answers, the largest difference of
            a probability; twice on the device: the same bytes; and the device's own dtype against float32
probe       rows a second of the model, and of a model with random weights of each of three published shapes: the
            share of the peak that their operations reach, the host's share of the time, the peak memory against the
            plan of models/memory_plan.py
generate    the same rows by `generate`, batched over prompts, for the model
training    seconds of a step of our trainer and of transformers.Trainer, on the same batches
halving     the probe with less memory than its batches need: batches are halved, and the labels stay the same

A model with random weights spreads its probability over so many tokens that its search would go to its end, eight times
the tokens of a model that was trained. It is asked without the search: its rows a second are those of the first pass
and of its greedy answers, which are nine tenths of a trained model's tokens.
Operations are 2 x tokens x the layers' weights + 2 x answer positions x the head's; attention is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

import audit as audit_benchmark
import tune as tune_benchmark
from foreknow.config import AuditConfig
from foreknow.data.schema import chunks
from foreknow.inference import slick
from foreknow.inference.engine import PackedEngine
from foreknow.inference.generate import exact_head
from foreknow.models import loading, memory_plan
from foreknow.models.memory_plan import BatchSizes, MemoryNeeds, shape_of
from foreknow.models.positions import positions_of
from foreknow.models.resolve import resolve
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit.chunks import with_less_memory
from foreknow.stages.audit.executor import AuditContext, AuditInputs, OpenProber, PromptPlan
from foreknow.stages.audit.setup import build_prompt_plan, open_prober, read_input
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.training_examples import TRAINING, examples

GIB = 2**30
SHAPES: dict[str, Callable[[], Any]] = {
    "Llama 3.2 1B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    "Llama 3.1 8B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False, max_position_embeddings=8192,
    ),
    "Qwen3 32B": lambda: Qwen3Config(
        vocab_size=151936, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, max_position_embeddings=8192,
    ),
}  # fmt: skip
"""The shapes of the models' own config.json files on the hub."""
TINY: dict[str, Callable[[], Any]] = {
    "tiny Llama": lambda: LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "tiny Qwen3": lambda: Qwen3Config(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
    ),
}  # fmt: skip


class Scale(NamedTuple):
    """How much each section does. `least_seconds`: a section begins only if so many seconds are left for it."""

    rows: int
    compared: int
    generated: int
    trained: int
    batch: int
    matrix: int
    shapes: dict[str, Callable[[], Any]]
    least_seconds: float


LARGE = Scale(2048, 48, 16, 512, 64, 8192, SHAPES, 30.0)
SMALL = Scale(12, 6, 2, 12, 4, 256, TINY, 0.0)


@dataclass
class Bench:
    """The benchmark: its settings, and the results of the sections that are done, by name."""

    model: str
    data: str
    device: str
    dtype: str
    scale: Scale
    out: Path
    ends: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def section(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do a section if there is time for it, and write all results so far."""
        began = time.monotonic()
        if self.left < self.scale.least_seconds:
            self.results[name] = {"left out": f"{max(self.left, 0):.0f} s were left"}
        else:
            try:
                self.results[name] = {**work(), "seconds": round(time.monotonic() - began, 1)}
            except Exception as error:  # a section that fails on a device nobody tried is a result too
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.results[name] = {
                    "failed": f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
                }
        release()
        print(f"{name}: {self.results[name]}", flush=True)
        write(self)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="facts")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with small models")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args(words)
    device = "cpu" if args.tiny else args.device
    if not args.tiny and not device.startswith("cuda"):
        raise SystemExit(f"--device {device}: expected cuda or cuda:N; --tiny runs the same code on the CPU")
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --tiny runs the same code on the CPU")
    dtype = "float32" if device == "cpu" else loading.resolve_device_dtype(device, "auto")[1]
    scale = SMALL if args.tiny else LARGE
    # a GPU's last section may run over: half a minute is kept for it
    ends = time.monotonic() + 60 * args.minutes - (0 if args.tiny else 30)
    bench = Bench(args.model, args.data, device, dtype, scale, args.out, ends)
    bench.out.mkdir(parents=True, exist_ok=True)
    bench.section("device", lambda: about(bench))
    bench.section("peak", lambda: matrix_peak(bench))
    bench.section("agreement", lambda: agreement(bench))
    bench.section(f"probe: {bench.model}", lambda: probe_model(bench))
    for name, config in scale.shapes.items():
        bench.section(f"probe: {name}", lambda name=name, config=config: probe_shape(bench, name, config()))  # type: ignore[misc]
    bench.section("generate", lambda: by_generate(bench))
    bench.section("training", lambda: training(bench))
    bench.section("halving", lambda: halving(bench))
    print(f"written: {bench.out / 'gpu.json'}, {bench.out / 'gpu.md'}")


def about(bench: Bench) -> dict[str, Any]:
    """The device and the versions."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    if bench.device == "cpu":
        return {"device": "CPU", "threads": torch.get_num_threads(), "dtype": bench.dtype, **versions}
    properties = torch.cuda.get_device_properties(bench.device)
    memory = properties.total_memory / GIB
    return {"device": properties.name, "memory_gib": round(memory, 1), "dtype": bench.dtype, **versions}


def matrix_peak(bench: Bench) -> dict[str, Any]:
    """The device's matrix peak in TFLOP/s: the best of ten products of square matrices."""
    size = bench.scale.matrix
    a = torch.randn(size, size, device=bench.device, dtype=getattr(torch, bench.dtype))
    best = min(timed(bench, lambda: a @ a)[0] for _ in range(10))
    return {"size": size, "tflops": 2 * size**3 / best / 1e12}


def timed(bench: Bench, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of `work`, until the device is done, and what it returned."""
    wait(bench)
    began = time.perf_counter()
    value = work()
    wait(bench)
    return time.perf_counter() - began, value


def wait(bench: Bench) -> None:
    """Wait until the device has nothing to do."""
    if bench.device != "cpu":
        torch.cuda.synchronize(bench.device)


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Opened(NamedTuple):
    """An open prober of a loaded model, its plan, and the settings that it was opened with."""

    config: AuditConfig
    loaded: loading.Loaded
    plan: PromptPlan
    probing: OpenProber

    @property
    def packed(self) -> PackedEngine:
        """The packed engine. Raises RuntimeError where the model runs by plain passes only."""
        if self.probing.packed is None:
            raise RuntimeError("the packed engine does not take this model here")
        prober: Any = self.probing.prober
        engine: PackedEngine = prober.engine
        return engine


NO_SEARCH = 1000.0
"""A tolerance that leaves everything beyond the accepted answers' own tokens unsearched."""


@contextmanager
def opened(
    bench: Bench, loaded: loading.Loaded, rows: int, sizes: BatchSizes | None = None, tolerance: float = 0.01
) -> Iterator[Opened]:
    """Open a prober for the first `rows` rows drawn from the data."""
    sizes = sizes or BatchSizes(2048, 128)
    config = AuditConfig(
        data=bench.data, model=bench.model, limit=rows, chat_template="no", batch_tokens=sizes.batch_tokens,
        chunk_rows=sizes.chunk_rows, tolerance=tolerance,
    )  # fmt: skip
    inputs: AuditInputs = read_input(config)
    plan = build_prompt_plan(config, inputs, loaded.tokenizer, positions_of(loaded.model.config))
    with open_prober(config, loaded, plan) as probing:
        yield Opened(config, loaded, plan, probing)


def probe_all(use: Opened) -> pl.DataFrame:
    """Probe every row of the plan; `slick.PROBES`."""
    parts = chunks(use.plan.rows, int(use.config.chunk_rows or 128))
    return pl.concat([use.probing.prober.probe(part).probes for part in parts])


def labels_of(probes: pl.DataFrame, use: Opened) -> dict[int, str]:
    """The category of each row."""
    return dict(slick.label(probes, samples=use.config.samples).select("row", "category").iter_rows())


def agreement(bench: Bench) -> dict[str, Any]:
    """Labels, greedy answers and probabilities on the device against the CPU in float32; and the device twice."""
    found: dict[str, Any] = {"rows": bench.scale.compared}
    probes: dict[str, pl.DataFrame] = {}
    labels: dict[str, dict[int, str]] = {}
    ways = {"cpu": ("cpu", "float32"), "device": (bench.device, "float32"), "own dtype": (bench.device, bench.dtype)}
    for way, (device, dtype) in ways.items():
        loaded = loading.load_model(bench.model, dtype=dtype, device=device)
        with opened(bench, loaded, bench.scale.compared) as use:
            probes[way] = probe_all(use)
            labels[way] = labels_of(probes[way], use)
            if way == "device":
                use.packed._families.clear()
                found["twice on the device: the same bytes"] = probe_all(use).equals(probes[way])
        del loaded, use
        release()
    for way in ("device", "own dtype"):
        both = probes["cpu"].join(probes[way], on=("row", "exemplar_set"), suffix="_other", validate="1:1")
        greedy = (both["greedy_correct"] != both["greedy_correct_other"]).sum()
        moved = (both["p_correct"] - both["p_correct_other"]).abs()
        name = f"{way} ({ways[way][1]}) against the CPU in float32"
        found[name] = {
            "labels that differ": sum(labels["cpu"][row] != label for row, label in labels[way].items()),
            "greedy answers that differ": f"{greedy} of {both.height}",
            "largest difference of a probability": float(moved.max() or 0.0),  # type: ignore[arg-type]
            "mean difference of a probability": float(moved.mean() or 0.0),  # type: ignore[arg-type]
        }
    return found


def probe_model(bench: Bench) -> dict[str, Any]:
    """Probe with the model itself."""
    loaded = loading.load_model(bench.model, dtype=bench.dtype, device=bench.device)
    return probe_speed(bench, loaded)


def probe_shape(bench: Bench, name: str, config: Any) -> dict[str, Any]:
    """Probe with random weights in a published shape, with half of its layers as often as it takes to fit."""
    layers, itemsize = config.num_hidden_layers, 4 if bench.dtype == "float32" else 2
    memory = torch.cuda.mem_get_info(bench.device)[0] if bench.device != "cpu" else 8 * GIB
    while parameters_in(config) * itemsize > 0.85 * memory and config.num_hidden_layers > 1:
        config.num_hidden_layers //= 2
    loaded = random_model(bench, name, config)
    left_out = {} if config.num_hidden_layers == layers else {"layers": f"{config.num_hidden_layers} of {layers}: fits"}
    return {**left_out, **probe_speed(bench, loaded, NO_SEARCH)}


def parameters_in(config: Any) -> int:
    """The number of weights of a model of this config, from tensors without data."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def random_model(bench: Bench, name: str, config: Any) -> loading.Loaded:
    """A model with random weights, made on the device, with the benchmark model's tokenizer."""
    tokenizer = loading.load_tokenizer(resolve(bench.model))
    torch.manual_seed(0)
    if bench.scale.shapes is TINY:
        config.vocab_size = len(tokenizer)
    with torch.device(bench.device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, bench.dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return loading.Loaded(
        name, model.eval(), tokenizer, "random weights", "", None, bench.dtype, bench.device, ("", "")
    )  # fmt: skip


def sizes_of(bench: Bench, model: PreTrainedModel) -> tuple[BatchSizes, MemoryNeeds | None]:
    """The batch plan of a model on this device, and the memory that it plans for."""
    shape = shape_of(model.config.to_dict())
    if bench.device == "cpu" or shape is None:
        return BatchSizes(2048, 128), None
    itemsize = 4 if bench.dtype == "float32" else 2
    parameters = sum(p.numel() for p in model.parameters())
    total = torch.cuda.mem_get_info(bench.device)[1] // GIB * GIB
    sizes = memory_plan.largest_plan(shape, parameters, itemsize, total, sets=10, shots=4) or memory_plan.LEAST
    return sizes, memory_plan.needs(shape, parameters, itemsize, sizes, sets=10, shots=4)


@dataclass
class DeviceTime:
    """Seconds that forward passes and output heads take, from their call until the device is done."""

    bench: Bench
    seconds: float = 0.0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed."""

        def timed_function(*values: Any, **named: Any) -> Any:
            took, value = timed(self.bench, lambda: function(*values, **named))
            self.seconds += took
            return value

        return timed_function


def probe_speed(bench: Bench, loaded: loading.Loaded, tolerance: float = 0.01) -> dict[str, Any]:
    """Rows a second, the share of the peak, the host's share, and the peak memory against the plan."""
    sizes, needed = sizes_of(bench, loaded.model)
    with opened(bench, loaded, bench.scale.rows, sizes, tolerance) as use:
        parts = chunks(use.plan.rows, sizes.chunk_rows)
        use.probing.prober.probe(parts[0].head(8))  # the first touch of the weights builds kernels
        wait(bench)
        if bench.device != "cpu":
            torch.cuda.reset_peak_memory_stats(bench.device)
        use.packed._families.clear()
        packed = use.packed.packed
        counted = audit_benchmark.count_tokens(packed)
        seconds, rows = 0.0, 0
        for part in parts:
            seconds += timed(bench, lambda part=part: use.probing.prober.probe(part))[0]  # type: ignore[misc]
            rows += part.height
            if seconds > max(bench.left / 6, 5.0):  # a sixth of what is left for each model
                break
        peak_bytes = torch.cuda.max_memory_allocated(bench.device) if bench.device != "cpu" else None
        head = packed.head.weight.numel()
        tied = packed.head.weight.data_ptr() == loaded.model.get_input_embeddings().weight.data_ptr()
        body = sum(p.numel() for p in loaded.model.parameters()) - head * (1 if tied else 2)
        operations = 2 * (counted["tokens"] * body + counted["wanted"] * head)
        some = parts[0].head(min(rows, parts[0].height))
        device_time = DeviceTime(bench)
        packed.forward, packed.head.top = device_time.of(packed.forward), device_time.of(packed.head.top)  # type: ignore[method-assign]
        whole, _ = timed(bench, lambda: use.probing.prober.probe(some))
    peak = bench.results.get("peak", {}).get("tflops")
    return {
        "weights": body + head * (1 if tied else 2),
        "batch": f"{sizes.batch_tokens} tokens, {sizes.chunk_rows} rows",
        "search": "to the audit's tolerance" if tolerance < NO_SEARCH else "none beyond greedy answers",
        "rows": rows,
        "rows a second": rows / seconds,
        "tokens a second": counted["tokens"] / seconds,
        "share of the matrix peak": operations / seconds / 1e12 / peak if peak else None,
        "host's share of the time": max(1 - device_time.seconds / whole, 0.0),
        "peak memory, GiB": None if peak_bytes is None else peak_bytes / GIB,
        "planned memory, GiB": None if needed is None else needed.total / GIB,
    }


def by_generate(bench: Bench) -> dict[str, Any]:
    """Rows a second by `generate`, batched over prompts, beside the probe's."""
    loaded = loading.load_model(bench.model, dtype=bench.dtype, device=bench.device)
    with opened(bench, loaded, bench.scale.generated) as use:
        prober: Any = use.probing.prober
        rows = use.plan.rows
        context: Any = AuditContext(loaded, use.probing, use.plan, {}, None)  # type: ignore[arg-type]
        prompts = prober.prompts.build(rows)
    with exact_head(loaded.model):
        rate = audit_benchmark.generated(context, prober, rows, 160)
    ours = bench.results.get(f"probe: {bench.model}", {}).get("rows a second")
    return {
        "rows": rows.height,
        "prompts": sum(len(some) for some in prompts[1]),
        "rows a second": rate,
        "probe / generate": ours / rate if ours else None,
    }


def training(bench: Bench) -> dict[str, Any]:
    """Seconds of a step of our trainer and of transformers.Trainer: the median of all but the first."""
    dtype = "bfloat16" if bench.dtype == "bfloat16" else "float32"
    args = argparse.Namespace(
        batch=bench.scale.batch, dtype=dtype, device=bench.device.partition(":")[0], dropout=0.0,
        rows=bench.scale.trained,
    )  # fmt: skip
    inputs = read_input(AuditConfig(data=bench.data, limit=bench.scale.trained))
    rows = inputs.rows.head(bench.scale.trained)
    rows = rows.with_columns(
        category=pl.lit(None, pl.String), weight=pl.lit(1.0), loss_exclude=pl.lit(None, SET["loss_exclude"])
    ).select(*SET)
    found: dict[str, Any] = {"rows": rows.height, "rows a step": args.batch, "dtype": dtype}
    for name, contender in (("ours", tune_benchmark.ours), ("transformers.Trainer", tune_benchmark.trainer)):
        loaded = loading.load_model(bench.model, dtype="float32", device=bench.device)
        prompter = Prompter(loaded.tokenizer, TRAINING)
        lessons = examples(
            LabelledSplit("train", bench.data, rows, 0, "", ""), prompter, int(loaded.tokenizer.eos_token_id)
        )
        with tempfile.TemporaryDirectory() as folder:
            seconds, losses = contender(args, loaded, lessons, Path(folder))
        later = sorted(seconds[1:] or seconds)
        found[f"{name}: seconds a step"] = later[len(later) // 2]
        found[f"{name}: loss of the first step"] = losses[0]
        del loaded
        release()
    found["ours / transformers.Trainer"] = found["transformers.Trainer: seconds a step"] / found["ours: seconds a step"]
    return found


def halving(bench: Bench) -> dict[str, Any]:
    """Probe with too little memory for the batches: how often they are halved, and whether the labels stay."""
    loaded = loading.load_model(bench.model, dtype=bench.dtype, device=bench.device)
    rows = min(bench.scale.rows, 256)
    sizes = BatchSizes(16384, 512)
    with opened(bench, loaded, rows, sizes) as use:
        part = chunks(use.plan.rows, sizes.chunk_rows)[0]
        whole = use.probing.prober.probe(part).probes
        use.packed._families.clear()
        release()
        before = use.packed.batch_tokens
        with too_little_memory(bench, use):
            (chunk, times) = with_less_memory(
                lambda: use.probing.prober.probe(part), use.packed, "even the smallest batch does not fit"
            )
        labels, halved = labels_of(whole, use), labels_of(chunk.probes, use)
    return {
        "rows": part.height,
        "halved": times,
        "batch tokens": f"{before} -> {use.packed.batch_tokens}",
        "labels that differ": sum(labels[row] != label for row, label in halved.items()),
        "memory was": "taken from the device" if bench.device != "cpu" else "said to be short, by the benchmark",
    }


@contextmanager
def too_little_memory(bench: Bench, use: Opened) -> Iterator[None]:
    """Leave so little memory that a whole batch does not fit; on the CPU, refuse passes of more than 512 tokens."""
    packed = use.packed.packed
    if bench.device != "cpu":
        shape = shape_of(packed.model.config.to_dict())
        assert shape is not None
        itemsize = 4 if bench.dtype == "float32" else 2
        a_pass = memory_plan.pass_bytes(shape, itemsize, use.packed.batch_tokens, 96, 24)
        free, total = torch.cuda.mem_get_info(bench.device)
        allowed = torch.cuda.memory_reserved(bench.device) + min(a_pass // 2, free)
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), bench.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        return
    forward = packed.forward

    def refusing(segments: Any, **named: Any) -> Any:
        if sum(len(branch.ids) for segment in segments for branch in segment.branches) > 512:
            raise torch.OutOfMemoryError("said by the benchmark")
        return forward(segments, **named)

    packed.forward = refusing  # type: ignore[method-assign]
    try:
        yield
    finally:
        packed.forward = forward  # type: ignore[method-assign]


def write(bench: Bench) -> None:
    """Write all results so far."""
    (bench.out / "gpu.json").write_text(json.dumps(bench.results, indent=1) + "\n", encoding="utf-8")
    (bench.out / "gpu.md").write_text(markdown(bench.results), encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """The results as Markdown: a table for the probes, one line per figure for the rest."""
    lines = ["# foreknow on this device", ""]
    probes = {name.removeprefix("probe: "): part for name, part in results.items() if name.startswith("probe: ")}
    for name, part in results.items():
        if not name.startswith("probe: "):
            lines += [f"## {name}", "", "| figure | value |", "| --- | --- |"]
            lines += [f"| {key} | {cell(value)} |" for key, value in flat(part).items()] + [""]
    if probes:
        keys = list(dict.fromkeys(key for part in probes.values() for key in part))
        lines += ["## probe", "", f"| | {' | '.join(probes)} |", f"| --- |{' --- |' * len(probes)}"]
        lines += [f"| {key} | {' | '.join(cell(part.get(key)) for part in probes.values())} |" for key in keys] + [""]
    return "\n".join(lines)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level of names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}: ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
