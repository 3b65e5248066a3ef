"""Estimate what an audit would cost from a short measured burst, in about `BURST_SECONDS` after the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data.schema import chunks
from foreknow.distributed.ray_cluster import open_cluster
from foreknow.distributed.ray_resources import WorkerSpec
from foreknow.errors import ConfigError
from foreknow.format.numbers import duration
from foreknow.inference.server.model import address_of
from foreknow.models import loading
from foreknow.models.resolve import resolve
from foreknow.stages.audit.burst import measure_burst, measure_long_answers, span_seconds
from foreknow.stages.audit.chunks import score_long_answers
from foreknow.stages.audit.executor import AuditContext
from foreknow.stages.audit.server_executor import connect_server, estimate_at_server, with_server_chat_template
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes, with_chat_template

logger = logging.getLogger(__name__)


BURST_SECONDS = 8.0
"""How long the burst may take beside the first few rows, which are measured in any case."""


def estimate(config: AuditConfig) -> dict[str, Any]:
    """Estimate what an audit would cost by probing a few rows twice, and then as many as the burst has time for.

    Writes nothing. Returns rows, prompts, tokens computed, memory (GiB) and seconds, among others. With Ray this
    process computes the burst with as many threads as a worker has, and its time is divided by the workers.
    """
    import psutil

    if config.minutes is not None:
        raise ConfigError("--dry-run: --minutes measures the same burst before it labels; leave out one of them")
    if (address := address_of(config.model)) is not None:
        inputs = read_input(config)
        config = with_server_chat_template(config, inputs, address)
        with connect_server(config, inputs, address) as server:
            return estimate_at_server(config, inputs, server)
    inputs = read_input(config)
    device, dtype = loading.resolve_device_dtype(config.device, config.dtype)
    resolved_model = resolve(config.model, logger.info, config.trust_remote_code, base=config.base)
    config = with_batch_sizes(config, device, dtype, resolved_model.folder)
    config = with_chat_template(
        config, inputs, lambda: loading.load_tokenizer(resolved_model, config.trust_remote_code)
    )
    with open_cluster(config) as cluster:
        spec = None if cluster is None else cluster.worker_spec(device)
    with _threads(spec), open_context(config, inputs) as context:
        long_seconds = _long_answer_seconds(config, context)
        if context.plan.rows.is_empty():
            return {
                "rows": 0,
                "not_probed": inputs.rows.height + inputs.shorts.height,
                "long_answers": context.plan.long.height,
                "spans": _count_spans(context),
                "prompts": 0,
                "tokens": 0,
                "memory_gib": round(psutil.Process().memory_info().rss / 2**30, 2),
                "seconds": round(long_seconds, 1),
                "time": duration(long_seconds),
            }
        plan = chunks(context.plan.rows, int(config.chunk_rows or 128))
        middle = plan[len(plan) // 2]
        logger.info("measuring a burst of rows on this machine, for about ten seconds")
        measured = measure_burst(context.probing.prober, middle, BURST_SECONDS, extend=config.protocol == "exact")
        burst, prefix_seconds = measured.rows, measured.prefix_seconds
        groups = burst["group"].n_unique()
        prefixes = prefix_seconds * context.plan.rows["group"].n_unique()
        seconds = prefixes + measured.row_seconds * context.plan.rows.height
        prepared_rows, prompts = context.probing.prober.prompts.build(burst)
        own = sum(len(p.own) for some in prompts for p in some)
        own += sum(len(row.tree) for row in prepared_rows) * config.exemplar_sets
        families = {p.family for some in prompts for p in some}
        shared = sum(len(ids) for family in families for ids in family) / groups * context.plan.rows["group"].n_unique()
        memory = psutil.Process().memory_info().rss / 2**30
    workers = 1 if spec is None else min(spec.workers, len(plan))
    probe_seconds, seconds = seconds / workers, (seconds + long_seconds) / workers
    return {
        "rows": context.plan.rows.height,
        "not_probed": inputs.rows.height + inputs.shorts.height - context.plan.rows.height,
        "long_answers": context.plan.long.height,
        "spans": _count_spans(context),
        "prompts": context.plan.rows.height * config.exemplar_sets,
        "tokens": round(own / burst.height * context.plan.rows.height + shared),
        "memory_gib": round(memory, 2),
        "seconds": round(seconds, 1),
        "time": duration(seconds) + ("" if spec is None else f", measured on one and divided by {workers}: {spec}"),
        "measured_rows": burst.height,
        "exemplar_sets": config.exemplar_sets,
        "tokens_a_row": round(own / burst.height, 1),
        "positions_a_row": round(
            config.exemplar_sets * (1 + sum(len(row.tree) for row in prepared_rows) / burst.height), 1
        ),
        "prefix_tokens": round(shared),
        "folder": str(resolved_model.folder),
        "rows_per_second": round(context.plan.rows.height / probe_seconds, 2),
    }


def _long_answer_seconds(config: AuditConfig, context: AuditContext) -> float:
    """How long scoring the long answers, and labelling their spans, would take: from the row of middle length."""
    tokens = int(config.batch_tokens or 2048)
    rows = context.plan.long

    def score(chosen: pl.DataFrame) -> object:
        return list(score_long_answers(context.loaded, context.probing.prompter, [(0, chosen)], tokens))

    return measure_long_answers(score, rows) * rows.height + span_seconds(
        config, context.loaded, context.probing, context.plan
    )


def _count_spans(context: AuditContext) -> int:
    """Return the number of fact spans that would be labelled."""
    return 0 if context.plan.spans is None else int(context.plan.long["fact_spans"].list.len().sum())


@contextmanager
def _threads(spec: WorkerSpec | None) -> Iterator[None]:
    """Set the number of torch threads to a worker's inside the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if spec is None else spec.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
