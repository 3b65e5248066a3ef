"""The steps of `foreknow quickstart`: what each one is for, and the command that does it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from foreknow.config.shared import DEFAULT_FACTS, FEW_SETS

PAGE: Final = "report.html"


class Step(NamedTuple):
    """One step: a sentence on what it does, and the words behind `foreknow`."""

    why: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """Return the command as one types it."""
        return shlex.join(("foreknow", *self.words))


def quickstart_steps(data: str, model: str | None, out: Path, minutes: float) -> Iterator[Step]:
    """Yield the steps in order; each is made once the one before it has run.

    `data`: a file, or `facts`. `minutes`: how long the audit may take.
    """
    own_file = data != DEFAULT_FACTS
    audit = str(out / "audit")
    if own_file:
        yield Step("Looks for what is wrong with your file, without a model.", ("check", data))
    yield Step(
        f"Labels as many rows of {data if own_file else 'the packaged facts'} as fit in {minutes:g} "
        f"{'minute' if minutes == 1 else 'minutes'} by what the model expresses already, and writes a page. "
        f"{FEW_SETS} sets of exemplars take a third of the time of the usual ten.",
        ("audit", data, *_model(model), "--minutes", f"{minutes:g}", "--exemplar-sets", str(FEW_SETS), "--out", audit),
    )
    yield Step(
        "Writes a training set from the labels: the rows without the Unknown ones.",
        ("mix", audit, "--drop", "unknown", "--out", str(_known_rows(out))),
    )


def count_steps(data: str) -> int:
    """Return how many steps there are."""
    return 2 if data == DEFAULT_FACTS else 3


def after_quickstart(data: str, model: str | None, out: Path) -> str:
    """Return what to do next, as text: read the page, then train."""
    words = ["foreknow", "tune", str(_known_rows(out)), *_model(model), "--audit", str(out / "audit")]
    lines = [
        f"read the page: {out / 'audit' / PAGE}",
        f"train on the rows that are left: {shlex.join([*words, '--out', str(out / 'tuned')])}",
    ]
    if data == DEFAULT_FACTS:
        lines.append("take your own file and model: foreknow quickstart train.jsonl --model path/to/model")
    return "\n".join(lines)


def walk(steps: Iterable[Step], count: int, run: Callable[[Sequence[str]], None], *, ask: bool) -> bool:
    """Show and run each of `count` steps; return whether all were run. `ask`: wait for a key before each; q stops."""
    for number, step in enumerate(steps, 1):
        print(f"\n{number} of {count}: {step.why}\n$ {step.command}", flush=True)
        if ask and _stops():
            print(f"stopped before step {number}; the same command goes on from here")
            return False
        run(step.words)
    return True


def can_ask() -> bool:
    """Return whether a person sits at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _stops() -> bool:
    try:
        return input("Enter runs it, q stops: ").strip().lower().startswith("q")
    except EOFError:
        return True


def _model(model: str | None) -> tuple[str, ...]:
    return () if model is None else ("--model", model)


def _known_rows(out: Path) -> Path:
    """Return the file for the mixed set, in the format of the rows that the audit annotated."""
    files = sorted((out / "audit").glob("annotated*"))
    suffix = files[0].name.removeprefix("annotated") if files and files[0].is_file() else ".jsonl"
    return out / f"known{suffix}"
