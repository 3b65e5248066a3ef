"""The audit: label each row of a file by what the model knows, and write the run folder.

    prepare.py   input, model, exemplars, engine
    probe.py     every row and exemplar set (or sample.py, by generation)
    slick.py     probabilities -> categories
    outcome.py   rows and summary

Everything that can be refused is refused before a weight is read.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl

import foreknow
from foreknow.audits.chunking import COST
from foreknow.audits.outcome import parted, rows_frame, summarise
from foreknow.audits.prepare import Input, Job, identity_of, job_here, read_input, sized
from foreknow.config import AuditConfig
from foreknow.data.rows import chunks
from foreknow.errors import ConfigError, GateCrossed, InputError, RunFolderError
from foreknow.files.remote import fetched
from foreknow.files.runs import (
    RunFolder,
    fingerprint,
    hold,
    read_json,
    read_sealed,
    verify,
    write_folder,
    write_frame,
    write_json,
    write_text,
    write_whole,
)
from foreknow.lm import models
from foreknow.lm.cluster import Cluster, joined
from foreknow.lm.model_names import resolve
from foreknow.progress import meter, say
from foreknow.protocol import slick
from foreknow.protocol.spans import LONG
from foreknow.servers.model import PREFIX, Address, address_of

LABELS = ("category", "p_greedy", "p_sampled", "p_hit", "model_answer", "flags")
"""What the annotated file gets beside its own columns."""
LONG_LABELS = ("answer_tokens", "logprob", "logprob_alone", "n_facts", "unknown_facts", "facts_category")
"""What it gets besides where rows have long answers or short facts of their own."""
OUTPUTS = (
    *("config.yaml", "exemplars.json", "probes.parquet", "rows.parquet", "facts.parquet", "summary.json"),
    "annotated*",
)
"""What the manifest holds to a checksum."""
LONG_ROWS = 32
"""Rows with long answers that are scored and saved at once."""
SCORING: Final[dict[str, pl.DataType]] = {"seconds": pl.Float64()}
"""What scoring such a part took, by the clock."""


@dataclass(frozen=True)
class Audit:
    """A finished audit: a view of its run folder."""

    folder: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """One line per input row: category, probabilities, flags (design, section 3)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def facts(self) -> pl.DataFrame | None:
        """One line per short fact that rows brought along, if any did: as `rows`, with `parent` and `fact`."""
        path = self.folder / "facts.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def chance(self) -> dict[str, Any] | None:
        """What guessing would score (`nulls.summarise`), where `--chance` was asked for."""
        return _added(self.folder / "chance.json", "foreknow audit --chance")

    @cached_property
    def forecast(self) -> dict[str, Any] | None:
        """What training on a mix of these rows would do, where `foreknow forecast` was asked."""
        return _added(self.folder / "forecast.json", "foreknow forecast")

    @cached_property
    def probes(self) -> pl.DataFrame:
        """One line per row and exemplar set (`slick.PROBES`)."""
        return pl.read_parquet(self.folder / "probes.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, shares, protocol, model, cost."""
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return found

    def report(self, *, show_rows: bool = True) -> Path:
        """Write `report.html` again and return its path. `show_rows=False` leaves out every text of a row."""
        from foreknow.report import render_audit

        path = self.folder / "report.html"
        beside = {"chance": self.chance, "forecast": self.forecast}
        page = render_audit(self.rows, self.probes, self.summary, self.facts, **beside, show_rows=show_rows)
        write_text(path, page)
        return path

    def gate(self, max_unknown: float | None) -> None:
        """Raise GateCrossed if a larger share of the labelled rows than `max_unknown` is Unknown."""
        share = self.summary["categories"]["overall"][slick.UNKNOWN]
        if max_unknown is not None and share > max_unknown:
            raise GateCrossed(
                f"--max-unknown {max_unknown}: {share:.1%} of the labelled rows are Unknown; all outputs are in "
                f"{self.folder}"
            )


def _added(path: Path, command: str) -> dict[str, Any] | None:
    """What `command` added to a finished audit, None where it was not asked to. Raises InputError where it changed."""
    try:
        return read_sealed(path)
    except RunFolderError:
        raise InputError(f"{path}: damaged or edited; delete it and run {command} again") from None


def open_audit(folder: str | Path) -> Audit:
    """A finished audit's folder. Raises InputError where there is none, or a file of it was changed since."""
    folder = fetched(folder)
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder}: not a finished audit (no manifest.json); run foreknow audit --out {folder}")
    verify(folder)
    if not (folder / "rows.parquet").is_file():
        raise InputError(f"{folder}: not a finished audit (no rows.parquet); run foreknow audit --out {folder}")
    if "earlier_turns" not in pl.read_parquet_schema(folder / "rows.parquet"):
        raise InputError(
            f"{folder}: made by an older foreknow (rows.parquet has no column earlier_turns); delete it and run "
            f"foreknow audit --out {folder} again"
        )
    return Audit(folder)


