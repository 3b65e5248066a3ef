"""This module offers what to do after a training run, the recommended option first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foreknow.format.numbers import count, exact, exact_interval, p_value
from foreknow.report.audit_options import Option
from foreknow.report.hold_option import hold_option
from foreknow.report.train_report_data import TrainReportData
from foreknow.stages.train.curves import much_less_fitted

_GO_ON = Option(
    "resume",
    "Continue the run",
    "Give the same command again: the run continues from its last checkpoint, and you can render this page again.",
    "",
    "",
    "",
    "foreknow tune --config DIR/config.yaml",
    "The run has not ended, and no checkpoint is final.",
)


def options(
    story: TrainReportData, suffix: str = ".jsonl", study: Mapping[str, Any] | None = None
) -> tuple[Option, ...]:
    """The next steps, the recommended one first. `study`: a study of remedies (`hold_option.comparison_beside`)."""
    drop = _drop(story, suffix)
    hold = _hold(story, study, drop)
    longer = _longer(story)
    if longer and hold and hold.why:
        longer = replace(longer, why="")
    weights = {"last": "DIR/convergence", "none": "CHECKPOINT"}.get(story.keep, "DIR/early_stop")
    keep = Option(
        "keep",
        _keep_title(story),
        f"{_what_is_saved(story)} Before you use it, read its answers: which are wrong, which "
        "are refusals, and which differ from the base model's.",
        _at_best(story),
        "",
        _less_learnt(story),
        f"foreknow evaluate {weights} QUESTIONS{' --audit AUDIT' if story.has_audit else ''} --out EVAL",
        _why_keep(story, drop, hold, longer),
    )
    cards = [keep, longer, drop, hold, _measure(story, suffix), _retrieve(story, suffix)]
    if not story.finished:
        cards = [_GO_ON, _retrieve(story, suffix)]
    return tuple(sorted((o for o in cards if o), key=lambda o: not o.why))


def _what_is_saved(story: TrainReportData) -> str:
    if story.keep == "last" and story.best < story.last:
        return (
            f"The run saved the weights of epoch {story.last} only (--keep last); --keep best in a new folder saves "
            f"those of epoch {story.best}."
        )
    if story.keep == "none":
        return (
            f"The trainer saved its own checkpoints: take that of epoch {story.best}, if its settings kept it, and put "
            "its path for CHECKPOINT."
        )
    return "The checkpoint is saved as a model of its own."


def _less_learnt(story: TrainReportData) -> str:
    """The price of an early epoch: it has learnt less of the training rows."""
    best, last = story.fitted
    if not much_less_fitted(best, last):
        return ""
    text = f"Epoch {story.best} has {exact(best)} of the training rows fitted, epoch {story.last} {exact(last)}."
    if story.keep == "best":
        text += " If it must learn these rows, train in a new folder with --keep last, and weigh what that breaks."
    return text


def _keep_title(story: TrainReportData) -> str:
    if story.chooser == "nothing":
        return "No epoch stands out: read some answers before you keep one"
    by_loss = story.chooser != "metric" and story.last > 1
    return f"Keep the checkpoint of epoch {story.best}" + (", chosen by dev loss" if by_loss else "")


def _hold(story: TrainReportData, study: Mapping[str, Any] | None, drop: Option | None) -> Option | None:
    """The option to hold on to old facts; the first thing to do where the kept epoch has lost some of those watched."""
    if story.held:
        return None
    hold = hold_option(study, tuned=True)
    early = story.canaries[0] if story.canaries else None
    if (drop and drop.why) or early is None or not early.clear or early.lost < early.won:
        return hold
    lost = f"{early.lost:,} of the {early.rows:,} other facts that were watched are lost at epoch {story.best}"
    return replace(hold, why=f"{lost} ({p_value(early.p)}).")


def _why_keep(story: TrainReportData, drop: Option | None, hold: Option | None, longer: Option | None) -> str:
    if any(other and other.why for other in (drop, hold, longer)) or story.chooser == "nothing":
        return ""
    if story.chooser != "metric":
        return "Dev loss chose it; exact match does not tell this epoch from others."
    if story.best == story.last:
        return "It is the last epoch and the best one."
    of = story.judged
    if of and of.moved and of.moved.clear and of.last.hits < of.early.hits:
        return f"Further training cost {abs(100 * (of.early.share - of.last.share)):.1f} points of {of.name} EM."
    return "No later epoch is better on dev."


def _at_best(story: TrainReportData) -> str:
    by_loss = story.dev_loss is not None and story.chooser != "metric"
    shown = [course for course in story.courses[:4] if course.early.hits or not by_loss]
    parts = [f"dev loss {story.dev_loss[0]:.3f}"] if by_loss and story.dev_loss else []
    parts += [f"{course.name} EM {exact_interval(course.early.interval)}" for course in shown]
    return f"{', '.join(parts)}." if parts else ""


def _longer(story: TrainReportData) -> Option | None:
    if story.best < story.last or story.chooser == "nothing":
        return None
    sign = "dev EM has fallen" if story.chooser == "metric" else "dev loss has risen"
    return Option(
        "longer",
        "Train longer",
        f"Train until {sign} for some epochs, so that you know which epoch is the best.",
        "",
        "",
        *_how_longer(story),
        f"Epoch {story.last} is the last and the best, so the peak may come later.",
    )


def _how_longer(story: TrainReportData) -> tuple[str, str]:
    """What to mind, and the command; for another trainer its setting."""
    epochs = max(2 * story.last, 5)
    if story.keep == "none":
        return f"In your trainer: num_train_epochs={epochs}, and another out= for KnowledgeCallback.", ""
    return (
        "NEW must be a new folder, because the number of epochs is part of a run's identity; the other settings are "
        "those of this run.",
        f"foreknow tune --config DIR/config.yaml --epochs {epochs} --patience 5 --out NEW",
    )


def _drop(story: TrainReportData, suffix: str) -> Option | None:
    """The option to train without the Unknown rows, if a control shows the effect of that."""
    control, of = story.control, story.judged
    if control is None or control.unknown != 0 or not story.unknown or of is None or of.name not in control.against:
        return None
    early, last = control.against[of.name]
    theirs = control.courses[of.name]
    # a run whose best epoch is its last may not have peaked, so comparing the best epochs is not yet fair
    better = story.best < story.last and early.clear and early.won > early.lost
    evidence = (
        f"{of.name} EM at the best epochs {exact(of.early.share)} here, {exact(theirs.early.share)} in the control "
        f"({p_value(early.p)}); at the end {exact(of.last.share)} and {exact(theirs.last.share)} ({p_value(last.p)})."
    )
    return Option(
        "drop",
        "Train on the Known rows only",
        "The model then cannot learn to guess from rows whose facts it did not express before training.",
        evidence,
        "Choose it if training may run long, or if you have no dev set to stop on.",
        "The control's early_stop folder is such a model.",
        _mix_known(story, suffix),
        f"Even with each run at its best epoch, the control is right on {early.won:,} rows that this run gets wrong, "
        f"and wrong on {early.lost:,} that it gets right ({p_value(early.p)})."
        if better
        else "",
    )


def _measure(story: TrainReportData, suffix: str) -> Option | None:
    """The option to train a control, if there is none."""
    if story.control or not story.unknown:
        return None
    if story.keep == "none":
        return Option(
            "control",
            "Find out what the Unknown rows cost",
            "Train again with the same settings on the same rows without the Unknown ones, and give this page the "
            "folder of the other run. Without such a control, the effect of the Unknown rows cannot be separated from "
            "the effect of long training.",
            "",
            "",
            "Write CONTROL with your trainer and KnowledgeCallback(out=CONTROL).",
            f"foreknow mix AUDIT --drop unknown --out known{suffix}\nforeknow report DIR --control CONTROL",
        )
    return Option(
        "control",
        "Find out what the Unknown rows cost",
        "Tune again with the same settings on the same rows without the Unknown ones, and compare the two runs. "
        "Without such a control, the effect of the Unknown rows cannot be separated from the effect of long training.",
        "",
        "",
        "CONTROL must be a new folder.",
        f"{_mix_known(story, suffix)}\nforeknow tune known{suffix} --config DIR/config.yaml --out CONTROL\n"
        "foreknow report DIR --control CONTROL",
    )


def _mix_known(story: TrainReportData, suffix: str) -> str:
    """The command that writes the Known rows of the run's own: of its training set, if foreknow mix wrote that."""
    which = "--known-of TRAIN" if story.is_mix else "--drop unknown"
    return f"foreknow mix AUDIT {which} --out known{suffix}"


def _retrieve(story: TrainReportData, suffix: str) -> Option | None:
    if not story.unknown:
        return None
    early = story.unknown[0]
    evidence = f"At the best epoch {early.hits:,} of {count(early.rows, 'Unknown training row')} are fitted"
    if story.gained:
        name = story.courses[0].name
        evidence += f", and {story.gained.hits:,} of {count(story.gained.rows, 'Unknown row')} of {name} are right"
    return Option(
        "retrieve",
        "Put the Unknown facts in retrieval",
        "Look these facts up when a user asks for them, instead of training the model on them.",
        f"{evidence}.",
        "Choose it if the facts themselves must be right in the answers.",
        "",
        f"foreknow mix AUDIT --only Unknown --out unknown{suffix}",
    )
