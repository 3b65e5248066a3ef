"""This module writes the verdict of a training run: which epoch to keep, what further training cost, what to do.

Its functions have no side effects. A sentence states a difference if the exact McNemar p-value over the same rows is
below `tune_tables.CHANCE`; otherwise it says that these rows show none. No sentence is about other seeds, because
one run cannot show their effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from foreknow.format.numbers import count, enumeration, exact, exact_interval, p_value
from foreknow.report.audit_options import Option
from foreknow.report.hold_option import hold_option
from foreknow.report.tune_tables import FEW, Count, MetricCurve, PairedCounts
from foreknow.stages.train.curves import much_less_fitted
from foreknow.stages.train.selection import Chooser
from foreknow.stats import wilson


@dataclass(frozen=True)
class Control:
    """The control run: its rows, its chosen epochs, and its results.

    `rows`, `unknown`: rows trained on, and the Unknown ones among them. `same_known`: whether its rows are exactly
    this run's Known rows. `early`, `last`: epochs. `courses`: EM by set, for sets with the same rows as this run's.
    `against`: this run compared with it at EARLY_STOP and CONVERGENCE (`lost`: right only here, `won`: right only
    there). `differ`: the settings that are not the same.
    """

    rows: int
    unknown: int | None
    same_known: bool
    early: int
    last: int
    courses: dict[str, MetricCurve]
    against: dict[str, tuple[PairedCounts, PairedCounts]]
    steps: int
    differ: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the control was trained on, in words."""
        if self.same_known:
            return f"Trained on the same {count(self.rows, 'Known row')} alone"
        if self.unknown == 0:
            return f"Trained on {count(self.rows, 'row')}, none of them Unknown"
        return f"Trained on {count(self.rows, 'row')}"


@dataclass(frozen=True)
class TrainReportData:
    """The numbers that the verdict is based on.

    `best`, `last`: epochs. `planned`: epochs in the settings. `chosen`: the metric's value at the best epoch.
    `courses`: EM of every set, test sets first, dev last. `unknown`: Unknown train rows fitted at EARLY_STOP and at
    CONVERGENCE; None if there are none, or if the rows have no categories (`labelled`). `began`: the epoch at which
    overfitting to new facts began, if dev's rows can tell. `falls`: whether dev EM fell at all while they were learnt.
    `as_good`: epochs whose dev answers do not clearly differ from those of the best.
    `gained`: Unknown rows of the judged set that are right at EARLY_STOP. `ceiling`: the share of rows that can be
    fitted. `chooser`: what chose the best epoch (`selection.py`). `dev_loss`: at the best epoch and at the last, in
    nats a token; None if the run did not measure it. `fitted`: the share of training rows fitted at the best epoch and
    at the last. `keep`: whose weights the run kept, best, last or both; none if another trainer keeps them. `held`:
    whether known rows were replayed, or the model held to its predictions before training. `spans`: of the labelled
    spans inside long answers trained on, the Known ones and those new to the model that are fitted, each at the best
    epoch and at the last. `canaries`: the facts watched besides the rows, before training against the best epoch and
    against the last; `rows` are those right before. None if none was watched.
    """

    steps: int
    best: int
    last: int
    planned: int
    metric: str
    chosen: float
    courses: tuple[MetricCurve, ...]
    unknown: tuple[Count, Count] | None = None
    labelled: bool = True
    began: int | None = None
    falls: bool = False
    as_good: tuple[int, ...] = ()
    gained: Count | None = None
    control: Control | None = None
    ceiling: float = 1.0
    finished: bool = True
    chooser: Chooser = "metric"
    dev_loss: tuple[float, float] | None = None
    fitted: tuple[float, float] = (1.0, 1.0)
    keep: str = "best"
    held: bool = False
    spans: tuple[tuple[Count, Count], tuple[Count, Count]] | None = None
    canaries: tuple[PairedCounts, PairedCounts] | None = None

    @property
    def dev(self) -> MetricCurve | None:
        """EM of dev; None if there is no dev set."""
        return next((c for c in self.courses if c.name == "dev"), None)

    @property
    def judged(self) -> MetricCurve | None:
        """The set that the verdict is about: the first test set, else dev, which chose the epoch."""
        return self.courses[0] if self.courses else None


