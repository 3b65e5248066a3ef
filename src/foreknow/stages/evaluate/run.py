"""Runs an evaluation: asks a tuned model any rows and scores its greedily generated answers (paper, section 3).

    base_labels.py   finds each row's category and the base model's probe
    generate.py      asks every row in the training format
    metrics.py       computes EM, wrong answers, refusals, and moves against the base model's probe
    span_recall.py   counts which labelled spans of long answers the model's texts mention, and what else they name
    training_prompt.py  asks in the form in which the model was tuned
    tables.py        shows the same in the terminal

DIR/config.yaml rows.parquet summary.json manifest.json (last) report.html
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.config import EvaluateConfig
from foreknow.data.dataset import Dataset
from foreknow.data.load import read_data
from foreknow.data.schema import USABLE, chunks
from foreknow.errors import ForeknowError, ModelError
from foreknow.inference.malloc import release_memory
from foreknow.io.run_dir import RunDir, fingerprint, write_frame, write_json
from foreknow.models import loading
from foreknow.models.fluency import check_fluency
from foreknow.models.packaged import PACKAGED
from foreknow.models.resolve import Resolved, resolve
from foreknow.models.versions import library_versions
from foreknow.progress import meter
from foreknow.prompts.prompt_template import Prompter, Template, read_template
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.evaluate.metrics import PREDICTIONS, answered, summarise_answers
from foreknow.stages.evaluate.page import write_page
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.evaluate.training_prompt import ask_as_tuned, chat_choice, prompt_differences, training_prompt
from foreknow.stages.skeleton import PreparedRun, Stage, nothing_to_do, required_out, run_stage
from foreknow.stages.train import row_faults
from foreknow.stages.train.base_labels import audited_labels, own_labels
from foreknow.stages.train.span_labels import WATCHED_SPANS, watched_spans
from foreknow.stages.train.training_examples import (
    TRAINING,
    TrainingExample,
    check_lengths,
    template_faults,
    without_faulty,
)
from foreknow.version import __version__

if TYPE_CHECKING:
    from foreknow.stages.evaluate.generate import GenerationPrompt

logger = logging.getLogger(__name__)

COST: Final[dict[str, pl.DataType]] = {"seconds": pl.Float64(), "rows": pl.Int64(), "batch_rows": pl.Int64()}
"""The cost of a finished chunk. `batch_rows` is the number of rows answered at once; it is halved when memory runs
out."""


TUNED, BASE = "predictions", "base_predictions"
"""The names of the chunks that hold the tuned model's answers, and of those that hold the base model's answers."""

FLUENCY: Final[dict[str, pl.DataType]] = {"summary": pl.String()}
"""The result of the model's fluency check (`Fluency.summary`, as JSON), saved with the first chunk that it answers."""


class EvaluateInputs(NamedTuple):
    """Holds what an evaluation reads.

    `rows`: the usable rows (`rows.ROWS`). `skipped`: the number of other rows. `labels`: what was known of the rows
    before training (`base_labels.LABELS`). `spans`: the labelled spans inside their long answers
    (`span_labels.WATCHED_SPANS`). `whence`: words for where the labels come from; empty if there are none.
    `template`: the prompt. `row_faults`: by reason, the rows that the chat template refuses (`row_faults.counts`).
    `tuned_with`: the form of the tune run (`training_prompt`).
    """

    facts: Dataset
    rows: pl.DataFrame
    skipped: int
    labels: pl.DataFrame
    spans: pl.DataFrame
    whence: str
    audit: AuditResult | None
    template: Template
    row_faults: Mapping[str, Any] = MappingProxyType({})
    tuned_with: Mapping[str, Any] = MappingProxyType({})


def read_inputs(config: EvaluateConfig) -> EvaluateInputs:
    """Read and check all files, and raise every error that can be found without the model."""
    template = read_template(config.prompt_template) if config.prompt_template else TRAINING
    audit = open_audit(config.audit) if config.audit else None
    facts = read_data(config, config.limit)
    every = facts.rows.filter(pl.col("row").is_in(facts.audited.implode()))
    rows = every.filter(USABLE)
    spans = pl.DataFrame(schema=WATCHED_SPANS)
    if audit is None:
        labels, whence = own_labels(facts, rows)
    else:
        if audit.spans is not None:
            spans = watched_spans(rows, audit.rows, audit.spans)
        labels, whence = audited_labels(audit, facts, rows, config.match, spans["row"].n_unique())
    return EvaluateInputs(facts, rows, every.height - rows.height, labels, spans, whence, audit, template)


