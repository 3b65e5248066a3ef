"""Measures the points between the weights before and after training, and saves the best (`weight_average.py`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from foreknow.config import TuneConfig
from foreknow.io.run_dir import RunDir
from foreknow.models import loading
from foreknow.stages.train import curves
from foreknow.stages.train.span_labels import count_fitted
from foreknow.stages.train.weight_average import FOLDER, Point, WeightLine, choose, dev_outcomes

if TYPE_CHECKING:
    from foreknow.stages.train.eval_callback import EvalCallback
    from foreknow.stages.train.trainer import FactTrainer

logger = logging.getLogger(__name__)


def average_weights(config: TuneConfig, watch: EvalCallback, trainer: FactTrainer, folder: RunDir) -> dict[str, Any]:
    """Measure the points `config.average` and save the best in `averaged/`; the model ends with the tuned weights.

    Returns what `results.json` says: `points` (alpha, fitted, dev_em, dev_loss, canaries_kept, metrics) and `alpha`,
    that of the one saved. The run must be of one process.
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
    points = []
    for alpha in config.average:
        line.set(alpha)
        points.append(_measure(watch, trainer, alpha))
        logger.info(_format(points[-1]))
    best = choose(points)
    line.set(best.alpha)
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


def _measure(watch: EvalCallback, trainer: FactTrainer, alpha: float) -> Point:
    outcomes, spans, losses = watch.measure_sets(trainer)
    metrics = {"loss": losses, **curves.measures(outcomes, watch.inputs.rows, lenient=watch.lenient)}
    if watch.inputs.spans:
        metrics["spans"] = count_fitted(spans, watch.inputs.spans)
    watch.measure_canaries(metrics)
    return Point(
        alpha,
        metrics["counts"][curves.TRAIN]["correct"],
        dev_outcomes(outcomes, watch.lenient),
        losses["dev"],
        metrics[curves.CANARIES]["kept"] if curves.CANARIES in metrics else None,
        metrics,
    )


def _format(point: Point) -> str:
    right = sum(point.dev) / max(len(point.dev), 1)
    kept = "" if point.canaries is None else f", canaries {point.canaries:,} kept"
    return (
        f"averaged: alpha {point.alpha:g}: {point.fitted:,} train rows fitted, dev EM {right:.1%}, dev loss "
        f"{point.loss:.3f}{kept}"
    )
