"""Getting an audit ready: read the input, load the model, draw the exemplars, choose the engine, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import polars as pl

from foreknow.audits.askable import (
    UNASKABLE,
    check_any_askable,
    exemplar_tokens,
    flag_long_prompts,
    flag_template_faults,
    flag_unspellable,
)
from foreknow.audits.short_facts import short_rows
from foreknow.checks.checking import check
from foreknow.config import AuditConfig
from foreknow.data import default_facts, facts
from foreknow.data.rows import GOLD, ROWS, USABLE, add_flag, common_heads, has_flag, with_flags
from foreknow.errors import ConfigError
from foreknow.inputs import is_packaged, read_data
from foreknow.lm import memory, models
from foreknow.lm.fluency import Fluency, check_fluency
from foreknow.progress import say
from foreknow.protocol import exemplars
from foreknow.protocol.prompts import PAPER, Prompter, Template, read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.audits.chunking import Done
    from foreknow.probing.engine import PackedEngine, Prompt, Sampling
    from foreknow.probing.probe import Chunk, Prober, Row, Settings


class Input(NamedTuple):
    """What an audit reads: the rows to label and those beside them, the exemplar pool, the prompt template.

    `audited`: rows as they came. `shorts`: the short facts that audited rows bring (`short_facts.py`).
    """

    facts: facts.Facts
    audited: pl.DataFrame
    shorts: pl.DataFrame
    pool: facts.Facts | None
    template: Template
    licences: str | None = None

    @property
    def every(self) -> pl.DataFrame:
        """All rows at hand: those of the input, then the short facts."""
        return pl.concat([self.facts.rows, self.shorts.select(*ROWS)])


def read_input(config: AuditConfig) -> Input:
    """The input and what goes with it, checked."""
    template = read_template(config.prompt_template) if config.prompt_template else PAPER
    found = read_data(config, config.limit)
    found = replace(found, rows=with_flags(found.rows, check(found.rows).flags))
    pool = (
        facts.read_facts(config.exemplars, turns=config.turns, null_words=config.null_words)
        if config.exemplars
        else None
    )
    audited = found.rows.filter(pl.col("row").is_in(found.audited.implode()))
    licences = default_facts.licences() if is_packaged(config.data) else None
    return Input(found, audited, short_rows(audited, found.total), pool, template, licences)


_NO_IDENTITY: Final = {
    *("data", "out", "model", "base", "exemplars", "templates", "prompt_template", "config"),
    *(
        "max_unknown",
        "chance",
        "dry_run",
        "dtype",
        "device",
        "map",
        "layout",
        "turns",
        "null_words",
        "trust_remote_code",
        "strict_rows",
        "group_by",
    ),
    *("ray", "ray_address", "ray_workers"),
    *("timeout", "retries", "backoff", "concurrency", "per_minute", "batch_prompts", "prices", "rows"),
}
"""Settings that name a file whose content counts instead, or do not change a result."""


def identity_of(
    config: AuditConfig, given: Input, model: str | dict[str, Any], device: str, dtype: str
) -> dict[str, Any]:
    """What makes two audits the same run: contents and settings, never names of files."""
    return {
        "data": given.facts.digest,
        "exemplars": None if given.pool is None else given.pool.digest,
        "prompt_template": [given.template.instruction, given.template.shot, given.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
    }


def sized(config: AuditConfig, device: str, dtype: str, folder: Path) -> AuditConfig:
    """Fill in the batch plan: a matter of the model and the kind of device, never of free memory or load.

    `folder`: the model's. Where workers elsewhere have the GPUs, the plan is that of a large one.
    """
    sizes = memory.Sizes(2048, 128)
    if device.startswith("cuda"):
        sizes = memory.MOST
        if gpu := models.gpu_memory(config.device):
            plan = memory.planned(
                folder, dtype, gpu.total, sets=config.exemplar_sets, shots=config.shots, gpus=gpu.gpus
            )
            sizes = plan.sizes
            say(plan.line)
            if plan.needs and (line := memory.tight(plan.needs, gpu.free)):
                say(line)
    return config.model_copy(
        update={
            "batch_tokens": config.batch_tokens or sizes.batch_tokens,
            "chunk_rows": config.chunk_rows or sizes.chunk_rows,
        }
    )


LARGEST_PROMPT: Final = 2**17
"""Tokens of a prompt at most, where the model's config does not say."""


