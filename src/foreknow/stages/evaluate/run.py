"""Evaluate: what a tuned model answers to any rows, read off real greedy generations (paper, section 3).

    base_labels.py          categories, and the base model's probe, row by row
    generate.py      every row asked in the training format
    metrics.py         EM, wrong answers, refusals, moves against the base model's probe
    tables.py   the same for the terminal

DIR/config.yaml rows.parquet summary.json manifest.json (last) report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.config import EvaluateConfig
from foreknow.data.dataset import Dataset
from foreknow.data.load import read_data
from foreknow.data.schema import USABLE, chunks
from foreknow.errors import ModelError
from foreknow.inference.malloc import release_memory
from foreknow.io.run_dir import RunDir, differences, fingerprint, read_json, write_frame, write_json
from foreknow.models import loading
from foreknow.models.fluency import check_fluency
from foreknow.models.resolve import Resolved, resolve
from foreknow.models.versions import library_versions
from foreknow.progress import meter, say
from foreknow.prompts.prompt_template import Prompter, Template, read_template
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.evaluate.metrics import PREDICTIONS, answered, summarise_answers
from foreknow.stages.evaluate.page import write_page
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.skeleton import PreparedRun, Stage, nothing_to_do, required_out, run_stage
from foreknow.stages.train import row_faults
from foreknow.stages.train.base_labels import audited_labels, own_labels
from foreknow.stages.train.dataset import TRAINING, TrainingExample, check_lengths, template_faults, without_faulty
from foreknow.version import __version__

if TYPE_CHECKING:
    from foreknow.stages.evaluate.generate import GenerationPrompt

COST: Final[dict[str, pl.DataType]] = {"seconds": pl.Float64(), "rows": pl.Int64(), "batch_rows": pl.Int64()}
"""A finished chunk's cost; `batch_rows`: rows answered at once, halved for want of memory."""


FLUENCY: Final[dict[str, pl.DataType]] = {"summary": pl.String()}
"""Whether the model speaks (`Fluency.summary`, as JSON), kept with the first chunk that it answers."""


class EvaluateInputs(NamedTuple):
    """What an evaluation reads: usable rows (`rows.ROWS`), what was known of them before (`base_labels.LABELS`),
    the prompt.

    `whence`: where the labels are from, in words; empty where there are none. `row_faults`: by reason, rows that the
    chat template refuses (`row_faults.counts`).
    """

    facts: Dataset
    rows: pl.DataFrame
    skipped: int
    labels: pl.DataFrame
    whence: str
    audit: AuditResult | None
    template: Template
    row_faults: Mapping[str, Any] = MappingProxyType({})


def read_inputs(config: EvaluateConfig) -> EvaluateInputs:
    """Read and check all files. Everything that can be refused without the model is refused here."""
    template = read_template(config.prompt_template) if config.prompt_template else TRAINING
    audit = open_audit(config.audit) if config.audit else None
    facts = read_data(config, config.limit)
    every = facts.rows.filter(pl.col("row").is_in(facts.audited.implode()))
    rows = every.filter(USABLE)
    labels, whence = audited_labels(audit, facts, rows, config.match) if audit else own_labels(facts, rows)
    return EvaluateInputs(facts, rows, every.height - rows.height, labels, whence, audit, template)


_NO_IDENTITY: Final = {
    *("data", "model", "out", "audit", "base", "force", "prompt_template", "templates", "map", "layout"),
    *("turns", "null_words", "strict_rows", "group_by", "trust_remote_code", "dtype", "device"),
}
"""Settings that name a file whose content counts instead, or do not change a result."""