def run(config: AuditConfig) -> Audit:
    """Audit as `config` says and return the finished audit; an interrupted one goes on where it stopped.

    Raises GateCrossed after everything is written, and the other errors of `foreknow.errors`.
    """
    if config.out is None:
        raise ConfigError("--out: missing; name the folder to write")
    if (address := address_of(config.model)) is not None:
        audit = _run_at_server(config, config.out, address)
        audit.gate(config.max_unknown)
        return audit
    given = read_input(config)
    with hold(config.out) as folder, joined(config) as cluster:
        computing_on = cluster.computing_on if cluster else models.computing_on
        device, dtype = computing_on(config.device, config.dtype)
        model_folder = resolve(config.model, say, config.trust_remote_code, base=config.base)
        config = sized(config, device, dtype, model_folder.folder)
        identity = identity_of(config, given, model_folder.fingerprint, device, dtype)
        if folder.begin(identity, config.resolved()):
            say(f"{config.out}: this audit is complete; nothing to do")
            if warning := (Audit(folder.path).summary["model"].get("fluency") or {}).get("warning"):
                say(f"warning: {warning}")
        else:
            with _job(config, given, identity, cluster) as job:
                _compute(config, given, folder, identity, job)
        audit = Audit(folder.path)
    if config.chance:  # takes the folder itself
        from foreknow.audits.nulls import chance_of

        chance_of(audit)
        audit.report()
    audit.gate(config.max_unknown)
    return audit


def _run_at_server(config: AuditConfig, out: Path, address: Address) -> Audit:
    """The audit of a model that only a server has."""
    from foreknow.audits.on_server import job_at_server, server_of

    if config.base:
        raise ConfigError(f"--base {config.base}: names an adapter's base; --model {PREFIX}... names a server's")
    if config.ray or config.ray_address or config.chance:
        flag = "--chance" if config.chance else "--ray"
        raise ConfigError(f"{flag}: needs a model's weights; --model {PREFIX}... names a server's")
    given = read_input(config)
    with hold(out) as folder:
        known = (folder.manifest or read_json(folder.path / ".run.json") or {}).get("identity", {}).get("model")
        with server_of(config, given, address, known) as server:
            identity = identity_of(config, given, server.identity, "server", "unknown")
            if folder.begin(identity, config.resolved()):
                say(f"{out}: this audit is complete; nothing to do")
            else:
                _compute(config, given, folder, identity, job_at_server(config, given, server))
    return Audit(folder.path)


def _job(
    config: AuditConfig, given: Input, identity: dict[str, Any], cluster: Cluster | None
) -> AbstractContextManager[Job]:
    """Who does the work: this process, or a cluster's."""
    if cluster is None:
        return job_here(config, given)
    from foreknow.audits.on_ray import job_on_ray

    return job_on_ray(config, given, identity, cluster)


def _compute(config: AuditConfig, given: Input, folder: RunFolder, identity: dict[str, Any], job: Job) -> None:
    write_json(folder.path / "exemplars.json", job.draw.exemplars.as_json())
    _run_chunks(chunks(job.draw.rows, int(config.chunk_rows or 128)), job, folder)
    _score_long(job, folder)
    _write(config, given, job, folder, identity)


def _run_chunks(plan: list[pl.DataFrame], job: Job, folder: RunFolder) -> None:
    """Probe the chunks that are not finished."""
    left = [n for n in range(len(plan)) if any(folder.chunk(n, part) is None for part in ("probes", "answers", "cost"))]
    if len(left) < len(plan):
        say(f"{len(plan) - len(left)} of {len(plan)} chunks are finished; going on")
    with meter("probing", sum(plan[n].height for n in left)) as done:
        for number, chunk, cost in job.results([(n, plan[n]) for n in left]):
            folder.keep(number, "probes", chunk.probes)
            folder.keep(number, "answers", chunk.answers)
            folder.keep(number, "cost", cost)
            done.advance(plan[number].height)


