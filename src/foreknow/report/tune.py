"""This module renders the page of a training run from `tune.html.j2`.

The page shows the verdict, the curves, the facts kept, lost and gained, example rows, and the settings of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from markupsafe import Markup

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.config.tune import held_out_share
from foreknow.format.numbers import exact, number, p_value, rounded_duration
from foreknow.format.text import file_name, shown_path, source, suffix_of
from foreknow.io.run_dir import differences
from foreknow.report import page
from foreknow.report.audit_options import with_paths
from foreknow.report.charts import INK, SOFT
from foreknow.report.hold_option import comparison_beside
from foreknow.report.train_report_data import Control, TrainReportData
from foreknow.report.tune_canaries import canary_report
from foreknow.report.tune_charts import COLOURS, DASHES, Curve, Mark, epochs_chart, losses_chart
from foreknow.report.tune_examples import examples
from foreknow.report.tune_options import options
from foreknow.report.tune_spans import span_reports
from foreknow.report.tune_tables import (
    Count,
    Fate,
    Group,
    MetricCurve,
    PairedCounts,
    RowChanges,
    TrainRunView,
    against,
    as_good,
    count,
    courses,
    fates,
    groups,
    known,
    row_changes,
    same_known,
)
from foreknow.report.tune_text import early_stop_rule, verdict
from foreknow.settings import read_settings
from foreknow.stages.audit.verdict.row_flags import fault_lines
from foreknow.stages.train import curves
from foreknow.stages.train.curves import TRAIN, Line
from foreknow.stages.train.span_labels import NEW

if TYPE_CHECKING:
    from foreknow.stages.train.result import TrainResult

_OUTCOMES = {"epoch": pl.Float64(), "step": pl.Int64(), "set": pl.String(), "row": pl.Int64(), "correct": pl.Boolean()}
_ROWS = {name: pl.Int64() if name == "row" else pl.String() for name in ("set", "row", "group", "category")} | {
    name: pl.String() for name in ("question", "answer")
}
_SETTINGS = {
    "method": "method",
    "epochs": "epochs, at most",
    "learning_rate": "learning rate",
    "batch_size": "rows per step",
    "dropout": "dropout",
    "weight_decay": "weight decay",
    "warmup": "warmup",
    "max_grad_norm": "gradients cut to norm",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_targets": "LoRA targets",
    "trainable": "weights trained",
    "replay": "share of known rows in a batch",
    "kl": "weight of the divergence from the base model",
    "known_late": "HighlyKnown rows in the last share of steps",
    "loss_weights": "rows weigh in the loss by",
    "average": "points between the weights before and after",
    "patience": "patience (epochs)",
    "metric": "metric that chose the epoch",
    "eval_steps": "also measured after steps",
    "watch_rows": "rows of a set measured after each epoch, at most",
    "match": "answer matching",
    "seed": "seed",
}
_COMPARED = (
    "method",
    "trainable",
    "replay",
    "kl",
    "kl_rows",
    "kl_teacher",
    "kl_exemplars",
    "known_late",
    "loss_weights",
    "learning_rate",
    "batch_size",
    "dropout",
    "weight_decay",
    "warmup",
    "max_grad_norm",
    "metric",
    "match",
    "seed",
)
"""The settings in which a control must agree with the run; with LoRA, those of `_LORA` too."""
_FORM = ("prompt", "instruction", "chat_template", "bos_in_prompt")
"""What decides how the rows are written, of `training_text` in the results: a control must agree in it too."""
_LORA = ("lora_rank", "lora_alpha", "lora_targets")
SETS_CHARTED = 4
GROUPS_SHOWN = 24


class SetReport(NamedTuple):
    """Everything that the page shows of one set (dev or a test set)."""

    name: str
    course: MetricCurve | None
    control: MetricCurve | None
    against: tuple[PairedCounts, PairedCounts] | None
    chart: tuple[Markup, Markup] | None
    fates: tuple[Fate, ...]
    changes: tuple[RowChanges, ...]
    groups: tuple[Group, ...]


def render_tune(tuned: TrainResult, control: TrainResult | None = None, *, show_rows: bool = True) -> str:
    """Render the whole page. With `show_rows=False` it contains no question and no answer of the data.

    `control`: a run on rows without Unknown ones. Of a run that has not ended, the page shows the epochs so far.
    """
    run = read(tuned)
    other = read(control) if control is not None else None
    story = _story(run, other) if run.early is not None else None
    suffix = suffix_of(run.config.get("train"))
    fingerprint = (run.results.get("model") or {}).get("fingerprint")
    study = comparison_beside(tuned.folder, fingerprint)
    sets = [_set_report(run, other, name, chart=place < SETS_CHARTED) for place, name in enumerate(run.sets)]
    return page.render(
        "tune.html.j2",
        version=run.results.get("version"),
        run=run,
        other=other,
        story=story,
        verdict=verdict(story) if story else None,
        early_stop=early_stop_rule(run.chooser, run.metric),
        options=with_paths(options(story, suffix, study), _paths(run, tuned.folder)) if story else (),
        notes=_notes(run),
        model=dict(run.results.get("model") or {"name": run.config.get("model")}),
        warning=page.warning_of(run.results.get("model") or {}),
        train=_file(run, TRAIN),
        points=_points(run, other),
        fit=page.both(epochs_chart, *_fit(run, other)) if run.ends and run.shows_exact_match else None,
        losses=page.both(losses_chart, *_losses(run)) if _losses(run)[0] else None,
        ever_right=run.ever_right,
        spans=span_reports(run, _marks(run)),
        sets=sets,
        compared=[report for report in sets if report.against],
        lines=_every(run),
        names=list(run.sets),
        fitted=[c for c in CATEGORIES if run.lines and c in run.lines[-1]["fitted"]],
        examples=examples(run, other) if show_rows else {},
        has_rows=not run.rows.is_empty(),
        show_rows=show_rows,
        lenient=run.config.get("match") == "lenient",
        p=p_value,
        groups_shown=GROUPS_SHOWN,
        facts=_facts(run),
        canaries=canary_report(run, tuned.folder, show_rows=show_rows),
    )


def _paths(run: TrainRunView, folder: Path) -> dict[str, str | None]:
    """What the words in capitals stand for in the page's commands."""
    words = {"TRAIN": "train", "DEV": "dev", "MODEL": "model", "AUDIT": "audit"}
    files = [*dict(run.config.get("test") or {}).values(), run.config.get("dev")]
    questions = next((shown_path(file) for file in files if file and held_out_share(str(file)) is None), None)
    known = {word: shown_path(run.config.get(key)) for word, key in words.items()}
    return {"DIR": shown_path(folder), "QUESTIONS": questions, **known}


