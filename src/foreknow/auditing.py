"""The audit: label each row of a file by what the model knows, and write the run folder.

    facts -> exemplars -> probe (or sample) -> slick -> rows, probes, summary, report

Everything that can be refused is refused before a weight is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import polars as pl

import foreknow
from foreknow import default_facts, exemplars, facts, models, slick
from foreknow.config import DEFAULT_FACTS, AuditConfig
from foreknow.errors import ConfigError, GateCrossed, InputError, ResourceError
from foreknow.progress import duration, meter, say
from foreknow.prompts import PAPER, Prompter, Template, read_template
from foreknow.runs import RunFolder, fingerprint, hold, write_frame, write_json, write_text, write_whole
from foreknow.templates import read_templates

if TYPE_CHECKING:
    from foreknow.probe import Chunk, Prober

LABELS = ("category", "p_greedy", "p_sampled", "p_hit", "model_answer", "flags")
"""What the annotated file gets beside its own columns."""


@dataclass(frozen=True)
class Audit:
    """A finished audit: a view of its run folder."""

    folder: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """One line per input row: category, probabilities, flags (design, section 3)."""
        return pl.read_parquet(self.folder / "rows.parquet")

    @cached_property
    def probes(self) -> pl.DataFrame:
        """One line per row and exemplar set (`slick.PROBES`)."""
        return pl.read_parquet(self.folder / "probes.parquet")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, shares, protocol, model, cost."""
        import json

        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return found

    def report(self, *, show_rows: bool = True) -> Path:
        """Write `report.html` again and return its path. `show_rows=False` leaves out every text of a row."""
        from foreknow.report import render_audit

        path = self.folder / "report.html"
        write_text(path, render_audit(self.rows, self.probes, self.summary, show_rows=show_rows))
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


class _Input(NamedTuple):
    facts: facts.Facts
    audited: pl.DataFrame
    pool: pl.DataFrame | None
    template: Template


def run(config: AuditConfig) -> Audit:
    """Audit as `config` says and return the finished audit; an interrupted one goes on where it stopped.

    Raises GateCrossed after everything is written, and the other errors of `foreknow.errors`.
    """
    if config.out is None:
        raise ConfigError("--out: missing; name the folder to write")
    given = _read(config)
    with hold(config.out) as folder:
        device, dtype = models.computing_on(config.device, config.dtype)
        model_folder = models.resolve(config.model, say=say, trust_remote_code=config.trust_remote_code)
        config = _sized(config, device)
        identity = _identity(config, given, models.fingerprint(model_folder.folder), device, dtype)
        if folder.begin(identity, config.resolved()):
            say(f"{config.out}: this audit is complete; nothing to do")
        else:
            _compute(config, given, folder, identity)
    audit = Audit(config.out)
    audit.gate(config.max_unknown)
    return audit


def _read(config: AuditConfig) -> _Input:
    """The input and what goes with it, checked."""
    template = read_template(config.prompt_template) if config.prompt_template else PAPER
    if config.data == DEFAULT_FACTS and not Path(config.data).exists():
        if config.map or config.templates or config.group_by not in (None, "relation"):
            raise ConfigError("--map, --templates and --group-by are for data files; the packaged facts need none")
        table = default_facts.read_default()
    else:
        table = facts.read_facts(
            Path(config.data),
            columns=config.map,
            templates=read_templates(config.templates) if config.templates else None,
            group_by=config.group_by,
            strict_rows=config.strict_rows,
        )
    pool = facts.read_facts(config.exemplars).rows if config.exemplars else None
    limit = config.limit or table.rows.height
    audited = facts.take(table.rows, limit, config.seed) if limit < table.rows.height else table.rows
    return _Input(table, audited, pool, template)


_NO_IDENTITY = {
    *("data", "out", "model", "exemplars", "templates", "prompt_template", "config"),
    *("max_unknown", "dry_run", "dtype", "device", "map", "trust_remote_code", "strict_rows", "group_by"),
}
"""Settings that name a file whose content counts instead, or do not change a result."""