class Probes(Protocol):
    """What probes chunks: `Prober`, or `Sampler` in its place."""

    def probe(self, rows: pl.DataFrame) -> Chunk:
        """Probe rows that have a question and answers."""
        ...

    def prompts(self, rows: pl.DataFrame) -> tuple[list[Row], list[list[Prompt]]]:
        """Each row made ready, and its prompts."""
        ...


class Draw(NamedTuple):
    """The prompts of an audit, before a model answers them: rows to probe, rows with long answers, exemplars.

    `heads`: how a group's questions begin. `every`: all rows, with the flags of those that cannot be asked. `notes`:
    lines about rows that the chat template refuses. All values are plain, so that another process can be given them.
    """

    template: Template
    exemplars: exemplars.Exemplars
    rows: pl.DataFrame
    long: pl.DataFrame
    heads: dict[str, str]
    every: pl.DataFrame
    notes: tuple[str, ...] = ()


class Probing(NamedTuple):
    """What probes chunks, which engine does it, and the packed engine itself where that is it."""

    prober: Probes
    prompter: Prompter
    engine: str
    packed: PackedEngine | None


class Stage(NamedTuple):
    """All that an audit computes with in this process."""

    loaded: models.Loaded
    probing: Probing
    draw: Draw
    protocol: dict[str, Any]
    fluency: Fluency


Numbered = Sequence[tuple[int, pl.DataFrame]]
"""Parts of a plan with their numbers in it."""


class Job(NamedTuple):
    """An audit's work, whoever does it: what is asked of which model, how it comes back.

    `model`: name, fingerprint, folder, note. `results` probes numbered chunks, `scores` numbered rows with long
    answers (`spans.LONG`); both give each part as it is done, in any order. `compare`: probes -> what the dtype changes
    in them (`precision.compare`). `fluency`: whether the model speaks at all (`Fluency.summary`).
    """

    model: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    draw: Draw
    protocol: dict[str, Any]
    results: Callable[[Numbered], Iterable[Done]]
    scores: Callable[[Numbered], Iterable[tuple[int, pl.DataFrame]]]
    compare: Callable[[pl.DataFrame], dict[str, Any] | None]
    fluency: Callable[[], dict[str, Any]]


@contextmanager
def job_here(config: AuditConfig, given: Input) -> Iterator[Job]:
    """The work done by this process, part by part."""
    from foreknow.audits.chunking import one_by_one, scored
    from foreknow.audits.precision import compare

    with prepared(config, given) as stage:
        yield Job(
            stage.loaded.told,
            stage.loaded.tokenizer,
            stage.draw,
            stage.protocol,
            lambda left: one_by_one(stage.probing, left),
            lambda left: scored(stage.loaded, stage.probing.prompter, left, int(config.batch_tokens or 2048)),
            lambda probes: compare(config, stage.draw, probes, stage.loaded.dtype),
            lambda: stage.fluency.summary,
        )


@contextmanager
def prepared(config: AuditConfig, given: Input) -> Iterator[Stage]:
    """Load the model, draw the exemplars, choose the engine, and say why."""
    loaded = models.load_as_set(config)
    fluency = check_fluency(loaded, say)
    positions = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    draw = drawn(config, given, loaded.tokenizer, positions)
    with probing(config, loaded, draw) as found:
        tell(given, draw, found.prompter, loaded.reasons)
        protocol = protocol_of(config, draw, found.prompter, loaded.device, loaded.dtype)
        yield Stage(loaded, found, draw, protocol, fluency)


