"""Prepare an audit: read the input, load the model, draw the exemplars, choose the engine, and print the reasons."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.config import AuditConfig
from foreknow.data import dataset
from foreknow.data.builtin import default_facts
from foreknow.data.load import is_packaged, read_data
from foreknow.data.schema import GOLD, USABLE, add_flag, are_chats, common_heads, has_flag, with_flags
from foreknow.data.validation import check
from foreknow.errors import ConfigError
from foreknow.format.numbers import count
from foreknow.inference.vllm_generator import vllm_answers
from foreknow.models import loading, memory_plan
from foreknow.models.fluency import Fluency, check_fluency
from foreknow.models.in_memory import ModelInMemory
from foreknow.models.positions import positions_of
from foreknow.prompts import few_shot
from foreknow.prompts.chat_templates import choose_template
from foreknow.prompts.prompt_template import PAPER, Prompter, read_template
from foreknow.stages.audit.executor import AuditContext, AuditInputs, ChunkProber, OpenProber, PromptPlan
from foreknow.stages.audit.filters import (
    CANNOT_BE_ASKED,
    NO_EXEMPLARS,
    check_some_rows_usable,
    exemplar_tokens,
    flag_long_prompts,
    flag_template_faults,
    flag_unspellable,
)
from foreknow.stages.audit.short_facts import short_rows
from foreknow.stages.audit.span_plan import check_finder, plan_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.inference.engine import Sampling
    from foreknow.inference.exact_probe import ProbeSettings
    from foreknow.inference.prompt_builder import PromptBuilder
    from foreknow.prompts.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def read_input(config: AuditConfig) -> AuditInputs:
    """Read and check the rows, the exemplar pool and the prompt template. Raises the errors of `foreknow.errors`."""
    template = read_template(config.prompt_template) if config.prompt_template else PAPER
    dataset_with_flags = read_data(config, config.limit)
    dataset_with_flags = replace(
        dataset_with_flags, rows=with_flags(dataset_with_flags.rows, check(dataset_with_flags.rows).flags)
    )
    pool = (
        dataset.read_dataset(config.exemplars, turns=config.turns, null_words=config.null_words)
        if config.exemplars
        else None
    )
    audited = dataset_with_flags.rows.filter(pl.col("row").is_in(dataset_with_flags.audited.implode()))
    check_finder(config.spans, audited, dataset_with_flags.name)
    licences = default_facts.licences() if is_packaged(config.data) else None
    return AuditInputs(
        dataset_with_flags, audited, short_rows(audited, dataset_with_flags.total), pool, template, licences
    )


_NO_IDENTITY: Final = {
    *("data", "out", "model", "base", "exemplars", "templates", "prompt_template", "config"),
    *(
        "minutes",
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
"""Settings that are not part of an audit's identity: those that do not change a result, and those that name a file
whose content is part of the identity instead."""


def identity_of(
    config: AuditConfig, inputs: AuditInputs, model: str | dict[str, Any], device: str, dtype: str
) -> dict[str, Any]:
    """Return the contents and settings by which two audits count as the same run; file names do not count."""
    return {
        "data": inputs.facts.digest,
        "exemplars": None if inputs.pool is None else inputs.pool.digest,
        "prompt_template": [inputs.template.instruction, inputs.template.shot, inputs.template.target],
        "model": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        **{k: v for k, v in config.resolved().items() if k not in _NO_IDENTITY},
        **({} if config.minutes is None else {"minutes": config.minutes}),
    }


def with_chat_template(
    config: AuditConfig, inputs: AuditInputs, load_tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> AuditConfig:
    """Resolve `--chat-template auto` by the rows and the tokenizer, and say what was chosen for chats."""
    if config.chat_template != "auto":
        return config
    chats = are_chats(inputs.rows)
    choice, reason = choose_template(load_tokenizer(), chats=True) if chats else ("no", None)
    if reason:
        logger.info(reason)
    return config.model_copy(update={"chat_template": choice})


def with_batch_sizes(config: AuditConfig, device: str, dtype: str, folder: Path) -> AuditConfig:
    """Fill in batch sizes that depend on the model and the kind of device, but not on free memory or load.

    `folder`: the model's folder. If workers elsewhere have the GPUs, the sizes are those for a large GPU.
    """
    sizes = memory_plan.BatchSizes(2048, 128)
    if device.startswith("cuda"):
        sizes = memory_plan.MOST
        if gpu := loading.gpu_memory(config.device):
            plan = memory_plan.plan_batches(
                folder,
                dtype,
                gpu.total,
                sets=config.exemplar_sets,
                shots=config.shots,
                gpus=gpu.gpus,
                parameters=config.model.parameters if isinstance(config.model, ModelInMemory) else None,
            )
            sizes = plan.sizes
            logger.info(plan.line)
            if plan.needs and (line := memory_plan.format_shortage(plan.needs, gpu.free)):
                logger.info(line)
    return config.model_copy(
        update={
            "batch_tokens": config.batch_tokens or sizes.batch_tokens,
            "chunk_rows": config.chunk_rows or sizes.chunk_rows,
        }
    )


LARGEST_PROMPT: Final = 2**17
"""Largest number of tokens in a prompt if the model's config does not give one."""


