"""Run an audit: label each row of a file by what the model knows, and write the run folder.

    setup.py         reads the input, loads the model, draws exemplars, chooses the engine
    exact_probe.py   probes every row behind every exemplar set (or generate.py, by generation)
    slick.py         turns probabilities into categories
    aggregate.py     builds the frame of rows and the summary

The stage refuses everything that it can refuse before it reads a weight.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data.schema import chunks
from foreknow.data.spans.schema import SPANS, count_spans, span_labels
from foreknow.distributed.ray_cluster import Cluster, open_cluster
from foreknow.errors import ConfigError
from foreknow.format.numbers import duration
from foreknow.inference import slick
from foreknow.inference.server.model import PREFIX, Address, address_of
from foreknow.inference.surprisal import LONG
from foreknow.io.run_dir import RunDir, fingerprint, read_json, write_folder, write_frame, write_json, write_whole
from foreknow.models import loading
from foreknow.models.in_memory import ModelInMemory
from foreknow.models.resolve import check_name, resolve
from foreknow.models.versions import library_versions
from foreknow.progress import meter
from foreknow.stages.audit import time_budget
from foreknow.stages.audit.aggregate import rows_frame, split_rows_and_facts, summarise_audit
from foreknow.stages.audit.chunks import COST
from foreknow.stages.audit.executor import AuditInputs, Executor
from foreknow.stages.audit.local_executor import open_local_executor
from foreknow.stages.audit.page import write_page
from foreknow.stages.audit.result import LONG_LABELS, AuditResult
from foreknow.stages.audit.server_executor import connect_server, open_server_executor, with_server_chat_template
from foreknow.stages.audit.setup import CheckedModel, identity_of, read_input, with_batch_sizes, with_chat_template
from foreknow.stages.audit.span_plan import summarise_spans
from foreknow.stages.skeleton import PreparedRun, Stage, required_out, run_stage
from foreknow.version import __version__

logger = logging.getLogger(__name__)

LABELS = ("category", "p_greedy", "p_sampled", "p_hit", "model_answer", "flags")
"""Columns that the annotated file has in addition to its own."""
OUTPUTS = (
    *("config.yaml", "exemplars.json", "probes.parquet", "rows.parquet", "facts.parquet"),
    *("span_exemplars.json", "spans.parquet", "summary.json"),
    "annotated*",
)
"""Output files whose checksums the manifest holds."""
SPAN_LABELS = ("n_spans", "new_spans", "unknown_share", "spans_category")
"""Further columns of the annotated file where the spans of long answers were labelled; and `spans`, the spans."""
LONG_ROWS = 32
"""Number of rows with long answers that are scored and saved together."""
SPAN_ROWS = 8
"""Number of rows with long answers whose spans are labelled and saved together: half a minute on a slow core."""
SCORING: Final[dict[str, pl.DataType]] = {"seconds": pl.Float64()}
"""Schema of the wall-clock time that scoring one such part, or labelling its spans, took."""


def run(config: AuditConfig) -> AuditResult:
    """Run the audit that `config` describes and return its result; an interrupted audit continues where it stopped.

    Raises GateCrossed after everything is written, and the other errors of `foreknow.errors`.
    """
    began = time.monotonic()
    out, address = required_out(config.out), address_of(config.model)
    if address is None:
        check_name(config.model)
    if config.minutes is not None:
        time_budget.check_settings(config)
    if address is not None:
        _check_server_settings(config)
    inputs = read_input(config) if config.minutes is None else None

    def prepare(folder: RunDir) -> AbstractContextManager[PreparedRun]:
        if inputs is None:
            return _prepare_within_minutes(config, folder, began)
        return (
            _prepare(config, inputs, folder) if address is None else _prepare_at_server(config, inputs, address, folder)
        )

    audit = run_stage(Stage("audit", prepare, AuditResult, write_page), out)
    if config.chance:  # locks the folder itself
        from foreknow.stages.audit.chance_probe import compute_chance  # keeps torch out

        compute_chance(audit, memory=config.model if isinstance(config.model, ModelInMemory) else None)
        write_page(audit)
    audit.gate(config.max_unknown)
    return audit


@contextmanager
def _prepare_within_minutes(config: AuditConfig, folder: RunDir, began: float) -> Iterator[PreparedRun]:
    """Prepare an audit of as many rows as fit in `config.minutes`; a folder that has a limit keeps it."""
    identity = _known_identity(folder)
    choice: time_budget.LimitChoice | None = None
    if "limit" in identity:
        limit = identity["limit"]
        if identity.get("minutes") == config.minutes:
            logger.info(f"--minutes {config.minutes:g}: going on with the {limit:,} rows that this run began with")
    else:
        time_budget.check_limit(config)
        choice = time_budget.choose_limit(config, began)
        limit = choice.limit
    config = config.model_copy(update={"limit": limit})
    with _prepare(config, read_input(config), folder, None if choice is None else choice.model) as prepared:
        yield prepared
        if choice is not None:
            logger.info(f"--minutes {config.minutes:g}: took {duration(time.monotonic() - began)}")


@contextmanager
def _prepare(
    config: AuditConfig, inputs: AuditInputs, folder: RunDir, loaded: CheckedModel | None = None
) -> Iterator[PreparedRun]:
    """Prepare an audit whose model weights are read in this process or by the workers of a cluster.

    `loaded`: the model if this process has loaded it already.
    """
    with open_cluster(config) as cluster:
        complete = folder.manifest is not None and not cluster
        device, dtype = (_known_identity(folder).get(key, "") for key in ("device", "dtype"))
        if not (complete and config.device in ("auto", device) and config.dtype in ("auto", dtype)):
            # else what was chosen then holds, and torch stays out
            resolve_device_dtype = cluster.resolve_device_dtype if cluster else loading.resolve_device_dtype
            device, dtype = resolve_device_dtype(config.device, config.dtype)
        model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base, check=not complete)
        config = with_batch_sizes(config, device, dtype, model.folder)
        config = with_chat_template(config, inputs, lambda: loading.load_tokenizer(model, config.trust_remote_code))
        identity = identity_of(config, inputs, model.fingerprint, device, dtype)

        def work(folder: RunDir) -> None:
            with _open_executor(config, inputs, identity, cluster, loaded) as executor:
                _compute(config, inputs, folder, identity, executor)

        yield PreparedRun(identity, config.resolved(), work, check_complete=_repeat_warning)


@contextmanager
def _prepare_at_server(
    config: AuditConfig, inputs: AuditInputs, address: Address, folder: RunDir
) -> Iterator[PreparedRun]:
    """Prepare an audit of a model that only a server has."""
    known_identity = _known_identity(folder).get("model")
    config = with_server_chat_template(config, inputs, address)
    with connect_server(config, inputs, address, known_identity) as server:
        identity = identity_of(config, inputs, server.identity, "server", "unknown")

        def work(folder: RunDir) -> None:
            _compute(config, inputs, folder, identity, open_server_executor(config, inputs, server))

        yield PreparedRun(identity, config.resolved(), work)


def _known_identity(folder: RunDir) -> dict[str, Any]:
    """Return the identity of the run that a folder holds, finished or not; empty if it holds none."""
    identity: dict[str, Any] = (folder.manifest or read_json(folder.path / ".run.json") or {}).get("identity", {})
    return identity


def _check_server_settings(config: AuditConfig) -> None:
    """Raise ConfigError for settings that need the weights of a model."""
    if config.base:
        raise ConfigError(f"--base {config.base}: names an adapter's base; --model {PREFIX}... names a server's")
    if config.ray or config.ray_address or config.chance:
        flag = "--chance" if config.chance else "--ray"
        raise ConfigError(f"{flag}: needs a model's weights; --model {PREFIX}... names a server's")


def _repeat_warning(folder: RunDir) -> None:
    """Repeat the audit's warning that the model may not produce fluent text, if it gave one."""
    if warning := (AuditResult(folder.path).summary["model"].get("fluency") or {}).get("warning"):
        logger.info(f"warning: {warning}")


