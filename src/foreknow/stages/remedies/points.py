"""Collects what the runs of a study of remedies measured: a frame of points, and one of rows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import polars as pl

from foreknow.categories import UNKNOWN
from foreknow.stages.remedies.recipes import Recipe, Training
from foreknow.stages.train import curves

KEY: Final = ("recipe", "rate", "seed")
"""The columns that name a curve."""
POINTS: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "rate": pl.Float64(),
    "seed": pl.Int64(),
    "at": pl.Float64(),
    "learnt": pl.Float64(),
    "reworded": pl.Float64(),
    "known_before": pl.Int64(),
    "known_kept": pl.Float64(),
    "known_gained": pl.Float64(),
    "other_kept": pl.Float64(),
    "canaries_kept": pl.Float64(),
    "kl": pl.Float64(),
    "text_loss": pl.Float64(),
    "refused": pl.Float64(),
    "attraction": pl.Float64(),
    "chance": pl.Float64(),
}
"""One row per recipe, rate, seed and point `at` of its curve: an epoch, or for recipes that average the share of the
way from before (0) to after training (1). Row 0 is before training.

`learnt`, `reworded`: shares of the new facts that are answered in the wording trained on, and in another. `known_kept`,
`other_kept`, `canaries_kept`: shares of the rows right before training that are still right; `known_gained`: rows that
are right only now, as a share of those right before. `kl`: mean divergence from the model before training at the
answers of known, in nats a token. `text_loss`: nats a token. `refused`: the share of the questions on made-up subjects
that are refused; `attraction`, `chance`: see `train/made_up.py`. Null where something was not measured."""
OUTCOMES: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "rate": pl.Float64(),
    "seed": pl.Int64(),
    "at": pl.Float64(),
    "row": pl.Int64(),
    "correct": pl.Boolean(),
}
"""Whether each row of known that was right before training is right at each point."""
KNOWN: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "question": pl.String(), "p_sampled": pl.Float64()}
"""The watched rows of known. `p_sampled`: the share of the audit's sampled answers that are right, 0 to 1."""
COSTS: Final[dict[str, pl.DataType]] = {
    "recipe": pl.String(),
    "rate": pl.Float64(),
    "seed": pl.Int64(),
    "steps": pl.Int64(),
    "step_seconds": pl.Float64(),
    "training_seconds": pl.Float64(),
    "memory_gib": pl.Float64(),
}
"""What each training cost: steps, seconds of a step, seconds of training without measuring, memory."""


def points_of(
    recipe: Recipe, training: Training, results: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], *, first: float
) -> pl.DataFrame:
    """Return the curve of a recipe (`POINTS`) from a run's results and its lines of `metrics.jsonl`.

    `first`: no epoch before this one counts (for known-late, whose known rows come after it).
    """
    known = (results.get("watched_known") or {})["known"]
    before = {
        "learnt": 0.0,
        "reworded": None,
        "known_before": known["before"],
        "known_kept": 1.0,
        "known_gained": 0.0,
        "other_kept": 1.0 if "other" in results["watched_known"] else None,
        "canaries_kept": 1.0 if results.get(curves.CANARIES) else None,
        "kl": 0.0,
        "text_loss": (results.get("plain_text") or {}).get("before"),
        **_made_up((results.get("made_up") or {}).get("before")),
    }
    if recipe.view == "average":
        measured = [(float(point["alpha"]), point["metrics"]) for point in results["average"]["points"]]
    else:
        measured = [(float(line["epoch"]), line) for line in curves.epochs(list(map(dict, lines)))]
    # the curve of known-late begins where its known rows come in: what lies before is another recipe
    start = [(0.0, before)] if not first else []
    rows = [*start, *((at, _point(line)) for at, line in measured if at >= first)]
    key = {"recipe": recipe.name, "rate": training.rate, "seed": training.seed}
    return pl.DataFrame([{**key, "at": at, **values} for at, values in rows], schema=POINTS)


def _point(line: Mapping[str, Any]) -> dict[str, Any]:
    right, rows = line["counts"][curves.TRAIN]["by_category"][UNKNOWN]
    known, other = line["watched_known"]["known"], line["watched_known"].get("other")
    watched = line.get(curves.CANARIES)
    return {
        "learnt": right / rows,
        "reworded": line["em"].get("reworded"),
        "known_before": known["before"],
        "known_kept": _share(known),
        "known_gained": known["gained"] / known["before"] if known["before"] else None,
        "other_kept": _share(other),
        "canaries_kept": _share(watched),
        "kl": known["kl"],
        "text_loss": line.get("text_loss"),
        **_made_up(line.get("made_up")),
    }


def _share(counts: Mapping[str, Any] | None) -> float | None:
    return counts["kept"] / counts["before"] if counts and counts["before"] else None


def _made_up(counts: Mapping[str, Any] | None) -> dict[str, float | None]:
    if not counts:
        return {"refused": None, "attraction": None, "chance": None}
    return {
        "refused": counts["refused"] / counts["questions"],
        "attraction": counts["attraction"],
        "chance": counts["chance"],
    }


def outcomes_of(recipe: Recipe, training: Training, known: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of known at each point of a recipe (`OUTCOMES`), without the point before training.

    `known`: the watched rows (`known_candidates.ROWS`). `outcomes`: the run's `outcomes.parquet`, or
    `average_outcomes.parquet` for a recipe that averages.
    """
    right = known.filter("before").select("row")
    at = "alpha" if recipe.view == "average" else "epoch"
    own = outcomes.filter(pl.col("set") == "known").join(right, on="row", how="semi")
    ends = own.filter(pl.col(at) % 1 == 0) if at == "epoch" else own
    key = {
        "recipe": pl.lit(recipe.name),
        "rate": pl.lit(training.rate, pl.Float64),
        "seed": pl.lit(training.seed, pl.Int64),
    }
    return ends.with_columns(**key, at=pl.col(at).cast(pl.Float64)).select(*OUTCOMES)


def known_rows(watched: pl.DataFrame, audited: pl.DataFrame) -> pl.DataFrame:
    """Return the watched rows (`KNOWN`) with what the audit sampled.

    `watched`: rows of a run (`known_candidates.ROWS`). `audited`: the audit's rows (question, p_sampled).
    """
    sampled = audited.select("question", "p_sampled").unique("question", keep="first", maintain_order=True)
    return watched.select("row", "question").join(sampled, on="question", how="left", maintain_order="left").cast(KNOWN)  # type: ignore[arg-type]


def costs_of(recipe: Recipe, training: Training, results: Mapping[str, Any]) -> pl.DataFrame:
    """Return what a recipe's training cost (`COSTS`)."""
    seconds, steps = float(results["seconds"]["training"]), int(results["steps"])
    line = {
        **{"recipe": recipe.name, "rate": training.rate, "seed": training.seed, "steps": steps},
        "step_seconds": seconds / max(steps, 1),
        "training_seconds": seconds,
        "memory_gib": results.get("memory_gib"),
    }
    return pl.DataFrame([line], schema=COSTS)