def read(tuned: TrainResult) -> TrainRunView:
    """Read the folder of a run, whether it has ended or not."""
    folder = tuned.folder
    results = _results(folder)
    config = results.get("config") or read_settings(folder)
    return TrainRunView(
        tuned.metrics,
        _frame(folder / "outcomes.parquet", _OUTCOMES),
        _frame(folder / "rows.parquet", _ROWS),
        results,
        config,
    )


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _frame(path: Path, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return pl.read_parquet(path, columns=list(schema)) if path.is_file() else pl.DataFrame(schema=dict(schema))


def _story(run: TrainRunView, other: TrainRunView | None) -> TrainReportData:
    early, last = run.chosen
    of = courses(run)
    unknown_counts = [unknown_fitted for line in (early, last) if (unknown_fitted := count(line, TRAIN, UNKNOWN))]
    return TrainReportData(
        steps=last["step"],
        best=int(early["epoch"]),
        last=int(last["epoch"]),
        planned=int(run.config.get("epochs") or last["epoch"]),
        metric=run.metric,
        chosen=curves.flat(early)[run.metric],
        courses=of,
        unknown=(unknown_counts[0], unknown_counts[1]) if len(unknown_counts) == 2 else None,
        labelled=run.unknown_rows is not None,
        began=_overfitting_epoch(run),
        falls=curves.overfitting_epoch(run.lines) is not None,
        as_good=as_good(run),
        gained=count(early, of[0].name, UNKNOWN) if of else None,
        control=_control(run, other) if other is not None and other.early is not None else None,
        ceiling=float(run.results.get("ceiling") or 1.0),
        finished=run.finished,
        chooser=run.chooser,
        dev_loss=_dev_loss(early, last),
        fitted=(early["fitted_overall"], last["fitted_overall"]),
        keep=run.config.get("keep") or "both",
        held=bool(run.config.get("replay") or run.config.get("kl")),
        spans=_spans_trained_on(early, last),
        canaries=_canaries(early, last),
        is_mix=bool(run.results.get("mix")) or not run.finished,
        has_audit=bool(run.config.get("audit")),
    )


def _overfitting_epoch(run: TrainRunView) -> int | None:
    """Return where overfitting to new facts began; None if dev's rows cannot tell the last epoch from the best one."""
    began = curves.overfitting_epoch(run.lines)
    return None if began is not None and int(run.chosen[1]["epoch"]) in as_good(run) else began


def _canaries(early: Line, last: Line) -> tuple[PairedCounts, PairedCounts] | None:
    """Compare the canaries right before training with two evaluations; None if none was watched."""
    both = [line.get(curves.CANARIES) for line in (early, last)]
    pairs = [PairedCounts(of["before"], of["lost"], of["gained"]) for of in both if of]
    return (pairs[0], pairs[1]) if len(pairs) == 2 else None


def _spans_trained_on(early: Line, last: Line) -> tuple[tuple[Count, Count], tuple[Count, Count]] | None:
    """Fitted spans of train that are Known, and that are new, at two evaluations; None if train has none of a kind."""

    def ends(*labels: str) -> tuple[Count, Count]:
        both = [[line.get("spans", {}).get(TRAIN, {}).get(label, (0, 0)) for label in labels] for line in (early, last)]
        before, after = (Count(sum(n for n, _ in parts), sum(of for _, of in parts)) for parts in both)
        return before, after

    known, new = ends(*KNOWN), ends(NEW)
    return (known, new) if known[0].rows and new[0].rows else None


def _dev_loss(early: Line, last: Line) -> tuple[float, float] | None:
    losses = [line.get("loss", {}).get("dev") for line in (early, last)]
    return (losses[0], losses[1]) if None not in losses else None


def _training_text(run: TrainRunView) -> dict[str, Any]:
    """How the run wrote its rows; empty where it has not ended."""
    return dict((run.results.get("method") or {}).get("training_text") or {})


def _control(run: TrainRunView, other: TrainRunView) -> Control:
    early, last = other.chosen
    keys = [*_COMPARED, *(_LORA if run.config.get("method") == "lora" else ())]
    differ = differences({k: run.config.get(k) for k in keys}, {k: other.config.get(k) for k in keys})
    own, others = _training_text(run), _training_text(other)
    if own and others:
        differ += differences({k: own.get(k) for k in _FORM}, {k: others.get(k) for k in _FORM})
    models = [(r.results.get("model") or {}).get("fingerprint") for r in (run, other)]
    if models[0] != models[1]:
        differ.insert(0, "it starts from another model")
    if not other.finished:
        differ.append("it has not ended")
    elif (last_epoch := run.chosen[1]["epoch"]) != last["epoch"]:
        differ.append(f"it ended after {last['epoch']:g} epochs, this run after {last_epoch:g}")
    of = {course.name: course for course in courses(other) if run.same_rows(other, course.name)}
    comparisons = {name: pair for name in of if (pair := against(run, other, name))}
    return Control(
        rows=other.train_rows,
        unknown=other.unknown_rows,
        same_known=same_known(run, other),
        early=int(early["epoch"]),
        last=int(last["epoch"]),
        courses=of,
        against=comparisons,
        steps=last["step"],
        differ=tuple(differ),
    )


def _set_report(run: TrainRunView, other: TrainRunView | None, name: str, *, chart: bool) -> SetReport:
    of = {course.name: course for course in courses(run)}
    right = any(line["counts"][name]["correct"] for line in run.lines)  # a chart of nothing but zeros shows nothing
    same = other is not None and run.same_rows(other, name)
    theirs = {course.name: course for course in courses(other)} if other is not None and same else {}
    return SetReport(
        name,
        of.get(name),
        theirs.get(name),
        against(run, other, name) if other is not None else None,
        page.both(epochs_chart, _by_category(run, name), _marks(run)) if chart and run.ends and right else None,
        fates(run, other, name),
        row_changes(run, other, name),
        groups(run, other, name),
    )


def _fit(run: TrainRunView, other: TrainRunView | None) -> tuple[list[Curve], list[Mark]]:
    """The curves and marks of the paper's Figure 1: Known and Unknown train rows fitted, and dev EM."""
    lines = []
    first = run.lines[-1]
    if known(first):
        points = _points_of(run.lines, known)
        lines.append(Curve("Known rows, fitted", "Known", points, COLOURS["MaybeKnown"]))
    if count(first, TRAIN, UNKNOWN):
        points = _points_of(run.lines, lambda line: count(line, TRAIN, UNKNOWN))
        lines.append(Curve("Unknown rows, fitted", "Unknown", points, COLOURS[UNKNOWN]))
    if not lines:
        lines.append(Curve("train rows, fitted", "fitted", _points_of(run.lines, lambda x: count(x, TRAIN)), SOFT))
    if "dev" in run.sets:
        lines.append(Curve("dev EM", "dev EM", _points_of(run.lines, lambda x: count(x, "dev")), INK, width=3))
    if other is not None and "dev" in other.sets and run.same_rows(other, "dev"):
        ends = [line for line in other.lines if line["epoch"] <= run.lines[-1]["epoch"]]
        points = _points_of(ends, lambda x: count(x, "dev"))
        if points and points[-1][0] == run.lines[-1]["epoch"]:  # otherwise its label would stand at another epoch
            lines.append(Curve("dev EM, control", "control", points, INK, (2, 3), 1.8))
    marks = _marks(run)
    began = _overfitting_epoch(run)
    return lines, [
        *marks,
        Mark(began, f"overfitting began, epoch {began}", f"overfitting, epoch {began}"),
    ] if began else marks


def _losses(run: TrainRunView) -> tuple[list[Curve], list[Mark]]:
    """The curves of dev loss and train loss; none where the run has no two epochs with a dev loss."""
    lines = []
    by_label = {
        "dev loss": [(float(line["epoch"]), line.get("loss", {}).get("dev")) for line in run.lines],
        "train loss": [(float(line["epoch"]), line["train_loss"]) for line in run.lines],
    }
    for label, values in by_label.items():
        points = tuple((epoch, loss) for epoch, loss in values if loss is not None)
        if len(points) > 1:
            dash = (1, 0) if label == "dev loss" else (2, 3)
            lines.append(Curve(label, label.split()[0], points, INK, dash, 3 if label == "dev loss" else 1.8))
    if not lines or lines[0].label != "dev loss":
        return [], []
    return lines, _marks(run)


def _by_category(run: TrainRunView, name: str) -> list[Curve]:
    """The EM curves of a set by category, or one curve for all rows if they have no category."""
    lines = []
    for category in CATEGORIES:
        if of := count(run.lines[-1], name, category):
            points = _points_of(run.lines, lambda line, c=category: count(line, name, c))
            label = f"{category}, {of.rows:,} rows:"
            lines.append(Curve(label, category, points, COLOURS[category], tuple(DASHES[category])))
    return lines or [Curve("all rows", "all rows", _points_of(run.lines, lambda line: count(line, name)), INK)]


def _points_of(lines: Iterable[Line], what: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(line["epoch"]), of.share) for line in lines if (of := what(line)) is not None)