def _open_executor(
    config: AuditConfig,
    inputs: AuditInputs,
    identity: dict[str, Any],
    cluster: Cluster | None,
    loaded: CheckedModel | None,
) -> AbstractContextManager[Executor]:
    """Return the executor of this process, or of the cluster if there is one."""
    if cluster is None:
        return open_local_executor(config, inputs, loaded)
    from foreknow.stages.audit.ray_executor import RayExecutor  # keeps torch out

    return nullcontext(RayExecutor(config, inputs, identity, cluster))


def _compute(
    config: AuditConfig, inputs: AuditInputs, folder: RunDir, identity: dict[str, Any], executor: Executor
) -> None:
    write_json(folder.path / "exemplars.json", executor.plan.exemplars.as_json())
    if executor.plan.spans is not None:
        write_json(folder.path / "span_exemplars.json", executor.plan.spans.exemplars.as_json())
    _run_chunks(chunks(executor.plan.rows, int(config.chunk_rows or 128)), executor, folder)
    _score_long(executor, folder)
    _label_spans(executor, folder)
    _write(config, inputs, executor, folder, identity)


def _run_chunks(plan: list[pl.DataFrame], executor: Executor, folder: RunDir) -> None:
    """Probe the chunks that are not finished, and save each as it comes."""
    unfinished = [
        n for n in range(len(plan)) if any(folder.chunk(n, part) is None for part in ("probes", "answers", "cost"))
    ]
    if len(unfinished) < len(plan):
        logger.info(f"{len(plan) - len(unfinished)} of {len(plan)} chunks are finished; going on")
    with meter("probing", sum(plan[n].height for n in unfinished)) as done:
        for number, chunk, cost in executor.probe([(n, plan[n]) for n in unfinished]):
            folder.save_chunk(number, "probes", chunk.probes)
            folder.save_chunk(number, "answers", chunk.answers)
            folder.save_chunk(number, "cost", cost)
            done.advance(plan[number].height)


