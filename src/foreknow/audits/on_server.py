"""An audit's work done by a server: the same rows, prompts, chunks and files; only the numbers come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foreknow.audits import prepare
from foreknow.config import AuditConfig
from foreknow.lm.fluency import say_fluency
from foreknow.progress import say
from foreknow.protocol.prompts import Prompter
from foreknow.servers.completions import Used
from foreknow.servers.endpoint import Endpoint
from foreknow.servers.fluency import fluency_at
from foreknow.servers.model import NOTE, Address, ServerModel, estimate, load_tokenizer, open_server

if TYPE_CHECKING:
    import polars as pl

    from foreknow.audits.chunking import Done


@contextmanager
def server_of(
    config: AuditConfig, given: prepare.Input, address: Address, known: object = None
) -> Iterator[ServerModel]:
    """Connect to the server that an audit asks. `known`: the server's identity as the run folder has it, if any.

    Raises ModelError for a missing tokenizer, and what `open_server` raises.
    """
    patience = {key: getattr(config, key) for key in ("timeout", "retries", "backoff", "concurrency", "per_minute")}
    endpoint = Endpoint(address.url, address.name, **patience)
    name = config.tokenizer or address.name
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    prompter = Prompter(tokenizer, given.template, config.chat_template, config.bos)
    with open_server(endpoint, prompter, config.top_k, tokenizer_name=name, known=known) as server:
        yield server


def job_at_server(config: AuditConfig, given: prepare.Input, server: ServerModel) -> prepare.Job:
    """The work done by a server, chunk by chunk. Raises ConfigError where the protocol is not one it can answer.

    Rows with long answers are left without a score: a server tells too little to compute one.
    """
    draw = prepare.drawn(config, given, server.tokenizer)
    prompter = Prompter(server.tokenizer, draw.template, config.chat_template, config.bos)
    probing, reasons = _probing(config, server, prompter, draw)
    prepare.tell(given, draw, prompter, reasons)
    found = fluency_at(server, config.batch_prompts)
    say_fluency(found, say)
    fluency = found.summary
    if draw.long.height:
        say(f"{draw.long.height:,} rows have long answers; a server cannot score them, they are left without a score")

    def results(left: prepare.Numbered) -> Iterable[Done]:
        from foreknow.audits.chunking import one_by_one

        yield from one_by_one(probing, left)
        for trouble, count in sorted(getattr(getattr(probing.prober, "engine", None), "tally", {}).items()):
            say(f"server: {count:,} {trouble}")

    return prepare.Job(
        {"name": server.address.name, "fingerprint": server.fingerprint, "folder": None, "note": NOTE},
        server.tokenizer,
        draw._replace(long=draw.long.clear()),
        {**prepare.protocol_of(config, draw, prompter, "server", "unknown"), "server": reasons},
        results,
        _nothing,
        lambda _: None,
        lambda: fluency,
    )


def estimate_at_server(
    config: AuditConfig,
    given: prepare.Input,
    server: ServerModel,
    measured: int = 2,
) -> dict[str, Any]:
    """What an audit would ask of a server, from a burst of so many rows that are really asked. Writes nothing.

    Returns rows, prompts, measured_rows, and what `server_model.estimate` returns, with `config.prices` the cost.
    """
    draw = prepare.drawn(config, given, server.tokenizer)
    prompter = Prompter(server.tokenizer, draw.template, config.chat_template, config.bos)
    probing, _ = _probing(config, server, prompter, draw)
    burst = draw.rows.sort(draw.rows["question"].str.len_chars()).slice(draw.rows.height // 2, measured)
    before = server.used
    if burst.height:
        probing.prober.probe(burst)
    spent = Used(*(now - then for now, then in zip(server.used, before, strict=True)))
    return {
        "rows": draw.rows.height,
        "prompts": draw.rows.height * config.exemplar_sets,
        "measured_rows": burst.height,
        **estimate(spent, burst.height, draw.rows.height, config.prices),
    }


def _nothing(_: prepare.Numbered) -> Iterable[tuple[int, pl.DataFrame]]:
    return ()


def _probing(
    config: AuditConfig, server: ServerModel, prompter: Prompter, draw: prepare.Draw
) -> tuple[prepare.Probing, list[str]]:
    """What probes, and what was found out and chosen for it."""
    from foreknow.probing.engine import Sampling
    from foreknow.probing.probe import Prober
    from foreknow.probing.sample import Sampler
    from foreknow.servers.answers import ServerAnswers, discover_drawing

    sampling = Sampling(config.temperature, config.top_k)
    settings = prepare.search_settings(config)
    sampled, batch = config.protocol == "sampled", config.batch_prompts
    engine: Any = None if sampled else server.engine(sampling, batch)
    prober = Prober(engine, prompter, prompter.ended(server.vocabulary), draw.exemplars, settings, draw.heads)
    if not sampled:
        return prepare.Probing(prober, prompter, "server", None), list(server.reasons)
    drawing = discover_drawing(server.asking, sampling)
    answers = ServerAnswers(
        server.asking, server.can, drawing, server.spelling.text, config.temperature, batch if server.can.many else 1
    )
    reasons = [*server.reasons, drawing.reason(config.top_k)]
    return prepare.Probing(Sampler(prober, answers, config.seed), prompter, "server", None), reasons
