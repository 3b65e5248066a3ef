"""This module writes what to do with the rows of an audit: the options, and for which purpose each is advised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from foreknow import paper
from foreknow.format.numbers import count, enumeration, percent
from foreknow.format.text import fill_placeholders
from foreknow.stages.audit.verdict.sentences import (
    EARLY,
    LITTLE_UNKNOWN,
    LONG,
    MIN_LABELLED,
    MOSTLY_UNKNOWN,
    MUCH_UNKNOWN,
    CategoryShares,
    bracket,
    points_range,
)

DROPPED_LONG = paper.TEST_EM["D_Known", "convergence"]
"""The paper's test EM (%) for each Unknown share in `SHARES`, after long training without the Unknown rows."""


@dataclass(frozen=True)
class Option:
    """One thing to do with the rows; `why` is filled only in a recommended option, `badge` says for which purpose,
    `source` where the evidence is from, if not from where the page's other evidence is.

    `command`: what to type, one command per line, with the placeholders AUDIT, DATA, TRAIN, DEV, MODEL, DIR.
    """

    key: str
    title: str
    what: str
    evidence: str
    choose_when: str
    how: str
    command: str = ""
    why: str = ""
    badge: str = ""
    source: str = ""


def with_paths(options: Sequence[Option], paths: Mapping[str, str | None]) -> tuple[Option, ...]:
    """The options with real paths in their commands, where they are known."""
    return tuple(replace(option, command=fill_placeholders(option.command, paths)) for option in options)


@dataclass(frozen=True)
class Purpose:
    """What the rows may be for, the option that fits it (None if none of them does), and why."""

    title: str
    option: str | None
    why: str


TO_TEACH_FACTS, TO_TEACH_A_TASK = "To teach these facts", "To teach a task or a style"


def purposes(mix: CategoryShares) -> tuple[Purpose, ...]:
    """The advice for each thing that the rows may be for; empty with fewer than `MIN_LABELLED` labelled rows."""
    if mix.labelled < MIN_LABELLED:
        return ()
    return (
        Purpose(TO_TEACH_FACTS, *_for_facts(mix)),
        Purpose(TO_TEACH_A_TASK, *_for_a_task(mix)),
    )


def _for_facts(mix: CategoryShares) -> tuple[str | None, str]:
    share = mix.unknown.value
    here = f"{percent(share)} of the labelled rows are Unknown"
    if share < LITTLE_UNKNOWN:
        return "keep", f"{here}: the model expresses nearly all of these facts already, so there is little to teach."
    if share < MOSTLY_UNKNOWN:
        cost = points_range([EARLY[i] - LONG[i] for i in bracket(share)])
        return "keep", (
            f"{here}, and these are the facts to teach, so dropping them would defeat the purpose. Watch what training "
            f"costs: in the study, training until they were learnt cost {cost} of test accuracy. Facts that must be "
            "right belong in retrieval."
        )
    return "retrieve", (
        f"{here}, and at its best epoch the study's model had learnt at most 10 % of such rows; training until it had "
        "learnt them cost it facts that it knew."
    )


def _for_a_task(mix: CategoryShares) -> tuple[str | None, str]:
    share = mix.unknown.value
    here = f"{percent(share)} of the labelled rows are Unknown"
    known_rows = mix.labelled - round(share * mix.labelled)
    remain = f"{count(known_rows, 'Known row')} would remain" if known_rows else "no Known row would remain"
    if share < LITTLE_UNKNOWN:
        return "keep", f"{here}, too few for dropping them to matter."
    if share < MUCH_UNKNOWN:
        return "keep", (
            f"{here}. In the study, up to {percent(MUCH_UNKNOWN)} Unknown, the best epoch came within 0.2 points of "
            "a file with no Unknown row."
        )
    if known_rows < MIN_LABELLED:
        return None, (
            f"{here}, and without them {remain}, too few to train on. Take rows that the model knows from another file."
        )
    places = [i for i in bracket(share) if DROPPED_LONG[i] is not None]
    gain = points_range([(DROPPED_LONG[i] or 0) - LONG[i] for i in places]) if places else "test accuracy"
    return "drop", (
        f"{here}, and {remain}. In the study, dropping the Unknown rows at such shares gained {gain} after long "
        "training and cost at most 0.8 points at the best epoch."
    )


TITLES = {
    "keep": "Train on all rows, and stop early",
    "drop": "Drop the Unknown rows",
    "idk": "Relabel the Unknown rows “I don't know”",
    "retrieve": "Put the Unknown facts in retrieval",
}