def _score_long(executor: Executor, folder: RunDir) -> None:
    """Score the long answers that are not scored yet, and save each part as it comes."""
    parts = [executor.plan.long.slice(start, LONG_ROWS) for start in range(0, executor.plan.long.height, LONG_ROWS)]
    unfinished = [n for n in range(len(parts)) if folder.chunk(n, "long") is None]
    if not unfinished:
        return
    with meter("scoring long answers", sum(parts[n].height for n in unfinished)) as done:
        began = time.monotonic()
        for number, frame in executor.score([(n, parts[n]) for n in unfinished]):
            ended = time.monotonic()
            folder.save_chunk(number, "scoring", pl.DataFrame({"seconds": [ended - began]}, schema=SCORING))
            folder.save_chunk(number, "long", frame)
            began = ended
            done.advance(frame.height)


def _label_spans(executor: Executor, folder: RunDir) -> None:
    """Label the fact spans of the long answers that are not labelled yet, and save each part as it comes."""
    if executor.plan.spans is None:
        return
    long = executor.plan.long
    parts = [long.slice(start, SPAN_ROWS) for start in range(0, long.height, SPAN_ROWS)]
    unfinished = [n for n in range(len(parts)) if folder.chunk(n, "spans") is None]
    if not unfinished:
        return
    if len(unfinished) < len(parts):
        logger.info(f"spans of {len(parts) - len(unfinished)} of {len(parts)} parts are labelled; going on")
    with meter("labelling spans of long answers", sum(parts[n].height for n in unfinished)) as done:
        began = time.monotonic()
        for number, frame in executor.label_spans([(n, parts[n]) for n in unfinished]):
            ended = time.monotonic()
            folder.save_chunk(number, "span_seconds", pl.DataFrame({"seconds": [ended - began]}, schema=SCORING))
            folder.save_chunk(number, "spans", frame)
            began = ended
            done.advance(parts[number].height)