def identity_of(config: EvaluateConfig, given: EvaluateInputs, model: str, device: str, dtype: str) -> dict[str, Any]:
    """What makes two evaluations the same run: contents and settings, never names of files."""
    return {
        "data": given.facts.digest,
        "categories": fingerprint(given.labels),
        "prompt_template": [given.template.instruction, given.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def with_batch_sizes(config: EvaluateConfig, device: str) -> EvaluateConfig:
    """Fill in the batch plan: a matter of the kind of device, never of free memory or load."""
    gpu = device.startswith("cuda")
    return config.model_copy(
        update={
            "batch_rows": config.batch_rows or (256 if gpu else 32),
            "chunk_rows": config.chunk_rows or (2048 if gpu else 256),
        }
    )


def run(config: EvaluateConfig) -> EvaluateResult:
    """Evaluate as `config` says and return the finished evaluation; an interrupted one goes on where it stopped.

    Raises the errors of `foreknow.errors`.
    """
    out = required_out(config.out)
    given = read_inputs(config)
    found = resolve(config.model, say, config.trust_remote_code, base=config.base, force=config.force)
    notes = [f"categories: {given.whence or 'none'}", *_compared(config, given.audit, found)]

    def prepare(folder: RunDir) -> AbstractContextManager[PreparedRun]:
        return nullcontext(_prepare(config, given, found, notes, folder))

    return run_stage(Stage("evaluation", prepare, EvaluateResult, write_page), out)


def _prepare(
    config: EvaluateConfig, given: EvaluateInputs, found: Resolved, notes: list[str], folder: RunDir
) -> PreparedRun:
    """Turn the rows into prompts, where the folder has no finished evaluation."""
    device, dtype = loading.resolve_device_dtype(config.device, config.dtype)
    config = with_batch_sizes(config, device)
    identity = identity_of(config, given, found.fingerprint, device, dtype)
    if folder.manifest is not None:
        return PreparedRun(identity, config.resolved(), nothing_to_do)
    ready = _ready(config, given, found)  # refused before the folder is claimed
    told = (given.facts.reason, given.facts.first_row, given.facts.row_account)
    another = _another_prompt(ready.prompter, given.template, found)

    def work(folder: RunDir) -> None:
        _compute(config, ready.given, found, ready, folder, identity)

    return PreparedRun(identity, config.resolved(), work, (*told, *notes, *ready.notes, *another))


def _compared(config: EvaluateConfig, audit: AuditResult | None, found: Resolved) -> list[str]:
    """A line where it is not known whether the audit is the base model's. Raises ModelError where it is not."""
    if audit is None:
        return []
    made_with = audit.summary["model"]
    origin = found.origin or found.base or {}
    base = origin.get("fingerprint")
    if base is None and made_with["fingerprint"] != found.fingerprint:
        return [f"which model {found.name} was tuned from is not known; rows are compared with {made_with['name']}'s"]
    if base is not None and base != made_with["fingerprint"] and not config.force:
        raise ModelError(
            f"--audit {config.audit}: made with {made_with['name']} ({made_with['fingerprint'][:19]}...), but "
            f"{found.name} was tuned from {origin.get('name')} ({base[:19]}...): its categories are "
            "another model's. Name an audit of that model, or go on with --force"
        )
    return []


class _Ready(NamedTuple):
    """The rows as token ids, by number, and what made them. `given`: without the rows that cannot be asked."""

    prompter: Prompter
    rows: dict[int, GenerationPrompt]
    given: EvaluateInputs
    notes: tuple[str, ...]


def _ready(config: EvaluateConfig, given: EvaluateInputs, found: Resolved) -> _Ready:
    """Raises InputError for rows that are longer than the model's positions, or where no row can be asked."""
    from foreknow.stages.evaluate.generate import build_prompts  # keeps torch out

    tokenizer = loading.load_tokenizer(found, config.trust_remote_code)
    prompter = Prompter(tokenizer, given.template, config.chat_template, config.bos)
    given, notes = _askable(given, prompter)
    rows = build_prompts(
        given.rows, prompter, config.max_new_tokens if isinstance(config.max_new_tokens, int) else None
    )
    lengths = [TrainingExample(one.row, one.prompt, (0,) * one.allowed) for one in rows]
    check_lengths(given.facts.name, lengths, loading.max_positions(found, config.trust_remote_code))
    return _Ready(prompter, {one.row: one for one in rows}, given, (*prompter.notes, *notes))


def _askable(given: EvaluateInputs, prompter: Prompter) -> tuple[EvaluateInputs, list[str]]:
    """The rows without those that the chat template refuses, and lines about these."""
    faults = template_faults(given.rows, prompter)
    left = without_faulty(given.facts.name, given.rows, faults)
    labels = given.labels.filter(pl.col("row").is_in(left["row"].implode()))
    skipped = given.skipped + given.rows.height - left.height
    found = given._replace(rows=left, labels=labels, skipped=skipped, row_faults=row_faults.counts(faults))
    return found, row_faults.notes("rows", faults)


def _another_prompt(prompter: Prompter, template: Template, found: Resolved) -> list[str]:
    """A warning where the tune run beside the model tells of another prompt: EM would be near 0 for that alone."""
    beside = found.path.parent / "results.json"
    told = (read_json(beside) or {}).get("method", {}).get("training_text")
    if not isinstance(told, dict):
        return []
    differ = differences(told, {**prompter.choices, "prompt": template.target})
    if not differ:
        return []
    return [f"warning: the model was tuned with another prompt: {'; '.join(differ)}. Ask as it was tuned"]


def _compute(
    config: EvaluateConfig,
    given: EvaluateInputs,
    found: Resolved,
    ready: _Ready,
    folder: RunDir,
    identity: dict[str, Any],
) -> None:

    plan = chunks(given.rows, int(config.chunk_rows or 256))
    left = [n for n in range(len(plan)) if any(folder.chunk(n, part) is None for part in ("predictions", "cost"))]
    if len(left) < len(plan):
        say(f"{len(plan) - len(left)} of {len(plan)} chunks are finished; going on")
    if left:
        _answer(config, found, ready, folder, {n: plan[n] for n in left})
    _write(config, given, found, ready, folder, identity)


def _answer(
    config: EvaluateConfig, found: Resolved, ready: _Ready, folder: RunDir, plan: Mapping[int, pl.DataFrame]
) -> None:
    """Ask the rows of the chunks that are not finished."""
    from foreknow.inference.engine import Sampling  # keeps torch out
    from foreknow.inference.generate import Generator, exact_head  # keeps torch out
    from foreknow.stages.evaluate.generate import generate_with_less_memory  # keeps torch out

    loaded = loading.load_resolved_model(
        found, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    for reason in loaded.reasons:
        say(reason)
    checked = json.dumps(check_fluency(loaded, say).summary)
    folder.save_chunk(min(plan), "fluency", pl.DataFrame([{"summary": checked}], schema=FLUENCY))
    generator = Generator(
        loaded.model, ready.prompter.ended(loading.vocabulary_of(loaded)), Sampling(), int(config.batch_rows or 32)
    )
    with exact_head(loaded.model), meter("answering", sum(part.height for part in plan.values())) as done:
        for n, part in plan.items():
            began = time.monotonic()
            frame, generator = generate_with_less_memory(generator, [ready.rows[row] for row in part["row"]])
            folder.save_chunk(n, "predictions", frame)
            cost = {"seconds": time.monotonic() - began, "rows": part.height, "batch_rows": generator.batch}
            folder.save_chunk(n, "cost", pl.DataFrame([cost], schema=COST))
            done.advance(part.height)
            release_memory()


def _write(
    config: EvaluateConfig,
    given: EvaluateInputs,
    found: Resolved,
    ready: _Ready,
    folder: RunDir,
    identity: dict[str, Any],
) -> None:
    """Assemble the outputs from the finished chunks; the manifest comes last."""
    cost = folder.load_chunks("cost", COST)
    rows = answered(given.rows, folder.load_chunks("predictions", PREDICTIONS), given.labels, config.idk_answer)
    seconds = float(cost["seconds"].sum())
    audit = given.audit
    checked = folder.load_chunks("fluency", FLUENCY)["summary"]
    summary = {
        **summarise_answers(rows, lenient=config.match == "lenient"),
        "skipped": given.skipped,
        "row_faults": dict(given.row_faults),
        "categories_from": given.whence or None,
        "protocol": {
            **{key: getattr(config, key) for key in ("match", "max_new_tokens", "idk_answer")},
            **ready.prompter.choices,
            "prompt": given.template.target,
            **({"notes": list(ready.prompter.notes)} if ready.prompter.notes else {}),
            "dtype": identity["dtype"],
            "device": identity["device"],
        },
        "model": {
            **{"name": found.name, "fingerprint": found.fingerprint, "folder": str(found.path)},
            **{"note": found.note, "method": "adapter" if found.adapter else "whole", "base": found.base},
            "fluency": json.loads(checked[0]) if len(checked) else None,
        },
        "audit": audit and {"folder": str(audit.folder), "model": audit.summary["model"]},
        "data": {
            **{"name": given.facts.name, "layout": given.facts.layout, "reason": given.facts.reason},
            **{"fingerprint": given.facts.digest, "records": given.facts.records},
            **{"rows_in_file": given.facts.total, "left_out": dict(given.facts.left_out)},
        },
        "seconds": seconds,
        "rows_per_second": int(cost["rows"].sum()) / seconds if seconds else 0.0,
        "version": __version__,
    }
    write_frame(folder.path / "rows.parquet", rows)
    write_json(folder.path / "summary.json", summary)
    folder.finish(
        {
            "foreknow": __version__,
            "stage": "evaluate",
            "identity": identity,
            "model": {"name": found.name, "fingerprint": found.fingerprint, "base": found.base},
            "rows": fingerprint(rows.select("row", "prediction", "correct", "correct_lenient")),
            "versions": library_versions(),
            "chunks_with_halved_batches": cost.filter(pl.col("batch_rows") < int(config.batch_rows or 32)).height,
        },
        ("config.yaml", "rows.parquet", "summary.json"),
    )