class CheckedModel(NamedTuple):
    """A loaded model, and how fluent its text is."""

    loaded: loading.Loaded
    fluency: Fluency


def load_checked_model(config: AuditConfig) -> CheckedModel:
    """Load the model of the settings and check that it is fluent."""
    loaded = loading.load_from_settings(config)
    return CheckedModel(loaded, check_fluency(loaded, logger.info))


@contextmanager
def open_context(config: AuditConfig, inputs: AuditInputs, model: CheckedModel | None = None) -> Iterator[AuditContext]:
    """Load the model, draw the exemplars, choose the engine, and print the reasons for each choice.

    `model`: the model of the settings if this process has loaded it already.
    """
    loaded, fluency = model or load_checked_model(config)
    plan = build_prompt_plan(config, inputs, loaded.tokenizer, positions_of(loaded.model.config))
    with open_prober(config, loaded, plan) as probing:
        print_choices(inputs, plan, probing.prompter, loaded.reasons)
        protocol = protocol_of(config, plan, probing.prompter, loaded.device, loaded.dtype)
        yield AuditContext(loaded, probing, plan, protocol, fluency)


def print_choices(inputs: AuditInputs, plan: PromptPlan, prompter: Prompter, reasons: Sequence[str] = ()) -> None:
    """Print which choices were made by default, and why."""
    for reason in (
        inputs.facts.reason,
        inputs.facts.first_row,
        inputs.facts.row_account,
        *reasons,
        _prompt_reason(prompter.choices),
    ):
        logger.info(reason)
    for reason in (plan.exemplars.reason, *plan.exemplars.notes, *prompter.notes, *plan.notes):
        logger.info(reason)


def protocol_of(config: AuditConfig, plan: PromptPlan, prompter: Prompter, device: str, dtype: str) -> dict[str, Any]:
    """Return how rows are asked, for the summary. `engine` is None until the chunks say which engine probed them."""
    return {
        "name": config.protocol,
        **{k: getattr(config, k) for k in ("shots", "exemplar_sets", "samples", "temperature", "top_k")},
        **{k: getattr(config, k) for k in ("match", "tolerance", "max_expansions", "max_answer_tokens", "seed")},
        **prompter.choices,
        **({"notes": list(prompter.notes)} if prompter.notes else {}),
        "engine": None,
        "dtype": dtype,
        "device": device,
        "exemplars": plan.exemplars.reason,
    }


def build_prompt_plan(
    config: AuditConfig, inputs: AuditInputs, tokenizer: PreTrainedTokenizerBase, positions: int | None = None
) -> PromptPlan:
    """Decide which rows are probed behind which exemplars; this needs no weights.

    `positions`: the number of tokens that the model can take in, if known. Raises InputError if the chat template
    lets no usable row be asked.
    """
    prompter = Prompter(tokenizer, inputs.template, config.uses_chat_template, config.bos)
    most = (positions or LARGEST_PROMPT) - config.max_answer_tokens

    def with_length_flags(rows: pl.DataFrame) -> pl.DataFrame:
        rows = flag_long(rows, tokenizer, config.max_answer_tokens)
        rows = flag_unspellable(rows, prompter, lenient=config.match == "lenient")
        return flag_long_prompts(rows, prompter, most)

    without_exemplars = flag_template_faults(inputs.every, prompter)
    chosen = pl.concat([inputs.rows["row"], inputs.shorts["row"]])
    check_some_rows_usable(
        without_exemplars.rows.filter(pl.col("row").is_in(chosen.implode())), without_exemplars.first
    )
    every = with_length_flags(without_exemplars.rows)
    audited = every.filter(pl.col("row").is_in(chosen.implode()))
    long, unaskable = has_flag("long_answer"), has_flag(*CANNOT_BE_ASKED)
    usable = audited.filter(USABLE & ~long & ~unaskable)
    pool = None if inputs.pool is None else with_length_flags(inputs.pool.rows)
    draw = partial(few_shot.draw_exemplars, shots=config.shots, sets=config.exemplar_sets, seed=config.seed, pool=pool)
    notes: tuple[str, ...] = ()
    try:
        exemplars = draw(every, sorted(usable["group"].unique()), audited=usable["row"])
    except few_shot.TooFewExemplars:
        if audited.filter(USABLE & long & ~unaskable).height <= usable.height:
            raise
        # a file of long answers is scored all the same: its few short rows get no category, and are counted
        few = pl.col("row").is_in(usable["row"].implode())
        every = add_flag(every, NO_EXEMPLARS, every.select(few).to_series())
        notes = (
            f"{count(usable.height, 'short row')} without a category: too few rows of the file are short, and none can "
            "serve as an exemplar",
        )
        usable = usable.clear()
        exemplars = draw(every, [])
    with_exemplars = flag_template_faults(every, prompter, exemplars)
    check_some_rows_usable(with_exemplars.rows.filter(pl.col("row").is_in(chosen.implode())), with_exemplars.first)
    every = flag_long_prompts(with_exemplars.rows, prompter, most, exemplar_tokens(prompter, exemplars))
    fits = every.filter(~unaskable)["row"].implode()
    usable = usable.filter(pl.col("row").is_in(fits))
    long_rows = audited.filter(USABLE & long & ~unaskable)
    notes = (*notes, *without_exemplars.notes, *with_exemplars.notes)
    spans = plan_spans(config, long_rows, every, pool, prompter, positions or LARGEST_PROMPT, inputs.facts.name)
    if spans is not None:
        long_rows, notes = spans.long, (*notes, *spans.notes)
    heads, span_plan = common_heads(usable), None if spans is None else spans.plan
    return PromptPlan(inputs.template, exemplars, usable, long_rows, heads, every, notes, span_plan)


