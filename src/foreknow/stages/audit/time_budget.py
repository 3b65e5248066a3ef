"""Choose how many rows an audit labels within `--minutes`, from a short burst measured on this machine.

    seconds of L rows = the overhead + exemplar prefixes of the groups that L rows come from
                        + rows to probe x seconds a row + long answers x seconds a long answer

Exemplar prefixes and rows are scaled from the burst by their number of tokens. The overhead is everything else of the
run, as measured in this process: loading, the burst itself, reading the rows again, opening the prober, and writing
the results. The limit is chosen once and stored in the run folder, so that the same command continues the same run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from foreknow.config import AuditConfig
from foreknow.config.shared import FEW_SETS
from foreknow.data.schema import chunks, largest_remainder
from foreknow.errors import ConfigError
from foreknow.format.numbers import duration
from foreknow.inference.server.model import address_of
from foreknow.models import loading
from foreknow.models.positions import positions_of
from foreknow.models.resolve import resolve
from foreknow.stages.audit.burst import Clock, measure_burst, measure_long_answers, span_seconds
from foreknow.stages.audit.chunks import score_long_answers
from foreknow.stages.audit.executor import AuditInputs, OpenProber, PromptPlan
from foreknow.stages.audit.precision_check import GROUPS, ROWS
from foreknow.stages.audit.setup import (
    CheckedModel,
    build_prompt_plan,
    load_checked_model,
    open_prober,
    read_input,
    with_batch_sizes,
    with_chat_template,
)

if TYPE_CHECKING:
    from foreknow.inference.prompt_builder import PromptBuilder

logger = logging.getLogger(__name__)

SAMPLE: Final = 512
"""Rows read to see how long the file's questions and answers are, and which groups they come from."""
TOKENIZED: Final = 64
"""Rows of the sample whose prompts are tokenized."""
BURST_SHARE: Final = 0.1
LEAST_BURST, LONGEST_BURST = 8.0, 20.0
"""The burst may take this share of the budget, but at least and at most these seconds; its first few rows, which are
measured in any case, may take longer."""
LONG_ANSWERS: Final = 3
"""Long answers that are scored to measure how long one takes."""
FINISH_SECONDS: Final = 4.0
"""Seconds to write the results and the page: 3 to 5 s of processor time on a core with AVX2 and no more."""
FEW_ROWS: Final = 30
"""Where fewer rows fit, the line says what fewer exemplar sets would save."""
TOLERANCE: Final = 1.25
"""An audit of one row may take this many times the budget before the budget is refused as too short."""


class Work(NamedTuple):
    """The work of one file, as a sample of its rows shows it.

    `groups`: rows of the sample by group; `prefix_tokens`: tokens of all exemplar prompts of one group, by group (0
    where no row of the group is probed). `sampled`: rows of the sample; `probed`, `long`: rows to probe and long
    answers that they bring. `tokens`: mean tokens of a probed row behind its prefixes. `total`: rows of the file.
    """

    groups: Mapping[str, int]
    prefix_tokens: Mapping[str, float]
    sampled: int
    probed: int
    long: int
    tokens: float
    total: int


class Speed(NamedTuple):
    """What a burst measured: seconds per token of an exemplar prefix and of a row, and per long answer; `overhead`:
    seconds of the run that do not depend on the number of rows."""

    prefix_token: float
    row_token: float
    long_answer: float
    overhead: float


def seconds_of(rows: int, work: Work, speed: Speed) -> float:
    """Return the seconds that an audit of `rows` rows takes."""
    share = rows / max(work.sampled, 1)
    prefixes = _prefix_tokens(rows, work)
    probing = prefixes * speed.prefix_token + share * work.probed * work.tokens * speed.row_token
    return speed.overhead + probing + share * work.long * speed.long_answer