def _marks(run: TrainRunView) -> list[Mark]:
    if run.early is None or run.last is None:
        return []
    early, last = run.early["epoch"], run.last["epoch"]
    end = "CONVERGENCE" if run.finished else "last so far"
    if early == last:
        return [Mark(last, f"EARLY_STOP and {end}, epoch {last}" if run.finished else f"best and {end}, epoch {last}")]
    start = "EARLY_STOP" if run.finished else "best so far"
    return [Mark(last, f"{end}, epoch {last}"), Mark(early, f"{start}, epoch {early}")]


def _points(run: TrainRunView, other: TrainRunView | None) -> list[dict[str, Any]]:
    """EARLY_STOP and CONVERGENCE of this run and of the control, as lines of a table."""
    points = []
    for whose, of in (("this run", run), ("control", other)):
        names = ("EARLY_STOP", "CONVERGENCE") if of is None or of.finished else ("best so far", "last so far")
        for name, line in zip(names, (of.early, of.last) if of else (None, None), strict=True):
            if of is None or line is None:
                continue
            same = of is run
            em = {k: count(line, k) for k in run.sets if same or run.same_rows(of, k)}
            fitted = {"known": known(line), "unknown": count(line, TRAIN, UNKNOWN), "all": count(line, TRAIN)}
            points.append({"whose": whose, "name": name, "epoch": int(line["epoch"]), "em": em, **fitted})
    return points


