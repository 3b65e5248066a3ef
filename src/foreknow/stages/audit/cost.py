"""Estimate the time and price of an audit on other machines; every input of the estimate has a source. Pure functions.

    operations a row = 2 x tokens x the body's weights + 2 x answer positions x the head's
    seconds a row    = operations / (peak x the share of it that is reached) + Python, / processes
    seconds          = seconds a row x rows + the exemplar prefixes of all groups, once

`measured` holds the figures of a burst on this machine (`estimate.py`). This machine's time is scaled from its own
rate; the others' is a range. Attention over the prefix is left out: 3 % of the operations for SmolLM2-135M, less for
larger models. docs/scale.md holds the same tables and what they leave out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.format.numbers import duration
from foreknow.models.memory_plan import parameters_of, shape_of


class Range(NamedTuple):
    """The best and the worst case of a figure that is not known exactly."""

    best: float
    worst: float


class Machine(NamedTuple):
    """A machine to compute on. Its `processes` share the rows; each has `peak` operations per second of its own.

    `share`: the share of the peak that a forward pass reaches. `python`: whether to add the time of Python, because the
    share was measured without it. `dollars`: price of the whole machine per hour. `source`: where the figures are from.
    """

    name: str
    processes: int
    peak: float
    share: Range
    python: bool
    dollars: Range
    source: str


H100: Final = Machine(
    "one H100 (80 GB)",
    1,
    989.4e12,
    Range(0.40, 0.10),
    True,
    Range(1.65, 6.88),
    "peak: NVIDIA H100 data sheet, SXM, dense bf16 (1,979 with sparsity, halved); share 10-40 %: assumed, never "
    "measured; price: codesota.com/hardware/h100, 22 April 2026, cheapest and AWS",
)
LAPTOP: Final = Machine(
    "a laptop, 8 cores",
    1,
    8 * 3.3e9 * 32,
    Range(0.70, 0.40),
    False,
    Range(0.01, 0.02),
    "peak: 8 cores at 3.3 GHz (an AMD Ryzen 7 7840U, from general knowledge), two 8-wide float32 FMAs a cycle; "
    "share 70 %: measured on another processor without matrix tiles (docs/speed.md), 40 % assumed; price: 28 W from "
    "general knowledge, 56 W with the rest assumed, at 0.30 $/kWh assumed",
)
CLUSTER: Final = H100._replace(
    name="64 H100",
    processes=64,
    dollars=Range(64 * H100.dollars.best, 64 * H100.dollars.worst),
    source="64 times one H100, one process each: assumed, rows are independent",
)
MACHINES: Final = (LAPTOP, H100, CLUSTER)

PYTHON: Final = Range(0.0007, 0.0012)
"""Seconds of one core, a row and exemplar set: prompts, search, frames; measured 0.0007-0.0008 on one core of a Xeon
with SmolLM2-135M. The worse end adds starting the GPU's kernels: assumed."""
ROWS_BYTES: Final = 63
PROBES_BYTES: Final = 27
"""Of rows.parquet a row, of probes.parquet a row and exemplar set: SmolLM2-135M on 5,678 ENTITYQUESTIONS rows."""
MEMORY_BYTES: Final = 3500
"""Of main memory a row of input: 2.0 KB to read it, 1.4 KB to label ten exemplar sets; rows of 127 bytes of JSONL."""


class Model(NamedTuple):
    """The number of weights in a model's layers (`body`) and in its output head (`head`)."""

    body: int
    head: int


