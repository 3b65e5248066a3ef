"""What bfloat16 or float16 changes in an audit: a few rows asked again in float32, and what differs, counted.

The rows depend on the input only: at most `ROWS` of them, spread over `GROUPS` groups, so that few exemplar prompts
have to be computed again. Differences of rounding are no fault of a row; how many there are says how far to trust
categories that hang on one decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.config import AuditConfig
from foreknow.inference import slick
from foreknow.models import loading
from foreknow.progress import say
from foreknow.stages.audit.setup import open_prober

if TYPE_CHECKING:
    from foreknow.stages.audit.executor import PromptPlan

ROWS: Final = 16
"""Rows asked again, at most."""
GROUPS: Final = 4
"""Groups they are taken from, at most: each has its own exemplar prompts."""


def compare_precision(config: AuditConfig, draw: PromptPlan, probes: pl.DataFrame, dtype: str) -> dict[str, Any] | None:
    """Probe a sample of `draw.rows` again in float32 and count what differs from `probes` (`slick.PROBES`).

    Returns `rows, greedy_compared, greedy_differ, categories_differ` and `dtype`, that of the audit. None where
    there is nothing to compare: the audit is in float32 or a server's, was sampled or has no rows; or the memory is
    too small for a float32 copy of the model (which is said).
    """
    if dtype not in ("bfloat16", "float16") or config.protocol != "exact" or draw.rows.is_empty():
        return None
    import torch

    rows = sample(draw.rows)
    try:
        loaded = loading.load_from_settings(config, dtype="float32")
        with open_prober(config, loaded, draw) as again:
            exact = again.prober.probe(rows).probes
    except (MemoryError, torch.OutOfMemoryError):
        say(f"{dtype} is not compared with float32: there is too little memory for a float32 copy of the model")
        return None
    return {"dtype": dtype, **differences(probes, exact, samples=config.samples, lenient=config.match == "lenient")}


def sample(rows: pl.DataFrame, most: int = ROWS, groups: int = GROUPS) -> pl.DataFrame:
    """At most `most` rows of at most `groups` groups, evenly spaced in both."""
    names = rows["group"].unique().sort()
    chosen = _spaced(len(names), groups)
    found = []
    for at, name in enumerate(names.gather(chosen)):
        part = rows.filter(pl.col("group") == name).sort("row")
        share = most // len(chosen) + (at < most % len(chosen))
        found.append(part[_spaced(part.height, share)])
    return pl.concat(found)


def differences(probes: pl.DataFrame, exact: pl.DataFrame, *, samples: int, lenient: bool = False) -> dict[str, int]:
    """What `exact` (`slick.PROBES`) says otherwise than `probes` about the rows it has, in the mode that labels."""
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


def format_differences(found: dict[str, Any]) -> str:
    """The counts in a line."""
    return (
        f"{found['dtype']} against float32: of {found['greedy_compared']:,} greedy decisions on {found['rows']:,} rows "
        f"{found['greedy_differ']:,} differ, and {found['categories_differ']:,} of these rows' categories"
    )


def _spaced(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spaced."""
    many = min(count, most)
    return [(2 * at + 1) * count // (2 * many) for at in range(many)]