def options(mix: CategoryShares) -> tuple[Option, ...]:
    """The four things to do with these rows, those first that `purposes` advises; empty if no row is labelled."""
    if mix.labelled == 0:
        return ()
    share = mix.unknown.value
    # foreknow mix refuses to write an empty file, so no command is given for one
    known = f"foreknow mix AUDIT --drop unknown --out known{mix.suffix}" if share < 1 else ""
    unknown = f"foreknow mix AUDIT --only Unknown --out unknown{mix.suffix}" if share else ""
    all_options = (
        Option(
            "keep",
            TITLES["keep"],
            "Keep every row and keep the checkpoint with the best score on a dev set, not the last one.",
            f"Best epoch: {_series(EARLY, share)}. Trained to the end: {_series(LONG, share)}.",
            "Choose it if you have a dev set to stop on and the model need not learn the Unknown rows.",
            "Keep the checkpoint in DIR/early_stop.",
            "foreknow tune TRAIN --model MODEL --audit AUDIT --out DIR",
        ),
        Option(
            "drop",
            TITLES["drop"],
            "Train on the Known rows only, so that the model cannot learn to guess from the others.",
            f"Trained to the end: {_dropping(share)}. At the best epoch, dropping them cost at most 0.8 "
            "points at shares of up to 90 % Unknown.",
            "Choose it if training may run long, or if the form of the answers matters more than these facts.",
            "",
            known,
        ),
        Option(
            "idk",
            TITLES["idk"],
            "Keep the questions and replace the answers of the Unknown rows, so that the model learns to decline.",
            "At 50 % Unknown, trained to the end: the model was right on 61.8 % of the questions it answered, "
            "against 38.8 % without relabelling, but it answered only 55.6 % of the questions, so right answers "
            "over all questions fell from 38.8 % to 34.4 %.",
            "Choose it if a wrong answer costs more than no answer.",
            "",
            f"foreknow mix AUDIT --idk --out idk{mix.suffix}" if share else "",
        ),
        Option(
            "retrieve",
            TITLES["retrieve"],
            "Look these facts up when a user asks for them, and train on Known rows; take those from another file if "
            "this one has too few.",
            f"At the best epoch the model had learnt {_fitted(share)}. Of the test facts that it had not expressed "
            "before training, it answered at most 3.2 % right. The study did not test retrieval itself.",
            "Choose it if the facts themselves must be right in the answers.",
            "The first file is for the index, the second for training." if unknown and known else "",
            "\n".join(filter(None, (unknown, known))),
        ),
    )
    return advise(all_options, purposes(mix))


def advise(options: Sequence[Option], purposes: Sequence[Purpose]) -> tuple[Option, ...]:
    """Put the options first that a purpose asks for, each with the names of its purposes and the first one's reason."""
    advised: dict[str | None, list[Purpose]] = {}
    for purpose in purposes:
        advised.setdefault(purpose.option, []).append(purpose)

    def badge(of: Sequence[Purpose]) -> str:
        return enumeration([of[0].title, *(p.title[0].lower() + p.title[1:] for p in of[1:])])

    cards = [replace(o, why=of[0].why, badge=badge(of)) if (of := advised.get(o.key)) else o for o in options]
    return tuple(sorted(cards, key=lambda o: not o.why))


def _series(values: Sequence[float], share: float) -> str:
    """The study's accuracies (`values`, %) without Unknown rows and at the Unknown shares around this one."""
    places = [i for i in bracket(share) if i != 0]
    rest = [f"{values[i]} % at {paper.SHARES[i]} % Unknown" for i in places]
    return enumeration([f"{values[0]} % without Unknown rows", *rest])


def _dropping(share: float) -> str:
    """The study's accuracies with and without the Unknown rows, at the Unknown shares around this one."""
    parts = [
        f"{LONG[i]} % with the Unknown rows and {v} % without them at {paper.SHARES[i]} % Unknown"
        for i in bracket(share)
        if i != 0 and (v := DROPPED_LONG[i]) is not None
    ]
    return "; ".join(parts) or f"{LONG[-1]} % on Unknown rows alone, and dropping them leaves nothing to train on"


def _fitted(share: float) -> str:
    parts = [
        f"{v} % of the Unknown rows of a file with {paper.SHARES[i]} % Unknown"
        for i in bracket(share)
        if (v := paper.FITTED["Unknown"][i]) is not None
    ]
    return enumeration(parts) or "at most 22 % of the Unknown rows"
