"""This module writes the verdict of a training run: which epoch to keep, and what further training cost.

Its functions have no side effects. A sentence states a difference if the exact McNemar p-value over the same rows is
below `tune_tables.CHANCE`; otherwise it says that these rows show none. No sentence is about other seeds, because
one run cannot show their effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foreknow.format.numbers import count, enumeration, exact, exact_interval, p_value
from foreknow.report.train_report_data import TrainReportData
from foreknow.report.tune_options import options
from foreknow.report.tune_tables import FEW, Count
from foreknow.stages.train.selection import Chooser
from foreknow.stats import wilson


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


def early_stop_rule(chooser: Chooser, metric: str) -> str:
    """Words for the epoch that the run calls EARLY_STOP. `chooser`: what chose it; `metric`: that of the run."""
    if chooser == "metric":
        return f"the epoch with the best {metric}"
    by_loss = "the epoch with the lowest dev loss"
    return {
        "loss": by_loss,
        "tie": f"{by_loss}, as {metric} is the same at every epoch",
        "chance": f"the epoch that dev loss chose among those that {metric} cannot tell from its best",
        "nothing": f"the first epoch, as {metric} is the same at every epoch and no dev loss was measured",
    }[chooser]


def _found(story: TrainReportData) -> str:
    dev = story.dev
    if story.chooser != "metric" and story.last > 1:
        return _found_otherwise(story)
    if story.metric == "dev_em" and dev:
        value = f"dev EM {exact_interval(dev.early.interval)} of {count(dev.early.rows, 'row')}"
        end = f"; at the end it is {exact(dev.last.share)}"
    elif story.dev_loss is not None and story.metric == "dev_loss":
        value, end = f"dev loss {story.dev_loss[0]:.3f}", ""
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
        f"Keep epoch {story.best} of {story.last}{so_far}: by {name}, {exact(story.chosen)}, the rows of dev cannot "
        f"tell it from other epochs, so dev loss chose it, {best:.3f}{then}."
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
        fell = story.dev is not None and story.dev.last.hits < story.dev.early.hits
        moved = "fell meanwhile" if fell else "was higher at another epoch"
        return f"{then[:1].upper()}{then[1:]}. Dev EM {moved}, by no more than chance gives on so few rows."
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
    if dev and others and story.metric == "dev_em" and story.chooser == "metric":
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