def search_settings(config: AuditConfig) -> ProbeSettings:
    """Return the prober's settings from the audit's, wherever the model runs."""
    from foreknow.inference.exact_probe import ProbeSettings  # keeps torch out

    return ProbeSettings(
        samples=config.samples,
        tolerance=config.tolerance,
        max_expansions=config.max_expansions,
        lenient=config.match == "lenient",
    )


def prompt_builder(config: AuditConfig, prompter: Prompter, plan: PromptPlan) -> PromptBuilder:
    """Return what makes an audit's prompts, wherever the model runs."""
    from foreknow.inference.prompt_builder import PromptBuilder  # keeps torch out

    return PromptBuilder(prompter, plan.exemplars, plan.heads, config.max_answer_tokens)


@contextmanager
def open_prober(config: AuditConfig, loaded: loading.Loaded, plan: PromptPlan) -> Iterator[OpenProber]:
    """Open the prober of a loaded model; the engine choice prints what it falls back to, and why."""
    from foreknow.inference.engine import Sampling  # keeps torch out
    from foreknow.inference.engine_choice import open_engine  # keeps torch out
    from foreknow.inference.exact_probe import Prober  # keeps torch out

    prompter = Prompter(loaded.tokenizer, plan.template, config.uses_chat_template, config.bos)
    sampling, prompts = Sampling(config.temperature, config.top_k), prompt_builder(config, prompter, plan)
    vocabulary = prompter.ended(loading.vocabulary_of(loaded))
    if config.protocol == "sampled":
        with _sampler(loaded, prompts, vocabulary, sampling, config) as (sampler, kind):
            yield OpenProber(sampler, prompter, kind, None)
        return
    with open_engine(loaded.model, prompter, int(config.batch_tokens or 2048)) as choice:
        prober = Prober(choice.engine(sampling), prompts, vocabulary, search_settings(config))
        yield OpenProber(prober, prompter, choice.name, choice.packed)


@contextmanager
def _sampler(
    loaded: loading.Loaded, prompts: PromptBuilder, vocabulary: Vocabulary, sampling: Sampling, config: AuditConfig
) -> Iterator[tuple[ChunkProber, str]]:
    """Open the sampler that generates answers; yield it and its name. Raises ConfigError for vLLM with an adapter."""
    from foreknow.inference.generate import Generator, Sampler, exact_head  # keeps torch out

    if config.generator == "vllm":
        if loaded.trained is not None:
            raise ConfigError(
                "--generator vllm: found an adapter, expected a whole model; merge it first, or leave it out"
            )
        with vllm_answers(loaded.folder, vocabulary, sampling, dtype=loaded.dtype, seed=config.seed) as answers:
            yield Sampler(prompts, answers, config.samples, config.seed), "vllm"
        return
    with exact_head(loaded.model):
        batch = 256 if loaded.device.startswith("cuda") else 64
        generator = Generator(loaded.model, vocabulary, sampling, batch)
        yield Sampler(prompts, generator, config.samples, config.seed), "generate"


def _prompt_reason(choices: dict[str, Any]) -> str:
    how = "through the tokenizer's chat template" if choices["chat_template"] else "as plain text, no chat template"
    bos = "with" if choices["bos_in_prompt"] else "without"
    whose = "as the chat template writes it" if choices["chat_template"] else "as the tokenizer does it"
    why = whose if choices["bos"] == "auto" else f"--bos {choices['bos']}"
    return f"prompts are written {how}, {bos} a beginning-of-sequence token ({why})"


def flag_long(rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, most: int) -> pl.DataFrame:
    """Flag rows whose gold has more than `most` tokens, so that they are not silently called Unknown."""
    golds = rows.select(GOLD.fill_null("")).to_series().to_list()
    # a text of more than 64 characters per allowed token is too long whatever its tokens are
    longest = most * 64
    lengths: list[int] = []
    for start in range(0, len(golds), 4096):
        part = [gold[:longest] for gold in golds[start : start + 4096]]
        lengths += [len(ids) for ids in tokenizer(part, add_special_tokens=False)["input_ids"]]
    long = [n > most or len(gold) > longest for n, gold in zip(lengths, golds, strict=True)]
    return add_flag(rows, "long_answer", pl.Series(long, dtype=pl.Boolean))
