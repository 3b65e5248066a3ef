"""The executor of an audit that a server computes; rows, prompts, chunks and files are those of a local audit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreknow.config import AuditConfig
from foreknow.inference.server.client import Endpoint
from foreknow.inference.server.completions import Usage
from foreknow.inference.server.fluency import fluency_at
from foreknow.inference.server.model import NOTE, Address, ServerModel, estimate, load_tokenizer, open_server
from foreknow.models.fluency import Fluency, print_fluency
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit import setup as audit_setup
from foreknow.stages.audit.chunks import probe_chunks
from foreknow.stages.audit.executor import AuditInputs, NumberedChunks, OpenProber, PromptPlan

if TYPE_CHECKING:
    import polars as pl

    from foreknow.stages.audit.executor import ChunkResult

logger = logging.getLogger(__name__)


def with_server_chat_template(config: AuditConfig, inputs: AuditInputs, address: Address) -> AuditConfig:
    """Resolve `--chat-template auto` by the rows and the tokenizer that makes the server's prompts."""
    name = config.tokenizer or address.name
    return audit_setup.with_chat_template(config, inputs, lambda: load_tokenizer(name, config.trust_remote_code))


@contextmanager
def connect_server(
    config: AuditConfig, inputs: AuditInputs, address: Address, known_identity: object = None
) -> Iterator[ServerModel]:
    """Connect to the server that an audit asks.

    `known_identity`: the server's identity as stored in the run folder, if any.

    Raises ModelError for a missing tokenizer, and what `open_server` raises.
    """
    patience = {key: getattr(config, key) for key in ("timeout", "retries", "backoff", "concurrency", "per_minute")}
    endpoint = Endpoint(address.url, address.name, **patience)
    name = config.tokenizer or address.name
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    prompter = Prompter(tokenizer, inputs.template, config.uses_chat_template, config.bos)
    with open_server(endpoint, prompter, config.top_k, tokenizer_name=name, known=known_identity) as server:
        yield server


@dataclass(frozen=True)
class ServerExecutor:
    """Has a server do an audit's work, one chunk after the other.

    Rows with long answers get no score and no labelled spans, because a server returns too little to compute them.
    """

    model: dict[str, Any]
    plan: PromptPlan
    protocol: dict[str, Any]
    probing: OpenProber
    measured_fluency: Fluency

    def probe(self, chunks: NumberedChunks) -> Iterable[ChunkResult]:
        """Probe numbered chunks in order; print at the end which invalid responses the server gave, and how often."""
        yield from probe_chunks(self.probing, chunks)
        for trouble, count in sorted(getattr(getattr(self.probing.prober, "engine", None), "tally", {}).items()):
            logger.info(f"server: {count:,} {trouble}")

    def score(self, _: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Score nothing."""
        return ()

    def label_spans(self, _: NumberedChunks) -> Iterable[tuple[int, pl.DataFrame]]:
        """Label nothing."""
        return ()

    def compare_precision(self, _: pl.DataFrame) -> dict[str, Any] | None:
        """Compare nothing, because the server's dtype is not known."""
        return None

    def fluency(self) -> dict[str, Any]:
        """Return the model's fluency as measured when the server was first asked."""
        return self.measured_fluency.summary


def open_server_executor(config: AuditConfig, inputs: AuditInputs, server: ServerModel) -> ServerExecutor:
    """Find out what the server can do, and return its executor. Raises ConfigError if it cannot serve the protocol."""
    plan = audit_setup.build_prompt_plan(config, inputs, server.tokenizer)
    prompter = Prompter(server.tokenizer, plan.template, config.uses_chat_template, config.bos)
    probing, reasons = _probing(config, server, prompter, plan)
    audit_setup.print_choices(inputs, plan, prompter, reasons)
    fluency = fluency_at(server, config.batch_prompts)
    print_fluency(fluency, logger.info)
    if plan.long.height:
        logger.info(
            f"{plan.long.height:,} rows have long answers; a server returns too few probabilities to score them or to "
            "label their spans: they are left without both"
        )
    return ServerExecutor(
        {"name": server.address.name, "fingerprint": server.fingerprint, "folder": None, "note": NOTE},
        plan._replace(long=plan.long.clear(), spans=None),
        {**audit_setup.protocol_of(config, plan, prompter, "server", "unknown"), "server": reasons},
        probing,
        fluency,
    )


def estimate_at_server(
    config: AuditConfig,
    inputs: AuditInputs,
    server: ServerModel,
    measured_rows: int = 2,
) -> dict[str, Any]:
    """Estimate what an audit would ask of a server, by asking it `measured_rows` rows. Writes nothing.

    Returns rows, prompts, measured_rows, and what `inference.server.model.estimate` returns; with `config.prices` this
    includes the cost.
    """
    plan = audit_setup.build_prompt_plan(config, inputs, server.tokenizer)
    prompter = Prompter(server.tokenizer, plan.template, config.uses_chat_template, config.bos)
    probing, _ = _probing(config, server, prompter, plan)
    burst = plan.rows.sort(plan.rows["question"].str.len_chars()).slice(plan.rows.height // 2, measured_rows)
    before = server.usage
    if burst.height:
        probing.prober.probe(burst)
    spent = Usage(*(now - then for now, then in zip(server.usage, before, strict=True)))
    return {
        "rows": plan.rows.height,
        "prompts": plan.rows.height * config.exemplar_sets,
        "measured_rows": burst.height,
        **estimate(spent, burst.height, plan.rows.height, config.prices),
    }


def _probing(
    config: AuditConfig, server: ServerModel, prompter: Prompter, plan: PromptPlan
) -> tuple[OpenProber, list[str]]:
    """Return the prober for the server, and lines on what the server can do and what was chosen for it."""
    from foreknow.inference.engine import Sampling  # keeps torch out
    from foreknow.inference.exact_probe import Prober  # keeps torch out
    from foreknow.inference.generate import Sampler  # keeps torch out
    from foreknow.inference.server.sampling import ServerAnswers, discover_drawing  # keeps torch out

    sampling = Sampling(config.temperature, config.top_k)
    prompts, batch = audit_setup.prompt_builder(config, prompter, plan), config.batch_prompts
    if config.protocol != "sampled":
        vocabulary, settings = prompter.ended(server.vocabulary), audit_setup.search_settings(config)
        prober = Prober(server.engine(sampling, batch), prompts, vocabulary, settings)
        return OpenProber(prober, prompter, "server", None), list(server.reasons)
    drawing = discover_drawing(server.completions, sampling)
    answers = ServerAnswers(
        server.completions,
        server.can,
        drawing,
        server.spelling.text,
        config.temperature,
        batch if server.can.many else 1,
    )
    reasons = [*server.reasons, drawing.reason(config.top_k)]
    return OpenProber(Sampler(prompts, answers, config.samples, config.seed), prompter, "server", None), reasons