def _score_long(job: Job, folder: RunFolder) -> None:
    """Score the long answers that are not scored yet."""
    parts = [job.draw.long.slice(start, LONG_ROWS) for start in range(0, job.draw.long.height, LONG_ROWS)]
    left = [n for n in range(len(parts)) if folder.chunk(n, "long") is None]
    if not left:
        return
    with meter("scoring long answers", sum(parts[n].height for n in left)) as done:
        began = time.monotonic()
        for number, frame in job.scores([(n, parts[n]) for n in left]):
            ended = time.monotonic()
            folder.keep(number, "scoring", pl.DataFrame({"seconds": [ended - began]}, schema=SCORING))
            folder.keep(number, "long", frame)
            began = ended
            done.advance(frame.height)


def _write(config: AuditConfig, given: Input, job: Job, folder: RunFolder, identity: dict[str, Any]) -> None:
    """Assemble the outputs from the finished chunks; the manifest comes last."""
    out = folder.path
    probes = folder.gather("probes", slick.PROBES).sort("row", "exemplar_set")
    cost = folder.gather("cost", COST)
    labelled = slick.label(
        probes, samples=config.samples, sampled=config.protocol == "sampled", lenient=config.match == "lenient"
    )
    chosen = pl.concat([given.audited["row"], given.shorts["row"]])
    audited = job.draw.every.filter(pl.col("row").is_in(chosen.implode()))
    probed = rows_frame(audited, labelled, folder.gather("answers", slick.MODEL_ANSWERS), job.draw.exemplars)
    rows, shorts = parted(probed, given.shorts, folder.gather("long", LONG))
    probing = float((cost["seconds"] / cost["workers"]).sum())
    scoring = float(folder.gather("scoring", SCORING)["seconds"].sum())
    engine = ", ".join(cost["engine"].unique().sort()) or "none"
    precision = job.compare(probes)
    summary = {
        **summarise(rows, shorts),
        **({"precision": precision} if precision else {}),
        "protocol": {**job.protocol, "engine": engine},
        "model": {**job.model, "fluency": job.fluency()},
        "data": {
            "name": given.facts.name,
            "layout": given.facts.layout,
            "reason": given.facts.reason,
            "fingerprint": identity["data"],
            "records": given.facts.records,
            "rows_in_file": given.facts.total,
            "left_out": dict(given.facts.left_out),
            "thoughts": given.facts.thoughts,
            **({"licences": given.licences} if given.licences else {}),
        },
        "seconds": probing + scoring,
        "rows_per_second": int(cost["rows"].sum()) / probing if probing else 0.0,
        "version": foreknow.__version__,
    }
    write_frame(out / "probes.parquet", probes)
    write_frame(out / "rows.parquet", rows)
    if not shorts.is_empty():
        write_frame(out / "facts.parquet", shorts)
    more = LONG_LABELS if job.draw.long.height or not shorts.is_empty() else ()
    labels = rows.select("row", *LABELS, *more)
    write = write_whole if given.facts.suffix else write_folder
    write(out / f"annotated{given.facts.suffix}", lambda part: given.facts.annotate(labels, part))
    write_json(out / "summary.json", summary)
    Audit(out).report()
    folder.finish(
        {
            "foreknow": foreknow.__version__,
            "stage": "audit",
            "identity": identity,
            "model": {key: job.model[key] for key in ("name", "fingerprint", "base") if key in job.model},
            "rows": fingerprint(rows.select("row", "category", "p_greedy", "p_sampled", "p_hit")),
            "versions": models.library_versions(),
            "engine": engine,
            "computed": _computed(cost),
            "chunks_with_halved_batches": cost.filter(pl.col("halved") > 0).height,
        },
        OUTPUTS,
    )


def _computed(cost: pl.DataFrame) -> list[dict[str, Any]]:
    """Each way chunks were computed in, and how many: the same bytes are promised for the same threads."""
    ways = ("ray", "workers", "threads")
    return cost.group_by(ways).agg(chunks=pl.len().cast(pl.Int64)).sort(ways, nulls_last=False).to_dicts()
