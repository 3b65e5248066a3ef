"""Measure what bfloat16 or float16 changes in an audit: ask a few rows again in float32 and count the differences.

The choice of rows depends only on the input: at most `ROWS` rows of `GROUPS` groups, so that few exemplar prompts have
to be computed again. A rounding difference is no fault of a row; the number of differences shows how far to trust
categories that depend on one decision.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.config import AuditConfig
from foreknow.inference import slick
from foreknow.models import loading
from foreknow.models.in_memory import ModelInMemory
from foreknow.models.out_of_memory import is_out_of_memory
from foreknow.stages.audit.setup import open_prober

if TYPE_CHECKING:
    from foreknow.stages.audit.executor import PromptPlan

logger = logging.getLogger(__name__)

ROWS: Final = 16
"""The most rows that are asked again."""
GROUPS: Final = 4
"""The most groups that these rows come from; each group has its own exemplar prompts."""


def compare_precision(config: AuditConfig, plan: PromptPlan, probes: pl.DataFrame, dtype: str) -> dict[str, Any] | None:
    """Probe a sample of `draw.rows` again in float32 and count what differs from `probes` (`slick.PROBES`).

    Returns `rows, greedy_compared, greedy_differ, categories_differ` and `dtype`, the audit's. Returns None if the
    audit is in float32 or a server's, was sampled or has no rows, if the model lies in memory and cannot be loaded a
    second time, or if memory is too small for a float32 copy of the model (a line says so).
    """
    if dtype not in ("bfloat16", "float16") or config.protocol != "exact" or plan.rows.is_empty():
        return None
    if isinstance(config.model, ModelInMemory):
        logger.info(f"{dtype} is not compared with float32: the model lies in memory in {dtype}")
        return None
    rows = sample(plan.rows)
    logger.info(f"asking {rows.height:,} rows again in float32, to see what {dtype} changes")
    try:
        loaded = loading.load_from_settings(config, dtype="float32")
        with open_prober(config, loaded, plan) as float32_prober:
            exact = float32_prober.prober.probe(rows).probes
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        logger.info(f"{dtype} is not compared with float32: there is too little memory for a float32 copy of the model")
        return None
    return {"dtype": dtype, **differences(probes, exact, samples=config.samples, lenient=config.match == "lenient")}


def sample(rows: pl.DataFrame, most: int = ROWS, groups: int = GROUPS) -> pl.DataFrame:
    """Choose at most `most` rows of at most `groups` groups, evenly spaced in both."""
    names = rows["group"].unique().sort()
    chosen = _evenly_spaced(len(names), groups)
    parts = []
    for at, name in enumerate(names.gather(chosen)):
        part = rows.filter(pl.col("group") == name).sort("row")
        share = most // len(chosen) + (at < most % len(chosen))
        parts.append(part[_evenly_spaced(part.height, share)])
    return pl.concat(parts)


def differences(probes: pl.DataFrame, exact: pl.DataFrame, *, samples: int, lenient: bool = False) -> dict[str, int]:
    """Count where `exact` (`slick.PROBES`) differs from `probes` on the rows of `exact`, in the matching that
    labels."""
    ours = probes.join(exact.select("row").unique(), on="row", how="semi")
    greedy = "greedy_lenient" if lenient else "greedy_correct"
    both = ours.join(exact, on=("row", "exemplar_set"), suffix="_exact", validate="1:1")
    labels = [slick.label(some, samples=samples, lenient=lenient).select("row", "category") for some in (ours, exact)]
    moved = labels[0].join(labels[1], on="row", suffix="_exact", validate="1:1")
    return {
        "rows": moved.height,
        "greedy_compared": both.height,
        "greedy_differ": int((both[greedy] != both[f"{greedy}_exact"]).sum()),
        "categories_differ": int(moved["category"].ne_missing(moved["category_exact"]).sum()),
    }


def format_differences(counts: dict[str, Any]) -> str:
    """Format the counts of `compare_precision` as one line."""
    return (
        f"{counts['dtype']} against float32: of {counts['greedy_compared']:,} greedy decisions on "
        f"{counts['rows']:,} rows {counts['greedy_differ']:,} differ, and {counts['categories_differ']:,} of these "
        "rows' categories"
    )


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced indices below `count`."""
    many = min(count, most)
    return [(2 * at + 1) * count // (2 * many) for at in range(many)]