def tell(given: Input, draw: Draw, prompter: Prompter, reasons: Sequence[str] = ()) -> None:
    """Say what was chosen without being asked for, and why."""
    for reason in (
        given.facts.reason,
        given.facts.first_row,
        given.facts.accounted,
        *reasons,
        _prompt_reason(prompter.choices),
    ):
        say(reason)
    for reason in (draw.exemplars.reason, *draw.exemplars.notes, *prompter.notes, *draw.notes):
        say(reason)


def protocol_of(config: AuditConfig, draw: Draw, prompter: Prompter, device: str, dtype: str) -> dict[str, Any]:
    """How rows are asked, for the summary; the engine is filled in from what probed them."""
    return {
        "name": config.protocol,
        **{k: getattr(config, k) for k in ("shots", "exemplar_sets", "samples", "temperature", "top_k")},
        **{k: getattr(config, k) for k in ("match", "tolerance", "max_expansions", "max_answer_tokens", "seed")},
        **prompter.choices,
        **({"notes": list(prompter.notes)} if prompter.notes else {}),
        "engine": None,
        "dtype": dtype,
        "device": device,
        "exemplars": draw.exemplars.reason,
    }


def drawn(config: AuditConfig, given: Input, tokenizer: PreTrainedTokenizerBase, positions: int | None = None) -> Draw:
    """Which rows are probed, behind which exemplars. Needs no weights. `positions`: tokens the model can take in."""
    prompter = Prompter(tokenizer, given.template, config.chat_template, config.bos)
    most = (positions or LARGEST_PROMPT) - config.max_answer_tokens

    def flagged(rows: pl.DataFrame) -> pl.DataFrame:
        rows = flag_long(rows, tokenizer, config.max_answer_tokens)
        rows = flag_unspellable(rows, prompter, lenient=config.match == "lenient")
        return flag_long_prompts(rows, prompter, most)

    alone = flag_template_faults(given.every, prompter)
    chosen = pl.concat([given.audited["row"], given.shorts["row"]])
    check_any_askable(alone.rows.filter(pl.col("row").is_in(chosen.implode())), alone.first)
    every = flagged(alone.rows)
    audited = every.filter(pl.col("row").is_in(chosen.implode()))
    long, unaskable = has_flag("long_answer"), has_flag(*UNASKABLE)
    usable = audited.filter(USABLE & ~long & ~unaskable)
    pool = None if given.pool is None else flagged(given.pool.rows)
    found = exemplars.draw(
        every,
        sorted(usable["group"].unique()),
        shots=config.shots,
        sets=config.exemplar_sets,
        seed=config.seed,
        pool=pool,
        audited=usable["row"],
    )
    shown = flag_template_faults(every, prompter, found)
    check_any_askable(shown.rows.filter(pl.col("row").is_in(chosen.implode())), shown.first)
    every = flag_long_prompts(shown.rows, prompter, most, exemplar_tokens(prompter, found))
    fits = every.filter(~unaskable)["row"].implode()
    usable = usable.filter(pl.col("row").is_in(fits))
    scored = audited.filter(USABLE & long & ~unaskable)
    notes = (*alone.notes, *shown.notes)
    return Draw(given.template, found, usable, scored, common_heads(usable), every, notes)


def search_settings(config: AuditConfig) -> Settings:
    """What the prober is told of an audit's settings, wherever the model is."""
    from foreknow.probing.probe import Settings

    return Settings(
        samples=config.samples,
        tolerance=config.tolerance,
        max_expansions=config.max_expansions,
        max_answer_tokens=config.max_answer_tokens,
        lenient=config.match == "lenient",
    )