def rows_within(seconds: float, work: Work, speed: Speed) -> int:
    """Return the most rows of the file, at least 1, whose audit takes at most `seconds`."""
    low, high = 1, max(work.total, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if seconds_of(middle, work, speed) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def _prefix_tokens(rows: int, work: Work) -> float:
    """Return the tokens of the exemplar prompts of all groups that `rows` rows come from.

    Rows are drawn in proportion to the groups' sizes. Where more than half of the sample's rows have a group of their
    own, further rows bring further groups at the same rate.
    """
    if rows < work.sampled:
        shares = largest_remainder(work.groups, rows)
        return float(sum(work.prefix_tokens[group] for group, count in shares.items() if count))
    all_groups = float(sum(work.prefix_tokens.values()))
    return all_groups * (rows / work.sampled if 2 * len(work.groups) > work.sampled else 1.0)


@dataclass(frozen=True)
class LimitChoice:
    """The limit that `choose_limit` chose, and the model that it loaded to measure the burst."""

    limit: int
    model: CheckedModel


def check_settings(config: AuditConfig) -> None:
    """Raise ConfigError for settings that `--minutes` excludes. `--limit` is allowed where a run folder stores it."""
    minutes = f"--minutes {config.minutes:g}"
    if address_of(config.model) is not None:
        raise ConfigError(f"{minutes}: measures this machine, and --model {config.model} is a server's; use --limit")
    if config.ray or config.ray_address or config.ray_workers:
        raise ConfigError(f"{minutes}: measures this process, and --ray computes in others; use --limit")


def check_limit(config: AuditConfig) -> None:
    """Raise ConfigError if both `--minutes` and `--limit` are set."""
    if config.limit is not None:
        raise ConfigError(
            f"--limit {config.limit}: --minutes {config.minutes:g} chooses the number of rows; leave out one of them"
        )


def choose_limit(config: AuditConfig, began: float, clock: Clock = time.monotonic) -> LimitChoice:
    """Choose how many rows the audit labels so that it ends `config.minutes` minutes after `began` (by `clock`).

    Loads the model and probes a burst. Raises ConfigError if not even one row fits.
    """
    stopwatch = _Stopwatch(clock)
    with stopwatch.again:
        inputs = read_input(config.model_copy(update={"limit": SAMPLE}))
        device, dtype = loading.resolve_device_dtype(config.device, config.dtype)
        resolved = resolve(config.model, logger.info, config.trust_remote_code, base=config.base)
        config = with_batch_sizes(config, device, dtype, resolved.folder)
        config = with_chat_template(config, inputs, lambda: loading.load_tokenizer(resolved, config.trust_remote_code))
    with stopwatch.loading:
        model = load_checked_model(config)
    with ExitStack() as stack:
        with stopwatch.again:
            plan = build_prompt_plan(config, inputs, model.loaded.tokenizer, positions_of(model.loaded.model.config))
            probing = stack.enter_context(open_prober(config, model.loaded, plan))
        logger.info("measuring a burst of rows on this machine to choose how many rows fit")
        speed, work = _measure(config, inputs, plan, model, probing, clock)
    budget = 60.0 * float(config.minutes or 0)
    overhead = clock() - began + stopwatch.again.seconds + FINISH_SECONDS
    overhead += _precision_seconds(work, speed, stopwatch.loading.seconds, model.loaded.dtype, config.protocol)
    speed = speed._replace(overhead=overhead)
    limit = rows_within(budget, work, speed)
    needed = seconds_of(limit, work, speed)
    if needed > TOLERANCE * budget:
        raise ConfigError(
            f"--minutes {config.minutes:g}: one row takes about {duration(needed)} on this machine, with loading and "
            f"its exemplar prompts; give at least --minutes {_rounded_up(needed / 60)}, or use --limit"
        )
    logger.info(
        f"labels {limit:,} of {work.total:,} rows in about {_in_minutes(needed)} on this machine (--minutes "
        f"{config.minutes:g}; {duration(clock() - began)} of them are spent)"
        + (
            f"; --exemplar-sets {FEW_SETS} takes {FEW_SETS / config.exemplar_sets:.0%} of the time for a row"
            if limit < min(FEW_ROWS, work.total) and config.exemplar_sets > FEW_SETS
            else ""
        )
    )
    return LimitChoice(limit, model)


def _measure(
    config: AuditConfig, inputs: AuditInputs, plan: PromptPlan, model: CheckedModel, probing: OpenProber, clock: Clock
) -> tuple[Speed, Work]:
    """Measure a burst, and describe the work of the file, from the sample of rows in `inputs` and `plan`."""
    tokens = int(config.batch_tokens or 2048)

    def score(rows: pl.DataFrame) -> object:
        return list(score_long_answers(model.loaded, probing.prompter, [(0, rows)], tokens))

    long_answer = measure_long_answers(score, plan.long, LONG_ANSWERS, clock=clock)
    long_answer += span_seconds(config, model.loaded, probing, plan, clock=clock) / max(plan.long.height, 1)
    work = work_of(inputs, plan, probing.prober.prompts)
    if plan.rows.is_empty():
        return Speed(0.0, 0.0, long_answer, 0.0), work
    seconds = min(max(BURST_SHARE * 60 * float(config.minutes or 0), LEAST_BURST), LONGEST_BURST)
    extend = config.protocol == "exact"
    burst = measure_burst(probing.prober, _burst_rows(plan, config), seconds, extend=extend, clock=clock)
    own, prefixes = token_counts(probing.prober.prompts, burst.rows)
    groups = burst.rows["group"].n_unique()
    return Speed(
        burst.prefix_seconds / max(sum(prefixes.values()) / groups, 1.0),
        burst.row_seconds / max(own / burst.rows.height, 1.0),
        long_answer,
        0.0,
    ), work


def _burst_rows(plan: PromptPlan, config: AuditConfig) -> pl.DataFrame:
    """Return a chunk of the plan that begins with its largest group, with every other row in the order of chunks."""
    largest = plan.rows.group_by("group").len().sort("len", "group", descending=[True, False])["group"][0]
    own, others = plan.rows.filter(pl.col("group") == largest), plan.rows.filter(pl.col("group") != largest)
    parts = [chunk for rows in (own, others) if rows.height for chunk in chunks(rows, rows.height)]
    evenly = parts[0][list(range(0, own.height, max(own.height // 16, 1)))]
    return pl.concat([evenly, *parts[1:]]).head(int(config.chunk_rows or 128))


def work_of(inputs: AuditInputs, plan: PromptPlan, prompts: PromptBuilder) -> Work:
    """Describe the work of a file from a sample of its rows, and their plan."""
    ordered = plan.rows.sort("group", "row")
    some = ordered[list(range(0, ordered.height, max(ordered.height // TOKENIZED, 1)))]
    own, prefixes = token_counts(prompts, some) if some.height else (0, {})
    mean = sum(prefixes.values()) / max(len(prefixes), 1)
    probed_groups = set(plan.rows["group"])
    groups = dict(inputs.rows["group"].value_counts().iter_rows())
    return Work(
        groups,
        {group: prefixes.get(group, mean) if group in probed_groups else 0.0 for group in groups},
        inputs.rows.height,
        plan.rows.height,
        plan.long.height,
        own / max(some.height, 1),
        inputs.facts.total,
    )


def token_counts(prompts: PromptBuilder, rows: pl.DataFrame) -> tuple[int, dict[str, float]]:
    """Count the tokens of rows behind their prefixes, with answers, and those of each group's exemplar prefixes."""
    prepared, prompts_of_rows = prompts.build(rows)
    own = sum(len(p.own) + len(row.tree) for row, some in zip(prepared, prompts_of_rows, strict=True) for p in some)
    families: dict[str, dict[Any, None]] = {}
    for group, some in zip(rows["group"], prompts_of_rows, strict=True):
        families.setdefault(group, {}).update(dict.fromkeys(p.family for p in some))
    shared = {group: float(max(sum(map(len, family)) for family in some)) for group, some in families.items()}
    return own, shared


def _precision_seconds(work: Work, speed: Speed, loading_seconds: float, dtype: str, protocol: str) -> float:
    """Return the seconds of asking a few rows again in float32 (`precision_check.py`), at half the speed."""
    if dtype == "float32" or protocol != "exact" or not work.probed:
        return 0.0
    prefix = max(work.prefix_tokens.values(), default=0.0)
    groups = min(GROUPS, len(work.groups))
    return loading_seconds + 2 * (groups * prefix * speed.prefix_token + ROWS * work.tokens * speed.row_token)


class _Timer:
    """Adds up the seconds that its `with` blocks take."""

    def __init__(self, clock: Clock):
        self.clock, self.seconds, self._began = clock, 0.0, 0.0

    def __enter__(self) -> None:
        self._began = self.clock()

    def __exit__(self, *_: object) -> None:
        self.seconds += self.clock() - self._began


class _Stopwatch:
    """Times what the run does a second time once the limit is chosen (`again`), and loading the model (`loading`)."""

    def __init__(self, clock: Clock):
        self.again, self.loading = _Timer(clock), _Timer(clock)


def _in_minutes(seconds: float) -> str:
    """Format seconds as whole or half minutes where they are more than one and a half minutes."""
    if seconds < 90:
        return duration(seconds)
    halves = round(seconds / 30)
    return f"{halves / 2:g} minutes"


def _rounded_up(minutes: float) -> str:
    """Format minutes, rounded up to whole minutes above one and to tenths below."""
    return f"{-(-minutes // 1):g}" if minutes > 1 else f"{-(-minutes * 10 // 1) / 10:g}"