def read_model_size(folder: Path) -> Model | None:
    """Count the weights in a model's folder; None if its config does not give its shape. All experts count as used."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = shape_of(config)
    if shape is None:
        return None
    head = shape.vocabulary * shape.hidden
    tied = {**config, **(config.get("text_config") or {})}.get("tie_word_embeddings", True)
    return Model(parameters_of(folder) - (head if tied else 2 * head), head)


class Work(NamedTuple):
    """What a model computes for one row on any machine.

    `tokens`, `positions`: tokens and answer positions per row. `sets`: exemplar sets. `prefix_tokens`: tokens of all
    exemplar prompts of all groups together.
    """

    model: Model
    tokens: float
    positions: float
    sets: int
    prefix_tokens: int

    @property
    def operations(self) -> float:
        """Floating-point operations for one row."""
        return 2 * (self.tokens * self.model.body + self.positions * self.model.head)


class Cost(NamedTuple):
    """Seconds and dollars."""

    seconds: Range
    dollars: Range


def compute_cost(work: Work, machine: Machine, rows: int) -> Cost:
    """Compute seconds and dollars for the best and the worst case of a machine."""

    def seconds(share: float, python: float) -> float:
        speed = machine.peak * share
        a_row = work.operations / speed + (python * work.sets if machine.python else 0.0)
        prefixes = 2 * work.prefix_tokens * work.model.body / speed
        return a_row * -(-rows // machine.processes) + prefixes

    seconds_range = Range(seconds(machine.share.best, PYTHON.best), seconds(machine.share.worst, PYTHON.worst))
    hours = Range(*(second / 3600 for second in seconds_range))
    dollars = Range(hours.best * machine.dollars.best, hours.worst * machine.dollars.worst)
    return Cost(seconds_range, dollars)


class ScaledEstimate(NamedTuple):
    """An estimate for many rows: `table` of machines with time and price, `inputs` with their sources, and `notes`."""

    table: pl.DataFrame
    inputs: pl.DataFrame
    notes: list[str]


def scale_estimate(
    measured: Mapping[str, Any], rows: int, model: Model | None, machines: Sequence[Machine] = MACHINES
) -> ScaledEstimate:
    """Scale a burst of this machine to `rows` rows, and estimate what other machines would take.

    `measured`: `seconds`, `rows`, `tokens_a_row`, `positions_a_row`, `prefix_tokens`, `exemplar_sets` and
    `memory_gib` as returned by `estimate.estimate`. `model`: None leaves out the other machines.
    """
    here = float(measured["seconds"]) / max(int(measured["rows"]), 1) * rows
    sets = int(measured["exemplar_sets"])
    lines = [{"machine": "this machine", "rows/s": _number(rows / here), "time": _time(here), "dollars": ""}]
    inputs = [
        ("rows a second, this machine", _number(rows / here), f"measured now, {measured['measured_rows']} rows"),
        (
            "tokens a row",
            f"{measured['tokens_a_row']:.1f}",
            "measured now: questions and accepted answers; the search adds about 5 % (not counted)",
        ),
        ("answer positions a row", f"{measured['positions_a_row']:.1f}", "measured now: what goes through the head"),
        ("tokens of all exemplar prompts", f"{measured['prefix_tokens']:,}", "measured now"),
    ]
    if model is not None:
        tokens, positions = float(measured["tokens_a_row"]), float(measured["positions_a_row"])
        work = Work(model, tokens, positions, sets, int(measured["prefix_tokens"]))
        inputs += [
            ("weights of the layers", f"{model.body:,}", "the model's files"),
            ("weights of the head", f"{model.head:,}", "the model's config.json"),
            ("operations a row", f"{work.operations:.3g}", "2 x (tokens x layers + positions x head)"),
            ("Python, ms a row", _pair(PYTHON, 1000 * sets), "measured on one core of a Xeon; the worse end assumed"),
        ]
        for machine in machines:
            cost = compute_cost(work, machine, rows)
            lines.append(
                {
                    "machine": machine.name,
                    "rows/s": f"{_number(rows / cost.seconds.best)} to {_number(rows / cost.seconds.worst)}",
                    "time": f"{_time(cost.seconds.best)} to {_time(cost.seconds.worst)}",
                    "dollars": f"{_number(cost.dollars.best)} to {_number(cost.dollars.worst)}",
                }
            )
            figures = f"{machine.processes} x {machine.peak / 1e12:.3g} TFLOP/s, {_pair(machine.share, 100)} % reached"
            inputs.append((machine.name, f"{figures}, {_pair(machine.dollars)} $/h", machine.source))
    inputs += [
        ("rows.parquet, bytes a row", f"{ROWS_BYTES}", "measured: 5,678 rows (docs/scale.md)"),
        ("probes.parquet, bytes a row", f"{PROBES_BYTES * sets}", "measured: 27 a row and exemplar set"),
        ("main memory, bytes a row", f"{MEMORY_BYTES:,}", "measured: 100,000 and 300,000 rows (docs/scale.md)"),
    ]
    return ScaledEstimate(
        pl.DataFrame(lines), pl.DataFrame(inputs, schema=["input", "value", "from"], orient="row"), notes(rows, sets)
    )


def notes(rows: int, sets: int) -> list[str]:
    """Return lines on the storage and memory that `rows` rows take, and on splitting the input if it is too large."""
    disk, memory = rows * (ROWS_BYTES + PROBES_BYTES * sets), rows * MEMORY_BYTES
    lines = [
        f"on disk: {_size(disk)} (rows.parquet and probes.parquet), and the annotated file, a little larger than the "
        f"input; in main memory: {_size(memory)} beside the model"
    ]
    if memory > LARGEST_FILE * MEMORY_BYTES:
        files = -(-rows // LARGEST_FILE)
        lines.append(
            f"an audit holds its whole input in memory: cut it into {files:,} files of {LARGEST_FILE:,} rows and audit "
            "each with the same --exemplars (docs/scale.md)"
        )
    return lines


LARGEST_FILE: Final = 2_000_000
"""Rows of a file that a machine with 16 GB audits with room to spare."""


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}"


def _pair(ends: Range, times: float = 1) -> str:
    low, high = sorted(value * times for value in ends)
    return f"{low:.4g}-{high:.4g}"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _time(seconds: float) -> str:
    days = seconds / 86400
    if days < 2:
        return duration(seconds)
    return f"{days:,.0f} days" if days < 730 else f"{days / 365:,.1f} years"
