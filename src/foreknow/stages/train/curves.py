"""Computes the metrics of each evaluation of a training run, and where in the run overfitting began. Pure.

One evaluation is a line of `metrics.jsonl` (design, section 3):

    epoch, step, train_loss
    loss             {set: mean loss of a token of its answers, in nats}, of every set but train
    paired           with `--metric auto`: {step, won, lost}. Compares dev with the epoch kept until then, which ended
                     at `step` (`selection.py`): `won` rows are right only now, `lost` rows were right only then
    fitted           {category: share of train rows whose own gold is answered}; fitted_overall: share of all train rows
    em               {set: share of rows answered right}; em_lenient: the same ignoring case, punctuation and articles,
                     if lenient matching is set
    em_by_category   {set: {category: share}};  em_by_relation: {set: {group: share}}
    counts           {set: {"rows": n, "correct": n, "by_category": {category: [correct, rows]}}}
    spans            {set: {category: [fitted, spans], "new": ..., "kept": ...}}, of sets with labels of spans inside
                     long answers (`span_labels.py`)
    canaries         if any are watched (`canaries.py`): {rows, before, kept, lost, gained, lost_low, lost_high, p, kl},
                     against before training; `em` and `counts` have them too. kl: the mean divergence from the model
                     before training at the tokens of their answers, in nats
    watched_known    {set: the same} of the files of `--watch-known`
    text_loss        the mean loss of a token of a plain text, in nats (`text_loss.py`)
    made_up          where asking is cheap: what was answered about subjects that do not exist (`made_up.py`)
    replay, kl       with `--replay`, `--kl`: the mean loss of a token of the known rows in the batches, and the mean
                     divergence from the model before training, in nats (train_loss is that of the new rows alone)
    seconds          seconds since the line before; they include measuring_seconds, for this evaluation, and
                     saving_seconds, for checkpoints
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.errors import ConfigError
from foreknow.stages.train.span_labels import SPAN_OUTCOMES, count_fitted, flat_shares, format_spans

TRAIN: Final = "train"
CANARIES: Final = "canaries"
"""The name of the set of known rows that are watched besides the user's sets (`canaries.py`)."""
RISE: Final = 0.05
"""Fitting Unknown rows is called overfitting if the share fitted is higher than at the best epoch by at least this."""

Line = dict[str, Any]


def measures(outcomes: pl.DataFrame, sets: Mapping[str, pl.DataFrame], *, lenient: bool = False) -> Line:
    """Compute a line's shares and counts from `outcomes` (set, row, correct, lenient) and the sets' rows.

    `sets`: frames with row, group and category (null if not known), by name. `lenient`: use lenient matching.
    """
    line: Line = {"fitted": {}, "em": {}, "em_lenient": {}, "em_by_category": {}, "em_by_relation": {}, "counts": {}}
    column = "lenient" if lenient else "correct"
    for name, rows in sets.items():
        of = rows.select("row", "group", "category").join(outcomes.filter(pl.col("set") == name), on="row")
        by_category = {
            str(category): [int(part[column].sum()), part.height]
            for category in CATEGORIES
            if not (part := of.filter(pl.col("category") == category)).is_empty()
        }
        shares = {category: right / count for category, (right, count) in by_category.items()}
        line["counts"][name] = {"rows": of.height, "correct": int(of[column].sum()), "by_category": by_category}
        if name == TRAIN:
            line["fitted"] = shares
            line["fitted_overall"] = _mean(of[column])
            continue
        line["em"][name] = _mean(of[column])
        if of["lenient"].null_count() < of.height:
            line["em_lenient"][name] = _mean(of["lenient"])
        if shares:
            line["em_by_category"][name] = shares
        groups = of.group_by("group").agg(share=pl.col(column).cast(pl.Float64).mean()).sort("group")
        line["em_by_relation"][name] = dict(groups.iter_rows())
    return line


def _mean(outcome: pl.Series) -> float:
    return float(outcome.sum()) / max(len(outcome), 1)


def flat(line: Mapping[str, Any]) -> dict[str, float]:
    """Return a line's shares and losses by metric name: dev_em, dev_Unknown_em, train_Unknown_fitted, dev_loss, ..."""
    shares_by_name = {f"{name}_em": share for name, share in line["em"].items()}
    shares_by_name |= {f"{name}_em_lenient": share for name, share in line["em_lenient"].items()}
    for name, shares in line["em_by_category"].items():
        shares_by_name |= {f"{name}_{category}_em": share for category, share in shares.items()}
    shares_by_name |= {f"train_{category}_fitted": share for category, share in line["fitted"].items()}
    if "fitted_overall" in line:
        shares_by_name["train_fitted"] = line["fitted_overall"]
    shares_by_name |= {f"{name}_loss": loss for name, loss in line.get("loss", {}).items()}
    return shares_by_name | flat_shares(line)


