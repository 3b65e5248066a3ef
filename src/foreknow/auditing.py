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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

import foreknow
from foreknow import models, slick
from foreknow.config import AuditConfig
from foreknow.errors import ConfigError, GateCrossed, InputError, ResourceError
from foreknow.outcome import parted, rows_frame, summarise
from foreknow.prepare import Input, Probes, Stage, flag_long, identity_of, prepared, read_input, sized
from foreknow.progress import duration, meter, say
from foreknow.runs import RunFolder, fingerprint, hold, write_folder, write_frame, write_json, write_text, write_whole
from foreknow.spans import LONG

if TYPE_CHECKING:
    from foreknow.probe import Chunk

LABELS = ("category", "p_greedy", "p_sampled", "p_hit", "model_answer", "flags")
"""What the annotated file gets beside its own columns."""
LONG_LABELS = ("answer_tokens", "logprob", "logprob_alone", "n_facts", "unknown_facts", "facts_category")
"""What it gets besides where rows have long answers or short facts of their own."""
LONG_ROWS = 32
"""Rows with long answers that are scored and saved at once."""

COST: dict[str, pl.DataType] = {"seconds": pl.Float64(), "rows": pl.Int64(), "halved": pl.Int64()}
"""A finished chunk's cost; `halved`: how often its batches were halved for want of memory."""


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
        path = self.folder / "chance.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def forecast(self) -> dict[str, Any] | None:
        """What training on a mix of these rows would do, where `foreknow forecast` was asked."""
        path = self.folder / "forecast.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

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


def open_audit(folder: Path) -> Audit:
    """A finished audit's folder. Raises InputError where there is none."""
    if not (folder / "manifest.json").is_file() or not (folder / "rows.parquet").is_file():
        raise InputError(f"{folder}: not a finished audit (no manifest.json); run foreknow audit --out {folder}")
    return Audit(folder)


def run(config: AuditConfig) -> Audit:
    """Audit as `config` says and return the finished audit; an interrupted one goes on where it stopped.

    Raises GateCrossed after everything is written, and the other errors of `foreknow.errors`.
    """
    if config.out is None:
        raise ConfigError("--out: missing; name the folder to write")
    given = read_input(config)
    with hold(config.out) as folder:
        device, dtype = models.computing_on(config.device, config.dtype)
        model_folder = models.resolve(config.model, say=say, trust_remote_code=config.trust_remote_code)
        config = sized(config, device)
        identity = identity_of(config, given, models.fingerprint(model_folder.folder), device, dtype)
        if folder.begin(identity, config.resolved()):
            say(f"{config.out}: this audit is complete; nothing to do")
        else:
            _compute(config, given, folder, identity)
        audit = Audit(folder.path)
    if config.chance:  # takes the folder itself
        from foreknow.nulls import chance_of

        chance_of(audit)
        audit.report()
    audit.gate(config.max_unknown)
    return audit


def _compute(config: AuditConfig, given: Input, folder: RunFolder, identity: dict[str, Any]) -> None:
    from foreknow.probe import chunks

    with prepared(config, given) as stage:
        write_json(folder.path / "exemplars.json", stage.drawn.as_json())
        plan = chunks(stage.rows, int(config.chunk_rows or 128))
        _run_chunks(plan, stage, folder)
        _score_long(stage, config, folder)
        _write(config, given, stage, folder, identity)


def _run_chunks(plan: list[pl.DataFrame], stage: Stage, folder: RunFolder) -> None:
    """Probe the chunks that are not finished."""
    from foreknow.ordered import release_memory

    left = [n for n in range(len(plan)) if any(folder.chunk(n, part) is None for part in ("probes", "answers", "cost"))]
    if len(left) < len(plan):
        say(f"{len(plan) - len(left)} of {len(plan)} chunks are finished; going on")
    with meter("probing", sum(plan[n].height for n in left)) as done:
        for n in left:
            began = time.monotonic()
            chunk, times = _with_less_memory(stage, plan[n])
            folder.keep(n, "probes", chunk.probes)
            folder.keep(n, "answers", chunk.answers)
            cost = [{"seconds": time.monotonic() - began, "rows": plan[n].height, "halved": times}]
            folder.keep(n, "cost", pl.DataFrame(cost, schema=COST))
            done.advance(plan[n].height)
            del chunk
            release_memory()


def _with_less_memory(stage: Stage, rows: pl.DataFrame) -> tuple[Chunk, int]:
    """Probe a chunk; out of memory, with batches half as large, down to 64 tokens."""
    import torch

    engine = stage.packed
    times = 0
    while True:
        try:
            return stage.prober.probe(rows), times
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            text = str(error).lower()
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "memory" not in text:
                raise
            if engine is None or engine.batch_tokens < 128:
                raise ResourceError(
                    "out of memory; finished chunks are kept. Lower --chunk-rows, or use a smaller model"
                ) from None
            engine.batch_tokens //= 2
            say(f"out of memory: going on with {engine.batch_tokens} tokens at once; bytes may differ from now on")
            times += 1


