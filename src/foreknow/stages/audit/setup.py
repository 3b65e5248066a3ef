"""Getting an audit ready: read the input, load the model, draw the exemplars, choose the engine, and say why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data import dataset
from foreknow.data.builtin import default_facts
from foreknow.data.load import is_packaged, read_data
from foreknow.data.schema import GOLD, USABLE, add_flag, common_heads, has_flag, with_flags
from foreknow.data.validation import check
from foreknow.errors import ConfigError
from foreknow.inference.vllm_engine import vllm_answers
from foreknow.models import loading, memory_plan
from foreknow.models.fluency import check_fluency
from foreknow.progress import say
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import PAPER, Prompter, read_template
from foreknow.stages.audit.executor import AuditContext, AuditInputs, ChunkProber, OpenProber, PromptPlan
from foreknow.stages.audit.filters import (
    UNASKABLE,
    check_any_askable,
    exemplar_tokens,
    flag_long_prompts,
    flag_template_faults,
    flag_unspellable,
)
from foreknow.stages.audit.short_facts import short_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.inference.engine import Sampling
    from foreknow.inference.exact_probe import Prober, ProbeSettings


def read_input(config: AuditConfig) -> AuditInputs:
    """The input and what goes with it, checked."""
    template = read_template(config.prompt_template) if config.prompt_template else PAPER
    found = read_data(config, config.limit)
    found = replace(found, rows=with_flags(found.rows, check(found.rows).flags))
    pool = (
        dataset.read_dataset(config.exemplars, turns=config.turns, null_words=config.null_words)
        if config.exemplars
        else None
    )
    audited = found.rows.filter(pl.col("row").is_in(found.audited.implode()))
    licences = default_facts.licences() if is_packaged(config.data) else None
    return AuditInputs(found, audited, short_rows(audited, found.total), pool, template, licences)


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
    config: AuditConfig, given: AuditInputs, model: str | dict[str, Any], device: str, dtype: str
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


def with_batch_sizes(config: AuditConfig, device: str, dtype: str, folder: Path) -> AuditConfig:
    """Fill in the batch plan: a matter of the model and the kind of device, never of free memory or load.

    `folder`: the model's. Where workers elsewhere have the GPUs, the plan is that of a large one.
    """
    sizes = memory_plan.BatchSizes(2048, 128)
    if device.startswith("cuda"):
        sizes = memory_plan.MOST
        if gpu := loading.gpu_memory(config.device):
            plan = memory_plan.plan_batches(
                folder, dtype, gpu.total, sets=config.exemplar_sets, shots=config.shots, gpus=gpu.gpus
            )
            sizes = plan.sizes
            say(plan.line)
            if plan.needs and (line := memory_plan.format_shortage(plan.needs, gpu.free)):
                say(line)
    return config.model_copy(
        update={
            "batch_tokens": config.batch_tokens or sizes.batch_tokens,
            "chunk_rows": config.chunk_rows or sizes.chunk_rows,
        }
    )


LARGEST_PROMPT: Final = 2**17
"""Tokens of a prompt at most, where the model's config does not say."""


@contextmanager
def open_context(config: AuditConfig, given: AuditInputs) -> Iterator[AuditContext]:
    """Load the model, draw the exemplars, choose the engine, and say why."""
    loaded = loading.load_from_settings(config)
    fluency = check_fluency(loaded, say)
    positions = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    draw = build_prompt_plan(config, given, loaded.tokenizer, positions)
    with open_prober(config, loaded, draw) as found:
        print_choices(given, draw, found.prompter, loaded.reasons)
        protocol = protocol_of(config, draw, found.prompter, loaded.device, loaded.dtype)
        yield AuditContext(loaded, found, draw, protocol, fluency)


def print_choices(given: AuditInputs, draw: PromptPlan, prompter: Prompter, reasons: Sequence[str] = ()) -> None:
    """Say what was chosen without being asked for, and why."""
    for reason in (
        given.facts.reason,
        given.facts.first_row,
        given.facts.row_account,
        *reasons,
        _prompt_reason(prompter.choices),
    ):
        say(reason)
    for reason in (draw.exemplars.reason, *draw.exemplars.notes, *prompter.notes, *draw.notes):
        say(reason)


def protocol_of(config: AuditConfig, draw: PromptPlan, prompter: Prompter, device: str, dtype: str) -> dict[str, Any]:
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


def build_prompt_plan(
    config: AuditConfig, given: AuditInputs, tokenizer: PreTrainedTokenizerBase, positions: int | None = None
) -> PromptPlan:
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
    found = few_shot.draw_exemplars(
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
    return PromptPlan(given.template, found, usable, scored, common_heads(usable), every, notes)


def search_settings(config: AuditConfig) -> ProbeSettings:
    """What the prober is told of an audit's settings, wherever the model is."""
    from foreknow.inference.exact_probe import ProbeSettings  # keeps torch out

    return ProbeSettings(
        samples=config.samples,
        tolerance=config.tolerance,
        max_expansions=config.max_expansions,
        max_answer_tokens=config.max_answer_tokens,
        lenient=config.match == "lenient",
    )


@contextmanager
def open_prober(config: AuditConfig, loaded: loading.Loaded, draw: PromptPlan) -> Iterator[OpenProber]:
    """The prober of a loaded model; it says what it falls back to, and why."""
    from foreknow.inference.engine import PackedEngine, Sampling  # keeps torch out
    from foreknow.inference.engine_choice import open_engine  # keeps torch out
    from foreknow.inference.exact_probe import Prober  # keeps torch out

    prompter = Prompter(loaded.tokenizer, draw.template, config.chat_template, config.bos)
    sampling, settings = Sampling(config.temperature, config.top_k), search_settings(config)
    with ExitStack() as stack:
        choice = stack.enter_context(open_engine(loaded, prompter, int(config.batch_tokens or 2048)))
        engine, kind = choice.engine(sampling), choice.name
        vocabulary = prompter.ended(loading.vocabulary_of(loaded))
        prober = Prober(engine, prompter, vocabulary, draw.exemplars, settings, draw.heads)
        taken: ChunkProber = prober
        if config.protocol == "sampled":
            stack.close()
            taken, kind = stack.enter_context(_sampler(loaded, prober, sampling, config))
        exact = engine if kind == "packed" and isinstance(engine, PackedEngine) else None
        yield OpenProber(taken, prompter, kind, exact)


@contextmanager
def _sampler(
    loaded: loading.Loaded, prober: Prober, sampling: Sampling, config: AuditConfig
) -> Iterator[tuple[ChunkProber, str]]:
    """What generates answers, and its name."""
    from foreknow.inference.generate import Generator, Sampler, exact_head  # keeps torch out

    if config.generator == "vllm":
        if loaded.trained is not None:
            raise ConfigError(
                "--generator vllm: found an adapter, expected a whole model; merge it first, or leave it out"
            )
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