class TrainVerdict(NamedTuple):
    """The sentence at the top, the points it is based on (a label and a sentence each), and the cautions."""

    headline: str
    points: tuple[tuple[str, str], ...]
    cautions: tuple[str, ...]


def verdict(story: TrainReportData) -> TrainVerdict:
    """Write the verdict: the result, the points it is based on, and the cautions."""
    first = options(story)[0]
    points = {
        "Further training": _further_training(story),
        "New facts": _new_facts(story),
        "Old facts": _old_facts(story),
        "Control": _beside_control(story),
        "To do": f"{first.title}. {first.why}",
    }
    return TrainVerdict(_found(story), tuple((k, v) for k, v in points.items() if v), _cautions(story))


def _found(story: TrainReportData) -> str:
    dev = story.dev
    if story.chooser != "metric" and story.last > 1:
        return _found_otherwise(story)
    if story.metric == "dev_em" and dev:
        value = f"dev EM {exact_interval(dev.early.interval)} of {count(dev.early.rows, 'row')}"
        end = f"; at the end it is {exact(dev.last.share)}"
    else:
        value, end = f"{story.metric} {exact(story.chosen)}", ""
    so_far = "" if story.finished else " so far"
    if story.last == 1:
        return f"One epoch was trained{so_far}: {value}."
    if story.best == story.last:
        return f"The last epoch, {story.last}, is the best one{so_far}: {value}."
    return f"From this run, keep epoch {story.best} of {story.last}, the best one{so_far}: {value}{end}."


def _found_otherwise(story: TrainReportData) -> str:
    """The headline where something else than the metric chose the epoch."""
    so_far = "" if story.finished else " so far"
    name = story.metric.replace("_", " ").replace(" em", " EM")
    if story.chooser == "nothing" or story.dev_loss is None:
        return (
            f"{name} is {exact(story.chosen)} at every epoch{so_far}, and the run measured no dev loss, so it does not "
            "show which epoch is best."
        )
    best, last = story.dev_loss
    where = f"epoch {story.best} of {story.last}, where dev loss is {best:.3f}"
    then = "" if story.best == story.last else f" (at the end {last:.3f})"
    if story.chooser == "loss":
        return f"Dev loss chose {where}{then}, the lowest{so_far}."
    if story.chooser == "tie":
        return (
            f"{name} is {exact(story.chosen)} at every epoch{so_far} and tells none apart, so dev loss chose: "
            f"{where}{then}."
        )
    return (
        f"By {name} the rows of dev cannot tell {where}, from other epochs, so dev loss chose it{so_far}{then}: "
        f"{name} is {exact(story.chosen)}."
    )


def _further_training(story: TrainReportData) -> str:
    """The effect on the judged set of the epochs after the best one."""
    of = story.judged
    if story.last == 1:
        return "One epoch gives no curve, so this run does not show whether more epochs would help or harm."
    if story.best == story.last:
        return "This run does not show whether EM would still rise, because no later epoch shows a fall."
    if of is None:
        return ""
    if not of.early.hits and not of.last.hits and story.dev_loss is not None:
        before, after = story.dev_loss
        change = "rose" if after > before else "fell" if after < before else "stayed"
        return (
            f"Dev loss {change} from {before:.3f} at epoch {story.best} to {after:.3f} at epoch {story.last}; no row "
            f"of {of.name} is right at either."
        )
    if not of.early.hits and not of.last.hits:
        return f"No row of {of.name} is right at either epoch, so EM does not show what further training did."
    change = f"{of.name} EM {exact(of.early.share)} at epoch {story.best}, {exact(of.last.share)} at epoch {story.last}"
    if of.moved is None:
        return f"The results of single rows are not available yet: {change}."
    rows = f"{count(of.moved.lost, 'row')} lost, {of.moved.won:,} gained, {p_value(of.moved.p)}"
    points = f"{abs(100 * (of.early.share - of.last.share)):.1f} points"
    if not of.moved.clear:
        return f"It made no difference that these rows can show: {change} ({rows})."
    if of.last.hits < of.early.hits:
        return f"It cost {points}: {change} ({rows})."
    return f"It gained {points}, though {story.metric} was past its best: {change} ({rows})."