def _every(run: TrainRunView) -> list[dict[str, Any]]:
    """Every evaluation of the run, as lines of a table."""
    early, last = run.early, run.last
    marks = {line["step"]: name for line, name in ((last, "CONVERGENCE"), (early, "EARLY_STOP")) if line}
    if early and last and early["step"] == last["step"]:
        marks[last["step"]] = "EARLY_STOP, CONVERGENCE"
    return [
        {
            "epoch": f"{line['epoch']:g}",
            "step": line["step"],
            "loss": line["train_loss"],
            "dev_loss": line.get("loss", {}).get("dev"),
            "mark": marks.get(line["step"], ""),
            "fitted": line["fitted"],
            "fitted_overall": line["counts"][TRAIN]["correct"] / max(line["counts"][TRAIN]["rows"], 1),
            "em": line["em"],
            "seconds": rounded_duration(line["seconds"]) if "seconds" in line else "–",
        }
        for line in run.lines
    ]


def _file(run: TrainRunView, name: str) -> str:
    """The name of a set's file, without the folders it lies in."""
    name_or_path = (run.results.get("data") or {}).get(name, {}).get("file") or run.config.get(name) or ""
    return file_name(name_or_path)


def _facts(run: TrainRunView) -> dict[str, list[page.Fact]]:
    """The settings, model, data and cost of the run, as labels and values."""
    results, config = run.results, run.config
    method = dict(results.get("method") or {})
    settings = {k: v for k, v in config.items() if k in _SETTINGS and (not k.startswith("lora") or _is_lora(config))}
    settings.pop("middle_rate", None)
    if rates := results.get("learning_rate"):
        tried = ", ".join(f"{one['rate']:g}" for one in rates["trials"])
        settings["learning_rate"] = f"{rates['chosen']:g}: of {tried}, it had {rates['reason']}"
    reasons, text = method.pop("reasons", []), dict(method.pop("training_text", {}))
    method.pop("notes", None)
    how = {**{k: v for k, v in method.items() if k != "name"}, **text, "instruction": text.get("instruction") or None}
    data = []
    for name, of in dict(results.get("data") or {}).items():
        skipped = f", {of['skipped']:,} left out" if of.get("skipped") else ""
        data.append((name, f"{_file(run, name)}: {of['rows']:,} rows{skipped}", False))
        whence = of.get("categories")
        data.append((f"{name}: categories from", source(whence) if whence else "none", False))
        data.append((f"{name}: fingerprint", str(of.get("fingerprint")), False))
    seconds = dict(results.get("seconds") or {})
    cost = [
        (k, rounded_duration(float(seconds[k])), False) for k in ("training", "measuring", "saving") if k in seconds
    ]
    if seconds:
        cost.insert(0, ("in all", rounded_duration(sum(map(float, seconds.values()))), False))
    if (rate := results.get("rows_per_second")) is not None:
        cost.append(("rows trained per second", number(float(rate)), False))
    if results.get("stopped_by_patience"):
        cost.append(("ended by", "patience", False))
    if results.get("stopped_fitted"):
        cost.append(("ended by", "share of train rows fitted", False))
    cost += [("steps", f"{results['steps']:,}", False)] if "steps" in results else []
    ceiling = float(results.get("ceiling", 1.0))
    if results:
        data.append(("rows that can be fitted", exact(ceiling) if ceiling < 1 else "all", False))
    return {
        "settings": page.facts(settings, _SETTINGS),
        "method": [*page.facts(how), *(("chosen", str(reason), False) for reason in reasons)],
        "model": page.model_facts(results.get("model") or {}),
        "data": data,
        "cost": cost,
    }


def _notes(run: TrainRunView) -> list[str]:
    """The notes on the prompts, and on rows that are left out or teach nothing."""
    data = dict(run.results.get("data") or {}).items()
    faults = [line for name, of in data for line in fault_lines(name, of.get("row_faults") or {})]
    drawn = [
        f"{name}: {of['watched']:,} of its {of['rows']:,} rows, drawn at random, were measured after each epoch"
        + (
            ", all of them at EARLY_STOP and CONVERGENCE: the tables have all rows, the curves the drawn ones"
            if of.get("watched_at_points") == of["rows"]
            else ""
        )
        for name, of in data
        if of.get("watched", of["rows"]) < of["rows"]
    ]
    return [*(run.results.get("method") or {}).get("notes", []), *drawn, *faults]


def _is_lora(config: Mapping[str, Any]) -> bool:
    return config.get("method") == "lora"