def _score_long(stage: Stage, config: AuditConfig, folder: RunFolder) -> None:
    """Score the long answers that are not scored yet."""
    from foreknow.longform import LongScorer

    parts = [stage.long.slice(start, LONG_ROWS) for start in range(0, stage.long.height, LONG_ROWS)]
    left = [n for n in range(len(parts)) if folder.chunk(n, "long") is None]
    if not left:
        return
    scorer = LongScorer(stage.loaded.model, stage.prompter, batch_tokens=int(config.batch_tokens or 2048))
    with meter("scoring long answers", sum(parts[n].height for n in left)) as done:
        for n in left:
            folder.keep(n, "long", scorer.score(parts[n]))
            done.advance(parts[n].height)


def _write(config: AuditConfig, given: Input, stage: Stage, folder: RunFolder, identity: dict[str, Any]) -> None:
    """Assemble the outputs from the finished chunks; the manifest comes last."""
    out = folder.path
    probes = folder.gather("probes", slick.PROBES).sort("row", "exemplar_set")
    cost = folder.gather("cost", COST)
    labelled = slick.label(
        probes, samples=config.samples, sampled=config.protocol == "sampled", lenient=config.match == "lenient"
    )
    every = flag_long(given.every, stage.loaded.tokenizer, config.max_answer_tokens)
    chosen = pl.concat([given.audited["row"], given.shorts["row"]])
    audited = every.filter(pl.col("row").is_in(chosen.implode()))
    probed = rows_frame(audited, labelled, folder.gather("answers", slick.MODEL_ANSWERS), stage.drawn)
    rows, shorts = parted(probed, given.shorts, folder.gather("long", LONG))
    seconds = float(cost["seconds"].sum())
    summary = {
        **summarise(rows, shorts),
        "protocol": stage.protocol,
        "model": {
            **{key: getattr(stage.loaded, key) for key in ("name", "fingerprint", "folder", "note")},
        },
        "data": {
            "name": given.facts.name,
            "layout": given.facts.layout,
            "reason": given.facts.reason,
            "fingerprint": identity["data"],
            "rows_in_file": given.facts.total,
            **({"licences": given.licences} if given.licences else {}),
        },
        "seconds": seconds,
        "rows_per_second": int(cost["rows"].sum()) / seconds if seconds else 0.0,
        "version": foreknow.__version__,
    }
    write_frame(out / "probes.parquet", probes)
    write_frame(out / "rows.parquet", rows)
    if not shorts.is_empty():
        write_frame(out / "facts.parquet", shorts)
    more = LONG_LABELS if stage.long.height or not shorts.is_empty() else ()
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
            "model": {"name": stage.loaded.name, "fingerprint": stage.loaded.fingerprint},
            "rows": fingerprint(rows.select("row", "category", "p_greedy", "p_sampled", "p_hit")),
            "versions": models.library_versions(),
            "engine": stage.engine,
            "chunks_with_halved_batches": cost.filter(pl.col("halved") > 0).height,
        }
    )


def estimate(config: AuditConfig) -> dict[str, Any]:
    """What an audit would cost, from one chunk probed twice: with its exemplar prefixes, and without.

    Writes nothing. Returns rows, prompts, tokens computed, memory, seconds.
    """
    import psutil

    from foreknow.probe import chunks

    given = read_input(config)
    config = sized(config, models.computing_on(config.device, config.dtype)[0])
    with prepared(config, given) as stage:
        if stage.rows.is_empty():
            return {
                "rows": 0,
                "not_probed": given.audited.height + given.shorts.height,
                "prompts": 0,
                "tokens": 0,
                "seconds": 0.0,
            }
        plan = chunks(stage.rows, int(config.chunk_rows or 128))
        burst = plan[len(plan) // 2]
        if config.protocol == "sampled":
            burst = burst.head(2)
        first, again = _timed(stage.prober, burst), _timed(stage.prober, burst)
        groups = burst["group"].n_unique()
        prefixes = max(first - again, 0.0) / groups * stage.rows["group"].n_unique()
        seconds = prefixes + again / burst.height * stage.rows.height
        found, prompts = stage.prober.prompts(burst)
        own = sum(len(p.own) for some in prompts for p in some)
        own += sum(len(row.tree) for row in found) * config.exemplar_sets
        families = {p.family for some in prompts for p in some}
        shared = sum(len(ids) for family in families for ids in family) / groups * stage.rows["group"].n_unique()
        memory = psutil.Process().memory_info().rss / 2**30
    return {
        "rows": stage.rows.height,
        "not_probed": given.audited.height + given.shorts.height - stage.rows.height,
        "long_answers": stage.long.height,
        "prompts": stage.rows.height * config.exemplar_sets,
        "tokens": round(own / burst.height * stage.rows.height + shared),
        "memory_gib": round(memory, 2),
        "seconds": round(seconds, 1),
        "time": duration(seconds),
        "measured_rows": burst.height,
        "rows_per_second": round(stage.rows.height / seconds, 2),
    }


def _timed(prober: Probes, rows: pl.DataFrame) -> float:
    began = time.monotonic()
    prober.probe(rows)
    return time.monotonic() - began