def _new_facts(story: TrainReportData) -> str:
    if story.spans and not story.unknown:
        known, new = story.spans
        known_course, new_course = _span_course("Known", *known, story), _span_course("new", *new, story)
        return f"Of the spans inside the answers trained on, {known_course}, and {new_course}."
    if not story.labelled:
        return "The rows have no categories, so Known and Unknown cannot be told apart."
    if story.unknown is None:
        return "No row trained on is Unknown, so there were no new facts to overfit to."
    early, last = story.unknown
    of = f"{exact(early.share)} of the {count(early.rows, 'Unknown row')} trained on"
    if story.best == story.last:
        return f"{of} are fitted."
    then = f"{of} are fitted at epoch {story.best}, {exact(last.share)} at epoch {story.last}"
    if story.began is None and not (story.dev and (story.dev.early.hits or story.dev.last.hits)):
        return f"{then[:1].upper()}{then[1:]}. No dev row is right at either, so dev does not show what that cost."
    if story.began is None and story.falls:
        return f"{then[:1].upper()}{then[1:]}. Dev EM fell meanwhile, by no more than chance gives on so few rows."
    if story.began is None:
        return f"No overfitting to new facts was seen: {then}."
    return f"Overfitting to new facts began at epoch {story.began}: {then}, and dev EM stayed below its best."


def _old_facts(story: TrainReportData) -> str:
    """Say what became of the facts watched besides the rows."""
    if story.canaries is None or not story.canaries[1].rows:
        return ""
    early, last = story.canaries
    kept = f"{last.rows - last.lost:,} at epoch {story.last}"
    if story.best != story.last:
        kept = f"{early.rows - early.lost:,} at epoch {story.best}, {kept}"
    of = f"Kept of {count(last.rows, 'fact')} besides these rows that the model knew before training: {kept}"
    if not last.clear:
        return f"{of}; that is no loss that so many facts can show ({p_value(last.p)})."
    return f"{of}. Lost at the end: {exact_interval(wilson(last.lost, last.rows))}."


def _span_course(name: str, early: Count, last: Count, story: TrainReportData) -> str:
    """How many spans of one kind are fitted: 84.0 % of the 25 Known ones at epoch 2 and 100 % at epoch 5."""
    text = f"{exact(early.share)} of the {early.rows:,} {name} {'one is' if early.rows == 1 else 'ones are'} fitted"
    return text if story.best == story.last else f"{text} at epoch {story.best}, {exact(last.share)} at {story.last}"


def _beside_control(story: TrainReportData) -> str:
    control, of = story.control, story.judged
    course = control.courses.get(of.name) if control and of else None
    if control is None or of is None or course is None:
        return ""
    text = f"{control.name}: {of.name} EM {exact(course.early.share)} at its best epoch, {control.early}, and "
    text += f"{exact(course.last.share)} at its end, epoch {control.last}"
    if of.name not in control.against:
        return f"{text}."
    last = control.against[of.name][1]
    text += f". At its end the control is right on {count(last.won, 'row')} that this run gets wrong, and wrong on "
    return f"{text}{last.lost:,} that this run gets right ({p_value(last.p)})."


