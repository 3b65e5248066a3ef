"""Measures the points between the weights before and after training, and saves the best (`weight_average.py`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.io.run_dir import RunDir, write_frame
from foreknow.models import loading
from foreknow.stages.train import curves
from foreknow.stages.train.span_labels import count_fitted
from foreknow.stages.train.weight_average import FOLDER, Point, WeightLine, choose, dev_outcomes

if TYPE_CHECKING:
    from foreknow.stages.train.eval_callback import EvalCallback

logger = logging.getLogger(__name__)

OUTCOMES_FILE: Final = "average_outcomes.parquet"
AVERAGE_OUTCOMES: Final[dict[str, pl.DataType]] = {
    "alpha": pl.Float64(),
    "set": pl.String(),
    "row": pl.Int64(),
    "correct": pl.Boolean(),
}
"""The contract of `average_outcomes.parquet`: whether each measured row is right at each point, under `--match`."""


def average_weights(config: TuneConfig, watch: EvalCallback, folder: RunDir) -> dict[str, Any]:
    """Measure the points `config.average` and save the best in `averaged/`; the model ends with the tuned weights.

    Returns what `results.json` says: `points` (alpha, fitted, dev_em, dev_loss, canaries_kept, metrics) and `alpha`,
    that of the one saved. Of several processes each has all weights and measures a share of the rows; the first one
    writes.
    """
    training_model = watch.training_model
    before = None
    if config.method == "full":
        loaded = loading.load_model(
            config.model,
            dtype="float32",
            device="cpu",
            trust_remote_code=config.trust_remote_code,
            log=lambda _: None,
            base=config.base,
            force=config.force,
        )
        before = {name: parameter.detach() for name, parameter in loaded.model.named_parameters()}
    line = WeightLine(training_model.model, before)
    points, frames = [], []
    for alpha in config.average:
        line.set(alpha)
        point, outcomes = _measure(watch, alpha)
        points.append(point)
        frames.append(outcomes)
        logger.info(_format(point))
    best = choose(points)
    line.set(best.alpha)
    if process_group.is_main_process():
        write_frame(folder.path / OUTCOMES_FILE, pl.concat(frames))
        last = curves.epochs(watch.lines)[-1]
        watch.save(folder.path / FOLDER, {**last, **best.metrics}, None, alpha=best.alpha)
    line.set(1.0)
    logger.info(f"averaged: alpha {best.alpha:g} is saved in {folder.path / FOLDER}")
    return {
        "alpha": best.alpha,
        "folder": FOLDER,
        "points": [
            {
                "alpha": point.alpha,
                "fitted": point.fitted,
                "dev_em": sum(point.dev) / max(len(point.dev), 1),
                "dev_loss": point.loss,
                "canaries_kept": point.canaries,
                "metrics": dict(point.metrics),
            }
            for point in points
        ],
    }


def _measure(watch: EvalCallback, alpha: float) -> tuple[Point, pl.DataFrame]:
    outcomes, spans, losses = watch.measure_sets()
    metrics = {"loss": losses, **curves.measures(outcomes, watch.inputs.rows, lenient=watch.lenient)}
    if watch.spans:
        metrics["spans"] = count_fitted(spans, watch.spans)
    outside = watch.measure_outside(metrics, at_end=True)
    point = Point(
        alpha,
        metrics["counts"][curves.TRAIN]["correct"],
        dev_outcomes(outcomes, watch.lenient),
        losses["dev"],
        metrics[curves.CANARIES]["kept"] if curves.CANARIES in metrics else None,
        metrics,
    )
    right = pl.col("lenient" if watch.lenient else "correct").alias("correct")
    own = pl.concat([outcomes, outside]).with_columns(alpha=pl.lit(alpha, pl.Float64))
    return point, own.select("alpha", "set", "row", right).select(*AVERAGE_OUTCOMES)


def _format(point: Point) -> str:
    right = sum(point.dev) / max(len(point.dev), 1)
    kept = "" if point.canaries is None else f", canaries {point.canaries:,} kept"
    return (
        f"averaged: alpha {point.alpha:g}: {point.fitted:,} train rows fitted, dev EM {right:.1%}, dev loss "
        f"{point.loss:.3f}{kept}"
    )