_NO_IDENTITY: Final = {
    *("data", "model", "out", "audit", "base", "force", "prompt_template", "templates", "map", "layout"),
    *("turns", "null_words", "strict_rows", "group_by", "trust_remote_code", "dtype", "device"),
}
"""Settings that are left out of a run's identity, because the content of the file that they name counts instead or
because they do not change a result."""


def identity_of(config: EvaluateConfig, inputs: EvaluateInputs, model: str, device: str, dtype: str) -> dict[str, Any]:
    """Return the contents and settings by which two evaluations count as the same; names of files do not count."""
    return {
        "data": inputs.facts.digest,
        "categories": fingerprint(inputs.labels),
        **({} if inputs.spans.is_empty() else {"spans": fingerprint(inputs.spans)}),
        "prompt_template": [inputs.template.instruction, inputs.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def with_batch_sizes(config: EvaluateConfig, device: str, *, long_rows: bool = False) -> EvaluateConfig:
    """Fill in the batch sizes, which depend on the kind of device and never on free memory or load.

    `long_rows`: the model writes whole long answers, so fewer rows are saved at once.
    """
    gpu = device.startswith("cuda")
    chunk_rows = (2048 if gpu else 256) // (4 if long_rows else 1)
    return config.model_copy(
        update={
            "batch_rows": config.batch_rows or (256 if gpu else 32),
            "chunk_rows": config.chunk_rows or chunk_rows,
        }
    )


def run(config: EvaluateConfig) -> EvaluateResult:
    """Evaluate as `config` says and return the finished evaluation.

    An interrupted evaluation goes on where it stopped. Raises the errors of `foreknow.errors`.
    """
    out = required_out(config.out)
    inputs = read_inputs(config)
    resolved_model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base, force=config.force)
    tuned_with = training_prompt(resolved_model)
    config, template, prompt_notes = ask_as_tuned(config, inputs.template, tuned_with)
    inputs = inputs._replace(template=template, tuned_with=tuned_with)
    notes = [f"categories: {inputs.whence or 'none'}", *_check_base_model(config, inputs.audit, resolved_model)]
    notes += prompt_notes

    def prepare(folder: RunDir) -> AbstractContextManager[PreparedRun]:
        return nullcontext(_prepare(config, inputs, resolved_model, notes, folder))

    return run_stage(Stage("evaluation", prepare, EvaluateResult, write_page), out)


def _prepare(
    config: EvaluateConfig, inputs: EvaluateInputs, resolved_model: Resolved, notes: list[str], folder: RunDir
) -> PreparedRun:
    """Turn the rows into prompts, unless the folder has a finished evaluation."""
    device, dtype = loading.resolve_device_dtype(config.device, config.dtype)
    config = with_batch_sizes(config, device, long_rows=not inputs.spans.is_empty())
    identity = identity_of(config, inputs, resolved_model.fingerprint, device, dtype)
    if folder.manifest is not None:
        return PreparedRun(identity, config.resolved(), nothing_to_do)
    prompts = _prepare_prompts(config, inputs, resolved_model)  # raises its errors before the folder is claimed
    data_lines = (inputs.facts.reason, inputs.facts.first_row, inputs.facts.row_account)
    differ = prompt_differences(inputs.tuned_with, prompts.prompter)
    prompt_warning = [f"warning: the model was tuned with another prompt: {'; '.join(differ)}"] if differ else []

    def work(folder: RunDir) -> None:
        _compute(config, prompts.inputs, resolved_model, prompts, folder, identity)

    return PreparedRun(identity, config.resolved(), work, (*data_lines, *notes, *prompts.notes, *prompt_warning))


class _Base(NamedTuple):
    """Holds the model that the tuned one was trained from and why it is asked; the model is None if it is not asked."""

    model: Resolved | None
    reason: str


def _base_model(config: EvaluateConfig, tuned: Resolved) -> _Base:
    """Find the model that `tuned` was trained from, by the origin that is recorded beside its weights."""
    if not config.compare_base:
        return _Base(None, "the base model is not asked in the same format (--no-compare-base)")
    origin = tuned.origin or tuned.base
    if not origin:
        return _Base(
            None, f"which model {tuned.name} was tuned from is not known, so it is not asked in the same format"
        )
    folder, called = str(origin.get("folder") or ""), str(origin.get("name") or "")
    # a local folder's name could be somebody else's repository on the hub, so only packaged models go by name
    for name in ([folder] if Path(folder).is_dir() and folder else []) + ([called] if called in PACKAGED else []):
        try:
            base = resolve(name, logger.info, config.trust_remote_code)
        except ForeknowError:
            continue
        if base.fingerprint == origin.get("fingerprint", base.fingerprint):
            return _Base(
                base, f"{origin.get('name') or base.name}, from which it was tuned, is asked in the same format too"
            )
    return _Base(
        None, f"{origin.get('name')}, from which {tuned.name} was tuned, is not found as it was: it is not asked too"
    )


def _check_base_model(config: EvaluateConfig, audit: AuditResult | None, resolved_model: Resolved) -> list[str]:
    """Check that the audit is that of the base model; return a line if that is not known.

    Raises ModelError if the audit is another model's, unless `config.force` is set.
    """
    if audit is None:
        return []
    made_with = audit.summary["model"]
    origin = resolved_model.origin or resolved_model.base or {}
    base = origin.get("fingerprint")
    if base is None and made_with["fingerprint"] != resolved_model.fingerprint:
        return [
            f"which model {resolved_model.name} was tuned from is not known; rows are compared with "
            f"{made_with['name']}'s"
        ]
    if base is not None and base != made_with["fingerprint"] and not config.force:
        raise ModelError(
            f"--audit {config.audit}: made with {made_with['name']} ({made_with['fingerprint'][:19]}...), but "
            f"{resolved_model.name} was tuned from {origin.get('name')} ({base[:19]}...): its categories are "
            "another model's. Name an audit of that model, or go on with --force"
        )
    return []


class PreparedPrompts(NamedTuple):
    """Holds the prompts and the prompter that made them.

    `rows`: the prompts by row number. `inputs`: the inputs without the rows that cannot be asked. `notes`: lines about
    the prompts and the removed rows.
    """

    prompter: Prompter
    rows: dict[int, GenerationPrompt]
    inputs: EvaluateInputs
    notes: tuple[str, ...]


def _prepare_prompts(config: EvaluateConfig, inputs: EvaluateInputs, resolved_model: Resolved) -> PreparedPrompts:
    """Turn the rows into prompts.

    Raises InputError if rows are longer than the model's positions, or if no row can be asked.
    """
    from foreknow.stages.evaluate.generate import build_prompts  # keeps torch out

    tokenizer = loading.load_tokenizer(resolved_model, config.trust_remote_code)
    chat, reason = chat_choice(config, inputs.rows, tokenizer, inputs.tuned_with)
    prompter = Prompter(tokenizer, inputs.template, chat, config.bos)
    inputs, notes = _without_refused_rows(inputs, prompter)
    notes = [*notes, *([reason] if reason else [])]
    rows = build_prompts(
        inputs.rows,
        prompter,
        config.max_new_tokens if isinstance(config.max_new_tokens, int) else None,
        frozenset(inputs.spans["row"]),
    )
    lengths = [TrainingExample(prompt.row, prompt.prompt, (0,) * prompt.allowed) for prompt in rows]
    check_lengths(inputs.facts.name, lengths, loading.max_positions(resolved_model, config.trust_remote_code))
    return PreparedPrompts(prompter, {prompt.row: prompt for prompt in rows}, inputs, (*prompter.notes, *notes))


def _without_refused_rows(inputs: EvaluateInputs, prompter: Prompter) -> tuple[EvaluateInputs, list[str]]:
    """Remove the rows that the chat template refuses; return the other rows and lines about the removed ones."""
    faults = template_faults(inputs.rows, prompter)
    remaining = without_faulty(inputs.facts.name, inputs.rows, faults)
    labels, spans = (
        frame.filter(pl.col("row").is_in(remaining["row"].implode())) for frame in (inputs.labels, inputs.spans)
    )
    skipped = inputs.skipped + inputs.rows.height - remaining.height
    askable_inputs = inputs._replace(
        rows=remaining, labels=labels, spans=spans, skipped=skipped, row_faults=row_faults.counts(faults)
    )
    return askable_inputs, row_faults.notes("rows", faults)


def _compute(
    config: EvaluateConfig,
    inputs: EvaluateInputs,
    resolved_model: Resolved,
    prompts: PreparedPrompts,
    folder: RunDir,
    identity: dict[str, Any],
) -> None:

    plan = dict(enumerate(chunks(inputs.rows, int(config.chunk_rows or 256))))
    if long_rows := inputs.spans["row"].n_unique():
        logger.info(
            f"{long_rows:,} rows have long answers with labelled spans: the model writes its whole answer to them, at "
            "most as long as theirs"
        )
    base = _base_model(config, resolved_model)
    logger.info(base.reason)
    for model, part in ((resolved_model, TUNED), (base.model, BASE)):
        if model is None:
            continue
        left = {n: rows for n, rows in plan.items() if folder.chunk(n, part) is None}
        if len(left) < len(plan):
            logger.info(f"{model.name}: {len(plan) - len(left)} of {len(plan)} chunks are finished; going on")
        if left:
            _answer(config, model, prompts, folder, left, part)
    _write(config, inputs, resolved_model, prompts, folder, identity, base)


def _answer(
    config: EvaluateConfig,
    resolved_model: Resolved,
    prompts: PreparedPrompts,
    folder: RunDir,
    plan: Mapping[int, pl.DataFrame],
    name: str,
) -> None:
    """Ask a model the rows of the chunks that are not finished. `name`: the name of its chunks, TUNED or BASE."""
    from foreknow.inference.engine import Sampling  # keeps torch out
    from foreknow.inference.generate import Generator, exact_head  # keeps torch out
    from foreknow.stages.evaluate.generate import generate_with_less_memory  # keeps torch out

    loaded = loading.load_resolved_model(
        resolved_model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    for reason in loaded.reasons:
        logger.info(reason)
    if name == TUNED:
        fluency = json.dumps(check_fluency(loaded, logger.info).summary)
        folder.save_chunk(min(plan), "fluency", pl.DataFrame([{"summary": fluency}], schema=FLUENCY))
    what = "answering" if name == TUNED else "asking the base model"
    generator = Generator(
        loaded.model, prompts.prompter.ended(loading.vocabulary_of(loaded)), Sampling(), int(config.batch_rows or 32)
    )
    with exact_head(loaded.model), meter(what, sum(part.height for part in plan.values())) as done:
        for n, part in plan.items():
            began = time.monotonic()
            asked = [prompts.rows[row] for row in part["row"]]
            frame, generator = generate_with_less_memory(generator, asked, done.advance)
            cost = {"seconds": time.monotonic() - began, "rows": part.height, "batch_rows": generator.batch}
            folder.save_chunk(n, f"{name}_cost", pl.DataFrame([cost], schema=COST))
            folder.save_chunk(n, name, frame)  # saved last, because a chunk counts as finished if this file exists
            release_memory()


def _write(
    config: EvaluateConfig,
    inputs: EvaluateInputs,
    resolved_model: Resolved,
    prompts: PreparedPrompts,
    folder: RunDir,
    identity: dict[str, Any],
    base: _Base,
) -> None:
    """Write the outputs from the finished chunks; write the manifest last."""
    cost = folder.load_chunks(f"{TUNED}_cost", COST)
    base_predictions = folder.load_chunks(BASE, PREDICTIONS) if base.model else None
    predictions = folder.load_chunks(TUNED, PREDICTIONS)
    spans = None if inputs.spans.is_empty() else inputs.spans
    rows = answered(inputs.rows, predictions, inputs.labels, config.idk_answer, base_predictions, spans)
    seconds = float(cost["seconds"].sum())
    audit = inputs.audit
    fluency = folder.load_chunks("fluency", FLUENCY)["summary"]
    summary = {
        **summarise_answers(rows, lenient=config.match == "lenient"),
        "skipped": inputs.skipped,
        "row_faults": dict(inputs.row_faults),
        "categories_from": inputs.whence or None,
        "protocol": {
            **{key: getattr(config, key) for key in ("match", "max_new_tokens", "idk_answer")},
            **prompts.prompter.choices,
            "prompt": inputs.template.target,
            **({"notes": list(prompts.prompter.notes)} if prompts.prompter.notes else {}),
            "dtype": identity["dtype"],
            "device": identity["device"],
        },
        "training_prompt": {
            "known": bool(inputs.tuned_with),
            "differences": prompt_differences(inputs.tuned_with, prompts.prompter),
        },
        "model": {
            **{
                "name": resolved_model.name,
                "fingerprint": resolved_model.fingerprint,
                "folder": resolved_model.summary["folder"],
            },
            **{
                "note": resolved_model.note,
                "method": "adapter" if resolved_model.adapter else "whole",
                "base": resolved_model.base,
            },
            "base_in_same_format": base.reason,
            "fluency": json.loads(fluency[0]) if len(fluency) else None,
        },
        "audit": audit and {"folder": str(audit.folder), "model": audit.summary["model"]},
        "data": {
            **{"name": inputs.facts.name, "layout": inputs.facts.layout, "reason": inputs.facts.reason},
            **{"fingerprint": inputs.facts.digest, "records": inputs.facts.records},
            **{"rows_in_file": inputs.facts.total, "left_out": dict(inputs.facts.left_out)},
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
            "model": {
                "name": resolved_model.name,
                "fingerprint": resolved_model.fingerprint,
                "base": resolved_model.base,
            },
            "rows": fingerprint(rows.select("row", "prediction", "correct", "correct_lenient")),
            "versions": library_versions(),
            "chunks_with_halved_batches": cost.filter(pl.col("batch_rows") < int(config.batch_rows or 32)).height,
        },
        ("config.yaml", "rows.parquet", "summary.json"),
    )
