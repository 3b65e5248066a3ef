"""What an audit of so many rows would take on other machines: a model whose every input says where it is from. Pure.

    operations a row = 2 x tokens x the body's weights + 2 x answer positions x the head's
    seconds a row    = operations / (peak x the share of it that is reached) + Python, / processes
    seconds          = seconds a row x rows + the exemplar prefixes of all groups, once

`measured` is what a burst on this machine gave (`audit_estimate`). This machine is scaled from its own rate; the others
are told as a range. Attention over the prefix is left out: 3 % of the operations for SmolLM2-135M, less for larger
models. docs/scale.md holds the same tables and what they leave out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.models.memory_plan import parameters_of, shape_of
from foreknow.progress import duration


class Range(NamedTuple):
    """The better and the worse end of what is not known exactly."""

    best: float
    worst: float


class Machine(NamedTuple):
    """A machine to compute on. Several `processes` share the rows, each on `peak` operations a second of its own.

    `share`: of the peak that a pass reaches. `python`: whether the time of Python comes on top, since the share was
    measured without it. `dollars`: of the whole machine, an hour. `source`: where the figures are from.
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
    """Numbers in a model's layers, and in its output head."""

    body: int
    head: int


def model_of(folder: Path) -> Model | None:
    """Counted from a model's folder; None where its config does not tell its shape. All experts count as used."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = shape_of(config)
    if shape is None:
        return None
    head = shape.vocabulary * shape.hidden
    tied = {**config, **(config.get("text_config") or {})}.get("tie_word_embeddings", True)
    return Model(parameters_of(folder) - (head if tied else 2 * head), head)


class Work(NamedTuple):
    """What one row asks of a model, whatever computes it. `prefix_tokens`: of all exemplar prompts of all groups."""

    model: Model
    tokens: float
    positions: float
    sets: int
    prefix_tokens: int

    @property
    def operations(self) -> float:
        """Of one row."""
        return 2 * (self.tokens * self.model.body + self.positions * self.model.head)


class Cost(NamedTuple):
    """Seconds and dollars."""

    seconds: Range
    dollars: Range


def cost_of(work: Work, machine: Machine, rows: int) -> Cost:
    """The model, for both ends of a machine's range."""

    def seconds(share: float, python: float) -> float:
        speed = machine.peak * share
        a_row = work.operations / speed + (python * work.sets if machine.python else 0.0)
        prefixes = 2 * work.prefix_tokens * work.model.body / speed
        return a_row * -(-rows // machine.processes) + prefixes

    found = Range(seconds(machine.share.best, PYTHON.best), seconds(machine.share.worst, PYTHON.worst))
    hours = Range(*(second / 3600 for second in found))
    dollars = Range(hours.best * machine.dollars.best, hours.worst * machine.dollars.worst)
    return Cost(found, dollars)


class Scaled(NamedTuple):
    """An estimate for many rows: machines and what they take; inputs and their sources; what else must be known."""

    table: pl.DataFrame
    inputs: pl.DataFrame
    notes: list[str]


def scaled(
    measured: Mapping[str, Any], rows: int, model: Model | None, machines: Sequence[Machine] = MACHINES
) -> Scaled:
    """Scale a burst of this machine to `rows` rows, and tell what the other machines would take.

    `measured`: `seconds`, `rows`, `tokens_a_row`, `positions_a_row`, `prefix_tokens`, `exemplar_sets` and
    `memory_gib` of `audit_estimate.estimate`. `model`: None leaves out the other machines.
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
            found = cost_of(work, machine, rows)
            lines.append(
                {
                    "machine": machine.name,
                    "rows/s": f"{_number(rows / found.seconds.best)} to {_number(rows / found.seconds.worst)}",
                    "time": f"{_time(found.seconds.best)} to {_time(found.seconds.worst)}",
                    "dollars": f"{_number(found.dollars.best)} to {_number(found.dollars.worst)}",
                }
            )
            figures = f"{machine.processes} x {machine.peak / 1e12:.3g} TFLOP/s, {_pair(machine.share, 100)} % reached"
            inputs.append((machine.name, f"{figures}, {_pair(machine.dollars)} $/h", machine.source))
    inputs += [
        ("rows.parquet, bytes a row", f"{ROWS_BYTES}", "measured: 5,678 rows (docs/scale.md)"),
        ("probes.parquet, bytes a row", f"{PROBES_BYTES * sets}", "measured: 27 a row and exemplar set"),
        ("main memory, bytes a row", f"{MEMORY_BYTES:,}", "measured: 100,000 and 300,000 rows (docs/scale.md)"),
    ]
    return Scaled(
        pl.DataFrame(lines), pl.DataFrame(inputs, schema=["input", "value", "from"], orient="row"), notes(rows, sets)
    )


def notes(rows: int, sets: int) -> list[str]:
    """Storage and memory of so many rows, and what breaks."""
    disk, held = rows * (ROWS_BYTES + PROBES_BYTES * sets), rows * MEMORY_BYTES
    found = [
        f"on disk: {_size(disk)} (rows.parquet and probes.parquet), and the annotated file, a little larger than the "
        f"input; in main memory: {_size(held)} beside the model"
    ]
    if held > LARGEST_FILE * MEMORY_BYTES:
        files = -(-rows // LARGEST_FILE)
        found.append(
            f"an audit holds its whole input in memory: cut it into {files:,} files of {LARGEST_FILE:,} rows and audit "
            "each with the same --exemplars (docs/scale.md)"
        )
    return found


LARGEST_FILE: Final = 2_000_000
"""Rows of a file that a machine with 16 GB audits with room to spare."""


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}"


def _pair(found: Range, times: float = 1) -> str:
    low, high = sorted(value * times for value in found)
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