def _identity(config: AuditConfig, given: _Input, model: str, device: str, dtype: str) -> dict[str, Any]:
    return {
        "data": fingerprint(given.facts.rows),
        "exemplars": None if given.pool is None else fingerprint(given.pool),
        "prompt_template": [given.template.instruction, given.template.shot, given.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def _sized(config: AuditConfig, device: str) -> AuditConfig:
    """Fill in the batch plan: a matter of the kind of device, never of free memory or load."""
    gpu = device.startswith("cuda")
    return config.model_copy(
        update={
            "batch_tokens": config.batch_tokens or (16384 if gpu else 1024),
            "chunk_rows": config.chunk_rows or (512 if gpu else 64),
        }
    )


class _Stage(NamedTuple):
    """All that probes: ready to take chunks."""

    loaded: models.Loaded
    prober: _Probes
    drawn: exemplars.Exemplars
    rows: pl.DataFrame
    engine: str
    protocol: dict[str, Any]


class _Probes(Protocol):
    def probe(self, rows: pl.DataFrame) -> Chunk: ...


@contextmanager
def _ready(config: AuditConfig, given: _Input) -> Iterator[_Stage]:
    """Load the model, draw the exemplars, choose the engine, and say why."""
    from foreknow.engine import PackedEngine, PlainEngine, Sampling
    from foreknow.packed import PackedModel, UnsupportedModel
    from foreknow.probe import Prober, Settings

    loaded = models.load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        say=say,
    )
    prompter = Prompter(loaded.tokenizer, given.template, config.chat_template, config.bos)
    every = _flag_long(given.facts.rows, prompter, config.max_answer_tokens)
    audited = every.filter(pl.col("row").is_in(given.audited["row"].implode()))
    usable = audited.filter(facts.USABLE & ~pl.col("flags").list.contains("long_answer"))
    pool = None if given.pool is None else _flag_long(given.pool, prompter, config.max_answer_tokens)
    drawn = exemplars.draw(
        every,
        sorted(usable["group"].unique()),
        shots=config.shots,
        sets=config.exemplar_sets,
        seed=config.seed,
        pool=pool,
        audited=usable["row"],
    )
    vocabulary = models.vocabulary_of(loaded)
    sampling = Sampling(config.temperature, config.top_k)
    settings = Settings(
        samples=config.samples,
        tolerance=config.tolerance,
        max_expansions=config.max_expansions,
        max_answer_tokens=config.max_answer_tokens,
        lenient=config.match == "lenient",
    )
    choices = prompter.choices
    for reason in (given.facts.reason, *loaded.reasons, _prompt_reason(choices), drawn.reason, *drawn.notes):
        say(reason)
    with ExitStack() as stack:
        try:
            packed = stack.enter_context(PackedModel(loaded.model).attached())
            _verify(packed, prompter)
            engine: PackedEngine | PlainEngine = PackedEngine(packed, sampling, int(config.batch_tokens or 1024))
            kind = "packed"
        except UnsupportedModel as why:
            stack.close()
            engine, kind = PlainEngine(loaded.model, sampling), "plain"
            say(f"plain forward passes, about ten times slower: {why}")
        prober = Prober(engine, prompter, vocabulary, drawn, settings)
        taken: _Probes = prober
        if config.protocol == "sampled":
            stack.close()
            taken, kind = stack.enter_context(_sampler(loaded, prober, sampling, config)), "generate"
        protocol = {
            "name": config.protocol,
            **{k: getattr(config, k) for k in ("shots", "exemplar_sets", "samples", "temperature", "top_k")},
            **{k: getattr(config, k) for k in ("match", "tolerance", "max_expansions", "max_answer_tokens", "seed")},
            **choices,
            "engine": kind,
            "dtype": loaded.dtype,
            "device": loaded.device,
            "exemplars": drawn.reason,
        }
        yield _Stage(loaded, taken, drawn, usable, kind, protocol)


@contextmanager
def _sampler(loaded: models.Loaded, prober: Prober, sampling: Any, config: AuditConfig) -> Iterator[_Probes]:
    from foreknow.sample import Generator, Sampler, exact_head

    with exact_head(loaded.model):
        batch = 256 if loaded.device.startswith("cuda") else 64
        yield Sampler(prober, Generator(loaded.model, prober.vocabulary, sampling, batch), config.seed)


def _prompt_reason(choices: dict[str, Any]) -> str:
    how = "through the tokenizer's chat template" if choices["chat_template"] else "as plain text, no chat template"
    bos = "with" if choices["bos_in_prompt"] else "without"
    why = "as the tokenizer does it" if choices["bos"] == "auto" else f"--bos {choices['bos']}"
    return f"prompts are written {how}, {bos} a beginning-of-sequence token ({why})"


def _verify(packed: Any, prompter: Prompter) -> None:
    """Compare the packed pass with the model's own on a small prompt."""
    shown = [exemplars.Exemplar("What is the capital of France?", "Paris", None)]
    one = prompter.ids([prompter.text(shown, "What is the capital of Peru?")])[0]
    cut = len(one) // 2
    packed.verify(one[:cut], one[cut:])


def _flag_long(rows: pl.DataFrame, prompter: Prompter, most: int) -> pl.DataFrame:
    """Flag rows whose gold has more than `most` tokens: they are never silently called Unknown."""
    golds = rows["answers"].list.first().fill_null("").to_list()
    lengths: list[int] = []
    for start in range(0, len(golds), 4096):
        part = [g[: most * 64] for g in golds[start : start + 4096]]
        lengths += [len(ids) for ids in prompter.tokenizer(part, add_special_tokens=False)["input_ids"]]
    # a text longer than 64 characters a token is long whatever its tokens
    long = pl.Series([n > most or len(g) > most * 64 for n, g in zip(lengths, golds, strict=True)], dtype=pl.Boolean)
    return _add_flag(rows, "long_answer", long)


def _add_flag(rows: pl.DataFrame, flag: str, where: pl.Series | pl.Expr) -> pl.DataFrame:
    more = pl.when(where).then(pl.col("flags").list.concat(pl.lit([flag]))).otherwise(pl.col("flags"))
    return rows.with_columns(flags=more.list.unique().list.sort())


def _compute(config: AuditConfig, given: _Input, folder: RunFolder, identity: dict[str, Any]) -> None:
    from foreknow.probe import chunks

    with _ready(config, given) as stage:
        write_json(folder.path / "exemplars.json", stage.drawn.as_json())
        plan = chunks(stage.rows, int(config.chunk_rows or 64))
        waived = _run_chunks(plan, stage, folder)
        _write(config, given, stage, folder, len(plan), waived, identity)


def _run_chunks(plan: list[pl.DataFrame], stage: _Stage, folder: RunFolder) -> list[dict[str, int]]:
    """Probe the chunks that are not finished. Returns where a batch had to be halved for memory."""
    left = [n for n in range(len(plan)) if folder.chunk(n, "cost") is None]
    if len(left) < len(plan):
        say(f"{len(plan) - len(left)} of {len(plan)} chunks are finished; going on")
    halved = []
    with meter("probing", sum(plan[n].height for n in left)) as done:
        for n in left:
            began = time.monotonic()
            chunk, times = _with_less_memory(stage, plan[n])
            if times:
                halved.append({"chunk": n, "times": times})
            folder.keep(n, "probes", chunk.probes)
            folder.keep(n, "answers", chunk.answers)
            cost = pl.DataFrame({"seconds": [time.monotonic() - began], "rows": [plan[n].height], "halved": [times]})
            folder.keep(n, "cost", cost)
            done.advance(plan[n].height)
    return halved


def _with_less_memory(stage: _Stage, rows: pl.DataFrame) -> tuple[Chunk, int]:
    """Probe a chunk; out of memory, with batches half as large, down to 64 tokens."""
    import torch

    engine = getattr(stage.prober, "engine", None)
    times = 0
    while True:
        try:
            return stage.prober.probe(rows), times
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            text = str(error).lower()
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "memory" not in text:
                raise
            tokens = getattr(engine, "batch_tokens", 0)
            if tokens < 128:
                raise ResourceError(
                    "out of memory; finished chunks are kept. Lower --chunk-rows, or use a smaller model"
                ) from None
            say(f"out of memory: going on with batches of {tokens // 2} tokens; bytes may differ from an undisturbed run")
            engine.batch_tokens = tokens // 2
            times += 1


def _write(
    config: AuditConfig,
    given: _Input,
    stage: _Stage,
    folder: RunFolder,
    count: int,
    waived: list[dict[str, int]],
    identity: dict[str, Any],
) -> None:
    """Assemble the outputs from the finished chunks; the manifest comes last."""

    def gather(part: str) -> pl.DataFrame:
        return pl.concat([c for n in range(count) if (c := folder.chunk(n, part)) is not None])

    if count:
        probes, answers, cost = gather("probes"), gather("answers"), gather("cost")
    else:
        from foreknow.probe import MODEL_ANSWERS

        probes, answers = pl.DataFrame(schema=slick.PROBES), pl.DataFrame(schema=MODEL_ANSWERS)
        cost = pl.DataFrame(schema={"seconds": pl.Float64, "rows": pl.Int64, "halved": pl.Int64})
    probes, answers = probes.sort("row", "exemplar_set"), answers.sort("row")
    rows = _rows(config, given, stage, probes, answers)
    out = folder.path
    write_frame(out / "probes.parquet", probes)
    write_frame(out / "rows.parquet", rows)
    labels = rows.select("row", *LABELS)
    write_whole(out / f"annotated{given.facts.suffix}", lambda part: given.facts.annotate(labels, part))
    write_json(out / "summary.json", _summary(given, stage, rows, cost))
    audit = Audit(out)
    audit.report()
    folder.finish(
        {
            "foreknow": foreknow.__version__,
            "stage": "audit",
            "identity": identity,
            "model": {"name": stage.loaded.name, "fingerprint": stage.loaded.fingerprint},
            "rows": fingerprint(rows.select("row", "category", "p_greedy", "p_sampled", "p_hit")),
            "versions": models.library_versions(),
            "engine": stage.engine,
            "halved_batches": waived or cost.filter(pl.col("halved") > 0).height,
        }
    )


def _rows(
    config: AuditConfig, given: _Input, stage: _Stage, probes: pl.DataFrame, answers: pl.DataFrame
) -> pl.DataFrame:
    """The contract of `rows.parquet`: every audited row, labelled or not, in input order."""
    labelled = slick.label(
        probes,
        samples=config.samples,
        sampled=config.protocol == "sampled",
        lenient=config.match == "lenient",
    )
    numbers = given.audited["row"].implode()
    # rows that cannot be probed keep their place: no category, and a flag that says why
    every = _flag_long(given.facts.rows, Prompter(stage.loaded.tokenizer), config.max_answer_tokens)
    rows = every.filter(pl.col("row").is_in(numbers))
    rows = rows.join(labelled, on="row", how="left").join(answers, on="row", how="left").sort("row")
    shown = {
        group: ({e.answer for one in g.sets for e in one}, {exemplars.key(e) for one in g.sets for e in one})
        for group, g in stage.drawn.groups.items()
    }
    marks = {"answer_in_exemplars": [], "seen_in_exemplars": [], "few_exemplars": []}  # type: dict[str, list[bool]]
    for question, answer_list, subject, group, category in rows.select(
        "question", "answers", "subject", "group", "category"
    ).iter_rows():
        golds, facts_shown = shown.get(group, (set(), set()))
        labelled_row = category is not None
        marks["answer_in_exemplars"].append(labelled_row and answer_list[0] in golds)
        own = exemplars.Exemplar(question or "", "", subject)
        marks["seen_in_exemplars"].append(labelled_row and exemplars.key(own) in facts_shown)
        marks["few_exemplars"].append(labelled_row and stage.drawn.groups[group].borrowed)
    for flag, where in marks.items():
        rows = _add_flag(rows, flag, pl.Series(where, dtype=pl.Boolean))
    rows = _add_flag(rows, "undecided", pl.col("undecided").fill_null(False))
    return rows.with_columns(answer=pl.col("answers").list.first()).select(
        *("row", "group", "relation", "subject", "split", "question", "answer", "answers"),
        *("p_greedy", "p_greedy_lenient", "p_sampled", "p_sampled_error", "p_hit", "p_hit_high", "p_hit_lenient"),
        *("category", "category_lenient", "model_answer", "popularity", "flags"),
    )


def _summary(given: _Input, stage: _Stage, rows: pl.DataFrame, cost: pl.DataFrame) -> dict[str, Any]:
    seconds = float(cost["seconds"].sum())
    labelled = rows.filter(pl.col("category").is_not_null())
    flags = rows["flags"].explode().drop_nulls().value_counts().sort("flags").iter_rows()
    floors = facts.majority_floor(rows)
    return {
        "rows": rows.height,
        "labelled": labelled.height,
        "categories": {
            "overall": slick.shares(rows["category"]),
            "by_relation": {
                str(group): slick.shares(part["category"])
                for (group,), part in labelled.group_by("group", maintain_order=True)
            },
        },
        "categories_lenient": slick.shares(rows["category_lenient"]),
        "expected_categories": slick.expected_shares(rows),
        "majority_floor": {
            group: {"floor": floor, "answer": answer, "rows": count}
            for group, floor, answer, count in floors.select("group", "floor", "majority_answer", "rows").iter_rows()
        },
        "flags": dict(flags),
        "protocol": stage.protocol,
        "model": {
            "name": stage.loaded.name,
            "fingerprint": stage.loaded.fingerprint,
            "folder": stage.loaded.folder,
            "note": stage.loaded.note,
        },
        "data": {
            "name": given.facts.name,
            "layout": given.facts.layout,
            "reason": given.facts.reason,
            "fingerprint": fingerprint(given.facts.rows),
            "rows_in_file": given.facts.rows.height,
        },
        "seconds": seconds,
        "rows_per_second": labelled.height / seconds if seconds else 0.0,
        "version": foreknow.__version__,
    }


def estimate(config: AuditConfig) -> dict[str, Any]:
    """What an audit would cost, from a burst of up to 32 rows really probed. Writes nothing."""
    import psutil

    given = _read(config)
    device, _ = models.computing_on(config.device, config.dtype)
    config = _sized(config, device)
    with _ready(config, given) as stage:
        rows = stage.rows
        burst = rows if rows.height <= 32 else facts.take(rows, 32, config.seed)
        if burst.is_empty():
            return {"rows": 0, "prompts": 0, "tokens": 0, "memory_gib": 0.0, "seconds": 0.0}
        prober = stage.prober
        inner: Any = getattr(prober, "prober", prober)
        small = burst.head(max(1, burst.height // 4)) if config.protocol == "sampled" else burst
        inner.prompts(small.head(1))
        began = time.monotonic()
        prober.probe(small)
        seconds = time.monotonic() - began
        found, prompts = inner.prompts(burst)
        own = sum(len(p.own) for some in prompts for p in some)
        own += sum(len(row.tree) for row in found) * config.exemplar_sets
        prefix = sum(len(ids) for f in {p.family for some in prompts for p in some} for ids in f)
        peak = psutil.Process().memory_info().rss / 2**30
        per_row = seconds / small.height
    return {
        "rows": rows.height,
        "not_probed": given.audited.height - rows.height,
        "prompts": rows.height * config.exemplar_sets,
        "tokens": round(own / burst.height * rows.height) + prefix,
        "memory_gib": round(peak, 2),
        "seconds": round(per_row * rows.height, 1),
        "time": duration(per_row * rows.height),
        "measured_rows": small.height,
        "rows_per_second": round(1 / per_row, 2),
    }