@contextmanager
def probing(config: AuditConfig, loaded: models.Loaded, draw: Draw) -> Iterator[Probing]:
    """The prober of a loaded model; it says what it falls back to, and why."""
    from foreknow.probing.engine import PackedEngine, PlainEngine, Sampling
    from foreknow.probing.packed import PackedModel
    from foreknow.probing.probe import Prober
    from foreknow.probing.segments import UnsupportedModel

    prompter = Prompter(loaded.tokenizer, draw.template, config.chat_template, config.bos)
    sampling, settings = Sampling(config.temperature, config.top_k), search_settings(config)
    with ExitStack() as stack:
        try:
            packed = stack.enter_context(PackedModel(loaded.model).attached())
            _verify(packed, prompter)
            engine: PackedEngine | PlainEngine = PackedEngine(packed, sampling, int(config.batch_tokens or 2048))
            kind = "packed"
        except UnsupportedModel as why:
            stack.close()
            engine, kind = PlainEngine(loaded.model, sampling), "plain"
            say(f"plain forward passes, about ten times slower: {why}")
        vocabulary = prompter.ended(models.vocabulary_of(loaded))
        prober = Prober(engine, prompter, vocabulary, draw.exemplars, settings, draw.heads)
        taken: Probes = prober
        if config.protocol == "sampled":
            stack.close()
            taken, kind = stack.enter_context(_sampler(loaded, prober, sampling, config))
        exact = engine if kind == "packed" and isinstance(engine, PackedEngine) else None
        yield Probing(taken, prompter, kind, exact)


@contextmanager
def _sampler(
    loaded: models.Loaded, prober: Prober, sampling: Sampling, config: AuditConfig
) -> Iterator[tuple[Probes, str]]:
    """What generates answers, and its name."""
    from foreknow.probing.sample import Generator, Sampler, exact_head

    if config.generator == "vllm":
        if loaded.trained is not None:
            raise ConfigError(
                "--generator vllm: found an adapter, expected a whole model; merge it first, or leave it out"
            )
        from foreknow.probing.vllm_engine import vllm_answers

        with vllm_answers(loaded.folder, prober.vocabulary, sampling, dtype=loaded.dtype, seed=config.seed) as answers:
            yield Sampler(prober, answers, config.seed), "vllm"
        return
    with exact_head(loaded.model):
        batch = 256 if loaded.device.startswith("cuda") else 64
        yield Sampler(prober, Generator(loaded.model, prober.vocabulary, sampling, batch), config.seed), "generate"


def _prompt_reason(choices: dict[str, Any]) -> str:
    how = "through the tokenizer's chat template" if choices["chat_template"] else "as plain text, no chat template"
    bos = "with" if choices["bos_in_prompt"] else "without"
    whose = "as the chat template writes it" if choices["chat_template"] else "as the tokenizer does it"
    why = whose if choices["bos"] == "auto" else f"--bos {choices['bos']}"
    return f"prompts are written {how}, {bos} a beginning-of-sequence token ({why})"


def _verify(packed: Any, prompter: Prompter) -> None:
    """Compare the packed pass with the model's own on a small prompt."""
    shown = [exemplars.Exemplar("What is the capital of France?", "Paris", None)]
    one = prompter.ids([prompter.text(shown, "What is the capital of Peru?")])[0]
    cut = len(one) // 2
    packed.verify(one[:cut], one[cut:])


def flag_long(rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, most: int) -> pl.DataFrame:
    """Flag rows whose gold has more than `most` tokens: they are never silently called Unknown."""
    golds = rows.select(GOLD.fill_null("")).to_series().to_list()
    # a text longer than 64 characters a token is long whatever its tokens
    longest = most * 64
    lengths: list[int] = []
    for start in range(0, len(golds), 4096):
        part = [gold[:longest] for gold in golds[start : start + 4096]]
        lengths += [len(ids) for ids in tokenizer(part, add_special_tokens=False)["input_ids"]]
    long = [n > most or len(gold) > longest for n, gold in zip(lengths, golds, strict=True)]
    return add_flag(rows, "long_answer", pl.Series(long, dtype=pl.Boolean))