def _write(
    config: AuditConfig, inputs: AuditInputs, executor: Executor, folder: RunDir, identity: dict[str, Any]
) -> None:
    """Assemble the outputs from the finished chunks and write them; the manifest is written last."""
    out = folder.path
    probes = folder.load_chunks("probes", slick.PROBES).sort("row", "exemplar_set")
    cost = folder.load_chunks("cost", COST)
    labelled = slick.label(
        probes, samples=config.samples, sampled=config.protocol == "sampled", lenient=config.match == "lenient"
    )
    chosen = pl.concat([inputs.rows["row"], inputs.shorts["row"]])
    audited = executor.plan.every.filter(pl.col("row").is_in(chosen.implode()))
    probed = rows_frame(audited, labelled, folder.load_chunks("answers", slick.MODEL_ANSWERS), executor.plan.exemplars)
    spans = folder.load_chunks("spans", SPANS).sort("row", "start")
    plan = executor.plan
    counts = None if plan.spans is None else count_spans(plan.long["row"], spans)
    rows, shorts = split_rows_and_facts(probed, inputs.shorts, folder.load_chunks("long", LONG), counts)
    probing = float((cost["seconds"] / cost["workers"]).sum())
    scoring = float(folder.load_chunks("scoring", SCORING)["seconds"].sum())
    labelling = float(folder.load_chunks("span_seconds", SCORING)["seconds"].sum())
    engine = ", ".join(cost["engine"].unique().sort()) or "none"
    precision = executor.compare_precision(probes)
    summary = {
        **summarise_audit(rows, shorts),
        **({} if plan.spans is None else {"spans": summarise_spans(rows, spans, plan.spans.protocol)}),
        **({"precision": precision} if precision else {}),
        "protocol": {**executor.protocol, "engine": engine},
        "model": {**executor.model, "fluency": executor.fluency()},
        "data": {
            "name": inputs.facts.name,
            "layout": inputs.facts.layout,
            "reason": inputs.facts.reason,
            "fingerprint": identity["data"],
            "records": inputs.facts.records,
            "rows_in_file": inputs.facts.total,
            "left_out": dict(inputs.facts.left_out),
            "thoughts": inputs.facts.thoughts,
            **({"licences": inputs.licences} if inputs.licences else {}),
        },
        "seconds": probing + scoring + labelling,
        "rows_per_second": int(cost["rows"].sum()) / probing if probing else 0.0,
        "version": __version__,
    }
    write_frame(out / "probes.parquet", probes)
    write_frame(out / "rows.parquet", rows)
    if not shorts.is_empty():
        write_frame(out / "facts.parquet", shorts)
    more = LONG_LABELS if executor.plan.long.height or not shorts.is_empty() else ()
    labels = rows.select("row", *LABELS, *more, *(() if plan.spans is None else SPAN_LABELS))
    if plan.spans is not None:
        write_frame(out / "spans.parquet", spans)
        labels = labels.join(span_labels(spans), on="row", how="left", maintain_order="left")
    write = write_whole if inputs.facts.suffix else write_folder
    write(out / f"annotated{inputs.facts.suffix}", lambda part: inputs.facts.annotate(labels, part))
    write_json(out / "summary.json", summary)
    folder.finish(
        {
            "foreknow": __version__,
            "stage": "audit",
            "identity": identity,
            "model": {key: executor.model[key] for key in ("name", "fingerprint", "base") if key in executor.model},
            "rows": fingerprint(rows.select("row", "category", "p_greedy", "p_sampled", "p_hit")),
            "versions": library_versions(),
            "engine": engine,
            "computed": _count_chunks_by_executor(cost),
            "chunks_with_halved_batches": cost.filter(pl.col("halved") > 0).height,
        },
        OUTPUTS,
    )


def _count_chunks_by_executor(cost: pl.DataFrame) -> list[dict[str, Any]]:
    """Count the chunks by Ray version, workers and threads that computed them.

    Equal bytes are promised only for equal numbers of threads.
    """
    ways = ("ray", "workers", "threads")
    return cost.group_by(ways).agg(chunks=pl.len().cast(pl.Int64)).sort(ways, nulls_last=False).to_dicts()