def check_metric(
    metric: str,
    sets: Mapping[str, pl.DataFrame],
    *,
    lenient: bool = False,
    losses: bool = False,
    spans: Mapping[str, pl.DataFrame] | None = None,
) -> None:
    """Raise ConfigError for a metric that no evaluation has; the message names the metrics that there are.

    `losses`: every set but train has a loss too. `spans`: the labelled spans of the sets (`WATCHED_SPANS`).
    """
    no = pl.lit(False if lenient else None, pl.Boolean)
    schema = {"set": pl.String(), "row": pl.Int64(), "correct": pl.Boolean(), "lenient": pl.Boolean()}
    nothing = [
        rows.select(set=pl.lit(name), row="row", correct=pl.lit(False), lenient=no) for name, rows in sets.items()
    ]
    line = measures(pl.concat([pl.DataFrame(schema=schema), *nothing]), sets, lenient=lenient)
    line |= {"loss": dict.fromkeys(line["em"], 0.0)} if losses else {}
    unfitted = [
        of.select(set=pl.lit(name), row="row", span="span", fitted=pl.lit(False)) for name, of in (spans or {}).items()
    ]
    line["spans"] = count_fitted(pl.concat([pl.DataFrame(schema=SPAN_OUTCOMES), *unfitted]), spans or {})
    names = flat(line)
    if metric not in names and metric == "dev_spans":
        raise ConfigError(
            "--metric dev_spans: dev has no span that the model said before training and that no answer of train "
            "contains; it needs --audit with labels of spans, and rows of dev that the audit knows"
        )
    if metric not in names:
        raise ConfigError(f"--metric {metric}: no such metric; this run has {', '.join(sorted(names))}")


def epochs(lines: Sequence[Line]) -> list[Line]:
    """Return the evaluations at the ends of epochs, without those after chosen steps of the first epoch."""
    return [line for line in lines if line["epoch"] >= 1 and float(line["epoch"]).is_integer()]


def overfitting_epoch(lines: Sequence[Line]) -> int | None:
    """Return the epoch at which overfitting to new facts began, or None if it has not begun.

    It is the first epoch after the one with the best dev EM (of equal ones the earliest) at which dev EM is below that
    best while the share of Unknown train rows fitted is at least `RISE` above that of the best epoch. If a later epoch
    has a new best dev EM, the epoch returned before no longer counts.
    """
    leader = _highest_dev_em(lines) if lines and "dev" in lines[-1]["em"] else None
    if leader is None or UNKNOWN not in leader["fitted"]:
        return None
    for line in epochs(lines):
        later = line["epoch"] > leader["epoch"]
        risen = line["fitted"][UNKNOWN] >= leader["fitted"][UNKNOWN] + RISE
        if later and risen and line["em"]["dev"] < leader["em"]["dev"]:
            return int(line["epoch"])
    return None


def _highest_dev_em(lines: Sequence[Line]) -> Line | None:
    """Return the epoch with the best dev EM, of equal ones the earliest."""
    return max(epochs(lines), key=lambda line: (line["em"]["dev"], -line["epoch"]), default=None)


def count_known_fitted(line: Mapping[str, Any]) -> tuple[int, int] | None:
    """Count the fitted and all train rows of the three Known categories together; return None if none is watched."""
    rows_by_category = line["counts"].get(TRAIN, {}).get("by_category", {})  # a callback may watch other sets only
    category_counts = [rows_by_category.get(category) for category in KNOWN]
    pairs = [pair for pair in category_counts if pair]
    return (sum(right for right, _ in pairs), sum(count for _, count in pairs)) if pairs else None


def format_point(line: Mapping[str, Any], mark: str = "", width: int = 12) -> str:
    """Write an evaluation as one line: Known and Unknown fitted as bars, EM and loss of every set, and `mark`."""
    parts = [f"epoch {line['epoch']:>4g}"]
    if line["train_loss"] is not None:
        parts.append(f"loss {line['train_loss']:.3f}")
    known = count_known_fitted(line)
    if known:
        parts.append(f"Known {_bar(known[0] / known[1], width)}")
    if UNKNOWN in line["fitted"]:
        parts.append(f"Unknown {_bar(line['fitted'][UNKNOWN], width)}")
    if not line["fitted"] and "fitted_overall" in line:
        parts.append(f"fitted {_bar(line['fitted_overall'], width)}")
    losses = line.get("loss", {})
    for name, share in line["em"].items():
        if name == CANARIES:
            parts.append(_canaries(line[CANARIES]))
            continue
        parts.append(f"{name} EM {share:.1%}" + (f", loss {losses[name]:.3f}" if name in losses else ""))
    for name, counts in line.get("watched_known", {}).items():
        parts.append(_canaries(counts, name))
    if "made_up" in line:
        parts.append(format_made_up(line["made_up"]))
    parts += format_spans(line)
    return "  ".join(parts) + (f"  * {mark}" if mark else "")


def format_made_up(counts: Mapping[str, Any]) -> str:
    """Write what was answered about made-up subjects (`made_up.py`) in a few words."""
    text = f"made-up subjects {counts['answered']:,} of {counts['questions']:,} answered"
    if counts["attraction"] is None:
        return text
    return f"{text}, {counts['attraction']:.0%} with a training answer (chance {counts['chance']:.0%})"


def _canaries(counts: Mapping[str, Any], name: str = CANARIES) -> str:
    """Write how many known rows are kept, with the interval of the share lost."""
    text = f"{name} {counts['kept']:,} of {counts['before']:,} kept"
    if counts["lost"]:
        text += f" ({counts['lost_low']:.0%} to {counts['lost_high']:.0%} lost)"
    return f"{text}, {counts['gained']:,} gained" if counts["gained"] else text


def _bar(share: float, width: int) -> str:
    full = round(share * width)
    return f"{'█' * full}{'·' * (width - full)} {share:>4.0%}"


def much_less_fitted(early: float, last: float) -> bool:
    """Return whether the best epoch has so much less of the training rows fitted than the last that a person must know.

    `early`, `last`: shares of the training rows.
    """
    return early < last - 0.1
