"""Compare SliCK and P(True) with what a study's model gets wrong after training (see `score_sweep.py`). Pure."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.stages.study import score_sweep
from foreknow.stages.study.aggregation import LATE

if TYPE_CHECKING:
    from foreknow.stages.study.result import StudyResult

logger = logging.getLogger(__name__)

SWEEP: Final[dict[str, pl.DataType]] = {"variant": pl.String(), "point": pl.String(), **score_sweep.SWEEP}
"""`score_sweep.SWEEP` of one variant at CONVERGENCE: the natural mix, or D with the share nearest to the test's."""
THRESHOLDS: Final = 200
"""The maximum number of thresholds kept of a curve, evenly spread over the share called Unknown."""


def swept(study: StudyResult) -> pl.DataFrame:
    """Sweep SliCK's label, its `p_hit` and P(True), where `ptrue.parquet` has it, over what stays wrong (`SWEEP`).

    The audit's own budget comes first. The frame is empty where the audit's rows cannot be matched with the outcomes.
    Where the folder no longer holds its audit, as a published copy does not, this is the sweep that it already has.
    """
    if not (study.folder / "audit").exists():
        logger.info(f"{study.folder} holds no audit: the sweep of scores is not made again, all else is")
        written = study.tables.get("sweep", pl.DataFrame(schema=SWEEP))
        return written.select(pl.col(name).cast(of) for name, of in SWEEP.items())
    outcomes = study.outcomes.filter((pl.col("set") == "test") & (pl.col("point") == LATE))
    rows = tested_rows(study.audit.rows, study.relations)
    seen = outcomes.select("row", "category").unique().sort("row")
    variant = _natural(study.results, rows["category"])
    if variant is None or not seen.equals(rows.select("row", "category")):
        return pl.DataFrame(schema=SWEEP)
    of = score_sweep.at_point(outcomes, variant=variant, point=LATE).join(rows.select("row", "audited"), on="row")
    path = study.folder / "ptrue.parquet"
    scores = {"P(True)": pl.read_parquet(path).select("row", score="p_true")} if path.is_file() else {}
    protocol = study.audit.summary.get("protocol") or {}
    own = study.audit.probes["exemplar_set"].n_unique(), int(protocol.get("samples") or score_sweep.BUDGETS[0][1])
    found = score_sweep.compare(
        of.select(row="audited", correct="correct"),
        study.audit.probes,
        scores,
        budgets=dict.fromkeys([own, *score_sweep.BUDGETS]),
        lenient=protocol.get("match") == "lenient",
    )
    thin = found.with_columns(bin=(pl.col("share") * THRESHOLDS).ceil())
    thin = thin.unique(["score", "setting", "bin"], keep="last", maintain_order=True).drop("bin")
    return thin.with_columns(variant=pl.lit(variant), point=pl.lit(LATE)).select(*SWEEP)


def tested_rows(audited: pl.DataFrame, relations: pl.DataFrame) -> pl.DataFrame:
    """Return row (number in the set test), audited (row of the audit) and category, as a study writes its test rows."""
    used = relations.filter(pl.col("used"))["relation"]
    of = audited.filter(
        pl.col("group").is_in(used.implode()) & (pl.col("split") == "test") & pl.col("category").is_not_null()
    )
    return (
        of.select(audited="row", category="category").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    )


def _natural(results: pl.DataFrame, categories: pl.Series) -> str | None:
    """Return the variant with the audit's own shares, or the D that is nearest to them."""
    natural = results.filter(pl.col("kind") == "natural")["variant"]
    if len(natural):
        return str(natural[0])
    unknown = float((categories == UNKNOWN).sum()) / max(len(categories), 1)
    mixed = results.filter(pl.col("kind") == "shares").select("share", "variant").unique().sort("share").rows()
    return str(min(mixed, key=lambda one: abs(one[0] - unknown))[1]) if mixed else None