def _cautions(story: TrainReportData) -> tuple[str, ...]:
    cautions = []
    if not story.finished:
        cautions.append(
            f"This run has not ended: {story.last} of {story.planned} epochs are done. Everything here may change."
        )
    if story.control and story.control.unknown:
        cautions.append(
            f"The control has {count(story.control.unknown, 'Unknown row')} too, so it does not serve as a control."
        )
    if story.control and story.control.differ:
        cautions.append(f"The control differs in more than its rows: {'; '.join(story.control.differ)}.")
    elif story.control and story.control.steps != story.steps:
        cautions.append(
            f"The control took {count(story.control.steps, 'step')} and this run {story.steps:,}, so these two runs "
            "alone cannot separate the effect of the steps from the effect of the rows."
        )
    if story.control and story.judged and story.judged.name not in story.control.courses:
        cautions.append(
            f"The control did not measure the same rows as {story.judged.name}, so the two cannot be compared there."
        )
    others = [epoch for epoch in story.as_good if epoch != story.best]
    dev = story.dev
    if dev and others and story.metric == "dev_em":
        cautions.append(
            f"With {count(dev.early.rows, 'dev row')}, the best epoch could as well be {_ranges(others, 'or')}: the "
            "answers of these epochs do not differ by more than chance."
        )
    if len(story.courses) == 1 and dev:
        cautions.append(
            f"This run measured no test set. {_chosen_by(story)} chose the epoch, so what dev shows of it is too "
            "favourable; name other rows with --test."
        )
    if story.judged and story.judged.early.rows < FEW:
        of = story.judged
        cautions.append(f"{of.name} has only {count(of.early.rows, 'row')}: its shares say little.")
    if story.ceiling < 1:
        cautions.append(
            f"Some questions have more than one gold answer, so at most {exact(story.ceiling)} of the rows can be "
            "fitted."
        )
    cautions.append("One run, one seed: every p-value is about these rows and this seed, not about other seeds.")
    return tuple(cautions)


def _chosen_by(story: TrainReportData) -> str:
    """The measure of dev that chose the epoch."""
    if story.chooser != "metric":
        return "Dev loss"
    name = story.metric.replace("_", " ").replace(" em", " EM")
    return name[0].upper() + name[1:]


_GO_ON = Option(
    "resume",
    "Continue the run",
    "Give the same command again: the run continues from its last checkpoint, and you can render this page again.",
    "",
    "",
    "",
    "foreknow tune TRAIN --dev DEV --model MODEL --out DIR",
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
        f"foreknow evaluate {weights} DATA --audit AUDIT --out EVAL",
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
    hold = hold_option(study, dev=True)
    early = story.canaries[0] if story.canaries else None
    if (drop and drop.why) or early is None or not early.clear or early.lost < early.won:
        return hold
    lost = f"{early.lost:,} of the {early.rows:,} other facts that were watched are lost at epoch {story.best}"
    return replace(hold, why=f"{lost} ({p_value(early.p)}).")


def _why_keep(story: TrainReportData, drop: Option | None, hold: Option | None, longer: Option | None) -> str:
    if any(other and other.why for other in (drop, hold, longer)) or story.chooser == "nothing":
        return ""
    if story.chooser != "metric":
        return "Dev loss is lowest there; exact match does not tell this epoch from others."
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
        "NEW must be a new folder, because the number of epochs is part of a run's identity.",
        f"foreknow tune TRAIN --dev DEV --model MODEL --epochs {epochs} --patience 5 --out NEW",
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
        f"foreknow mix AUDIT --known-of TRAIN --out known{suffix}",
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
        "TRAIN must be a file that foreknow mix wrote.",
        f"foreknow mix AUDIT --known-of TRAIN --out known{suffix}\n"
        f"foreknow tune known{suffix} --dev DEV --model MODEL --out CONTROL",
    )


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


def _ranges(numbers: Sequence[int], word: str) -> str:
    """Numbers as text, with three or more in a row as a range: 2, 4–6 or 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    flat = [t for p in parts for t in ([f"{p[0]}–{p[-1]}"] if len(p) > 2 else [str(n) for n in p])]
    return enumeration(flat, word)
